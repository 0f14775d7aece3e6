"""What must hold whatever the numbers: rows apart, monotony, zeros, and the definitions of undefined inputs."""

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels import registry

RNG = np.random.default_rng(11)
X = RNG.integers(-128, 128, (6, 17))
BACKENDS = ("kernel", "spec")


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_softmax_rows_are_independent(method):
    whole, _ = ops.softmax(X, 0.05, method=method, out_bits=8)
    alone = [ops.softmax(X[i : i + 1], 0.05, method=method, out_bits=8)[0][0] for i in range(len(X))]
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_masked_columns_do_not_change_the_maximum(method, backend):
    mask = np.zeros(X.shape, bool)
    mask[:, 5] = True
    changed = X.copy()
    changed[:, 5] = 127
    first = ops.softmax(X, 0.05, method=method, out_bits=8, mask=mask, backend=backend)[0]
    assert np.array_equal(first, ops.softmax(changed, 0.05, method=method, out_bits=8, mask=mask, backend=backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "expected"), [("ivit", [31] * 4), ("ibert", [0] * 4), ("fqvit", [2] * 4)])
def test_a_row_that_is_masked_whole(method, expected, backend):
    y, _ = ops.softmax([[3, 1, 2, 9]], 0.05, method=method, out_bits=8, mask=[[True] * 4], backend=backend)
    assert y.tolist() == [expected]


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_requantize_is_monotonic_and_saturates(bits):
    x = np.sort(RNG.integers(-(2**40), 2**40, 500))
    y = ops.requantize(x, 1e-3, 0.7, bits)
    assert (np.diff(y) >= 0).all()
    assert y.min() >= -(2 ** (bits - 1))
    assert y.max() <= 2 ** (bits - 1) - 1


def test_published_rule_saturates_at_no_other_width():
    assert ops.requantize([10**6], 1.0, 1.0, 6).tolist() == [10**6]
    assert ops.requantize([10**6], 1.0, 1.0, 8, clamp=False).tolist() == [10**6]
    assert ops.requantize([10**6], 1.0, 1.0, 8).tolist() == [127]


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_gelu_keeps_zero(method):
    y, _ = ops.gelu(np.array([[0, 5, -7]]), 0.05, method=method, n=6)
    assert y[0, 0] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_shiftgelu_of_all_negative_rows(backend):
    """The second exponential is of a positive argument: it saturates the sum, F = 1, and the sigmoid is e >> 24 = 1."""
    y, _ = ops.gelu(np.full((1, 5), -128), 0.5, method="ivit", backend=backend)
    assert y.tolist() == [[-128] * 5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_layernorm_of_equal_values_is_its_bias(method, backend):
    gamma, beta = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.25, 0.5, -1.0, 0.0])
    y, scale = ops.layernorm(np.full((1, 4), 9), 0.1, gamma, beta, method=method, out_scale=2.0**-7, backend=backend)
    assert np.allclose(y[0] * scale, beta, atol=2.0**-7)


@pytest.mark.parametrize("method", ["ivit", "ibert"])
@pytest.mark.parametrize("gamma", [0.0, 1e-30, -1e-30, 1e-18])
def test_a_gamma_that_vanishes_leaves_beta(method, gamma):
    x = RNG.integers(-128, 128, (3, 4))
    y, scale = ops.layernorm(x, 0.1, [1.0, gamma, gamma, 1.0], [0.0, 0.75, -3.0, 1.0], method=method)
    real = (y * scale)[:, 1:3]
    assert np.allclose(real, [0.75, -3.0], rtol=2.0**-9)
    codes = ops.requantize(y, scale, 3.0 / 127, 8)
    assert (np.abs(codes[:, 1:3] - [32, -127]) <= 1).all()


def test_gamma_zero_replacement_is_the_documented_one():
    params, scale = registry.get("layernorm", "ivit").lower(0.1, gamma=[0.0, 0.0], beta=[0.5, 0.0])
    unit = float(np.float32(np.sqrt(2))) / 2**30
    assert params.bias[0] in (2**40, 2**40 - 1)
    assert params.bias[1] == 0
    assert scale[1] == unit * 2.0**-23


