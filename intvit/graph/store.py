"""An integer Graph in one HDF5 file: structure as JSON, constants as datasets, and the content hash of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from intvit import hdf5
from intvit.errors import IntvitError
from intvit.files import safe_key
from intvit.graph.check import check
from intvit.graph.ir import Array, Graph, describe, rebuild

KIND, VERSION = "intvit.graph", 2
"""Version 1 had names as they are for keys, and JSON as text of variable length."""


def save(graph: Graph, path: str | Path) -> None:
    """Write `graph`; the file appears whole or not at all."""
    check(graph)
    with hdf5.create(path, KIND, VERSION) as (file, _):
        file.attrs["content_hash"] = graph.content_hash
        file.create_dataset("graph.json", data=np.bytes_(json.dumps(describe(graph), sort_keys=True)))
        for node in graph.nodes:
            for key, array in sorted(node.arrays.items()):
                compressed = {"compression": "gzip", "shuffle": True} if array.size > 1024 else {}
                file.create_dataset(_key(node.name, key, VERSION), data=array, **compressed)


def load(path: str | Path) -> Graph:
    """Read and verify a graph: hash, names, shapes. IntvitError if one bit differs from what was saved."""
    with hdf5.read(path, KIND, VERSION, 1) as file:
        version = hdf5.attribute(file, "version", int)
        written = hdf5.text(file, "graph.json", free=version == 1)
        expected = hdf5.attribute(file, "content_hash", str)
        try:
            text = json.loads(written)
        except ValueError as error:
            raise IntvitError(f"{path}: is damaged: {error}") from None
        arrays: dict[str, dict[str, Array]] = {
            node["name"]: {key: hdf5.array(file, _key(node["name"], key, version)) for key in node["arrays"]}
            for node in text["nodes"]
        }
    graph = rebuild(text, arrays)
    if graph.content_hash != expected:
        raise IntvitError(f"{path}: content hash must be {expected[:16]}, not {graph.content_hash[:16]}")
    check(graph)
    return graph


def _key(site: str, key: str, version: int) -> str:
    return f"arrays/{site}/{key}" if version == 1 else f"arrays/{safe_key(site)}/{safe_key(key)}"
