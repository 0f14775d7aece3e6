"""Mapping: a method for every Softmax, GELU and LayerNorm site, chosen by a rule from scores, and measured.

A method that is undefined at the scale of a site is no candidate there: the next one that is defined stands in for it
in its uniform model, which is noted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Mapping_
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intvit.analysis.sqnr import decibel, mean_decibel
from intvit.errors import IntvitError, placed
from intvit.files.records import plain
from intvit.graph import operators
from intvit.graph.ir import LOGITS, Array, FloatGraph
from intvit.lowering.calibrate import Activations, Calibration
from intvit.lowering.recipe import Choice, Recipe
from intvit.mapping import rules
from intvit.mapping.candidates import Candidate, Skipped, uniform_model
from intvit.mapping.quadratic import Constraints
from intvit.mapping.rules import TIE_BREAK, Decision, Difference, Rule, Score
from intvit.mapping.scores import BASES, PREFIX, UNIFORM, Images, Key, Task, Variant, score
from intvit.mapping.search import Found, Measured, Problem, run
from intvit.mapping.space import Space
from intvit.mapping.store import Store
from intvit.mapping.tables import Table
from intvit.mapping.workers import Shards

MIXED, SEARCHED = "mixed", "searched"


@dataclass(frozen=True)
class Search:
    """What to search for, and how (`search`). `labels` of the images, for the objective top1; `store` keeps what was
    measured, so that a search that was ended goes on."""

    kind: str
    objective: str = "sqnr"
    constraints: Constraints = field(default_factory=Constraints)
    budget: int | None = None
    confidence: float = rules.CONFIDENCE
    labels: Array | None = None
    store: Store | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Mapping:
    """Scores of every candidate at every site, the choice that `rule` makes of them, and what it is worth.

    `basis`: in which of three ways the methods were scored (`scores`). `uniform`: the uniform model whose methods
    `recipe` holds, as that of the rule was measured to be worse on these images.
    """

    rule: str
    basis: str
    table: Table[Key]
    """Rows of the uniform models, of the basis if that is another, and of the outputs of the `mixed` one."""
    methods: tuple[str, ...]
    """The candidates."""
    sites: tuple[str, ...]
    """In order of execution."""
    decisions: Mapping_[str, Decision]
    recipe: Recipe
    images: tuple[str, int]
    """sha256 of the images that were measured on, and how many they are."""
    skipped: tuple[Skipped, ...] = ()
    uniform: str | None = None
    seed: int = 0
    found: Found | None = None
    """What a search found, which `recipe` holds then."""

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """Of the basis that the rule read."""
        return tuple(rules.scores(self.of(self.basis), self.sites, self.methods, self.seed))

    def of(self, basis: str) -> Table[Key]:
        return Table({key: rows for key, rows in self.table.rows.items() if key.basis == basis})

    @cached_property
    def logits(self) -> dict[str, float]:
        """ASQNR of each uniform model's outputs, dB as in the paper (20 log10)."""
        return {
            key.method: mean_decibel(rows["ratio_out"])
            for key, rows in self.of(UNIFORM).rows.items()
            if key.site == LOGITS and key.method in self.methods
        }

    @cached_property
    def outputs(self) -> dict[str, float]:
        """SQNR of the outputs of each uniform model and of the `mixed` one of the rule, over all images, dB."""
        powers = rules.output_powers(self.of(UNIFORM))
        return {name: decibel(float(np.sum(signal)), float(np.sum(noise))) for name, (signal, noise) in powers.items()}

    @cached_property
    def best(self) -> str:
        """The best uniform model, by the SQNR of its outputs."""
        return max(self.methods, key=self.outputs.__getitem__)

    def gain(self, name: str) -> Difference:
        """SQNR of the outputs of a model less that of the best uniform one's."""
        powers = rules.output_powers(self.of(UNIFORM))
        return rules.difference(powers[name][1], powers[self.best][1], self.seed)

    @property
    def notes(self) -> list[str]:
        """A line about every choice that these images show to be worse than a uniform model, and what became of it."""
        uniform = f"uniform {self.best} with {self.outputs[self.best]:.1f} dB"
        notes: list[str] = []
        if self.outputs[MIXED] < self.outputs[self.best]:
            worse = (
                f"rule {self.rule} chose a model of {self.outputs[MIXED]:.1f} dB at the outputs, worse than {uniform}"
            )
            notes.append(f"{worse} ({self.gain(MIXED)})")
            if self.uniform is not None:
                notes[0] += f": the mapping holds uniform {self.uniform} (map --no-fallback keeps the rule's)"
        if self.found is not None:
            notes += self.found.notes
        if self.found is not None and self.outputs[SEARCHED] < self.outputs[self.best]:
            worse = f"search {self.found.kind} by {self.found.objective} chose {self.outputs[SEARCHED]:.1f} dB"
            notes.append(f"{worse} at the outputs, worse than {uniform} ({self.gain(SEARCHED)})")
        return notes

    def by_site(self) -> dict[str, list[Score]]:
        sites: dict[str, list[Score]] = {}
        for each in self.scores:
            sites.setdefault(each.site, []).append(each)
        return sites

    def as_json(self) -> dict[str, Any]:
        return {
            "format": "intvit.mapping",
            "version": 1,
            "model_sha256": next(iter(self.table.rows)).model,
            "images": {"sha256": self.images[0], "count": self.images[1]},
            "rule": self.rule,
            "basis": self.basis,
            "scores": [_plain({**asdict(s), "sqnr_diff": s.sqnr_diff}) for s in self.scores],
            "decisions": [asdict(decision) for decision in self.decisions.values()],
            "tie_break": TIE_BREAK,
            "intervals": {"resamples": rules.RESAMPLES, "confidence": rules.CONFIDENCE, "seed": self.seed},
            "logits_asqnr": _plain(self.logits),
            "outputs_sqnr": _plain(self.outputs),
            "gain_over_uniform": {
                "uniform": self.best,
                **{name: _plain(asdict(self.gain(name))) for name in self.outputs if name not in self.methods},
            },
            **({} if self.found is None else {"search": self.found.as_json()}),
            "fallback": self.uniform,
            "skipped": [vars(s) for s in self.skipped],
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
        }  # fmt: skip

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.as_json(), indent=1, sort_keys=True) + "\n")


