"""Rules for GELU, SiLU and quick GELU. Narrow inputs are enumerated by the specification, wide ones bounded.

docs/prove.md, "Activation functions".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from intvit.proofs import softmax
from intvit.proofs.claims import BOUND, EXACT, Facts
from intvit.proofs.intervals import Box, Interval, box, hull, point, text
from intvit.spec import gelu as spec
from intvit.spec.softmax import IbertSoftmax
from intvit.spec.taps import OUTPUT, intermediates

MOST_INPUTS = 2**16
"""Of a function of one integer, that are enumerated."""
MOST_PAIRS = 2**17
"""Of an input and the largest of its row."""
Spec = Callable[[Sequence[int], Any], list[int]]


def enumerated(facts: Facts, function: Spec, params: Any, rows: Iterable[Sequence[int]]) -> None:
    """Every signal, exactly: `rows` hold all inputs, or all pairs of an input and its row's maximum."""
    ends: dict[str, tuple[int, int]] = {}
    for row in rows:
        for name, values in intermediates(function, row, params).items():
            known = [v for v in values if v is not None]
            low, high = ends.get(name, (known[0], known[0]))
            ends[name] = min(low, min(known)), max(high, max(known))
    low, high = ends.pop(OUTPUT)
    for name, pair in ends.items():
        facts.exact(name, Interval(*pair))
    facts.y, facts.y_how = Box((low,), (high,)), EXACT


def ivit(p: spec.IvitGelu, x: Interval, function: Spec = spec.ivit) -> Facts:
    """ShiftGELU: of an input and the largest of its row."""
    facts, pairs = Facts(), x.span * (x.span + 1) // 2
    if pairs <= MOST_PAIRS:
        enumerated(facts, function, p, (range(x.low, top + 1) for top in range(x.low, x.high + 1)))
    else:
        _ivit_bounds(facts, p, x)
    delta = facts.signals["delta"][0]
    total = facts.signals["sum"][0]
    before = delta.rising(softmax.shifted_argument)
    facts.clamp("argument", before, Interval(p.n * p.x0, max(before.high, p.n * p.x0)), True, f"before it {before.low}")
    facts.clamp(
        "sum", total, Interval(0, softmax.SUM_MAX), facts.signals["sum"][1] == EXACT, f"sum = {text(total.high)}"
    )
    softmax.shifts(facts, point(p.n) - facts.signals["quotient"][0])
    softmax.beyond(facts, "sum", 32, "sum of exponentials beyond 31 bits")
    return facts


