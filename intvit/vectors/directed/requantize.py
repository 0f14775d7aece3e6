"""Directed stimuli of a requantization: ties, what lies beside them, clamps and ends, for each channel's constants.

Every class is solved for, not searched for: which operands round to a half is a congruence (`congruence`), where a
clamp begins is a bisection, as nothing falls that should rise. What has no solution is proven unreachable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from intvit.graph.ir import Array, IntGraph, Node
from intvit.graph.operators.accumulators import numerics_of
from intvit.graph.operators.requantize import signed
from intvit.kernels.requantize import is_addend
from intvit.spec.numerics import STORAGE_BITS, WIDEST_PRODUCT, Numerics
from intvit.vectors.directed import words
from intvit.vectors.directed.congruence import bisect, first, least
from intvit.vectors.directed.cover import cover
from intvit.vectors.directed.coverage import HIT, MISSED, Class, Coverage, Directed, Ledger
from intvit.vectors.directed.place import limits_of, stored
from intvit.vectors.directed.stream import Stream
from intvit.vectors.directed.words import Operands, Trace
from intvit.vectors.part import run

Pair = tuple[int, int]
TRIES = 4096
"""Solutions of a congruence that are looked at, before a class is left open."""
CONTEXTS = 5
"""Second operands with which a tie of products that are added together is looked for."""


@dataclass(frozen=True)
class Term:
    """x * m / 2**e of one group, x in low..high, or one of `values`, sorted, if x is a constant of the place."""

    name: str
    low: int
    high: int
    m: int
    e: int
    how: Numerics
    values: tuple[int, ...] = ()
    c: int = 0
    """Added to the product."""

    def rounded(self, x: int) -> int:
        """Without any narrowing: never falls with x * m."""
        part, value = self.how.multiplier_bits - 1, x * self.m + self.c
        if not self.how.double_rounding:
            return words.step(value, self.e, self.how.rounding)
        if self.e <= part:
            return words.step(value, self.e, "half_up")
        return words.step(words.step(value, part, "half_up"), self.e - part, self.how.rounding)

    @cached_property
    def ends(self) -> Pair:
        """Least and largest rounded."""
        a, b = self.rounded(self.low), self.rounded(self.high)
        return min(a, b), max(a, b)

    def below(self, x: int) -> int:
        """The quotient below, of the last rounding."""
        part, value = self.how.multiplier_bits - 1, x * self.m + self.c
        if self.how.double_rounding and self.e > part:
            return words.step(value, part, "half_up") >> (self.e - part)
        return words.step(value, self.e, "floor")

    def between(self, low: int, high: int, value: Callable[[int], int] | None = None) -> Pair | None:
        """Least and largest x whose rounded value, or another that rises with the product, lies in low..high."""
        value = value or self.rounded
        if self.m == 0:
            return (self.low, self.high) if low <= value(0) <= high else None
        if self.m > 0:
            at = bisect(value, low, self.low, self.high)
            to = bisect(value, high + 1, self.low, self.high) - 1
        else:
            at = 1 - bisect(lambda v: value(-v), high + 1, -self.high, -self.low)
            to = -bisect(lambda v: value(-v), low, -self.high, -self.low)
        return (at, to) if at <= to else None

    def pick(self, low: int, high: int, stream: Stream) -> int | None:
        """Some x whose rounded value lies in low..high."""
        if self.values:
            fitting = [v for v in self.values if low <= self.rounded(v) <= high]
            return fitting[stream.below(len(fitting))] if fitting else None
        window = self.between(low, high)
        return None if window is None else stream.within(*window)


@dataclass(frozen=True)
class Target:
    """A class of one rounding: x * m + c modulo `modulus` in one of `ranges`, the product of the stated sign.

    `nearest`: instead, the x whose (step * (x * m + c) + offset) modulo `modulus` is least.
    """

    rounding: str
    name: str
    modulus: int
    sign: int
    ranges: tuple[Pair, ...] = ()
    nearest: Pair | None = None


SIGNS = {1: "positive", -1: "negative"}


def targets(name: str, e: int, how: Numerics) -> Iterator[Target]:
    """Of the roundings that a product goes through."""
    part = how.multiplier_bits - 1
    final, upper = f"{name}rounded", f"{name}rounded to the upper word"
    if not how.double_rounding or e <= part:
        yield from _targets(upper if how.double_rounding else final, e, 0)
        return
    half = 1 << (e - part - 1)  # the second rounding ties where the first gives an odd multiple of this
    for sign, ups in ((1, (half - 1, half)), (-1, (half - 1, half))):
        at = tuple(((u << part) + (1 << (part - 1)),) * 2 for u in ups)
        yield Target(upper, f"tie that decides, {SIGNS[sign]}", 1 << e, sign, at)
    yield from _targets(final, e - part, part)


def _targets(rounding: str, shift: int, before: int) -> Iterator[Target]:
    """Of a rounding of `shift` bits behind one of `before` bits (0: none), which rounds half up."""
    if shift < 1:
        return
    half, one = 1 << (shift - 1), 1 << shift
    slack = (1 << before) >> 1
    for sign in (1, -1):
        for parity, tie in (("even", half), ("odd", one + half)):
            window = ((tie << before) - slack, (tie << before) + max(slack - 1, 0))
            yield Target(rounding, f"tie, {parity} quotient, {SIGNS[sign]}", 2 * one << before, sign, (window,))
        modulus, edge = one << before, (half << before) - slack
        past = edge + max(2 * slack, 1)
        if shift > 1:
            yield Target(rounding, f"nearest below a tie, {SIGNS[sign]}", modulus, sign, nearest=(-1, edge - 1))
            yield Target(rounding, f"nearest above a tie, {SIGNS[sign]}", modulus, sign, nearest=(1, -past))
    if shift > 1:
        yield Target(rounding, "least fraction above 0", modulus, 0, nearest=(1, -max(2 * slack, 1)))
        yield Target(rounding, "largest fraction", modulus, 0, nearest=(-1, -1 - slack))


@dataclass
class Group:
    """The constants of a channel, or of the site, and which of its classes are wanted."""

    index: int
    x: Term
    other: Term | None
    addend: int
    bits: int
    how: Numerics
    wanted: dict[str, None] = field(default_factory=dict)
    candidates: list[Pair] = field(default_factory=list)
    goals: list[tuple[str, int]] = field(default_factory=list)
    """Classes that are an extreme, and the candidate that attains it."""
    windows: dict[tuple[str, int], Pair | None] = field(default_factory=dict)

    @property
    def codes(self) -> Pair:
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    @property
    def together(self) -> bool:
        return self.other is not None and self.how.residual == "together"

    def add(self, x: int, r: int | None) -> int:
        self.candidates.append((x, 0 if r is None else r))
        return len(self.candidates) - 1


@dataclass(frozen=True)
class Site:
    """A requantization: its constants by place, flattened, and its groups."""

    node: Node
    bits: int
    how: Numerics
    shape: tuple[int, ...]
    stimuli: tuple[str, ...]
    group_of: Array
    """(places,)"""
    groups: list[Group]
    constant: Array | None
    """(places,): the second operand where it is a constant that is multiplied."""
    m: tuple[Array, ...]
    e: tuple[Array, ...]
    """Of each term, (groups,)."""
    addend: int

    def operands(self, x: Array, r: Array | None, group: Array) -> Operands:
        one = x, self.m[0][group], self.e[0][group]
        if len(self.m) == 1:
            return Operands(*one, addend=self.addend).exact()
        return Operands(*one, r, self.m[1][group], self.e[1][group], self.addend).exact()


def site_of(part: IntGraph, node: Node) -> Site:
    x, how, bits = part.tensors[node.inputs[0]], numerics_of(node), node.attrs["bits"]
    places, channels = int(np.prod(x.shape)), x.shape[-1] if x.shape else 1
    constants = {key: signed(node, key) for key in node.arrays}
    m, e = [constants["m"]], [constants["e"]]
    addend, constant, low, high = 0, None, *limits_of(x)
    ends, names = [(low, high)], ["", "residual_"]
    if "residual_m" in constants:
        given = constants.get("residual")
        if given is not None and is_addend(given, constants["residual_m"], constants["residual_e"]):
            addend = int(given.reshape(-1)[0])
        else:
            m, e = [*m, constants["residual_m"]], [*e, constants["residual_e"]]
            if given is not None:
                constant = np.broadcast_to(given, x.shape).reshape(-1)
            else:
                ends.append(limits_of(part.tensors[node.inputs[1]]))
    count = channels if any(len(values) > 1 for values in m) else 1
    m, e = ([np.broadcast_to(v, (count,)) for v in values] for values in (m, e))
    group_of = np.arange(places) % channels if count > 1 else np.zeros(places, np.int64)
    groups = []
    for g in range(count):
        terms = []
        for t, name in enumerate(names[: len(m)]):
            values: tuple[int, ...] = ()
            if t and constant is not None:
                values = tuple(np.unique(constant[group_of == g]).tolist())
            ends_of = (values[0], values[-1]) if values else ends[t]
            terms.append(Term(name, *ends_of, int(m[t][g]), int(e[t][g]), how, values))
        groups.append(Group(g if count > 1 else -1, terms[0], terms[1] if terms[1:] else None, addend, bits, how))
    return Site(node, bits, how, x.shape, tuple(dict.fromkeys(node.inputs)), group_of, groups, constant, tuple(m),
                tuple(e), addend)  # fmt: skip


# --------------------------------------------------------------------------------------- candidates


def propose(group: Group, ledger: Ledger, stream: Stream, same: bool) -> None:
    """Fill a group with wanted classes and pairs of operands that hit them. `same`: both operands are one tensor."""
    _ends(group, stream, same)
    terms = [group.x]
    if group.other is not None and not group.other.values and not same:
        terms.append(group.other)
    for term in terms[:1] if group.together else terms:
        for target in targets(term.name, term.e, group.how):
            _solve(group, term, target, ledger, stream, same)
        _matters(group, term, ledger, stream, same)
    _clamps(group, stream, same)
    if len(terms) == 2 and not group.together:
        _meetings(group)


def _ends(group: Group, stream: Stream, same: bool) -> None:
    ends = {"least": group.x.low, "largest": group.x.high, "0": 0, "1": 1, "-1": -1}
    seconds: dict[str, int | None] = {"": None}
    if group.other is not None:
        other = group.other
        seconds = {"0": 0}
        if not other.values and not same:
            seconds |= {"least": other.low, "largest": other.high, "1": 1, "-1": -1}
    for one, x in ends.items():
        for two, r in seconds.items():
            if not group.x.low <= x <= group.x.high or (r is not None and _outside(group.other, r)):
                continue
            if group.other is not None and group.other.values:
                r = group.other.pick(*group.other.ends, stream)
            if two in ("", "0"):
                group.wanted[f"x = {one}"] = None
            elif one == "0":
                group.wanted[f"residual = {two}"] = None
            elif one in ("least", "largest") and two in ("least", "largest"):
                group.wanted[f"x = {one}, residual = {two}"] = None
            else:
                continue
            group.add(x, x if same else r)


def _nearest(term: Term, value: int) -> int:
    return min(term.values, key=lambda v: (abs(v - value), v)) if term.values else min(max(value, term.low), term.high)


def _outside(term: Term | None, value: int) -> bool:
    return term is not None and not term.values and not term.low <= value <= term.high


def _window(group: Group, term: Term) -> Pair | None:
    """`_window_of`, once for each term."""
    key = (term.name, term.c)
    if key not in group.windows:
        group.windows[key] = _window_of(group, term)
    return group.windows[key]


def _window_of(group: Group, term: Term) -> Pair | None:
    """The operands of a term that some other operand brings between the codes, with no word too narrow on the way."""
    low, high = group.codes
    other = group.x if term.name else group.other
    a, b = (0, 0) if other is None or group.together else other.ends
    a, b, word = a + group.addend, b + group.addend, 1 << (group.how.rounded_bits - 1)
    if group.how.output_overflow == "wrap":
        low, high = -word, word - 1
    window = term.between(max(low - b, -word), min(high - 1 - a, word - 2), term.below)
    if window is None or term.m == 0:
        return window
    most = ((1 << (group.how.product_bits - 1)) - 1) // abs(term.m)
    at, to = max(window[0], -most), min(window[1], most)
    return (at, to) if at <= to else None


def _partner(group: Group, term: Term, x: int, stream: Stream, same: bool) -> tuple[int, int | None] | None:
    """(x, r) or (r, x): an operand of the other term with which this one's last digit is seen."""
    other = group.x if term.name else group.other
    if other is None or same:
        return x, x if same else None
    low, high = group.codes
    q = term.below(x) + group.addend
    if not other.values and low < q < high - 1 and other.low <= 0 <= other.high and stream.below(2):
        r: int | None = 0
    else:
        r = other.pick(low - q, high - 1 - q, stream)
    if r is None:
        return None
    return (r, x) if term.name else (x, r)


