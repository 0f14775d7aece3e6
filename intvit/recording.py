"""Recordings: the float activation of every site, chunked per image in one HDF5 file, streamed and resumable.

Chunks are shuffled and deflated (filters that ship with HDF5) on threads of our own and written ready-made, as the
library would do both under one lock.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from intvit import hdf5, preprocessing
from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.graph.ir import Array
from intvit.images import ImageSource

KIND, VERSION = "intvit.recording", 1
COMPRESSION_LEVEL = 1


def record(
    model: FloatModel,
    images: ImageSource,
    path: str | Path,
    *,
    limit: int | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run `model` on the first `limit` images; write every site's activations to `path`.

    An interrupted run leaves `path.partial`, from which the same call goes on; another model or other images start
    anew. The content does not depend on `batch`, beyond what the float engine's own sums do.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    n_images = min(limit or len(images), len(images))
    sites = model.sites()
    identity = {
        "model_sha256": model.sha256,
        "images_sha256": images.sha256(n_images),
        "n_images": n_images,
        "preprocessing": preprocessing.write(images.preprocessing),
    }
    done = _resume_point(partial, identity)
    try:
        with h5py.File(partial, "a" if done else "w") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            if not done:
                _create(file, model, images, identity, sites)
            names = [model.input, *sites]
            for start in range(done, n_images, batch):
                stop = min(start + batch, n_images)
                tensors = model.run(images.read(start, stop), names)
                _write_chunks(file, pool, tensors, start)
                file.attrs["n_done"] = stop
                file.flush()
                if progress:
                    progress(stop, n_images)
        os.replace(partial, path)
    except OSError as error:
        raise IntvitError(f"{path}: cannot be written: {error}") from None


def _resume_point(partial: Path, identity: dict[str, Any]) -> int:
    """How many images an interrupted recording of the same model and images already holds."""
    try:
        with h5py.File(partial, "r") as file:
            same = all(file.attrs.get(key) == value for key, value in identity.items())
            kind = (file.attrs.get("format"), file.attrs.get("version"))
            return int(file.attrs["n_done"]) if same and kind == (KIND, VERSION) else 0
    except (OSError, KeyError):
        return 0


def _create(
    file: h5py.File, model: FloatModel, images: ImageSource, identity: dict[str, Any], sites: dict[str, Any]
) -> None:
    file.attrs["format"], file.attrs["version"], file.attrs["n_done"] = KIND, VERSION, 0
    for key, value in identity.items():
        file.attrs[key] = value
    first = model.run(images.read(0, 1), [model.input, *sites])
    for name, tensor in first.items():
        node = sites.get(name)
        shape = tensor.shape[1:]
        data = file.create_dataset(
            f"activations/{name}",
            (identity["n_images"], *shape),
            np.float32,
            chunks=(1, *shape),
            compression="gzip",
            compression_opts=COMPRESSION_LEVEL,
            shuffle=True,
        )
        data.attrs["site"], data.attrs["op"] = name, node.op_type if node is not None else "Input"
        data.attrs["inputs"] = json.dumps(list(node.input) if node is not None else [])
        data.attrs["axes"] = json.dumps(_axes(tensor.ndim, node is None))


def _axes(ndim: int, is_input: bool) -> list[str]:
    if is_input:
        return ["image", "C", "H", "W"]
    names = {2: ["image", "C"], 3: ["image", "N", "C"], 4: ["image", "H", "N", "N|D"]}
    return names.get(ndim, ["image", *(f"axis{i}" for i in range(1, ndim - 1)), "C"])


def _write_chunks(file: h5py.File, pool: ThreadPoolExecutor, tensors: dict[str, Array], start: int) -> None:
    jobs = [
        (name, start + i, pool.submit(_deflate, np.ascontiguousarray(image, np.float32)))
        for name, tensor in tensors.items()
        for i, image in enumerate(tensor)
    ]
    group = file["activations"]
    for name, index, job in jobs:
        data = group[name]
        data.id.write_direct_chunk((index,) + (0,) * (data.ndim - 1), job.result())


def _deflate(image: Array) -> bytes:
    """HDF5's shuffle filter (bytes of equal rank together), then deflate."""
    shuffled = image.reshape(-1).view(np.uint8).reshape(-1, image.itemsize).T
    return zlib.compress(np.ascontiguousarray(shuffled).tobytes(), COMPRESSION_LEVEL)


class Recording:
    """Reads a finished recording; use as a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened = hdf5.read(path, KIND, VERSION)
        self._file = self._opened.__enter__()
        try:
            self.model_sha256 = str(self._file.attrs["model_sha256"])
            self.images_sha256 = str(self._file.attrs["images_sha256"])
            self.n_images = int(self._file.attrs["n_images"])
            if int(self._file.attrs["n_done"]) != self.n_images:
                raise IntvitError(
                    f"{path}: must be complete, and holds {self._file.attrs['n_done']} of {self.n_images}"
                )
            self.preprocessing = preprocessing.read(hdf5.attribute(self._file, "preprocessing", str))
            self.names = list(self._file["activations"])
        except KeyError as error:
            self.close()
            raise IntvitError(f"{path}: is damaged: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def attrs(self, name: str) -> dict[str, Any]:
        return dict(self._file["activations"][name].attrs)

    def read(self, name: str, start: int, stop: int) -> Array:
        """Images start..stop of one tensor, float32 (B, ...)."""
        try:
            return np.asarray(self._file["activations"][name][start:stop])
        except KeyError:
            raise IntvitError(f"{self.path}: {name}: no such activation in this recording") from None
        except OSError as error:
            raise IntvitError(f"{self.path}: {name}: is damaged: {error}") from None