def _ivit_bounds(facts: Facts, p: spec.IvitGelu, x: Interval) -> None:
    facts.exact("x_max", x)
    seen, zero = Interval(x.low - x.high, 0), Interval(-x.high, -x.low)  # x - max, 0 - max
    least, exp = p.n * p.x0, partial(softmax.shift_exp, x0=p.x0, n=p.n)
    facts.exact("delta", seen | zero)
    arguments = [d.rising(softmax.shifted_argument).rising(lambda v: max(v, least)) for d in (seen, zero)]
    t = facts.exact("argument", hull(arguments))
    facts.exact("quotient", t.falling(lambda v: v // p.x0))
    facts.bound("remainder", Interval(p.x0 + 1, 0))
    e, em = (each.rising(exp) for each in arguments)
    facts.exact("exp", e | em)
    total = facts.bound("sum", e + em)
    factor = facts.bound("factor", total.falling(lambda v: softmax.SUM_MAX // min(v, softmax.SUM_MAX)))
    # a sum that is not clamped holds e: e * factor <= 2**31 - 1; of one that is, factor is 1
    most = min(e.high * factor.high, max(softmax.SUM_MAX, e.high))
    product = facts.bound("product", Interval(e.low * factor.low, most))
    sigmoid = facts.bound("sigmoid", product.rising(lambda v: v >> (32 - p.out_bits)))
    facts.y = box([x * sigmoid])


def ibert(p: spec.IbertGelu, x: Interval) -> Facts:
    """i-GELU: a function of one input, with constants for all channels or for each."""
    facts, constants = Facts(), list(zip(p.b, p.c, p.shift, strict=True))
    singles = [spec.IbertGelu((b,), (c,), (shift,), p.n) for b, c, shift in constants]
    if x.span * len(set(constants)) <= MOST_INPUTS:
        known = {key: _one(single, x) for key, single in dict(zip(constants, singles, strict=True)).items()}
    else:
        known = {key: _ibert_bounds(single, x) for key, single in dict(zip(constants, singles, strict=True)).items()}
    each = [known[key] for key in constants]
    for name in each[0].signals:
        how = each[0].signals[name][1]
        facts.signals[name] = hull(f.signals[name][0] for f in each), how
    facts.y = box(f.y.hull for f in each if f.y is not None)
    facts.y_how = each[0].y_how
    magnitude = x.abs()
    facts.clamp("clipped", magnitude, Interval(0, min(-b for b in p.b)), True, f"x of magnitude {magnitude.high}")
    return facts


def _one(p: spec.IbertGelu, x: Interval) -> Facts:
    facts = Facts()
    enumerated(facts, spec.ibert, p, [range(x.low, x.high + 1)])
    return facts


def _ibert_bounds(p: spec.IbertGelu, x: Interval) -> Facts:
    facts, (b,), (c,), (shift,) = Facts(), p.b, p.c, p.shift
    clipped = facts.exact("clipped", x.abs().rising(lambda v: min(v, -b)))
    polynomial = facts.exact("polynomial", clipped.falling(lambda v: (v + b) ** 2 + c))
    signs = Interval(-1 if x.low < 0 else 0 if x.low == 0 else 1, 1 if x.high > 0 else 0 if x.high == 0 else -1)
    erf = facts.bound("erf", (signs * polynomial).rising(lambda v: v >> p.n))
    gate = facts.bound("gate", Interval(erf.low + shift, erf.high + shift))
    facts.y = box([x * gate])
    return facts


def sigmoid_ibert(p: IbertSoftmax, x: Interval, function: Spec) -> Facts:
    """x times the first of the two values of I-BERT's softmax of (x, 0)."""
    facts, least = Facts(), p.n * p.x0
    pair = softmax.ibert(p, x | point(0), 2, frozenset({0}))
    if x.span <= MOST_INPUTS:
        enumerated(facts, function, p, [range(x.low, x.high + 1)])
    else:
        assert pair.y is not None
        facts.signals = {name: (found, BOUND) for name, (found, _) in pair.signals.items()}
        facts.y = box([x * facts.bound("sigmoid", pair.y.hull)])
    softmax.shifts(facts, point(p.n) - facts.signals["quotient"][0])
    facts.clamps = [each for each in pair.clamps if each[0] == "exp16"]  # of the exponential of 0, which always occurs
    magnitude = x.abs()
    other = magnitude & Interval(0, -least) if magnitude.low <= -least else point(-least)  # deltas are 0 and -abs(x)
    softmax.inner_ties(facts, p, [point(0), Interval(-other.high, -other.low)])
    return facts


def ivit_tvm(p: spec.IvitTvmGelu, x: Interval) -> Facts:
    """ShiftGELU in words that wrap."""
    facts = Facts()
    facts.exact("x_max", x)
    delta = facts.exact("delta", Interval(x.low - x.high, 0) | Interval(-x.high, -x.low))
    exp = softmax.tvm_exponents(facts, delta, p.x0, p.n)
    total = facts.wrap("sum", exp + exp)
    facts.bound("sum", total)
    softmax.tvm_reciprocal(facts, exp, total)
    sigmoid = facts.bound("sigmoid", facts.signals["product"][0].rising(lambda v: v >> 24))
    facts.y = box([facts.wrap("y", x * sigmoid)])
    return facts
