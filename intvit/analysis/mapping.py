"""SQNR-diff mapping: which method each Softmax, GELU and LayerNorm site should use.

Every candidate is a uniform model (one method everywhere), run whole against the float recording. Per site and
method: ASQNR of the operator's input and output, and their difference (paper, Eq. 11). Sites are chosen independently.
A method that is undefined at the scale of a site is no candidate there: the next one that is defined stands in for it
in its model, which is noted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intvit.analysis.sqnr import PAPER_FACTOR, Sqnr, power_ratios
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.files.memory import fitting
from intvit.graph import layout, operators
from intvit.graph.ir import LAYOUT_OPS, Array, FloatGraph, Graph
from intvit.kernels import registry
from intvit.lowering.calibrate import Activations, Calibration
from intvit.lowering.context import Infeasible, lower
from intvit.lowering.recipe import Choice, Recipe

RULES: dict[str, Callable[[SiteScore], float]] = {}
"""Rule name -> what it minimizes; filled below, so that a rule is one entry."""


@dataclass(frozen=True)
class SiteScore:
    """One method at one site, in dB. `asqnr_in` is of the operator's own input in the uniform model."""

    site: str
    operator: str
    choice: Choice
    asqnr_in: float
    asqnr_out: float

    @property
    def sqnr_diff(self) -> float:
        """ASQNR(out) - ASQNR(in), Eq. 11."""
        return self.asqnr_out - self.asqnr_in


RULES |= {
    "sqnr_diff": lambda s: abs(s.sqnr_diff),
    "sqnr_diff_signed": lambda s: s.sqnr_diff,
    "sqnr_output": lambda s: -s.asqnr_out,
}


@dataclass(frozen=True)
class Skipped:
    """A candidate that is undefined at a site, and the method that stands there in its uniform model."""

    site: str
    operator: str
    method: str
    stand_in: str
    reason: str

    def __str__(self) -> str:
        return f"{self.site}: {self.method} is skipped here, {self.stand_in} stands in for it: {self.reason}"


@dataclass(frozen=True)
class Mapping:
    """Scores of every candidate at every site, and the choice that `rule` makes of them."""

    rule: str
    scores: tuple[SiteScore, ...]
    recipe: Recipe
    logits: dict[str, float]
    """ASQNR of each uniform model's logits, dB."""
    skipped: tuple[Skipped, ...] = ()
    outputs: dict[str, float] = field(default_factory=dict)
    """Mean SQNR (`Sqnr.mean_noise`) of the outputs of each uniform model and of the `mixed` one that the rule chose."""
    uniform: str | None = None
    """The uniform model whose methods `recipe` holds, as that of the rule was measured to be worse on these images."""

    @property
    def note(self) -> str | None:
        """One line about a choice that is not the rule's."""
        if self.uniform is None:
            return None
        better, worse = self.outputs[self.uniform], self.outputs[MIXED]
        return (
            f"rule {self.rule} chose a model of {worse:.1f} dB at the outputs, worse than uniform {self.uniform} with "
            f"{better:.1f} dB: the mapping holds uniform {self.uniform} (map --no-fallback keeps the rule's)"
        )

    def by_site(self) -> dict[str, list[SiteScore]]:
        sites: dict[str, list[SiteScore]] = {}
        for score in self.scores:
            sites.setdefault(score.site, []).append(score)
        return sites

    def as_json(self) -> dict[str, Any]:
        return {
            "format": "intvit.mapping",
            "version": 1,
            "rule": self.rule,
            "scores": [
                {
                    "site": s.site,
                    "operator": s.operator,
                    "method": s.choice.method,
                    "asqnr_in": _plain(s.asqnr_in),
                    "asqnr_out": _plain(s.asqnr_out),
                    "sqnr_diff": _plain(s.sqnr_diff),
                }
                for s in self.scores
            ],
            "logits_asqnr": {name: _plain(value) for name, value in self.logits.items()},
            "outputs_sqnr": {name: _plain(value) for name, value in self.outputs.items()},
            "fallback": self.uniform,
            "skipped": [vars(s) for s in self.skipped],
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
        }

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.as_json(), indent=1, sort_keys=True) + "\n")


