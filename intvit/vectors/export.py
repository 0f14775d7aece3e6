"""Export golden vectors: one folder per site and image, made from a stored integer graph."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.graph.ir import LAYOUT_OPS, Array, Graph, Node, Tensor, tensor_hash
from intvit.graph.ranges import narrowest
from intvit.vectors.manifest import Manifest, Signal, write_manifest
from intvit.vectors.memh import format_memh


def select_nodes(graph: Graph, patterns: Sequence[str]) -> list[Node]:
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
    graph: Graph,
    images: Array,
    folder: str | Path,
    *,
    sites: Sequence[str] = ("*",),
    first_image: int = 0,
    hex_files: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a case per node and image below `folder`, which must not exist; returns the case folders."""
    folder = Path(folder)
    if folder.exists():
        raise IntvitError(f"{folder}: must not exist yet; golden vectors are never mixed with older ones")
    nodes = select_nodes(graph, sites)
    wanted = sorted({name for node in nodes for name in (*node.inputs, node.output)})
    q_images = quantize_images(graph, images)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        cases = []
        engine = Engine(graph)
        for i in range(len(q_images)):
            tensors = engine.evaluate(q_images[i : i + 1], wanted)
            for node in nodes:
                case = partial / f"{node.name}" / f"image{first_image + i}"
                case.mkdir(parents=True)
                write_case(graph, node, tensors, first_image + i, case, hex_files)
                cases.append(case)
                if progress:
                    progress(len(cases), len(nodes) * len(q_images))
        index = {"graph_hash": graph.content_hash, "cases": sorted(str(c.relative_to(partial)) for c in cases)}
        (partial / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [folder / case.relative_to(partial) for case in cases]


def write_case(
    graph: Graph, node: Node, tensors: dict[str, Array], image: int, folder: Path, hex_files: bool = True
) -> None:
    """One operator on one image: `case.json`, `case.npz` and, if asked for, a hex file per array."""
    arrays: dict[str, Array] = {}
    signals: list[Signal] = []

    def add(key: str, role: Any, array: Array, tensor: Tensor | None) -> None:
        arrays[key] = array
        dtype = tensor.dtype if tensor else _array_type(array)
        assert dtype is not None
        signals.append(
            Signal(
                key=key,
                role=role,
                tensor=tensor.name if tensor else None,
                shape=list(array.shape),
                dtype=str(dtype),
                scale=None if tensor is None or tensor.scale is None else tensor.scale.tolist(),
                encoding=tensor.encoding if tensor else "linear",  # type: ignore[arg-type]
                bound=tensor.bound if tensor else None,
                sha256=tensor_hash(array),
            )
        )
        if hex_files:
            header = f"{node.name} {key} {dtype} shape {list(array.shape)}, row-major"
            (folder / f"{key}.hex").write_text(format_memh(array, dtype, header))

    for i, name in enumerate(node.inputs):
        add(f"input{i}", "stimulus", tensors[name][0], graph.tensors[name])
    for key, array in sorted(node.arrays.items()):
        add(key, "parameter", array, None)
    add("output", "expected", tensors[node.output][0], graph.tensors[node.output])
    np.savez_compressed(folder / "case.npz", **arrays)  # type: ignore[arg-type]
    write_manifest(
        Manifest(
            site=node.name,
            op=node.op,
            method=node.attrs.get("method"),
            method_version=node.attrs.get("version"),
            attrs=dict(node.attrs),
            image=image,
            graph_hash=graph.content_hash,
            spec_version=int(graph.metadata.get("spec_version", 0)),
            recipe=dict(graph.metadata.get("recipe", {})),
            signals=signals,
        ),
        folder,
    )


def _array_type(array: Array) -> Any:
    return narrowest(int(np.abs(array.astype(np.int64)).max()) if array.size else 0, 2)
