"""Export golden vectors: one folder per site and image, made from a stored integer graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.files import whole_folder
from intvit.graph.check import check
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node, Tensor
from intvit.spec import SPEC_VERSION
from intvit.vectors.bundle import array_hash, check_values, declared_type
from intvit.vectors.manifest import (
    ARRAYS,
    INDEX,
    MANIFEST,
    Entry,
    Index,
    Manifest,
    Signal,
    build,
    case_folder,
    header,
    layout,
    sha256,
    written,
)
from intvit.vectors.memh import format_memh
from intvit.vectors.npz import format_npz


def select_nodes(graph: IntGraph, patterns: Sequence[str]) -> list[Node]:
    """Nodes whose site, operator or `operator.method` matches a shell pattern; every pattern must match one.

    Layout moves carry no arithmetic and are never exported.
    """
    nodes = [n for n in graph.nodes if n.op not in LAYOUT_OPS]
    found: dict[str, Node] = {}
    for pattern in patterns:
        hits = [n for n in nodes if any(fnmatch.fnmatchcase(name, pattern) for name in _names(n))]
        if not hits:
            raise IntvitError(f"{pattern}: must match a site or operator of the graph, and matches none")
        found |= {n.name: n for n in hits}
    return [n for n in nodes if n.name in found]


def _names(node: Node) -> tuple[str, ...]:
    method = node.attrs.get("method")
    return (node.name, node.op) if method is None else (node.name, node.op, f"{node.op}.{method}")


def export(
    graph: IntGraph,
    images: Array,
    folder: str | Path,
    *,
    sites: Sequence[str] = ("*",),
    first_image: int = 0,
    hex_files: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Write a case per node and image below `folder`, which must not exist; returns the index of what is there."""
    origin = _origin(graph)
    nodes = select_nodes(graph, sites)
    wanted = sorted({name for node in nodes for name in (*node.inputs, node.output)})
    q_images = quantize_images(graph, images)
    entries = [
        Entry(folder=case_folder(node.name, image), site=node.name, image=image, sha256="0" * 64)
        for image in range(first_image, first_image + len(q_images))
        for node in nodes
    ]
    _index(origin, entries)
    with whole_folder(folder) as partial:
        engine = Engine(graph)
        for i in range(len(q_images)):
            tensors = engine.evaluate(q_images[i : i + 1], wanted)
            for at, node in enumerate(nodes, i * len(nodes)):
                name, image = entries[at].folder, entries[at].image
                text = write_case(graph, node, tensors, {**origin, "image": image}, partial / name, hex_files)
                entries[at] = entries[at].model_copy(update={"sha256": sha256(text)})
                if progress:
                    progress(at + 1, len(entries))
        index = _index(origin, entries)
        (partial / INDEX).write_bytes(written(index, "graph"))
    return index


def _index(origin: Mapping[str, Any], entries: Sequence[Entry]) -> Index:
    """IntvitError if there is none of these cases."""
    index = build(Index, {**origin, "cases": entries}, "graph")
    written(index, "graph")
    return index.model_copy(update={"digest": index.content_digest})


def _origin(graph: IntGraph) -> dict[str, Any]:
    """What the vectors are made from; IntvitError for a graph that could not be stored."""
    version = graph.metadata.get("spec_version")
    if version != SPEC_VERSION:
        raise IntvitError(f"graph: spec version must be {SPEC_VERSION}, not {version!r}: lower the model again")
    check(graph)
    recipe = graph.metadata.get("recipe", {})
    return {"graph_hash": graph.content_hash, "spec_version": version, "recipe": recipe}


def write_case(
    graph: IntGraph, node: Node, tensors: Mapping[str, Array], origin: Mapping[str, Any], folder: Path, hex_files: bool
) -> bytes:
    """One operator on one image: `case.npz`, if asked for a hex file per array, and `case.json`, which is returned.

    IntvitError, before a file is written, for values that a check would refuse.
    """
    inputs = [graph.tensors[name] for name in node.inputs]
    output = graph.tensors[node.output]
    arrays: dict[str, Array] = {}
    signals: list[Signal] = []

    def add(key: str, role: str, array: Array, tensor: Tensor | None) -> None:
        where = f"{node.name}: {key}"
        if array.dtype.kind not in "iub" or array.dtype == np.uint64:
            raise IntvitError(f"{where}: must be integers that fit s64, not {array.dtype}")
        facts = {"dtype": str(declared_type(array))} if tensor is None else _tensor_facts(tensor)
        facts |= {"key": key, "role": role, "shape": list(array.shape), "sha256": array_hash(array)}
        signal = build(Signal, facts, where)
        check_values(where, signal, array)
        signals.append(signal)
        arrays[signal.name] = array

    for i, tensor in enumerate(inputs):
        add(f"input{i}", "stimulus", tensors[tensor.name][0], tensor)
    for key, array in sorted(node.arrays.items()):
        add(key, "parameter", array, None)
    add("output", "expected", tensors[output.name][0], output)
    files = {ARRAYS: format_npz(arrays, layout(signals))}
    if hex_files:
        files |= {s.hex_name: format_memh(arrays[s.name], s.type, header(node.name, s)) for s in signals}
    facts = {
        **origin,
        "site": node.name,
        "op": node.op,
        "method": node.attrs.get("method"),
        "method_version": node.attrs.get("version"),
        "attrs": dict(node.attrs),
        "signals": signals,
        "files": {name: sha256(data) for name, data in files.items()},
    }
    text = written(build(Manifest, facts, node.name), node.name)
    folder.mkdir(parents=True)
    for name, data in {**files, MANIFEST: text}.items():
        (folder / name).write_bytes(data)
    return text


def _tensor_facts(tensor: Tensor) -> dict[str, Any]:
    return {
        "tensor": tensor.name,
        "dtype": str(tensor.dtype),
        "scale": tensor.scale.tolist(),
        "encoding": tensor.encoding,
        "bound": tensor.bound,
        "source": tensor.source,
        "zero_point": tensor.zero_point or None,
        "factor": None if tensor.factor is None else list(tensor.factor),
    }
