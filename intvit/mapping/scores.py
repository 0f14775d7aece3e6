"""Scores: how well methods do at sites, a row per image. One pure function makes them; everything else reads them.

Paper: "Mixed Non-linear Quantization for Vision Transformers", Eq. 10 and 11. A method is judged in one of three ways:

- `uniform`, the paper's: in the model that has it everywhere, on the integers that arrive there;
- `isolated`: alone, on the float network's activation, quantized once; `ratio_in` is of that rounding;
- `prefix`: in a model whose earlier sites have their final methods.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from intvit.analysis.emulation import quantized
from intvit.analysis.sqnr import ERRORS, errors
from intvit.engine import Engine
from intvit.files.memory import fitting
from intvit.graph.ir import LOGITS, Array, FloatGraph, Graph, IntGraph, Node
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower
from intvit.lowering.recipe import Recipe
from intvit.mapping.tables import Table
from intvit.mapping.values import float_values

UNIFORM, ISOLATED, PREFIX = "uniform", "isolated", "prefix"
BASES = (UNIFORM, ISOLATED, PREFIX)


class Key(NamedTuple):
    """What rows are of. `model`: sha256 of the float model; `recipe`: of what is equal for all methods; `site`: LOGITS
    for the outputs of the whole model."""

    model: str
    recipe: str
    basis: str
    site: str
    operator: str
    method: str


ROW = np.dtype(
    [("image", "<i8")]
    + [(f"{name}_{side}", "<f8") for side in ("in", "out") for name in ERRORS.names or ()]
)  # fmt: skip
"""Of an image: `sqnr.ERRORS` of the operator's input and output; NaN for the input of the outputs of a model."""


@dataclass(frozen=True)
class Variant:
    """A model to run: its label, its recipe, the sites to score in it, and whether its outputs are scored."""

    method: str
    recipe: Recipe
    sites: tuple[str, ...]
    outputs: bool = True


@dataclass(frozen=True)
class Task:
    """What to score, but for the images: values that can be pickled, from which rows follow on any machine."""

    graph: FloatGraph
    calibration: Calibration
    basis: str
    variants: tuple[Variant, ...]

    def key(self, variant: Variant, site: str) -> Key:
        operator = "" if site == LOGITS else self.graph.node(site).op
        model = str(self.graph.metadata.get("model_sha256"))
        return Key(model, digest(variant.recipe), self.basis, site, operator, variant.method)

    def runs(self) -> list[Run]:
        """Its models, lowered."""
        return [Run.of(self, variant) for variant in self.variants]

    def batch(self, wanted: int) -> int:
        """At most so many images, of which memory holds all activations."""
        return fitting(wanted, 4 * sum(math.prod(tensor.shape) for tensor in self.graph.tensors.values()))


def digest(recipe: Recipe) -> str:
    """sha256 of what a recipe says beside the methods of single sites."""
    stated = recipe.model_dump(mode="json", exclude={"sites", "softmax", "gelu", "layernorm"}, exclude_none=True)
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


class Stored(Protocol):
    """What scoring needs of images."""

    def read(self, start: int, stop: int, /) -> Array: ...


class Images(Stored, Protocol):
    """What mapping needs of an image source."""

    def __len__(self) -> int: ...

    def sha256(self, limit: int | None = None) -> str: ...


class Floats(Protocol):
    """What scoring needs of the float network's activations."""

    @property
    def names(self) -> list[str]: ...

    def read(self, name: str, start: int, stop: int) -> Array: ...


