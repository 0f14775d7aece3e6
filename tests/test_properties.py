"""What must hold whatever the numbers: rows apart, monotony, zeros, and the definitions of undefined inputs."""

import numpy as np
import pytest

from intvit import ops, registry
from intvit.errors import IntvitError

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
