"""The best mapping of a quadratic model of the loss, by a mixed-integer program, with a proof of how good it is.

loss(mapping) = start + sum of single changes + sum of interactions of pairs. One binary variable says whether a site
has a method, one for every pair of methods at two sites whether both are there; these are tied to the binary ones by
their sums (the local polytope), which leaves little between relaxation and optimum.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intvit.errors import IntvitError, reading
from intvit.files import read_text
from intvit.graph import operators
from intvit.kernels import registry

if TYPE_CHECKING:
    from intvit.mapping.space import Config

Change = tuple[int, str]
"""A method at the site of this number."""


@dataclass(frozen=True)
class Quadratic:
    """`single[change]` and `pair[change, change]` (the earlier site first) add to `start`; no pair adds nothing."""

    start: float
    base: Config
    single: Mapping[Change, float]
    pair: Mapping[tuple[Change, Change], float]

    def loss(self, config: Config, *, pairs: bool = True) -> float:
        """Predicted; without `pairs` as if every site were alone."""
        changes = [
            (i, method) for i, (method, usual) in enumerate(zip(config, self.base, strict=True)) if method != usual
        ]
        terms = [self.single[change] for change in changes]
        if pairs:
            terms += [self.pair.get(both, 0.0) for both in itertools.combinations(changes, 2)]
        return self.start + math.fsum(terms)


@dataclass(frozen=True)
class Constraints:
    """What an accelerator can have. `at_most`: methods of a kind of operator; `costs[operator][method]` of a site, and
    `most_cost` of all of them together."""

    at_most: int | None = None
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    most_cost: float | None = None

    def cost(self, kinds: Sequence[str], config: Config) -> float:
        return math.fsum(self.costs.get(kind, {}).get(method, 0.0) for kind, method in zip(kinds, config, strict=True))

    def allows(self, kinds: Sequence[str], config: Config) -> bool:
        if self.at_most is not None:
            used: dict[str, set[str]] = {}
            for kind, method in zip(kinds, config, strict=True):
                used.setdefault(kind, set()).add(method)
            if any(len(methods) > self.at_most for methods in used.values()):
                return False
        return self.most_cost is None or self.cost(kinds, config) <= self.most_cost * (1 + 1e-12)


def read_constraints(at_most: int | None, costs: Path | None, most_cost: float | None) -> Constraints:
    """IntvitError for a file that is no table of numbers by operator and method, and for a limit without one."""
    if (costs is None) != (most_cost is None):
        raise IntvitError("--costs and --most-cost: must be given together")
    if costs is None:
        return Constraints(at_most)
    text = read_text(costs)
    with reading(costs, "TOML"):
        tables = tomllib.loads(text)
    for operator, table in tables.items():
        if operator not in operators.with_methods() or not isinstance(table, dict):
            raise IntvitError(f"{costs}: {operator}: must be a table named {', '.join(operators.with_methods())}")
        for method, cost in table.items():
            known = sorted({m.name for m in registry.methods(operator)})
            if method not in known:
                raise IntvitError(f"{costs}: {operator}.{method}: must be one of {', '.join(known)}")
            if type(cost) not in (int, float) or not 0 <= cost < math.inf:
                raise IntvitError(f"{costs}: {operator}.{method}: must be a number of at least 0, not {cost!r}")
    return Constraints(at_most, tables, most_cost)


@dataclass(frozen=True)
class Optimum:
    """The best mapping found, its predicted loss, and the least loss that any mapping can have by the model."""

    config: Config
    loss: float
    bound: float
    proven: bool


def best(
    model: Quadratic,
    options: Sequence[Sequence[str]],
    kinds: Sequence[str],
    constraints: Constraints,
    *,
    changes: int | None = None,
    seconds: float = 60.0,
    seed: int = 0,
) -> Optimum:
    """Minimize the model over all mappings that the constraints allow, with at most so many `changes` from its base.

    IntvitError if there is none.
    """
    highspy = _highspy()
    solver = highspy.Highs()
    for key, value in (("output_flag", False), ("threads", 1), ("random_seed", seed), ("time_limit", seconds),
                       ("mip_rel_gap", 0.0), ("mip_abs_gap", 1e-9)):  # fmt: skip
        solver.setOptionValue(key, value)
    n_columns = 0

    def column(cost: float, *, binary: bool) -> int:
        nonlocal n_columns
        solver.addVar(0.0, 1.0)
        solver.changeColCost(n_columns, cost)
        if binary:
            solver.changeColIntegrality(n_columns, highspy.HighsVarType.kInteger)
        n_columns += 1
        return n_columns - 1

    def row(low: float, high: float, terms: Mapping[int, float]) -> None:
        solver.addRow(low, high, len(terms), list(terms), list(terms.values()))

    infinity = solver.getInfinity()
    unit = abs(model.start) or 1.0  # tolerances are absolute
    has = {
        (i, method): column(model.single.get((i, method), 0.0) / unit, binary=True)
        for i, methods in enumerate(options) for method in methods
    }  # fmt: skip
    for i, methods in enumerate(options):
        row(1.0, 1.0, {has[i, method]: 1.0 for method in methods})
    for i, j in itertools.combinations(range(len(options)), 2):
        terms = {(a, b): model.pair.get(((i, a), (j, b)), 0.0) / unit for a in options[i] for b in options[j]}
        if not any(terms.values()):
            continue
        both = {pair: column(cost, binary=False) for pair, cost in terms.items()}
        for a in options[i]:
            row(0.0, 0.0, {**{both[a, b]: 1.0 for b in options[j]}, has[i, a]: -1.0})
        for b in options[j]:
            row(0.0, 0.0, {**{both[a, b]: 1.0 for a in options[i]}, has[j, b]: -1.0})
    if constraints.at_most is not None:
        for kind in dict.fromkeys(kinds):
            sites = [i for i, of in enumerate(kinds) if of == kind]
            used = {m: column(0.0, binary=True) for m in dict.fromkeys(m for i in sites for m in options[i])}
            for i in sites:
                for method in options[i]:
                    row(0.0, infinity, {used[method]: 1.0, has[i, method]: -1.0})
            row(0.0, float(constraints.at_most), dict.fromkeys(used.values(), 1.0))
    if constraints.most_cost is not None:
        costs = {at: constraints.costs.get(kinds[i], {}).get(method, 0.0) for (i, method), at in has.items()}
        row(-infinity, constraints.most_cost, {at: cost for at, cost in costs.items() if cost})
    if changes is not None:
        row(-infinity, float(changes), {at: 1.0 for (i, method), at in has.items() if method != model.base[i]})
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    values = list(solver.getSolution().col_value)
    if status == highspy.HighsModelStatus.kInfeasible:
        raise IntvitError("constraints: must allow one mapping at least, and allow none")
    if not values or info.primal_solution_status != 2:
        raise IntvitError(f"search: must find a mapping within {seconds:.0f} s, and found none")
    chosen = {i: method for (i, method), at in has.items() if values[at] > 0.5}
    config = tuple(chosen[i] for i in range(len(options)))
    bound = model.start + unit * float(info.mip_dual_bound)
    return Optimum(config, model.loss(config), bound, status == highspy.HighsModelStatus.kOptimal)


def _highspy() -> Any:
    try:
        import highspy
    except ImportError:
        raise IntvitError("search: must have highspy: pip install 'intvit[search]'") from None
    return highspy
