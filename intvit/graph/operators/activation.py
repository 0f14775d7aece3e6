"""What GELU, SiLU and quick GELU share: an activation function of a row, by its method, as a table if it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node
from intvit.graph.operators import methods
from intvit.graph.operators.kind import Operator
from intvit.graph.parameters import node_method
from intvit.kernels.method import GeluForms

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context


def read(op: str) -> Any:
    """A reader of ONNX nodes that become the operator `op`."""

    def handler(r: Reader, node: Any) -> None:
        r.emit(op, node, (node.input[0],), r.shape(node.input[0]))

    return handler


def activation(name: str, **values: Any) -> Operator:
    """The kind of an activation function; `values` are its float forms, and what differs."""
    common = {"check": methods.check, "kernel": methods.kernel, "spec": methods.spec, "fuse": fuse}
    return Operator(name, **{"lower": lower, **common, **values}, narrow_input=True, row_inputs=1, facts=("x_max",))


def lower(context: Context, node: Node) -> None:
    methods.lower(context, node, facts(context, node))


def facts(context: Context, node: Node) -> dict[str, Any]:
    """x_max: largest magnitude of the input."""
    return {"x_max": context.value(node.inputs[0]).max_abs}


def fuse(planner: Planner, node: Node) -> Step | None:
    """Inputs of 8 or 16 bits [-> requantize] as a table."""
    from intvit.kernels import tables

    forms = node_method(node).fast
    x = planner.tensor(node.inputs[0])
    if not isinstance(forms, GeluForms) or storage(x.dtype) not in (np.int8, np.int16):
        return None
    if any(array.size > 1 for array in node.arrays.values()):
        return None
    after = planner.requantize_after(node)
    if after is not None and len(after.arrays["m"]) > 1:
        after = None
    nodes = [node, after] if after else [node]
    chain = [planner.prepare(n) for n in nodes]

    def evaluate(rows: Array) -> Array:
        for step in chain:
            rows = step([rows])
        return rows

    prepared = tables.prepare(forms.depends, evaluate, x.dtype.min, x.dtype.max)
    return planner.step_of(nodes, lambda values: prepared(values[0])) if prepared else None
