"""Layout operators: shapes in, shapes out, and the same move on a batched array. No arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node

Shape = tuple[int, ...]


def output_shape(node: Node, shapes: Sequence[Shape]) -> Shape:
    """Shape of a layout node's output (no batch axis) from the shapes of its inputs."""
    return apply(node, [np.broadcast_to(np.int8(0), (1, *shape)) for shape in shapes]).shape[1:]


def apply(node: Node, inputs: Sequence[Array]) -> Array:
    """Move the elements of batched arrays (B, ...) as `node` says."""
    return MOVES[node.op](inputs, node.attrs, node.arrays)


def _reshape(inputs: Sequence[Array], attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    return inputs[0].reshape(len(inputs[0]), *attrs["shape"])


def _transpose(inputs: Sequence[Array], attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    return inputs[0].transpose(0, *(axis + 1 for axis in attrs["perm"]))


def _take(inputs: Sequence[Array], attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    """Pick one index of an axis and drop the axis."""
    return inputs[0][(slice(None),) * (attrs["axis"] + 1) + (attrs["index"],)]


def _slice(inputs: Sequence[Array], attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    pick = slice(attrs["start"], attrs["stop"], attrs["step"])
    return inputs[0][(slice(None),) * (attrs["axis"] + 1) + (pick,)]


def _concat(inputs: Sequence[Array], attrs: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    """Join inputs and constants along an axis; `order` names them: an input's position, or a constant's key."""
    batch = len(inputs[0])
    parts = []
    for item in attrs["order"]:
        part = inputs[item] if isinstance(item, int) else arrays[item]
        parts.append(part if isinstance(item, int) else np.broadcast_to(part, (batch, *part.shape)))
    kind = np.result_type(*parts)
    return np.concatenate([p.astype(kind, copy=False) for p in parts], axis=attrs["axis"] + 1)


MOVES = {"reshape": _reshape, "transpose": _transpose, "take": _take, "slice": _slice, "concat": _concat}


def keeps_channels(node: Node, before: Shape, after: Shape) -> bool:
    """True if the last axis of the input is, element for element, the last axis of the output."""
    if node.op == "reshape":
        return before[-1] == after[-1]
    if node.op == "transpose":
        return bool(node.attrs["perm"][-1] == len(before) - 1)
    return bool(node.attrs["axis"] != len(before) - 1)


def check_reshape(name: str, before: Shape, after: Shape) -> None:
    if math.prod(before) != math.prod(after):
        raise IntvitError(f"{name}: reshape must keep {math.prod(before)} elements, not {before} -> {after}")
