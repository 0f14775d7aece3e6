"""Which single faults explain a site: every element that differs, and every one that does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array
from intvit.vectors.diagnosis.hypotheses import Hypothesis, hypotheses
from intvit.vectors.diagnosis.kinds import Cause
from intvit.vectors.diagnosis.problem import Problem

CLOSEST = 3
"""Hypotheses that are looked at as a whole where none explains."""
IMPOSSIBLE = (IntvitError, ZeroDivisionError, OverflowError, MemoryError, ValueError)


@dataclass(frozen=True)
class Explained:
    """`causes` explain all elements, simplest first; without one, `closest` explains `share` of those that differ."""

    causes: tuple[Cause, ...]
    closest: Cause | None = None
    share: float = 0.0
    tried: int = 0


def explain(problems: Sequence[Problem]) -> Explained:
    """Problems of one dumped tensor: of its own site, then of those before it that were not dumped. These are looked at
    if nothing nearer explains it."""
    found: dict[tuple[str, str, str], Cause] = {}
    near: list[tuple[float, int, Hypothesis, Problem]] = []
    tried = 0
    for distance, problem in enumerate(problems):
        if found:
            break
        for hypothesis in hypotheses(problem):
            tried += 1
            score = _agreement(problem, hypothesis)
            cause = replace(hypothesis.cause, penalty=hypothesis.cause.penalty + distance)
            if score == 1.0:
                found.setdefault((cause.site, cause.step, cause.text), cause)
            elif score > 0:
                near.append((score, -cause.prior, replace(hypothesis, cause=cause), problem))
        if not found and not problem.tail:
            for cause in _regions(problem):
                found.setdefault((cause.site, cause.step, cause.text), cause)
    if found:
        return Explained(tuple(sorted(found.values(), key=lambda c: c.prior)), tried=tried)
    closest, share = _closest(near)
    return Explained((), closest, share, tried)


def _agreement(problem: Problem, hypothesis: Hypothesis) -> float:
    """1 if it explains everything; else how many of the elements that differ it explains, of those looked at, and 0
    where it explains no more than no fault does."""
    try:
        if hypothesis.rows and problem.by_rows:
            for rows in problem.samples:
                got, valid, right = problem.rows_of(rows)
                part = _share(got, valid, right, hypothesis.predict(rows))
                if part < 1:
                    return part
        return _share(problem.got, problem.valid, problem.right, hypothesis.predict(None))
    except IMPOSSIBLE:
        return 0.0


def _share(got: Array, valid: Array, right: Array, made: Array) -> float:
    if made.shape != got.shape:
        return 0.0
    same = (made == got) | ~valid
    if same.all():
        return 1.0
    different = valid & (got != right)
    # what it spoils counts against it
    explained = int(np.count_nonzero(different & same)) - int(np.count_nonzero(~different & ~same))
    return max(0.0, min(explained / max(int(np.count_nonzero(different)), 1), 0.999999))


def _closest(near: list[tuple[float, int, Hypothesis, Problem]]) -> tuple[Cause | None, float]:
    best: tuple[Cause | None, float] = (None, 0.0)
    for _, _, hypothesis, problem in sorted(near, key=lambda n: n[:2], reverse=True)[:CLOSEST]:
        try:
            share = _share(problem.got, problem.valid, problem.right, hypothesis.predict(None))
        except IMPOSSIBLE:
            continue
        if share > best[1]:
            best = hypothesis.cause, share
    return best if best[1] >= 0.5 else (None, 0.0)


# ------------------------------------------------------------------------------------- in one region of it


def _regions(problem: Problem) -> Iterator[Cause]:
    """A simple fault in one lane, channel or row alone: there every element has it, and none elsewhere."""
    different = problem.different
    if not different.any():
        return
    for where, mask in _places(problem):
        if np.count_nonzero(mask) == different.size or (different & ~mask).any():
            continue
        got, right = problem.got[mask & problem.valid], problem.right[mask & problem.valid]
        for text in _simple(got, right, problem):
            yield Cause("region", problem.stage.node.name, "output", f"{where}: {text}")


def _places(problem: Problem) -> Iterator[tuple[str, Array]]:
    shape = problem.got.shape
    n = int(np.prod(shape[1:]))
    first = np.unravel_index(int(problem.different.argmax()), shape)
    flat = int(np.ravel_multi_index(first[1:], shape[1:])) if len(shape) > 1 else 0
    for word in (2, 4, 8, 16):
        if n > word:
            lane = (np.arange(n) % word == flat % word).reshape(shape[1:])
            yield f"lane {flat % word} of words of {word}", np.broadcast_to(lane, shape)
    for axis in range(1, len(shape)):
        if shape[axis] > 1:
            mask = np.zeros(shape, bool)
            mask[(slice(None),) * axis + (first[axis],)] = True
            yield f"index {int(first[axis])} of axis {axis - 1}", mask
    if shape[0] > 1:
        mask = np.zeros(shape, bool)
        mask[first[0]] = True
        yield f"image {problem.images[int(first[0])]} alone", mask


def _simple(got: Array, right: Array, problem: Problem) -> Iterator[str]:
    bits = problem.dumped.dtype.bits
    if got.size < 2 or bits > 62:
        return
    if (got == got[0]).all():
        yield f"stuck at {int(got[0])}"
    delta = np.unique(got - right)
    if len(delta) == 1:
        yield f"{int(delta[0]):+d} on every element"
    for bit in range(bits):
        b = 1 << bit
        sign = b if bit < bits - 1 else -b
        for what, made in (("stuck at 0", right - sign * ((right >> bit) & 1)),
                           ("stuck at 1", right + sign * (1 - ((right >> bit) & 1)))):  # fmt: skip
            if np.array_equal(made, got):
                yield f"bit {bit} {what}"
    if np.array_equal(got, -right):
        yield "negated"
