"""Calibrate: run observers over a recording; return ranges as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from intvit.errors import IntvitError
from intvit.files.memory import fitting
from intvit.floats.preprocessing import Preprocessing
from intvit.graph import operators
from intvit.graph.ir import LAYOUT_OPS, Array, FloatGraph, Node
from intvit.lowering.bias import Rows, sampled
from intvit.lowering.equalize import channel_factors, equalized
from intvit.lowering.observers import SEARCHED, RangeObserver, build_observer
from intvit.lowering.recipe import Observer, Recipe
from intvit.lowering.widths import quantizer_bits, readers


class Activations(Protocol):
    """What calibration and analysis need of a recording."""

    n_images: int
    names: list[str]
    model_sha256: str
    images_sha256: str
    preprocessing: Preprocessing

    def read(self, name: str, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Calibration:
    """`ranges[tensor] = (lo, hi)` in real units; the other fields are keyed by the site of an operator.

    `observers[tensor]`: where the range depends on the width, as another method at a site may want another.

    `variances`: the largest sum of squares of a norm's row (LayerNorm: of deviations), real units squared; it fixes
    I-BERT's shift.
    `samples`: rows of an operator, for bias correction.
    `factors[tensor]`: one per channel (C,), where the range is that of the tensor divided by them (`equalize`).
    `shifts` and `exp_range_max` override what the lowering would derive, for networks that come with them. `trained`:
    the ranges came with the weights, and so the integer biases that the graph carries belong to them.
    `preprocessing` of the images that were calibrated on, where there were any; the graph states it from then on.
    """

    ranges: dict[str, tuple[float, float]]
    variances: dict[str, float] = field(default_factory=dict)
    observers: dict[str, RangeObserver] = field(default_factory=dict)
    shifts: dict[str, int] = field(default_factory=dict)
    exp_range_max: dict[str, float] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    samples: dict[str, Rows] = field(default_factory=dict)
    trained: bool = False
    preprocessing: Preprocessing | None = None


def source_tensor(graph: FloatGraph, name: str, known: Container[str]) -> str:
    """The tensor in `known` that holds the values of `name`: itself, or one that layout moves tie it to.

    Backward through any move (a slice's range is then its source's), else forward through moves that keep all elements.
    """
    at = name
    while at not in known:
        node = graph.by_output.get(at)
        if node is None or node.op not in LAYOUT_OPS or len(node.inputs) != 1:
            break
        at = node.inputs[0]
    if at in known:
        return at
    at = name
    while at not in known:
        (after, *others) = graph.consumers[at] or (None,)
        if after is None or others or after.op not in ("reshape", "transpose"):
            raise IntvitError(f"{name}: no recorded activation or range for this tensor")
        at = after.output
    return at


def calibrate(
    graph: FloatGraph,
    recording: Activations,
    recipe: Recipe,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Ranges for every quantizer of `graph`, from the first `limit` images of a recording of the same model."""
    if recording.model_sha256 != graph.metadata.get("model_sha256"):
        raise IntvitError(
            f"recording: must be of model {str(graph.metadata.get('model_sha256'))[:12]}, "
            f"not of {recording.model_sha256[:12]}"
        )
    recipe = at_trained_widths(graph, recipe)
    n_images = min(limit or recording.n_images, recording.n_images)
    known = set(recording.names)
    widths = quantizer_bits(graph, recipe)
    noted = {node.name: kind.statistic for node in graph.nodes if (kind := operators.get(node.op)) and kind.statistic}
    norms = [graph.by_name[name] for name in noted]
    sources = {name: source_tensor(graph, name, known) for name in (*widths, *(node.inputs[0] for node in norms))}
    kinds = {name: observer_of(graph, recipe, name) for name in widths}
    observers = {name: build_observer(found) for name, found in kinds.items()}
    variances = {node.name: 0.0 for node in norms}
    corrected = sampled(graph, frozenset(known)) if recipe.corrects_bias else []
    samples = {node.name: Rows() for node in corrected}
    spans = _spans(graph, recipe, n_images)

    def read(name: str, start: int, stop: int) -> Array:
        return _finite(sources[name], recording.read(sources[name], start, stop))

    factors = _factors(equalized(graph, recipe), read, spans)
    for start, stop in spans:  # batch by batch, so that a model that is run on the fly runs once
        for name, observer in observers.items():
            values = read(name, start, stop)
            observer.update(values / factors[name] if name in factors else values)
        for node in norms:
            rows = recording.read(sources[node.inputs[0]], start, stop).astype(np.float64)
            rows = rows.reshape(-1, graph.tensors[node.inputs[0]].shape[-1])
            variances[node.name] = max(variances[node.name], noted[node.name](rows))
        for node in corrected:
            x, y = (_finite(name, recording.read(name, start, stop)) for name in (node.inputs[0], node.output))
            samples[node.name].add(x, y, n_images)
        if progress:
            progress(stop, n_images)
    ranges = {name: observer.range(widths[name]) for name, observer in observers.items()}
    observers = {name: observer for name, observer in observers.items() if kinds[name].kind in SEARCHED}
    return Calibration(
        ranges, variances, observers=observers, factors=factors, samples=samples, preprocessing=recording.preprocessing
    )


