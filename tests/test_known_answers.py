"""Answers worked out by hand from the published formulas, as literals: no function of this package made them.

Each says where its formula stands.
"""

from fractions import Fraction

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels import registry
from intvit.kernels.requantize import dyadic

# FQ-ViT (arXiv 2111.13824), unsigned: s = (max - min) / (2**b - 1), z = clamp(-rhe(min / s)), q = clamp(rhe(x/s + z))
AFFINE = [
    # bits, (min, max), x, codes, zero_point
    (4, (-1.0, 2.0), [-1.0, 0.0, 2.0, 9.0, -9.0], [0, 5, 15, 15, 0], 5),
    (4, (1.0, 4.0), [1.0, 2.0, 4.0], [5, 10, 15], 0),
    (4, (-8.0, -5.0), [-8.0, -3.0, -2.0, -1.0, 0.0], [0, 0, 5, 10, 15], 15),
    (6, (-8.0, -1.7), [-8.0, -7.9, -0.1, 0.0], [0, 0, 62, 63], 63),
    (6, (-2.0, 4.3), [-2.0, 0.0, 4.3, 5.0], [0, 20, 63, 63], 20),
    (8, (-1.0, 1.55), [-1.0, 0.0, 1.55, 3.0], [0, 100, 255, 255], 100),
    (2, (0.0, 3.0), [0.0, 1.0, 2.5, 3.5], [0, 1, 2, 3], 0),
]


@pytest.mark.parametrize(("bits", "limits", "x", "codes", "zero_point"), AFFINE)
def test_fqvit_quantize_activation(bits, limits, x, codes, zero_point):
    got, scale, z = ops.quantize_activation(
        np.array(x), method="fqvit", bits=bits, min_val=limits[0], max_val=limits[1]
    )
    assert z == zero_point
    assert got.tolist() == codes
    assert scale == (limits[1] - limits[0]) / (2**bits - 1)


def test_fqvit_ptf_quantize_activation_gives_each_channel_its_power_of_two():
    # range 0..7.5 at 4 bits: s = 0.5, so the finest scale is 1/16; channel 0 lies on 1/16, channel 1 on 1/8 steps
    # up to 1.875 (clips at 15/16), channel 2 needs 1/4 up to 3.75, channel 3 all of it
    x = np.array([[1 / 16, 1 / 8, 1 / 4, 1 / 2], [15 / 16, 15 / 8, 15 / 4, 15 / 2]])
    codes, scale, z, factors = ops.quantize_activation(x, method="fqvit", bits=4, min_val=0, max_val=7.5, ptf=True)
    assert z == 0
    assert factors.tolist() == [1, 2, 4, 8]
    assert scale.tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert codes.tolist() == [[1, 1, 1, 1], [15, 15, 15, 15]]


# symmetric weights, 1/127 of the largest magnitude a step: ties to even, both ends of the range
SYMMETRIC = [
    # I-ViT: scale max|w| / (2**(b-1) - 1); codes -2**(b-1) .. 2**(b-1) - 1
    ("ivit", 4, [7.0, -7.0, 2.5, 3.5, -0.5], [7, -7, 2, 4, 0], 1.0),
    ("ivit", 8, [127.0, -127.0, 0.5, 1.5], [127, -127, 0, 2], 1.0),
    # I-BERT: the same scale, clamped to -(2**(b-1) - 1) .. 2**(b-1) - 2
    ("ibert", 4, [7.0, -7.0, 2.5, 3.5, -0.5], [6, -7, 2, 4, 0], 1.0),
    ("ibert", 8, [127.0, -127.0, 126.0], [126, -127, 126], 1.0),
    # FQ-ViT: scale max|w| / ((2**b - 1) / 2)
    ("fqvit", 4, [7.5, -7.5, 2.5, 3.5, -0.5], [7, -8, 2, 4, 0], 1.0),
    ("fqvit", 8, [127.5, -127.5, 126.5], [127, -128, 126], 1.0),
]


@pytest.mark.parametrize(("method", "bits", "w", "codes", "scale"), SYMMETRIC)
def test_quantize_weight(method, bits, w, codes, scale):
    got, got_scale = ops.quantize_weight(np.array([w]), bits, method=method)
    assert got.tolist() == [codes]
    assert got_scale.tolist() == [scale]


