"""Observer `auto`: for every quantizer the range with which the outputs lose least, measured one by one.

A quantizer is judged with everything else float (`emulation`): with the range of each observer and with a share of the
extremes, first on few images, where it matters on more. Then the integer model of all choices is measured beside those
of one observer everywhere, on many images, and the best of those is taken that are surely better than minmax
everywhere; then what was taken beside itself with slopes corrected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intvit.analysis.emulation import ROUNDING, Emulation, flipped
from intvit.analysis.sqnr import decibel
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.files.memory import fitting
from intvit.floats.model import FloatModel
from intvit.graph import operators
from intvit.graph.ir import Array, FloatGraph, IntGraph, Node
from intvit.lowering import widths
from intvit.lowering.bias import Rows
from intvit.lowering.calibrate import Activations, Calibration, calibrate, observer_of, stated
from intvit.lowering.context import Infeasible, lower
from intvit.lowering.observers import RangeObserver, seen_as
from intvit.lowering.recipe import OBSERVERS, Quantizers, Recipe
from intvit.mapping.candidates import uniform_model
from intvit.mapping.rules import surely_less

AUTO, SLOPES = "auto", " with slopes"
N_VALUES, FEWEST, MOST = 1000, 2, 32
"""Of the outputs, on which a part of a model is judged; images that they come from."""
FIRST, MORE = 4, 6
"""Images at least that judge a quantizer, a quarter of them first; so many times as many do at last."""
MATTERS = 0.002
"""A gain that does, over the errors of all that are judged with it."""
BATCH = 8
RANGES = {
    **{kind: Quantizers.model_validate({"observer": kind}) for kind in OBSERVERS},
    **{f"{share:.0%} of minmax": Quantizers(observer="minmax", range=share) for share in (0.85, 0.7, 0.5)},
}
"""What is tried for a quantizer."""
USUAL = "minmax"
STATE = 2
"""Times the tensors of an image that judging it holds."""
AGAIN = 3
"""Of these that are judged on more images, beside the usual one."""
Group = tuple[tuple[str, ...], tuple[str, ...]]
"""(sites that state it, float tensors that are rounded) of one range."""
Errors = dict[str, float]
"""What is tried -> squared error of the outputs if nothing else is quantized."""
Progress = Callable[[int, int], None]


def enough(recipe: Recipe, limit: int | None) -> int | None:
    """How many images are of use where `limit` are calibrated on: `auto` judges on those behind them."""
    return limit if limit is None or recipe.observer.kind != AUTO else limit + MORE * MOST


def judging(graph: FloatGraph, n_images: int) -> int:
    """How many images are enough to judge outputs by."""
    n_values = int(np.prod(graph.tensors[graph.outputs[0]].shape))
    return min(max(N_VALUES // n_values, FEWEST), MOST, n_images)


@dataclass(frozen=True)
class Resolved:
    """A recipe without `auto`, and what was measured: SQNR of the outputs on `n_images` images, dB."""

    recipe: Recipe
    sqnr: dict[str, float]
    taken: str
    """Of these."""
    chosen: dict[str, int]
    """What is tried -> quantizers that it is chosen for."""
    n_images: int
    method: str | None = None
    """The uniform candidate that was measured; None: the recipe's own methods."""

    @property
    def note(self) -> str:
        measured = ", ".join(f"{kind} {value:.1f}" for kind, value in self.sqnr.items())
        chosen = ", ".join(f"{kind} {count}" for kind, count in self.chosen.items())
        best = max(self.sqnr, key=self.sqnr.__getitem__)
        why = "" if best == self.taken else f", as {best} is not surely better"
        where = f" in uniform {self.method}" if self.method else ""
        measured = f"{measured} dB{where} on {self.n_images} images"
        return f"observer auto: {measured}; taken {self.taken} (quantizers: {chosen}){why}"


