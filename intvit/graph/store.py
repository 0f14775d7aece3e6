"""An integer Graph in one HDF5 file: structure as JSON, constants as datasets, and the content hash of both."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from intvit.errors import IntvitError, reading
from intvit.files import hdf5, safe_key
from intvit.graph.check import check
from intvit.graph.ir import Array, IntGraph
from intvit.graph.text import GraphText, format_graph, rebuild
from intvit.spec import SPEC_VERSION

KIND, VERSION = "intvit.graph", 4
"""Version 1 had names as they are for keys; 2 did not say what a tensor stands for; 3 had no
zero points and factors."""


def save(graph: IntGraph, path: str | Path) -> None:
    """Write `graph`; the file appears whole or not at all."""
    check(graph)
    with hdf5.create(path, KIND, VERSION) as (file, _):
        file.attrs["content_hash"] = graph.content_hash
        text = format_graph(graph)
        file.attrs["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        file.create_dataset("graph.json", data=np.bytes_(text))
        for node in graph.nodes:
            for key, array in sorted(node.arrays.items()):
                compressed = {"compression": "gzip", "shuffle": True} if array.size > 1024 else {}
                file.create_dataset(_key(node.name, key, VERSION), data=array, **compressed)


def load(path: str | Path) -> IntGraph:
    """Read and verify a graph: hash, names, shapes, every constant's range. IntvitError names what does not hold."""
    with hdf5.read(path, KIND, VERSION, 3, 2, 1) as file:
        version = hdf5.attribute(file, "version", int)
        expected = hdf5.attribute(file, "content_hash", str)
        held = hdf5.text(file, "graph.json")
        if version > 2 and hdf5.attribute(file, "text_sha256", str) != hashlib.sha256(held.encode()).hexdigest():
            raise IntvitError(f"{path}: graph.json must hash to its text_sha256; the file was changed")
        with reading(path, "a graph"):
            text = GraphText.model_validate_json(held)
        arrays: dict[str, dict[str, Array]] = {
            node.name: {key: hdf5.array(file, _key(node.name, key, version), "biu") for key in node.arrays}
            for node in text.nodes
        }
    try:
        graph = rebuild(text, arrays)
        if graph.content_hash != expected:
            raise IntvitError(f"content hash must be {expected[:16]!r}, not {graph.content_hash[:16]}")
        if graph.metadata.get("spec_version") != SPEC_VERSION:
            found = graph.metadata.get("spec_version")
            raise IntvitError(f"spec version must be {SPEC_VERSION}, not {found!r:.40}: the graph is stale")
        check(graph)
    except IntvitError as error:
        raise IntvitError(f"{path}: {error}") from None
    return graph


def _key(site: str, key: str, version: int) -> str:
    return f"arrays/{site}/{key}" if version == 1 else f"arrays/{safe_key(site)}/{safe_key(key)}"
