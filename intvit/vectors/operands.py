"""A case as a graph of one node: what attributes, arrays and shapes an operator takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.evaluate import node_method
from intvit.graph.check import INTEGER_OPS, check
from intvit.graph.ir import Graph, Node, Tensor

METHOD_OPS = frozenset({"softmax", "gelu", "layernorm"})
N_INPUTS = {"matmul": (2,), "log2_matmul": (2,), "requantize": (1, 2)}
ATTRS: Mapping[str, Mapping[str, type]] = {
    "mean": {"axis": int, "keepdims": bool},
    "requantize": {"bits": int},
    **{op: {"method": str, "version": int, "params": dict} for op in METHOD_OPS},
}


def check_operands(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    """Raise IntvitError unless `node` has what its operator takes, and no more."""
    if node.op not in INTEGER_OPS:
        raise IntvitError(f"operator must be one of {', '.join(sorted(INTEGER_OPS))}, not {node.op!r}")
    if len(inputs) not in N_INPUTS.get(node.op, (1,)):
        raise IntvitError(f"{node.op} must have {N_INPUTS.get(node.op, (1,))[0]} inputs, not {len(inputs)}")
    _check_attrs("attrs", node.attrs, ATTRS.get(node.op, {}))
    channels = inputs[0].shape[-1:]
    if node.op in METHOD_OPS:
        _check_method(node, inputs[0].shape)
    elif node.op == "linear":
        rows = node.arrays["weight"].shape[:1] if "weight" in node.arrays else ()
        _check_arrays(node, {"weight": [(*rows, *channels)]}, {"bias": [rows]})
    elif node.op == "requantize":
        _check_requantize(node, inputs)
    else:
        _check_arrays(node, {})
    _check_encodings(node, inputs, output)
    tensors = {tensor.name: tensor for tensor in (*inputs, output)}
    check(Graph(node.inputs, (node.output,), (node,), tensors))


def _check_attrs(where: str, actual: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    if set(actual) != set(expected):
        raise IntvitError(f"{where} must be {sorted(expected)}, not {sorted(actual)}")
    for key, kind in expected.items():
        if type(actual[key]) is not kind:
            raise IntvitError(f"{where}.{key} must be of type {kind.__name__}, not {type(actual[key]).__name__}")


def _check_arrays(node: Node, needed: Mapping[str, list[Any]], free: Mapping[str, list[Any]] | None = None) -> None:
    known = {**needed, **(free or {})}
    if not set(needed) <= set(node.arrays) <= set(known):
        raise IntvitError(f"{node.op} must have the arrays {sorted(known)}, not {sorted(node.arrays)}")
    for key, array in node.arrays.items():
        if array.shape not in known[key]:
            raise IntvitError(f"{key} must have a shape of {known[key]}, not {array.shape}")


def _check_method(node: Node, shape: tuple[int, ...]) -> None:
    """Parameters are the fields of the method's own class: numbers in `attrs`, vectors over the channels in arrays."""
    fields = {field.name for field in dataclasses.fields(node_method(node).params)}
    params = node.attrs["params"]
    _check_attrs("attrs.params", params, dict.fromkeys(fields - set(node.arrays), int))
    lengths = [shape[-1:]] if node.op == "layernorm" else [(1,), shape[-1:]]
    masks = {"mask": [shape]} if node.op == "softmax" else {}
    _check_arrays(node, dict.fromkeys(fields - set(params), lengths), masks)


def _check_requantize(node: Node, inputs: Sequence[Tensor]) -> None:
    shape = inputs[0].shape
    lengths: list[Any] = [(1,), shape[-1:]]
    needed = {"m": lengths, "e": lengths}
    if "residual" in node.arrays or len(inputs) == 2:
        needed |= {"residual_m": lengths, "residual_e": lengths}
    residual: Mapping[str, list[Any]] = {}
    if len(inputs) == 1 and "residual" in node.arrays:
        residual = {"residual": [node.arrays["residual"].shape]}
    other = inputs[1].shape if len(inputs) == 2 else residual["residual"][0] if residual else ()
    if np.broadcast_shapes(shape, other) != shape or (len(inputs) == 2 and len(other) != len(shape)):
        raise IntvitError(f"residual must have a shape that repeats to {shape}, not {other}")
    _check_arrays(node, needed, residual)
    for m, e in (("m", "e"), ("residual_m", "residual_e")):
        if m in node.arrays and node.arrays[m].shape != node.arrays[e].shape:
            raise IntvitError(f"{m} and {e} must be equally many")


def _check_encodings(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    expected = ["linear"] * len(inputs) + ["linear"]
    if node.op == "log2_matmul":
        expected[0] = "log2"
    if node.op in METHOD_OPS:
        expected[-1] = node_method(node).out_encoding
    actual = [tensor.encoding for tensor in (*inputs, output)]
    if actual != expected:
        raise IntvitError(f"encodings of {node.op} must be {expected}, not {actual}")
