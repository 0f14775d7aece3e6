"""Traces: every wanted integer tensor of a run, with its scale and site, in one HDF5 file. Other tools open it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from intvit.engine import Sink
from intvit.errors import IntvitError
from intvit.files import hdf5, safe_key
from intvit.files.memory import fitting
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, IntGraph, Tensor, TensorDigest, tensor_hash

KIND, VERSION = "intvit.trace", 2


def in_flight(graph: IntGraph, batch: int, threads: int) -> tuple[int, int]:
    """At most `batch` images and `threads`, so that what an engine holds of all its images at once fits memory."""
    image_bytes = sum(prod(t.shape) * np.dtype(storage(t.dtype)).itemsize for t in graph.tensors.values())
    batch = fitting(batch, 3 * image_bytes)  # one batch on the threads, as much waiting to be written, one being made
    return batch, min(threads, batch)


@contextmanager
def writer(path: str | Path, graph: IntGraph, names: Sequence[str], n_images: int) -> Iterator[Sink]:
    """A sink that stores `names` of `n_images` images: `tensors/<safe name>` (n_images, *shape), a chunk per image.

    Attributes of a tensor: `site` (the tensor of the float graph that it stands for), `op`, `dtype`, `scale`,
    `encoding`, `zero_point` where there is one, `sha256` of its values, a `digest` that binds them all to the name and
    to the graph.
    """
    producers = {node.output: node for node in graph.nodes}
    with hdf5.create(path, KIND, VERSION) as (file, output):
        file.attrs["graph_hash"], file.attrs["n_images"] = graph.content_hash, n_images
        ops = {name: producers[name].op if name in producers else "input" for name in names}
        datasets = {name: _create(file, graph.tensors[name], ops[name], n_images) for name in names}
        digests = {name: TensorDigest((n_images, *graph.tensors[name].shape)) for name in names}

        def sink(start: int, tensors: dict[str, Array]) -> None:
            for name in names:
                array = tensors[name]
                datasets[name][start : start + len(array)] = array
                digests[name].update(array)
            output.check()

        yield sink
        for name, data in datasets.items():
            data.attrs["sha256"] = digests[name].hexdigest()
            data.attrs["digest"] = _digest(data, name, graph.content_hash)


def _create(file: h5py.File, tensor: Tensor, op: str, n_images: int) -> h5py.Dataset:
    data = file.create_dataset(
        f"tensors/{safe_key(tensor.name)}",
        (n_images, *tensor.shape),
        storage(tensor.dtype),
        chunks=(1, *tensor.shape),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    data.attrs["site"] = hdf5.held_text(tensor.source or tensor.name)
    data.attrs["op"], data.attrs["dtype"] = op, str(tensor.dtype)
    data.attrs["scale"], data.attrs["encoding"] = tensor.scale, tensor.encoding
    if tensor.zero_point:
        data.attrs["zero_point"] = tensor.zero_point
    return data


def _digest(data: h5py.Dataset, name: str, graph_hash: str) -> str:
    """sha256 over what a traced tensor claims to be, and the hash of its values."""
    claims: dict[str, Any] = {
        key: hdf5.attribute(data, key, str) for key in ("site", "op", "dtype", "encoding", "sha256")
    }
    claims |= {"name": name, "graph": graph_hash, "shape": list(data.shape), "storage": data.dtype.str}
    claims["scale"] = hdf5.attribute(data, "scale", list)
    if "zero_point" in data.attrs:
        claims["zero_point"] = hdf5.attribute(data, "zero_point", int)
    return hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).hexdigest()


def read_tensor(path: str | Path, name: str) -> Array:
    """One traced tensor (n_images, *shape); IntvitError if it, its name or one of its attributes was changed."""
    with hdf5.read(path, KIND, VERSION) as file:
        tensors = hdf5.group(file, "tensors")
        if not hdf5.holds(tensors, safe_key(name)):
            raise IntvitError(f"{path}: no tensor {name!r} in this trace")
        data = hdf5.dataset(tensors, safe_key(name), "i")
        digest = hdf5.attribute(data, "digest", str)
        if _digest(data, name, hdf5.attribute(file, "graph_hash", str)) != digest:
            raise IntvitError(
                f"{path}: {name}: must be described as the digest {digest[:12]} says; the trace was changed"
            )
        array = hdf5.array(tensors, safe_key(name), "i")
        if hdf5.attribute(data, "sha256", str) != tensor_hash(array):
            raise IntvitError(f"{path}: {name}: must hash to {data.attrs['sha256'][:12]}; the trace was changed")
        return array


def dequantize(array: Array, tensor: Tensor) -> Array:
    """Real values float64: `scale * (q - zero_point)`, or `2**-q` with 0 for code -1."""
    if tensor.encoding == "log2":
        return np.where(array < 0, 0.0, np.exp2(-array.astype(np.float64)))
    return (array.astype(np.float64) - tensor.zero_point) * tensor.scale
