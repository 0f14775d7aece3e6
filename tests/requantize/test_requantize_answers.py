"""Requantization: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

from fractions import Fraction

import numpy as np
import pytest

from intvit import ops
from intvit.kernels.requantize import dyadic

# HAWQ-V3 dyadic numbers (arXiv 2011.10680, section 3.2): m / 2**e with m of 31 bits
DYADIC = [(0.5, 2**30, 31), (1.0, 2**30, 30), (1.5, 3 * 2**29, 30), (3.0, 3 * 2**29, 29), (0.375, 3 * 2**29, 32)]
# rhe(x * in / out), saturated
REQUANTIZE = [
    ([1, 2, 3, 5, 6, 7, -1, -2, -3], 0.5, 1.0, 8, [0, 1, 2, 2, 3, 4, 0, -1, -2]),
    ([254, 255, 256, -255, -256, -257], 0.5, 1.0, 8, [127, 127, 127, -128, -128, -128]),
    ([10, 30, 50], 0.25, 1.0, 4, [2, 7, 7]),
    ([3, 5, -7], 3.0, 1.0, 16, [9, 15, -21]),
    ([3, 5, -7, 100], 1.5, 1.0, 8, [4, 8, -10, 127]),
    ([3, 200, -200], 1.0, 1.0, 8, [3, 127, -128]),
]


@pytest.mark.parametrize(("ratio", "m", "e"), DYADIC)
def test_dyadic(ratio, m, e):
    got_m, got_e = dyadic(ratio, 1.0)
    assert (got_m.tolist(), got_e.tolist()) == ([m], [e])


@pytest.mark.parametrize(("x", "in_scale", "out_scale", "bits", "expected"), REQUANTIZE)
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_requantize(x, in_scale, out_scale, bits, expected, backend):
    assert ops.requantize(np.array(x), in_scale, out_scale, bits, backend=backend).tolist() == expected


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


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_requantize_to_a_scale_per_channel(backend):
    x, scales = np.random.default_rng(2).integers(-9000, 9000, (4, 3)), [0.5, 0.07, 2.0]
    found = ops.requantize(x, 0.01, scales, 8, residual=x // 50, residual_scale=0.3, backend=backend)
    for column, scale in enumerate(scales):
        alone = x[:, column : column + 1]
        want = ops.requantize(alone, 0.01, scale, 8, residual=alone // 50, residual_scale=0.3, backend=backend)
        assert np.array_equal(found[:, column : column + 1], want)


@pytest.mark.parametrize("zero_point", [-128, -7, 1, 127])
@pytest.mark.parametrize(
    ("kind", "m", "e"),
    [
        (np.int32, [2**30], [30]),  # a ratio of 1: saturation alone
        (np.int32, [3 * 2**29], [33]),
        (np.int32, [3 * 2**29, 2**30 + 1, -(2**30)], [33, 35, 40]),
        (np.int64, [3 * 2**29], [50]),
        (np.int64, [3 * 2**29, 2**30 + 1, 2**31], [60, 70, 80]),  # in two words
        (np.int64, [3 * 2**29, 2**30 + 1, 2**31], [0, 99, 30]),  # no fast form
        (np.int8, [3 * 2**29], [-1]),
    ],
)
def test_requantize_to_a_zero_point(zero_point, kind, m, e):
    """`saturate(round(x*m / 2**e) + z)`: every fast form against the specification."""
    from intvit.kernels.requantize import prepare_requantize
    from intvit.spec.requantize import requantize as spec

    rng, info = np.random.default_rng(5), np.iinfo(kind)
    x = np.concatenate(
        [rng.integers(info.min // 4, info.max // 4, 30), rng.integers(-120, 120, 30), np.arange(-30, 30) * 4]
    ).astype(kind)
    x = x.reshape(-1, 3)
    m, e, one = np.array(m), np.array(e), (np.array([2**30]), np.array([30]))
    constant = np.array([zero_point])
    run = prepare_requantize(m, e, 8, constant=constant, residual_m=one[0], residual_e=one[1], out_dtype=np.int8).run
    for row, found in zip(x.tolist(), run(x).tolist(), strict=True):
        columns = [np.resize(values, 3).tolist() for values in (m, e, constant, *one)]
        assert found == spec(row, *columns[:2], 8, residual=columns[2], residual_m=columns[3], residual_e=columns[4])
