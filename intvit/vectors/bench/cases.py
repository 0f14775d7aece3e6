"""Golden cases as the bench takes them: what every case must have, one made from a graph, those of a bundle."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Graph, IntGraph, Node, Tensor
from intvit.vectors import part as parts
from intvit.vectors.bundle import read_case, read_index, read_manifest
from intvit.vectors.manifest import Signal


class Case(Protocol):
    """A part of a graph with stimuli and expected outputs: tensor -> (*shape), integers, for each image."""

    @property
    def name(self) -> str: ...
    @property
    def part(self) -> IntGraph: ...
    @property
    def images(self) -> tuple[int, ...]: ...
    def stimuli(self, image: int) -> Mapping[str, Array]: ...
    def expected(self, image: int) -> Mapping[str, Array]: ...


@dataclass(frozen=True, eq=False)
class Vectors:
    """A case in memory: tensor -> (images, *shape) of stimuli and of outputs."""

    name: str
    part: IntGraph
    images: tuple[int, ...]
    given: Mapping[str, Array]
    wanted: Mapping[str, Array]

    def stimuli(self, image: int) -> dict[str, Array]:
        return self._of(self.given, image)

    def expected(self, image: int) -> dict[str, Array]:
        return self._of(self.wanted, image)

    def _of(self, values: Mapping[str, Array], image: int) -> dict[str, Array]:
        at = self.images.index(image)
        return {name: array[at] for name, array in values.items()}


def computed(name: str, part: IntGraph, stimuli: Mapping[str, Array], backend: str = "spec") -> Vectors:
    """A case whose outputs the backend makes of `stimuli`, (images, *shape) each."""
    images = tuple(range(len(next(iter(stimuli.values())))))
    return Vectors(name, part, images, stimuli, parts.run(part, stimuli, backend=backend))


def first_rows(part: IntGraph, stimuli: Mapping[str, Array], rows: int) -> tuple[IntGraph, dict[str, Array]]:
    """A part of one node that works on rows (its last axis), and its stimuli, cut to the first `rows` rows.

    Constants that differ by row are cut with them.
    """
    (node,) = part.nodes

    def cut(array: Array, shape: tuple[int, ...]) -> Array:
        return np.ascontiguousarray(array.reshape(-1, shape[-1])[:rows])

    arrays = dict(node.arrays)
    shape = part.tensors[node.output].shape
    for key in {"residual", "mask"} & set(arrays):
        if arrays[key].size > shape[-1]:
            arrays[key] = cut(np.broadcast_to(arrays[key], shape), shape)
    given = {
        name: np.stack([cut(image, part.tensors[name].shape) for image in array]) for name, array in stimuli.items()
    }
    (kept,) = {array.shape[1] for array in given.values()}
    tensors = {name: replace(tensor, shape=(kept, tensor.shape[-1])) for name, tensor in part.tensors.items()}
    return Graph(part.inputs, part.outputs, (replace(node, arrays=arrays),), tensors, part.metadata), given


def read_cases(folder: str | Path, patterns: Sequence[str] = ()) -> list[Case]:
    """The cases of a folder of golden vectors whose name matches a pattern, all without one, in its order.

    IntvitError for a folder that is no such folder, whose bytes changed, and for a pattern that matches none.
    """
    root = Path(folder)
    index = read_index(root)
    sites: dict[str, list[Any]] = {}
    for entry in index.cases:
        sites.setdefault(entry.site, []).append(entry)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(site, pattern) for site in sites):
            raise IntvitError(f"--case {pattern}: must match a case of {root}, and matches none")
    wanted = [s for s in sites if not patterns or any(fnmatch.fnmatchcase(s, p) for p in patterns)]
    return [_of_bundle(root, index, site, sites[site]) for site in wanted]


def _of_bundle(root: Path, index: Any, site: str, entries: Sequence[Any]) -> Case:
    loaded = []
    for entry in entries:
        manifest, altered = read_manifest(root, index, entry)
        case = read_case(root, manifest)
        if altered or case.mismatches:
            raise IntvitError(f"{root / entry.folder}: must be as it was exported, and differs: intvit golden check")
        loaded.append((manifest, case.arrays))
    manifest, arrays = loaded[0]
    given = [s for s in manifest.signals if s.role == "stimulus"]
    (output,) = [s for s in manifest.signals if s.role == "expected"]
    constants = {s.key: arrays[s.key].astype(np.int64) for s in manifest.signals if s.role == "parameter"}
    names = tuple(str(s.tensor) for s in given)
    node = Node(manifest.op, site, names, str(output.tensor), manifest.attrs, constants)
    tensors = {str(s.tensor): _tensor(s) for s in (*given, output)}
    part = Graph(tuple(dict.fromkeys(names)), (node.output,), (node,), tensors)
    keys = {str(s.tensor): s.key for s in (*given, output)}
    stacked = {name: np.stack([each[key] for _, each in loaded]) for name, key in keys.items()}
    images = tuple(entry.image for entry in entries)
    return Vectors(site, part, images, {n: stacked[n] for n in part.inputs}, {node.output: stacked[node.output]})


def _tensor(signal: Signal) -> Tensor:
    return Tensor(str(signal.tensor), tuple(signal.shape), signal.type, np.asarray(signal.scale, np.float64),
                  signal.encoding, signal.bound)  # fmt: skip
