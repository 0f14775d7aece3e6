"""Float values of any tensor of a float graph, from a recording of those that operators read and write."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, Array, FloatGraph


def float_values(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array:
    """The float values (B, *shape) of a tensor: `read` from a recording, or what layout moves make of such."""
    values = _moved(graph, name, known, read)
    if values is None:
        values = _moved_back(graph, name, known, read)
    if values is None:
        raise IntvitError(f"{name}: no recorded activation becomes this tensor by layout moves alone")
    expected = graph.tensors[name].shape
    if values.shape[1:] != expected:
        raise IntvitError(f"{name}: recorded activation must have the shape {expected}, not {values.shape[1:]}")
    return values


def _moved(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array | None:
    """The tensor as recorded, or made by the moves that lead to it; None if something else made it."""
    if name in known:
        return read(name)
    node = graph.by_output.get(name)
    if node is None or node.op not in LAYOUT_OPS:
        return None
    found = [_moved(graph, source, known, read) for source in node.inputs]
    inputs = [values for values in found if values is not None]
    return layout.apply(node, inputs) if len(inputs) == len(found) else None


def _moved_back(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array | None:
    """The tensor from a recorded one that a reshape or a transpose made of it, by the inverse move."""
    for node in graph.consumers[name]:
        if node.op not in ("reshape", "transpose"):
            continue
        values = read(node.output) if node.output in known else _moved_back(graph, node.output, known, read)
        if values is not None and node.op == "reshape":
            return values.reshape(len(values), *graph.tensors[name].shape)
        if values is not None:
            return values.transpose(np.argsort([0, *(axis + 1 for axis in node.attrs["perm"])]))
    return None
