"""Sums: of two activations, with a constant, or with a mask. In integers a requantization of two terms, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Node
from intvit.graph.operators.kind import Operator

if TYPE_CHECKING:
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context

MASKED = -50.0


def is_mask(node: Node) -> bool:
    """True for an added constant of zeros and values that no softmax outlives (Swin's -100): a mask, not a number."""
    value = node.arrays.get("value")
    return value is not None and bool(np.all((value == 0) | (value < MASKED)) and np.any(value))


def _read(r: Reader, node: Any) -> None:
    a, b = node.input
    if a in r.constants:
        a, b = b, a
    shape = r.shape(a)
    if b not in r.constants:
        if shape != r.shape(b):
            raise IntvitError(f"{node.name}: Add shapes must be equal, not {shape} and {r.shape(b)}")
        r.emit("add", node, (a, b), shape)
        return
    value = r.without_batch(b, shape)
    producer = next((n for n in r.nodes if n.output == a and n.op == "linear" and "bias" not in n.arrays), None)
    if producer is not None and r.consumers[a] == 1 and value.shape[-1:] == (value.size,) == shape[-1:]:  # its bias
        r.nodes.remove(producer)
        r.names.discard(producer.name)
        del r.tensors[a]
        arrays = {**producer.arrays, "bias": value.reshape(-1)}
        r.emit("linear", node, producer.inputs, shape, arrays=arrays)
        return
    r.emit("add", node, (a,), shape, arrays={"value": value})


def _lower(context: Context, node: Node) -> None:
    from intvit.kernels.quantize import quantize_activation

    first = context.value(node.inputs[0])
    if is_mask(node):
        shape = context.graph.tensors[node.output].shape
        context.masks[node.output] = np.ascontiguousarray(np.broadcast_to(node.arrays["value"] < 0, shape))
        context.values[node.output] = first.name
        return
    bits = context.widths[node.output]
    scale = context.range_scale(node.output, bits)
    if len(node.inputs) == 2:
        second = context.value(node.inputs[1])
        context.requantize(node.output, first, bits, scale, second, second.scale)
    else:
        value = node.arrays["value"].astype(np.float64)
        low, high = context.calibration.ranges.get(f"{node.name}.value", (float(value.min()), float(value.max())))
        constant, constant_scale = quantize_activation(value, bits=bits, min_val=low, max_val=high)[:2]
        context.requantize(node.output, first, bits, scale, constant, constant_scale)
    context.values[node.output] = node.output


ADD = Operator(
    "add", reads={"Add": _read}, lower=_lower, self_quantizing=True, rounded_output=True, still=is_mask
)  # fmt: skip
