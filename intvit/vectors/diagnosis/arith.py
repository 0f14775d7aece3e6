"""Integer arithmetic on arrays, each step with the alternatives that hardware takes for it.

An array is int64 where 64 bits hold whatever is made of it, else an array of Python integers (`roomy`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from intvit.graph.ir import Array

ROUNDINGS = ("half_even", "half_up", "half_away", "floor", "toward_zero", "half_down", "ceiling")
ROOM = 62
"""Bits of |v| that leave int64 room for a sign and for half of the last place."""
MOST_SHIFT = 256
"""To the left, of what a hypothesis may ask for; eight times as far to the right."""

_bit_length = np.frompyfunc(lambda v: int(v).bit_length(), 1, 1)
_isqrt = np.frompyfunc(lambda v: math.isqrt(max(int(v), 0)), 1, 1)


def magnitude(v: Array) -> int:
    """Bits of the largest |v|."""
    return max(int(v.max()).bit_length(), int(v.min()).bit_length()) if v.size else 0


def objects(v: Any) -> Array:
    """As Python integers, which have no width."""
    return np.asarray(v).astype(object)


def roomy(bits: int, *arrays: Array) -> tuple[Array, ...]:
    """The arrays as they are, or of Python integers if results of `bits` bits are to come."""
    if bits <= ROOM and all(a.dtype != object for a in arrays):
        return arrays
    return tuple(objects(a) for a in arrays)


def compact(v: Array) -> Array:
    """int64 where the values fit it."""
    return v.astype(np.int64) if v.dtype == object and magnitude(v) <= ROOM else v


def wrapped(v: Array, bits: int, signed: bool = True) -> Array:
    """Two's complement words of `bits` bits, or unsigned ones."""
    if bits > ROOM:
        v = objects(v)
    half = 1 << (bits - 1) if signed else 0
    return compact(((v + half) & ((1 << bits) - 1)) - half)


def saturated(v: Array, bits: int, signed: bool = True) -> Array:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if bits > ROOM:
        v = objects(v)
    return compact(np.minimum(np.maximum(v, low), high))


def narrowed(v: Array, bits: int, overflow: str, signed: bool = True) -> Array:
    if v.dtype != object and bits > 63:
        return v
    return wrapped(v, bits, signed) if overflow == "wrap" else saturated(v, bits, signed)


def _adds(mode: str, v: Array, floor: Array, rest: Array, other: Array) -> Array:
    """Whether one is added to the floor: `rest` is what it leaves, `other` what it lacks to the next integer."""
    match mode:
        case "half_even":
            return (rest > other) | ((rest == other) & ((floor & 1) == 1))
        case "half_up":
            return rest >= other
        case "half_away":
            return (rest > other) | ((rest == other) & (v >= 0))
        case "half_down":
            return rest > other
        case "toward_zero":
            return (v < 0) & (rest != 0)
        case "ceiling":
            return rest != 0
    return np.zeros(np.shape(rest), bool)


def shifted(v: Array, e: Array | int, mode: str) -> Array:
    """`v / 2**e` to an integer; a negative e multiplies. v and e broadcast. OverflowError where e is absurd."""
    e = np.asarray(e)
    low, high = int(e.min()), int(e.max())
    if low < -MOST_SHIFT or high > 8 * MOST_SHIFT:
        raise OverflowError(f"shift by {low}..{high}")
    bits = max(magnitude(v) - min(low, 0), high + 1)
    v, e = roomy(bits, v, e.astype(np.int64))
    if high <= 0:
        return v << -e
    up = np.maximum(e, 1)
    floor = v >> up
    rest = v - (floor << up)
    if mode != "floor":
        one = 1 if v.dtype == object else np.int64(1)
        floor = floor + _adds(mode, v, floor, rest, (one << up) - rest)
    return floor if low > 0 else np.where(e > 0, floor, v << np.maximum(-e, 0))


def divided(a: Array, b: Array | int, mode: str) -> Array:
    """`a / b` to an integer, b not 0; ZeroDivisionError from Python integers, nonsense from int64, where b is 0."""
    b = np.asarray(b)
    sign = np.where(b < 0, -1, 1)
    if b.dtype == object or a.dtype == object:
        a, b, sign = objects(a), objects(b), objects(sign)
    a, b = a * sign, b * sign
    floor = a // b
    if mode == "floor":
        return floor
    rest = a - floor * b
    return floor + _adds(mode, a, floor, rest, b - rest)


POWERS = 1 << np.arange(63, dtype=np.int64)


def bit_length(v: Array) -> Array:
    """Of v >= 0."""
    if v.dtype == object:
        return np.asarray(_bit_length(v)).astype(np.int64)
    return np.searchsorted(POWERS, v, side="right")


def isqrt(v: Array) -> Array:
    """The largest k with k*k <= v, for v >= 0; of Python integers."""
    return compact(np.asarray(_isqrt(v)).astype(object))


def product(a: Array, b: Array) -> Array:
    """Matrix product (..., R, K) x (..., K, C), exact: in doubles where they hold every sum."""
    bits = magnitude(a) + magnitude(b) + a.shape[-1].bit_length()
    if bits <= 53:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    if bits <= ROOM:
        return a.astype(np.int64) @ b.astype(np.int64)
    return objects(a) @ objects(b)


def accumulated(a: Array, b: Array, bias: Array | int, bits: int) -> Array:
    """As `product` plus `bias`, the word saturating after every addition, in the order of K, the bias last."""
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.int64)
    for k in range(a.shape[-1]):
        total = saturated(total + a[..., k : k + 1].astype(np.int64) * b[..., k : k + 1, :].astype(np.int64), bits)
    return saturated(total + bias, bits)
