"""Requantization by numerics of one's own: words of stated widths. docs/prove.md, "Requantization"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from intvit.graph.ir import Array
from intvit.kernels.requantize import is_addend
from intvit.proofs.claims import Facts
from intvit.proofs.intervals import Box, Interval, box, hull, point, signed
from intvit.proofs.rounding import Term, columns
from intvit.proofs.rounding import requantize as usual
from intvit.spec.numerics import Numerics, Overflow, shifted

NEAREST = ("half_even", "half_up", "half_away")


def requantize(
    x: Box, m: Array, e: Array, bits: int, how: Numerics, residual: Box | Array | None = None,
    residual_m: Array | None = None, residual_e: Array | None = None,
) -> Facts:  # fmt: skip
    """Every channel by itself. Multiplying, shifting, adding and saturating never fall with an operand: ends go to
    ends. Where a word may wrap, it may hold anything."""
    facts, added = Facts(), point(0)
    ties = usual(x, m, e, bits, residual, residual_m, residual_e) if how.rounding in NEAREST else Facts()
    if isinstance(residual, np.ndarray):
        assert residual_m is not None
        assert residual_e is not None
        if is_addend(residual, residual_m, residual_e):
            added, residual = point(int(residual.reshape(-1)[0])), None
    second = columns(residual) if isinstance(residual, np.ndarray) else residual
    lengths = [len(x), len(m), *([] if second is None else [len(second), len(residual_m)])]  # type: ignore[arg-type]
    channels = max(lengths)
    terms = [Term("", x, m.tolist(), e.tolist(), channels)]
    if second is not None:
        terms.append(Term("residual_", second, residual_m.tolist(), residual_e.tolist(), channels))  # type: ignore[union-attr]
    products = []
    for term in terms:
        facts.bound(f"{term.name}product", hull(term.products))
        products.append(_words(facts, f"{term.name}product", term.products, how.product_bits, how.product_overflow))
    if len(terms) == 2 and how.residual == "together":
        sums = [a + b for a, b in zip(*products, strict=True)]
        facts.bound("total", hull(sums))
        products, terms = [_words(facts, "total", sums, how.product_bits, how.product_overflow)], terms[:1]
    totals: list[Interval] = []
    for term, parts in zip(terms, products, strict=True):
        found = [p.rising(partial(shifted, e=term.shift(c), numerics=how)) for c, p in enumerate(parts)]
        facts.bound(f"{term.name}rounded", hull(found))
        found = _words(facts, f"{term.name}rounded", found, how.rounded_bits, how.rounded_overflow)
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    if len(terms) == 2:
        facts.bound("total", hull(totals))
    sums = [total + added for total in totals]
    totals = _words(facts, "total", sums, how.rounded_bits, how.rounded_overflow)
    facts.y = box(_words(facts, "y", totals, bits, how.output_overflow))
    narrow = any(i not in limits for name, i, limits, *_ in facts.clamps if not name.startswith("y "))
    decided = not (how.double_rounding or second is not None or narrow) and how.output_overflow == "saturate"
    for name, n, reachable, witness, why in ties.ties[:1]:
        facts.ties.append((name, n, reachable, witness, why) if decided else
                          (name, n, None, None, "two terms, two roundings or a narrow word"))  # fmt: skip
    return facts


def _words(facts: Facts, name: str, parts: Sequence[Interval], bits: int, overflow: Overflow) -> list[Interval]:
    """What passes a word of `bits` bits, by channel; a clamp in the facts."""
    whole, limits = hull(parts), signed(bits)
    if overflow == "wrap":
        facts.wrap(f"{name} to s{bits}", whole, bits)
        return [part.wrapped(bits) for part in parts]
    facts.clamp(f"{name} to s{bits}", whole, limits, exact=False)
    return [Interval(*(max(limits.low, min(limits.high, end)) for end in (p.low, p.high))) for p in parts]
