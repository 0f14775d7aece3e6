"""Top-1 accuracy of integer graphs and float models on labelled images, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from intvit.engine import DEFAULT_BATCH, Engine
from intvit.errors import IntvitError
from intvit.graph.ir import Array, Graph

if TYPE_CHECKING:
    from intvit.floatrun import FloatModel
    from intvit.images import ImageSource

Progress = Callable[[int, int], None]


def _labels(source: ImageSource, limit: int | None) -> Array:
    if source.labels is None:
        raise IntvitError("images: must carry labels for an accuracy; HDF5 and npz name them `labels`")
    return source.labels[: min(limit or len(source), len(source))]


def batches(source: ImageSource, n_images: int, batch: int) -> Iterator[tuple[int, Array]]:
    """(index of the first image, images) of every batch, read when it is asked for."""
    for start in range(0, n_images, batch):
        yield start, source.read(start, min(start + batch, n_images))


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
    labels, hits, name = _labels(source, limit), 0, graph.outputs[0]

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
    labels, hits = _labels(source, limit), 0
    for start, images in batches(source, len(labels), batch):
        (logits,) = model.run(images).values()
        hits += int((logits.argmax(1) == labels[start : start + len(images)]).sum())
        if progress:
            progress(start + len(images), len(labels))
    return hits / len(labels)
