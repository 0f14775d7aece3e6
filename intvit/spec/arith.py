"""Rounding, saturation, square root: each written from its definition, on unbounded integers."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt as _isqrt


def round_half_even(value: Fraction) -> int:
    """The nearest integer; of two equally near ones the even one.

    >>> [round_half_even(Fraction(n, 2)) for n in (-3, -1, 1, 3, 5)]
    [-2, 0, 0, 2, 2]
    """
    below = value.numerator // value.denominator
    rest = value - below
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1):
        return below + 1
    return below


def rhe(numerator: int, denominator: int) -> int:
    """`numerator / denominator` to the nearest integer, ties to even; ZeroDivisionError if the denominator is 0."""
    return round_half_even(Fraction(numerator, denominator))


def rhe_shift(value: int, shift: int) -> int:
    """`value / 2**shift` to the nearest integer, ties to even; a negative shift multiplies."""
    return value * 2**-shift if shift < 0 else rhe(value, 2**shift)


def floor_shift(value: int, shift: int) -> int:
    """`floor(value / 2**shift)`; a negative shift multiplies."""
    return value * 2**-shift if shift < 0 else value // 2**shift


def saturate(value: int, bits: int) -> int:
    """Clamp to the signed range of `bits`.

    >>> saturate(40, 6), saturate(-40, 6)
    (31, -32)
    """
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, value))


def clamp(value: int, low: int, high: int) -> int:
    """The nearest integer in low..high."""
    return max(low, min(high, value))


def isqrt(value: int) -> int:
    """The largest k with k*k <= value; ValueError for a negative one."""
    return _isqrt(value)


def truncated_div(numerator: int, denominator: int) -> int:
    """Quotient toward zero, as C divides; ZeroDivisionError if the denominator is 0."""
    return int(Fraction(numerator, denominator))


def wrap(value: int, bits: int) -> int:
    """Two's complement: the value modulo 2**bits in the signed range."""
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
