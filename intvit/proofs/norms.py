"""Rules for LayerNorm and RMSNorm. docs/prove.md, "LayerNorm".

x: the box of a row of n channels, which are free of each other.
"""

from __future__ import annotations

from functools import partial
from math import isqrt

from intvit.proofs.claims import NEVER, OPEN, Facts, NotProven
from intvit.proofs.intervals import (
    Box,
    Interval,
    box,
    hull,
    point,
    rounded_quotient,
    rounded_shift,
    truncated,
)
from intvit.proofs.softmax import beyond
from intvit.spec import layernorm as spec
from intvit.spec import rmsnorm

M31 = 2**31 - 1
NEWTON_START, NEWTON_STEPS = 2**16, 10
NEWTON_LEAST = NEWTON_START >> NEWTON_STEPS


def total(x: Box, n: int) -> Interval:
    low, high = x.over(n)
    return Interval(sum(low), sum(high))


def deviations(facts: Facts, x: Box, n: int) -> Interval:
    """x - mean: an element's deviation rises with it and falls with all others, as a mean of n moves by 1/n at most."""
    (low, high), whole = x.over(n), facts.exact("sum", total(x, n))
    mean = partial(rounded_quotient, divisor=n)
    facts.exact("mean", whole.rising(mean))
    least = min(a - mean(whole.high - b + a) for a, b in zip(low, high, strict=True))
    most = max(b - mean(whole.low - a + b) for a, b in zip(low, high, strict=True))
    mean_ties(facts, whole, n)
    return facts.exact("delta", Interval(least, most))


