"""Sums of products and means: exact intervals, and operands that attain them. docs/prove.md, "Sums of products"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intvit.graph.ir import Array
from intvit.proofs.claims import BOUND, EXACT, Facts
from intvit.proofs.intervals import Box, Interval, box, hull, rounded_quotient
from intvit.proofs.ties import smallest_tie
from intvit.spec.matmul import LOG2_FRACTION_BITS


def linear(x: Box, weight: Array, bias: Array | None) -> Facts:
    """Of x (K,) times weight (O, K) plus bias (O,): each output's extremes, and operands that attain the furthest."""
    low, high = sums(weight, x)
    facts = Facts()
    ends = Interval(min(low), max(high))
    scope = Interval(int(weight.min()), int(weight.max()))
    if x.uniform:
        facts.exact("product", scope * x.hull)
    else:
        facts.bound("product", scope * x.hull)
    facts.exact("sum", ends)
    offset = [0] * len(low) if bias is None else [int(b) for b in bias.tolist()]
    if bias is not None:
        facts.exact("bias", Interval(min(offset), max(offset)))
    facts.y = box(Interval(a + b, c + b) for a, b, c in zip(low, offset, high, strict=True))
    facts.y_how = EXACT
    for name, values, added in (("sum", (low, high), [0] * len(low)), ("y", facts.y.over(len(low)), offset)):
        facts.witnesses[name] = {
            side: attained(weight, x, added, side, extremes)
            for side, extremes in zip(("low", "high"), values, strict=True)
        }
    return facts


def sums(weight: Array, x: Box) -> tuple[list[int], list[int]]:
    """Least and largest sum_k w[o, k] x[k] for every o: exact, as every x[k] is free in its interval."""
    reach = int(np.abs(weight.astype(np.int64)).max()) * max(abs(x.hull.low), abs(x.hull.high)) * weight.shape[1]
    wide = weight.astype(np.int64 if reach < 2**62 else object)
    positive, negative = np.maximum(wide, 0), np.minimum(wide, 0)
    if x.uniform:
        up, down, low, high = positive.sum(axis=1), negative.sum(axis=1), x.hull.low, x.hull.high
        lows, highs = up * low + down * high, up * high + down * low
    else:
        least, most = (np.array(values, wide.dtype) for values in (x.low, x.high))
        lows, highs = positive @ least + negative @ most, positive @ most + negative @ least
    return lows.tolist(), highs.tolist()


def attained(weight: Array, x: Box, offset: Sequence[int], side: str, values: Sequence[int]) -> Mapping[str, Any]:
    """The operand that attains the extreme of the first channel that has it; verified by computing."""
    channel = values.index(min(values) if side == "low" else max(values))
    row = weight[channel].tolist()
    low, high = x.over(len(row))
    if side == "low":
        low, high = high, low
    operand = [b if w > 0 else a for w, a, b in zip(row, low, high, strict=True)]
    value = sum(w * v for w, v in zip(row, operand, strict=True)) + offset[channel]
    if value != values[channel]:
        raise AssertionError(f"the witness of {side} attains {value}, not {values[channel]}")
    return {"channel": channel, "value": value, "x": operand}


def matmul(a: Interval, b: Interval, depth: int, row_sum: int | None) -> Facts:
    """Of sum_k a_k b_k, `depth` products of independent operands; `row_sum`: a_k >= 0 add up to at most that."""
    facts = Facts()
    product = facts.exact("product", a * b)
    total = facts.exact("sum", Interval(depth * product.low, depth * product.high))
    pairs = [(p, q) for p in (a.low, a.high) for q in (b.low, b.high)]
    for side, end in (("low", product.low), ("high", product.high)):
        p, q = next(pair for pair in pairs if pair[0] * pair[1] == end)
        facts.witnesses.setdefault("sum", {})[side] = {"a": p, "b": q, "value": depth * end}
    facts.y_how = EXACT
    if row_sum is not None and a.low >= 0:
        least = Interval(row_sum * min(b.low, 0), row_sum * max(b.high, 0))
        if total not in least:
            total, facts.y_how = total & least, BOUND
    facts.y = Box((total.low,), (total.high,))
    return facts


def log2_matmul(codes: Interval, v: Interval, depth: int, row_sum: int | None) -> Facts:
    """Of sum_k v_k 2**(15 - code_k), 0 for code -1."""
    high = 1 << (LOG2_FRACTION_BITS - max(codes.low, 0)) if codes.high >= 0 else 0
    low = 0 if codes.low < 0 else 1 << (LOG2_FRACTION_BITS - codes.high)
    facts = matmul(Interval(low, high), v, depth, row_sum)
    facts.exact("weight", Interval(low, high))
    return facts


def mean(x: Box, count: int, along_last: bool) -> Facts:
    """Of the sum of `count` values and its rounded mean; along the last axis the values share an interval."""
    facts, parts = Facts(), [x.hull] if along_last else [x[i] for i in range(len(x))]
    sums_of = [Interval(count * part.low, count * part.high) for part in parts]
    facts.signals["sum"] = hull(sums_of), EXACT if x.uniform or not along_last else BOUND
    facts.y = box(s.rising(lambda v: rounded_quotient(v, count)) for s in sums_of)
    facts.y_how = facts.signals["sum"][1]
    half, rest = divmod(count, 2)  # the sum is half * u with u odd: a half, as count = 2 * half
    ties = [] if rest else [t for s in sums_of if (t := _half(s, half)) is not None]
    first = min(ties, key=lambda t: (abs(t), -t)) if ties else None
    facts.ties.append(("y", 1, int(first is not None), None if first is None else (0, first), ""))
    return facts


def _half(total: Interval, half: int) -> int | None:
    """The least sum that is an odd multiple of `half` whose roundings differ."""
    units = Interval(-(-total.low // half), total.high // half) if -(-total.low // half) <= total.high // half else None
    found = None if units is None else smallest_tie(units, 1, 1, [(units.low - 1, units.high + 1)])
    return None if found is None else found * half
