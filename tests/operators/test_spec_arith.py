"""Primitives: spec against fractions, kernels against spec, at and beyond the borders of their words."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intvit.kernels import arith as fast
from intvit.kernels import layernorm as fast_norm
from intvit.kernels.requantize import add_saturating
from intvit.spec import arith as spec

S64 = st.integers(-(2**63), 2**63 - 1)
S62 = st.integers(-(2**62) + 1, 2**62 - 1)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (1, 2, 0),
        (3, 2, 2),
        (5, 2, 2),
        (-1, 2, 0),
        (-3, 2, -2),
        (-5, 2, -2),
        (7, 3, 2),
        (8, 3, 3),
        (-7, 3, -2),
        (0, 5, 0),
    ],
)
def test_rhe_known(numerator, denominator, expected):
    assert spec.rhe(numerator, denominator) == expected
    assert fast.rhe_div(numerator, denominator) == expected


@given(st.integers(-(2**80), 2**80), st.integers(1, 2**70))
def test_rhe_is_python_rounding(numerator, denominator):
    assert spec.rhe(numerator, denominator) == round(Fraction(numerator, denominator))


@given(S62, st.integers(1, 2**61))
def test_rhe_div(numerator, denominator):
    assert fast.rhe_div(numerator, denominator) == spec.rhe(numerator, denominator)


@given(S62, st.integers(-70, 70))
def test_rhe_shift(value, shift):
    assert fast.rhe_shift(value, shift) == spec.saturate(spec.rhe_shift(value, shift), 64)


@given(st.integers(-(2**61), 2**61), st.integers(0, 62))
def test_rounded_of_layernorm(value, shift):
    assert fast_norm.rounded(value, shift) == spec.rhe_shift(value, shift)


@pytest.mark.parametrize("shift", [0, 1, 2, 30, 60, 61, 62])
def test_rounded_of_layernorm_at_ties(shift):
    for value in [s * (2**k + d) for k in (0, 1, 29, 59, 60, 61) for d in (-1, 0) for s in (1, -1)]:
        assert fast_norm.rounded(value, shift) == spec.rhe_shift(value, shift)


@pytest.mark.parametrize("shift", range(1, 62))
def test_rhe_shift_at_ties(shift):
    for k in (-3, -2, -1, 0, 1, 2, 3):
        for offset in (-1, 0, 1):
            value = (2 * k + 1) * 2 ** (shift - 1) + offset
            if abs(value) < 2**62:
                assert fast.rhe_shift(value, shift) == spec.rhe_shift(value, shift)


@given(S64, st.integers(-(2**31), 2**31), st.integers(-70, 200))
def test_two_word_product(x, m, e):
    assert fast.rhe_product(x, m, e) == spec.saturate(spec.rhe_shift(x * m, e), 64)


@pytest.mark.parametrize("e", range(-3, 100))
@pytest.mark.parametrize("m", [2**31, -(2**31), 2**30, -(2**30), 2**31 - 1, 1, -1, 3 * 2**29, 0])
def test_two_word_product_at_ties_and_borders(m, e):
    xs = [s * (2**k + d) for k in (0, 1, 29, 30, 31, 32, 33, 40, 61, 62) for d in (-1, 0, 1) for s in (1, -1)]
    for x in [*xs, 2**63 - 1, -(2**63), 0]:
        assert fast.rhe_product(x, m, e) == spec.saturate(spec.rhe_shift(x * m, e), 64), (x, m, e)


@given(S64, S64)
def test_add_saturating(a, b):
    assert add_saturating(a, b) == spec.saturate(a + b, 64)


@pytest.mark.parametrize(("a", "b"), [(2**63 - 1, 1), (-(2**63), -1), (2**63 - 1, 0), (-(2**63), 0), (-5, 5)])
def test_add_saturating_at_borders(a, b):
    assert add_saturating(a, b) == spec.saturate(a + b, 64)


@given(S64, st.integers(2, 64))
def test_saturate(value, bits):
    assert fast.saturate(value, bits) == spec.saturate(value, bits)


@given(st.integers(0, 2**62 - 1))
def test_isqrt(value):
    root = fast.isqrt(value)
    assert root * root <= value < (root + 1) ** 2
    assert spec.isqrt(value) == root


@pytest.mark.parametrize("k", [0, 1, 2, 3, 2**16, 2**24 + 1, 2**30, 2**31 - 1])
def test_isqrt_around_squares(k):
    for value in {max(k * k - 1, 0), k * k, k * k + 1}:
        if value < 2**62:
            assert fast.isqrt(value) == spec.isqrt(value)


@given(S62, S62.filter(lambda v: v != 0))
def test_truncated_div(a, b):
    expected = int(Fraction(a, b))
    assert spec.truncated_div(a, b) == expected
    assert fast.truncated_div(a, b) == expected


@given(S62)
def test_wrap(value):
    assert spec.wrap(value, 32) == int(np.array(value).astype(np.int32))
    assert fast.wrap32(value) == spec.wrap(value, 32)


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1))
def test_product_high(a, b):
    assert fast_norm.product_high(a, b) == a * b >> 62


def test_product_high_at_borders():
    for a in (0, 1, 2**31 - 1, 2**31, 2**61, 2**62 - 1):
        for b in (0, 1, 2**31 - 1, 2**31, 2**61, 2**62 - 1):
            assert fast_norm.product_high(a, b) == a * b >> 62


@given(st.integers(1, 2**62 - 1))
def test_inverse_sqrt(value):
    from intvit.spec.layernorm import inverse_sqrt

    j, k = inverse_sqrt(value)
    assert fast_norm.inverse_sqrt(value) == (j, k)
    # (J / 2**k)**2 * value = 1 to 2**-57
    assert abs(Fraction(j * j * value, 4**k) - 1) < Fraction(1, 2**57)


@given(st.integers(0, 2**62 - 1))
def test_bit_length(value):
    assert fast.bit_length(value) == value.bit_length()


@pytest.mark.parametrize("shift", range(64))
def test_shift_left_at_the_border_of_saturation(shift):
    top, bottom = (2**63 - 1) >> shift, -(2**63) >> shift
    for value in {top, min(top + 1, 2**63 - 1), top - 1, bottom, max(bottom - 1, -(2**63)), bottom + 1, 1, -1, 0}:
        assert fast.shift_left(value, shift) == spec.saturate(value * 2**shift, 64), value


@given(S64, st.integers(0, 80))
def test_shift_left(value, shift):
    assert fast.shift_left(value, shift) == spec.saturate(value * 2**shift, 64)


def test_two_word_product_that_rounds_up_to_two_to_the_63():
    x, m = (2**64 - 1) // 327685, 327685
    assert x * m == 2**64 - 1
    assert fast.rhe_product(x, m, 1) == spec.saturate(spec.rhe_shift(x * m, 1), 64) == 2**63 - 1


@pytest.mark.parametrize(("value", "shift"), [(-1, 5), (1, 5), (0, 70), (-3, 61), (-1, 63), (1, 62), (1, 63), (-2, 62)])
def test_shift_left_at_its_edges(value, shift):
    assert fast.shift_left(value, shift) == max(min(value * 2**shift, 2**63 - 1), -(2**63))


@pytest.mark.parametrize("shift", [1, 3, 31, 62])
def test_shift_left_to_the_last_value_that_fits(shift):
    for value in ((2**63 - 1) >> shift, -(2**63) >> shift, ((2**63 - 1) >> shift) + 1, (-(2**63) >> shift) - 1):
        assert fast.shift_left(value, shift) == max(min(value * 2**shift, 2**63 - 1), -(2**63))


@pytest.mark.parametrize("m", [2**31, 2**31 - 1, 2**30, -(2**31), 3])
@pytest.mark.parametrize("e", [-3, -1, 0, 1, 2, 5, 30, 31, 32, 33])
def test_rhe_product_around_64_bits(m, e):
    """Products beside 2**63 * 2**e, where the result begins to saturate, on both sides."""
    for edge in (2**63, 2**63 - 1, -(2**63), 2**63 - 2**32):
        for step in range(-3, 4):
            x = edge * 2 ** max(e, 0) // (m * 2 ** max(-e, 0)) + step
            if -(2**63) <= x < 2**63:
                assert fast.rhe_product(x, m, e) == spec.saturate(spec.rhe_shift(x * m, e), 64)


def test_truncated_div_of_small_integers():
    for a in range(-7, 8):
        for b in (-3, -2, -1, 1, 2, 3):
            assert fast.truncated_div(a, b) == spec.truncated_div(a, b) == int(a / b)


@pytest.mark.parametrize("shift", [1, 2, 31, 61, 62, 63, 64])
def test_rhe_shift_at_its_largest_shifts(shift):
    half = 2 ** (shift - 1)
    for value in (half - 1, half, half + 1, 3 * half - 1, 3 * half, 3 * half + 1, 2**62 - 1):
        for v in (value, -value):
            if abs(v) < 2**62:
                assert fast.rhe_shift(v, shift) == spec.rhe_shift(v, shift)


@pytest.mark.parametrize("e", [*range(-40, 100)])
def test_rhe_product_of_the_largest_factors(e):
    """-2**63 times -2**31 is the only product of 94 bits."""
    for x in (-(2**63), -(2**63) + 1, 2**63 - 1, 2**62, -(2**62)):
        for m in (-(2**31), 2**31, -(2**31) + 1, 2**31 - 1):
            assert fast.rhe_product(x, m, e) == spec.saturate(spec.rhe_shift(x * m, e), 64)


def test_saturate_to_every_width():
    for bits in range(1, 65):
        for value in (0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 2**63 - 1, -(2**63)):
            for v in (value, value - 1, value + 1):
                if -(2**63) <= v < 2**63:
                    assert fast.saturate(v, bits) == spec.saturate(v, bits)
