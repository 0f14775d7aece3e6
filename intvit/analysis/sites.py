"""The sites of an integer graph, in execution order: what stands where, in which integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from intvit.graph.ir import LAYOUT_OPS, IntGraph, Node, Tensor
from intvit.graph.operators.accumulators import NUMERICS
from intvit.vectors.export import select_nodes
from intvit.vectors.part import parameters


def sites(graph: IntGraph, patterns: Sequence[str] = ("*",), *, layout: bool = False) -> list[dict[str, Any]]:
    """JSON values of every site that a pattern names, and with `layout` of the moves between the first and the last.

    IntvitError for a pattern that names none.
    """
    chosen = {node.name for node in select_nodes(graph, patterns)}
    at = [i for i, node in enumerate(graph.nodes) if node.name in chosen]
    between = graph.nodes[: at[-1] + 1] if at[0] == _first(graph) else graph.nodes[at[0] : at[-1] + 1]
    moves = {node.name for node in between if node.op in LAYOUT_OPS} if layout else set()
    return [_site(graph, node) for node in graph.nodes if node.name in chosen | moves]


def _first(graph: IntGraph) -> int:
    return next(i for i, node in enumerate(graph.nodes) if node.op not in LAYOUT_OPS)


def _site(graph: IntGraph, node: Node) -> dict[str, Any]:
    constants = {key: list(array.shape) for key, array in parameters(node).items()}
    numbers = [array.size for array in parameters(node).values()]
    return {
        "site": node.name,
        "operator": node.op,
        "method": node.attrs.get("method"),
        "version": node.attrs.get("version"),
        "inputs": [_tensor(graph.tensors[name]) for name in node.inputs],
        "output": _tensor(graph.tensors[node.output]),
        "constants": constants,
        "numbers": int(sum(numbers)),
        "numerics": dict(node.attrs.get(NUMERICS, {})),
        "layout": node.op in LAYOUT_OPS,
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "tensor": tensor.name,
        "type": str(tensor.dtype),
        "shape": list(tensor.shape),
        "bound": tensor.bound,
        "encoding": tensor.encoding,
        "zero_point": tensor.zero_point,
    }


def rows(found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A line of a table for each."""
    for each in found:
        operator = ".".join(filter(None, (each["operator"], each["method"])))
        inputs = ", ".join(map(_text, each["inputs"]))
        yield [each["site"], operator, inputs, _text(each["output"]), f"{each['numbers']:,}" if each["numbers"] else ""]


def _text(tensor: dict[str, Any]) -> str:
    shape = "x".join(map(str, tensor["shape"])) or "scalar"
    return f"{tensor['type']} {shape}" + (" log2" if tensor["encoding"] == "log2" else "")
