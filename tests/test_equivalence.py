"""Every registered method: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels import registry

SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
METHODS = {op: [m.name for m in registry.methods(op)] for op in ("softmax", "gelu", "layernorm")}
EXTREME_SCALES = [1.0, 0.5, 2.0**-7, 1 / 3, 0.0023, 1e-3, 1e-5, 7.3, 100.0, 1 / 255, 0.6931, 0.05]
SCALES = st.one_of(st.sampled_from(EXTREME_SCALES), st.floats(1e-6, 20.0))


def rows_of(bits, most_columns=40):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    value = st.one_of(st.integers(low, high), st.sampled_from([low, low + 1, -1, 0, 1, high - 1, high]))
    return st.integers(1, most_columns).flatmap(
        lambda n: st.lists(st.lists(value, min_size=n, max_size=n), min_size=1, max_size=3)
    )


def both(function, *args, refused=False, **kwargs):
    """Call both backends, whose results must be equal.

    `refused`: the input is beyond a documented limit of the kernel, which the test works out by itself: the kernel must
    refuse it. A refusal that the test does not expect is a failure.
    """
    if refused:
        with pytest.raises(IntvitError):
            function(*args, backend="kernel", **kwargs)
        return
    fast, scale = function(*args, backend="kernel", **kwargs)
    slow, slow_scale = function(*args, backend="spec", **kwargs)
    assert np.array_equal(fast, slow)
    assert np.array_equal(scale, slow_scale)


def softmax_refuses(method, rows, scale, masked=False):
    """The limits of the softmax kernels for rows of 32 bits: I-BERT's c = 0, FQ-ViT's sum of exponents of 2**62."""
    c = math.floor((1 / 0.35815147) / scale**2)
    if method == "ibert":
        return c == 0
    shifts = 30 if masked else min(30, int(np.ptp(rows)) // -math.floor(-0.6931 / scale) + 1)
    return method == "fqvit" and rows.shape[1] * (c << shifts) >= 2**62


def gelu_refuses(method, rows, scales, n):
    """I-BERT's GELU keeps |y| below 2**63: |x| times the most that the polynomial may be, per channel."""
    if method != "ibert":
        return False
    tops = []
    for scale in np.atleast_1d(scales):
        inner = scale / 1.4142
        b, c = math.floor(-1.769 / inner), math.floor((1 / -0.2888) / inner**2)
        shift = math.floor(1 / (inner**2 * -0.2888 * 2**n))
        tops.append((max(abs(c), abs(b * b + c)) >> n) + 1 + abs(shift))
    return max(abs(int(x)) for x in rows.flat) * max(tops) >= 2**63


@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax(method):
    @SETTINGS
    @given(rows_of(8), SCALES, st.sampled_from([4, 8, 16]), st.booleans(), st.randoms(use_true_random=False))
    def run(rows, scale, bits, masked, random):
        assume(method != "fqvit" or bits < 16)
        bits = 8 if method == "ivit_tvm" else bits
        x = np.array(rows)
        mask = np.array([[random.random() < 0.3 for _ in row] for row in rows]) if masked else None
        refused = softmax_refuses(method, x, scale, masked)
        both(ops.softmax, x, scale, method=method, out_bits=bits, mask=mask, refused=refused)

    run()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax_wide_inputs_and_ranges(method, bits):
    out_bits = {"fqvit": 4, "ivit_tvm": 8}.get(method, 16)

    @SETTINGS
    @given(rows_of(bits, 12), SCALES, st.floats(0.3, 3.0))
    def run(rows, scale, stretch):
        options = {}
        if method == "ibert":
            assume(scale < 1.6)
            params, _ = registry.get("softmax", "ibert").lower(scale, out_bits=16)
            options = {"exp_range_max": (params.c << 30) * stretch}
        x = np.array(rows)
        both(
            ops.softmax,
            x,
            scale,
            method=method,
            out_bits=out_bits,
            refused=softmax_refuses(method, x, scale),
            **options,
        )

    run()
    extremes = np.array([[2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 0, 5, -(2 ** (bits - 2)) - 3]])
    both(ops.softmax, extremes, 0.3, method=method, out_bits=out_bits)