def resolved(
    graph: FloatGraph,
    model: FloatModel,
    activations: Activations,
    recipe: Recipe,
    *,
    limit: int | None = None,
    judged: int | None = None,
    methods: Sequence[str] = (),
    progress: Progress | None = None,
) -> Resolved:
    """Choose the range of every quantizer of at most 8 bits; wider ones keep minmax.

    `limit`: of the images of `activations`, those that are calibrated on. Those behind them judge single quantizers,
    if there are enough: on its own images a range leaves nothing out. `judged`: those that judge whole models, left out
    as many as are calibrated on. Extremes are those of all images: the recipe that is found has no momentum.
    `methods`: uniform candidates, where methods are yet to be chosen; the best of them by minmax is what is judged in,
    as one may be best in a model that nobody will use. Raises IntvitError if the model cannot be lowered with any
    observer.
    """
    if graph.metadata.get("trained"):
        raise IntvitError("observer: must not be auto, as the weights were trained with the ranges that they came with")
    recipe = recipe.model_copy(update={"observer": recipe.observer.model_copy(update={"momentum": 0.0})})
    n_judged = min(judged or limit or activations.n_images, activations.n_images)
    judge = _Judge(graph, model, activations, n_judged, progress)
    method, asked = None, recipe
    if methods:
        usual_recipe = _with(recipe, USUAL)
        plain = calibrate(graph, activations, usual_recipe, limit=limit)
        uniform = {name: uniform_model(graph, plain, usual_recipe, name, tuple(methods)) for name in methods}
        losses = judge.noises({name: each.graph for name, each in uniform.items()})
        method = min(losses, key=lambda name: float(np.sum(losses[name])))
        recipe = _with(uniform[method].recipe, AUTO)
    groups = _groups(graph, recipe)
    recipes = _tried(recipe, groups)
    counted = calibrate(graph, activations, recipes["kl"], limit=limit)
    lowered = _lowered(graph, counted, recipes)
    samples = counted.samples if recipe.corrects_bias else {}
    errors = _errors(graph, model, activations, groups, lowered, samples, limit, progress)
    quantizers, counts = _least(recipe, errors)
    whole = {kind: recipes[kind] for kind in OBSERVERS if kind in lowered}
    whole[AUTO] = _with(recipe, USUAL).model_copy(update={"quantizers": quantizers})

    def calibrated(kind: str) -> Calibration:
        if kind == AUTO:
            return calibrate(graph, activations, whole[AUTO], limit=limit)
        return _seen_as(graph, counted, whole[kind])

    try:
        lowered[AUTO] = lower(graph, calibrated(AUTO), whole[AUTO])
    except Infeasible:
        if whole.keys() == {AUTO}:
            raise
    noises = judge.noises({kind: lowered[kind] for kind in whole if kind in lowered})
    usual = next(iter(noises))
    sure = [kind for kind in noises if surely_less(noises[kind], noises[usual], len(noises) - 1)]
    taken = min(sure, key=lambda kind: float(np.sum(noises[kind])), default=usual)
    chosen = dict(counts) if taken == AUTO else {taken: counts.total()}
    found = whole[taken]
    if recipe.corrects_bias and recipe.slope_correction is None:
        sloped, name = found.model_copy(update={"slope_correction": True}), f"{taken}{SLOPES}"
        with suppress(Infeasible):
            noises |= judge.noises({name: lower(graph, calibrated(taken), sloped)})
            if surely_less(noises[name], noises[taken]):
                found, taken = sloped, name
    sqnr = {kind: decibel(judge.signal, float(np.sum(noise))) for kind, noise in noises.items()}
    update = {key: getattr(found, key) for key in ("observer", "quantizers", "slope_correction")}
    return Resolved(asked.model_copy(update=update), sqnr, taken, chosen, n_judged, method)


def _tried(recipe: Recipe, groups: Sequence[Group]) -> dict[str, Recipe]:
    """Each of RANGES everywhere; what the recipe states of a quantizer stays."""
    found = {}
    for kind, asked in RANGES.items():
        found[kind] = _with(recipe, str(asked.observer))
        if asked.range is not None:
            shares = _stating(recipe, [site for sites, _ in groups for site in sites], {"range": asked.range})
            found[kind] = found[kind].model_copy(update={"quantizers": shares})
    return found


def _stating(recipe: Recipe, sites: Sequence[str], update: Mapping[str, Any]) -> dict[str, Quantizers]:
    """Quantizers of a recipe, in which sites state something more."""
    more = {site: recipe.quantizers.get(site, Quantizers()).model_copy(update=dict(update)) for site in sites}
    return {**recipe.quantizers, **more}


