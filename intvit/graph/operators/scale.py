"""A constant positive factor: it goes into the scale of the integers before it and moves no bit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Node
from intvit.graph.operators.kind import Operator

if TYPE_CHECKING:
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context


def _read(r: Reader, node: Any) -> None:
    a, b = node.input
    if a in r.constants:
        a, b = b, a
    shape = r.shape(a)
    value = r.without_batch(b, shape) if b in r.constants else None
    if value is None or value.size != 1 or float(value.reshape(())) <= 0:
        raise IntvitError(f"{node.name}: Mul must have one positive scalar constant")
    r.emit("scale", node, (a,), shape, attrs={"factor": float(value.reshape(()))})


def _lower(context: Context, node: Node) -> None:
    raw = context.value(node.inputs[0])
    producer = context.producer(raw.name)
    context.must_be_linear(raw, node.name)
    if len(context.graph.consumers[node.inputs[0]]) != 1 or producer is None:
        raise IntvitError(f"{node.name}: a constant factor must follow the one operator whose scale takes it")
    factor = node.attrs["factor"]
    if producer.op == "matmul":  # float32 files round the attention factor, the published networks do not
        exact = context.tensors[producer.inputs[0]].shape[-1] ** -0.5
        factor = exact if np.float32(exact) == np.float32(factor) else factor
    context.tensors[raw.name] = dataclasses.replace(raw, scale=raw.scale * factor, source=node.output)
    context.values[node.output] = raw.name


SCALE = Operator("scale", reads={"Mul": _read}, lower=_lower, still=lambda node: True)