@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax_every_8_bit_pair(method):
    """Rows (x, 127) for all x, and every constant row: exhaustive in one 8-bit operand."""
    x = np.arange(-128, 128)
    pairs = np.stack([x, np.full_like(x, 127)], axis=1)
    for scale in (0.5, 0.02, 1 / 128, 0.3):
        for rows in (pairs, x[:, None], np.repeat(x[:, None], 7, axis=1)):
            both(ops.softmax, rows, scale, method=method, out_bits=8)


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_softmax_every_16_bit_distance_to_the_maximum(method):
    x = np.arange(-(2**15), 2**15)
    rows = np.stack([x, np.full_like(x, 2**15 - 1)], axis=1)
    for scale in (2e-4, 0.003):
        both(ops.softmax, rows, scale, method=method, out_bits=16 if method != "fqvit" else 4)


@pytest.mark.parametrize("method", METHODS["layernorm"])
def test_layernorm_every_16_bit_value_beside_fixed_ones(method):
    x = np.arange(-(2**15), 2**15)
    rows = np.stack([x, np.full_like(x, 77), np.full_like(x, -900)], axis=1)
    gamma, beta = [0.7, -1.3, 2.0], [0.1, 0.2, -0.3]
    both(ops.layernorm, rows, 2e-4, gamma, beta, method=method, shift=1, out_scale=0.01)


def test_log2_matmul_every_code_and_8_bit_value():
    q, v = np.repeat(np.arange(-1, 16), 256)[:, None, None], np.tile(np.arange(-128, 128), 17)[:, None, None]
    fast, _ = ops.log2_matmul(q, v, 1.0)
    assert np.array_equal(fast, ops.log2_matmul(q, v, 1.0, backend="spec")[0])


def test_every_8_bit_product_and_sum():
    from intvit.kernels.matmul import matmul
    from intvit.kernels.pool import mean
    from intvit.spec import pool
    from intvit.spec.matmul import matmul as spec_matmul

    x = np.arange(-128, 128)
    assert np.array_equal(matmul(x[:, None], x[None]), np.array(spec_matmul(x[:, None].tolist(), [x.tolist()])))
    pairs = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    assert np.array_equal(mean(pairs, 1), [pool.mean(pair) for pair in pairs.tolist()])


@pytest.mark.parametrize("method", METHODS["gelu"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_gelu(method, bits):
    @SETTINGS
    @given(rows_of(bits), SCALES, st.sampled_from([6, 14]))
    def run(rows, scale, n):
        x = np.array(rows)
        both(ops.gelu, x, scale, method=method, n=n, refused=gelu_refuses(method, x, scale, n))

    run()


@pytest.mark.parametrize("n", [6, 14])
def test_ibert_gelu_every_16_bit_input(n):
    x = np.arange(-(2**15), 2**15)[:, None]
    for scale in (0.05, 0.002, 3e-4):
        both(ops.gelu, x, scale, method="ibert", n=n)


def test_ibert_gelu_per_channel_accumulators():
    @SETTINGS
    @given(st.lists(st.tuples(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(1e-5, 0.1)), min_size=1, max_size=20))
    def run(pairs):
        x, scales = np.array([[p[0] for p in pairs]]), np.array([p[1] for p in pairs])
        both(ops.gelu, x, scales, method="ibert", n=14, refused=gelu_refuses("ibert", x, scales, 14))

    run()


@pytest.mark.parametrize("method", ["ivit", "ivit_tvm"])
def test_shiftgelu_every_pair_of_8_bit_input_and_row_maximum(method):
    """ShiftGELU depends on (x, row maximum) alone: all 32,896 pairs."""
    for scale in (0.02, 0.5, 0.001):
        for top in range(-128, 128):
            x = np.arange(-128, top + 1)[None]
            both(ops.gelu, x, scale, method=method)


GAINS = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1e-30, -1e-12, 1.0, -1.0]))


