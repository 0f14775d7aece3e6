"""Observer `auto`: for every quantizer the observer with which the outputs lose least, measured one by one.

A quantizer is judged with everything else float (`emulation`); then the integer model of all choices is measured beside
those of one observer everywhere, on many images, and the best is taken if it is surely better than minmax everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intvit.analysis.emulation import ROUNDING, Emulation, flipped
from intvit.analysis.sqnr import decibel
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.model import FloatModel
from intvit.graph.ir import Array, FloatGraph, IntGraph
from intvit.lowering import widths
from intvit.lowering.calibrate import Activations, Calibration, calibrate, stated_observer
from intvit.lowering.context import Infeasible, lower
from intvit.lowering.observers import RangeObserver, seen_as
from intvit.lowering.recipe import OBSERVERS, Quantizers, Recipe
from intvit.mapping.candidates import uniform_model
from intvit.mapping.rules import surely_less

AUTO = "auto"
N_VALUES, FEWEST, MOST = 1000, 2, 32
"""Of the outputs, on which a part of a model is judged; images that they come from."""
BATCH = 8


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
    """Observer -> quantizers that it is chosen for."""
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
    progress: Callable[[int, int], None] | None = None,
) -> Resolved:
    """Choose the observer of every quantizer of at most 8 bits; wider ones keep minmax.

    `limit`: of the images of `activations`, those that are calibrated on; the first of them judge single quantizers.
    `judged`: those that judge whole models, left out as many. Many more than are calibrated on make a better judge: on
    its own images a range leaves nothing out. `methods`: uniform candidates, where methods are yet to be chosen; the
    best of them by minmax is what observers are judged in, as one may be best in a model that nobody will use. Raises
    IntvitError if the model cannot be lowered with any observer.
    """
    if graph.metadata.get("trained"):
        raise IntvitError("observer: must not be auto, as the weights were trained with the ranges that they came with")
    n_judged = min(judged or limit or activations.n_images, activations.n_images)
    method, asked = None, recipe
    if methods:
        usual_recipe = _with(recipe, "minmax")
        plain = calibrate(graph, activations, usual_recipe, limit=limit)
        uniform = {name: uniform_model(graph, plain, usual_recipe, name, tuple(methods)) for name in methods}
        integers = {name: each.graph for name, each in uniform.items()}
        _, losses = _measured(graph, model, activations, integers, n_judged, progress)
        method = min(losses, key=lambda name: float(np.sum(losses[name])))
        recipe = _with(uniform[method].recipe, AUTO)
    recipes = {kind: _with(recipe, kind) for kind in OBSERVERS}
    counted = calibrate(graph, activations, recipes["kl"], limit=limit)
    lowered: dict[str, IntGraph] = {}
    refused: list[Infeasible] = []
    for kind in OBSERVERS:
        try:
            lowered[kind] = lower(graph, _seen_as(graph, counted, recipes[kind]), recipes[kind])
        except Infeasible as error:
            refused.append(error)
    if not lowered:
        raise refused[0]
    n_images = judging(graph, min(limit or activations.n_images, activations.n_images))
    images = activations.read(graph.inputs[0], 0, n_images)
    noise = {
        name: errors
        for name, errors in _noises(graph, model, lowered, images, progress).items()
        if stated_observer(graph, recipe, name) is None
    }
    quantizers = dict(recipe.quantizers)
    counts: Counter[str] = Counter()
    for sites, tensors in _groups(graph, list(noise)):
        total = {kind: sum(noise[name][kind] for name in tensors) for kind in lowered}
        best = min(total, key=total.__getitem__)
        counts[best] += len(tensors)
        for site in sites if best != "minmax" else ():
            quantizers[site] = quantizers.get(site, Quantizers()).model_copy(update={"observer": best})
    recipes[AUTO] = _with(recipe, "minmax").model_copy(update={"quantizers": quantizers})
    lowered[AUTO] = lower(graph, calibrate(graph, activations, recipes[AUTO], limit=limit), recipes[AUTO])
    signal, noises = _measured(graph, model, activations, lowered, n_judged, progress)
    sqnr = {kind: decibel(signal, float(np.sum(noise))) for kind, noise in noises.items()}
    usual = next(iter(lowered))
    best = max(sqnr, key=sqnr.__getitem__)
    taken = best if surely_less(noises[best], noises[usual], len(noises) - 1) else usual
    chosen = dict(counts) if taken == AUTO else {taken: counts.total()}
    found = {"observer": recipes[taken].observer, "quantizers": recipes[taken].quantizers}
    return Resolved(asked.model_copy(update=found), sqnr, taken, chosen, n_judged, method)


def _seen_as(graph: FloatGraph, counted: Calibration, recipe: Recipe) -> Calibration:
    """A calibration by histograms, as another observer would have made it; sites that state theirs keep it."""
    observers: dict[str, RangeObserver] = {
        name: each if stated_observer(graph, recipe, name) else seen_as(each, recipe.observer)
        for name, each in counted.observers.items()
    }
    return replace(counted, observers=observers)


def _with(recipe: Recipe, kind: str) -> Recipe:
    return recipe.model_copy(update={"observer": recipe.observer.model_copy(update={"kind": kind})})


def _noises(
    graph: FloatGraph,
    model: FloatModel,
    lowered: dict[str, IntGraph],
    images: Array,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, float]]:
    """Rounded float tensor -> observer -> squared error of the outputs if nothing else is quantized."""
    found: dict[str, dict[str, float]] = {}
    off = flipped(False, ())
    emulations = {kind: Emulation(graph, g, model, images, frozenset()) for kind, g in lowered.items()}
    first = next(iter(emulations.values()))
    real = first.outputs(images, off)
    n_nodes = len(first.integer.nodes)
    for at, node, state in first.walk(images, off):
        part = first.parts.get(node.name)
        narrow = first.integer.tensors[node.output].dtype.bits <= widths.WIDEST_OPERAND
        if part is not None and part.what == ROUNDING and narrow:
            values = [state[name] for name in node.inputs]
            for kind, emulation in emulations.items():
                rounded = emulation.evaluate(emulation.integer.node(node.name), values, flipped(False, (part,)))
                error = first.finish({**state, node.output: rounded}, at + 1, off) - real
                found.setdefault(part.site, {})[kind] = float(np.sum(error.astype(np.float64) ** 2))
        if progress:
            progress(at + 1, n_nodes)
    return found


def _groups(graph: FloatGraph, names: list[str]) -> list[tuple[list[str], list[str]]]:
    """(sites that read, tensors) of tensors that share a reader, whose inputs have one observer."""
    groups: list[tuple[list[str], list[str]]] = []
    for name in names:
        sites, tensors = [node.name for node in widths.readers(graph, name)], [name]
        for group in [group for group in groups if not set(group[0]).isdisjoint(sites)]:
            groups.remove(group)
            sites, tensors = [*group[0], *sites], [*group[1], *tensors]
        groups.append((list(dict.fromkeys(sites)), tensors))
    return groups


def _measured(
    graph: FloatGraph, model: FloatModel, activations: Activations, lowered: dict[str, IntGraph], n_images: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[float, dict[str, Array]]:  # fmt: skip
    """(power of the float outputs, squared errors of each model's outputs per image)."""
    noises, signal = {kind: np.zeros(n_images) for kind in lowered}, 0.0
    engines = {kind: Engine(integer) for kind, integer in lowered.items()}
    for start in range(0, n_images, BATCH):
        images = activations.read(graph.inputs[0], start, min(start + BATCH, n_images))
        real = model.run(images)[graph.outputs[0]].astype(np.float64)
        signal += float(np.sum(real**2))
        for kind, engine in engines.items():
            name = engine.graph.outputs[0]
            error = engine.run(images)[name] * engine.graph.tensors[name].scale - real
            noises[kind][start : start + len(images)] = np.sum(error**2, axis=tuple(range(1, error.ndim)))
        if progress:
            progress(min(start + BATCH, n_images), n_images)
    return signal, noises
