"""Search: the mapping whose model loses least, measured on whole models instead of judged site by site.

greedy: from the best uniform model the single change that gains most, again and again. pairwise: all single changes and
all pairs of them, the optima of the quadratic model that they define, with a bound (`quadratic`), and greedy from the
best of these. exact: every mapping that the constraints allow. tpe: a tree-structured Parzen estimator (Optuna).
Whatever a search predicts, it measures before it hands it out. It leaves the best uniform model only for one that is
surely better, however many were tried (`Measured.better`): the best of a hundred equal ones looks better on any images.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from intvit.analysis.outputs import OUTCOME
from intvit.errors import IntvitError
from intvit.files.records import plain
from intvit.graph.ir import Array
from intvit.lowering.calibrate import Activations
from intvit.mapping.quadratic import Change, Constraints, Optimum, Quadratic, best
from intvit.mapping.rules import CONFIDENCE, surely_less
from intvit.mapping.scores import Images
from intvit.mapping.space import Config, Space
from intvit.mapping.store import Store, key_of
from intvit.mapping.values import float_values
from intvit.mapping.workers import Shards

MOST_MAPPINGS = 20_000
"""That an exact search measures."""
TRIALS = 300
"""Of a tpe search, if there is no budget."""
RADII = (2, 4, 8, 16)
"""Sites that the optimum of a quadratic model may change, beside any number."""
HALVINGS, FEWEST = 4, 24
"""How often a greedy search measures on half of the images first, and the fewest of them."""
GROUP = 48
"""Mappings that are measured, and stored, at once."""


@dataclass(frozen=True)
class Objective:
    """What is to be least: the sum over images of a part of each, over a sum that no mapping changes."""

    parts: Callable[[Array], Array]
    over: Callable[[Array], float]
    classes: bool = False
    labels: bool = False

    def loss(self, rows: Array) -> float:
        """Of OUTCOME (N,)."""
        return float(np.sum(self.parts(rows))) / self.over(rows)


OBJECTIVES = {
    "sqnr": Objective(lambda rows: rows["noise"], lambda rows: float(np.sum(rows["signal"]))),
    "kl": Objective(lambda rows: rows["kl"], len, classes=True),
    "top1": Objective(lambda rows: rows["integer_class"] != rows["label"], len, classes=True, labels=True),
}
"""Noise over signal of the outputs, KL divergence in nats, share of wrong classes."""


class Spent(Exception):
    """The budget is used up."""


@dataclass
class Measured:
    """Outcomes of mappings, each measured once; what is in the store need not be measured again."""

    space: Space
    activations: Activations
    images: Images
    n_images: int
    objective: str = "sqnr"
    labels: Array | None = None
    store: Store | None = None
    budget: int | None = None
    confidence: float = CONFIDENCE
    batch: int = 32
    threads: int | None = None
    shards: Shards | None = None
    progress: Callable[[int, int], None] | None = None
    rows: dict[Config, Array] = field(default_factory=dict)
    _asked: set[Config] = field(default_factory=set)

    @cached_property
    def _facts(self) -> list[Any]:
        labels = None if self.labels is None else self.labels[: self.n_images].tolist()
        return [self.space.identity, self.activations.images_sha256, self.n_images, labels]

    @cached_property
    def _inputs(self) -> tuple[Array, Array]:
        """Images (N, ...) and the float outputs (N, ...), read once for all mappings."""
        graph, known = self.space.graph, set(self.activations.names)
        spans = [(at, min(at + self.batch, self.n_images)) for at in range(0, self.n_images, self.batch)]

        def outputs_of(start: int, stop: int) -> Array:
            read = partial(self.activations.read, start=start, stop=stop)
            return float_values(graph, graph.outputs[0], known, read)

        parts = [(self.images.read(*span), outputs_of(*span)) for span in spans]
        images, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
        return images, outputs

    def _key(self, config: Config, start: int, stop: int) -> str:
        return key_of("outcome", [*self._facts, start, stop, config])

    def expect(self, configs: Iterable[Config]) -> None:
        """These will be asked for: so that progress can say how many there are."""
        self._asked.update(configs)
        self._report()

    def _report(self) -> None:
        if self.progress:
            total = len(self._asked.union(self.rows))
            self.progress(
                len(self.rows), total if self.budget is None else min(total, max(self.budget, len(self.rows)))
            )

    def __call__(self, configs: Iterable[Config], n: int | None = None, *, always: bool = False) -> None:
        """Measure mappings on the first `n` images (left out: on all).

        Spent once the budget is, unless `always`. An undefined mapping counts, with a loss of inf.
        """
        n = n or self.n_images
        missing = [config for config in dict.fromkeys(configs) if not self.has(config, n)]
        missing.sort(key=lambda config: len(self.rows.get(config, ())))  # those that lack the same images together
        while missing:
            new = [config for config in missing if config not in self.rows]
            if self.budget is not None and not always and new and len(self.rows) >= self.budget:
                raise Spent
            first = len(self.rows.get(missing[0], ()))
            room = GROUP if first or always or self.budget is None else min(GROUP, self.budget - len(self.rows))
            group = [config for config in missing[:room] if len(self.rows.get(config, ())) == first]
            missing = missing[len(group) :]
            keys = {config: self._key(config, first, n) for config in group}
            known = {config: self.store.get(key, OUTCOME) for config, key in keys.items()} if self.store else {}
            found = {config: rows for config, rows in known.items() if rows is not None}
            if rest := [config for config in group if config not in found]:
                measured = self._measured(rest, first, n)
                measured |= {config: np.zeros(0, OUTCOME) for config in rest if config not in measured}
                if self.store is not None:
                    self.store.put({keys[config]: rows for config, rows in measured.items()}, "outcome")
                found |= measured
            for config in group:
                self.rows[config] = np.concatenate([self.rows.get(config, found[config][:0]), found[config]])
            self._report()

    def _measured(self, configs: list[Config], start: int, stop: int) -> dict[Config, Array]:
        images, outputs = (array[start:stop] for array in self._inputs)
        labels = None if self.labels is None else self.labels[start:stop]
        if self.shards is not None:
            return self.shards.measure(self.space, configs, images, outputs, labels)
        return self.space.measure(configs, images, outputs, labels=labels, batch=self.batch, threads=self.threads)

    def has(self, config: Config, n: int) -> bool:
        """Whether a mapping is measured on the first `n` images, or is known to be undefined."""
        n_rows = len(self.rows.get(config, ()))
        return n_rows >= n or (config in self.rows and not n_rows)

    def loss(self, config: Config, n: int | None = None) -> float:
        """Of the first `n` images (left out: of all)."""
        rows = self.rows[config][: n or self.n_images]
        return OBJECTIVES[self.objective].loss(rows) if len(rows) else math.inf

    def better(self, config: Config, other: Config, of: int) -> bool:
        """Whether a mapping loses surely less than another, after `of` of them were looked at.

        By the images' parts of the loss (`rules.surely_less`).
        """
        if not self.loss(config) < self.loss(other):
            return False
        parts = OBJECTIVES[self.objective].parts
        return surely_less(parts(self.rows[config]), parts(self.rows[other]), of, self.confidence)

    def known(self, configs: Iterable[Config]) -> list[Config]:
        """Those that are measured on all images."""
        return [config for config in configs if self.has(config, self.n_images)]

    def least(self, configs: Iterable[Config]) -> Config:
        """The measured one with the least loss; of equal ones the first."""
        return min(self.known(configs), key=self.loss)


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured losses: share of the variance that is explained, and rank correlation; `n` of them."""

    n: int
    r2: float
    rank: float

    @staticmethod
    def of(predicted: Sequence[float], measured: Sequence[float]) -> Agreement:
        """
        >>> Agreement.of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
        Agreement(n=3, r2=1.0, rank=1.0)
        """
        x, y = np.asarray(predicted, float), np.asarray(measured, float)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        if len(y) < 2 or np.ptp(y) == 0:
            return Agreement(len(y), math.nan, math.nan)
        r2 = 1 - float(np.sum((y - x) ** 2) / np.sum((y - y.mean()) ** 2))
        return Agreement(len(y), r2, rank_correlation(x, y))


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's, equal values sharing their ranks; NaN where one of them does not vary.

    >>> rank_correlation(np.array([1.0, 5.0, 9.0]), np.array([3.0, 2.0, 1.0]))
    -1.0
    """
    a, b = (_ranks(np.asarray(v, float)) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / length if length else math.nan


def _ranks(x: Array) -> Array:
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[index])


@dataclass(frozen=True)
class Found:
    """What a search measured and chose (`config`). `steps`: the mappings that it went through.

    `refused`: one with a lesser loss on these images, but not surely one on others (`Measured.better`). `optimum`: of
    the quadratic model, in the unit of the objective. `independent`: how well single changes predict those of pairs;
    `quadratic`: how well singles and pairs predict the optima by number of changes, and the neighbours of the best of
    these. `spent`: the budget ended it.
    """

    kind: str
    problem: Problem
    measured: Measured
    config: Config
    refused: Config | None = None
    steps: tuple[Config, ...] = ()
    model: Quadratic | None = None
    optimum: Optimum | None = None
    independent: Agreement | None = None
    quadratic: Agreement | None = None
    spent: bool = False

    @property
    def base(self) -> Config:
        return self.problem.space.base

    @property
    def objective(self) -> str:
        return self.measured.objective

    @property
    def notes(self) -> list[str]:
        """What else these images would have chosen."""
        if self.refused is None:
            return []
        here, there, measured = self.losses[self.config], self.losses[self.refused], self.measured
        return [
            f"search {self.kind}: the best of {len(measured.rows)} mappings loses {1 - there / here:.1%} less than "
            f"what is handed out on these {measured.n_images} images, and not surely on others; more images tell, "
            "--confidence 0 takes it"
        ]

    @cached_property
    def losses(self) -> dict[Config, float]:
        """Of what was measured on all images."""
        return {config: self.measured.loss(config) for config in self.measured.known(self.measured.rows)}

    def as_json(self) -> dict[str, Any]:
        """Losses in the unit of the objective; mappings by what differs from the base."""
        problem, sites = self.problem, self.problem.space.sites

        def changes(config: Config) -> dict[str, str]:
            return {s: m for s, m, usual in zip(sites, config, self.base, strict=True) if m != usual}

        def eight(value: Any) -> Any:
            return plain(value, lambda number: float(f"{number:.8g}"))

        def of(value: Agreement | None) -> Any:
            return None if value is None else eight(asdict(value))

        best = self.optimum
        return {
            "kind": self.kind,
            "objective": self.objective,
            "base": dict(zip(sites, self.base, strict=True)),
            "chosen": changes(self.config),
            "loss": eight({"base": self.losses[self.base], "chosen": self.losses[self.config]}),
            "confidence": self.measured.confidence,
            "not_surely_better": self.refused
            and {"changes": changes(self.refused), "loss": eight(self.losses[self.refused])},
            "mappings": len(self.measured.rows),
            "spent": self.spent,
            "constraints": eight(asdict(problem.constraints)),
            "steps": [changes(config) for config in self.steps],
            "bound": best and eight({"predicted": best.loss, "least": best.bound, "proven": best.proven}),
            "independent": of(self.independent),
            "quadratic": of(self.quadratic),
            "measured": [
                {"changes": changes(config), "loss": eight(loss),
                 "cost": problem.constraints.cost(problem.operators, config)}
                for config, loss in self.losses.items()
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A space with what is allowed in it: where to start, and which moves there are from a mapping."""

    space: Space
    constraints: Constraints
    starts: Sequence[Config]
    """The uniform mappings."""

    @cached_property
    def operators(self) -> tuple[str, ...]:
        return tuple(self.space.graph.node(site).op for site in self.space.sites)

    def allows(self, config: Config) -> bool:
        return self.constraints.allows(self.operators, config)

    def moves(self, config: Config) -> list[Config]:
        """Allowed mappings that differ at one site, or at all sites of a kind."""
        space = self.space
        found = space.singles(config)
        for kind in dict.fromkeys(self.operators):
            for method in _methods(self, kind):
                changes = {site: method for site in _sites(self, kind) if method in space.options[site]}
                found.append(space.changed(changes, config))
        return [other for other in dict.fromkeys(found) if other != config and self.allows(other)]


