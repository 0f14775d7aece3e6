"""Outputs of an integer graph against the float model's, image by image: what a network without classes is judged by.

Per image: power of the float output and of the difference, the classes, Kullback-Leibler divergence, cosine.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intvit.analysis.sqnr import decibel
from intvit.engine import DEFAULT_BATCH, Engine
from intvit.engine.batches import batch_of, batches
from intvit.errors import IntvitError
from intvit.graph.ir import Array, IntGraph

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource
    from intvit.floats.model import FloatModel


@dataclass(frozen=True)
class Outcome:
    """Of one image. Classes are the largest element, the first of equal ones; None where there is nothing to compare.

    kl: of the float model's softmax from the integer one's, nats. cosine: mean over positions (all axes but the last).
    """

    image: int
    label: int | None = None
    integer_class: int | None = None
    float_class: int | None = None
    signal: float | None = None
    noise: float | None = None
    kl: float | None = None
    cosine: float | None = None


def outcomes(
    graph: IntGraph,
    source: ImageSource,
    model: FloatModel | None = None,
    *,
    limit: int | None = None,
    batch: int = DEFAULT_BATCH,
    threads: int | None = None,
    floats: dict[int, Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run the graph, and the float model beside it if there is one. Labels are used if the source has them.

    `floats`: the float model's outputs by image, which are kept there for the next graph of the same model.

    Raises IntvitError where there is neither a label nor a model, and for a model that the graph is not of.
    """
    name = graph.outputs[0]
    tensor = graph.tensors[name]
    if model is None and source.labels is None:
        raise IntvitError("images: must carry labels (HDF5 and npz name them `labels`), or --float a model to compare")
    of = graph.metadata.get("model_sha256")
    if model is not None and model.sha256 != of:
        raise IntvitError(
            f"{model.where}: must be the model {str(of)[:12]} that was lowered to this graph, not {model.sha256[:12]}"
        )
    n_images = min(limit or len(source), len(source))
    labelled = source.labels is not None and (model is None or len(tensor.shape) == 1)
    labels = _labels(source, n_images, tensor.shape) if labelled else None
    known: dict[int, Array] = {} if floats is None else floats
    found: list[Outcome] = []

    def inputs() -> Iterator[tuple[int, Array]]:
        for start, images in batches(source, n_images, batch_of(graph, batch)):
            if model is not None and not all(i in known for i in range(start, start + len(images))):
                (real,) = model.run(images).values()
                known.update(enumerate(real, start))
            yield start, images

    def sink(start: int, tensors: dict[str, Array]) -> None:
        for i, q in enumerate(tensors[name], start):
            real = known.pop(i, None) if floats is None else known.get(i)
            found.append(_outcome(i, q * tensor.scale, real, None if labels is None else int(labels[i])))
        if progress:
            progress(len(found), n_images)

    Engine(graph).stream(inputs(), [name], sink, threads=threads)
    return found


def _labels(source: ImageSource, n_images: int, shape: tuple[int, ...]) -> Array:
    """Labels of the images to evaluate, each a class of a network whose output has this shape."""
    if len(shape) != 1:
        raise IntvitError(f"graph: must give one value per class for an accuracy, not an output of shape {shape}")
    assert source.labels is not None
    labels = source.labels[:n_images]
    if not 0 <= labels.min() <= labels.max() < shape[0]:
        raise IntvitError(f"images: labels must lie in 0..{shape[0] - 1}, not {labels.min()}..{labels.max()}")
    return labels


def _outcome(image: int, y: Array, real: Array | None, label: int | None) -> Outcome:
    classes = y.ndim == 1
    integer_class = int(y.argmax()) if classes else None
    if real is None:
        return Outcome(image, label, integer_class)
    if real.shape != y.shape:
        raise IntvitError(f"float model: output must have the shape {y.shape} of the graph's, not {real.shape}")
    x = real.astype(np.float64)
    return Outcome(
        image,
        label,
        integer_class,
        int(x.argmax()) if classes else None,
        float(np.sum(x**2)),
        float(np.sum((x - y) ** 2)),
        _divergence(x, y) if classes else None,
        _cosine(x, y),
    )


def _divergence(x: Array, y: Array) -> float:
    """KL(softmax(x) || softmax(y)), nats; x and y (C,)."""
    p, q = (v - v.max() - math.log(np.sum(np.exp(v - v.max()))) for v in (x, y))
    return max(float(np.sum(np.exp(p) * (p - q))), 0.0)


def _cosine(x: Array, y: Array) -> float:
    """Mean over positions of x.y / |x||y| over the last axis; 0 where one of them is 0."""
    length = np.sqrt(np.sum(x * x, -1) * np.sum(y * y, -1))
    return float(np.mean(np.divide(np.sum(x * y, -1), length, out=np.zeros_like(length), where=length > 0)))


def summary(found: list[Outcome]) -> dict[str, float | int]:
    """What can be said of all images together: shares in 0..1, dB, nats. What cannot be is left out.

    sqnr: 10 log10 of the total power of the float outputs over that of the differences.
    """
    result: dict[str, float | int] = {"images": len(found)}
    for key, of in (("integer", "integer_class"), ("float", "float_class")):
        if found[0].label is not None and getattr(found[0], of) is not None:
            result[key] = float(np.mean([getattr(o, of) == o.label for o in found]))
    if found[0].float_class is not None:
        result["agreement"] = float(np.mean([o.integer_class == o.float_class for o in found]))
    for key in ("kl", "cosine"):
        values = [value for o in found if (value := getattr(o, key)) is not None]
        if values:
            result[key] = math.fsum(values) / len(values)
    signal, noise = (math.fsum(getattr(o, key) or 0.0 for o in found) for key in ("signal", "noise"))
    if found[0].signal is not None and signal > 0:
        result["sqnr"] = decibel(signal, noise)
    return result


def write_csv(path: Path, found: list[Outcome]) -> None:
    """One line per image, under the names of `Outcome`; empty where there is nothing."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Outcome)])
        writer.writerows(dataclasses.astuple(outcome) for outcome in found)