def test_quantize_bias_is_at_the_accumulator_scale():
    # 0.25 * 0.5 = 1/8: 1.0 -> 8, 3/16 = 1.5 steps -> 2 (tie to even), 5/16 -> 2; saturated at s32
    codes, scale = ops.quantize_bias(np.array([1.0, 3 / 16, 5 / 16, 1e12]), 0.25, np.full(4, 0.5))
    assert codes.tolist() == [8, 2, 2, 2**31 - 1]
    assert scale.tolist() == [0.125] * 4


# HAWQ-V3 dyadic numbers (arXiv 2011.10680, section 3.2): m / 2**e with m of 31 bits
DYADIC = [(0.5, 2**30, 31), (1.0, 2**30, 30), (1.5, 3 * 2**29, 30), (3.0, 3 * 2**29, 29), (0.375, 3 * 2**29, 32)]


@pytest.mark.parametrize(("ratio", "m", "e"), DYADIC)
def test_dyadic(ratio, m, e):
    got_m, got_e = dyadic(ratio, 1.0)
    assert (got_m.tolist(), got_e.tolist()) == ([m], [e])


# rhe(x * in / out), saturated
REQUANTIZE = [
    ([1, 2, 3, 5, 6, 7, -1, -2, -3], 0.5, 1.0, 8, [0, 1, 2, 2, 3, 4, 0, -1, -2]),
    ([254, 255, 256, -255, -256, -257], 0.5, 1.0, 8, [127, 127, 127, -128, -128, -128]),
    ([10, 30, 50], 0.25, 1.0, 4, [2, 7, 7]),
    ([3, 5, -7], 3.0, 1.0, 16, [9, 15, -21]),
    ([3, 5, -7, 100], 1.5, 1.0, 8, [4, 8, -10, 127]),
    ([3, 200, -200], 1.0, 1.0, 8, [3, 127, -128]),
]