def test_multiplier_may_be_exactly_two_to_the_31():
    from intvit.kernels.requantize import dyadic

    m, e = dyadic(1 - 2.0**-53, 1.0)
    assert (m.tolist(), e.tolist()) == ([2**31], [31])
    x = np.array([5, -7, 2**31 - 1, -(2**31)])
    for backend in BACKENDS:
        assert np.array_equal(ops.requantize(x, 1 - 2.0**-53, 1.0, 64, clamp=False, backend=backend), x)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.softmax([[1]], 0.0, method="ivit", out_bits=8),
        lambda: ops.softmax([[1]], -0.1, method="ibert", out_bits=8),
        lambda: ops.softmax([[1]], float("nan"), method="fqvit", out_bits=4),
        lambda: ops.softmax([[1]], 1e-30, method="ivit", out_bits=8),
        lambda: ops.softmax([[1.5]], 0.1, method="ivit", out_bits=8),
        lambda: ops.softmax([[1]], 0.1, method="magic", out_bits=8),
        lambda: ops.softmax([[1]], 0.1, method="ivit", out_bits=8, backend="gpu"),
        lambda: ops.softmax([[2**40]], 0.1, method="ivit", out_bits=8),
        lambda: ops.softmax([[-32768, 32767] * 600], 0.0008, method="fqvit", out_bits=4),
        lambda: ops.gelu([[1, 2]], [0.1, 0.2], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0], [1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, np.nan], [1.0, 1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, 1.0], [1.0, 1.0], method="fqvit"),
        lambda: ops.layernorm([[2**35, -(2**35)]], 0.1, [1.0, 1.0], [1.0, 1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, 1.0], [1.0, 1.0], method="ibert", shift=40),
        lambda: ops.requantize([1], 1.0, 0.0, 8),
        lambda: ops.requantize([1], np.inf, 1.0, 8),
        lambda: ops.requantize([1, 2, 3], [1.0, 2.0], 1.0, 8),
        lambda: ops.requantize([1], 1.0, 1.0, 8, residual=[1]),
        lambda: ops.log2_matmul([[16]], [[1]], 1.0),
        lambda: ops.quantize_weight(np.array([[np.nan]])),
        lambda: ops.quantize_weight(np.array([[1.0]]), method="magic"),
        lambda: ops.quantize_weight(np.array([[1.0]]), bits=1),
    ],
)
def test_bad_arguments_raise_one_clear_line(call):
    with pytest.raises(IntvitError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


# (operator, method, scale, options, bound on |y| for |x| <= 127 in rows of 8)
BOUNDS = [
    ("softmax", "ivit", 0.05, {"out_bits": 8}, 127),
    ("softmax", "ivit", 0.05, {"out_bits": 16}, 32767),
    ("softmax", "ivit", 1e-6, {"out_bits": 8}, (10**6 << 15) >> 24),
    ("softmax", "ivit", 1e-4, {"out_bits": 8}, 127),
    ("softmax", "ibert", 0.05, {"out_bits": 8}, 255),
    ("softmax", "ibert", 0.05, {"out_bits": 16}, 65535),
    ("softmax", "ibert", 0.05, {"out_bits": 8, "exp_range_max": (1116 << 30) * 32767.0}, 256),
    ("softmax", "fqvit", 0.05, {"out_bits": 4}, 15),
    ("gelu", "ivit", 0.05, {}, 127 * 127),
    ("gelu", "ivit", 1e-4, {}, 127 * ((5876 << 23) >> 24)),
    ("gelu", "ibert", 0.05, {"n": 6}, 127 * ((2771 >> 6) + 1 + 44)),
    ("layernorm", "ivit", 0.05, {"gamma": np.ones(8), "beta": np.zeros(8)}, 2**30),
    ("layernorm", "ibert", 0.05, {"gamma": np.ones(8), "beta": np.zeros(8)}, 2**30),
]


@pytest.mark.parametrize(("operator", "method", "scale", "options", "expected"), BOUNDS)
def test_bound_is_the_documented_one_and_holds(operator, method, scale, options, expected):
    m = registry.get(operator, method)
    params, _ = m.lower(scale, **options)
    assert m.bound(params, 127, 8) == expected
    rows = RNG.integers(-127, 128, (200, 8))
    rows[:20] = np.repeat(np.arange(-127, 128, 13)[:20, None], 8, axis=1)
    rows[20:40, 1:] = -127
    rows[20:40, 0] = 127
    assert np.abs(m.kernel(params)(rows)).max() <= expected


def test_bound_of_layernorm_grows_with_the_bias_and_is_open_after_a_shift():
    params, _ = registry.get("layernorm", "ivit").lower(0.05, gamma=[0.5, 1.0], beta=[1.0, -3.0])
    m = registry.get("layernorm", "ibert")
    assert registry.get("layernorm", "ivit").bound(params, 127, 2) == 2**30 + max(abs(b) for b in params.bias)
    assert m.bound(m.lower(0.05, gamma=[1.0], beta=[0.0], shift=1)[0], 127, 1) is None


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_requantize_of_two_channels_with_scales_of_their_own(backend, kind):
    x = np.array([[100, 100], [-7, -7]], kind)
    assert ops.requantize(x, [1.0, 0.5], 1.0, 8, backend=backend).tolist() == [[100, 50], [-7, -4]]
    y = ops.requantize(x, 1.0, 1.0, 8, residual=x, residual_scale=[0.25, -1.0], backend=backend)
    assert y.tolist() == [[125, 0], [-9, 0]]
    y = ops.requantize(x, [0.25, -1.0], 1.0, 8, residual=x, residual_scale=1.0, backend=backend)
    assert y.tolist() == [[125, 0], [-9, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_gelu_wraps_its_product_at_32_bits(backend):
    """x = 2**26 with a sigmoid of 127 or so: the product passes 32 bits."""
    x = [[2**26 + 12345, 0, 5]]
    exact, _ = ops.gelu(x, 0.5, method="ivit", backend=backend)
    y, _ = ops.gelu(x, 0.5, method="ivit_tvm", backend=backend)
    assert exact[0, 0] > 2**31
    assert y[0, 0] == (x[0][0] * 127 + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_softmax_whose_sum_wraps_to_zero(backend):
    """x0 = -256: 256 equal columns of 256 * 2**16 sum to 2**32, which is 0 as a word."""
    y, _ = ops.softmax(np.zeros((1, 256), np.int64), 1 / 255, method="ivit_tvm", out_bits=8, backend=backend)
    assert not y.any()
    y, _ = ops.softmax(np.zeros((1, 255), np.int64), 1 / 255, method="ivit_tvm", out_bits=8, backend=backend)
    assert y.any()


def test_default_exponent_of_ibert_gelu_is_the_published_one():
    x = np.arange(-2000, 2000)[None]
    assert np.array_equal(ops.gelu(x, 1e-3, method="ibert")[0], ops.gelu(x, 1e-3, method="ibert", n=14)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fqvit_layernorm_of_equal_values_rounds_half_even(backend):
    beta = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.75, 1.25, -3.75])
    y, _ = ops.layernorm(np.full((1, 8), -3), 0.1, np.ones(8), beta, method="fqvit", out_scale=1.0, backend=backend)
    assert y.tolist() == [[0, 2, 2, 0, -2, 1, 1, -4]]


def test_a_gamma_is_replaced_from_a_bias_of_two_to_the_61_on():
    lower = registry.get("layernorm", "ivit").lower
    unit = float(np.float32(1.0)) / 2**30
    kept, _ = lower(0.1, gamma=[1.0], beta=[2.0**61 * unit * 0.99])
    replaced, _ = lower(0.1, gamma=[1.0], beta=[2.0**61 * unit])
    assert kept.bias[0] > 2**60
    assert replaced.bias[0] == 2**40


def test_linear_product_accumulator_is_int32_exactly_while_the_bound_fits():
    from intvit.kernels.matmul import carrier, matmul, prepare_linear

    one = np.ones((1, 1), np.int64)
    for bound, kind in ((2**31 - 1, np.int32), (2**31, np.int64)):
        assert prepare_linear(one, np.array([bound - 127]), 127)(one).dtype == kind
        assert matmul(one, one, a_max=bound, b_max=1).dtype == kind
    assert carrier(2**24 - 1) is np.float32
    assert carrier(2**24) is np.float64
    assert carrier(2**53 - 1) is np.float64
    assert carrier(2**53) is None


@pytest.mark.parametrize(("x", "zero_point"), [([-1.0, -0.5], 255), ([0.5, 1.0], 0), ([-1.0, 1.0], 128)])
def test_unsigned_zero_point_stays_in_its_range(x, zero_point):
    assert ops.quantize_activation(np.array(x), method="fqvit")[2] == zero_point


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_layernorm_wraps_at_32_bits(backend):
    """The bias passes 32 bits and wraps; the sum with the normalised part wraps again."""
    x = np.array([[127, -128, 3, 0]])
    y, _ = ops.layernorm(x, 0.1, [0.5] * 4, [3.9, -3.9, 3.9, 0.97], method="ivit_tvm", backend=backend)
    assert y.min() >= -(2**31)
    assert y.max() < 2**31
    exact, _ = ops.layernorm(x, 0.1, [0.5] * 4, [3.9, -3.9, 3.9, 0.97], method="ivit")
    assert (np.abs((y - exact + 2**31) % 2**32 - 2**31) <= 2**24).all()


def test_layernorm_fqvit_with_beta_far_beyond_the_output_scale():
    x = RNG.integers(-128, 128, (4, 6))
    for beta, out_scale in ((1e6, 1e-6), (3e3, 1e-7), (1e9, 1e-9), (-1e12, 1e-6)):
        for gamma in (1.0, 0.0, -1e-4, 1e5):
            args = (x, 0.02, [gamma] * 6, [beta] * 6)
            fast, _ = ops.layernorm(*args, method="fqvit", out_scale=out_scale)
            slow, _ = ops.layernorm(*args, method="fqvit", out_scale=out_scale, backend="spec")
            assert np.array_equal(fast, slow)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_gelu_shifts_by_exactly_31(backend):
    """x0 = -3, maximum -17: t = 24, q = -8, em = 3 << 31 = -2**31 as a word; e = 3 << 23, F = -1, e*F >> 24 = -2."""
    y, _ = ops.gelu([[-17, -17]], 0.25, method="ivit_tvm", backend=backend)
    assert y.tolist() == [[34, 34]]
