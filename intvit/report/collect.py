"""Measure what a report says: the uniform models, the mapping's and the float model on the same test images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intvit.analysis.outputs import MISSING, outcomes, summary
from intvit.analysis.sqnr import mean_decibel
from intvit.engine.environment import facts
from intvit.errors import IntvitError, placed
from intvit.floats.images import ImageSource
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.graph import operators
from intvit.graph.ir import LOGITS, Array, FloatGraph, IntGraph
from intvit.lowering.calibrate import Activations, Calibration, calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import Recipe
from intvit.mapping import rules
from intvit.mapping.candidates import Candidate, uniform_model
from intvit.mapping.rules import Decision, Difference
from intvit.mapping.scores import UNIFORM, Key, Task, Variant, score
from intvit.mapping.tables import Table
from intvit.report import notes
from intvit.report.data import (
    FLOAT,
    MIXED,
    Estimate,
    Kind,
    MappingFile,
    Model,
    Report,
    Score,
    Search,
    Site,
    Source,
    finite,
)
from intvit.report.histograms import histograms
from intvit.report.interactions import searched
from intvit.report.svg import printable

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
VERSIONS = ("intvit", "python", "numpy", "numba", "onnxruntime")


@dataclass(frozen=True)
class Inputs:
    """What a report is about. `where`: of the model, of the mapping, of the images that were calibrated on."""

    graph: FloatGraph
    model: FloatModel
    mapping: MappingFile
    recipe: Recipe
    calibrated: Activations
    images: ImageSource
    where: tuple[Path, Path, str]
    methods: tuple[str, ...]
    calibrate_limit: int | None = None
    limit: int | None = None
    threads: int | None = None
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        """IntvitError for a mapping of another model."""
        if not self.methods or len(set(self.methods)) < len(self.methods) or "" in self.methods:
            raise IntvitError(f"methods: must each be named once, not {','.join(self.methods)!r}")
        where = f"{self.where[1]}: must be a mapping of {self.where[0]}"
        if self.mapping.model_sha256 != self.model.sha256:
            raise IntvitError(f"{where} ({self.model.sha256[:12]}), not of the model {self.mapping.model_sha256[:12]}")
        sites = {node.name: node.op for node in self.graph.nodes if node.op in operators.with_methods()}
        decided = {decision.site: decision.operator for decision in self.mapping.decisions}
        for site, operator in decided.items():
            if sites.get(site) != operator:
                raise IntvitError(f"{where}, which has no {operator} {site}")
        for site in sorted(self.recipe.sites.keys() - sites.keys()):
            raise IntvitError(f"{where}, which has no site {site}")
        for site, operator in sites.items():
            if operator in decided.values() and site not in decided and site not in self.recipe.sites:
                raise IntvitError(f"{where}, and chooses nothing for {site}")
        with placed(self.where[1]):
            _ = self.search

    @cached_property
    def search(self) -> Search | None:
        return None if self.mapping.search is None else searched(self.mapping.search, self.graph)

    @property
    def n_images(self) -> int:
        return min(self.limit or len(self.images), len(self.images))

    @property
    def n_calibrated(self) -> int:
        return min(self.calibrate_limit or self.calibrated.n_images, self.calibrated.n_images)

    @cached_property
    def sources(self) -> list[Source]:
        model, mapping, calibrated = self.where
        return [
            Source(role="model", name=printable(str(model)), sha256=self.model.sha256),
            Source(role="mapping file", name=printable(str(mapping)), sha256=_sha256(mapping)),
            Source(role="calibration images", name=printable(calibrated), sha256=self.calibrated.images_sha256,
                   images=self.n_calibrated),
            Source(role="test images", name=printable(self.images.name), sha256=self.images.sha256(self.n_images),
                   images=self.n_images),
        ]  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Made:
    """The models, lowered with one calibration. `sites`: that are chosen for, in order of execution."""

    calibration: Calibration
    candidates: dict[str, Candidate]
    mixed: IntGraph
    sites: tuple[str, ...]

    @property
    def graphs(self) -> dict[str, IntGraph]:
        return {**{name: candidate.graph for name, candidate in self.candidates.items()}, MIXED: self.mixed}


def collect(inputs: Inputs, made: Made, progress: Progress) -> tuple[Report, Table[Key]]:
    """A report, and the rows of one image each that its scores are of."""
    live = LiveActivations(inputs.model, inputs.images, inputs.n_images)
    table = rows(inputs, made, live, progress)
    found = evaluated(inputs, made, progress)
    models, best = judged(found, inputs.methods, inputs.seed)
    scored = sites(inputs, made, table)
    drawn = histograms(inputs.graph, made.candidates, scored, live, inputs.images, inputs.threads)
    labelled, versions = bool(found[FLOAT]["label"][0] != MISSING), facts()
    outputs = {key.method: finite(mean_decibel(rows["ratio_out"])) for key, rows in table.rows.items()
               if key.site == LOGITS}  # fmt: skip
    report = Report(
        name=printable(inputs.where[0].name), bits=inputs.recipe.bits, residual_bits=inputs.recipe.residual_bits,
        preset=inputs.recipe.preset, rule=inputs.mapping.rule, basis=inputs.mapping.basis,
        fallback=inputs.mapping.fallback, methods=list(inputs.methods), best=best, images=inputs.n_images,
        labelled=labelled, confidence=rules.CONFIDENCE, resamples=rules.RESAMPLES, seed=inputs.seed,
        warnings=notes.notes(inputs.mapping, models, scored, inputs.sources, best), models=models, sites=scored,
        outputs={name: outputs[name] for name in (*inputs.methods, MIXED)}, histograms=drawn, search=inputs.search,
        sources=inputs.sources, versions={name: versions[name] for name in VERSIONS}, command=printable(inputs.command),
    )  # fmt: skip
    return report, table


def make(inputs: Inputs, progress: Progress) -> Made:
    """The uniform models as `map` makes them, sites that it did not choose for as the mapping has them."""
    graph, recipe, decided = inputs.graph, inputs.recipe, {decision.site for decision in inputs.mapping.decisions}
    with progress("calibrate") as report:
        calibration = calibrate(graph, inputs.calibrated, recipe, limit=inputs.calibrate_limit, progress=report)
    fixed = {site: choice for site, choice in recipe.sites.items() if site not in decided}
    candidates = {
        name: uniform_model(graph, calibration, recipe, name, inputs.methods, fixed) for name in inputs.methods
    }
    scored = decided.union(*(candidate.sites for candidate in candidates.values()))
    sites = tuple(node.name for node in graph.nodes if node.name in scored)
    return Made(calibration, candidates, lower(graph, calibration, recipe), sites)


def rows(inputs: Inputs, made: Made, live: LiveActivations, progress: Progress) -> Table[Key]:
    """Scores of every model at its sites and at the outputs, image by image."""
    variants = [Variant(name, each.recipe, each.sites) for name, each in made.candidates.items()]
    variants.append(Variant(MIXED, inputs.recipe, made.sites))
    task, done = Task(inputs.graph, made.calibration, UNIFORM, tuple(variants)), 0
    with progress("scores") as report:

        def more(n: int) -> None:
            nonlocal done
            done += n
            report(done, inputs.n_images)

        return score(task, live, inputs.images, (0, inputs.n_images), threads=inputs.threads, progress=more)


def evaluated(inputs: Inputs, made: Made, progress: Progress) -> dict[str, Array]:
    """OUTCOME (N,) of each model; that of the float model has its own classes as `integer_class`, and no noise."""
    floats: dict[int, Array] = {}
    found: dict[str, Array] = {}
    for name, graph in made.graphs.items():
        with progress(f"outputs of {name}") as report:
            found[name] = outcomes(graph, inputs.images, inputs.model, limit=inputs.limit, threads=inputs.threads,
                                   floats=floats, progress=report)  # fmt: skip
    of_float = found[MIXED].copy()
    of_float["integer_class"], of_float["noise"] = of_float["float_class"], 0
    return {FLOAT: of_float, **found}


def judged(found: dict[str, Array], methods: Sequence[str], seed: int) -> tuple[list[Model], str]:
    """What OUTCOME (N,) of each model comes to, and the best uniform model, by the SQNR of its outputs."""
    sums = {name: math.fsum(found[name]["noise"]) for name in methods}
    best = min(methods, key=sums.__getitem__)
    models: list[Model] = []
    for name, of in found.items():
        told, right = summary(of), _right(of)
        kind: Kind = "float" if name == FLOAT else "mapping" if name == MIXED else "uniform"
        values: dict[str, Any] = {"top1": None if right is None else mean(right, seed)}
        if name != best and right is not None:
            values["top1_gain"] = mean(right - _right(found[best]), seed)
        if name != FLOAT:
            values |= {key: finite(told[key]) for key in ("agreement", "sqnr", "kl", "cosine") if key in told}
            if name != best:
                values["sqnr_gain"] = _estimate(rules.difference(of["noise"], found[best]["noise"], seed), len(of))
        models.append(Model(name=name, kind=kind, **values))
    return models, best


def _right(found: Array) -> Array | None:
    """Of OUTCOME (N,): 1.0 where the class is the label's, (N,); None without labels."""
    known = found["label"][0] != MISSING and found["integer_class"][0] != MISSING
    return (found["integer_class"] == found["label"]).astype(np.float64) if known else None


