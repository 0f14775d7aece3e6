"""Golden cases as all who replay them take them: those of a bundle, and those of tensors that are at hand."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from intvit.errors import IntvitError
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph
from intvit.vectors import part as parts
from intvit.vectors.bundle import GoldenCase, open_bundle


class Case(Protocol):
    """A part of a graph with stimuli and expected tensors: name of the tensor -> (*shape), integers, for each image."""

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


def cases_from(
    graph: IntGraph, tensors: Mapping[str, Array], sites: Sequence[str] | None = None,
    images: Sequence[int] | None = None,
) -> list[Case]:  # fmt: skip
    """A case for each site that computes, from every tensor of a graph (B, *shape) on some images."""
    numbers = tuple(images) if images is not None else tuple(range(len(next(iter(tensors.values())))))
    found: list[Case] = []
    for node in graph.nodes:
        if node.op in LAYOUT_OPS or (sites is not None and node.name not in sites):
            continue
        part = parts.part_of(graph, [node.name])
        given = {name: tensors[name] for name in part.inputs}
        found.append(Vectors(node.name, part, numbers, given, {name: tensors[name] for name in part.outputs}))
    return found


def read_cases(path: str | Path, patterns: Sequence[str] = ()) -> list[GoldenCase]:
    """The cases of a bundle, folder or zip, whose name matches a pattern, all without one; in its order.

    IntvitError for what is no bundle, of which a byte is not what its digest says, and for a pattern that matches none.
    """
    found = open_bundle(path)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in found):
            raise IntvitError(f"--case {pattern}: must match a case of {path}, and matches none")
    return [case for case in found if not patterns or any(fnmatch.fnmatchcase(case.name, p) for p in patterns)]