def mean_ties(facts: Facts, whole: Interval, n: int) -> None:
    """The sum takes every value of its interval: a half is a sum of n/2 more than a multiple of n."""
    if n % 2:
        facts.ties.append(("mean", 1, 0, None, ""))
        return
    first = whole.low + (n // 2 - whole.low) % n
    if first > whole.high:
        facts.ties.append(("mean", 1, 0, None, ""))
    else:
        facts.ties.append(("mean", 1, None, None, f"a sum of {first} is one; whether an output differs is not decided"))


def spread(x: Interval, n: int, off: int) -> int:
    """A bound of the sum of (x - c)**2 where c is within `off` / 2 of the mean: Popoviciu's, and n * (off / 2)**2.

    The sum of squares about the mean is convex, so that it is largest in a corner: half of the row at either end.
    """
    half = n // 2
    return (4 * half * (n - half) * (x.high - x.low) ** 2 + n * n * off * off) // (4 * n)


def newton(value: int) -> list[int]:
    """I-LayerNorm's iterates."""
    steps = [NEWTON_START]
    for _ in range(NEWTON_STEPS):
        steps.append((steps[-1] + value // steps[-1]) >> 1)
    return steps[1:]


def newton_root(facts: Facts, variance: Interval) -> Interval:
    """step and root. An iterate is at least half of the one before it, and at least the integer square root.

    For v <= w every iterate of v is at most that of w plus one: docs/prove.md, "Ten Newton steps".
    """
    steps = newton(variance.high)
    facts.bound("step", Interval(max(NEWTON_LEAST, isqrt(variance.low)), max(steps) + 1))
    return facts.bound("root", Interval(max(NEWTON_LEAST, isqrt(variance.low)), steps[-1] + 1))


def scaled_by_newton(facts: Facts, d: Interval, statistic: Interval) -> Interval:
    """factor and product of `d`, whose square is at most the statistic, so that abs(d) <= root and product < 2**31."""
    root = newton_root(facts, statistic)
    factor = facts.bound("factor", root.falling(lambda v: M31 // v))
    return facts.bound("product", d * factor & Interval(-M31, M31))


def with_bias(facts: Facts, normalized: Interval, bias: tuple[int, ...]) -> None:
    facts.exact("bias", Interval(min(bias), max(bias)))
    beyond(facts, "bias", 32, "bias beyond 32 bits")
    facts.y = box(Interval(normalized.low + b, normalized.high + b) for b in bias)


def ivit(p: spec.IvitLayerNorm, x: Box, n: int) -> Facts:
    facts = Facts()
    d = deviations(facts, x, n)
    most = min(spread(x.hull, n, 1), n * d.squared().high)
    variance = facts.bound("variance", Interval(0, most))
    product = scaled_by_newton(facts, d, variance)
    with_bias(facts, facts.bound("normalized", product.rising(lambda v: v >> 1)), p.bias)
    beyond(facts, "variance", 33, "variance beyond 32 bits")
    return facts


def shifted_root(facts: Facts, name: str, d: Interval, most: int, shift: int, n: int) -> Interval:
    """I-BERT's shifted, `name` (the sum of its squares), root, factor, product of `d`; `most` bounds the sum of d**2.

    With k = isqrt(sum (d >> s)**2) >= 1: -k <= d >> s <= k, so that -k 2**s <= d < (k + 1) 2**s, and factor <=
    2**31 / (k 2**s). The product is therefore at least -2**31, and at most 2**32 - 2**(31 - s), which it is for k = 1.
    """
    shifted = facts.exact("shifted", d.rising(lambda v: v >> shift))
    # (d >> s)**2 <= (abs(d) / 2**s + 1)**2, and by Minkowski their sum <= (sqrt(sum d**2) / 2**s + sqrt(n))**2
    norm = isqrt(most >> 2 * shift) + 1 + isqrt(n) + 1
    high = min(n * shifted.squared().high, norm * norm if shift else most)
    statistic = facts.bound(name, Interval(0, high))
    root = facts.bound("root", statistic.rising(lambda v: isqrt(v) << shift))
    if root.high == 0:
        return point(0)
    factor = facts.bound("factor", Interval((1 << 31) // root.high, (1 << 31) >> shift))
    return facts.bound("product", d * factor & Interval(-(1 << 31), (1 << 32) - ((1 << 31) >> shift)))


def ibert(p: spec.IbertLayerNorm, x: Box, n: int) -> Facts:
    facts = Facts()
    d = deviations(facts, x, n)
    most = min(spread(x.hull, n, 1), n * d.squared().high)
    product = shifted_root(facts, "variance", d, most, p.shift, n)
    normalized = product.rising(lambda v: v >> 1) | point(0)  # 0 where the root is
    facts.bound("normalized", normalized)
    with_bias(facts, normalized, p.bias)
    beyond(facts, "variance", 33, "variance beyond 32 bits")
    return facts


def squares(x: Box, n: int) -> Interval:
    low, high = x.over(n)
    parts = [Interval(a, b).squared() for a, b in zip(low, high, strict=True)]
    return Interval(sum(part.low for part in parts), sum(part.high for part in parts))


def rms_ivit(p: rmsnorm.IvitRmsNorm, x: Box, n: int) -> Facts:
    facts = Facts()
    product = scaled_by_newton(facts, x.hull, facts.exact("square_sum", squares(x, n)))
    facts.y = box([product.rising(lambda v: v >> 1)])
    return facts


def rms_ibert(p: rmsnorm.IbertRmsNorm, x: Box, n: int) -> Facts:
    facts = Facts()
    product = shifted_root(facts, "square_sum", x.hull, squares(x, n).high, p.shift, n)
    facts.y = box([product.rising(lambda v: v >> 1) | point(0)])
    return facts


def ivit_tvm(p: spec.IvitTvmLayerNorm, x: Box, n: int) -> Facts:
    """In words that wrap; where none does, as I-LayerNorm, with a mean within 1 of the exact one."""
    facts = Facts()
    whole = facts.bound("sum", facts.wrap("sum", total(x, n)))
    mean = facts.bound("mean", whole.rising(lambda v: truncated(v, n)))
    d = facts.bound("delta", x.hull - mean)
    plain = facts.clamps[-1][1] == facts.clamps[-1][2]
    most = n * d.squared().high
    if plain:
        most = min(most, spread(x.hull, n, 2))
    before, word = Interval(0, most), Interval(0, 2**32 - 1)
    variance = before if before in word else word
    facts.clamps.append(("variance wraps", before, variance, NEVER if before == variance else OPEN, ""))
    facts.bound("variance", variance)
    root = newton_root(facts, variance)
    factor = facts.bound("factor", root.falling(lambda v: M31 // v))
    product = d * factor
    if before == variance:  # abs(d) <= root
        product &= Interval(-M31, M31)
    product = facts.bound("product", facts.wrap("product", product))
    normalized = facts.bound("normalized", product.rising(lambda v: truncated(v, 2)))
    low = [((b + 2**31) % 2**32) - 2**31 for b in p.bias]
    sums = [Interval(normalized.low + b, normalized.high + b) for b in low]
    facts.wrap("y", hull(sums))
    facts.y = box(each.wrapped(32) for each in sums)
    return facts


GUARD_BITS, OFFSET_MAX = spec.GUARD_BITS, spec.OFFSET_MAX


def fqvit(p: spec.FqvitLayerNorm, x: Box, n: int) -> Facts:
    """FQ-ViT: X = x * factor, then 1 / sqrt(C * sum X**2 - (sum X)**2) as a mantissa of 61 bits."""
    facts, channels = Facts(), range(n)
    scaled = [Interval(x[c].low * p.factor[c], x[c].high * p.factor[c]) for c in channels]
    wide = Box(tuple(s.low for s in scaled), tuple(s.high for s in scaled))
    facts.exact("scaled", wide.hull)
    whole = facts.exact("sum", total(wide, n))
    square_sum = facts.exact("square_sum", squares(wide, n))
    half = n // 2
    most = min(half * (n - half) * (wide.hull.high - wide.hull.low) ** 2, n * square_sum.high)
    facts.bound("variance", Interval(0, most))
    constant = [point(rounded_shift(b, e)) for b, e in zip(p.bias, p.bias_exp, strict=True)]
    if most == 0:
        facts.y = box(constant)
        return facts
    if most.bit_length() > 62:
        raise NotProven(f"the variance may have {most.bit_length()} bits, and the rules hold for 62")
    variance = Interval(max(n - 1, 1), most)  # not 0: of unequal integers at least n - 1 pairs differ, by 1 or more
    facts.bound("aligned", Interval(1 << 60, (1 << 62) - 1))
    facts.bound("root", Interval(1 << 30, (1 << 31) - 1))
    facts.bound("fraction", Interval(0, 1 << 30))
    facts.bound("reciprocal", Interval(1 << 30, 1 << 31))
    facts.bound("correction", Interval(-(1 << 31), 1 << 30))
    inverse = facts.bound("inverse", Interval((1 << 60) - 1, 1 << 61))
    exponents = facts.bound("inverse_exp", variance.rising(_inverse_exp))
    found: dict[str, Interval] = {}
    outputs = [_fqvit_channel(p, c, scaled[c], whole, inverse, exponents, found) | constant[c] for c in channels]
    for name, interval in found.items():
        facts.bound(name, interval)
    facts.y = box(outputs)
    facts.clamp("shift", facts.signals["shift before"][0], Interval(0, 31), exact=False)
    limits = Interval(-OFFSET_MAX, OFFSET_MAX)
    for name in ("beta_term", "mean_term"):
        facts.clamp(name, facts.signals.pop(f"{name} before")[0], limits, exact=False)
    del facts.signals["shift before"]
    reason = "five roundings half to even; what they meet depends on the whole row"
    facts.ties.append(("correction, beta_term, mean_term, offset, y", n, None, None, reason))
    return facts


def _inverse_exp(variance: int) -> int:
    shift = 62 - variance.bit_length()
    return 91 - (shift - shift % 2) // 2


def _fqvit_channel(p: spec.FqvitLayerNorm, c: int, x: Interval, whole: Interval, inverse: Interval,
                   exponents: Interval, found: dict[str, Interval]) -> Interval:  # fmt: skip
    """The output of a channel, over every exponent of the inverse and every shift that goes with it."""

    def note(name: str, interval: Interval) -> Interval:
        known = found.get(name)
        if known is None or interval not in known:
            found[name] = interval if known is None else known | interval
        return interval

    limits, sign = Interval(-OFFSET_MAX, OFFSET_MAX), p.sign[c]
    slope = note("slope", inverse.rising(lambda v: (p.slope[c] * v) >> 62))
    slant = inverse.rising(lambda v: (p.gain[c] * v) >> 62) * point(sign)
    outputs = []
    for exponent in range(exponents.low, exponents.high + 1):
        slope_exp = p.slope_exp[c] + exponent - 62
        before = note("shift before", slope.falling(lambda v, at=slope_exp: 7 - (v.bit_length() - 1 - at)))  # type: ignore[misc]
        for shift in range(max(min(before.low, 31), 0), max(min(before.high, 31), 0) + 1):
            note("shift", point(shift))
            free = 0 < shift < 31 or before.low == before.high == shift
            m = Interval(128, 255) if free and slope.low > 0 else Interval(0, 255)
            note("multiplier", m)
            guard = max(min(p.bias_exp[c] - shift - 1, GUARD_BITS), 0)
            beta = note("beta_term before", point(rounded_shift(p.bias[c], p.bias_exp[c] - shift - guard)))
            down = p.gain_exp[c] + exponent - 62 - shift - guard
            mean = note("mean_term before", (slant * whole).rising(partial(rounded_shift, shift=down)))
            beta, mean = (
                note(name, _within(each, limits)) for name, each in (("beta_term", beta), ("mean_term", mean))
            )
            offset = note("offset", (beta - mean).rising(partial(rounded_shift, shift=guard)))
            product = note("product", m * x * point(sign))
            outputs.append(note("total", product + offset).rising(partial(rounded_shift, shift=shift)))
    return hull(outputs)


def _within(value: Interval, limits: Interval) -> Interval:
    return Interval(*(max(limits.low, min(limits.high, end)) for end in (value.low, value.high)))
