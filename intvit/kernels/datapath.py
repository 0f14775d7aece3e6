"""Requantization as `Numerics` say it: one loop for every datapath, in words as wide as they can get.

A product of a 64-bit word and a 32-bit multiplier is a pair, high * 2**32 + low with 0 <= low < 2**32; rounding looks
at the bits that it cuts off. What the fast loops of `kernels/requantize.py` can do is theirs; this one is for the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intvit.kernels.arith import INT64_MAX, INT64_MIN, kernel
from intvit.kernels.border import SIGNED, border
from intvit.spec.numerics import Numerics

Array = np.ndarray[Any, Any]
HALF_EVEN, HALF_UP, HALF_AWAY, FLOOR, TOWARD_ZERO = MODES = range(5)
NAMES = ("half_even", "half_up", "half_away", "floor", "toward_zero")
N_WORDS = 10
MODE, FIRST, TOGETHER, PRODUCT, PRODUCT_WRAPS, ROUNDED, ROUNDED_WRAPS, OUTPUT, OUTPUT_WRAPS, UNSIGNED = range(N_WORDS)
LOW = 0xFFFFFFFF


def words(numerics: Numerics, bits: int, *, signed: bool = True) -> Array:
    """(10,) int64: what the loop reads of a datapath, for outputs of `bits` bits."""
    found = np.zeros(N_WORDS, np.int64)
    found[MODE] = NAMES.index(numerics.rounding)
    found[FIRST] = numerics.multiplier_bits - 1 if numerics.double_rounding else 0
    found[TOGETHER] = numerics.residual == "together"
    found[PRODUCT], found[PRODUCT_WRAPS] = numerics.product_bits, numerics.product_overflow == "wrap"
    found[ROUNDED], found[ROUNDED_WRAPS] = numerics.rounded_bits, numerics.rounded_overflow == "wrap"
    found[OUTPUT], found[OUTPUT_WRAPS], found[UNSIGNED] = bits, numerics.output_overflow == "wrap", not signed
    return found


@kernel
def word(value, over, bits, wraps):
    """A word of `bits` bits (1..64) of a value whose low 64 bits are `value`; over: -1 or 1 if it is beyond s64."""
    if wraps:
        return (value << (64 - bits)) >> (64 - bits)
    top = INT64_MAX >> (64 - bits)
    if over > 0:
        return top
    if over < 0:
        return -top - 1
    return min(max(value, -top - 1), top)


@kernel
def added(a, b, bits, wraps):
    """A word of `bits` bits of a + b."""
    over = 0
    if b > 0 and a > INT64_MAX - b:
        over = 1
    elif b < 0 and a < INT64_MIN - b:
        over = -1
    return word(a + b, over, bits, wraps)


@kernel
def multiplied(x, m):
    """The pair of x * m: any x, |m| <= 2**31; |high| <= 2**62."""
    cross = (x & LOW) * m
    return (x >> 32) * m + (cross >> 32), cross & LOW


@kernel
def narrowed_pair(high, low, bits, wraps):
    """A pair cut to a word of `bits` bits, 96 at most."""
    if bits > 64:
        rest = bits - 32  # of high
        if wraps:
            return (high << (64 - rest)) >> (64 - rest), low
        top = INT64_MAX >> (64 - rest)
        if high > top:
            return top, np.int64(LOW)
        if high < -top - 1:
            return -top - 1, np.int64(0)
        return high, low
    over = 0
    if high > 0x7FFFFFFF:
        over = 1
    elif high < -0x80000000:
        over = -1
    value = word((high << 32) | low, over, bits, wraps)
    return value >> 32, value & LOW


@kernel
def shifted_pair(high, low, e, mode):
    """(low 64 bits of the pair / 2**e rounded, whether it is beyond s64: -1, 0 or 1)."""
    over = 0
    if e <= 32:
        room = 32 - e  # bits that go up from the word high
        top = INT64_MAX >> min(room, 62)
        if high not in (0, -1) and (room > 62 or high > top or high < -top - 1):
            over = 1 if high > 0 else -1
        if e <= 0:
            whole = (high << 32) | low
            up = -e
            top = 0 if up > 62 else INT64_MAX >> up
            if over == 0 and whole != 0 and (high != (whole >> 32) or whole > top or whole < -top - (up <= 62)):
                over = 1 if high >= 0 else -1
            return np.int64(0) if up > 63 else whole << up, over
        floor = (high << room) + (low >> e)
        rest = low & ((np.int64(1) << e) - 1)
        half = np.int64(1) << (e - 1)
        sticky = np.int64(0)
    else:
        s, sticky = e - 32, low
        if s > 62:
            cut = min(s - 62, 62)
            sticky |= high & ((np.int64(1) << cut) - 1)
            high >>= cut
            s = 62
        floor = high >> s
        rest = high - (floor << s)
        half = np.int64(1) << (s - 1)
    up = False
    if mode == TOWARD_ZERO:
        up = high < 0 and (rest != 0 or sticky != 0)
    elif mode != FLOOR:
        if rest > half or (rest == half and sticky != 0):
            up = True
        elif rest == half:
            up = mode == HALF_UP or (mode == HALF_AWAY and high >= 0) or (mode == HALF_EVEN and (floor & 1) == 1)
    if up:
        if floor == INT64_MAX:
            over = 1
        floor += 1
    return floor, over


@kernel
def through(high, low, e, how):
    """A product through the shift, as a word of ROUNDED bits."""
    first = how[FIRST]
    mode = how[MODE]
    if first > 0:
        if e <= first:
            mode = np.int64(HALF_UP)
        else:
            value, over = shifted_pair(high, low, first, HALF_UP)
            value = word(value, over, 64, 0)
            high, low, e = value >> 32, value & LOW, e - first
    value, over = shifted_pair(high, low, e, mode)
    return word(value, over, how[ROUNDED], how[ROUNDED_WRAPS])


@border(
    x=f"{SIGNED} R C", m="int64 M=C|1", e="int64 M", residual=f"{SIGNED} A C", residual_m="int64 N=C|1",
    residual_e="int64 N", addend="int64 B C", how="int64 10", out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def by_numerics(x, m, e, residual, residual_m, residual_e, addend, how, two, out):
    """`spec.requantize` of rows; those of the residual and of the addend repeat. `two`: there is a residual.

    Products that are added together leave a bit of room: |x|, |residual| < 2**62, or m of less than 32 bits.
    """
    step, other_step = np.int64(m.shape[0] > 1), np.int64(residual_m.shape[0] > 1)
    bits, wraps, cut, cut_wraps = how[PRODUCT], how[PRODUCT_WRAPS], how[ROUNDED], how[ROUNDED_WRAPS]
    for i in range(x.shape[0]):
        k, b = i % residual.shape[0], i % addend.shape[0]
        for j in range(x.shape[1]):
            high, low = multiplied(np.int64(x[i, j]), m[j * step])
            high, low = narrowed_pair(high, low, bits, wraps)
            if two:
                n = j * other_step
                other_high, other_low = multiplied(np.int64(residual[k, j]), residual_m[n])
                other_high, other_low = narrowed_pair(other_high, other_low, bits, wraps)
                if how[TOGETHER] != 0:
                    low += other_low
                    high, low = narrowed_pair(high + other_high + (low >> 32), low & LOW, bits, wraps)
                    y = through(high, low, e[j * step], how)
                else:
                    y = through(high, low, e[j * step], how)
                    y = added(y, through(other_high, other_low, residual_e[n], how), cut, cut_wraps)
            else:
                y = through(high, low, e[j * step], how)
            y = added(y, addend[b, j], cut, cut_wraps)
            if how[UNSIGNED] != 0:
                if how[OUTPUT_WRAPS] != 0:
                    y &= (np.int64(1) << how[OUTPUT]) - 1
                else:
                    y = min(max(y, 0), (np.int64(1) << how[OUTPUT]) - 1)
            else:
                y = word(y, 0, how[OUTPUT], how[OUTPUT_WRAPS])
            out[i, j] = y


# ------------------------------------------------------------------------------------------ narrow products

E1, ADD1, AT1, MASK1, E2, ADD2, AT2, MASK2 = STAGES = range(8)
"""Rows of `stages`: the constants of one rounded shift, and of a second one, which is none where E2 is 0."""


def stages(e: Array, numerics: Numerics) -> Array:
    """(8, n) int64 for 1 <= e <= 62: p -> (p + add + (mask & (p >> at))) >> e, once or twice."""
    first, e = numerics.multiplier_bits - 1, e.astype(np.int64)
    if not numerics.double_rounding:
        return np.concatenate([_stage(e, numerics.rounding), np.zeros((4, len(e)), np.int64)])
    one = _stage(np.minimum(e, first), "half_up")
    rest = np.maximum(e - first, 0)
    return np.concatenate([one, np.where(rest > 0, _stage(np.maximum(rest, 1), numerics.rounding), 0)])


def _stage(e: Array, rounding: str) -> Array:
    half, whole = np.int64(1) << (e - 1), (np.int64(1) << e) - 1
    same = np.ones_like(e)
    add, at, mask = {
        "half_even": (half - 1, e, same),
        "half_up": (half, e, 0 * same),
        "half_away": (half, 63 * same, -same),
        "floor": (0 * same, e, 0 * same),
        "toward_zero": (0 * same, 63 * same, whole),
    }[rounding]
    return np.stack([e, add, at, mask])


@kernel
def staged(p, constants, j):
    """A product through the shift: |p| <= 2**62."""
    v = (p + constants[ADD1, j] + (constants[MASK1, j] & (p >> constants[AT1, j]))) >> constants[E1, j]
    return (v + constants[ADD2, j] + (constants[MASK2, j] & (v >> constants[AT2, j]))) >> constants[E2, j]


@kernel
def cut(v, low, high, room, wraps):
    """A word of low..high, of which `room` bits of 64 are above it."""
    return (v << room) >> room if wraps else min(max(v, low), high)


@kernel
def narrowed(y, low, high, room, wraps, unsigned, most):
    """The output's word."""
    if unsigned:
        return y & most if wraps else min(max(y, 0), most)
    return cut(y, low, high, room, wraps)