def _spans(graph: FloatGraph, recipe: Recipe, n_images: int) -> list[tuple[int, int]]:
    """(first, behind the last) of every batch of images."""
    step = recipe.observer.batch
    if recipe.observer.kind == "minmax" and not recipe.observer.momentum:  # extremes are those of any batches
        step = fitting(step, 4 * sum(math.prod(tensor.shape) for tensor in graph.tensors.values()))
    return [(start, min(start + step, n_images)) for start in range(0, n_images, step)]


def stated(graph: FloatGraph, recipe: Recipe, name: str, key: Literal["observer", "range"]) -> Any:
    """What those which read tensor `name` ask for, None if none does. IntvitError if they disagree."""
    asked = {getattr(recipe.quantizer(node.op, node.name), key): node.name for node in readers(graph, name)}
    asked.pop(None, None)
    if len(asked) > 1:
        raise IntvitError(f"{name}: {key} must be one for all that read it, not {asked}")
    return next(iter(asked), None)


def observer_of(graph: FloatGraph, recipe: Recipe, name: str) -> Observer:
    """What takes the range of a tensor: what those that read it ask for, or the recipe."""
    kind = stated(graph, recipe, name, "observer") or recipe.observer.kind
    if kind == "auto":
        raise IntvitError(f"{name}: observer auto must be resolved before a calibration (analysis.observers.resolved)")
    return recipe.observer.model_copy(update={"kind": kind})


def _factors(
    evened: Mapping[str, tuple[float, list[Node]]], read: Callable[[str, int, int], Array], spans: list[tuple[int, int]]
) -> dict[str, Array]:
    """Factors (C,) of the tensors that are equalized, by the largest magnitudes of all images."""
    largest: dict[str, Array] = {}
    for start, stop in spans:
        for name in evened:
            values = np.abs(read(name, start, stop))
            largest[name] = np.maximum(largest.get(name, 0.0), values.max(axis=tuple(range(values.ndim - 1))))
    return {
        name: channel_factors(largest[name], [node.arrays["weight"] for node in readers], strength)
        for name, (strength, readers) in evened.items()
    }


def trained(graph: FloatGraph) -> Calibration:
    """The ranges that came with the weights of a network trained in integers (an I-ViT checkpoint)."""
    ranges = graph.metadata.get("ranges")
    if not ranges:
        raise IntvitError("--recording: must be given, as this model came without ranges of its own")
    return Calibration({str(name): (float(low), float(high)) for name, (low, high) in ranges.items()}, trained=True)


def at_trained_widths(graph: FloatGraph, recipe: Recipe) -> Recipe:
    """`recipe` at the widths that the network was trained at, if it was; IntvitError if it asks for others."""
    trained_at = graph.metadata.get("trained") or {}
    widths = {key: bits for key, bits in trained_at.items() if key in type(recipe).model_fields and bits is not None}
    if trained_at and recipe.preset != "published":
        raise IntvitError(
            f"preset: must be published, as the weights were trained with its quantizers, not {recipe.preset}"
        )
    if trained_at and recipe.quantizers:
        name = next(iter(recipe.quantizers))
        raise IntvitError(f"quantizers: must be left to those that the weights were trained with, and state {name}")
    for key in ("bias_correction", "slope_correction"):
        if trained_at and getattr(recipe, key):
            raise IntvitError(f"{key}: must be left out, as the weights were trained in integers")
    for key, bits in widths.items():
        asked = getattr(recipe, key)
        if key in recipe.model_fields_set and asked != bits:
            raise IntvitError(f"{key}: must be the {bits} that the weights were trained at, not {asked}")
    return recipe.model_copy(update=widths)


def _finite(name: str, batch: np.ndarray) -> np.ndarray:
    if not np.isfinite(batch).all():
        raise IntvitError(f"{name}: recorded activations must be finite, not NaN or infinite")
    return batch
