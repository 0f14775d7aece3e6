"""Requantization: product, rounded terms, total, saturations and ties. docs/prove.md, "Requantization"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from intvit.graph.ir import Array
from intvit.proofs.claims import CAN, EXACT, NEVER, Facts
from intvit.proofs.intervals import Box, Interval, box, hull, rounded_shift, signed
from intvit.proofs.ties import (
    Window,
    constant_tie,
    contiguous,
    rounds,
    smallest_tie,
    window_of,
    windows_of,
)

WORD = signed(64)
CMSIS = Interval(0, 62)
"""Shifts e that two steps on 32-bit operands do: x * m >> 31, x shifted left by up to 31, or the result right."""


class Term:
    """One term: an operand of a box, or constants, times m / 2**e, per channel or not."""

    def __init__(self, name: str, x: Box | list[list[int]], m: Sequence[int], e: Sequence[int], channels: int) -> None:
        self.name, self.x, self.m, self.e, self.channels = name, x, m, e, channels
        self.products = [self._product(c) for c in range(channels)]
        self.rounded = [p.rising(partial(rounded_shift, shift=self.shift(c))) for c, p in enumerate(self.products)]

    def factor(self, channel: int) -> int:
        return self.m[channel if len(self.m) > 1 else 0]

    def shift(self, channel: int) -> int:
        return self.e[channel if len(self.e) > 1 else 0]

    def constants(self, channel: int) -> list[int]:
        assert isinstance(self.x, list)
        return self.x[channel if len(self.x) > 1 else 0]

    def operand(self, channel: int) -> Interval:
        if isinstance(self.x, Box):
            return self.x[channel]
        values = self.constants(channel)
        return Interval(min(values), max(values))

    def _product(self, channel: int) -> Interval:
        m, x = self.factor(channel), self.operand(channel)
        return Interval(x.low * m, x.high * m) if m >= 0 else Interval(x.high * m, x.low * m)

    def windows(self, channel: int, limits: Interval, bits: int) -> tuple[list[Window], bool]:
        """(the q of another term that matter beside this one, whether these are all and only those)."""
        if isinstance(self.x, Box):
            return [window_of(limits, self.rounded[channel])], contiguous(
                self.factor(channel), self.shift(channel), bits
            )
        m, e = self.factor(channel), self.shift(channel)
        return windows_of(limits, (rounds(v, m, e) for v in self.constants(channel))), True

    def tie(self, channel: int, windows: Sequence[Window]) -> int | None:
        m, e = self.factor(channel), self.shift(channel)
        if isinstance(self.x, Box):
            return smallest_tie(self.x[channel], m, e, windows)
        found = [v for v in self.constants(channel) if constant_tie(v, m, e, windows)]
        return min(found, key=lambda v: (abs(v), -v)) if found else None


def columns(values: Array) -> list[list[int]]:
    """Constants by channel (last axis), each list sorted and without repetition; one list if there is one channel."""
    flat = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    return [np.unique(flat[:, c]).tolist() for c in range(flat.shape[1])]


def requantize(x: Box, m: Array, e: Array, bits: int, residual: Box | Array | None = None,
               residual_m: Array | None = None, residual_e: Array | None = None) -> Facts:  # fmt: skip
    """Of `saturate(rounded [+ rounded residual])`, every channel by itself."""
    second = columns(residual) if isinstance(residual, np.ndarray) else residual
    lengths = [len(x), len(m), 1 if second is None else len(second), 1 if residual_m is None else len(residual_m)]
    channels = max(lengths)
    terms = [Term("", x, m.tolist(), e.tolist(), channels)]
    if second is not None:
        assert residual_m is not None
        assert residual_e is not None
        terms.append(Term("residual_", second, residual_m.tolist(), residual_e.tolist(), channels))
    facts, limits = Facts(), signed(bits)
    fits = True
    for term in terms:
        facts.exact(f"{term.name}product", hull(term.products))
        whole = facts.exact(f"{term.name}rounded", hull(term.rounded))
        facts.clamp(f"{term.name}rounded to s64", whole, WORD, exact=True)
        fits &= whole in WORD
        shifts = Interval(min(term.e), max(term.e))
        facts.exact(f"{term.name}shift", shifts)
        if shifts not in CMSIS:
            facts.notes.append(
                f"{term.name}shift e of {shifts.low}..{shifts.high} is outside 0..62: undefined in C as a shift by "
                "e - 31 of a 32-bit word"
            )
    words = [[_clamped(r, WORD) for r in term.rounded] for term in terms]
    totals = words[0] if len(words) == 1 else [a + b for a, b in zip(*words, strict=True)]
    if len(terms) == 2:
        facts.exact("total", hull(totals))
    facts.y, facts.y_how = box(_clamped(total, limits) for total in totals), EXACT
    _saturation(facts, terms, totals, limits)
    for at, term in enumerate(terms):
        _ties(facts, term, terms[1 - at] if len(terms) == 2 else None, limits, bits, fits)
    return facts


def _clamped(value: Interval, limits: Interval) -> Interval:
    return Interval(*(max(limits.low, min(limits.high, end)) for end in (value.low, value.high)))


def _saturation(facts: Facts, terms: list[Term], totals: list[Interval], limits: Interval) -> None:
    """Whether the last saturation acts, and the operands that reach furthest beyond each end."""
    for name, ends, beyond in (
        ("y below", [t.low for t in totals], lambda v: limits.low - v),
        ("y above", [t.high for t in totals], lambda v: v - limits.high),
    ):
        below = name == "y below"
        end = min(ends) if below else max(ends)
        channel, acts = ends.index(end), beyond(end) > 0
        operands = ", ".join([f"channel {channel}", *(_operand(term, channel, below) for term in terms)])
        facts.clamps.append((name, hull(totals), limits, CAN if acts else NEVER, operands if acts else ""))


def _operand(term: Term, channel: int, low: bool) -> str:
    x = term.operand(channel)
    return f"{term.name}x = {x.low if (term.factor(channel) >= 0) == low else x.high}"


def _ties(facts: Facts, term: Term, other: Term | None, limits: Interval, bits: int, fits: bool) -> None:
    name = f"{term.name}rounded"
    if not fits:
        facts.ties.append((name, term.channels, None, None, "a rounded term may saturate at s64"))
        return
    found, why = list[tuple[int, int]](), ""
    for channel in range(term.channels):
        windows, all_of_them = [(limits.low, limits.high - 1)], True
        if other is not None:
            windows, all_of_them = other.windows(channel, limits, bits)
        x = term.tie(channel, windows)
        if x is not None:
            found.append((channel, x))
            why = why if all_of_them else "the other term may step over the codes of the output"
    first = min(found, key=lambda f: (abs(f[1]), -f[1], f[0])) if found else None
    facts.ties.append((name, term.channels, None if why else len(found), None if why else first, why))