def greedy(problem: Problem, measured: Measured, seed: int) -> Found:
    steps = [_start(problem, measured)]
    refused, spent = _descend(problem, measured, steps)
    return Found("greedy", problem, measured, steps[-1], refused, steps=tuple(steps), spent=spent)


def _descend(problem: Problem, measured: Measured, steps: list[Config]) -> tuple[Config | None, bool]:
    """Take the move that gains most, again and again; the one that was not surely a gain, and whether the budget ended
    it."""
    spent = False
    while True:
        moves = problem.moves(steps[-1])
        measured.expect(moves)
        try:
            _halve(measured, moves)
        except Spent:
            spent = True
        best = measured.least([steps[-1], *moves])
        if best == steps[-1]:
            return None, spent
        if not measured.better(best, steps[-1], len(moves)):
            return best, spent
        steps.append(best)
        if spent:
            return None, True


def _halve(measured: Measured, moves: Sequence[Config]) -> None:
    """Measure some moves on few images, the better half of them on twice as many, and so on; the last on all."""
    sizes = [measured.n_images]
    while len(sizes) <= HALVINGS and sizes[0] >= 2 * FEWEST:
        sizes.insert(0, -(-sizes[0] // 2))
    for n in sizes[:-1]:
        measured(moves, n)
        losses = {move: measured.loss(move, n) for move in moves}
        moves = sorted(moves, key=losses.__getitem__)[: -(-len(moves) // 2)]
    measured(moves)


def pairwise(problem: Problem, measured: Measured, seed: int) -> Found:
    """Around the base of the space. Pairs that the budget leaves out count as if their changes were independent."""
    space, base = problem.space, problem.space.base
    singles, pairs = space.singles(), list(_pairs(space))
    measured.expect([base, *problem.starts, *singles, *pairs])
    measured([base], always=True)
    spent = False
    try:
        measured([*problem.starts, *singles])
        effect = {config: abs(measured.loss(config) - measured.loss(base)) for config in singles}
        pairs.sort(key=lambda pair: -sum(effect[single] for single in _parts(space, pair)))  # the budget may end
        measured(pairs)
    except Spent:
        spent = True
    model = _quadratic(space, measured, singles, pairs)
    known = [pair for pair in measured.known(pairs) if math.isfinite(measured.loss(pair))]
    independent = Agreement.of([model.loss(c, pairs=False) for c in known], [measured.loss(c) for c in known])
    options = [
        [method for method in space.options[site] if method == base[i] or (i, method) in model.single]
        for i, site in enumerate(space.sites)
    ]
    optimum = best(model, options, problem.operators, problem.constraints, seed=seed)
    # sums of many changes are beyond what pairs can tell: the best of few changes, of more, and of any number
    optima: list[Config] = []
    for n_changes in RADII:
        with suppress(IntvitError):  # so few may not be allowed
            found = best(model, options, problem.operators, problem.constraints, changes=n_changes, seed=seed)
            optima.append(found.config)
    optima = [config for config in dict.fromkeys([*optima, optimum.config]) if problem.allows(config)]
    measured.expect(optima)
    measured(optima, always=True)
    steps = [measured.least(optima)]
    near = [config for config in space.singles(steps[0]) if problem.allows(config)]
    spent = _descend(problem, measured, steps)[1] or spent
    tried = [
        config for config in measured.known([*optima, *near])
        if all(method in known for method, known in zip(config, options, strict=True))
    ]  # fmt: skip
    quadratic = Agreement.of([model.loss(config) for config in tried], [measured.loss(config) for config in tried])
    chosen, refused = _surely(problem, measured)
    return Found("pairwise", problem, measured, chosen, refused, steps=tuple(steps), model=model, optimum=optimum,
                 independent=independent, quadratic=quadratic, spent=spent)  # fmt: skip


def exact(problem: Problem, measured: Measured, seed: int) -> Found:
    """IntvitError for more mappings than `MOST_MAPPINGS` or the budget."""
    most = MOST_MAPPINGS if measured.budget is None else measured.budget
    n_all = math.prod(len(problem.space.options[site]) for site in problem.space.sites)
    hopeless = n_all > 50 * MOST_MAPPINGS and problem.constraints.at_most != 1  # not even to be counted
    found = [] if hopeless else list(itertools.islice(_every(problem), most + 1))
    if hopeless or len(found) > most:
        rule = "fix sites, name fewer methods, or allow one method a kind (--at-most 1)"
        raise IntvitError(f"search: exact must have at most {most} mappings to measure, not {n_all:.3g}: {rule}")
    if not found:
        raise IntvitError("constraints: must allow one mapping at least, and allow none")
    measured.expect(found)
    measured(found)
    return Found("exact", problem, measured, *_surely(problem, measured))


def tpe(problem: Problem, measured: Measured, seed: int) -> Found:
    """A mapping that the constraints do not allow is brought to one: methods that are rare among a kind give way."""
    optuna = _optuna()
    space = problem.space
    n_trials = TRIALS if measured.budget is None else measured.budget
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, n_trials // 10)))
    for known in (space.base, *problem.starts):
        study.enqueue_trial(dict(zip(space.sites, known, strict=True)), skip_if_exists=True)
    spent = False
    try:
        for _ in range(4 * n_trials):  # trials of mappings that are known cost nothing
            trial = study.ask()
            asked = tuple(trial.suggest_categorical(site, list(space.options[site])) for site in space.sites)
            config = _allowed(problem, asked)
            if config is not None:
                measured.expect([config])
                measured([config])
            if config is not None and math.isfinite(measured.loss(config)):
                study.tell(trial, measured.loss(config))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if len(measured.rows) >= n_trials:
                break
    except Spent:
        spent = True
    return Found("tpe", problem, measured, *_surely(problem, measured), spent=spent)


SEARCHES: dict[str, Callable[[Problem, Measured, int], Found]] = {
    "greedy": greedy, "pairwise": pairwise, "exact": exact, "tpe": tpe,
}  # fmt: skip


def run(kind: str, problem: Problem, measured: Measured, seed: int = 0) -> Found:
    """IntvitError for an unknown kind or objective, and constraints that allow nothing."""
    if kind not in SEARCHES:
        raise IntvitError(f"search: must be one of {', '.join(SEARCHES)}, not {kind!r}")
    if measured.objective not in OBJECTIVES:
        raise IntvitError(f"objective: must be one of {', '.join(OBJECTIVES)}, not {measured.objective!r}")
    objective, graph = OBJECTIVES[measured.objective], problem.space.graph
    if objective.classes and len(graph.tensors[graph.outputs[0]].shape) != 1:
        raise IntvitError(f"objective: {measured.objective} must have outputs that are classes, and has others")
    if objective.labels and measured.labels is None:
        raise IntvitError(f"objective: {measured.objective} must have labelled images, and has none")
    found = SEARCHES[kind](problem, measured, seed)
    measured([found.base], always=True)  # what changes are changes of
    return found


def _start(problem: Problem, measured: Measured) -> Config:
    """The best uniform mapping that is allowed; IntvitError if none is."""
    allowed = [config for config in problem.starts if problem.allows(config)]
    if not allowed:
        raise IntvitError("constraints: must allow one of the uniform models at least, and allow none")
    measured.expect(allowed)
    measured(allowed, always=True)
    return measured.least(allowed)


def _surely(problem: Problem, measured: Measured) -> tuple[Config, Config | None]:
    """The best allowed mapping of all that were measured; the best uniform one and that, if it is not surely better."""
    allowed = [config for config in measured.known(measured.rows) if problem.allows(config)]
    if not any(math.isfinite(measured.loss(config)) for config in allowed):
        raise IntvitError("search: must find a mapping that is defined and allowed, and found none")
    best = measured.least(allowed)
    starts = [config for config in measured.known(problem.starts) if config in allowed]
    start = measured.least(starts) if starts else best
    if best == start or measured.better(best, start, len(measured.rows)):
        return best, None
    return start, best if measured.loss(best) < measured.loss(start) else None


def _pairs(space: Space) -> Iterator[Config]:
    """Every mapping that differs from the base at two sites."""
    changes = [
        [(site, method) for method in space.options[site] if method != usual]
        for site, usual in zip(space.sites, space.base, strict=True)
    ]
    for one, other in itertools.combinations(changes, 2):
        for a, b in itertools.product(one, other):
            yield space.changed(dict([a, b]))


def _changes(space: Space, config: Config) -> list[Change]:
    return [(i, m) for i, (m, usual) in enumerate(zip(config, space.base, strict=True)) if m != usual]


def _parts(space: Space, config: Config) -> list[Config]:
    """The single changes that make up a mapping."""
    return [space.changed({space.sites[i]: method}) for i, method in _changes(space, config)]


def _quadratic(space: Space, measured: Measured, singles: Sequence[Config], pairs: Sequence[Config]) -> Quadratic:
    start = measured.loss(space.base)
    single = {
        _changes(space, config)[0]: measured.loss(config) - start
        for config in measured.known(singles)
        if math.isfinite(measured.loss(config))
    }
    worst = sum(map(abs, single.values())) + abs(start)
    pair: dict[tuple[Change, Change], float] = {}
    for config in measured.known(pairs):
        a, b = _changes(space, config)
        if a in single and b in single:
            alone = start + single[a] + single[b]
            pair[a, b] = min(measured.loss(config), alone + 10 * worst) - alone  # two that cannot be together: never
    return Quadratic(start, space.base, single, pair)


def _every(problem: Problem) -> Iterator[Config]:
    """Every allowed mapping."""
    space = problem.space
    kinds = list(dict.fromkeys(problem.operators))
    if problem.constraints.at_most == 1:
        methods = [
            [m for m in _methods(problem, kind) if all(m in space.options[site] for site in _sites(problem, kind))]
            for kind in kinds
        ]
        configs: Iterator[Config] = (
            tuple(dict(zip(kinds, chosen, strict=True))[kind] for kind in problem.operators)
            for chosen in itertools.product(*methods)
        )
    else:
        configs = itertools.product(*(space.options[site] for site in space.sites))
    return (config for config in configs if problem.allows(config))


def _sites(problem: Problem, kind: str) -> list[str]:
    return [site for site, of in zip(problem.space.sites, problem.operators, strict=True) if of == kind]


def _methods(problem: Problem, kind: str) -> list[str]:
    return list(dict.fromkeys(m for site in _sites(problem, kind) for m in problem.space.options[site]))


def _allowed(problem: Problem, config: Config) -> Config | None:
    """A mapping, or one that is allowed in its place; None if there is none by the same methods."""
    most, methods = problem.constraints.at_most, dict(zip(problem.space.sites, config, strict=True))
    for kind in dict.fromkeys(problem.operators) if most is not None else ():
        sites = _sites(problem, kind)
        kept = [method for method, _ in Counter(methods[site] for site in sites).most_common(most)]
        for site in sites:
            fitting = [method for method in kept if method in problem.space.options[site]]
            if not fitting:
                return None
            methods[site] = methods[site] if methods[site] in fitting else fitting[0]
    found = tuple(methods.values())
    return found if problem.allows(found) else None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise IntvitError("search: tpe must have optuna: pip install 'intvit[search]'") from None
    return optuna
