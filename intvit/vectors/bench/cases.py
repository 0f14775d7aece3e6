"""Golden cases as the bench takes them: what every case must have, one made from a graph, those of a bundle."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Graph, IntGraph
from intvit.vectors import part as parts
from intvit.vectors.bundle import open_bundle


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
    """The cases of a bundle of golden vectors whose name matches a pattern, all without one, in its order.

    IntvitError for what is no bundle, whose bytes changed, and for a pattern that matches none.
    """
    found = open_bundle(folder)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in found):
            raise IntvitError(f"--case {pattern}: must match a case of {folder}, and matches none")
    return [case for case in found if not patterns or any(fnmatch.fnmatchcase(case.name, p) for p in patterns)]
