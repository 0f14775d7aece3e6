"""The space of all mappings of a model, whose outputs are measured at a fraction of the cost of running each.

Every mapping differs from a `base` at some sites. The network is cut, in order of execution, before the first node that
any choice at a site changes; what lies between two cuts is a segment, and a mapping is a variant of each. A variant is
compiled once, and the integers before the first segment in which two mappings differ are computed once for both.

A segment that two changed sites touch is lowered for both of them together; one that a single site touches is that of
the model with only this site changed. That this is what `lower` makes of the whole mapping is a test, and is verified
for every mapping that is handed out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from intvit.analysis.outputs import OUTCOME, compared
from intvit.engine import Program, quantize_images
from intvit.engine.plan import make_plan
from intvit.errors import Infeasible
from intvit.files.memory import fitting
from intvit.graph.ir import Array, FloatGraph, Graph, IntGraph, Node, Tensor, tensor_hash
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower
from intvit.lowering.recipe import Choice, Recipe
from intvit.spec import SPEC_VERSION

Config = tuple[str, ...]
"""The method at every site of a space, in its order."""


@dataclass(frozen=True)
class Segment:
    """A variant of what lies between two cuts, ready to run."""

    identity: int
    part: IntGraph
    program: Program
    keeps: frozenset[str]
    """Tensors that later segments read, or the outputs."""

    def after(self, before: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors that are kept, from those before the segment; those are left as they are."""
        state = {name: before[name] for name in self.keeps if name in before}

        def made(name: str, tensor: Array) -> None:
            if name in self.keeps:
                state[name] = tensor

        self.program.run(dict(before), made)
        return state