@border(x="int8|int16|int32 R C", m="int64 M=C|1", constants="int64 8 M", how="int64 10", out=f"{SIGNED} R C")
@kernel
def one_by_stages(x, m, constants, how, plus, out):
    """As `by_stages`, of one term; `plus`: what is added to every result, small beside its words."""
    wraps, room = how[ROUNDED_WRAPS] != 0, 64 - how[ROUNDED]
    high = INT64_MAX >> room
    out_wraps, out_room, unsigned = how[OUTPUT_WRAPS] != 0, 64 - how[OUTPUT], how[UNSIGNED] != 0
    out_high, most = INT64_MAX >> out_room, (np.int64(1) << min(how[OUTPUT], 62)) - 1
    if m.shape[0] == 1:
        factor = m[0]
        e, add, at, mask = constants[E1, 0], constants[ADD1, 0], constants[AT1, 0], constants[MASK1, 0]
        f, more, by, sign = constants[E2, 0], constants[ADD2, 0], constants[AT2, 0], constants[MASK2, 0]
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                p = np.int64(x[i, j]) * factor
                v = (p + add + (mask & (p >> at))) >> e
                v = (v + more + (sign & (v >> by))) >> f
                y = cut(cut(v, -high - 1, high, room, wraps) + plus, -high - 1, high, room, wraps)
                out[i, j] = narrowed(y, -out_high - 1, out_high, out_room, out_wraps, unsigned, most)
        return
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            p = np.int64(x[i, j]) * m[j]
            v = (p + constants[ADD1, j] + (constants[MASK1, j] & (p >> constants[AT1, j]))) >> constants[E1, j]
            v = (v + constants[ADD2, j] + (constants[MASK2, j] & (v >> constants[AT2, j]))) >> constants[E2, j]
            y = cut(cut(v, -high - 1, high, room, wraps) + plus, -high - 1, high, room, wraps)
            out[i, j] = narrowed(y, -out_high - 1, out_high, out_room, out_wraps, unsigned, most)


