"""What differs between two reports: every number and choice that is in both or in one of them, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from intvit.report.data import Report

SAME = 1e-9
"""Relative difference of numbers that count as equal: last bits of a sum may depend on the machine."""
LEFT_OUT = ("format", "version", "histograms", "warnings", "command")
"""What follows from the rest, or would fill pages."""
NAMES = {"models": "name", "sites": "site", "scores": "method", "sources": "role"}
"""List -> what its entries are called by."""
DETAILS = ("low", "high", "mean", "max", "saturated", "sqnr_diff")
"""Of scores and intervals: not for a table to be read."""


@dataclass(frozen=True)
class Differing:
    """`what`: the way to it in report.json, lists by the names of their entries; None where there is nothing."""

    what: str
    a: Any
    b: Any

    @property
    def detail(self) -> bool:
        return self.what.rpartition(".")[2] in DETAILS

    @property
    def gain(self) -> float | None:
        """b less a, of numbers."""
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (self.a, self.b))
        return self.b - self.a if numbers else None


def differing(a: Report, b: Report) -> list[Differing]:
    """In the order of the first report, then what is in the second one alone."""
    before, after = (dict(_flat(report.model_dump(exclude=set(LEFT_OUT)), "")) for report in (a, b))
    found = [Differing(what, before.get(what), after.get(what)) for what in {**before, **after}]
    return [each for each in found if not _same(each.a, each.b)]


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Leaves, each under its whole name; of what a search measured only how many there are."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _flat(inside, f"{where}.{key}" if where else key)
    elif where in ("search.interactions", "search.points"):
        yield where, len(value)
    elif isinstance(value, list) and (name := NAMES.get(where.rpartition(".")[2])):
        for inside in value:
            yield from _flat({k: v for k, v in inside.items() if k != name}, f"{where}[{inside[name]}]")
    else:
        yield where, ", ".join(value) if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=SAME)
    return bool(a == b)