class Images(Protocol):
    """What mapping needs of an image source."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Array: ...

    def sha256(self, limit: int | None = None) -> str: ...


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def choose(scores: tuple[SiteScore, ...], rule: str) -> dict[str, Choice]:
    """Per site the candidate with the least value under `rule`; on a tie the one that was listed first."""
    if rule not in RULES:
        raise IntvitError(f"rule: must be one of {', '.join(RULES)}, not {rule!r}")
    best: dict[str, SiteScore] = {}
    for score in scores:
        value = RULES[rule](score)
        if score.site not in best or (not math.isnan(value) and value < RULES[rule](best[score.site])):
            best[score.site] = score
    return {site: score.choice for site, score in best.items()}


MIXED = "mixed"
PUBLISHED = ("ibert", "fqvit", "ivit")
"""The candidates of the paper."""


def default_candidates(graph: FloatGraph) -> tuple[str, ...]:
    """Those of the paper's candidates that have a method for an operator of this model."""
    kinds = {node.op for node in graph.nodes}
    return tuple(name for name in PUBLISHED if any(m.name == name and m.operator in kinds for m in registry.methods()))


def map_methods(
    graph: FloatGraph,
    recording: Activations,
    images: Images,
    calibration: Calibration,
    recipe: Recipe,
    methods: tuple[str, ...],
    *,
    rule: str = "sqnr_diff",
    limit: int | None = None,
    batch: int = 32,
    threads: int | None = None,
    fallback: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping:
    """Run each uniform model on the recorded `images` (or the first `limit` of them) and choose per site.

    The chosen model is run too. Where its outputs are worse than those of the best uniform model, the mapping holds
    that one's methods, unless `fallback` is False.
    """
    if rule not in RULES:
        raise IntvitError(f"rule: must be one of {', '.join(RULES)}, not {rule!r}")
    if len(images) < recording.n_images or images.sha256(recording.n_images) != recording.images_sha256:
        raise IntvitError(f"images: must be the {recording.n_images} images that were recorded, and are others")
    n_images = min(limit or recording.n_images, recording.n_images)
    batch = fitting(batch, 4 * sum(math.prod(tensor.shape) for tensor in graph.tensors.values()))
    candidates = {method: uniform_model(graph, calibration, recipe, method, methods) for method in methods}
    runs = {method: SqnrRun.of(graph, found.graph) for method, found in candidates.items()}
    known, with_methods = set(recording.names), set(operators.with_methods())

    def measure(runs: Collection[SqnrRun], done: int) -> None:
        for start in range(0, n_images, batch):  # all models on one batch: the float side is computed or read once
            stop = min(start + batch, n_images)
            inputs, floats = images.read(start, stop), dict[str, Array]()
            for run in runs:
                for name, _ in run.pairs.values():
                    if name not in floats:
                        floats[name] = float_values(graph, name, known, partial(recording.read, start=start, stop=stop))
                run.add(start, inputs, floats, threads)
            if progress:
                progress(done + stop, 2 * n_images)

    measure(runs.values(), 0)
    scores: list[SiteScore] = []
    for method, run in runs.items():
        uniform = candidates[method].recipe
        for node in graph.nodes:
            choice = uniform.choice(node.op, node.name) if node.op in operators.with_methods() else None
            if choice is not None and choice.method == method:  # a borrowed method is no candidate of its own
                before, after = run.stats[f"{node.name}:in"], run.stats[f"{node.name}:out"]
                scores.append(SiteScore(node.name, node.op, choice, before.decibel(), after.decibel()))
    logits = {method: run.stats["logits"].decibel(PAPER_FACTOR) for method, run in runs.items()}
    order = [node.name for node in graph.nodes if node.op in operators.with_methods()]
    listed = tuple(sorted(scores, key=lambda s: order.index(s.site)))
    skipped = tuple(note for found in candidates.values() for note in found.skipped)
    chosen = recipe.model_copy(update={"sites": choose(listed, rule)})
    mixed = SqnrRun.of(graph, lower(graph, calibration, chosen), outputs_only=True)
    measure([mixed], n_images)
    outputs = {name: run.stats["logits"].mean_noise() for name, run in {**runs, MIXED: mixed}.items()}
    best = max(methods, key=outputs.__getitem__)
    if not (fallback and outputs[MIXED] < outputs[best]):
        return Mapping(rule, listed, chosen, logits, skipped, outputs)
    uniform = candidates[best].recipe
    sites = {node.name: uniform.choice(node.op, node.name) for node in graph.nodes if node.op in with_methods}
    recipe = recipe.model_copy(update={"sites": sites})
    return Mapping(rule, listed, recipe, logits, skipped, outputs, best)


@dataclass(frozen=True)
class Candidate:
    """A uniform model and its recipe, in which other methods stand at the sites where its own is undefined."""

    graph: Graph
    recipe: Recipe
    skipped: tuple[Skipped, ...]


def uniform_model(
    graph: FloatGraph, calibration: Calibration, recipe: Recipe, method: str, methods: tuple[str, ...]
) -> Candidate:
    """Lower the uniform model of `method`; where that is undefined, the first of `methods` that is not stands in."""
    uniform = recipe.with_method(method)
    tried: dict[str, list[Infeasible]] = {}
    while True:
        try:
            lowered = lower(graph, calibration, uniform)
            break
        except Infeasible as error:
            refused = tried.setdefault(error.site, [])
            refused.append(error)
            operator = graph.node(error.site).op
            choices = [recipe.with_method(name).choice(operator, error.site) for name in (method, *methods)]
            others = list({c.method: c for c in choices}.values())[len(refused) :]
            if not others:
                raise IntvitError(
                    f"{error.site}: no candidate is left here: {'; '.join(e.why for e in refused)}"
                ) from None
            uniform = uniform.model_copy(update={"sites": {**uniform.sites, error.site: others[0]}})
    nodes = [node for node in graph.nodes if node.op in operators.with_methods()]
    if not any(uniform.choice(node.op, node.name).method == method for node in nodes):
        first = next(iter(tried.values()), None)
        why = first[0] if first else "it has no operator of its own"
        raise IntvitError(f"{method}: must be defined at one site of the model at least, and is at none: {why}")
    skipped = (
        Skipped(node.name, node.op, recipe.with_method(method).choice(node.op, node.name).method,
                uniform.choice(node.op, node.name).method, tried[node.name][0].why)
        for node in nodes if node.name in tried
    )  # fmt: skip
    return Candidate(lowered, uniform, tuple(skipped))


def float_values(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array:
    """The float values (B, *shape) of a tensor: `read` from a recording, or what layout moves make of such."""
    values = _moved(graph, name, known, read)
    if values is None:
        values = _moved_back(graph, name, known, read)
    if values is None:
        raise IntvitError(f"{name}: no recorded activation becomes this tensor by layout moves alone")
    expected = graph.tensors[name].shape
    if values.shape[1:] != expected:
        raise IntvitError(f"{name}: recorded activation must have the shape {expected}, not {values.shape[1:]}")
    return values


def _moved(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array | None:
    """The tensor as recorded, or made by the moves that lead to it; None if something else made it."""
    if name in known:
        return read(name)
    node = graph.by_output.get(name)
    if node is None or node.op not in LAYOUT_OPS:
        return None
    found = [_moved(graph, source, known, read) for source in node.inputs]
    inputs = [values for values in found if values is not None]
    return layout.apply(node, inputs) if len(inputs) == len(found) else None


def _moved_back(graph: FloatGraph, name: str, known: Collection[str], read: Callable[[str], Array]) -> Array | None:
    """The tensor from a recorded one that a reshape or a transpose made of it, by the inverse move."""
    for node in graph.consumers[name]:
        if node.op not in ("reshape", "transpose"):
            continue
        values = read(node.output) if node.output in known else _moved_back(graph, node.output, known, read)
        if values is not None and node.op == "reshape":
            return values.reshape(len(values), *graph.tensors[name].shape)
        if values is not None:
            return values.transpose(np.argsort([0, *(axis + 1 for axis in node.attrs["perm"])]))
    return None


@dataclass(frozen=True)
class SqnrRun:
    """One integer model and its SQNR statistics against the float one: `<site>:in`, `<site>:out` and `logits`."""

    engine: Engine
    pairs: dict[str, tuple[str, str]]
    """Statistic -> (float tensor, integer tensor)."""
    stats: dict[str, Sqnr]

    @staticmethod
    def of(graph: FloatGraph, integer: Graph, *, outputs_only: bool = False) -> SqnrRun:
        pairs: dict[str, tuple[str, str]] = {}
        for node in graph.nodes:
            if node.op in operators.with_methods() and not outputs_only:
                mate = integer.node(node.name)
                pairs[f"{node.name}:in"] = (node.inputs[0], mate.inputs[0])
                pairs[f"{node.name}:out"] = (node.output, mate.output)
        pairs["logits"] = (graph.outputs[0], integer.outputs[0])
        return SqnrRun(Engine(integer), pairs, {key: Sqnr() for key in pairs})

    def add(self, start: int, images: Array, floats: Mapping_[str, Array], threads: int | None) -> None:
        """Run `images`, the first of them number `start`; the statistics are taken on the threads that ran them."""
        tensors = self.engine.graph.tensors
        keys: dict[str, list[tuple[str, str]]] = {}
        for key, (real, q) in self.pairs.items():
            keys.setdefault(q, []).append((key, real))

        def each(at: int, name: str, q: Array) -> dict[str, list[float]]:
            part = slice(at - start, at - start + len(q))
            return {key: power_ratios(floats[real][part], q, tensors[name]) for key, real in keys[name]}

        def sink(at: int, found: dict[str, dict[str, list[float]]]) -> None:
            for ratios in found.values():
                for key, values in ratios.items():
                    self.stats[key].merge(at, values)

        self.engine.stream(iter([(start, images)]), sorted(keys), sink, threads=threads, each=each)