@pytest.mark.parametrize("method", METHODS["layernorm"])
@pytest.mark.parametrize("bits", [8, 16])
def test_layernorm(method, bits):
    @SETTINGS
    @given(rows_of(bits), st.data())
    def run(rows, data):
        x = np.array(rows)
        n = x.shape[1]
        gamma = np.array(data.draw(st.lists(GAINS, min_size=n, max_size=n)), np.float32)
        beta = np.array(data.draw(st.lists(st.floats(-4, 4, width=32), min_size=n, max_size=n)), np.float32)
        options = {"shift": data.draw(st.integers(0, 6))}
        if method == "fqvit":
            factor = np.array(data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=n, max_size=n)))
            options |= {"factor": factor, "out_scale": data.draw(st.floats(1e-5, 1.0))}
        both(ops.layernorm, x, 0.02, gamma, beta, method=method, **options)

    run()


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_layernorm_32_bit_inputs(method):
    @SETTINGS
    @given(rows_of(27, 20))
    def run(rows):
        x = np.array(rows)
        ones = np.ones(x.shape[1])
        both(ops.layernorm, x, 1e-4, ones, ones / 3, method=method, shift=4)

    run()


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_deployed_layernorm_of_32_bit_inputs(gamma):
    @SETTINGS
    @given(rows_of(32, 12))
    def run(rows):
        x = np.array(rows)
        ones = np.ones(x.shape[1])
        both(ops.layernorm, x, 1e-6, gamma * ones, 3.9 * ones, method="ivit_tvm")

    run()
    x = np.array([[2**31 - 1, -(2**31), -(2**31), 2**31 - 1, 5]])
    both(ops.layernorm, x, 1e-6, np.ones(5), -np.ones(5), method="ivit_tvm")


def test_requantize():
    @SETTINGS
    @given(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
        st.floats(1e-12, 1e6),
        st.floats(1e-6, 1e6),
        st.sampled_from([4, 6, 8, 16, 32]),
        st.booleans(),
        st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    )
    def run(values, in_scale, out_scale, bits, residual, kind):
        x = np.array(values).astype(kind)
        extra = {"residual": x[::-1].copy(), "residual_scale": 0.37} if residual else {}
        fast = ops.requantize(x, in_scale, out_scale, bits, **extra)
        assert np.array_equal(fast, ops.requantize(x, in_scale, out_scale, bits, backend="spec", **extra))

    run()


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("other", [np.int8, np.int16, np.int32, np.int64])
def test_requantize_with_a_residual_of_every_width(kind, other):
    """Ratios at which most results lie inside the range: saturated ones hide everything before them."""
    rng = np.random.default_rng(5)
    for bits in (8, 16, 32):
        for channels, width in ((1, 6), (6, 6), (2, 2), (1, 2)):
            x, r = (
                rng.integers(np.iinfo(k).min // 2, np.iinfo(k).max // 2, (20, width)).astype(k) for k in (kind, other)
            )
            scales = [
                rng.uniform(0.2, 0.9, channels) * rng.choice([-1, 1], channels) * 2.0 ** (bits - 8 * v.itemsize)
                for v in (x, r)
            ]
            extra = {"residual": r, "residual_scale": scales[1]}
            fast = ops.requantize(x, scales[0], 1.0, bits, **extra)
            assert np.array_equal(fast, ops.requantize(x, scales[0], 1.0, bits, backend="spec", **extra))
            assert np.abs(fast).max() > 2 ** (bits - 4)
            alone = ops.requantize(x, scales[0], 1.0, bits)
            assert np.array_equal(alone, ops.requantize(x, scales[0], 1.0, bits, backend="spec"))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint32])
def test_requantize_of_two_channels_and_of_ratios_beyond_the_fast_form(kind):
    top = np.iinfo(kind).max
    x = np.array([[0, 0], [1, 1], [3, top], [top - 1, 2], [np.iinfo(kind).min, 5]], kind)
    for scales in (
        [1.4, 2.0**33],
        [2.0**30, 0.3],
        [2.0**31, 2.0**29],
        [2.0**-40, 2.0**-33],
        [2.0**-62, 0.5],
        [0.9, 0.1],
    ):
        for bits in (8, 32):
            for extra in ({}, {"residual": x[::-1].copy(), "residual_scale": scales[::-1]}):
                if extra and np.dtype(kind).itemsize > 4:
                    continue
                fast = ops.requantize(x, scales, 1.0, bits, **extra)
                assert np.array_equal(fast, ops.requantize(x, scales, 1.0, bits, backend="spec", **extra)), scales
    for shape in ((0, 2), (0,), ()):
        empty = np.full(shape, 3, kind)
        assert ops.requantize(empty, 2.0, 1.0, 8).shape == shape
    assert ops.requantize(kind(3), 2.0, 1.0, 8).tolist() == 6


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_requantize_saturates_at_the_published_widths_and_no_other(bits):
    top = 2 ** (bits - 1) - 1
    for backend in ("kernel", "spec"):
        assert ops.requantize([2**40, -(2**40)], 1.0, 1.0, bits, backend=backend).tolist() == [top, -top - 1]
        for other in (bits - 1, bits + 1):
            assert ops.requantize([2**40], 1.0, 1.0, other, backend=backend).tolist() == [2**40]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("log2_ratio", [-30, -31, -32, -33, -34, -45, -61])
