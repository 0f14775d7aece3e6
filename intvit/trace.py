"""Traces: every wanted integer tensor of a run, with its scale and site, in one HDF5 file. Other tools open it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from intvit import hdf5
from intvit.engine import Sink
from intvit.errors import IntvitError
from intvit.evaluate import storage
from intvit.graph.ir import Array, Graph, Tensor, TensorDigest, tensor_hash

KIND, VERSION = "intvit.trace", 1


@contextmanager
def writer(path: str | Path, graph: Graph, names: Sequence[str], n_images: int) -> Iterator[Sink]:
    """A sink that stores `names` of `n_images` images: `tensors/<name>` (n_images, *shape), a chunk per image."""
    producers = {node.output: node for node in graph.nodes}
    with hdf5.create(path, KIND, VERSION) as file:
        file.attrs["graph_hash"], file.attrs["n_images"] = graph.content_hash, n_images
        for name in names:
            _create(file, graph.tensors[name], producers[name].op if name in producers else "input", n_images)

        digests = {name: TensorDigest((n_images, *graph.tensors[name].shape)) for name in names}

        def sink(start: int, tensors: dict[str, Array]) -> None:
            for name in names:
                array = tensors[name]
                file["tensors"][name][start : start + len(array)] = array
                digests[name].update(array)

        yield sink
        for name in names:
            file["tensors"][name].attrs["sha256"] = digests[name].hexdigest()


def _create(file: h5py.File, tensor: Tensor, op: str, n_images: int) -> None:
    assert tensor.dtype is not None
    data = file.create_dataset(
        f"tensors/{tensor.name}",
        (n_images, *tensor.shape),
        storage(tensor.dtype),
        chunks=(1, *tensor.shape),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    data.attrs["site"] = tensor.name.removesuffix(".quant")
    data.attrs["op"], data.attrs["dtype"] = op, str(tensor.dtype)
    data.attrs["scale"], data.attrs["encoding"] = tensor.scale, tensor.encoding


def read_tensor(path: str | Path, name: str) -> Array:
    """One traced tensor (n_images, *shape); its stored hash is verified."""
    with hdf5.read(path, KIND, VERSION) as file:
        if name not in file["tensors"]:
            raise IntvitError(f"{path}: no tensor {name!r} in this trace")
        data = file["tensors"][name]
        array = np.asarray(data)
        if data.attrs["sha256"] != tensor_hash(array):
            raise IntvitError(f"{path}: {name}: must hash to {data.attrs['sha256'][:12]}; the trace was changed")
        return array


def dequantize(array: Array, tensor: Tensor) -> Array:
    """Real values float64: `scale * q`, or `2**-q` with 0 for code -1."""
    if tensor.encoding == "log2":
        return np.where(array < 0, 0.0, np.exp2(-array.astype(np.float64)))
    assert tensor.scale is not None
    return array.astype(np.float64) * tensor.scale