def _lines(group: Group, term: Term, stream: Stream) -> list[tuple[Term, int | None]]:
    """A term, and with products that are added together each term beside some operands of the other."""
    if not group.together:
        return [(term, None)]
    assert group.other is not None
    found: list[tuple[Term, int | None]] = []
    for one, two in ((group.x, group.other), (group.other, group.x)):
        for i in range(0 if one.values else CONTEXTS):
            fixed = _nearest(two, 0) if i == 0 else two.pick(*two.ends, stream)
            if fixed is not None:
                found.append((dataclasses.replace(one, c=fixed * two.m), fixed))
    return found


def _by_sign(term: Term, window: Pair, sign: int) -> Pair | None:
    """Where x * m + c has the sign."""
    m, c, (at, to) = term.m, term.c, window
    if sign and m:
        if m < 0:
            m, c, sign = -m, -c, -sign
        at, to = (max(at, -c // m + 1), to) if sign > 0 else (at, min(to, -(c // m) - 1))
    return (at, to) if at <= to else None


def _solve(group: Group, term: Term, target: Target, ledger: Ledger, stream: Stream, same: bool) -> None:
    name = f"{target.rounding}: {target.name}"
    group.wanted[name] = None
    placed, proofs = False, []
    for line, r in _lines(group, term, stream):
        window = _window(group, line)
        window = None if window is None else _by_sign(line, window, target.sign)
        if window is None:
            proofs.append({"m": line.m, "c": line.c, "e": line.e, "operands": []})
            continue
        proof = {"m": line.m, "c": line.c, "e": line.e, "modulus": target.modulus, "operands": list(window)}
        if target.nearest is not None:
            if line.m % target.modulus == 0:
                proofs.append({**proof, "residues": []})
                continue
            step, offset = target.nearest
            x = least(step * line.m, step * line.c + offset, target.modulus, *window)
            placed |= _place(group, line, x, r, stream, same, name)
            continue
        solutions = [x for ends in target.ranges for x in _solutions(line, target.modulus, ends, window)]
        for x in solutions:
            placed |= _place(group, line, x, r, stream, same)
        if not solutions:
            proofs.append({**proof, "residues": [list(each) for each in target.ranges]})
    if placed:
        return
    if proofs and not group.together:
        ledger.unreachable(group.index, name, "no operand gives this remainder where the output shows it", proofs[0])
    else:
        ledger.open(group.index, name, "not found beside the second operands that were tried")


def _solutions(line: Term, modulus: int, ends: Pair, window: Pair) -> Iterator[int]:
    """Some operands, the least first."""
    at = window[0]
    for _ in range(3):
        x = first(line.m, line.c, modulus, *ends, at, window[1])
        if x is None:
            return
        yield x
        at = x + max(1, (window[1] - x) // 2)


def _place(group: Group, term: Term, x: int, r: int | None, stream: Stream, same: bool, goal: str = "") -> bool:
    if r is not None:
        pair: tuple[int, int | None] | None = (r, x) if term.name else (x, r)
    else:
        pair = _partner(group, term, x, stream, same)
    if pair is None:
        return False
    at = group.add(*pair)
    if goal:
        group.goals.append((goal, at))
    return True


def _matters(group: Group, term: Term, ledger: Ledger, stream: Stream, same: bool) -> None:
    """Operands with which a multiplier that is off by one gives another result."""
    (line, r), *_ = _lines(group, term, stream)
    for change in (1, -1):
        name = f"{term.name}m {'+' if change > 0 else '-'} 1 gives another result"
        group.wanted[name] = None
        window, other = _window(group, line), dataclasses.replace(line, m=line.m + change)
        found, tries = None, 0
        for x in _crossings(line, change, window) if window else ():
            tries += 1
            if _code(group, line.rounded(x)) != _code(group, other.rounded(x)):
                found = x
                break
            if tries == TRIES:
                break
        if found is not None:
            _place(group, line, found, r, stream, same)
        elif tries < TRIES and not group.together:
            proof = {"m": line.m, "e": line.e, "operands": list(window or ())}
            ledger.unreachable(group.index, name, "every operand between the codes gives the same result", proof)
        else:
            ledger.open(group.index, name, f"none among {tries} operands whose product is near a step")


def _code(group: Group, q: int) -> int:
    """What the output shows of a rounded term; beside another term as if that could bring it between the codes."""
    if group.other is not None or group.how.output_overflow == "wrap":
        return q
    low, high = group.codes
    return min(max(q + group.addend, low), high)


def _crossings(line: Term, change: int, window: Pair) -> Iterator[int]:
    """Operands whose product and that of m + change may lie on two sides of a step of the rounding, large ones first.

    The products are x apart: one of at most 2**k is that near to a step, or nowhere.
    """
    modulus, edges = 1 << max(line.e, 0), _steps(line)
    for k in range(max(abs(window[0]), abs(window[1])).bit_length(), 0, -1):
        for sign in (1, -1):
            low, high = sorted((sign << (k - 1), sign * ((1 << k) - 1)))
            for edge in edges:
                at, to = max(low, window[0]), min(high, window[1])
                reach = (1 << k) - 1
                before = reach if change * sign > 0 else 0
                while at <= to:
                    x = first(line.m, line.c - edge + before, modulus, 0, min(reach, modulus - 1), at, to)
                    if x is None:
                        break
                    yield x
                    at = x + 1


def _steps(line: Term) -> tuple[int, ...]:
    """The remainders of a product modulo 2**e from which on it is rounded to the next integer."""
    part, nearest = line.how.multiplier_bits - 1, line.how.rounding not in ("floor", "toward_zero")
    if line.e < 1:
        return (0,)
    if not line.how.double_rounding:
        return (1 << (line.e - 1),) if nearest else (0,)
    if line.e <= part:
        return (1 << (line.e - 1),)
    half = (1 << (line.e - part - 1)) if nearest else 0
    return tuple((u << part) - (1 << (part - 1)) for u in (half, half + 1))


def _clamps(group: Group, stream: Stream, same: bool) -> None:
    """Operands on both sides of the end of every word that can be left."""
    how, x, other = group.how, group.x, group.other
    ends = [group.codes]
    if how.rounded_bits < STORAGE_BITS:
        ends.append((-(1 << (how.rounded_bits - 1)), (1 << (how.rounded_bits - 1)) - 1))
    for low, high in ends:
        if other is None or same:
            _edges(group, x, (low - group.addend, high - group.addend), None, same)
        elif group.together:
            for line, r in _lines(group, x, stream):
                _edges(group, line, (low - group.addend, high - group.addend), r, same, swap=bool(line.name))
        else:
            for term, second in ((x, other), (other, x)):
                if term.values:
                    continue
                least, most = (end + group.addend for end in term.ends)
                picks = [second.pick(end - most, end - least, stream) for end in (low - 1, low, high, high + 1) * 2]
                picks += [] if second.values else [second.low, second.high, 0]
                for pick in dict.fromkeys(v for v in picks if v is not None):
                    gone = second.rounded(pick) + group.addend
                    _edges(group, term, (low - gone, high - gone), pick, same, swap=bool(term.name))
    if how.product_bits < WIDEST_PRODUCT:
        _products(group, x, other, same)
        if other is not None and not other.values and not same:
            _products(group, other, x, same)


def _products(group: Group, term: Term, other: Term | None, same: bool) -> None:
    """Operands whose products lie at the ends of their word."""
    most = 1 << (group.how.product_bits - 1)
    rest = None if other is None else _nearest(other, 0)
    for limit in (most - 1, -most) if term.m else ():
        for x in range(limit // term.m - 1, limit // term.m + 3):
            if term.low <= x <= term.high:
                group.add(*((rest or 0, x) if term.name else (x, x if same else rest)))


def _edges(group: Group, term: Term, ends: Pair, r: int | None, same: bool, swap: bool = False) -> None:
    """The first and last operand between `ends`, and those beside them."""
    window = term.between(*ends)
    if window is None:
        return
    for x in (window[0] - 1, window[0], window[1], window[1] + 1):
        if term.low <= x <= term.high:
            second = x if same else r
            group.add(*((second or 0, x) if swap else (x, second)))


def _meetings(group: Group) -> None:
    """Both terms at a tie, and fractions that round otherwise once they are added."""
    other = group.other
    assert other is not None
    low, high = group.codes
    ends = {name: group.candidates[at] for name, at in group.goals}
    two = group.how.double_rounding or group.x.e < 1 or other.e < 1
    for side, name in (("below", "round up only together"), ("above", "round up only apart")):
        pairs = [
            (a[0], b[1])
            for one in SIGNS.values() for another in SIGNS.values()
            if (a := ends.get(f"rounded: nearest {side} a tie, {one}"))
            and (b := ends.get(f"residual_rounded: nearest {side} a tie, {another}"))
        ]  # fmt: skip
        pairs = [pair for pair in pairs if low <= group.x.below(pair[0]) + other.below(pair[1]) < high - 2]
        if not two and any(_adds_up(group.x, other, *pair) for pair in pairs):
            group.wanted[f"terms {name}"] = None
            for pair in pairs:
                group.add(*pair)
    half = [(t, 1 << (t.e - 1)) for t in (group.x, other) if t.e >= 1]
    if len(half) == 2:
        ties = [
            sorted({p[i] for p in group.candidates if (p[i] * t.m) % (2 * h) == h}, key=abs)[:6]
            for i, (t, h) in enumerate(half)
        ]
        pairs = [(a, b) for a in ties[0] for b in ties[1] if low < group.x.rounded(a) + other.rounded(b) < high - 1]
        if pairs:
            group.wanted["both terms tie"] = None
            for pair in pairs[:4]:
                group.add(*pair)


def _adds_up(one: Term, two: Term, x: int, r: int) -> bool:
    """Whether the sum of two products rounds to another integer than the sum of the rounded ones."""
    most = max(one.e, two.e)
    total = (x * one.m << (most - one.e)) + (r * two.m << (most - two.e))
    return words.step(total, most, "half_up") != sum(
        words.step(v * t.m, t.e, "half_up") for t, v in ((one, x), (two, r))
    )


# ------------------------------------------------------------------------------------------- classes


Goals = dict[str, Array]
"""Class that is an extreme -> the integer that attains it, by group; NONE where there is none."""
NONE = -(1 << 200)


def classify(site: Site, at: Operands, group: Array, goals: Goals, same: bool) -> tuple[dict[str, Array], Trace]:
    """Class -> where it is hit, of operands of one length; and how they were computed."""
    trace = words.run(at, site.how, site.bits)
    names = [each.name for each in trace.roundings]
    seen = words.visible(at, site.how, site.bits, trace, names)
    found = _ends_hit(site, at, same)
    for each in trace.roundings:
        below = each.numerator >> each.shift
        rest = each.numerator - (below << each.shift)
        tied = (rest << 1 == np.ones_like(rest) << each.shift) & (each.shift > 0) & seen[each.name]
        for sign, word in SIGNS.items():
            signed_ = each.numerator * sign > 0
            for parity, odd in (("even", 0), ("odd", 1)):
                found[f"{each.name}: tie, {parity} quotient, {word}"] = tied & (below & 1 == odd) & signed_
            found[f"{each.name}: tie that decides, {word}"] = tied & signed_
            for side in ("below", "above"):
                name = f"{each.name}: nearest {side} a tie, {word}"
                if name in goals:
                    found[name] = (rest == goals[name][group]) & signed_ & seen[each.name]
        for what in ("least fraction above 0", "largest fraction"):
            name = f"{each.name}: {what}"
            if name in goals:
                found[name] = rest == goals[name][group]
    for narrowing in trace.narrowings:
        for name in _narrowing_names(narrowing.name):
            if name in goals:
                found[name] = narrowing.value == goals[name][group]
    found |= _otherwise(site, at, trace)
    return {name: np.asarray(hits, bool) for name, hits in found.items()}, trace


def _narrowing_names(name: str) -> tuple[str, ...]:
    return tuple(f"{name} {side}: {what}" for side in ("above", "below") for what in ("last inside", "first past"))


def _ends_hit(site: Site, at: Operands, same: bool) -> dict[str, Array]:
    found: dict[str, Array] = {}
    ends = {"0": 0, "1": 1, "-1": -1}
    x = ends | {"least": site.groups[0].x.low, "largest": site.groups[0].x.high}
    other = site.groups[0].other
    second = {} if other is None or other.values else ends | {"least": other.low, "largest": other.high}
    for one, value in x.items():
        found[f"x = {one}"] = at.x == value
        for two, also in second.items():
            found[f"x = {one}, residual = {two}"] = (at.x == value) & (at.residual == also)
    for two, also in second.items():
        found[f"residual = {two}"] = np.asarray(at.residual == also)
    return found


def _otherwise(site: Site, at: Operands, trace: Trace) -> dict[str, Array]:
    """Where other constants, or one rounding of both terms, give something else."""
    found: dict[str, Array] = {}
    for term in ("", "residual_")[: len(site.m)]:
        for change in (1, -1):
            key = f"{term}m" if term else "m"
            changed: Any = {key: getattr(at, key) + change}
            moved = dataclasses.replace(at, **changed)
            found[f"{term}m {'+' if change > 0 else '-'} 1 gives another result"] = np.asarray(
                words.run(moved, site.how, site.bits).y != trace.y
            )
    if len(site.m) == 2 and site.how.residual == "each":
        by = {each.name: each for each in trace.roundings}
        if {"rounded", "residual_rounded"} <= set(by):
            one, two = by["rounded"], by["residual_rounded"]
            parts = [each.numerator - (each.numerator >> each.shift << each.shift) for each in (one, two)]
            most = np.maximum(one.shift, two.shift)
            wide = parts[0].astype(object) << (most - one.shift), parts[1].astype(object) << (most - two.shift)
            whole = 1 << most.astype(object)
            ups = [2 * part >= whole for part in wide]
            total = wide[0] + wide[1]
            inside = np.asarray(trace.y != words.run(dataclasses.replace(at, addend=at.addend + 1), site.how,
                                                     site.bits).y, bool)  # fmt: skip
            neither, both = ~(ups[0] | ups[1]).astype(bool), (ups[0] & ups[1]).astype(bool)
            found["terms round up only together"] = neither & (2 * total > whole).astype(bool) & inside
            found["terms round up only apart"] = both & (2 * total < 3 * whole).astype(bool) & inside
            found["both terms tie"] = (
                (2 * wide[0] == whole) & (2 * wide[1] == whole) & (one.shift > 0) & (two.shift > 0)
            ).astype(bool) & inside
    return found


# ----------------------------------------------------------------------------------------- the site


def directed(part: IntGraph, node: Node, seed: int, level: int, most: int | None) -> Directed:
    """Of a part of one requantization."""
    site, ledger = site_of(part, node), Ledger()
    stream = Stream(seed, node.name)
    same = len(node.inputs) == 2 and node.inputs[0] == node.inputs[1]
    for group in site.groups:
        propose(group, ledger, stream, same)
    pairs = [pair for group in site.groups for pair in group.candidates]
    of = np.repeat(np.arange(len(site.groups)), [len(group.candidates) for group in site.groups])
    x, r = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    at = site.operands(x, r, of)
    goals = _goals(site, at, of, ledger)
    hits, _ = classify(site, at, of, goals, same)
    chosen = _chosen(site, hits, of)
    x_image, r_image = _laid(site, chosen, of, x, r, level, most, stream, same)
    return _covered(part, site, ledger, goals, x_image, r_image, seed, level, same)


def _goals(site: Site, at: Operands, of: Array, ledger: Ledger) -> Goals:
    """What the candidates attain of every extreme."""
    trace = words.run(at, site.how, site.bits)
    by = {each.name: each for each in trace.roundings}
    goals: Goals = {}

    def goal(name: str, group: int, value: int) -> None:
        goals.setdefault(name, np.full(len(site.groups), NONE, object))[group] = value

    start = 0
    for i, group in enumerate(site.groups):
        for name, candidate in group.goals:
            each = by[name.split(":")[0]]
            j = start + candidate
            rest = int(each.numerator[j]) & ((1 << int(each.shift[j])) - 1)
            better = max if "below" in name or "largest" in name else min
            known = int(goals[name][i]) if name in goals else NONE
            goal(name, i, rest if known == NONE else better(rest, known))
        part = slice(start, start + len(group.candidates))
        for narrowing in trace.narrowings:
            _narrowing_goals(group, narrowing, narrowing.value[part], ledger, lambda n, v, i=i: goal(n, i, v))
        start = part.stop
    return goals


def _narrowing_goals(group: Group, word: words.Narrowing, values: Array, ledger: Ledger, goal: Any) -> None:
    """Last inside and first past, of the values of a group's candidates; their ends are those of all operands."""
    wide = word.high >= (1 << (STORAGE_BITS - 1)) - 1
    found = [int(v) for v in values]
    for side, inside, past in (
        ("above", [v for v in found if v <= word.high], [v for v in found if v > word.high]),
        ("below", [-v for v in found if v >= word.low], [-v for v in found if v < word.low]),
    ):
        sign = 1 if side == "above" else -1
        if not (wide and not past) and inside:
            group.wanted[f"{word.name} {side}: last inside"] = None
            goal(f"{word.name} {side}: last inside", sign * max(inside))
        if not wide or past:
            group.wanted[f"{word.name} {side}: first past"] = None
        if past:
            goal(f"{word.name} {side}: first past", sign * min(past))
        elif not wide:
            reason = f"the furthest value is {sign * max(inside)}, and the word ends at "
            reason += str(word.high if sign > 0 else word.low)
            ledger.unreachable(group.index, f"{word.name} {side}: first past", reason, _ends_proof(group))


def _ends_proof(group: Group) -> Mapping[str, Any]:
    terms = [group.x] if group.other is None else [group.x, group.other]
    return {"m": [t.m for t in terms], "e": [t.e for t in terms], "operands": [[t.low, t.high] for t in terms],
            "addend": group.addend}  # fmt: skip


def _chosen(site: Site, hits: Mapping[str, Array], of: Array) -> list[int]:
    """Candidates that hit every class of every group."""
    names = list(hits)
    matrix = np.array([hits[name] for name in names])
    chosen, start = [], 0
    for group in site.groups:
        stop = start + len(group.candidates)
        wanted = {i for i, name in enumerate(names) if name in group.wanted}
        sets = [set(np.flatnonzero(matrix[:, j]).tolist()) for j in range(start, stop)]
        chosen += [start + j for j in cover(sets, wanted)]
        start = stop
    return chosen


def _laid(site: Site, chosen: Sequence[int], of: Array, x: Array, r: Array, level: int, most: int | None,
          stream: Stream, same: bool) -> tuple[Array, Array]:  # fmt: skip
    """The chosen candidates, each at a free place of its constants in the first image that has one; the rest random."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, group in enumerate(site.group_of.tolist()):
        key = (group, 0 if site.constant is None else int(site.constant[place]))
        places.setdefault(key, []).append(place)
    used: dict[tuple[int, int], int] = {}
    where: list[tuple[int, int, int]] = []
    for j in chosen:
        key = (int(of[j]), 0 if site.constant is None else int(r[j]))
        image, at = divmod(used.get(key, 0), len(places[key]))
        used[key] = used.get(key, 0) + 1
        if most is None or image < most:
            where.append((image, places[key][at], j))
    count = max((image for image, _, _ in where), default=0) + 1
    if level > 1:
        count = min(count + 4, most or count + 4)
    shape = (count, len(site.group_of))
    xs, rs = _random(site, shape, stream)
    if same:
        rs = xs.copy()
    for image, place, j in where:
        xs[image, place], rs[image, place] = x[j], r[j]
    return xs, rs


def _random(site: Site, shape: tuple[int, int], stream: Stream) -> tuple[Array, Array]:
    """A quarter over all operands, the rest where codes are not clamped."""
    found = []
    for t in range(2):
        low, high = (np.zeros(len(site.groups), object) for _ in range(2))
        whole = low.copy(), high.copy()
        for i, group in enumerate(site.groups):
            term = group.x if t == 0 else group.other
            if term is None or term.values:
                continue
            window = _window(group, term) or (term.low, term.high)
            low[i], high[i] = window
            whole[0][i], whole[1][i] = term.low, term.high
        anywhere = (stream.words(int(np.prod(shape))).reshape(shape) & np.uint64(3)) == 0
        at = np.where(anywhere, whole[0][site.group_of], low[site.group_of])
        to = np.where(anywhere, whole[1][site.group_of], high[site.group_of])
        part = (stream.words(int(np.prod(shape))).reshape(shape) >> np.uint64(32)).astype(object)
        found.append((at + ((to - at + 1) * part >> 32)).astype(np.int64))
    return found[0], found[1]


def _covered(part: IntGraph, site: Site, ledger: Ledger, goals: Goals, x: Array, r: Array, seed: int, level: int,
             same: bool) -> Directed:  # fmt: skip
    """What the images hit, seen anew from them alone."""
    count = len(x)
    if site.constant is not None:
        r = np.broadcast_to(site.constant, x.shape)
    group = np.broadcast_to(site.group_of, x.shape).reshape(-1)
    at = site.operands(x.reshape(-1), r.reshape(-1), group)
    hits, trace = classify(site, at, group, goals, same)
    stimuli = {site.stimuli[0]: stored(x, part.tensors[site.stimuli[0]])}
    if len(site.stimuli) == 2:
        stimuli[site.stimuli[1]] = stored(r, part.tensors[site.stimuli[1]])
    _agrees(part, site, stimuli, trace)
    firsts = {name: _firsts(found, group, len(site.groups)) for name, found in hits.items()}
    classes = []
    for i, each in enumerate(site.groups):
        for name in each.wanted:
            place = int(firsts[name][i]) if name in firsts else -1
            if place >= 0:
                image, element = divmod(place, len(site.group_of))
                where = tuple(int(v) for v in np.unravel_index(element, site.shape)) if site.shape else ()
                value = goals[name][i] if name in goals else None
                classes.append(Class(name, HIT, each.index, image, where, None if value is None else int(value)))
                continue
            status, reason, proof = ledger.reasons.get((each.index, name), (MISSED, "no stimulus hits it", None))
            classes.append(Class(name, status, each.index, reason=reason, proof=proof))
    groups = "channel" if site.groups[0].index >= 0 else ""
    coverage = Coverage(site.node.name, "requantize", seed, level, count, site.stimuli[0], tuple(classes), groups)
    return Directed(stimuli, coverage)


def _firsts(found: Array, group: Array, groups: int) -> Array:
    """The first place of every group that hits, or -1."""
    first_of = np.full(groups, -1, np.int64)
    at = np.flatnonzero(found)[::-1]
    first_of[group[at]] = at
    return first_of


def _agrees(part: IntGraph, site: Site, stimuli: Mapping[str, Array], trace: Trace) -> None:
    expected = run(part, stimuli)[site.node.output]
    if not np.array_equal(expected.reshape(-1).astype(object), trace.y.astype(object)):
        raise AssertionError(f"{site.node.name}: the trace of its datapath must give what the kernel gives")