def test_requantize_of_the_largest_int64_inputs(bits, log2_ratio):
    """Around 2**61, where the two-word kernel ends, and at both ends of int64; also one row at a time."""
    edges = [2**61 - 1, 2**61, -(2**61) + 1, -(2**61), 2**62, -(2**62), 2**63 - 1, -(2**63), 2**45 + 1]
    for x in (edges, *([edge] for edge in edges)):
        for factor in (1.0, 0.7, -0.9):
            fast = ops.requantize(x, factor * 2.0**log2_ratio, 1.0, bits)
            assert np.array_equal(fast, ops.requantize(x, factor * 2.0**log2_ratio, 1.0, bits, backend="spec")), (
                x,
                factor,
            )


def test_requantize_every_16_bit_input():
    x = np.arange(-(2**15), 2**15, dtype=np.int32)
    cases = [(ratio, 8) for ratio in (1.0, 0.5, 2.0**-7, 1 / 3, -0.5, 1 - 2.0**-53, 2 - 2.0**-52, 2.0**-20, 2.0**33)]
    for ratio, bits in [*cases, (0.3, 4), (0.3, 6), (0.3, 16), (3e4, 32)]:
        fast = ops.requantize(x, ratio, 1.0, bits)
        assert np.array_equal(fast, ops.requantize(x, ratio, 1.0, bits, backend="spec"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 33, 9), (7, 129, 17)])
def test_matrix_products_on_adversarial_operands(shape):
    from intvit.kernels.matmul import matmul, prepare_linear
    from intvit.spec.matmul import linear
    from intvit.spec.matmul import matmul as spec_matmul

    r, k, c = shape
    signs = np.where(np.arange(r * k).reshape(r, k) % 2, 127, -128)
    for a, b in (
        (np.full((r, k), -128), np.full((k, c), -128)),
        (signs, np.where(np.arange(k * c).reshape(k, c) % 2, -128, 127)),
        (np.full((r, k), 65535), np.full((k, c), -128)),
        (np.full((r, k), 2**31 - 1), np.full((k, c), 2**24)),
    ):
        expected = np.array(spec_matmul(a.tolist(), b.tolist()))
        assert np.array_equal(matmul(a, b), expected)
    bias = np.arange(c) - 2**30
    w = np.full((c, k), -128)
    run = prepare_linear(w, bias, 128)
    assert np.array_equal(run(signs), np.array(linear(signs.tolist(), w.tolist(), bias.tolist())))


@pytest.mark.parametrize(("a_top", "b_top", "depth"), [(2**31, 2**14, 600), (2**31, 2**13, 511), (70000, 128, 90)])
def test_matrix_products_on_wide_random_operands(a_top, b_top, depth):
    """float32, float64 and split float64 carriers, on operands of one sign and of both."""
    from intvit.kernels.matmul import matmul
    from intvit.spec.matmul import matmul as spec_matmul

    rng = np.random.default_rng(7)
    for low, b_low in ((-a_top, -b_top), (-2 * a_top, -b_top), (a_top * 7 // 8, b_top * 7 // 8)):
        a = rng.integers(low, low + a_top // 8, (3, depth))
        b = rng.integers(b_low, b_low + b_top // 8, (depth, 4))
        assert np.array_equal(matmul(a, b), np.array(spec_matmul(a.tolist(), b.tolist())))


@pytest.mark.parametrize("most", [128, 2**31, 2**38, 2**44])
@pytest.mark.parametrize(("q", "v"), [((2, 5, 9), (2, 9, 4)), ((5, 9), (3, 9, 4)), ((3, 1, 5, 9), (2, 9, 4))])
def test_log2_matmul(q, v, most):
    rng = np.random.default_rng(3)
    both(ops.log2_matmul, rng.integers(-1, 16, q), rng.integers(-most, most, v), 0.5)
    assert ops.log2_matmul([[0]], [[1]], 0.5)[1] == 2.0**-16


def test_mean():
    from intvit.kernels.pool import mean
    from intvit.spec.pool import mean as spec_mean

    x = np.random.default_rng(5).integers(-128, 128, (6, 9, 4))
    assert np.array_equal(mean(x, 1), [[spec_mean(col) for col in image.T.tolist()] for image in x])
