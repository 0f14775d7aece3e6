"""Top-1 accuracy of integer graphs and float models on labelled images, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING

from intvit.engine import DEFAULT_BATCH, Engine
from intvit.errors import IntvitError
from intvit.files.memory import fitting
from intvit.graph.ir import Array, Graph

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource
    from intvit.floats.model import FloatModel

Progress = Callable[[int, int], None]


def checked_labels(source: ImageSource, limit: int | None, shape: tuple[int, ...]) -> Array:
    """Labels of the images to evaluate, each a class of a network whose output has this shape."""
    if source.labels is None:
        raise IntvitError("images: must carry labels for an accuracy; HDF5 and npz name them `labels`")
    if len(shape) != 1:
        raise IntvitError(f"graph: must give one value per class for an accuracy, not an output of shape {shape}")
    labels = source.labels[: min(limit or len(source), len(source))]
    if not 0 <= labels.min() <= labels.max() < shape[0]:
        raise IntvitError(f"images: labels must lie in 0..{shape[0] - 1}, not {labels.min()}..{labels.max()}")
    return labels


def batches(source: ImageSource, n_images: int, batch: int) -> Iterator[tuple[int, Array]]:
    """(index of the first image, images) of every batch, read when it is asked for."""
    for start in range(0, n_images, batch):
        yield start, source.read(start, min(start + batch, n_images))


def batch_of(graph: Graph, batch: int) -> int:
    """At most `batch` images, one at least, whose integers fit in memory while the graph is run."""
    largest = max(prod(tensor.shape) for tensor in graph.tensors.values())
    return fitting(batch, 2 * 8 * largest)  # a step's input and output as int64


def integer_accuracy(
    graph: Graph,
    source: ImageSource,
    *,
    limit: int | None = None,
    batch: int = DEFAULT_BATCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> float:
    """Share of images whose largest logit, at the common scale, is the label's. Ties go to the first class."""
    hits, name = 0, graph.outputs[0]
    labels = checked_labels(source, limit, graph.tensors[name].shape)
    batch = batch_of(graph, batch)

    def sink(start: int, tensors: dict[str, Array]) -> None:
        nonlocal hits
        hits += int((tensors[name].argmax(1) == labels[start : start + len(tensors[name])]).sum())
        if progress:
            progress(start + len(tensors[name]), len(labels))

    Engine(graph).stream(batches(source, len(labels), batch), [name], sink, threads=threads)
    return hits / len(labels)


def float_accuracy(
    model: FloatModel,
    source: ImageSource,
    *,
    limit: int | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> float:
    """Share of images whose largest float logit is the label's."""
    (first,) = model.run(source.read(0, 1)).values()
    labels, hits = checked_labels(source, limit, first.shape[1:]), 0
    for start, images in batches(source, len(labels), batch):
        (logits,) = model.run(images).values()
        hits += int((logits.argmax(1) == labels[start : start + len(images)]).sum())
        if progress:
            progress(start + len(images), len(labels))
    return hits / len(labels)
