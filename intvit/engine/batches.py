"""Images by batches that memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from intvit.files.memory import fitting
from intvit.graph.ir import Array, Graph

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource


def batches(source: ImageSource, n_images: int, batch: int) -> Iterator[tuple[int, Array]]:
    """(index of the first image, images) of every batch, read when it is asked for."""
    for start in range(0, n_images, batch):
        yield start, source.read(start, min(start + batch, n_images))


def batch_of(graph: Graph, batch: int) -> int:
    """At most `batch` images, one at least, whose integers fit in memory while the graph is run."""
    largest = max(prod(tensor.shape) for tensor in graph.tensors.values())
    return fitting(batch, 2 * 8 * largest)  # a step's input and output as int64
