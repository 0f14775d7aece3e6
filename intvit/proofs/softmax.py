"""Rules for the Softmax methods, and the exponentials that ShiftGELU shares. docs/prove.md, "Softmax".

A row of `n` inputs in the interval `x`; `hidden`: how many of a row a mask hides, of every row that there is. I-ViT's
exponential never falls with its argument, I-BERT's does not inside an octave; both are largest at 0, the row's maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from intvit.proofs.claims import Facts
from intvit.proofs.intervals import (
    Interval,
    box,
    hull,
    point,
    rounded_quotient,
    rounded_shift,
    signed,
    truncated,
)
from intvit.proofs.ties import differs
from intvit.spec import softmax as spec
from intvit.spec.matmul import LOG2_FRACTION_BITS

SUM_MAX = 2**31 - 1
LOG2_ROW = 3 << (LOG2_FRACTION_BITS - 1)
"""What a row of FQ-ViT's weights adds up to at most: none is above 1.5 times its probability."""
C_SHIFTS = Interval(0, 31)
MOST_ARGUMENTS = 2**17
"""That are enumerated to decide a tie of the inner requantization."""


@dataclass(frozen=True)
class Exponents:
    """Of a row: those of visible elements lie in `seen`, that of the maximum is `top`, hidden ones have `least`."""

    seen: Interval
    top: int
    least: int

    def of(self, visible: int, hidden: int) -> Interval:
        """All of a row with so many visible and hidden elements."""
        parts = [point(self.least)] if hidden else []
        return hull([*parts, *([self.seen] if visible > 1 else [point(self.top)] if visible else [])])

    def sum(self, visible: int, hidden: int) -> Interval:
        ends = (end * (visible - 1) + self.top if visible else 0 for end in (self.seen.low, self.seen.high))
        return Interval(*(end + hidden * self.least for end in ends))


def shares(n: int, hidden: frozenset[int]) -> list[tuple[int, int]]:
    """(visible, hidden) elements of every kind of row."""
    return [(n - h, h) for h in sorted(hidden)]


