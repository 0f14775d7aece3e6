"""Recordings: the float activation of every site, chunked per image in one HDF5 file, streamed and resumable.

Chunks are shuffled and deflated (filters that ship with HDF5) on threads of our own and written ready-made, as the
library would do both under one lock. Each has a digest, verified whenever it is read; one hash binds all digests to
what the file says about itself.

A killed run leaves no HDF5 file that could be trusted, but `<name>.partial` and a journal of where in it each chunk of
the finished images lies and what it hashes to. To resume is to write the same file once more from the start, with the
chunks that still hash right in place of computed ones: equal writes in equal order, so that they land where they lay
and the journal stays true all the while.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from math import prod
from pathlib import Path
from typing import Self

import h5py
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from intvit.errors import IntvitError, reading
from intvit.files import hdf5, locked, named, publish, remove, safe_key, sync, writing
from intvit.files.memory import fitting
from intvit.floats import preprocessing
from intvit.floats.images import ImageSource
from intvit.floats.journal import Journal, Piece, read_piece
from intvit.floats.model import FloatModel
from intvit.graph.ir import Array

KIND, VERSION = "intvit.recording", 2
COMPRESSION_LEVEL = 1
DIGEST_BYTES = 32
Chunk = tuple[bytes, str]
"""Deflated bytes and their sha256."""


class Recorded(BaseModel):
    """One recorded tensor: its name and the operator that makes it, shape and axes without and with the image axis."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str
    op: str
    inputs: list[str]
    axes: list[str]
    shape: list[int]

    @property
    def n_bytes(self) -> int:
        return 4 * prod(self.shape)

    def attributes(self) -> dict[str, str]:
        """What the dataset says for other readers."""
        lists = {"inputs": json.dumps(self.inputs), "axes": json.dumps(self.axes)}
        return {"site": hdf5.held_text(self.name), "op": hdf5.held_text(self.op), **lists}


class Description(BaseModel):
    """Of what a recording is, as the file states it."""

    model_config = ConfigDict(protected_namespaces=(), frozen=True, extra="forbid", strict=True)
    model_sha256: str
    images_sha256: str
    preprocessing: str
    n_images: int = Field(ge=1)
    onnxruntime: str
    tensors: list[Recorded]

    @property
    def text(self) -> str:
        return json.dumps(self.model_dump(), sort_keys=True)


