"""Candidates: uniform models, one method everywhere, and what stands in where it is undefined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intvit.errors import Infeasible, IntvitError
from intvit.graph import operators
from intvit.graph.ir import FloatGraph, IntGraph
from intvit.kernels import registry
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower_feasible
from intvit.lowering.recipe import Choice, Recipe

PUBLISHED = ("ibert", "fqvit", "ivit")
"""The candidates of the paper."""


def default_candidates(graph: FloatGraph) -> tuple[str, ...]:
    """Those of the paper's candidates that have a method for an operator of this model."""
    kinds = {node.op for node in graph.nodes}
    return tuple(name for name in PUBLISHED if any(m.name == name and m.operator in kinds for m in registry.methods()))


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
class Candidate:
    """A uniform model and its recipe, in which other methods stand at the sites where its own is undefined.

    `choices`: at every site but the fixed ones. `sites`: where it has its own method, and none is borrowed.
    """

    graph: IntGraph
    recipe: Recipe
    skipped: tuple[Skipped, ...]
    choices: dict[str, Choice]
    sites: tuple[str, ...]


def uniform_model(
    graph: FloatGraph,
    calibration: Calibration,
    recipe: Recipe,
    method: str,
    methods: tuple[str, ...],
    fixed: Mapping[str, Choice] | None = None,
) -> Candidate:
    """Lower the uniform model of `method`; where that is undefined, the first of `methods` that is not stands in.

    `fixed`: the choices of sites that are not its to make.
    """
    fixed = dict(fixed or {})
    uniform = recipe.with_method(method)
    uniform = uniform.model_copy(update={"sites": {**uniform.sites, **fixed}})

    def stand_in(refused: list[Infeasible]) -> Choice:
        site = refused[-1].site
        if site in fixed:
            raise refused[-1]
        tries = [recipe.with_method(name).choice(graph.node(site).op, site) for name in (method, *methods)]
        others = list({c.method: c for c in tries}.values())[len(refused) :]
        if not others:
            raise IntvitError(f"{site}: no candidate is left here: {'; '.join(e.why for e in refused)}") from None
        return others[0]

    lowered, uniform, tried = lower_feasible(graph, calibration, uniform, stand_in)
    nodes = [node for node in graph.nodes if node.op in operators.with_methods() and node.name not in fixed]
    choices = {node.name: uniform.choice(node.op, node.name) for node in nodes}
    own = tuple(site for site, choice in choices.items() if choice.method == method)
    if not own:
        first = next(iter(tried.values()), None)
        why = first[0] if first else "it has no operator of its own"
        raise IntvitError(f"{method}: must be defined at one site of the model at least, and is at none: {why}")
    skipped = (
        Skipped(node.name, node.op, recipe.with_method(method).choice(node.op, node.name).method,
                choices[node.name].method, tried[node.name][0].why)
        for node in nodes if node.name in tried
    )  # fmt: skip
    return Candidate(lowered, uniform, tuple(skipped), choices, own)