@pytest.mark.parametrize(("x", "in_scale", "out_scale", "bits", "expected"), REQUANTIZE)
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_requantize(x, in_scale, out_scale, bits, expected, backend):
    assert ops.requantize(np.array(x), in_scale, out_scale, bits, backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_ivit(backend):
    # I-ViT (arXiv 2207.01405), Shiftmax, scale 1: x0 = -1, n = 15. d = 0: e = (0 + 2) << 15 >> 1 = 2**15.
    # d = -1: t = -1 - 1 + 1 = -1, q = 1, r = 0: e = 2 << 14 >> 1 = 2**14; d = -4: t = -4 - 2 + 1 = -5: 2**10
    y, scale = ops.softmax(np.array([[0, -1, -4]]), 1.0, method="ivit", out_bits=8, backend=backend)
    total = 2**15 + 2**14 + 2**10
    factor = (2**31 - 1) // total
    assert factor == 42799
    assert y.tolist() == [[83, 41, 2]] == [[(e * factor) >> 24 for e in (2**15, 2**14, 2**10)]]
    assert scale == 2.0**-7


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_fqvit_codes_are_rounded_logarithms(backend):
    # equal scores: 1/n; log2(4) = 2, log2(6) rounds to 3 (6 is at 1.5 * 4: up), log2(5) to 2
    for n, code in ((1, 0), (2, 1), (4, 2), (5, 2), (6, 3), (8, 3), (11, 3), (12, 4)):
        y, _ = ops.softmax(np.zeros((1, n), np.int64), 0.01, method="fqvit", out_bits=4, backend=backend)
        assert y.tolist() == [[code] * n]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_ibert_of_equal_scores(backend):
    # every h = 32767, F = 2**32 // (n * 32767): 131076, 65538, 43692, 32769; y = (32767 * F) >> 24
    for n, expected in ((1, 255), (2, 127), (3, 85), (4, 63)):
        y, scale = ops.softmax(np.zeros((1, n), np.int64), 0.01, method="ibert", out_bits=8, backend=backend)
        assert y.tolist() == [[expected] * n]
        assert scale == 2.0**-8


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_log2_matmul(backend):
    # codes 0, 1, 3, -1 weigh 1, 1/2, 1/8, 0: values 8, 8, 8, 100 give 8 + 4 + 1
    q, v = np.array([[[0, 1, 3, -1]]]), np.array([[[8], [8], [8], [100]]])
    y, scale = ops.log2_matmul(q, v, 1.0, backend=backend)
    assert float(y[0, 0, 0]) * float(np.ravel(scale)[0]) == 13.0


@pytest.mark.parametrize("bits", [4, 8, 16, 32, 62])
@pytest.mark.parametrize("e", [1, 20, 31, 32, 33, 34, 40, 51, 55, 62, 70, 92, 93, 94])
def test_requantize_of_64_bit_inputs_is_the_fraction_rounded_to_even(bits, e):
    from intvit.kernels.requantize import apply_requantize

    rng = np.random.default_rng(e)
    x = [*rng.integers(-(2**60), 2**60, 200).tolist(), *rng.integers(-(2**34), 2**34, 200).tolist(), 0, 1, -1]
    x += [s * 2**k + d for k in (30, 31, 32, 60, 61, 62) for s in (1, -1) for d in (-1, 0, 1)]
    x += [s * ((2 * k + 1) << (max(e - 31, 1) - 1)) for k in range(8) for s in (1, -1) if e < 90]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for m in (2**30, -(2**30), 2**31, 2**31 - 1, 3 * 2**29, 0, 7):
        rows = np.array([x, x[::-1]]).T.copy()
        got = apply_requantize(rows, np.array([m, -m]), np.array([e, e]), bits)
        want = [[min(max(round(Fraction(v * f, 2**e)), low), high) for v, f in zip(row, (m, -m), strict=True)]
                for row in rows.tolist()]  # fmt: skip
        assert got.tolist() == want


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_requantize_with_a_constant_residual_saturates_as_with_an_array(bits):
    from intvit.kernels.requantize import apply_requantize, prepare_requantize

    rng = np.random.default_rng(bits)
    x = rng.integers(-128, 128, (2, 3, 4, 5)).astype(np.int8)
    constant = rng.integers(-128, 128, (3, 4, 5))
    m, e = dyadic(1.0, 2.0 ** -(bits - 7))
    n, f = dyadic(0.8, 2.0 ** -(bits - 7))
    run = prepare_requantize(m, e, bits, constant=constant, residual_m=n, residual_e=f, out_dtype=np.int16).run
    want = apply_requantize(x, m, e, bits, residual=np.broadcast_to(constant, x.shape), residual_m=n, residual_e=f)
    assert np.array_equal(run(x), want)
    assert want.min() == -(2 ** (bits - 1))
    assert want.max() == 2 ** (bits - 1) - 1


def test_bound_of_gelu_is_that_of_its_widest_channel():
    from intvit.kernels import registry

    method = registry.get("gelu", "ibert")
    params, _ = method.lower(np.array([0.05, 0.002]), n=6)
    alone = [method.bound(method.lower(np.array([s]), n=6)[0], 127, 1) for s in (0.05, 0.002)]
    assert method.bound(params, 127, 2) == max(alone) > min(alone)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("channels", [1, 3])
def test_requantize_by_the_general_kernels(kind, channels):
    """Ratios of 2**31 and residuals of 64 bits: what no fast form takes."""
    from intvit.kernels.requantize import apply_requantize

    x = np.array([[1, 2, 3], [-4, 5, -6]], kind)
    factors = np.array([2.0**31, 2.0**32, 2.0**33])[:channels]
    m, e = dyadic(factors, 1.0)
    plain = x.astype(object) * np.array([int(f) for f in np.broadcast_to(factors, 3)], object)
    assert apply_requantize(x, m, e, 50).tolist() == plain.tolist()
    residual = np.array([[7, 8, 9], [2**40, -5, 1]])
    n, f = dyadic(np.array([0.5, 1.0, 2.0])[:channels], 1.0)
    halves = [0.5, 1.0, 2.0] if channels == 3 else [0.5] * 3
    more = [[round(v * h) for v, h in zip(row, halves, strict=True)] for row in residual.tolist()]
    got = apply_requantize(x, m, e, 60, residual=residual, residual_m=n, residual_e=f)
    assert got.tolist() == (plain + np.array(more, object)).tolist()


# HAWQ-V3; docs/quantization.md, "Requantization": m = nearest integer to f * 2**31, ties away from zero, f in 0.5..1


@pytest.mark.parametrize(
    ("fraction", "m"),
    [(0.0, 0), (0.4996, 0), (0.49999, 0), (0.5, 1), (0.5004, 1), (0.9996, 1), (-0.5, 0), (-0.4996, 0)],
)
def test_dyadic_multipliers_round_half_away_from_zero(fraction, m):
    for sign in (1, -1):
        got, e = dyadic(sign * (2.0**30 + 12345 + fraction), 1.0)
        assert (got.tolist(), e.tolist()) == ([sign * (2**30 + 12345 + m)], [0])


# I-BERT (arXiv 2101.01321): y = (h * floor(2**32 / sum h)) >> (32 - bits). One position is the whole sum: 641 divides
# 2**32 + 1 = 641 * 6700417, and 641 * 6700416 = 2**32 - 640, so that its 8-bit output is 255 and not 256; of h = 1 it
# is 2**32 >> 24 = 256


@pytest.mark.parametrize(("h", "y"), [(641, 255), (1, 256), (3, 255), (2, 256)])
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ibert_softmax_of_one_position(h, y, backend):
    scale = 0.05
    c = int((1.0 / 0.35815147) / scale**2)
    got, _ = ops.softmax(
        [[5]], scale, method="ibert", out_bits=8, exp_range_max=c * 2.0**30 * 32767 / h, backend=backend
    )
    assert got.tolist() == [[y]]


# I-BERT LayerNorm: a shift of 3 hides a deviation of 1, so that the root is 0 and nothing but the bias is left. With
# beta = gamma = 1 and C = 4 that is floor(1 / (2 / 2**30)) = 2**29, whose scale is 2 / 2**30


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ibert_layernorm_of_a_deviation_below_its_shift(backend):
    y, scale = ops.layernorm([[0, 0, 0, 1]], 0.1, [1.0] * 4, [1.0] * 4, method="ibert", shift=3, backend=backend)
    assert y.tolist() == [[2**29] * 4]
    assert np.array_equal(scale, [2.0**-29] * 4)


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_layernorm_bound_of_the_variance_is_met_exactly(method):
    """C * (max - min)**2 must stay below 2**62: 4 * (2**30)**2 is refused, one step less is computed."""
    half = 2**29
    for low in (-half, -half + 1):
        rows = [[low, half, half, low]]
        if low == -half:
            with pytest.raises(IntvitError, match=r"below 2\*\*62"):
                ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method)
            continue
        fast, _ = ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method)
        slow, _ = ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method, backend="spec")
        assert np.array_equal(fast, slow)


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_gelu_of_two_channels_with_scales_of_their_own(backend):
    x = np.array([[-90, -90], [-3, -3], [0, 0], [40, 40]])
    both, _ = ops.gelu(x, [0.02, 0.05], method="ibert", n=6, backend=backend)
    for channel, scale in enumerate((0.02, 0.05)):
        alone, _ = ops.gelu(x[:, channel : channel + 1], scale, method="ibert", n=6, backend=backend)
        assert np.array_equal(both[:, channel], alone[:, 0])
    assert (both[[0, 1, 3], 0] != both[[0, 1, 3], 1]).all()


