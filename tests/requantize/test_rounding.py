"""One formula rounds: every mode against exact fractions, as the kernels have it and in every loop that uses it."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intvit.kernels import gemm
from intvit.kernels.requantize import Requantize, Term
from intvit.kernels.rounding import ADD, AT, HALF_EVEN, ROUNDINGS, E, regular, round_shift
from intvit.spec.numerics import Numerics

HALF = Fraction(1, 2)
WANTED = {
    "half_even": round,
    "half_up": lambda value: floor(value + HALF),
    "half_away": lambda value: floor(abs(value) + HALF) * (1 if value >= 0 else -1),
    "floor": floor,
}
MULTIPLIERS = (2**30, 2**31, -(2**31), 2**31 - 1, -(2**30) - 7, 3 * 2**29, 1, -1, 0)


def test_every_mode_has_its_definition_and_half_to_even_is_the_published_one():
    assert set(WANTED) == set(ROUNDINGS)
    assert HALF_EVEN is ROUNDINGS["half_even"]
    assert [[WANTED[name](Fraction(n, 2)) for n in (-3, -1, 1, 3)] for name in ROUNDINGS] == [
        [-2, 0, 0, 2], [-1, 0, 1, 2], [-2, -1, 1, 2], [-2, -1, 0, 1],
    ]  # fmt: skip


def shifted(mode, p, e):
    """p / 2**e by the kernel's formula."""
    constants = regular(np.array([1]), np.array([e]), ROUNDINGS[mode])
    return round_shift(p, *(int(constants[row, 0]) for row in (E, ADD, AT)), ROUNDINGS[mode].mask)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_the_formula_at_ties_and_ends(mode):
    for e in range(1, 63):
        ties = [(2 * k + 1) << (e - 1) for k in (*range(-5, 5), 2 ** (62 - e) - 1, -(2 ** (62 - e)))]
        for p in {min(max(v + d, -(2**62)), 2**62) for v in (0, *ties, 2**62, -(2**62)) for d in (-1, 0, 1)}:
            assert shifted(mode, p, e) == WANTED[mode](Fraction(p, 2**e)), (p, e)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_the_formula_everywhere(mode):
    @settings(max_examples=2000)
    @given(st.integers(-(2**62), 2**62), st.integers(1, 62))
    def run(p, e):
        assert shifted(mode, p, e) == WANTED[mode](Fraction(p, 2**e))

    run()


def wanted(mode, x, m, e, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [[min(max(WANTED[mode](Fraction(v * a, 2**b)), low), high) for v, a, b in zip(row, m, e, strict=True)]
            for row in x]  # fmt: skip


def values(kind, e):
    """Numbers that a multiplier of 2**30 or 2**31 makes a tie, beside them, and at random."""
    rng, top = np.random.default_rng(e), min(np.iinfo(kind).max, 2**60)
    ties = [(2 * k + 1) << max(e - 31, 0) for k in range(-6, 6)]
    found = [v + d for v in (0, *ties, top, -top) for d in (-1, 0, 1)] + rng.integers(-top, top, 40).tolist()
    return np.clip(np.array(found), -top, top).astype(kind)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_requantization_in_every_mode(mode, kind):
    """One constant and one per channel; of int64 also the products in two words, beyond e = 33."""
    rounding = ROUNDINGS[mode]
    for e in (31, 32, 33, 34, 40, 46, 54, 55, 61):
        column = values(kind, e)[:, None]
        for m in (*([v] for v in MULTIPLIERS[:3]), MULTIPLIERS):
            x = np.repeat(column, len(m), axis=1)
            term = Term(np.array(m), np.full(len(m), e), rounding)
            for bits in (8, 32) if kind is np.int64 and e > 33 else (8,):
                got = Requantize(term, None, bits, np.int64, numerics=Numerics(rounding=mode)).run(x)
                assert got.tolist() == wanted(mode, x.tolist(), m, [e] * len(m), bits), (e, m, bits)


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_two_terms_in_every_mode(mode):
    rounding, x = ROUNDINGS[mode], np.arange(-40, 40, dtype=np.int16).reshape(2, 5, 8)
    first, second = (Term(np.array([m]), np.array([e]), rounding) for m, e in ((2**30, 32), (-(2**31), 34)))
    got = Requantize(first, second, 4, np.int8, numerics=Numerics(rounding=mode)).run(x, x[0])
    quarters, eighths = ([WANTED[mode](Fraction(s * v, d)) for v in np.ravel(y).tolist()] for y, s, d in
                         ((x, 1, 4), (np.tile(x[0], (2, 1, 1)), -1, 8)))  # fmt: skip
    sums = [min(max(a + b, -8), 7) for a, b in zip(quarters, eighths, strict=True)]
    assert got.ravel().tolist() == sums


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_a_term_plus_what_needs_no_rounding(mode, kind):
    rounding, x = ROUNDINGS[mode], np.arange(-60, 60, dtype=np.int8).reshape(3, 5, 8)
    term, one = (Term(np.array([2**30]), np.array([e]), rounding) for e in (32, 30))
    addend = np.arange(-20, 20).astype(kind).reshape(5, 8)
    got = Requantize(term, one, 5, np.int8, numerics=Numerics(rounding=mode)).run(x, addend)
    addends = np.tile(addend, (3, 1, 1)).ravel().tolist()
    sums = [WANTED[mode](Fraction(v, 4)) + a for v, a in zip(x.ravel().tolist(), addends, strict=True)]
    assert got.ravel().tolist() == [min(max(v, -16), 15) for v in sums]


@pytest.mark.parametrize("path", [path for path in gemm.available_paths() if path != "blas"])
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_matrix_products_in_every_mode(mode, path):
    """Sums -128 .. 127 times every multiplier, in a whole panel and at an edge."""
    x = np.arange(-128, 128).reshape(-1, 1)
    for e in (31, 32, 34, 36, 38):
        m = np.resize(MULTIPLIERS, 37)
        epilogue = gemm.Epilogue.dyadic(m, np.full(37, e), 8, 37, ROUNDINGS[mode])
        linear = gemm.prepare_linear(np.ones((37, 1), int), None, 128, np.int8, epilogue, path)
        want = wanted(mode, np.repeat(x, 37, axis=1).tolist(), m.tolist(), [e] * 37, 8)
        assert linear.run(x.astype(np.int8), np.int8).tolist() == want
        for zero_point in (-128, -3, 1, 127):
            shifted = gemm.Epilogue.dyadic(m, np.full(37, e), 8, 37, ROUNDINGS[mode], plus=zero_point)
            linear = gemm.prepare_linear(np.ones((37, 1), int), None, 128, np.int8, shifted, path)
            full = wanted(mode, np.repeat(x, 37, axis=1).tolist(), m.tolist(), [e] * 37, 32)
            want = [[min(max(v + zero_point, -128), 127) for v in row] for row in full]
            assert linear.run(x.astype(np.int8), np.int8).tolist() == want
