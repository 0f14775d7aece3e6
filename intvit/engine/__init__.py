"""Engine: executes an integer Graph. One loop over nodes; images are independent, so threads split the images.

Results never depend on batch size, threads or backend: every operator works on each image alone, in exact integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from intvit.engine import strict
from intvit.engine.evaluate import prepare_in
from intvit.engine.plan import Step, make_plan
from intvit.errors import Beyond, IntvitError, placed
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, IntGraph, Node
from intvit.graph.operators.kind import checked_backend
from intvit.graph.store import load as read_graph

DEFAULT_BATCH = 8
Each = Callable[[str, Array], Any]
Sink = Callable[[int, dict[str, Array]], None]
"""Called in image order with the index of the first image and the wanted tensors (B, ...) of a batch."""


def quantize_images(graph: IntGraph, images: Array) -> Array:
    """Float images (B, C, H, W) to the integers of the graph's input: round half even of x * (1/scale), saturated.

    Integer images pass as they are if they fit the input type.
    """
    tensor = graph.tensors[graph.inputs[0]]
    if images.shape[1:] != tensor.shape:
        raise IntvitError(f"{tensor.name}: image size must be {tensor.shape}, not {images.shape[1:]}")
    if images.dtype.kind in "iu":
        if images.size and (images.min() < tensor.dtype.min or images.max() > tensor.dtype.max):
            raise IntvitError(f"{tensor.name}: integer images must fit {tensor.dtype}")
        return images.astype(storage(tensor.dtype))
    if not np.isfinite(images).all():
        raise IntvitError(f"{tensor.name}: images must be finite, not NaN or infinite")
    scaled = np.rint(images.astype(np.float64) * (1.0 / tensor.scale))
    return np.clip(scaled, tensor.dtype.min, tensor.dtype.max).astype(storage(tensor.dtype))


@dataclass(frozen=True)
class Program:
    """Steps in order, and after each the tensors that nothing reads any more."""

    steps: list[Step]
    dead: list[list[str]]

    @staticmethod
    def of(steps: list[Step]) -> Program:
        last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        dead: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            dead[i].append(name)
        return Program(steps, dead)

    def run(self, values: dict[str, Array], made: Callable[[str, Array], None]) -> None:
        """Run the steps on `values`, which is left with what they do not read; each tensor is `made` once.

        What a kernel refuses, because of the values that it meets, is said with the name of its site.
        """
        for step, dead in zip(self.steps, self.dead, strict=True):
            with placed(step.sites):
                result = step.run([values[name] for name in step.inputs])
            values[step.output] = result
            made(step.output, result)
            for name in dead:
                del values[name]


@dataclass(frozen=True)
class Engine:
    """A graph made ready to run. Build it once; `run` as often as needed."""

    graph: IntGraph
    backend: str = "kernel"
    strict: bool = False
    """No float behind the input's quantizer, and every tensor is held against its type (`engine.strict`)."""

    _programs: dict[frozenset[str], Program] = field(default_factory=dict, init=False, repr=False, compare=False)

    def program(self, wanted: Sequence[str]) -> Program:
        """The steps that compute the tensors of `wanted`, prepared once for each set of them."""
        key = frozenset(wanted)
        if key not in self._programs:
            self._programs[key] = Program.of(self._steps(key))
        return self._programs[key]

    def _steps(self, wanted: frozenset[str]) -> list[Step]:
        if self.backend == "kernel":
            steps = make_plan(self.graph, wanted)
        else:
            checked_backend(self.backend)  # before a site is named
            steps = [self._by_itself(node) for node in self.graph.nodes]
        return [strict.step(self.graph, step) for step in steps] if self.strict else steps

    def _by_itself(self, node: Node) -> Step:
        with placed(node.name):
            run = prepare_in(self.graph, node, self.backend)
        return Step(node.inputs, node.output, run, (node,))

    def evaluate(self, q_images: Array, wanted: Sequence[str], each: Each | None = None) -> dict[str, Any]:
        """Run one batch of integer images; the wanted tensors, each (B, *shape), or what `each` makes of them."""
        keep = each or (lambda name, tensor: tensor)
        values, kept = {self.graph.inputs[0]: q_images}, dict[str, Any]()

        def made(name: str, tensor: Array) -> None:
            if name in wanted:
                kept[name] = keep(name, tensor)

        made(self.graph.inputs[0], q_images)
        self.program(wanted).run(values, made)
        return kept

    def stream(
        self,
        batches: Iterator[tuple[int, Array]],
        wanted: Sequence[str],
        sink: Callable[[int, Any], None],
        *,
        threads: int | None = None,
        each: Callable[[int, str, Array], Any] | None = None,
    ) -> None:
        """Run batches of (first index, images); hand the wanted tensors to `sink` in order.

        Every batch is shared out among the `threads`, so that the sink sees parts of batches. `each`, called with a
        part's first index and a tensor's name and values when they are made, on the thread that made them, turns them
        into what the sink gets instead: no tensor is kept for longer than the network needs it.
        """
        unknown = [name for name in wanted if name not in self.graph.tensors]
        if unknown:
            raise IntvitError(f"{unknown[0]}: no such tensor in this graph")
        names = frozenset(wanted)
        self.program(tuple(names))  # prepared before any thread needs it
        n_threads = max(1, threads or os.cpu_count() or 1)

        def job(start: int, images: Array) -> Any:
            keep = None if each is None else partial(each, start)
            try:
                return self.evaluate(quantize_images(self.graph, images), tuple(names), keep)
            except Beyond as error:
                raise Beyond(error.what, start + error.image) from None

        with threadpool_limits(limits=1), ThreadPoolExecutor(n_threads) as pool:
            pending: list[tuple[int, Future[Any]]] = []
            try:
                for start, images in batches:
                    share = -(-len(images) // n_threads)
                    for at in range(0, len(images), share):
                        pending.append((start + at, pool.submit(job, start + at, images[at : at + share])))
                        if len(pending) > 2 * n_threads:
                            first, done = pending.pop(0)
                            sink(first, done.result())
                for first, done in pending:
                    sink(first, done.result())
            except BaseException:  # an interrupt waits for what is running, and not for what would run next
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def run(
        self,
        images: Array,
        *,
        batch: int = DEFAULT_BATCH,
        threads: int | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, Array]:
        """Run images (B, C, H, W), float or integer; the graph's outputs by name, or the `wanted` tensors."""
        if batch < 1:
            raise IntvitError(f"batch: must be at least 1, not {batch}")
        names = list(self.graph.outputs if wanted is None else wanted)
        parts: dict[str, list[Array]] = {name: [] for name in names}

        def sink(start: int, tensors: dict[str, Array]) -> None:
            for name in names:
                parts[name].append(tensors[name])

        self.stream(
            iter((i, images[i : i + batch]) for i in range(0, len(images), batch)), names, sink, threads=threads
        )
        return {name: np.concatenate(part) for name, part in parts.items()}


def load(path: str | Path, backend: str = "kernel") -> Engine:
    """An engine for an integer graph file: `load(path).run(images)`."""
    return Engine(read_graph(path), backend)
