"""Workers: the rows of tables, made in parts of images by the processes of a Dask cluster, here or on other machines.

What a worker is sent is all that its rows follow from, and it computes on one thread: the rows are the same for any
number of workers and any size of the parts, and a part whose worker dies is computed by another.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

import intvit
from intvit.errors import IntvitError, reason
from intvit.floats.model import FloatModel
from intvit.graph.ir import Array
from intvit.mapping.scores import Images, Key, Task, score
from intvit.mapping.space import Config, Space
from intvit.mapping.tables import Table
from intvit.spec import SPEC_VERSION

PART = 64
"""Images that a worker is sent at once, if it is not told otherwise."""
DEATHS = 5
"""Workers that may die of a part before it is given up."""
SECONDS = 10
"""To find a scheduler, and a first worker of it."""
ALONE = 120
"""Seconds without any worker after which no more is expected: one that died of memory is started again in a few."""
KEPT = 2
"""Works that a worker holds ready."""

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
"""The environment of a process with one thread for everything: neither BLAS nor Numba starts others beside it."""


class Work(Protocol):
    """What is done to every part: a value that can be pickled."""

    def ready(self) -> Callable[[Any], Any]:
        """Whatever is needed once, done: a function from a part to its rows."""


class Part(NamedTuple):
    """Images first... of a source, and what goes with them."""

    first: int
    images: Array
    outputs: Array | None = None
    labels: Array | None = None
    configs: tuple[Config, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """`score` on a worker, beside the float model, an ONNX file."""

    task: Task
    model: bytes

    def ready(self) -> Callable[[Part], Table[Key]]:
        task, runs = self.task, self.task.runs()
        model = FloatModel(onnx.load_from_string(self.model), threads=1)

        def rows(part: Part) -> Table[Key]:
            span, n_images = (part.first, part.first + len(part.images)), len(part.images)
            return score(task, _Floats(part, model), _Images(part), span, runs=runs, batch=n_images, threads=1)

        return rows


@dataclass(frozen=True)
class _Images:
    """The images of a part, by their numbers in their source."""

    part: Part

    def read(self, start: int, stop: int) -> Array:
        return self.part.images[start - self.part.first : stop - self.part.first]


@dataclass(frozen=True)
class _Floats:
    """What the float model makes of a part."""

    part: Part
    model: FloatModel

    @property
    def names(self) -> list[str]:
        return [self.model.input, *self.model.sites()]

    @cached_property
    def _tensors(self) -> dict[str, Array]:
        return self.model.run(self.part.images, self.names)

    def read(self, name: str, start: int, stop: int) -> Array:
        return self._tensors[name][start - self.part.first : stop - self.part.first]


@dataclass(frozen=True)
class Measuring:
    """`Space.measure` on a worker."""

    space: Space

    def ready(self) -> Callable[[Part], dict[Config, Array]]:
        def rows(part: Part) -> dict[Config, Array]:
            assert part.outputs is not None
            found = self.space.measure(part.configs, part.images, part.outputs, labels=part.labels, threads=1)
            for outcomes in found.values():
                outcomes["image"] += part.first
            return found

        return rows


_READY: dict[str, Callable[[Any], Any]] = {}
"""On a worker: what is ready, by the digest of its work."""


def _done(digest: str, work: Work, part: Any) -> Any:
    if digest not in _READY:
        while len(_READY) >= KEPT:
            del _READY[next(iter(_READY))]
        _READY[digest] = work.ready()
    return _READY[digest](part)


def _given(work: bytes) -> Work:
    """A task of its own: what a worker that died held is made again from what the scheduler holds."""
    found: Work = pickle.loads(work)
    return found


def _version() -> tuple[str, int]:
    return intvit.__version__, SPEC_VERSION


@dataclass(frozen=True)
class Cluster:
    """Workers that can be asked; made by `cluster`."""

    client: Any
    n_workers: int
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """The last works, by digest: workers that have one need not be sent it again."""

    def map(self, work: Work, parts: Sequence[Any], done: Callable[[int], None] | None = None) -> list[Any]:
        """What `work` makes of every part, in their order. done(number of the part): it is there.

        Whatever a part raises is raised, and the others are dropped; IntvitError if it killed too many workers, or
        none is left.
        """
        from distributed import KilledWorker

        digest, shared = self._sent(work)
        futures = [self.client.submit(_done, digest, shared, part, pure=False) for part in parts]
        number = {future.key: i for i, future in enumerate(futures)}
        found: list[Any] = [None] * len(futures)
        try:
            for future in self._ended(futures):
                at = number[future.key]
                found[at] = future.result()
                future.release()
                if done:
                    done(at)
        except KilledWorker as error:
            raise IntvitError(
                f"workers: must end what they are given, and {DEATHS} of them died: {reason(error)}"
            ) from None
        finally:
            self.client.cancel(futures)
        return found

    def _ended(self, futures: Sequence[Any]) -> Iterator[Any]:
        """Futures as they end. Dask starts a worker that died again, but for one that died while it was started."""
        from distributed import wait

        left, alone = list(futures), 0
        while left:
            try:
                ended, waiting = wait(left, timeout=SECONDS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                alone = 0 if self.client.scheduler_info()["workers"] else alone + SECONDS
                if alone >= ALONE:
                    raise IntvitError(f"workers: must be there, and none was for {alone} s") from None
                continue
            left, alone = list(waiting), 0
            yield from ended

    def _sent(self, work: Work) -> tuple[str, Any]:
        data = pickle.dumps(work)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._shared:
            while len(self._shared) >= KEPT:
                del self._shared[next(iter(self._shared))]
            self._shared[digest] = self.client.submit(_given, data, pure=False)
        return digest, self._shared[digest]


@contextmanager
def cluster(scheduler: str | None = None, n_workers: int | None = None) -> Iterator[Cluster]:
    """The workers of the Dask scheduler at an address, or `n_workers` processes here (left out: one per core).

    IntvitError where dask is missing, for a scheduler that does not answer, has no workers, or another intvit.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise IntvitError("workers: must have dask: pip install 'intvit[distributed]'") from None
    if scheduler is not None and n_workers is not None:
        raise IntvitError("workers: must be those of a scheduler or a number of local ones, not both")
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.admin.large-graph-warning-threshold": "1TB",
    }
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set(settings):
        if scheduler is None:
            n = n_workers or os.cpu_count() or 1
            with LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0", env=ONE_THREAD,
                              silence_logs=logging.CRITICAL) as local, Client(local) as client:  # fmt: skip
                yield Cluster(client, n)
            return
        where = f"scheduler {scheduler}"
        try:
            client = Client(scheduler, timeout=SECONDS)
        except Exception as error:
            raise IntvitError(
                f"{where}: must be a Dask scheduler that answers in {SECONDS} s: {reason(error)}"
            ) from None
        with client:
            try:
                client.wait_for_workers(1, timeout=SECONDS)
                versions = client.run(_version)
            except Exception as error:
                raise IntvitError(f"{where}: must have a worker that has intvit: {reason(error)}") from None
            for worker, version in versions.items():
                if tuple(version) != _version():
                    raise IntvitError(
                        f"{where}: workers must have intvit {_version()[0]} of specification {_version()[1]}, and "
                        f"{worker} has {version[0]} of {version[1]}"
                    )
            yield Cluster(client, len(versions))