def _lowered(graph: FloatGraph, counted: Calibration, recipes: Mapping[str, Recipe]) -> dict[str, IntGraph]:
    """Where they are feasible; Infeasible if none is."""
    found: dict[str, IntGraph] = {}
    refused: list[Infeasible] = []
    for kind, each in recipes.items():
        try:
            found[kind] = lower(graph, _seen_as(graph, counted, each), each)
        except Infeasible as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def _seen_as(graph: FloatGraph, counted: Calibration, recipe: Recipe) -> Calibration:
    """A calibration by histograms, as another observer would have made it; sites that state theirs keep it."""
    observers: dict[str, RangeObserver] = {
        name: each if stated(graph, recipe, name, "observer") else seen_as(each, observer_of(graph, recipe, name))
        for name, each in counted.observers.items()
    }
    return replace(counted, observers=observers)


def _with(recipe: Recipe, kind: str) -> Recipe:
    return recipe.model_copy(update={"observer": recipe.observer.model_copy(update={"kind": kind})})


def _errors(
    graph: FloatGraph, model: FloatModel, activations: Activations, groups: Sequence[Group],
    lowered: dict[str, IntGraph], samples: Mapping[str, Rows], limit: int | None, progress: Progress | None,
) -> dict[Group, Errors]:  # fmt: skip
    """On few images; where another range than the usual one matters, of the best on more, and again."""
    calibrated = min(limit or activations.n_images, activations.n_images)
    few = min(max(judging(graph, calibrated), FIRST), calibrated)
    start = calibrated if activations.n_images - calibrated >= few else 0
    more = min(MORE * few, activations.n_images - start)
    images = activations.read(graph.inputs[0], start, start + more)

    def judged(wanted: Mapping[Group, Collection[str]], images: Array) -> dict[Group, Errors]:
        tensors = {name: kinds for group, kinds in wanted.items() for name in group[1]}
        found = _judged(graph, model, lowered, samples, images, tensors, progress)
        return {
            group: {kind: sum(found[name][kind] for name in group[1] if name in found) for kind in kinds}
            for group, kinds in wanted.items()
        }

    usual = next(iter(lowered))
    found: dict[Group, Errors] = {}
    wanted = {group: [*lowered] for group in groups}
    for n_images in dict.fromkeys((-(-few // 4), few, more)):
        if not wanted:
            break
        found = {group: {usual: each[usual]} for group, each in found.items()} | judged(wanted, images[:n_images])
        least = MATTERS * sum(found[group][usual] for group in wanted)
        wanted = {
            group: list(dict.fromkeys([usual, *sorted(found[group], key=found[group].__getitem__)[:AGAIN]]))
            for group in wanted if found[group][usual] - min(found[group].values()) >= least
        }  # fmt: skip
    return found


def _judged(
    graph: FloatGraph, model: FloatModel, lowered: dict[str, IntGraph], samples: Mapping[str, Rows], images: Array,
    wanted: Mapping[str, Collection[str]], progress: Progress | None,
) -> dict[str, Errors]:  # fmt: skip
    """`wanted`: tensors, and of what is tried for them."""
    found: dict[str, Errors] = {}
    off = flipped(False, ())
    probe = images[:FEWEST]
    emulations = {kind: Emulation(graph, g, model, probe, samples) for kind, g in lowered.items()}
    first = next(iter(emulations.values()))
    n_nodes = len(first.integer.nodes)
    step = fitting(len(images), STATE * sum(4 * math.prod(tensor.shape) for tensor in graph.tensors.values()))
    for start in range(0, len(images), step):
        some = images[start : start + step]
        real = first.outputs(some, off)
        for at, node, state in first.walk(some, off):
            rounded_to = _quantizer_of(first, node)
            if rounded_to in wanted:
                values = [state[name] for name in node.inputs]
                each = found.setdefault(rounded_to, dict.fromkeys(wanted[rounded_to], 0.0))
                for kind in each:
                    emulation = emulations[kind]
                    on = flipped(False, (emulation.parts[node.name],))
                    rounded = emulation.evaluate(emulation.integer.node(node.name), values, on)
                    error = emulation.finish({**state, node.output: rounded}, at + 1, on) - real
                    each[kind] += float(np.sum(error.astype(np.float64) ** 2))
            if progress:
                progress(start * n_nodes + (at + 1) * len(some), len(images) * n_nodes)
    return found


def _quantizer_of(emulation: Emulation, node: Node) -> str:
    """The float tensor whose quantizer a node is, "" for none; a part of a joining Concat is rounded as the whole."""
    part = emulation.parts.get(node.name)
    if part is None or part.what != ROUNDING:
        return ""
    for after in emulation.integer.consumers[node.output]:
        if after.op == "concat" and node.name.startswith(f"{after.output}.in"):
            return after.output
    return part.site


def _least(recipe: Recipe, errors: Mapping[Group, Errors]) -> tuple[dict[str, Quantizers], Counter[str]]:
    """(quantizers of a recipe, how often each of RANGES)."""
    counts = Counter[str]()
    for (sites, tensors), each in errors.items():
        best = min(each, key=each.__getitem__)
        counts[best] += len(tensors)
        if best != USUAL:
            asked = RANGES[best].model_dump(exclude_none=True)
            recipe = recipe.model_copy(update={"quantizers": _stating(recipe, sites, asked)})
    return recipe.quantizers, counts


def _groups(graph: FloatGraph, recipe: Recipe) -> list[Group]:
    """Of the tensors that are rounded to operands: those that some site reads alone are alone; where every reader reads
    others, too, all of these have one range. What the recipe states, and what is stated with it, is not to be chosen,
    nor is what is stated with the model's input, or by a site that is called like a kind of operator.
    """
    bits = widths.quantizer_bits(graph, recipe)
    readers = {name: [node.name for node in widths.readers(graph, name)] for name in bits}
    read: dict[str, list[str]] = {}
    for name, sites in readers.items():
        for site in dict.fromkeys(sites):
            read.setdefault(site, []).append(name)
    groups: list[tuple[list[str], list[str]]] = []
    narrow = [name for name in bits if readers[name] and bits[name] <= widths.WIDEST_OPERAND]
    for name in narrow:
        sites = [site for site in readers[name] if read[site] == [name]] or readers[name]
        tensors = list(dict.fromkeys([name, *(other for site in sites for other in read[site])]))
        for group in [group for group in groups if not set(group[1]).isdisjoint(tensors)]:
            groups.remove(group)
            sites, tensors = [*group[0], *sites], [*group[1], *tensors]
        groups.append((sites, tensors))
    return [
        (tuple(dict.fromkeys(sites)), tuple(dict.fromkeys(tensors)))
        for sites, tensors in groups
        if set(tensors).isdisjoint(graph.inputs)
        and set(sites).isdisjoint(operators.operators())
        and all(stated(graph, recipe, name, key) is None for name in tensors for key in ("observer", "range"))
    ]


class _Judge:
    """Squared errors of integer models' outputs on the first `n_images` of the activations."""

    def __init__(
        self, graph: FloatGraph, model: FloatModel, activations: Activations, n_images: int, progress: Progress | None
    ) -> None:
        self.activations, self.input, self.n_images, self.progress = activations, graph.inputs[0], n_images, progress
        self.outputs = [model.run(self.images(start))[graph.outputs[0]] for start in range(0, n_images, BATCH)]

    def images(self, start: int) -> Array:
        return self.activations.read(self.input, start, min(start + BATCH, self.n_images))

    @property
    def signal(self) -> float:
        """Power of the float outputs."""
        return sum(float(np.sum(real.astype(np.float64) ** 2)) for real in self.outputs)

    def noises(self, integers: Mapping[str, IntGraph]) -> dict[str, Array]:
        """Per image (N,), of each model."""
        noises = {kind: np.zeros(self.n_images) for kind in integers}
        engines = {kind: Engine(integer) for kind, integer in integers.items()}
        for real, start in zip(self.outputs, range(0, self.n_images, BATCH), strict=True):
            images = self.images(start)
            for kind, engine in engines.items():
                name = engine.graph.outputs[0]
                error = engine.run(images)[name] * engine.graph.tensors[name].scale - real.astype(np.float64)
                noises[kind][start : start + len(images)] = np.sum(error**2, axis=tuple(range(1, error.ndim)))
            if self.progress:
                self.progress(start + len(images), self.n_images)
        return noises
