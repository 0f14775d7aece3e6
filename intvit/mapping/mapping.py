"""Mapping: a method for every Softmax, GELU and LayerNorm site, chosen by a rule from scores, and measured.

A method that is undefined at the scale of a site is no candidate there: the next one that is defined stands in for it
in its uniform model, which is noted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Mapping_
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from intvit.analysis.sqnr import mean_decibel, mean_noise
from intvit.errors import IntvitError, placed
from intvit.graph import operators
from intvit.graph.ir import LOGITS, FloatGraph
from intvit.lowering.calibrate import Activations, Calibration
from intvit.lowering.recipe import Choice, Recipe
from intvit.mapping import rules
from intvit.mapping.candidates import Candidate, Skipped, uniform_model
from intvit.mapping.rules import TIE_BREAK, Decision, Difference, Rule, Score
from intvit.mapping.scores import BASES, PREFIX, UNIFORM, Images, Key, Task, Variant, score
from intvit.mapping.tables import Table

MIXED = "mixed"


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
    skipped: tuple[Skipped, ...] = ()
    uniform: str | None = None
    seed: int = 0

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
            if key.site == LOGITS and key.method != MIXED
        }

    @cached_property
    def outputs(self) -> dict[str, float]:
        """Mean SQNR (`sqnr.mean_noise`) of the outputs of each uniform model and of the `mixed` one of the rule, dB."""
        return {
            key.method: mean_noise(rows["ratio_out"])
            for key, rows in self.of(UNIFORM).rows.items()
            if key.site == LOGITS
        }

    @cached_property
    def best(self) -> str:
        """The best uniform model, by the SQNR of its outputs."""
        return max((name for name in self.outputs if name != MIXED), key=self.outputs.__getitem__)

    @cached_property
    def gain(self) -> Difference:
        """SQNR of the rule's outputs less that of the best uniform model's."""
        noise = rules.output_noise(self.of(UNIFORM))
        return rules.difference(noise[MIXED], noise[self.best], self.seed)

    @property
    def note(self) -> str | None:
        """One line about a choice that is not the rule's, or that is worse than another."""
        if self.outputs[MIXED] >= self.outputs[self.best]:
            return None
        text = (
            f"rule {self.rule} chose a model of {self.outputs[MIXED]:.1f} dB at the outputs, worse than uniform "
            f"{self.best} with {self.outputs[self.best]:.1f} dB ({self.gain})"
        )
        if self.uniform is None:
            return text
        return f"{text}: the mapping holds uniform {self.uniform} (map --no-fallback keeps the rule's)"

    def by_site(self) -> dict[str, list[Score]]:
        sites: dict[str, list[Score]] = {}
        for each in self.scores:
            sites.setdefault(each.site, []).append(each)
        return sites

    def as_json(self) -> dict[str, Any]:
        return {
            "format": "intvit.mapping",
            "version": 1,
            "rule": self.rule,
            "basis": self.basis,
            "scores": [{**_plain(asdict(s)), **_plain({
                "sqnr_diff": s.sqnr_diff})} for s in self.scores],
            "decisions": [asdict(decision) for decision in self.decisions.values()],
            "tie_break": TIE_BREAK,
            "intervals": {"resamples": rules.RESAMPLES, "confidence": rules.CONFIDENCE, "seed": self.seed},
            "logits_asqnr": _plain(self.logits),
            "outputs_sqnr": _plain(self.outputs),
            "gain_over_uniform": {"uniform": self.best, **_plain(asdict(self.gain))},
            "fallback": self.uniform,
            "skipped": [vars(s) for s in self.skipped],
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
        }  # fmt: skip

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.as_json(), indent=1, sort_keys=True) + "\n")


def _plain(values: Mapping_[str, Any]) -> dict[str, Any]:
    """With finite numbers to four digits, and none for others."""
    return {
        key: (round(value, 4) if math.isfinite(value) else None) if isinstance(value, float) else value
        for key, value in values.items()
    }


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
    progress: Callable[[int, int], None] | None = None,
) -> Mapping:
    """Run each uniform model on the recorded `images` (or the first `limit` of them) and choose per site.

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
    passes = {UNIFORM: 2, PREFIX: 2 + len(sites)}.get(basis, 3)
    done = 0

    def scores(basis: str, variants: Sequence[Variant]) -> Table[Key]:
        nonlocal done

        def more(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress(done, passes * n_images)

        task = Task(graph, calibration, basis, tuple(variants))
        return score(task, recording, images, (0, n_images), batch=batch, threads=threads, progress=more)

    tables = [scores(UNIFORM, [Variant(name, found.recipe, found.sites) for name, found in candidates.items()])]
    if basis == PREFIX:
        decisions, read = _in_turn(candidates, recipe, sites, fixed, found, seed, scores)
        tables.append(read)
    else:
        if basis != UNIFORM:
            variants = [Variant(name, found.recipe, found.sites, outputs=False) for name, found in candidates.items()]
            tables.append(scores(basis, variants))
        decisions = rules.decide(tables[-1], found, methods, seed)
    decisions = {site: decisions[site] for site in sites}
    chosen = _with(recipe, candidates, decisions, fixed)
    tables.append(scores(UNIFORM, [Variant(MIXED, chosen, ())]))
    skipped = tuple(note for found in candidates.values() for note in found.skipped)
    mapping = Mapping(rule, basis, Table.merged(tables), methods, sites, decisions, chosen, skipped, seed=seed)
    if not (fallback and mapping.outputs[MIXED] < mapping.outputs[mapping.best]):
        return mapping
    uniform = candidates[mapping.best].recipe
    stated = {
        node.name: uniform.choice(node.op, node.name) for node in graph.nodes if node.op in operators.with_methods()
    }
    recipe = recipe.model_copy(update={"sites": stated})
    return replace(mapping, recipe=recipe, uniform=mapping.best)


def checked_sites(graph: FloatGraph, fixed: Mapping_[str, Choice]) -> dict[str, Choice]:
    """IntvitError for a site that there is not, or a method that it cannot have."""
    for site, choice in fixed.items():
        node = graph.by_name.get(site)
        if node is None or node.op not in operators.with_methods():
            raise IntvitError(f"{site}: must be a site of the model that has methods, and is none")
        with placed(site):
            choice.check(node.op)
    return dict(fixed)


def _with(
    recipe: Recipe,
    candidates: Mapping_[str, Candidate],
    decisions: Mapping_[str, Decision],
    fixed: Mapping_[str, Choice],
) -> Recipe:
    """The recipe with the chosen method at every site."""
    chosen = {
        site: candidates[decision.method].recipe.choice(decision.operator, site)
        for site, decision in decisions.items()
    }  # fmt: skip
    return recipe.model_copy(update={"sites": {**recipe.sites, **chosen, **fixed}})


def _in_turn(
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
                tried = _with(candidate.recipe, candidates, decisions, fixed)
                variants.append(Variant(name, tried, (site,), outputs=False))
        tables.append(scores(PREFIX, variants))
        decisions |= rules.decide(tables[-1], rule, list(candidates), seed)
    return decisions, Table.merged(tables)