def score(
    task: Task,
    activations: Floats,
    images: Stored,
    span: tuple[int, int],
    *,
    runs: Sequence[Run] | None = None,
    batch: int = 32,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Table[Key]:
    """Rows of the images first..last of `span`; the same ones for any batch, threads, and division into spans.

    `activations`: of these images, float32. `runs`: of the task, where they are ready (`Task.runs`). progress(n): n
    more images are scored, by all variants.
    """
    graph, known = task.graph, set(activations.names)
    runs, batch = task.runs() if runs is None else runs, task.batch(batch)
    found: list[Table[Key]] = []
    for start in range(*span, batch):  # all variants on one batch: the float side is computed or read once
        stop = min(start + batch, span[1])
        inputs = images.read(start, stop) if any(run.reads_images for run in runs) else None
        floats: dict[str, Array] = {}
        read = partial(activations.read, start=start, stop=stop)
        for run in runs:
            for name in run.floats:
                if name not in floats:
                    floats[name] = float_values(graph, name, known, read)
            found.append(run.table((start, stop), inputs, floats, threads))
        if progress:
            progress(stop - start)
    return Table.merged(found)


@dataclass(frozen=True)
class Part:
    """An integer graph that is run on its own, and what of it is compared: site -> its input and output, as pairs of a
    float and an integer tensor; None: the input of the outputs."""

    engine: Engine
    source: str | None
    """The float tensor that is quantized for it; None: the images."""
    pairs: dict[str, tuple[tuple[str, str] | None, tuple[str, str]]]

    def run(
        self, span: tuple[int, int], images: Array | None, floats: Mapping_[str, Array], threads: int | None
    ) -> dict[str, Array]:
        """ROW (B,) per site, of the images of `span`."""
        graph = self.engine.graph
        inputs = images if self.source is None else quantized(floats[self.source], graph.tensors[graph.inputs[0]])
        assert inputs is not None
        rows = {site: np.zeros(len(inputs), ROW) for site in self.pairs}
        sides: dict[str, list[tuple[str, str, str]]] = {}
        for site, pairs in self.pairs.items():
            rows[site]["image"] = np.arange(*span)
            for side, pair in zip(("in", "out"), pairs, strict=True):
                if pair is None:
                    for field in ERRORS.names or ():
                        rows[site][f"{field}_{side}"] = math.nan
                else:
                    sides.setdefault(pair[1], []).append((site, side, pair[0]))

        def each(at: int, name: str, q: Array) -> None:  # on the thread that made q, which nobody keeps
            part = slice(at, at + len(q))
            found: dict[str, Array] = {}
            for site, side, real in sides[name]:
                if real not in found:
                    found[real] = errors(floats[real][part], q, graph.tensors[name])
                for field in ERRORS.names or ():
                    rows[site][f"{field}_{side}"][part] = found[real][field]

        self.engine.stream(iter([(0, inputs)]), sorted(sides), lambda at, kept: None, threads=threads, each=each)
        return rows


@dataclass(frozen=True)
class Run:
    """One variant of a task, ready to run."""

    task: Task
    variant: Variant
    parts: list[Part]

    @staticmethod
    def of(task: Task, variant: Variant) -> Run:
        integer = lower(task.graph, task.calibration, variant.recipe)
        parts: list[Part] = []
        pairs: dict[str, tuple[tuple[str, str] | None, tuple[str, str]]] = {}
        for site in variant.sites:
            node, mate = task.graph.node(site), integer.node(site)
            pair = (node.inputs[0], mate.inputs[0]), (node.output, mate.output)
            if task.basis == ISOLATED:
                parts.append(Part(Engine(_alone(integer, mate)), node.inputs[0], {site: pair}))
            else:
                pairs[site] = pair
        if variant.outputs:
            pairs[LOGITS] = None, (task.graph.outputs[0], integer.outputs[0])
        if pairs:
            ends = [integer.outputs[0]] if variant.outputs else [pair[1] for _, pair in pairs.values()]
            parts.append(Part(Engine(integer.up_to(ends)), None, pairs))
        return Run(task, variant, parts)

    @property
    def floats(self) -> list[str]:
        """The float tensors that it is compared with."""
        return [real for part in self.parts for pairs in part.pairs.values() for real, _ in filter(None, pairs)]

    @property
    def reads_images(self) -> bool:
        return any(part.source is None for part in self.parts)

    def table(
        self, span: tuple[int, int], images: Array | None, floats: Mapping_[str, Array], threads: int | None
    ) -> Table[Key]:
        """Rows of the images of `span`."""
        found: dict[Key, Array] = {}
        for part in self.parts:
            for site, rows in part.run(span, images, floats, threads).items():
                found[self.task.key(self.variant, site)] = rows
        return Table(found)


def _alone(integer: IntGraph, node: Node) -> IntGraph:
    """One node as a graph."""
    tensors = {name: integer.tensors[name] for name in (*node.inputs, node.output)}
    return Graph(node.inputs, (node.output,), (node,), tensors)
