"""An integer Graph in one HDF5 file: structure as JSON, constants as datasets, and the content hash of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from intvit import hdf5
from intvit.errors import IntvitError
from intvit.graph.check import check
from intvit.graph.ir import Array, Graph, describe, rebuild

KIND, VERSION = "intvit.graph", 1


def save(graph: Graph, path: str | Path) -> None:
    """Write `graph`; the file appears whole or not at all."""
    check(graph)
    with hdf5.create(path, KIND, VERSION) as file:
        file.attrs["content_hash"] = graph.content_hash
        file.create_dataset("graph.json", data=json.dumps(describe(graph), sort_keys=True))
        for node in graph.nodes:
            for key, array in sorted(node.arrays.items()):
                compressed = {"compression": "gzip", "shuffle": True} if array.size > 1024 else {}
                file.create_dataset(f"arrays/{node.name}/{key}", data=array, **compressed)


def load(path: str | Path) -> Graph:
    """Read and verify a graph: hash, names, shapes. IntvitError if one bit differs from what was saved."""
    with hdf5.read(path, KIND, VERSION) as file:
        try:
            text = json.loads(file["graph.json"][()])
        except ValueError as error:
            raise IntvitError(f"{path}: is damaged: {error}") from None
        arrays: dict[str, dict[str, Array]] = {
            node["name"]: {key: np.asarray(file[f"arrays/{node['name']}/{key}"]) for key in node["arrays"]}
            for node in text["nodes"]
        }
        expected = str(file.attrs["content_hash"])
    graph = rebuild(text, arrays)
    if graph.content_hash != expected:
        raise IntvitError(f"{path}: content hash must be {expected[:16]}, not {graph.content_hash[:16]}")
    check(graph)
    return graph