def record(
    model: FloatModel,
    images: ImageSource,
    path: str | Path,
    *,
    limit: int | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> None:
    """Run `model` on the first `limit` images, at most `batch` at once; write every site's activations to `path`.

    A killed or interrupted run leaves `path.partial` and a journal, from which the same call goes on; another model or
    other images start anew. `notice` is told which. A run that fails leaves nothing. The content does not depend on
    `batch` or on interruptions, beyond what the float engine's own sums do.
    """
    path = named(path)
    partial, journal_path = (path.with_name(path.name + suffix) for suffix in (".partial", ".partial.journal"))
    about = _describe(model, images, min(limit or len(images), len(images)))
    batch = fitting(batch, sum(tensor.n_bytes for tensor in about.tensors))
    with writing(path), locked(path), _gone_if_failed(partial, journal_path):
        if path.is_dir():
            raise IntvitError(f"{path}: must be a file to write, not a folder")
        for left in (partial, journal_path):
            if left.is_symlink() or not left.is_file():
                remove(left)
        begun = partial.exists()
        if not begun:
            remove(journal_path)
        with (
            Journal(journal_path, about.text) as journal,
            hdf5.written(partial, KIND, VERSION, over=bool(journal.entries)) as (file, output),
            partial.open("rb", buffering=0) as old,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            writer = _Writer(file, about)
            done = _resume(writer, old, journal, batch)
            if notice and begun:
                anew = "started anew: an earlier run left no whole batch of these images and this model"
                notice(f"{path}: {f'resumed after image {done} of {about.n_images}' if done else anew}")
            names = [tensor.name for tensor in about.tensors]
            for start in range(done, about.n_images, batch):
                stop = min(start + batch, about.n_images)
                pieces = writer.store(start, _deflated(pool, model.run(images.read(start, stop), names)))
                output.sync()
                journal.append(pieces)
                if progress:
                    progress(stop, about.n_images)
            writer.finish()
        sync(partial)
        publish(partial, path)
        remove(journal_path)


@contextmanager
def _gone_if_failed(*paths: Path) -> Iterator[None]:
    """Interrupts are no failures: what they leave can be resumed."""
    try:
        yield
    except Exception:
        for path in paths:
            remove(path)
        raise


def _describe(model: FloatModel, images: ImageSource, n_images: int) -> Description:
    import onnxruntime

    sites = model.sites()
    tensors = []
    for name, tensor in model.run(images.read(0, 1), [model.input, *sites]).items():
        node = sites.get(name)
        tensors.append(
            Recorded(
                name=name,
                op=node.op_type if node is not None else "Input",
                inputs=list(node.input) if node is not None else [],
                axes=_axes(tensor.ndim, node is None),
                shape=list(tensor.shape[1:]),
            )
        )
    return Description(
        model_sha256=model.sha256,
        images_sha256=images.sha256(n_images),
        preprocessing=preprocessing.write(images.preprocessing),
        n_images=n_images,
        onnxruntime=onnxruntime.__version__,
        tensors=tensors,
    )


def _axes(ndim: int, is_input: bool) -> list[str]:
    if is_input:
        return ["image", "C", "H", "W"]
    names = {2: ["image", "C"], 3: ["image", "N", "C"], 4: ["image", "H", "N", "N|D"]}
    return names.get(ndim, ["image", *(f"axis{i}" for i in range(1, ndim - 1)), "C"])


class _Writer:
    """Chunks into one HDF5 file, image after image: in an order that depends on nothing else."""

    def __init__(self, file: h5py.File, about: Description) -> None:
        self._file, self._about = file, about
        self.n_images, self.n_tensors = about.n_images, len(about.tensors)
        self._datasets = [_create(file, tensor, about.n_images) for tensor in about.tensors]
        self._digests = np.zeros((self.n_images, self.n_tensors, DIGEST_BYTES), np.uint8)

    def store(self, start: int, images: Iterable[Sequence[Chunk]]) -> list[list[Piece]]:
        """Write all chunks of images start, start + 1, ...; where they lie now."""
        return [
            [self._store(start + i, k, *chunk) for k, chunk in enumerate(chunks)] for i, chunks in enumerate(images)
        ]

    def _store(self, image: int, k: int, data: bytes, sha256: str) -> Piece:
        dataset = self._datasets[k]
        at = (image,) + (0,) * (dataset.ndim - 1)
        dataset.id.write_direct_chunk(at, data)
        self._digests[image, k] = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        return Piece(dataset.id.get_chunk_info_by_coord(at).byte_offset, len(data), sha256)

    def finish(self) -> None:
        """Say what the file is; bind it to all digests."""
        text = self._about.text.encode("ascii")
        self._file.create_dataset("recording.json", data=np.bytes_(text))
        self._file.create_dataset("digests", data=self._digests)
        for key, value in self._about.model_dump(exclude={"tensors"}).items():
            self._file.attrs[key] = value
        self._file.attrs["sha256"] = _bound(text, self._digests)


def _bound(text: bytes, digests: Array) -> str:
    return hashlib.sha256(hashlib.sha256(text).digest() + digests.tobytes()).hexdigest()


def _create(file: h5py.File, tensor: Recorded, n_images: int) -> h5py.Dataset:
    data = file.create_dataset(
        f"activations/{safe_key(tensor.name)}",
        (n_images, *tensor.shape),
        np.float32,
        chunks=(1, *tensor.shape),
        compression="gzip",
        compression_opts=COMPRESSION_LEVEL,
        shuffle=True,
    )
    for key, value in tensor.attributes().items():
        data.attrs[key] = value
    return data


def _resume(writer: _Writer, old: FileIO, journal: Journal, batch: int) -> int:
    """Write again the whole batches that are journaled and as they were, and forget the rest; the number of images."""
    done = 0
    while entries := journal.entries[done : done + batch]:
        images = [chunks for pieces in entries if (chunks := _chunks(old, pieces, writer.n_tensors)) is not None]
        if len(images) < min(batch, writer.n_images - done):
            break
        writer.store(done, images)
        done += len(images)
    journal.keep(done)
    return done


def _chunks(old: FileIO, pieces: list[Piece], n_tensors: int) -> list[Chunk] | None:
    """What is journaled of one image; None if a chunk of it is not what it was."""
    chunks = [(data, piece.sha256) for piece in pieces if (data := read_piece(old, piece)) is not None]
    return chunks if len(chunks) == n_tensors else None


def _deflated(pool: ThreadPoolExecutor, tensors: dict[str, Array]) -> Iterator[list[Chunk]]:
    """The chunks of each image, made on all threads."""
    jobs = [
        [pool.submit(_deflate, np.ascontiguousarray(image, np.float32)) for image in tensor]
        for tensor in tensors.values()
    ]
    return ([job.result() for job in image] for image in zip(*jobs, strict=True))


def _deflate(image: Array) -> Chunk:
    """HDF5's shuffle filter (bytes of equal rank together), then deflate."""
    shuffled = image.reshape(-1).view(np.uint8).reshape(-1, image.itemsize).T
    data = zlib.compress(np.ascontiguousarray(shuffled).data, COMPRESSION_LEVEL)
    return data, hashlib.sha256(data).hexdigest()


def _inflate(data: bytes, image: Array) -> None:
    """The inverse of `_deflate`, into `image`; ValueError if it gives more or less than that."""
    stream = zlib.decompressobj()
    shuffled = stream.decompress(data, image.nbytes + 1)
    if len(shuffled) != image.nbytes or not stream.eof:
        raise ValueError(f"{len(shuffled)} bytes of {image.nbytes}")
    planes = np.frombuffer(shuffled, np.uint8).reshape(image.itemsize, -1)
    values = image.reshape(-1).view(np.uint8).reshape(-1, image.itemsize)
    for rank, plane in enumerate(planes):  # ten times as fast as a transposed copy
        values[:, rank] = plane


class Recording:
    """Reads a finished recording; use as a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened = hdf5.read(path, KIND, VERSION)
        self._file = self._opened.__enter__()
        try:
            self.about = self._describe()
            self._index = {tensor.name: k for k, tensor in enumerate(self.about.tensors)}
            self._datasets = [self._open(tensor) for tensor in self.about.tensors]
            self.preprocessing = preprocessing.read(f"{path}: preprocessing", self.about.preprocessing)
        except BaseException:
            self.close()
            raise
        self.names = list(self._index)
        self.n_images = self.about.n_images
        self.model_sha256, self.images_sha256 = self.about.model_sha256, self.about.images_sha256

    def _describe(self) -> Description:
        text = hdf5.text(self._file, "recording.json")
        self._digests = hdf5.array(self._file, "digests", "u")
        with reading(self.path, "a whole recording"):
            about = Description.model_validate_json(text)
            found = {key: hdf5.attribute(self._file, key, type(value)) for key, value in about if key != "tensors"}
        bound = _bound(text.encode(), self._digests)
        shape = (about.n_images, len(about.tensors), DIGEST_BYTES)
        if found != about.model_dump(exclude={"tensors"}) or self._digests.shape != shape:
            raise IntvitError(f"{self.path}: must say the same in its attributes, its digests and recording.json")
        if hdf5.attribute(self._file, "sha256", str) != bound:
            raise IntvitError(f"{self.path}: must hash to {bound[:12]}; the recording was changed")
        return about

    def _open(self, tensor: Recorded) -> h5py.Dataset:
        data = hdf5.dataset(self._file, f"activations/{safe_key(tensor.name)}", "f")
        shape = (self.about.n_images, *tensor.shape)
        if (data.shape, data.chunks, data.dtype) != (shape, (1, *tensor.shape), np.dtype("<f4")):
            raise IntvitError(f"{self.path}: {tensor.name}: must be float32 {list(shape)}, a chunk per image")
        for key, value in tensor.attributes().items():
            if hdf5.attribute(data, key, str) != value:
                raise IntvitError(f"{self.path}: {tensor.name}: attribute {key} must be {value!r}; it was changed")
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, name: str, start: int, stop: int) -> Array:
        """Images start..stop of one tensor, float32 (B, ...); IntvitError if a chunk is not what was recorded."""
        if name not in self._index:
            raise IntvitError(f"{self.path}: {name}: no such activation in this recording")
        k = self._index[name]
        stop = min(stop, self.n_images)
        found = np.empty((max(0, stop - start), *self.about.tensors[k].shape), np.float32)
        for image, values in enumerate(found, start):
            with reading(f"{self.path}: {name}", f"as recorded at image {image}"):
                _inflate(self._chunk(k, image), values)
        return found

    def _chunk(self, k: int, image: int) -> bytes:
        tensor, data = self.about.tensors[k], self._datasets[k].id
        at = (image,) + (0,) * len(tensor.shape)
        if data.get_chunk_info_by_coord(at).size > 2 * tensor.n_bytes + 64:
            raise ValueError("a chunk larger than it can be")
        chunk = data.read_direct_chunk(at)[1]
        if hashlib.sha256(chunk).digest() != self._digests[image, k].tobytes():
            raise ValueError("a chunk of another digest")
        return bytes(chunk)
