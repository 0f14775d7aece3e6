"""Outputs of an integer graph against the float model's: what a network without classes is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intvit.analysis.sqnr import decibel
from intvit.engine import DEFAULT_BATCH, Engine
from intvit.engine.batches import batch_of, batches
from intvit.errors import IntvitError
from intvit.files import records
from intvit.graph.ir import Array, IntGraph

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource
    from intvit.floats.model import FloatModel


MISSING = -1
"""A class or a label where there is none; numbers are NaN there."""
OUTCOME = np.dtype(
    [("image", "<i8"), ("label", "<i8"), ("integer_class", "<i8"), ("float_class", "<i8")]
    + [(name, "<f8") for name in ("signal", "noise", "kl", "cosine")]
)  # fmt: skip
"""Of one image. Classes are the largest element, the first of equal ones. signal, noise: sums of squares of the float
output and of the difference. kl: of the float model's softmax from the integer one's, nats. cosine: mean over positions
(all axes but the last)."""


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
) -> Array:
    """OUTCOME (N,) of the graph, and the float model beside it if there is one; with labels if the source has them.

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
    labels = labels_of(source, n_images, tensor.shape) if labelled else None
    known: dict[int, Array] = {} if floats is None else floats
    found = np.zeros(n_images, OUTCOME)

    def inputs() -> Iterator[tuple[int, Array]]:
        for start, images in batches(source, n_images, batch_of(graph, batch)):
            if model is not None and not all(i in known for i in range(start, start + len(images))):
                (real,) = model.run(images).values()
                known.update(enumerate(real, start))
            yield start, images

    def sink(start: int, tensors: dict[str, Array]) -> None:
        stop = start + len(tensors[name])
        real = None if model is None else np.stack([known[i] for i in range(start, stop)])
        found[start:stop] = compared(
            start, tensors[name] * tensor.scale, real, None if labels is None else labels[start:stop]
        )
        if floats is None:
            for i in range(start, stop):
                known.pop(i, None)
        if progress:
            progress(stop, n_images)

    Engine(graph).stream(inputs(), [name], sink, threads=threads)
    return found


def labels_of(source: ImageSource, n_images: int, shape: tuple[int, ...]) -> Array:
    """Labels of the images to evaluate, each a class of a network whose output has this shape."""
    if len(shape) != 1:
        raise IntvitError(f"graph: must give one value per class for an accuracy, not an output of shape {shape}")
    assert source.labels is not None
    labels = source.labels[:n_images]
    if not 0 <= labels.min() <= labels.max() < shape[0]:
        raise IntvitError(f"images: labels must lie in 0..{shape[0] - 1}, not {labels.min()}..{labels.max()}")
    return labels


def compared(start: int, y: Array, real: Array | None, labels: Array | None) -> Array:
    """OUTCOME (B,) of outputs `y` (B, ...), real units, of images `start...`, against the float ones."""
    found, classes = np.zeros(len(y), OUTCOME), y.ndim == 2
    found["image"] = np.arange(start, start + len(y))
    found["label"] = MISSING if labels is None else labels
    found["integer_class"] = y.argmax(axis=1) if classes else MISSING
    found["float_class"] = MISSING
    for name in ("signal", "noise", "kl", "cosine"):
        found[name] = math.nan
    if real is None:
        return found
    if real.shape != y.shape:
        raise IntvitError(f"float model: output must have the shape {y.shape[1:]} of the graph's, not {real.shape[1:]}")
    x = real.astype(np.float64)
    found["signal"], found["noise"] = _power(x), _power(x - y)
    if classes:
        found["float_class"], found["kl"] = x.argmax(axis=1), _divergence(x, y)
    found["cosine"] = _cosine(x, y)
    return found


def _power(x: Array) -> Array:
    return np.asarray(np.sum((x**2).reshape(len(x), -1), axis=1))


def _divergence(x: Array, y: Array) -> Array:
    """KL(softmax(x) || softmax(y)) of rows, nats (B,); x and y (B, C)."""
    tops = (v - v.max(axis=1, keepdims=True) for v in (x, y))
    p, q = (v - np.log(np.sum(np.exp(v), axis=1, keepdims=True)) for v in tops)
    return np.asarray(np.maximum(np.sum(np.exp(p) * (p - q), axis=1), 0.0))


def _cosine(x: Array, y: Array) -> Array:
    """Mean over positions of x.y / |x||y| over the last axis, (B,) of (B, ..., C); 0 where one of them is 0."""
    length = np.sqrt(np.sum(x * x, -1) * np.sum(y * y, -1))
    cosine = np.divide(np.sum(x * y, -1), length, out=np.zeros_like(length), where=length > 0)
    return np.asarray(cosine.reshape(len(x), -1).mean(axis=1))


def summary(found: Array) -> dict[str, float | int]:
    """What can be said of all images of OUTCOME (N,): shares in 0..1, dB, nats. What cannot be is left out.

    sqnr: 10 log10 of the total power of the float outputs over that of the differences.
    """
    result: dict[str, float | int] = {"images": len(found)}
    classes = {key: found[f"{key}_class"] for key in ("integer", "float")}
    for key, of in classes.items():
        if found["label"][0] != MISSING and of[0] != MISSING:
            result[key] = float(np.mean(of == found["label"]))
    if classes["float"][0] != MISSING:
        result["agreement"] = float(np.mean(classes["integer"] == classes["float"]))
    for key in ("kl", "cosine"):
        if not math.isnan(found[key][0]):
            result[key] = math.fsum(found[key]) / len(found)
    signal, noise = math.fsum(found["signal"]), math.fsum(found["noise"])
    if signal > 0:
        result["sqnr"] = decibel(signal, noise)
    return result


def write_csv(path: Path, found: Array) -> None:
    """One line per image, under the names of OUTCOME; empty where there is nothing."""
    names = OUTCOME.names or ()
    rows = (dict(zip(names, row.item(), strict=True)) for row in found)
    records.write_csv(path, (
        {name: "" if name != "image" and (v == MISSING or v != v) else v for name, v in row.items()} for row in rows
    ))  # fmt: skip
