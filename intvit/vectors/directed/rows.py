"""Directed stimuli of methods that work row by row: Softmax, GELU, SiLU, LayerNorm, RMSNorm, and those of plugins.

Candidate rows go through the specification with its taps (`spec.taps`): classes are what is seen of each intermediate,
and of each division, shift and clamp of the methods of this package (`steps`). A greedy cover takes few rows of all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from intvit.graph.ir import Array, IntGraph, Node
from intvit.graph.operators.methods import mask_rows
from intvit.graph.parameters import method_params, node_method
from intvit.proofs.claims import EXACT, NEVER, Facts
from intvit.proofs.walk import RULES, Known, declared, facts_of
from intvit.spec.pool import mean
from intvit.spec.taps import OUTPUT, Changed, Taps, intermediates, listening
from intvit.vectors.directed.cover import cover
from intvit.vectors.directed.coverage import HIT, MISSED, OPEN, UNREACHABLE, Class, Coverage, Directed, Signal
from intvit.vectors.directed.place import limits_of, stored
from intvit.vectors.directed.shapes import Row, corners, every_distance, powers, seeded, with_sum
from intvit.vectors.directed.steps import STEPS, TIES, Clamp, Division
from intvit.vectors.directed.stream import Stream

BUDGET = 480_000
"""Intermediates of all seeded candidates of a site; those of more than 62 bits count for more."""
PAIRED = 240
"""Candidates whose pairs of classes are compared."""
SHOWN = 100_000
"""Intermediates of all rows in which a fault is looked for."""
LEAST, MOST = 150, 1200
"""Seeded candidates of a site."""
SPAN = 40
"""An intermediate that takes at most so many values has a class for each."""
SMALL = 4
"""Quotients of ties that are classes of their own."""
MOST_BITS = 130
MOST_SPAN = 512
"""Codes of an activation all of whose pairs are tried for a proven end that no candidate hits."""
Element = int | None
Extremes = dict[str, tuple[int, Element]]


@dataclass
class Seen:
    """What one row shows: classes by name, and of each quantity its least and largest value; with their elements."""

    classes: dict[str, Element] = field(default_factory=dict)
    least: Extremes = field(default_factory=dict)
    largest: Extremes = field(default_factory=dict)
    values: dict[str, dict[int, Element]] = field(default_factory=dict)

    def hit(self, name: str, element: Element) -> None:
        self.classes.setdefault(name, element)

    def ends(self, name: str, value: int, element: Element) -> None:
        if name not in self.least or value < self.least[name][0]:
            self.least[name] = value, element
        if name not in self.largest or value > self.largest[name][0]:
            self.largest[name] = value, element


@dataclass(frozen=True)
class Candidate:
    row: Row
    mask: int
    """Which of the site's masks."""