def octaves(t: Interval, x0: int) -> Iterator[tuple[int, Interval]]:
    """(quotient, its remainders) of arguments `t` over x0 < 0, where the quotient is a floor."""
    for q in range(t.high // x0, t.low // x0 + 1):
        yield q, Interval(max(t.low - x0 * q, x0 + 1), min(t.high - x0 * q, 0))


def split(facts: Facts, found: Sequence[Interval], x0: int, n: int) -> list[tuple[int, Interval]]:
    """Quotients and remainders of arguments that lie in one of some intervals."""
    parts = [part for t in found for part in octaves(t, x0)]
    quotient = facts.exact("quotient", Interval(min(q for q, _ in parts), max(q for q, _ in parts)))
    facts.exact("remainder", hull(r for _, r in parts))
    shifts(facts, point(n) - quotient)
    return parts


def shifts(facts: Facts, found: Interval) -> None:
    facts.exact("exp_shift", found)
    if found not in C_SHIFTS:
        facts.notes.append(f"exp_shift of {found.low}..{found.high} is outside 0..31: undefined in C on a 32-bit word")


def shifted_argument(d: int) -> int:
    """d * 1.4375 as I-ViT takes it; it never falls, as d >> 1 rises by one where d >> 4 does."""
    return d + (d >> 1) - (d >> 4)


def deltas(facts: Facts, x: Interval, n: int, hidden: frozenset[int]) -> Interval:
    facts.exact("x_max", x)
    alone = max(visible for visible, _ in shares(n, hidden)) < 2
    return facts.exact("delta", point(0) if alone else Interval(x.low - x.high, 0))


def arguments(facts: Facts, t: Interval, least: int, hidden: bool) -> list[Interval]:
    """Behind the clamp at `least`: of visible elements, and of hidden ones, if there are any, which have it."""
    t = facts.clamp("argument", t, Interval(least, max(t.high, least)), exact=True, witness=f"before it {t.low}")
    found = [t, point(least)] if hidden else [t]
    facts.exact("argument", hull(found))
    return found


def shift_exp(value: int, x0: int, n: int) -> int:
    """I-ViT's exponential of an argument; it never falls: an octave ends at |x0| + 1, the next begins at |x0|."""
    q = value // x0
    return ((value - x0 * q - 2 * x0) << (n - q)) >> 1


def reciprocals(facts: Facts, e: Exponents, n: int, hidden: frozenset[int], most: int, limit: int | None) -> None:
    """sum, factor = most // sum, product; the sum clamped at `limit`, or at least 1 without one.

    The largest product is that of the maximum in the row of the least sum: any other element is no larger, and its sum
    no smaller. The smallest is bounded by the least exponential times the factor of the largest sum.
    """
    total = facts.exact("sum", hull(e.sum(*share) for share in shares(n, hidden)))
    if limit is not None:
        clamped = facts.clamp("sum", total, Interval(0, limit), exact=True, witness=f"sum = {total.high}")
    else:
        clamped = facts.clamp("sum at least 1", total, Interval(1, max(total.high, 1)), exact=True, witness="sum = 0")

    def factor(value: int) -> int:
        return most // max(value if limit is None else min(value, limit), 1)

    facts.exact("factor", clamped.falling(factor))
    highs, lows = [], []
    for visible, masked in shares(n, hidden):
        row, ends = e.sum(visible, masked), e.of(visible, masked)
        highs.append((e.top if visible else e.least) * factor(row.low))
        lows.append(ends.low * factor(row.high))
    facts.bound("product", Interval(min(lows), max(highs)))


def finish(facts: Facts, name: str, shift: int) -> None:
    """The output: product >> shift. `row_sum`: of a row of outputs."""
    product = facts.signals[name][0]
    facts.y = box([product.rising(lambda v: v >> shift)])


def ivit(p: spec.IvitSoftmax, x: Interval, n: int, hidden: frozenset[int]) -> Facts:
    facts = Facts()
    delta = deltas(facts, x, n, hidden)
    t = arguments(facts, delta.rising(shifted_argument), p.n * p.x0, max(hidden) > 0)
    split(facts, t, p.x0, p.n)
    exp = partial(shift_exp, x0=p.x0, n=p.n)
    seen = t[0].rising(exp)
    facts.exact("exp", hull(part.rising(exp) for part in t))
    reciprocals(facts, Exponents(seen, exp(0), exp(p.n * p.x0)), n, hidden, SUM_MAX, SUM_MAX)
    finish(facts, "product", 32 - p.out_bits)
    facts.row_sum = max(SUM_MAX, facts.signals["sum"][0].high) >> (32 - p.out_bits)
    beyond(facts, "sum", 32, "sum of exponentials beyond 31 bits")
    return facts


def beyond(facts: Facts, name: str, bits: int, text: str) -> None:
    """A note where a signal needs more than `bits` bits."""
    found = facts.signals[name][0]
    if found.bits > bits:
        facts.notes.append(f"{text}: {name} needs {found.bits} bits, sign included")


def int_exp(facts: Facts, delta: Interval, p: spec.IbertSoftmax | spec.FqvitSoftmax, hidden: bool) -> Interval:
    """I-BERT's exponential of visible elements; its polynomial rises inside an octave."""
    least = p.n * p.x0
    t = arguments(facts, delta, least, hidden)
    parts = split(facts, t, p.x0, p.n)
    rises = partial(polynomial, p)
    facts.exact("polynomial", hull(r.rising(rises) for _, r in parts))
    values = [(q, r.rising(rises)) for q, r in parts]
    before = hull(Interval(v.low << (p.n - q), v.high << (p.n - q)) for q, v in values)
    facts.exact("exp", facts.clamp("exp at least 0", before, Interval(0, max(before.high, 0)), exact=True,
                                   witness=f"exp = {before.low}"))  # fmt: skip
    return hull(r.rising(lambda v, shift=p.n - q: max(rises(v) << shift, 0)) for q, r in octaves(t[0], p.x0))  # type: ignore[misc]


def polynomial(p: spec.IbertSoftmax | spec.FqvitSoftmax, r: int) -> int:
    return r * (r + p.b) + p.c


def exponent(p: spec.IbertSoftmax | spec.FqvitSoftmax, t: int) -> int:
    q = t // p.x0
    return max(polynomial(p, t - p.x0 * q) << (p.n - q), 0)


def ibert(p: spec.IbertSoftmax, x: Interval, n: int, hidden: frozenset[int]) -> Facts:
    facts = Facts()
    delta = deltas(facts, x, n, hidden)
    seen = int_exp(facts, delta, p, max(hidden) > 0)
    least = p.n * p.x0

    def rounded(value: int) -> int:
        return rounded_shift(value * p.m, p.e)

    facts.exact("exp_product", facts.signals["exp"][0] * point(p.m))
    sixteen = signed(16)
    before = facts.signals["exp"][0].rising(rounded)
    facts.exact("exp16", facts.clamp("exp16", before, sixteen, exact=True, witness=f"before it {before.high}"))

    def narrowed(value: int) -> int:
        return min(rounded(value), sixteen.high)

    e = Exponents(seen.rising(narrowed), narrowed(exponent(p, 0)), narrowed(exponent(p, least)))
    reciprocals(facts, e, n, hidden, 2**32, None)
    finish(facts, "product", 32 - p.out_bits)
    facts.row_sum = 1 << p.out_bits
    inner_ties(facts, p, [Interval(max(delta.low, least), 0), *([point(least)] if max(hidden) else [])])
    return facts


def inner_ties(facts: Facts, p: spec.IbertSoftmax, arguments: Sequence[Interval]) -> None:
    """Of the requantization to 16 bits, over every argument that occurs."""
    count = sum(t.span for t in arguments)
    if count > MOST_ARGUMENTS:
        facts.ties.append(("exp16", 1, None, None, f"{count} arguments are too many to enumerate"))
        return
    found, half = list[int](), 1 << max(p.e - 1, 0)
    for value in (v for t in arguments for v in range(t.low, t.high + 1)):
        product = exponent(p, value) * p.m
        if p.e >= 1 and product & (2 * half - 1) == half:
            q = product >> p.e
            if differs(2 * q + 1) and q < 32767:
                found.append(value)
    facts.ties.append(("exp16", 1, int(bool(found)), (0, max(found)) if found else None, ""))


def fqvit(p: spec.FqvitSoftmax, x: Interval, n: int, hidden: frozenset[int]) -> Facts:
    facts = Facts()
    delta = deltas(facts, x, n, hidden)
    seen = int_exp(facts, delta, p, max(hidden) > 0)
    least = p.n * p.x0
    e = Exponents(seen, exponent(p, 0), exponent(p, least))
    rows = [(e.sum(*share), e.of(*share), e.top if share[0] else e.least) for share in shares(n, hidden)]
    total = facts.exact("sum", hull(row for row, _, _ in rows))
    zero = facts.signals["exp"][0].low == 0
    rows = [row for row in rows if row[2] > 0]
    ratios = [rounded_quotient(row.low, top) for row, _, top in rows]
    ratios += [rounded_quotient(row.high, max(each.low, 1)) for row, each, _ in rows]
    if ratios:
        ratio = facts.bound("ratio", Interval(min(ratios), max(ratios)))
        codes = ratio.rising(log2_code)
        highest = (1 << p.bits) - 1
        facts.clamp("code -1", codes, Interval(0, highest), exact=False)
        low = -1 if zero or codes.high > highest else codes.low
        facts.y = box([Interval(low, max(min(codes.high, highest), low))])
    else:
        facts.y = box([point(-1)])
    facts.row_sum = LOG2_ROW
    facts.ties.append(("ratio", 1, None, None, f"it divides by an exponential of the row; sum up to {total.high}"))
    return facts


def log2_code(ratio: int) -> int:
    k = ratio.bit_length() - 1
    return k + (2 * (ratio - (1 << k)) >= 1 << k)


def ivit_tvm(p: spec.IvitTvmSoftmax, x: Interval, n: int, hidden: frozenset[int]) -> Facts:
    facts = Facts()
    delta = deltas(facts, x, n, hidden)
    exp = tvm_exponents(facts, delta | point(p.n * p.x0) if max(hidden) else delta, p.x0, p.n)
    total = facts.wrap("sum", Interval(n * exp.low, n * exp.high))
    facts.bound("sum", total)
    tvm_reciprocal(facts, exp, total)
    finish(facts, "product", 24)
    return facts


def tvm_exponents(facts: Facts, delta: Interval, x0: int, n: int) -> Interval:
    """Exponentials in 32-bit words; division toward zero, so that remainders have the sign of their argument."""
    before = facts.wrap("argument", delta.rising(shifted_argument))
    t = facts.clamp("argument", before, Interval(n * x0, max(before.high, n * x0)), exact=False)
    facts.bound("argument", t)
    quotient = facts.bound("quotient", t.falling(lambda v: truncated(v, x0)))
    remainder = facts.bound("remainder", Interval(max(t.low, x0 + 1) if t.low < 0 else 0, min(max(t.high, 0), -x0 - 1)))
    shifts(facts, point(n) - quotient)
    parts = []
    for q in range(max(quotient.low, n - 31), quotient.high + 1):
        low, high = (remainder.low if q >= 0 else 0), (remainder.high if q <= 0 else 0)
        parts.append(Interval(((low >> 1) - x0) << (n - q), ((high >> 1) - x0) << (n - q)))
    if quotient.low < n - 31:
        parts.append(point(0))
    return facts.bound("exp", facts.wrap("exp", hull(parts)))


def tvm_reciprocal(facts: Facts, exp: Interval, total: Interval) -> None:
    """factor = (2**31 - 1) / sum toward zero, and its product with an exponential of the sum."""
    ends = [0] if total.low <= 0 <= total.high else []
    for part in (Interval(max(total.low, 1), total.high) if total.high >= 1 else None,
                 Interval(total.low, min(total.high, -1)) if total.low <= -1 else None):  # fmt: skip
        if part is not None:
            ends += [truncated(SUM_MAX, part.low), truncated(SUM_MAX, part.high)]
    factor = facts.bound("factor", Interval(min(ends), max(ends)))
    product = exp * factor
    summed = facts.clamps[-1] if facts.clamps and facts.clamps[-1][0] == "sum wraps" else None
    if exp.low >= 0 and summed is not None and summed[1] == summed[2]:  # exp <= sum: no wrap, exp * factor <= 2**31 - 1
        product = product & Interval(0, SUM_MAX)
    facts.bound("product", facts.wrap("product", product))