def _plain(value: Any) -> Any:
    """With finite numbers to four digits."""
    return plain(value, lambda number: round(number, 4))


def map_methods(
    graph: FloatGraph,
    recording: Activations,
    images: Images,
    calibration: Calibration,
    recipe: Recipe,
    methods: Sequence[str],
    *,
    rule: str = "sqnr_diff",
    basis: str = UNIFORM,
    fixed: Mapping_[str, Choice] | None = None,
    limit: int | None = None,
    batch: int = 32,
    threads: int | None = None,
    fallback: bool = True,
    seed: int = 0,
    search: Search | None = None,
    shards: Shards | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping:
    """Run each uniform model on the recorded `images` (or the first `limit` of them) and choose per site.

    `shards`: workers to run the models; then activations are theirs, not the recorded ones.
    `fixed`: sites that are not chosen for, and what stands there. The chosen model is run too. Where its outputs are
    worse than those of the best uniform model, the mapping holds that one's methods, unless `fallback` is False.
    """
    found, methods = rules.rule_of(rule), tuple(methods)
    if basis not in BASES:
        raise IntvitError(f"basis: must be one of {', '.join(BASES)}, not {basis!r}")
    if len(set(methods)) < len(methods):
        raise IntvitError(f"methods: must each be named once, not {','.join(methods)}")
    if len(images) < recording.n_images or images.sha256(recording.n_images) != recording.images_sha256:
        raise IntvitError(f"images: must be the {recording.n_images} images that were recorded, and are others")
    fixed = checked_sites(graph, fixed or {})
    n_images = min(limit or recording.n_images, recording.n_images)
    candidates = {name: uniform_model(graph, calibration, recipe, name, methods, fixed) for name in methods}
    scored = {site for candidate in candidates.values() for site in candidate.sites}
    sites = tuple(node.name for node in graph.nodes if node.name in scored)
    passes = {UNIFORM: 2, PREFIX: 2 + len(sites)}.get(basis, 3) + (search is not None)
    done = 0

    def scores(basis: str, variants: Sequence[Variant]) -> Table[Key]:
        nonlocal done

        def more(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress(done, passes * n_images)

        task = Task(graph, calibration, basis, tuple(variants))
        if shards is not None:
            return shards.score(task, images, n_images, more)
        return score(task, recording, images, (0, n_images), batch=batch, threads=threads, progress=more)

    tables = [scores(UNIFORM, [Variant(name, each.recipe, each.sites) for name, each in candidates.items()])]
    if basis == PREFIX:
        decisions, read = in_turn(candidates, recipe, sites, fixed, found, seed, scores)
        tables.append(read)
    else:
        if basis != UNIFORM:
            variants = [Variant(name, each.recipe, each.sites, outputs=False) for name, each in candidates.items()]
            tables.append(scores(basis, variants))
        decisions = rules.decide(tables[-1], found, methods, seed)
    decisions = {site: decisions[site] for site in sites}
    chosen = chosen_recipe(recipe, candidates, decisions, fixed)
    tables.append(scores(UNIFORM, [Variant(MIXED, chosen, ())]))
    skipped = tuple(note for candidate in candidates.values() for note in candidate.skipped)
    measured_on = images.sha256(n_images), n_images
    mapping = Mapping(rule, basis, Table.merged(tables), methods, sites, decisions, chosen, measured_on, skipped,
                      seed=seed)  # fmt: skip
    if search is not None:
        around = recipe.model_copy(update={"sites": {**recipe.sites, **fixed}})
        problem = problem_around(graph, calibration, around, candidates, sites, mapping.best, search.constraints)
        space = problem.space
        measured = Measured(space, recording, images, n_images, search.objective, search.labels, search.store,
                            search.budget, search.confidence, batch, threads, shards, search.progress)  # fmt: skip
        best = run(search.kind, problem, measured, seed)
        space.verify(best.config)
        chosen = space.recipe_of(best.config)
        tables.append(scores(UNIFORM, [Variant(SEARCHED, chosen, ())]))
        return replace(mapping, table=Table.merged(tables), recipe=chosen, found=best)
    if not (fallback and mapping.outputs[MIXED] < mapping.outputs[mapping.best]):
        return mapping
    uniform = candidates[mapping.best].recipe
    stated = {
        node.name: uniform.choice(node.op, node.name) for node in graph.nodes if node.op in operators.with_methods()
    }
    recipe = recipe.model_copy(update={"sites": stated})
    return replace(mapping, recipe=recipe, uniform=mapping.best)


def problem_around(
    graph: FloatGraph, calibration: Calibration, recipe: Recipe, candidates: Mapping_[str, Candidate],
    sites: Sequence[str], best: str, constraints: Constraints,
) -> Problem:  # fmt: skip
    """All mappings of some sites, around the best uniform model."""
    options = {
        site: {name: candidate.choices[site] for name, candidate in candidates.items() if site in candidate.sites}
        for site in sites
    }
    uniform = {
        name: tuple(
            method if (method := candidate.choices[site].method) in options[site] else next(iter(options[site]))
            for site in sites
        )
        for name, candidate in candidates.items()
    }
    space = Space(graph, calibration, recipe, options, uniform[best])
    return Problem(space, constraints, list(dict.fromkeys(uniform.values())))


def checked_sites(graph: FloatGraph, fixed: Mapping_[str, Choice]) -> dict[str, Choice]:
    """IntvitError for a site that there is not, or a method that it cannot have."""
    for site, choice in fixed.items():
        node = graph.by_name.get(site)
        if node is None or node.op not in operators.with_methods():
            raise IntvitError(f"{site}: must be a site of the model that has methods, and is none")
        with placed(site):
            choice.check(node.op)
    return dict(fixed)


def chosen_recipe(
    recipe: Recipe,
    candidates: Mapping_[str, Candidate],
    decisions: Mapping_[str, Decision],
    fixed: Mapping_[str, Choice],
) -> Recipe:
    """The recipe with the chosen method at every site."""
    chosen = {
        site: candidates[decision.method].choices[site]
        for site, decision in decisions.items()
    }  # fmt: skip
    return recipe.model_copy(update={"sites": {**recipe.sites, **chosen, **fixed}})


def in_turn(
    candidates: Mapping_[str, Candidate],
    recipe: Recipe,
    sites: Sequence[str],
    fixed: Mapping_[str, Choice],
    rule: Rule,
    seed: int,
    scores: Callable[[str, Sequence[Variant]], Table[Key]],
) -> tuple[dict[str, Decision], Table[Key]]:
    """Choose site after site, each scored in the model of what is chosen before it."""
    decisions: dict[str, Decision] = {}
    tables: list[Table[Key]] = []
    for site in sites:
        variants: list[Variant] = []
        for name, candidate in candidates.items():
            if site in candidate.sites:
                tried = chosen_recipe(candidate.recipe, candidates, decisions, fixed)
                variants.append(Variant(name, tried, (site,), outputs=False))
        tables.append(scores(PREFIX, variants))
        decisions |= rules.decide(tables[-1], rule, list(candidates), seed)
    return decisions, Table.merged(tables)
