"""A part of an integer graph: what a golden case computes. It is a graph itself, whose inputs are the stimuli."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from intvit.engine.evaluate import prepare_in
from intvit.errors import IntvitError, placed
from intvit.graph.ir import LAYOUT_OPS, Array, Graph, IntGraph, Node


def part_of(graph: IntGraph, sites: Collection[str]) -> IntGraph:
    """The named sites, and layout between them, as a graph: it reads what they read and do not make (constants are
    theirs), and its outputs are what somebody else reads, or nobody.

    IntvitError for an unknown site, and for a part that would have to wait for itself: one whose output is read by a
    site outside on whose output the part depends.
    """
    wanted = {graph.node(site).name for site in sites}
    wanted |= set(_between(graph, wanted))
    nodes = tuple(node for node in graph.nodes if node.name in wanted)
    if not nodes:
        raise IntvitError("part: must have a site at least, and has none")
    made = {node.output for node in nodes}
    inputs = tuple(dict.fromkeys(name for node in nodes for name in node.inputs if name not in made))
    outside = {name for node in graph.nodes if node.name not in wanted for name in node.inputs} | set(graph.outputs)
    read = {name for node in nodes for name in node.inputs}
    outputs = tuple(node.output for node in nodes if node.output in outside or node.output not in read)
    _never_waits(graph, wanted, made, inputs)
    tensors = {name: graph.tensors[name] for name in graph.tensors if name in made or name in inputs}
    return Graph(inputs, outputs, nodes, tensors, graph.metadata)


def between(graph: IntGraph, start: Sequence[str], end: Sequence[str]) -> IntGraph:
    """What computes the tensors `end` once the tensors `start` are known, and nothing else.

    IntvitError for an unknown tensor, and for one that is still missing: an input of the graph that is no start.
    """
    for name in (*start, *end):
        if name not in graph.tensors:
            raise IntvitError(f"{name}: no such tensor in this graph")
    needed, nodes = set(end), list[Node]()
    for node in reversed(graph.nodes):
        if node.output in needed and node.output not in start:
            needed.update(node.inputs)
            nodes.insert(0, node)
    made = {node.output for node in nodes}
    missing = [name for node in nodes for name in node.inputs if name not in made and name not in start]
    if missing:
        raise IntvitError(f"part: must start where all that it reads is known, and {missing[0]} is not among {start}")
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in needed or name in start}
    return Graph(tuple(start), tuple(end), tuple(nodes), tensors, graph.metadata)


def reaching(graph: IntGraph, start: str, end: str) -> list[str]:
    """The sites from `start` to `end`, both included, that `end` depends on; what else they read is known.

    IntvitError where `end` does not depend on `start`.
    """
    graph.node(start), graph.node(end)
    behind = {graph.node(start).output}
    for node in graph.nodes:
        if behind.intersection(node.inputs):
            behind.add(node.output)
    needed, sites = {graph.node(end).output}, list[str]()
    for node in reversed(graph.nodes):
        if node.output in needed and node.output in behind:
            sites.insert(0, node.name)
            needed.update(node.inputs)
    if start not in sites:
        raise IntvitError(f"{end}: must depend on {start}, and does not")
    return sites


def run(part: IntGraph, stimuli: Mapping[str, Array], wanted: Sequence[str] | None = None, backend: str = "kernel",
        ) -> dict[str, Array]:  # fmt: skip
    """Tensors of a part, each (B, *shape), from its inputs; by default its outputs. Nothing is fused.

    IntvitError for a missing stimulus and one that does not fit its tensor.
    """
    values = {name: fitting(part, name, stimuli) for name in part.inputs}
    for node in part.nodes:
        with placed(node.name):
            values[node.output] = prepare_in(part, node, backend)([values[name] for name in node.inputs])
    return {name: values[name] for name in (part.outputs if wanted is None else wanted)}


def fitting(part: IntGraph, name: str, stimuli: Mapping[str, Array]) -> Array:
    """The stimulus of one input, which must be integers of its shape, type and bound."""
    if name not in stimuli:
        raise IntvitError(f"{name}: must have a stimulus, and has none")
    array, tensor = np.asarray(stimuli[name]), part.tensors[name]
    if array.dtype.kind not in "iu" or array.shape[1:] != tensor.shape:
        raise IntvitError(f"{name}: stimulus must be integers (B, {tensor.shape}), not {array.dtype} {array.shape}")
    most = tensor.bound if tensor.bound is not None else 1 << 64
    low, high = max(tensor.dtype.min, -most), min(tensor.dtype.max, most)
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise IntvitError(f"{name}: stimulus must lie in {low}..{high}, not {int(array.min())}..{int(array.max())}")
    return array


def parameters(node: Node) -> dict[str, Array]:
    """Every integer constant of a site by its name in docs/quantization.md, sorted: int64, scalars of shape ().

    The numbers of a method, the `bits` of a word and the arrays alike: there is no second place for any.
    """
    scalars = dict(node.attrs.get("params", {}))
    if "bits" in node.attrs:
        scalars["bits"] = node.attrs["bits"]
    values: dict[str, Array] = {key: np.array(value, np.int64) for key, value in scalars.items()}
    values |= {key: np.asarray(array).astype(np.int64) for key, array in node.arrays.items()}
    return dict(sorted(values.items()))


def _between(graph: IntGraph, sites: Collection[str]) -> Iterator[str]:
    """Layout all of whose inputs the sites make and all of whose readers are among them, by way of more of the kind."""
    found: set[str] = set()
    grown = True
    while grown:
        grown = False
        for node in graph.nodes:
            if node.op not in LAYOUT_OPS or node.name in sites or node.name in found or node.output in graph.outputs:
                continue
            makers = [graph.by_output.get(name) for name in node.inputs]
            known = all(m is not None and (m.name in sites or m.name in found) for m in makers)
            if known and _reaches(graph, node, sites):
                found.add(node.name)
                grown = True
    yield from found


def _reaches(graph: IntGraph, node: Node, sites: Collection[str]) -> bool:
    """Whether one of the sites reads a layout, or layout behind it."""
    return any(
        reader.name in sites or (reader.op in LAYOUT_OPS and _reaches(graph, reader, sites))
        for reader in graph.consumers[node.output]
    )


def _never_waits(graph: IntGraph, wanted: Collection[str], made: Collection[str], inputs: Sequence[str]) -> None:
    late = set(made)
    for node in graph.nodes:
        if node.name not in wanted and late.intersection(node.inputs):
            late.add(node.output)
    for name in inputs:
        if name in late:
            raise IntvitError(f"must read nothing that depends on the part, and reads {name}")