# LayerNorm of (1, -1): mean 0, var 2. I-ViT's ten steps from 2**16 only halve: k = 64, F = floor((2**31 - 1) / 64) =
# 33554431, y = (+-F) >> 1, toward zero in its 32-bit form. I-BERT: root 1, F = 2**31, y = +-2**30


@pytest.mark.parametrize(
    ("method", "y"),
    [("ivit", [16777215, -16777216]), ("ivit_tvm", [16777215, -16777215]), ("ibert", [2**30, -(2**30)])],
)
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_layernorm_of_the_smallest_variance(method, y, backend):
    got, _ = ops.layernorm([[1, -1]], 0.1, [1.0, 1.0], [0.0, 0.0], method=method, backend=backend)
    assert got.tolist() == [y]


# FQ-ViT: Dv = 2 * (1 + 0) - 1 = 1, A = gamma * 2 / out_scale = 2 * 2**5: M = 128, N = 1; B = rhe(-A / 2 * 2) = -64;
# y = rhe((128 * x - 64) / 2)


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_fqvit_layernorm_of_a_variance_of_1(backend):
    y, _ = ops.layernorm([[1, 0]], 0.1, [1, 1], [0, 0], method="fqvit", out_scale=2.0**-5, backend=backend)
    assert y.tolist() == [[32, -32]]