@dataclass
class Space:
    """`options[site]`: the methods to choose from, each with its choice; `base`: where single changes start from."""

    graph: FloatGraph
    calibration: Calibration
    recipe: Recipe
    options: Mapping[str, Mapping[str, Choice]]
    base: Config
    _nodes: dict[str, Node] = field(default_factory=dict, init=False, repr=False)
    """By content: most nodes are the same in all models, and are held once."""
    _graphs: dict[Config, IntGraph] = field(default_factory=dict, init=False, repr=False)
    _segments: dict[tuple[int, Config], Segment] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[type[Space], tuple[Any, ...]]:
        """Without what it holds ready."""
        return Space, (self.graph, self.calibration, self.recipe, self.options, self.base)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """In order of execution."""
        return tuple(node.name for node in self.graph.nodes if node.name in self.options)

    def recipe_of(self, config: Config) -> Recipe:
        chosen = {site: self.options[site][method] for site, method in zip(self.sites, config, strict=True)}
        return self.recipe.model_copy(update={"sites": {**self.recipe.sites, **chosen}})

    def changed(self, changes: Mapping[str, str], of: Config | None = None) -> Config:
        """A mapping (left out: the base) with other methods at some sites."""
        config = dict(zip(self.sites, of or self.base, strict=True))
        return tuple({**config, **changes}.values())

    def singles(self, of: Config | None = None) -> list[Config]:
        """Every mapping that differs at one site."""
        at = of or self.base
        return [
            self.changed({site: method}, at)
            for site, here in zip(self.sites, at, strict=True)
            for method in self.options[site] if method != here
        ]  # fmt: skip

    def lowered(self, config: Config) -> IntGraph:
        """By `lower`, once. Raises Infeasible for methods that are undefined at their sites."""
        if config not in self._graphs:
            integer = lower(self.graph, self.calibration, self.recipe_of(config))
            nodes = tuple(self._nodes.setdefault(_node_word(node), node) for node in integer.nodes)
            self._graphs[config] = replace(integer, nodes=nodes)
        return self._graphs[config]

    @cached_property
    def identity(self) -> str:
        """Of all models that it holds: sha256."""
        words = [self.graph.metadata.get("model_sha256"), self.sites, self.base, [*self._spans.items()], SPEC_VERSION]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    # -- segments

    @cached_property
    def _spans(self) -> dict[Config, list[str]]:
        """The base and every single change that is defined: what stands in each place, a place for each float node, in
        one word."""
        found = {self.base: self._places(self.base)}
        for config in self.singles():
            with suppress(Infeasible):
                found[config] = self._places(config)
        return found

    def defined(self, config: Config) -> bool:
        """Whether every method of a mapping is defined where it stands, the base around it."""
        changes = zip(self.sites, config, strict=True)
        return all(self.changed({site: method}) in self._spans for site, method in changes)

    def verify(self, config: Config) -> None:
        """AssertionError if the variants that a mapping is measured by are not what `lower` makes of it."""
        words, ends = self._places(config), [*self.cuts[1:], len(self.graph.nodes) + 1]
        for low, high, variant in zip(self.cuts, ends, self.variants(config), strict=True):
            if self._places(variant)[low:high] != words[low:high]:
                raise AssertionError(f"{self.graph.nodes[max(low - 1, 0)].name}: a far change reaches this segment")

    def _places(self, config: Config) -> list[str]:
        integer = self.lowered(config)
        word = {id(node): word for word, node in self._nodes.items()}
        words: list[list[str]] = [[] for _ in range(len(self.graph.nodes) + 1)]
        for name in integer.inputs:
            words[0].append(_tensor_word(integer.tensors[name]))
        for place, node in zip(self._positions(integer), integer.nodes, strict=True):
            words[place] += [word[id(node)], _tensor_word(integer.tensors[node.output])]
        return [hashlib.sha256("".join(word).encode()).hexdigest() for word in words]

    def _positions(self, integer: IntGraph) -> list[int]:
        """The place of every integer node: 1 + the number of the float node whose tensor it stands for."""
        numbers = {node.output: i + 1 for i, node in enumerate(self.graph.nodes)}
        places: list[int] = []
        for node in integer.nodes:
            place = numbers.get(integer.tensors[node.output].source or "", 0)
            places.append(max(place, places[-1] if places else 0))
        return places

    @cached_property
    def _touched(self) -> dict[str, set[int]]:
        """Site -> the places that any of its methods changes."""
        base = self._spans[self.base]
        found: dict[str, set[int]] = {site: set() for site in self.sites}
        for config, words in self._spans.items():
            for site, method, usual in zip(self.sites, config, self.base, strict=True):
                if method != usual:
                    found[site] |= {i for i, (a, b) in enumerate(zip(words, base, strict=True)) if a != b}
        return found

    @cached_property
    def cuts(self) -> list[int]:
        """The first place of every segment."""
        return sorted({0, *(min(places) for places in self._touched.values() if places)})

    @cached_property
    def _touching(self) -> list[list[int]]:
        """For every segment the numbers of the sites that change it."""
        ends = [*self.cuts[1:], len(self.graph.nodes) + 1]
        return [
            [i for i, site in enumerate(self.sites) if any(low <= place < high for place in self._touched[site])]
            for low, high in zip(self.cuts, ends, strict=True)
        ]

    @cached_property
    def _read_after(self) -> list[frozenset[str]]:
        """For every segment the tensors that a later one reads, in any model."""
        found = [set[str]() for _ in self.cuts]
        for config in self._spans:
            integer = self.lowered(config)
            for node, segment in zip(integer.nodes, self._segment_numbers(integer), strict=True):
                for earlier in range(segment):
                    found[earlier].update(node.inputs)
        return [frozenset(names) for names in found]

    def _segment_numbers(self, integer: IntGraph) -> list[int]:
        return [int(np.searchsorted(self.cuts, place, side="right")) - 1 for place in self._positions(integer)]

    def _variant(self, number: int, config: Config) -> Config:
        """The mapping whose model has this segment of `config`: changed at no other site than those that touch it."""
        touching = self._touching[number]
        return tuple(m if i in touching else self.base[i] for i, m in enumerate(config))

    def variants(self, config: Config) -> list[Config]:
        return [self._variant(number, config) for number in range(len(self.cuts))]

    def _segment(self, number: int, variant: Config) -> Segment:
        key = number, variant
        if key not in self._segments:
            integer = self.lowered(variant)
            numbers = self._segment_numbers(integer)
            nodes = tuple(node for node, at in zip(integer.nodes, numbers, strict=True) if at == number)
            made = {node.output for node in nodes}
            read = dict.fromkeys(name for node in nodes for name in node.inputs if name not in made)
            keeps = self._read_after[number]
            if number == len(self.cuts) - 1:
                keeps = frozenset(integer.outputs[:1])
            outputs = tuple(node.output for node in nodes if node.output in keeps)
            tensors = {name: integer.tensors[name] for name in (*read, *made)}
            part: IntGraph = Graph(tuple(read), outputs, nodes, tensors)
            self._segments[key] = Segment(len(self._segments), part, Program.of(make_plan(part, outputs)), keeps)
        return self._segments[key]

    # -- measuring

    def measure(
        self,
        configs: Iterable[Config],
        images: Array,
        outputs: Array,
        *,
        labels: Array | None = None,
        batch: int = 32,
        threads: int | None = None,
    ) -> dict[Config, Array]:
        """OUTCOME (N,) of each mapping on images (N, ...), against the float outputs (N, ...).

        Mappings that are undefined have no entry.
        """
        n_images = len(images)
        paths: dict[Config, list[Segment]] = {}
        for config in dict.fromkeys(configs):
            if not self.defined(config):
                continue
            try:
                paths[config] = [self._segment(number, variant) for number, variant in enumerate(self.variants(config))]
            except Infeasible:
                continue
        order = sorted(paths, key=lambda config: [segment.identity for segment in paths[config]])
        largest = max((math.prod(tensor.shape) for tensor in self.graph.tensors.values()), default=1)
        n_threads = max(1, threads or os.cpu_count() or 1)
        step = max(1, min(fitting(batch, 8 * largest * len(self.cuts)), -(-n_images // n_threads)))
        spans = [(start, min(start + step, n_images)) for start in range(0, n_images, step)]
        found = {config: np.zeros(n_images, OUTCOME) for config in order}

        def part(span: tuple[int, int]) -> None:
            start, stop = span
            known = None if labels is None else labels[start:stop]
            states: list[dict[str, Array]] = []
            last: list[Segment] = []
            for config in order:
                path = paths[config]
                same = next((i for i, (a, b) in enumerate(zip(path, last, strict=False)) if a is not b), len(last))
                del states[same:]
                for segment in path[same:]:
                    first = (
                        None if states else {segment.part.inputs[0]: quantize_images(segment.part, images[start:stop])}
                    )
                    states.append(segment.after(first or states[-1]))
                last = path
                ((name, y),) = states[-1].items()
                found[config][start:stop] = compared(
                    start, y * path[-1].part.tensors[name].scale, outputs[start:stop], known
                )

        with threadpool_limits(limits=1), ThreadPoolExecutor(n_threads) as pool:
            for done in [pool.submit(part, span) for span in spans]:
                done.result()
        return found


def _node_word(node: Node) -> str:
    """A node's content, as text."""
    arrays = {key: tensor_hash(node.arrays[key]) for key in sorted(node.arrays)}
    return json.dumps([node.op, node.name, node.inputs, node.output, dict(node.attrs), arrays], sort_keys=True)


def _tensor_word(tensor: Tensor) -> str:
    scale: Any = np.asarray(tensor.scale, np.float64).tolist()
    of = [tensor.name, str(tensor.dtype), scale, tensor.encoding, tensor.bound, tensor.zero_point, tensor.factor]
    return json.dumps(of)