@border(
    x="int8|int16|int32 R C", m="int64 M=C|1", constants="int64 8 M", residual="int8|int16|int32 A C",
    residual_m="int64 N=C|1", others="int64 8 N", addend="int64 B C", how="int64 10", out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def by_stages(x, m, constants, residual, residual_m, others, addend, how, two, out):
    """As `by_numerics` where no product is narrowed and their sum is 2**62 at most, and every e is one of 1..62."""
    step, other_step = np.int64(m.shape[0] > 1), np.int64(residual_m.shape[0] > 1)
    together, unsigned = how[TOGETHER] != 0, how[UNSIGNED] != 0
    wraps, room = how[ROUNDED_WRAPS] != 0, 64 - how[ROUNDED]
    high = INT64_MAX >> room
    out_wraps, out_room = how[OUTPUT_WRAPS] != 0, 64 - how[OUTPUT]
    out_high, most = INT64_MAX >> out_room, (np.int64(1) << min(how[OUTPUT], 62)) - 1
    for i in range(x.shape[0]):
        k, b = i % residual.shape[0], i % addend.shape[0]
        for j in range(x.shape[1]):
            c = j * step
            p = np.int64(x[i, j]) * m[c]
            if two and together:
                p += np.int64(residual[k, j]) * residual_m[j * other_step]
            y = cut(staged(p, constants, c), -high - 1, high, room, wraps)
            if two and not together:
                n = j * other_step
                q = staged(np.int64(residual[k, j]) * residual_m[n], others, n)
                y = cut(y + cut(q, -high - 1, high, room, wraps), -high - 1, high, room, wraps)
            y = added(y, addend[b, j], how[ROUNDED], how[ROUNDED_WRAPS])
            out[i, j] = narrowed(y, -out_high - 1, out_high, out_room, out_wraps, unsigned, most)