@pytest.mark.parametrize(("ratio", "replaced"), [(1.5 / 2, False), (0.999, False), (1.03, True), (4.0, True)])
def test_layernorm_bias_is_replaced_from_61_bits_on(ratio, replaced):
    """bias = (beta / gamma) / u with u = sqrt(C) / 2**30 = 2**-30 for one channel."""
    params, _ = registry.get("layernorm", "ivit").lower(0.1, gamma=[2.0**-31], beta=[ratio])
    assert params.bias == ((2**40,) if replaced else (int(ratio * 2.0**61),))


def test_bounds_of_fine_scales():
    """An exponent beyond 31 bits: the sum clamps, F = 1, and e >> (32 - bits) itself is the output."""
    softmax, gelu = registry.get("softmax", "ivit"), registry.get("gelu", "ivit")
    for x0, expected in ((-65535, 127), (-65536, 128), (-100000, 195)):
        params = softmax.params(x0, 15, 8)
        assert softmax.bound(params, 127, 1) == expected
        assert max(softmax.spec([0], params)) <= expected
    assert gelu.bound(gelu.lower(0.001)[0], 127, 5) == 127 * 294  # x0 = -588, (588 << 23) >> 24
    ibert = registry.get("layernorm", "ibert")
    for shift in (0, 1):
        params = ibert.lower(0.1, gamma=[1.0, 1.0], beta=[0.0, 0.0], shift=shift)[0]
        assert ibert.bound(params, 127, 2) == (None if shift else 2**30)


def test_bound_of_an_ibert_softmax_counts_a_hidden_position_alone():
    """At a range of 32767 * c a hidden position has h = 1, the maximum 32767: alone they give 256 and 255."""
    method = registry.get("softmax", "ibert")
    natural = method.lower(0.05, out_bits=8)[0]
    params, _ = method.lower(0.05, out_bits=8, exp_range_max=32767.0 * natural.c)
    assert method.spec([0], params) == [255]
    assert method.spec([0], params, [True]) == [256]
    assert method.bound(params, 127, 1) == 256


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_with_a_mask_of_one_row(backend):
    y, _ = ops.softmax([[50, -128]], 0.05, method="ivit", out_bits=8, mask=[[True, False]], backend=backend)
    assert y.tolist() == [[0, 127]]


@pytest.mark.parametrize(("method", "scale"), [("ivit", 2.0**-23), ("fqvit", 2.0**-23), ("ibert", 1e-8 / 127)])
def test_quantize_weight_of_0_has_the_least_scale(method, scale):
    q, got = ops.quantize_weight(np.zeros((2, 3)), method=method)
    assert not q.any()
    assert (np.asarray(got) == scale).all()


# FQ-ViT and I-ViT clamp to -2**(b-1) .. 2**(b-1) - 1, I-BERT to -(2**(b-1) - 1) .. 2**(b-1) - 2; the scale of a bias is
# not its own, so that it meets both ends


@pytest.mark.parametrize(
    ("method", "codes"), [("ivit", [-128, 127, -128]), ("ibert", [-127, 126, -127]), ("fqvit", [-128, 127, -128])]
)
def test_quantize_bias_saturates_at_both_ends(method, codes):
    assert ops.quantize_bias([-200.0, 200.0, -128.0], 1.0, [1.0] * 3, 8, method=method)[0].tolist() == codes


# A row that is hidden whole: every exponent is -x0. Deployed in 32 bits: 641 * 6700417 = 2**32 + 1 wraps to 1, so that
# F = 2**31 - 1, and 6700417 * F is 2**31 - 6700417 modulo 2**32, y that >> 24; 255 * 16843009 = 2**32 - 1 wraps to -1,
# F = -(2**31 - 1), 16843009 * F is 16843009 - 2**31


@pytest.mark.parametrize(("n", "x0", "y"), [(641, -6700417, 127), (255, -16843009, -127)])
def test_deployed_softmax_of_a_hidden_row_whose_sum_wraps_to_one(n, x0, y):
    method = registry.get("softmax", "ivit_tvm")
    params, rows, mask = method.params(x0, 16), np.arange(n)[None], np.ones((1, n), bool)
    assert method.kernel(params)(rows, mask).tolist() == [[y] * n]
    assert method.spec(rows[0].tolist(), params, mask[0].tolist()) == [y] * n


