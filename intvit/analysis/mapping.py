"""SQNR-diff mapping: which method each Softmax, GELU and LayerNorm site should use.

Every candidate is a uniform model (one method everywhere), run whole against the float recording. Per site and
method: ASQNR of the operator's input and output, and their difference (paper, Eq. 11). Sites are chosen independently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from intvit.analysis.sqnr import PAPER_FACTOR, Sqnr, power_ratios
from intvit.calibrate import Activations, Calibration, source_tensor
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.graph.ir import Array, Graph
from intvit.lowering import lower
from intvit.memory import fitting
from intvit.recipe import OPERATORS, Choice, Recipe

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
class Mapping:
    """Scores of every candidate at every site, and the choice that `rule` makes of them."""

    rule: str
    scores: tuple[SiteScore, ...]
    recipe: Recipe
    logits: dict[str, float]
    """ASQNR of each uniform model's logits, dB."""

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


def map_methods(
    graph: Graph,
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
    progress: Callable[[int, int], None] | None = None,
) -> Mapping:
    """Run each uniform model on the recorded `images` (or the first `limit` of them) and choose per site."""
    if rule not in RULES:
        raise IntvitError(f"rule: must be one of {', '.join(RULES)}, not {rule!r}")
    if len(images) < recording.n_images or images.sha256(recording.n_images) != recording.images_sha256:
        raise IntvitError(f"images: must be the {recording.n_images} images that were recorded, and are others")
    n_images = min(limit or recording.n_images, recording.n_images)
    batch = fitting(batch, 4 * sum(math.prod(tensor.shape) for tensor in graph.tensors.values()))
    runs = {method: SqnrRun.of(graph, lower(graph, calibration, recipe.with_method(method))) for method in methods}
    known = set(recording.names)
    for start in range(0, n_images, batch):  # all models on one batch: the float side is computed or read once
        stop = min(start + batch, n_images)
        inputs, floats = images.read(start, stop), dict[str, Array]()
        for run in runs.values():
            for name, _ in run.pairs.values():
                if name not in floats:
                    floats[name] = recording.read(source_tensor(graph, name, known), start, stop)
            run.add(start, inputs, floats, threads)
        if progress:
            progress(stop, n_images)
    scores: list[SiteScore] = []
    for method, run in runs.items():
        uniform = recipe.with_method(method)
        for node in graph.nodes:
            choice = uniform.choice(node.op, node.name) if node.op in OPERATORS else None
            if choice is not None and choice.method == method:  # a borrowed method is no candidate of its own
                before, after = run.stats[f"{node.name}:in"], run.stats[f"{node.name}:out"]
                scores.append(SiteScore(node.name, node.op, choice, before.decibel(), after.decibel()))
    logits = {method: run.stats["logits"].decibel(PAPER_FACTOR) for method, run in runs.items()}
    order = [node.name for node in graph.nodes if node.op in OPERATORS]
    listed = tuple(sorted(scores, key=lambda s: order.index(s.site)))
    return Mapping(rule, listed, recipe.model_copy(update={"sites": choose(listed, rule)}), logits)


@dataclass(frozen=True)
class SqnrRun:
    """One integer model and its SQNR statistics against the float one: `<site>:in`, `<site>:out` and `logits`."""

    engine: Engine
    pairs: dict[str, tuple[str, str]]
    """Statistic -> (float tensor, integer tensor)."""
    stats: dict[str, Sqnr]

    @staticmethod
    def of(graph: Graph, integer: Graph) -> SqnrRun:
        pairs: dict[str, tuple[str, str]] = {}
        for node in graph.nodes:
            if node.op in OPERATORS:
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
