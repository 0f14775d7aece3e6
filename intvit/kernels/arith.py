"""The primitives under every kernel: int64 in, int64 out, shifts in 0..62, no float anywhere.

`kernel` compiles with Numba and remembers the function, so that a test can type each one anew and reject any float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from intvit.errors import IntvitError
from intvit.kernels.border import constants as checked
from intvit.kernels.cache import compiled

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

KERNELS: list[Any] = []
"""Every compiled kernel, in order of definition."""


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function of the integer path, remembered in KERNELS."""
    result = compiled(function)
    KERNELS.append(result)
    return result


def inlined(function: Callable[..., Any]) -> Any:
    """As `kernel`, for a function that others call in their inner loops: Numba puts it into them whole.

    A call of its own counts the references of every array that it is handed, also inside named tuples.
    """
    result = compiled(function, inline="always")
    KERNELS.append(result)
    return result


def as_rows(x: np.ndarray) -> np.ndarray:
    """Any shape (..., C) to contiguous int64 (R, C)."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.int64)


def row_runner(check: Callable[[np.ndarray], None], compiled: Any, *constants: Any) -> Callable[..., np.ndarray]:
    """A function of integer rows (R, C): `check` them, then `compiled(rows, *constants, out)`; out (R, C) of `kind`."""
    constants = checked(compiled.__name__, *constants)

    def run(rows: np.ndarray, mask: np.ndarray | None = None, kind: Any = np.int64) -> np.ndarray:
        if mask is not None:
            raise IntvitError(f"{compiled.__module__}: only a softmax has a mask")
        check(rows)
        out = np.empty(rows.shape, kind)
        compiled(rows, *constants, out)
        return out

    return run


@kernel
def saturate(value, bits):
    """Clamp to the signed range of `bits` (1..64; 64 is the identity)."""
    top = INT64_MAX >> (64 - bits)
    return min(max(value, -top - 1), top)


@kernel
def shift_left(value, shift):
    """value * 2**shift, shift >= 0, saturated at s64."""
    if value == 0:
        return value
    if shift > 62 or value > (INT64_MAX >> shift) or value < (INT64_MIN >> shift):
        return INT64_MAX ^ (value >> 63)  # the limit on the side of value
    return value << shift


@kernel
def rhe_shift(value, shift):
    """value / 2**shift rounded half to even; any shift; a negative one multiplies and saturates at s64.

    |value| < 2**62.
    """
    if shift <= 0:
        return shift_left(value, -shift)
    if shift > 62:
        return 0
    floor = value >> shift
    rest = value - (floor << shift)
    half = 1 << (shift - 1)
    if rest > half or (rest == half and (floor & 1) == 1):
        floor += 1
    return floor


@kernel
def rhe_div(numerator, denominator):
    """numerator / denominator (> 0) rounded half to even."""
    floor = numerator // denominator
    rest = numerator - floor * denominator
    other = denominator - rest
    if rest > other or (rest == other and (floor & 1) == 1):
        floor += 1
    return floor


@kernel
def rhe_product(x, m, e):
    """rhe(x * m, 2**e) with the product in two words: any x, |m| <= 2**31, any e; saturated at s64.

    x = xh * 2**32 + xl, so x * m = high * 2**32 + low with 0 <= low < 2**32 and |high| <= 2**62.
    """
    xh, xl = x >> 32, x & 0xFFFFFFFF
    cross = xl * m
    high = xh * m + (cross >> 32)
    low = cross & 0xFFFFFFFF
    if e <= 32:
        # floor = (high << (32 - e)) + (low >> e), or everything shifted left
        if e <= 0:
            if high > 0x7FFFFFFF or high < -0x80000000:
                return INT64_MAX ^ (high >> 63)
            return shift_left((high << 32) + low, -e)
        room = 32 - e
        if high > (INT64_MAX >> room) or high < (INT64_MIN >> room):
            return INT64_MAX ^ (high >> 63)
        floor = (high << room) + (low >> e)
        rest = low & ((1 << e) - 1)
        half = (1 << e) >> 1
        sticky = 0
    else:
        s = e - 32
        if s > 62:
            return 0
        floor = high >> s
        rest = high - (floor << s)
        half = 1 << (s - 1)
        sticky = low
    up = rest > half or (rest == half and (sticky != 0 or (floor & 1) == 1))
    return floor + 1 if up and floor < INT64_MAX else floor


@kernel
def doubled_high(x, m):
    """2 * floor(x * m / 2**32), plus 1 if anything was cut off: it rounds as the product does, 33 bits and more down.

    |x| < 2**61, |m| < 2**31.
    """
    low = (x & 0xFFFFFFFF) * m
    high = (x >> 32) * m + (low >> 32)
    return (high << 1) | np.int64((low & 0xFFFFFFFF) != 0)


@intrinsic
def leading_zeros(typingctx, value):
    """Zero bits above the highest one of an int64; 64 for 0."""

    def codegen(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), False))

    return types.int64(types.int64), codegen


@kernel
def bit_length(value):
    """Bits of value >= 0."""
    return 64 - leading_zeros(value)


@kernel
def isqrt(value):
    """The largest k with k*k <= value, 0 <= value < 2**62.

    Newton on value * 4**k in 2**60..2**62, from a line within 1/32 of its root. A step ends at the root's floor or
    above; three leave 2**-11, 2**-23 and 2**-47 of it, so that the last is the floor or one more.
    """
    if value == 0:
        return value
    half = (62 - bit_length(value)) >> 1
    scaled = value << (2 * half)
    root = 11 * ((scaled >> 35) + 67108864)
    for _ in range(3):
        root = (root + scaled // root) >> 1
    root -= np.int64(root * root > scaled)
    return root >> half


@kernel
def truncated_div(numerator, denominator):
    """Quotient toward zero, as C divides."""
    floor = numerator // denominator
    return floor + 1 if floor < 0 and floor * denominator != numerator else floor


@kernel
def wrap32(value):
    """Two's complement: the low 32 bits as a signed word."""
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000