@dataclass(frozen=True)
class Shards:
    """Tables by the workers of a cluster; `part`: images that are sent at once."""

    cluster: Cluster
    model: FloatModel
    part: int = PART

    def score(
        self, task: Task, images: Images, n_images: int, progress: Callable[[int], None] | None = None
    ) -> Table[Key]:
        """`score` of the images 0..n_images."""
        step = task.batch(self.part)
        spans = [(at, min(at + step, n_images)) for at in range(0, n_images, step)]
        parts = [Part(start, images.read(start, stop)) for start, stop in spans]

        def done(at: int) -> None:
            if progress:
                progress(spans[at][1] - spans[at][0])

        work = Scoring(task, self.model.proto.SerializeToString())
        return Table.merged(self.cluster.map(work, parts, done))

    def measure(
        self, space: Space, configs: Sequence[Config], images: Array, outputs: Array, labels: Array | None = None
    ) -> dict[Config, Array]:
        """`Space.measure`, the images divided among the workers."""
        step = max(1, min(self.part, -(-len(images) // self.cluster.n_workers)))
        parts = [
            Part(at, images[at : at + step], outputs[at : at + step],
                 None if labels is None else labels[at : at + step], tuple(configs))
            for at in range(0, len(images), step)
        ]  # fmt: skip
        found = self.cluster.map(Measuring(space), parts)
        return {
            config: np.concatenate([rows[config] for rows in found])
            for config in dict.fromkeys(configs) if config in found[0]
        }  # fmt: skip
