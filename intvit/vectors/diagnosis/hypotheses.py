"""Single faults of a site, each with what the dumped tensor would be."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import LAYOUT_OPS, Array
from intvit.graph.operators.methods import evaluator, mask_rows
from intvit.graph.parameters import node_method
from intvit.kernels import registry
from intvit.kernels.method import Method
from intvit.vectors.diagnosis import constants, operands, outputs, steps
from intvit.vectors.diagnosis.datapath import Fault
from intvit.vectors.diagnosis.kinds import Cause
from intvit.vectors.diagnosis.moves import Change
from intvit.vectors.diagnosis.problem import PRODUCTS, Problem

Predict = Callable[["Array | None"], Array]


@dataclass(frozen=True)
class Hypothesis:
    """`predict(None)` is the dumped tensor (B, *shape) if the cause holds; `predict(rows)` rows (R, C) of it where
    `rows` is true. It may raise ZeroDivisionError, OverflowError or IntvitError: then the cause cannot be."""

    cause: Cause
    predict: Predict
    rows: bool = False


def hypotheses(problem: Problem) -> Iterator[Hypothesis]:
    """All of them, in no order of likelihood: priors order what explains."""
    site, own = problem.stage.node.name, problem.own
    if not problem.tail:
        for kind, text, change, penalty in outputs.changes(problem):
            yield Hypothesis(Cause(kind, site, "output", text, penalty), partial(_changed, problem, change))
    for name, note in steps.noted(problem).items():
        for kind, text, fault, penalty in steps.faults(problem, name, note):
            yield Hypothesis(Cause(kind, site, name, text, penalty), partial(_faulty, problem, fault), True)
    for kind, key, text, given, penalty in constants.misread(problem):
        yield Hypothesis(Cause(kind, site, key, text, penalty), partial(_with_constants, problem, given), True)
    for i, tensor in enumerate(problem.stage.inputs):
        for kind, text, change, penalty in operands.misread(problem, i, tensor, own[i]):
            cause = Cause(kind, site, f"input{i}", text, penalty)
            yield Hypothesis(cause, partial(_with_operand, problem, i, change), True)
    if len(own) == 2 and own[0].shape == own[1].shape:
        cause = Cause("exchanged", site, "input0", "and input1 exchanged")
        yield Hypothesis(cause, lambda rows: problem.predict(rows, own=[own[1], own[0]]), True)
    yield from methods(problem)


def _changed(problem: Problem, change: Change, rows: Array | None) -> Array:
    return change(problem.right)


def _faulty(problem: Problem, fault: Fault, rows: Array | None) -> Array:
    return problem.predict(rows, fault=fault)


def _with_constants(problem: Problem, given: Mapping[str, Array], rows: Array | None) -> Array:
    return problem.predict(rows, constants=given)


def _with_operand(problem: Problem, i: int, change: Change, rows: Array | None) -> Array:
    return problem.predict(rows, own=[change(v) if j == i else v for j, v in enumerate(problem.own)])


def methods(problem: Problem) -> Iterator[Hypothesis]:
    """Another method of the operator, with the constants that its own lowering gives at this scale."""
    stage = problem.stage
    node = stage.node
    if "method" not in node.attrs or node.op in LAYOUT_OPS or node.op in PRODUCTS:
        return
    usual = node_method(node)
    for method in registry.methods(node.op):
        if method.id == usual.id:
            continue
        for text, params in _parameters(problem, method):

            def values(rows: Array | None, method: Method = method, params: Any = params) -> Array:
                x = problem.own[0]
                flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.int64)
                return evaluator(method, params, "kernel")(flat, mask_rows(node, x.shape)).reshape(x.shape)

            if not problem.tail:
                what = f"{method.name} instead of {usual.name}{text}"
                yield Hypothesis(Cause("method", node.name, "method", what), values)


def _parameters(problem: Problem, method: Method) -> Iterator[tuple[str, Any]]:
    """Parameters of another method: from the site's own constants where it has all of them, and by its lowering."""
    stage = problem.stage
    mine = {key: (int(v) if v.ndim == 0 else tuple(v.tolist())) for key, v in stage.values.items() if key != "mask"}
    names = [f.name for f in dataclasses.fields(method.params)]
    bits = int(next((v for key, v in stage.values.items() if key in ("out_bits", "bits")), 8))
    guesses = {"out_bits": bits, "bits": bits, "n": None, "shift": 0}
    if all(name in mine or name in guesses for name in names):
        for shift in range(8) if "shift" in names and "shift" not in mine else (0,):
            given = {name: mine.get(name, guesses.get(name)) for name in names}
            if "shift" in names and "shift" not in mine:
                given["shift"] = shift
            try:
                note = f", shift {shift}" if "shift" in names and "shift" not in mine else ""
                yield f", with these constants{note}", method.params(**given)
            except (IntvitError, TypeError):
                continue
    wanted = inspect.signature(method.lower).parameters
    scale = float(np.asarray(stage.inputs[0].scale).reshape(-1)[0])
    least, most = method.widths
    for width in dict.fromkeys(min(max(b, least), most) for b in (bits, 8, 4)):
        known = {"out_bits": width, "exp_range_max": None, "shift": 0, "factor": None}
        try:
            params, _ = method.lower(scale, **{key: value for key, value in known.items() if key in wanted})
        except (IntvitError, TypeError, ValueError):
            continue
        yield f", with its constants at this scale, {width} bits", params
        if "out_bits" not in wanted:
            return