@dataclass(frozen=True)
class Site:
    node: Node
    operator: str
    spec: Callable[..., list[int]]
    params: Any
    n: int
    low: int
    high: int
    masks: list[tuple[bool, ...] | None]
    """Distinct masks of rows."""
    rows: list[list[int]]
    """The rows of an image that have each of them."""
    facts: Facts
    unproven: str
    lead: tuple[int, ...]
    """Shape of the rows of an image."""
    axis: int
    """Of the tensor, along which a row lies."""

    def taps(self, row: Row, mask: int) -> Taps:
        given = () if self.masks[mask] is None else (list(self.masks[mask] or ()),)
        return intermediates(self.spec, row, self.params, *given)

    @cached_property
    def marks(self) -> frozenset[int]:
        """Elements of a row where counters and lanes begin and end."""
        powers = (p for k in range(self.n.bit_length()) for p in ((1 << k) - 1, 1 << k))
        return frozenset(p for p in (*powers, self.n - 2, self.n - 1) if 0 <= p < self.n)

    @cached_property
    def cost(self) -> int:
        """Of a row: its intermediates, those of more than 53 bits as often as they are slower."""
        row = [self.low + (self.high - self.low) * (i * i % 7) // 6 for i in range(self.n)]
        return sum(1 + 10 * (v is not None and v.bit_length() > 53) for vs in self.taps(row, 0).values() for v in vs)

    def run(self, candidate: Candidate) -> list[int]:
        mask = self.masks[candidate.mask]
        return self.spec(candidate.row, self.params, *(() if mask is None else (list(mask),)))


def site_of(part: IntGraph, node: Node) -> Site:
    x = part.tensors[node.inputs[0]]
    axis = node.attrs["axis"] if node.op == "mean" else len(x.shape) - 1
    n, lead = x.shape[axis], (*x.shape[:axis], *x.shape[axis + 1 :])
    masks: list[tuple[bool, ...] | None] = [None]
    rows = [list(range(int(np.prod(lead))))]
    hidden = mask_rows(node, (1, *x.shape))
    if hidden is not None:
        distinct, of = np.unique(hidden, axis=0, return_inverse=True)
        masks = [tuple(each) if any(each) else None for each in distinct.tolist()]
        rows = [np.flatnonzero(of.reshape(-1) == i).tolist() for i in range(len(masks))]
    unproven: dict[str, str] = {}
    facts = facts_of(node, [Known(declared(x))], [x], part.tensors[node.output], RULES, unproven)
    operator, spec, params = node.op, _mean, None
    if node.op != "mean":
        method = node_method(node)
        operator, spec, params = method.id, method.spec, method_params(node)
    return Site(node, operator, spec, params, n, *limits_of(x), masks, rows, facts, unproven.get(node.name, ""), lead,
                axis)  # fmt: skip


def _mean(row: Sequence[int], params: Any) -> list[int]:
    return [mean(row)]


# ----------------------------------------------------------------------------------------- what a row shows


def see(site: Site, candidate: Candidate) -> Seen:
    seen, row = Seen(), candidate.row
    taps = site.taps(row, candidate.mask)
    for name, values in taps.items():
        _see_values(seen, name, values, site.n)
    for step in STEPS[site.operator](row, taps, site.params) if site.operator in STEPS else ():
        if isinstance(step, Division):
            _see_division(seen, step, site.n)
        else:
            _see_clamp(seen, step, site.n)
    _see_row(seen, site, candidate)
    if "step" in taps:
        steps = taps["step"]
        seen.hit(f"root: settles with iterate {steps.index(steps[-1]) + 1} of {len(steps)}", None)
    return seen


def _element(i: int, count: int, n: int) -> Element:
    """The element of the row that the i-th of `count` values belongs to."""
    if count == n:
        return i
    if count == 2 * n:
        return i // 2
    return i if count == n + 1 and i < n else None


def _see_values(seen: Seen, name: str, values: Sequence[int | None], n: int) -> None:
    found: dict[int, int] = {}
    for i, v in enumerate(values):
        if v is not None and v not in found:
            found[v] = i
    if not found:
        return
    count = len(values)
    for value in (min(found), max(found)):
        seen.ends(name, value, _element(found[value], count, n))
    bits: dict[tuple[bool, int], int] = {}
    for v, i in found.items():
        bits.setdefault((v < 0, v.bit_length()), i)
    for (negative, width), i in bits.items():
        text = "0" if not width else f"{'negative' if negative else 'positive'} of {width} bits"
        seen.hit(f"{name}: {text}", _element(i, count, n))
    if len(found) <= SPAN:
        seen.values[name] = {v: _element(i, count, n) for v, i in found.items()}


def _see_division(seen: Seen, step: Division, n: int) -> None:
    name, count = f"{step.name} rounding", len(step.numerator)
    for i, (numerator, denominator) in enumerate(zip(step.numerator, step.denominator, strict=True)):
        if denominator < 2 or not numerator:
            continue
        below, rest = divmod(numerator, denominator)
        element = _element(i, count, n)
        if not rest:
            seen.hit(f"{name}: remainder 0", element)
            continue
        if rest == denominator - 1:
            seen.hit(f"{name}: remainder largest", element)
        twice = 2 * rest - denominator
        if not twice:
            sign = "positive" if numerator > 0 else "negative"
            if step.even:
                seen.hit(f"{name}: tie, {'odd' if below & 1 else 'even'} quotient, {sign}", element)
                if 0 <= below < SMALL:
                    seen.hit(f"{name}: tie between {below} and {below + 1}", element)
            else:
                seen.hit(f"{name}: remainder half", element)
            continue
        fraction = (rest << 60) // denominator
        seen.ends(f"{name}, fraction", fraction, element)
        half = (abs(twice) << 60) // denominator
        seen.ends(f"{name}, {'above' if twice > 0 else 'below'} a half", half, element)


def _see_clamp(seen: Seen, step: Clamp, n: int) -> None:
    count = len(step.value)
    for i, value in enumerate(step.value):
        element = _element(i, count, n)
        for side, end, sign in (("below", step.low, -1), ("above", step.high, 1)):
            if end is not None:
                past = sign * (value - end)
                seen.ends(f"{step.name} clamp {side}, {'past' if past > 0 else 'inside'}", past, element)


def _see_row(seen: Seen, site: Site, candidate: Candidate) -> None:
    row, least, most = candidate.row, min(candidate.row), max(candidate.row)
    ends = {site.low: "all least", site.high: "all largest", 0: "all 0"}
    if least == most:
        seen.hit("row: equal values", None)
        if least in ends:
            seen.hit(f"row: {ends[least]}", None)
    elif site.n > 1:
        if sum(v != least for v in row) == 1 and site.n > 2:
            at = row.index(most)
            place = {0: "first", site.n - 1: "last"}.get(at, "inner")
            seen.hit(f"row: one-hot, {place} element", at)
        if sum(v != most for v in row) == 1 and site.n > 2:
            seen.hit("row: all but one largest", row.index(least))
        if {least, most} == {site.low, site.high} and 2 * row.count(least) in (site.n, site.n - 1):
            seen.hit("row: half least, half largest", None)
        if row.count(most) > 1:
            seen.hit("row: several largest", row.index(most))
        else:
            at = row.index(most)
            if at in site.marks:
                seen.hit(f"row: largest alone, element {at}", at)
        if most - least == 1:
            seen.hit("row: spread 1", None)
    mask = site.masks[candidate.mask]
    if mask is not None:
        seen.hit("mask: whole row" if all(mask) else "mask: part of the row", None)
        if not all(mask):
            past = most - max(x for x, h in zip(row, mask, strict=True) if not h)
            if past:
                seen.hit(f"mask: largest element masked, by {past.bit_length()} bits", None)
    elif len(site.masks) > 1:
        seen.hit("mask: none", None)


# ----------------------------------------------------------------------------------------- candidates


def propose(site: Site, stream: Stream, level: int) -> Iterator[Candidate]:
    """Rows with a mask each; most of them with the first of the site's masks."""
    n, low, high = site.n, site.low, site.high
    kinds = list(range(len(site.masks)))
    count = level * max(LEAST, min(MOST, BUDGET // site.cost))
    structural = list(corners(n, low, high))
    structural += every_distance(n, low, high, max(4, count // 20))
    structural += _special(site, stream)
    for i, row in enumerate(structural):
        yield Candidate(row, kinds[0])
        if len(kinds) > 1:
            yield Candidate(row, kinds[1 + i % (len(kinds) - 1)])
    for i in range(count):
        yield Candidate(seeded(n, low, high, stream), kinds[i % len(kinds)])


def _special(site: Site, stream: Stream) -> Iterator[Row]:
    """Rows for sums with a stated remainder, and for sums that are a number of halves of their largest exponential."""
    n, low, high = site.n, site.low, site.high
    if "mean" in site.facts.signals or site.node.op == "mean":
        for i in range(96):
            goal = (n // 2, n // 2 - 1, n // 2 + 1, 0, n - 1, 1)[i % 6]
            row = seeded(n, low, high, stream)
            found = with_sum(row, (sum(row) // n) * n + goal + (i // 6 % 2) * n, low, high, stream)
            if found is not None:
                yield found
    if site.node.op == "softmax":
        yield from _exact_sums(site, stream)
    if hasattr(site.params, "x0"):
        for halves in range(3, 2 * n, 2 if n < 64 else n // 16):
            yield from powers(n, site.params.x0, low, high, halves)


def _exact_sums(site: Site, stream: Stream) -> Iterator[Row]:
    """Rows whose exponentials add up to a power of two, and to one more and one less: where a reciprocal is exact.

    The largest and seeded elements, and three that a table of pairs finds. Nothing where no intermediate is the sum.
    """
    if site.n < 5:
        return
    known: dict[int, int] = {}
    for x in range(site.high, site.low - 1, -max(1, (site.high - site.low) // MOST_SPAN)):
        taps = site.taps([site.high, x], 0)
        values = taps.get("exp16", taps.get("exp"))
        if "sum" not in taps or not values or len(values) != 2 or sum(v or 0 for v in values) != taps["sum"][0]:
            return
        known.setdefault(values[1] or 0, x)
    top, exps = max(known), sorted(known)
    pairs: dict[int, tuple[int, int]] = {}
    for a in exps:
        for b in exps:
            pairs.setdefault(a + b, (a, b))
    for k in range(top.bit_length() - 1, (top * site.n).bit_length()):
        for target in ((1 << k), (1 << k) + 1, (1 << k) - 1):
            row = _adding_up(exps, pairs, target, site.n, stream)
            if row is not None:
                yield [known[e] for e in row]


def _adding_up(exps: Sequence[int], pairs: Mapping[int, tuple[int, int]], target: int, n: int,
               stream: Stream) -> list[int] | None:  # fmt: skip
    """n of `exps`, the largest among them, that add up to a target."""
    for _ in range(24):
        row, left = [exps[-1]], target - exps[-1]
        while len(row) < n - 3:
            share = left // (n - len(row))
            fitting = bisect_right(exps, max(2 * share, exps[0]))
            row.append(exps[stream.below(fitting)])
            left -= row[-1]
        for third in exps:
            if (pair := pairs.get(left - third)) is not None:
                return [*row, third, *pair]
    return None


def _hunted(site: Site, goals: Sequence[Goal]) -> Iterator[Candidate]:
    """Rows for proven ends of an activation, which depends on an element and on the largest of its row: all pairs."""
    if not goals or site.high - site.low > MOST_SPAN or not site.node.op.endswith(("gelu", "silu")) or site.n < 2:
        return
    left = {(goal.quantity, goal.value) for goal in goals if goal.quantity}
    for top in range(site.low, site.high + 1):
        row = list(range(site.low, top + 1))
        for name, values in site.taps(row, 0).items():
            for i in [i for i, v in enumerate(values) if (name, v) in left] if len(values) >= len(row) else ():
                left.discard((name, values[i]))
                yield Candidate([row[min(i, len(row) - 1)]] + [top] * (site.n - 1), 0)
        if not left:
            return


def _clamped(site: Site, stream: Stream) -> Iterator[Candidate]:
    """Rows with some elements near the largest, and the others as low as can be: sums of little else than clamps."""
    for i in range(120):
        row = [site.low] * site.n
        for j in range(min(1 + i % 12, site.n)):
            row[j] = stream.within(site.high - (site.high - site.low) // 8, site.high)
        yield Candidate(row, i % len(site.masks))


# ----------------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Fault:
    """An intermediate that is off by `by`: everywhere, or where it has the value `only`."""

    name: str
    by: int
    only: int | None = None

    def seen(self, site: Site, candidate: Candidate, right: list[int]) -> bool:
        """Whether the output of a row, else `right`, shows it; not where the method itself comes to an end by it."""
        try:
            with listening(Changed(self.name, lambda v: v + self.by if self.only in (None, v) else v)):
                return site.run(candidate) != right
        except (ArithmeticError, ValueError, IndexError):
            return False

    @property
    def text(self) -> str:
        sign = "+ 1" if self.by > 0 else "- 1"
        return f"{self.name}{'' if self.only is None else f' of {self.only}'} {sign} is seen"


def faults(site: Site, names: Iterable[str]) -> Iterator[Fault]:
    """Every intermediate one more and one less; where it stands at a clamp, beside that."""
    for name in names:
        if name != OUTPUT:
            yield from (Fault(name, 1), Fault(name, -1))
    for name, interval, limits, _, _ in site.facts.clamps:
        for end, acts in ((limits.low, interval.low < limits.low), (limits.high, interval.high > limits.high)):
            if acts and name in names and name in site.facts.signals:
                yield from (Fault(name, 1, end), Fault(name, -1, end))


def _shown(
    site: Site, chosen: list[Candidate], others: Sequence[Candidate]
) -> tuple[dict[str, Candidate], list[Class]]:
    """For every fault a row that shows it, of the chosen ones if one does, else one that joins them.

    Of a clamp only those that some row meets are classes.
    """
    found: dict[str, Candidate] = {}
    left = []
    most = max(24, SHOWN // site.cost)
    rows = [*chosen, *others][:most] if len(chosen) < most // 2 else [*chosen[: most // 2], *others[: most - most // 2]]
    taps = [site.taps(each.row, each.mask) for each in rows]
    for fault in faults(site, list(dict.fromkeys(name for each in taps for name in each))):
        tried = 0
        for each, values in zip(rows, taps, strict=True):
            if fault.name not in values or (fault.only is not None and fault.only not in values[fault.name]):
                continue
            tried += 1
            if fault.seen(site, each, [v for v in values[OUTPUT] if v is not None]):
                found[fault.text] = each
                if each not in chosen:
                    chosen.append(each)
                break
        else:
            if tried or fault.only is None:
                reason = f"no output of {tried} rows shows it, and it is not proven that none does"
                left.append(Class(fault.text, OPEN, reason=reason))
    return found, left


@dataclass(frozen=True)
class Goal:
    """A class: its name, and if it is an extreme, of which quantity and what value."""

    name: str
    quantity: str = ""
    largest: bool = False
    value: int | None = None

    def element(self, seen: Seen) -> tuple[bool, Element]:
        """Whether a row hits it, and where."""
        if not self.quantity:
            return self.name in seen.classes, seen.classes.get(self.name)
        if self.value is not None and not self.name.endswith(("least", "largest")) and self.quantity in seen.values:
            known = seen.values[self.quantity]
            return self.value in known, known.get(self.value)
        found = (seen.largest if self.largest else seen.least).get(self.quantity)
        return found is not None and found[0] == self.value, None if found is None else found[1]


def goals_of(site: Site, all_seen: Sequence[Seen]) -> tuple[list[Goal], list[Class]]:
    """Classes to be hit, and those that are decided otherwise."""
    goals: dict[str, Goal] = {}
    others: list[Class] = []
    for seen in all_seen:
        for name in seen.classes:
            goals.setdefault(name, Goal(name))
    for quantity in dict.fromkeys(q for seen in all_seen for q in seen.least):
        low = min(seen.least[quantity][0] for seen in all_seen if quantity in seen.least)
        high = max(seen.largest[quantity][0] for seen in all_seen if quantity in seen.largest)
        for goal in _extremes(site, quantity, low, high):
            goals[goal.name] = goal
        if high - low < SPAN:
            for value in sorted({v for seen in all_seen for v in seen.values.get(quantity, ())}):
                goals[f"{quantity} = {value}"] = Goal(f"{quantity} = {value}", quantity, value=value)
    _drop_excess(goals)
    for name, status, reason in _decided(site, goals):
        if name not in goals:
            others.append(Class(name, status, reason=reason))
    return list(goals.values()), others


def _extremes(site: Site, quantity: str, low: int, high: int) -> Iterator[Goal]:
    if quantity.endswith(", fraction"):
        yield Goal(f"{quantity.removesuffix(', fraction')}: least fraction above 0", quantity, False, low)
        yield Goal(f"{quantity.removesuffix(', fraction')}: largest fraction", quantity, True, high)
    elif quantity.endswith(" a half"):
        name, side = quantity.rsplit(", ", 1)
        yield Goal(f"{name}: nearest {side}", quantity, False, low)
    elif quantity.endswith(", past"):
        yield Goal(f"{quantity.removesuffix(', past')}: first past", quantity, False, low)
        yield Goal(f"{quantity.removesuffix(', past')}: furthest past", quantity, True, high)
    elif quantity.endswith(", inside"):
        yield Goal(f"{quantity.removesuffix(', inside')}: last inside", quantity, True, high)
    else:
        claim = site.facts.signals.get(quantity)
        if claim is not None and claim[1] == EXACT:
            low, high = claim[0].low, claim[0].high
        yield Goal(f"{quantity}: least", quantity, False, low)
        yield Goal(f"{quantity}: largest", quantity, True, high)


def _drop_excess(goals: dict[str, Goal]) -> None:
    """Bit lengths of an intermediate that has hundreds of them (exponents without a bound)."""
    by: dict[str, list[str]] = {}
    for name in goals:
        if name.endswith(" bits"):
            by.setdefault(name.split(":")[0], []).append(name)
    for names in by.values():
        names.sort(key=lambda name: (len(name), name))
        for name in names[MOST_BITS:]:
            del goals[name]


def _decided(site: Site, goals: Mapping[str, Goal]) -> Iterator[tuple[str, str, str]]:
    """(class, status, reason) of ties and clamps that no candidate hits, by what is proven."""
    ties = {name: (reachable, why) for name, _, reachable, _, why in site.facts.ties}
    even = dict.fromkeys(name.split(" rounding:")[0] for name in goals if " rounding: tie" in name)
    named = [*even, *(each.strip() for name in ties for each in name.split(","))]
    for name in dict.fromkeys(named):
        reachable, why = ties.get(name, next((v for k, v in ties.items() if name in k.split(", ")), (None, "")))
        for parity in ("even", "odd"):
            for sign in ("positive", "negative"):
                key = f"{name} rounding: tie, {parity} quotient, {sign}"
                if key in goals:
                    continue
                reason = _no_tie(site, name, parity, sign)
                if reachable == 0:
                    yield key, UNREACHABLE, "proven: no operand of its interval ties (intvit prove)"
                elif reason:
                    yield key, UNREACHABLE, reason
                else:
                    yield key, OPEN, f"no candidate ties; not decided: {why or 'it depends on the whole row'}"
    for name, interval, limits, acts, _ in site.facts.clamps:
        if acts == NEVER and name.endswith(" wraps"):
            yield name, UNREACHABLE, f"proven: {interval.low}..{interval.high} fits the word (intvit prove)"
        elif acts == NEVER:
            for side, never in (("below", interval.low >= limits.low), ("above", interval.high <= limits.high)):
                key = f"{name} clamp {side}: first past"
                if never and key not in goals and f"{name} clamp {side}: last inside" in goals:
                    yield key, UNREACHABLE, f"proven: {interval.low}..{interval.high} lies inside (intvit prove)"


def _no_tie(site: Site, name: str, parity: str, sign: str) -> str:
    """Why a quotient of that sign cannot tie, where its interval or its constants say so."""
    if (site.operator, name) in TIES:
        signal, can = TIES[site.operator, name]
        interval = site.facts.signals[signal][0]
        if not can(site.params, interval.low, interval.high):
            return f"tried: it rounds constants, and for no {signal} of {interval.low}..{interval.high} one ties"
    numerators = {"mean": "sum", "exp16": "exp", "ratio": "sum", "y": "sum" if site.node.op == "mean" else "total"}
    claim = site.facts.signals.get(numerators.get(name, ""))
    if (name == "mean" or site.node.op == "mean") and site.n % 2:
        return f"the divisor {site.n} is odd"
    if claim is not None and sign == "negative" and claim[0].low >= 0:
        return f"proven: {numerators[name]} is {claim[0].low} at least (intvit prove)"
    if claim is not None and sign == "positive" and claim[0].high <= 0:
        return f"proven: {numerators[name]} is {claim[0].high} at most (intvit prove)"
    return ""


# ----------------------------------------------------------------------------------------- the site


def directed(part: IntGraph, node: Node, seed: int, level: int, most: int | None) -> Directed:
    """Of a part of one method."""
    site, stream = site_of(part, node), Stream(seed, node.name)
    known: dict[tuple[int, tuple[int, ...]], Candidate] = {}
    for candidate in propose(site, stream, level):
        known.setdefault((candidate.mask, tuple(candidate.row)), candidate)
    candidates = list(known.values())
    all_seen = [see(site, each) for each in candidates]
    goals, others = goals_of(site, all_seen)
    hunted = list(_hunted(site, [g for g in goals if not any(g.element(seen)[0] for seen in all_seen)]))
    candidates += hunted
    all_seen += [see(site, each) for each in hunted]
    sets = [{i for i, goal in enumerate(goals) if goal.element(seen)[0]} for seen in all_seen]
    chosen = [candidates[i] for i in cover(sets, range(len(goals)))]
    shown, unseen = _shown(site, chosen, [*_clamped(site, stream), *candidates[:: max(1, len(candidates) // 200)]])
    others += unseen
    if level > 1:
        step = max(1, len(sets) // PAIRED)
        chosen += [candidates[step * i] for i in _pairs(sets[::step], len(site.rows[0]) * 4)]
    images = _laid(site, chosen, level, most, stream)
    return _covered(part, site, goals, others, shown, images, seed, level)


def _pairs(sets: Sequence[Iterable[int]], room: int) -> list[int]:
    """Candidates that show most pairs of classes that those before them do not."""
    seen: set[tuple[int, int]] = set()
    chosen: list[int] = []
    pairs = [{(a, b) for a in each for b in each if a < b} for each in map(sorted, sets)]
    left = set(range(len(pairs)))
    while left and len(chosen) < room:
        best = max(left, key=lambda i: (len(pairs[i] - seen), -i))
        if not pairs[best] - seen:
            break
        left.remove(best)
        seen |= pairs[best]
        chosen.append(best)
    return chosen


def _laid(site: Site, chosen: Sequence[Candidate], level: int, most: int | None, stream: Stream) -> Array:
    """(N, rows, n): each chosen row at a free place that has its mask, what is left seeded."""
    used = [0] * len(site.masks)
    where: list[tuple[int, int, Row]] = []
    for each in chosen:
        places = site.rows[each.mask]
        image, at = divmod(used[each.mask], len(places))
        used[each.mask] += 1
        if most is None or image < most:
            where.append((image, places[at], each.row))
    count = max((image for image, _, _ in where), default=0) + 1
    if level > 1:
        count = min(count + 4, most or count + 4)
    rows = sum(map(len, site.rows))
    filled = {(image, place) for image, place, _ in where}
    images = np.zeros((count, rows, site.n), np.int64)
    for image, place, row in where:
        images[image, place] = row
    for image in range(count):
        for place in range(rows):
            if (image, place) not in filled:
                images[image, place] = _filling(site, chosen, stream)
    return images


def _filling(site: Site, chosen: Sequence[Candidate], stream: Stream) -> Row:
    """A seeded row, or one of those that were chosen, turned round or cut short by its own least element."""
    kind = stream.below(4)
    if kind == 0 or not chosen:
        return seeded(site.n, site.low, site.high, stream)
    row = chosen[stream.below(len(chosen))].row
    at = stream.below(site.n)
    turned = [*row[at:], *row[:at]] if kind < 3 else row[::-1]
    if kind == 2:
        turned[stream.below(site.n)] = stream.within(site.low, site.high)
    return turned


def _covered(part: IntGraph, site: Site, goals: Sequence[Goal], others: Sequence[Class],
             shown: Mapping[str, Candidate], images: Array, seed: int, level: int) -> Directed:  # fmt: skip
    """What the images hit, seen anew from them alone."""
    x = part.tensors[site.node.inputs[0]]
    of_row = {row: mask for mask, rows in enumerate(site.rows) for row in rows}
    hits: dict[str, tuple[int, int, Element]] = {}
    ends: dict[str, tuple[int, int]] = {}
    left = dict(enumerate(goals))
    for image in range(len(images)):
        for row, values in enumerate(images[image].tolist()):
            seen = see(site, Candidate(values, of_row[row]))
            for quantity, (low, _) in seen.least.items():
                high = seen.largest[quantity][0]
                known = ends.get(quantity, (low, high))
                ends[quantity] = min(known[0], low), max(known[1], high)
            for i in [i for i, goal in left.items() if goal.element(seen)[0]]:
                hits[goals[i].name] = image, row, goals[i].element(seen)[1]
                del left[i]
    classes = []
    for goal in goals:
        if goal.name in hits:
            image, row, element = hits[goal.name]
            where = tuple(int(v) for v in np.unravel_index(row, site.lead)) if site.lead else ()
            where = where if element is None else (*where[: site.axis], element, *where[site.axis :])
            classes.append(Class(goal.name, HIT, image=image, element=where, value=goal.value))
        else:
            classes.append(Class(goal.name, MISSED, value=goal.value, reason="no stimulus hits it"))
    classes += _of_faults(site, shown, images, of_row)
    signals = _signals(site, ends)
    coverage = Coverage(site.node.name, site.operator, seed, level, len(images), site.node.inputs[0],
                        (*classes, *others), signals=signals)  # fmt: skip
    turned = np.moveaxis(images.reshape(len(images), *site.lead, site.n), -1, site.axis + 1)
    return Directed({site.node.inputs[0]: stored(turned, x)}, coverage)


def _of_faults(site: Site, shown: Mapping[str, Candidate], images: Array, of_row: Mapping[int, int]) -> Iterator[Class]:
    """Where the rows that show faults lie; each is tried once more there."""
    places: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
    for image in range(len(images)):
        for row, values in enumerate(images[image].tolist()):
            places.setdefault((of_row[row], tuple(values)), (image, row))
    for name, candidate in shown.items():
        at = places.get((candidate.mask, tuple(candidate.row)))
        names = site.taps(candidate.row, candidate.mask)
        fault = next(each for each in faults(site, names) if each.text == name)
        if at is None or not fault.seen(site, candidate, site.run(candidate)):
            yield Class(name, MISSED, reason="no stimulus hits it")
        else:
            where = tuple(int(v) for v in np.unravel_index(at[1], site.lead)) if site.lead else ()
            yield Class(name, HIT, image=at[0], element=where)


def _signals(site: Site, ends: Mapping[str, tuple[int, int]]) -> tuple[Signal, ...]:
    found = []
    for name, seen in ends.items():
        if any(name.endswith(end) for end in (", fraction", " a half", ", past", ", inside")):
            continue
        claim = site.facts.signals.get(name)
        proven = None if claim is None else (claim[0].low, claim[0].high)
        found.append(Signal(name, proven, claim[1] if claim else "not proven", seen))
    return tuple(found)