def mean(values: Array, seed: int = 0) -> Estimate:
    """Of one value per image (N,), with its interval over the images."""
    counts = rules.resamples(LOGITS, len(values), seed)
    low, high = rules.interval(counts @ values / counts.sum(axis=1))
    return _estimate(Difference(float(np.mean(values)), low, high), len(values))


def _estimate(found: Difference, n_images: int) -> Estimate:
    """Of one image there is no interval."""
    value, low, high = (finite(each) for each in (found.value, found.low, found.high))
    return Estimate(value=value, low=low, high=high) if n_images > 1 else Estimate(value=value, low=None, high=None)


def sites(inputs: Inputs, made: Made, table: Table[Key]) -> list[Site]:
    """Scores on the test images, and what the rule makes of them beside what it chose on those of the mapping."""
    scores: dict[str, list[Score]] = {}
    for each in rules.scores(table, made.sites, [*inputs.methods, MIXED], inputs.seed):
        values = {key: value for key, value in asdict(each).items() if key not in ("site", "operator")}
        values |= {key: finite(value) for key, value in values.items() if key != "method"}
        values |= {"low": None, "high": None} if inputs.n_images < 2 else {}
        scores.setdefault(each.site, []).append(Score(**values, sqnr_diff=finite(each.sqnr_diff)))
    here = _decisions(inputs, table)
    before = {decision.site: decision for decision in inputs.mapping.decisions}
    skipped = [note for candidate in made.candidates.values() for note in candidate.skipped]
    found: list[Site] = []
    for name in made.sites:
        operator = inputs.graph.node(name).op
        then, now = before.get(name), here.get(name)
        found.append(Site(
            site=name, operator=operator, chosen=inputs.recipe.choice(operator, name).method,
            rule=then.method if then else None, ties=then.ties if then else [], here=now.method if now else None,
            ties_here=list(now.ties) if now else [], scores=scores[name],
            undefined={note.method: printable(note.reason) for note in skipped if note.site == name},
        ))  # fmt: skip
    return found


def _decisions(inputs: Inputs, table: Table[Key]) -> dict[str, Decision]:
    """The rule on the test images; nothing where it is not known here, or read other scores than those of uniform
    models."""
    rule = rules.RULES.get(inputs.mapping.rule)
    if rule is None or inputs.mapping.basis != UNIFORM:
        return {}
    uniform: Table[Key] = Table({key: rows for key, rows in table.rows.items() if key.method in inputs.methods})
    return rules.decide(uniform, rule, inputs.methods, inputs.seed)