def test_ivit_softmax_of_one_hidden_position_with_the_smallest_exponent():
    """x0 = -1: the sum is 1 and F = 2**31 - 1 itself, which 32 bits of output show whole."""
    method = registry.get("softmax", "ivit")
    params, rows, mask = method.params(-1, 15, 32), np.array([[5]]), np.ones((1, 1), bool)
    assert method.kernel(params)(rows, mask).tolist() == [[2**31 - 1]]
    assert method.spec([5], params, [True]) == [2**31 - 1]
    out = np.empty((1, 1), np.int64)
    method.fast.narrow(params, 1, True)(rows.astype(np.int8), mask, out)
    assert out.tolist() == [[2**31 - 1]]


def test_deployed_softmax_exponents_are_32_bit_words():
    from intvit.spec.softmax import shift_exp_tvm

    # t = 6 + 3 - 0 = 9, q = -9: 1 << 31 for n = 22, which is -2**31 as a word, and 1 << 32 for n = 23
    assert [shift_exp_tvm([6], -1, n) for n in (21, 22, 23, 24)] == [[2**30], [-(2**31)], [0], [0]]


def test_softmax_polynomial_below_zero_is_clamped():
    """x0 = -10, b = 18, c = 3: at -5 it is -5 * 13 + 3 = -62, clamped; at 0 it is 3 << 30, which 16 bits saturate."""
    ibert, fqvit = registry.get("softmax", "ibert"), registry.get("softmax", "fqvit")
    rows = np.array([[0, -5]])
    params = ibert.params(-10, 18, 3, 30, 2**30, 30, 8)
    assert ibert.kernel(params)(rows).tolist() == [ibert.spec([0, -5], params)] == [[255, 0]]
    codes = fqvit.params(-10, 18, 3, 30, 4)
    assert fqvit.kernel(codes)(rows).tolist() == [fqvit.spec([0, -5], codes)] == [[0, -1]]


