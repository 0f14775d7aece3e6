"""What an integer Graph must hold: run after every construction, and on every file that is read.

Names, shapes, types, and every constant in the range for which `lower` proves that kernel and spec agree. Bounds are
proven anew, from the actual integers: a tensor's declared bound must be at least the proven one, and its type hold it.
What holds of one kind of operator stands with it, in `operators`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.ir import MOST_AXES, MOST_ELEMENTS, Graph, IntGraph, Node, Tensor

MOST_FACTOR = 8


def check(graph: IntGraph) -> None:
    """Raise IntvitError naming the first tensor or node that is not well formed."""
    if len(graph.inputs) != 1 or not set(graph.inputs) <= set(graph.tensors):
        raise IntvitError(f"graph: inputs must be one of its tensors, not {list(graph.inputs)!r:.80}")
    if graph.tensors[graph.inputs[0]].bound is not None:
        raise IntvitError(f"{graph.inputs[0]}: bound of the input must be left to its type")
    check_part(graph)


def check_part(graph: IntGraph) -> None:
    """As `check`, for a part of a graph: several inputs, of which bounds may be known."""
    if not graph.inputs or not set(graph.inputs) <= set(graph.tensors):
        raise IntvitError(f"graph: inputs must be of its tensors, not {list(graph.inputs)!r:.80}")
    for tensor in graph.tensors.values():
        _check_tensor(tensor)
    seen, names = set(graph.inputs), set[str]()
    for node in graph.nodes:
        if node.name in names:
            raise IntvitError(f"{node.name}: name must be of one node only")
        names.add(node.name)
        for name in node.inputs:
            if name not in seen:
                raise IntvitError(f"{node.name}: input {name!r} must be computed before it is used")
        if node.output in seen:
            raise IntvitError(f"{node.name}: output {node.output!r} must not be computed twice")
        if node.output not in graph.tensors:
            raise IntvitError(f"{node.name}: output {node.output!r} must be a tensor of the graph")
        seen.add(node.output)
        _check_node(node, [graph.tensors[name] for name in node.inputs], graph.tensors[node.output])
    for name in (*graph.inputs, *graph.outputs, *graph.tensors):
        if name not in seen or name not in graph.tensors:
            raise IntvitError(f"graph: tensor {name!r} must be computed")
    if not graph.outputs:
        raise IntvitError("graph: outputs must be at least one")


def check_operator(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    """One operator by itself: raise IntvitError if it is not well formed."""
    tensors = {tensor.name: tensor for tensor in (*inputs, output)}
    check_part(Graph(tuple(dict.fromkeys(tensor.name for tensor in inputs)), (output.name,), (node,), tensors))


def _check_node(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    kind = operators.get(node.op)
    if kind is None or kind.check is None:
        raise IntvitError(f"{node.name}: must be an integer operator, not {node.op!r}")
    for key, array in node.arrays.items():
        if array.dtype.kind not in "iub" or array.size == 0:
            raise IntvitError(f"{node.name}: {key} must hold integers, not {array.dtype} {list(array.shape)}")
    for i, tensor in enumerate(inputs):
        wanted = "log2" if i < kind.log2_inputs else "linear"
        if tensor.encoding != wanted and kind.log2_inputs >= 0:
            raise IntvitError(f"{node.name}: input {tensor.name} must be of encoding {wanted}, not {tensor.encoding}")
        if (tensor.zero_point and "zero_point" not in kind.takes) or (
            tensor.factor is not None and "factor" not in kind.takes
        ):
            raise IntvitError(f"{node.name}: input {tensor.name} must have no zero point and no factor for {node.op}")
    kind.check(node, inputs, output)


def _check_tensor(tensor: Tensor) -> None:
    name, dtype, scale = tensor.name, tensor.dtype, tensor.scale
    if not dtype.signed:
        raise IntvitError(f"{name}: type must be signed, not {dtype}")
    if min(tensor.shape, default=1) < 1 or math.prod(tensor.shape) > MOST_ELEMENTS or len(tensor.shape) > MOST_AXES:
        raise IntvitError(f"{name}: shape must be of 1..{MOST_ELEMENTS} elements, not {tensor.shape}")
    if scale.ndim and scale.shape != tensor.shape[-1:]:
        raise IntvitError(f"{name}: scale must be one or {tensor.shape[-1:]}, not {scale.shape}")
    if not np.isfinite(scale).all() or not np.all(scale != 0):
        raise IntvitError(f"{name}: scale must be finite and not 0")
    if tensor.encoding not in ("linear", "log2"):
        raise IntvitError(f"{name}: encoding must be linear or log2, not {tensor.encoding!r}")
    if tensor.bound is not None and not 0 <= tensor.bound <= dtype.max:
        raise IntvitError(f"{name}: bound must lie in 0..{dtype.max} as {dtype} does, not {tensor.bound}")
    if not dtype.min <= tensor.zero_point <= dtype.max or (tensor.zero_point and tensor.encoding != "linear"):
        raise IntvitError(f"{name}: zero_point must be a linear {dtype}, not {tensor.zero_point}")
    factor = tensor.factor
    if factor is not None and (
        tensor.encoding != "linear"
        or (len(factor),) != tensor.shape[-1:]
        or not all(0 <= f <= MOST_FACTOR for f in factor)
    ):
        raise IntvitError(f"{name}: factor must be one exponent of 0..{MOST_FACTOR} per channel, not {factor!r:.80}")
