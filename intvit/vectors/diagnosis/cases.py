"""Golden cases as a comparison reads them: a part of a graph, its stimuli and what it must give, by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph
from intvit.vectors.bundle import GoldenCase, open_bundle


class Case(Protocol):
    """What `golden compare` needs of a case; arrays are integers (*shape), by the names of tensors."""

    @property
    def name(self) -> str: ...
    @property
    def part(self) -> IntGraph: ...
    @property
    def images(self) -> tuple[int, ...]: ...
    def stimuli(self, image: int) -> Mapping[str, Array]: ...
    def expected(self, image: int) -> Mapping[str, Array]: ...


@dataclass(frozen=True, eq=False)
class Held:
    """A case whose arrays are at hand: image -> tensor -> (*shape)."""

    name: str
    part: IntGraph
    given: Mapping[int, Mapping[str, Array]]
    outputs: Mapping[int, Mapping[str, Array]]

    @property
    def images(self) -> tuple[int, ...]:
        return tuple(self.given)

    def stimuli(self, image: int) -> Mapping[str, Array]:
        return self.given[image]

    def expected(self, image: int) -> Mapping[str, Array]:
        return self.outputs[image]


def cases_of(folder: str | Path) -> list[GoldenCase]:
    """The cases of a bundle of golden vectors, in the order in which the graph computes.

    IntvitError for what is none, and for one of which a byte is not what its digest says.
    """
    return open_bundle(folder)


def cases_from(graph: IntGraph, tensors: Mapping[str, Array], sites: Sequence[str] | None = None,
               images: Sequence[int] | None = None) -> list[Case]:  # fmt: skip
    """A case for each site that computes, from every tensor of a graph (B, *shape) on some images."""
    from intvit.vectors.part import part_of

    found: list[Case] = []
    numbers = tuple(images) if images is not None else tuple(range(len(next(iter(tensors.values())))))
    for node in graph.nodes:
        if node.op in LAYOUT_OPS or (sites is not None and node.name not in sites):
            continue
        part = part_of(graph, [node.name])
        given = {i: {name: tensors[name][b] for name in part.inputs} for b, i in enumerate(numbers)}
        outputs = {i: {name: tensors[name][b] for name in part.outputs} for b, i in enumerate(numbers)}
        found.append(Held(node.name, part, given, outputs))
    return found