# I-ViT's ten steps from 2**16 give 2**31 - 1 for variances from 142617140447281152 on (far from their root 2**28.5), so
# that F = 1 and y = d >> 1; I-ViT deployed: the variance is 2**32 - 1 = 65536**2 - 1, where the steps do not settle:
# they alternate between 65535 and 65536


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ivit_layernorm_of_the_largest_root_that_has_a_factor(backend):
    a, b = 267036645, 21232
    assert 142617140447281152 <= 2 * a * a + 2 * b * b < 142617140514390016
    y, _ = ops.layernorm([[a, -a, b, -b]], 0.1, [1.0] * 4, [0.0] * 4, method="ivit", backend=backend)
    assert y.tolist() == [[a >> 1, -a >> 1, b >> 1, -b >> 1]]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_deployed_layernorm_of_a_variance_where_the_steps_alternate(backend):
    row = [20926, -20926, 41342, -41342, 1, -754, 357, 393]
    assert sum(row) == -3  # a mean of 0, toward zero
    assert sum(x * x for x in row) == 2**32 - 1
    k = 2**16
    for _ in range(10):
        k = (k + (2**32 - 1) // k) // 2
    factor = (2**31 - 1) // k
    assert factor == 32767
    y, _ = ops.layernorm([row], 0.1, [1.0] * 8, [0.0] * 8, method="ivit_tvm", backend=backend)
    assert y.tolist() == [[int(x * factor / 2) for x in row]]


# Constants beyond those that scales give: m / 2**e of any m and e is what the words say


@pytest.mark.parametrize(
    ("m", "e"), [(1, 30), (0, 30), (2**29, 30), (2**31, 30), (2**30, 30), (2**30, 29), (2**30, 31)]
)
@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("bits", [8, 16, None])
def test_requantize_by_constants_around_a_ratio_of_one(m, e, kind, bits):
    from intvit.kernels.requantize import apply_requantize

    x = [-128, -5, -1, 0, 1, 2, 3, 100, 127]
    low, high = -(2 ** ((bits or 64) - 1)), 2 ** ((bits or 64) - 1) - 1
    want = [min(max(round(Fraction(v * m, 2**e)), low), high) for v in x]
    assert apply_requantize(np.array(x, kind), np.array([m]), np.array([e]), bits).tolist() == want


@pytest.mark.parametrize("bits", [8, 16, 31, 32])
def test_requantize_of_int64_beyond_one_word_saturates_at_every_multiplier(bits):
    """Where x * m leaves 62 bits the fast form clamps x first; whatever m leaves of 2**62, the result is the limit."""
    from intvit.kernels.requantize import apply_requantize

    rng = np.random.default_rng(bits)
    multipliers = [2**31 - 1, 2**30 + 1, 2**30, *rng.integers(2**30, 2**31, 40).tolist(), 3, 1]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for e in (62 - bits - 1, 62 - bits, 62 - bits + 1):
        m = np.array(multipliers)
        for x in (2**63 - 1, -(2**63), 2**40, -(2**40), 2**32, -(2**32), 2**62 // (2**31 - 1) + 1):
            got = apply_requantize(np.full((1, len(m)), x), m, np.full(len(m), e), bits)
            assert got.tolist() == [[min(max(round(Fraction(x * f, 2**e)), low), high) for f in multipliers]], (e, x)


@pytest.mark.parametrize("term", [0, 2**31, 2**32, -(2**31), -(2**32), 2**62])
@pytest.mark.parametrize("step", [-1, 0, 7])
def test_requantize_with_a_constant_residual_of_more_than_32_bits(term, step):
    from intvit.kernels.requantize import apply_requantize, prepare_requantize

    x, term = np.array([[1, -7, 100]], np.int8), term + step
    one = np.array([2**30]), np.array([30])
    ratio = np.array([2**30]), np.array([31])
    constant = np.full((1, 3), term)
    want = apply_requantize(x, *ratio, 32, residual=constant, residual_m=one[0], residual_e=one[1])
    assert want.tolist() == [[min(max(round(v / 2) + term, -(2**31)), 2**31 - 1) for v in (1, -7, 100)]]
    run = prepare_requantize(*ratio, 32, constant=constant, residual_m=one[0], residual_e=one[1]).run
    assert np.array_equal(run(x), want)


def test_requantize_constants_are_regular_for_shifts_of_1_to_62():
    from intvit.kernels.rounding import HALF_EVEN, regular

    for m, e in ((2**30, 1), (2**30, 62), (2**31, 2), (2**31, 63), (-(2**31), 63)):
        full = abs(m) == 2**31
        got = regular(np.array([m]), np.array([e]), HALF_EVEN)
        m, e = m // 2 if full else m, e - full
        assert got.tolist() == [[m], [e], [2 ** (e - 1) - 1], [e], [2**62 // abs(m)]]
    for m, e in ((2**30, 0), (2**30, 63), (2**31, 1), (2**31, 64)):
        assert regular(np.array([m]), np.array([e]), HALF_EVEN) is None


def test_matrix_product_of_a_magnitude_that_no_float_holds():
    """321 * 28059810762433 = 2**53 + 1 is no float64: one product alone must already go by integers."""
    from intvit.kernels.matmul import matmul

    assert matmul(np.array([[321]]), np.array([[28059810762433]])).tolist() == [[2**53 + 1]]
    assert matmul(np.array([[2**26, 1]]), np.array([[2**27], [-1]])).tolist() == [[2**53 - 1]]
    pair = np.array([[3, 3, 3]]), np.array([[(2**53 + 1) // 3], [1], [0]])
    assert matmul(*pair).tolist() == [[2**53 + 4]]


def test_matrix_product_of_no_elements():
    from intvit.kernels.matmul import matmul

    assert matmul(np.zeros((0, 3), np.int64), np.full((3, 2), 2**62)).shape == (0, 2)
    assert matmul(np.zeros((2, 0), np.int64), np.zeros((0, 2), np.int64)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_log2_matmul_of_values_up_to_48_bits(backend):
    for v in (2**48 - 1, -(2**48) + 1, 2**47, 2**38):
        y, _ = ops.log2_matmul([[0], [15], [-1]], [[v]], 1.0, backend=backend)
        assert y.tolist() == [[v << 15], [v], [0]]
    if backend == "kernel":
        with pytest.raises(IntvitError, match=r"below 2\*\*63"):
            ops.log2_matmul([[0]], [[2**48]], 1.0)
