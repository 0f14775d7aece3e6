"""Names, shapes, types: run after every construction of an integer Graph."""

from __future__ import annotations

from intvit.errors import IntvitError
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, Graph, Node

INTEGER_OPS = frozenset({"gelu", "layernorm", "linear", "log2_matmul", "matmul", "mean", "requantize", "softmax"})
_SAME_SHAPE = frozenset({"gelu", "layernorm", "requantize", "softmax"})


def check(graph: Graph) -> None:
    """Raise IntvitError naming the first node that is not well formed."""
    seen = set(graph.inputs)
    for node in graph.nodes:
        for name in node.inputs:
            if name not in seen:
                raise IntvitError(f"{node.name}: input {name!r} must be computed before it is used")
        if node.output in seen:
            raise IntvitError(f"{node.name}: output {node.output!r} must not be computed twice")
        seen.add(node.output)
        if node.op not in INTEGER_OPS and node.op not in LAYOUT_OPS:
            raise IntvitError(f"{node.name}: must be an integer operator, not {node.op!r}")
        expected, actual = _shape(graph, node), graph.tensors[node.output].shape
        if expected is not None and expected != actual:
            raise IntvitError(f"{node.name}: output shape must be {expected}, not {actual}")
    for name in graph.outputs:
        if name not in seen:
            raise IntvitError(f"graph: output {name!r} must be computed")
    for tensor in graph.tensors.values():
        if tensor.dtype is None or tensor.scale is None:
            raise IntvitError(f"{tensor.name}: must have an integer type and a scale")
        if tensor.scale.ndim and tensor.scale.shape != tensor.shape[-1:]:
            raise IntvitError(f"{tensor.name}: scale must be one or {tensor.shape[-1]}, not {tensor.scale.shape}")


def _shape(graph: Graph, node: Node) -> tuple[int, ...] | None:
    shapes = [graph.tensors[name].shape for name in node.inputs]
    if node.op in LAYOUT_OPS:
        return layout.output_shape(node, shapes)
    if node.op in _SAME_SHAPE:
        return shapes[0]
    if node.op == "linear":
        n_out, n_in = node.arrays["weight"].shape
        return (*shapes[0][:-1], n_out) if shapes[0][-1] == n_in else (n_in, n_out)
    if node.op in ("matmul", "log2_matmul"):
        return (*shapes[0][:-1], shapes[1][-1])
    return None
