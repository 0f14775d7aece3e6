"""Image sources: HDF5, .npy, .npz, folders of image files, the embedded data; read in batches, as float32.

A source is read in parts, of which memory holds one. What a file declares is checked before anything is read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from h5py import h5z

from intvit.errors import IntvitError, reading
from intvit.files import hdf5, inside, regular
from intvit.floats.preprocessing import Preprocessing, resolve
from intvit.graph.ir import Array

EMBEDDED = {"fashion-mnist": "fashion_mnist.h5"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What an image file may be, whatever its suffix says. Others of Pillow's formats start programs (EPS)."""
MOST_PIXELS = 89_478_485
"""Of an image file, as stored and as resized: Pillow's own bound, 256 MiB of 24-bit pixels."""
PART_BYTES = 1 << 26
"""Of images read at once where the caller does not say how many."""
NPZ_BYTES = 1 << 30
"""Of one array of an .npz file, which is held whole."""
CHUNK_BYTES = 1 << 29
"""Of one chunk of an HDF5 dataset, which is read whole."""
HEADER_BYTES = 1 << 16
"""Of an .npy file, of which NumPy itself writes and reads far less."""
HDF5_FILTERS = hdf5.FILTERS | {h5z.FILTER_LZF}
"""How images may be compressed: what h5py brings along."""


@dataclass(frozen=True)
class ImageSource:
    """`read(start, stop)` gives float32 (B, C, H, W); stored bytes are divided by 255, then (x - mean) / std."""

    name: str
    n_images: int
    raw: Callable[[int, int], Array]
    """(start, stop) -> stored images (B, C, H, W), uint8 or float."""
    shape: tuple[int, ...]
    """(C, H, W), or (T, D) for the tokens that a network cut out of a larger one takes."""
    mean: Array
    std: Array
    labels: Array | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """The whole rule, for recordings and graphs to carry; `mean` and `std` are what it comes to for these images."""

    def __len__(self) -> int:
        return self.n_images

    def read(self, start: int, stop: int) -> Array:
        images = self.raw(start, stop)
        if images.shape[1:] != self.shape:
            raise IntvitError(f"{self.name}: image size must be {self.shape}, not {images.shape[1:]}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            if images.dtype == np.uint8:
                images = images.astype(np.float32) / np.float32(255)
            images = (images.astype(np.float32) - self.mean) / self.std
        if not np.isfinite(images).all():
            bad = start + int(np.argwhere(~np.isfinite(images))[0][0])
            raise IntvitError(f"{self.name}: image {bad} must be finite, not NaN or infinite")
        return images

    def sha256(self, limit: int | None = None) -> str:
        """Hash of the images as they are fed."""
        digest = hashlib.sha256(str(self.shape).encode())
        n_images = min(limit or self.n_images, self.n_images)
        part = max(1, min(256, PART_BYTES // (4 * math.prod(self.shape))))
        for start in range(0, n_images, part):
            digest.update(self.read(start, min(start + part, n_images)).astype("<f4").tobytes())
        return digest.hexdigest()


def open_images(
    source: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: tuple[int, ...],
    channels: int,
    resize: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    calibrated: bool = False,
    recorded: Preprocessing | None = None,
) -> ImageSource:
    """Open `source` for images of (channels, *size).

    `fashion-mnist:test`, `file.h5` or `file.h5:group` (dataset `images`, `labels` if there are any, attributes `mean`
    and `std`), `.npy`, `.npz` (array `images` or the only one), or a folder of image files: shorter side resized to
    `resize` (default: the size), centre crop; names of subfolders are the classes.

    Preprocessing is what `mean`, `std` and `resize` say, else `recorded`, else the `metadata` of a model, or of a graph
    that is `calibrated`, else the file: see `preprocessing.resolve`.
    """
    given = {"mean": mean, "std": std, "resize": resize}
    states = partial(resolve, given, recorded=recorded, metadata=metadata, calibrated=calibrated)
    shape = (channels, *size)
    if _is_folder(source):
        rule = states(crop=size)
        opened = _open_folder(Path(source), size, channels, rule.resize)
    else:
        if resize is not None:
            raise IntvitError(f"--resize: must go with a folder of image files, not with {source}")
        opened = _open_file(source)
        rule = states(dtype=opened.dtype.name, file=opened.attributes)
    if not opened.n_images:
        raise IntvitError(f"{source}: must hold at least one image")
    if opened.shape != shape:
        raise IntvitError(f"{source}: image size must be {shape}, not {opened.shape}")
    opened.raw(0, 1)  # a source that cannot be read at all says so at once
    mean_array, std_array = rule.constants(channels, len(size))
    return ImageSource(source, opened.n_images, opened.raw, shape, mean_array, std_array, opened.labels, rule)


@dataclass(frozen=True)
class _Opened:
    """What a source declares, and how to read a part of it."""

    n_images: int
    shape: tuple[int, ...]
    dtype: Any
    raw: Callable[[int, int], Array]
    labels: Array | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _is_folder(source: str) -> bool:
    with reading(repr(source), "the name of images"):
        return source != "" and source.partition(":")[0] not in EMBEDDED and os.path.isdir(source)


def _open_file(source: str) -> _Opened:
    name, _, group = source.partition(":")
    if name in EMBEDDED:
        return _open_hdf5(Path(str(resources.files("intvit.floats") / "data" / EMBEDDED[name])), group or "test")
    if found := re.fullmatch(r"(.*?\.(?:h5|hdf5))(?::(.*))?", source, re.DOTALL | re.IGNORECASE):
        return _open_hdf5(Path(found[1]), found[2] or "")
    openers = {".npy": _open_npy, ".npz": _open_npz}
    suffix = Path(source).suffix.lower()
    if suffix not in openers:
        raise IntvitError(f"{source}: images must be .h5, .npy, .npz, a folder or one of {', '.join(EMBEDDED)}")
    with regular(source).open("rb") as stream:
        return openers[suffix](Path(source), stream)


def _check_array(where: str, shape: tuple[int, ...], dtype: Any) -> None:
    if len(shape) < 3:
        raise IntvitError(f"{where}: images must have axes (N, C, H, W), tokens (N, T, D), not shape {shape}")
    if dtype != np.uint8 and dtype.kind != "f":
        raise IntvitError(f"{where}: images must be uint8 or float, not {dtype}")


def _check_labels(where: str, shape: tuple[int, ...], dtype: Any, n_images: int) -> None:
    if shape != (n_images,) or dtype.kind not in "iu":
        raise IntvitError(f"{where}: labels must be {n_images} integers, not {dtype} of shape {shape}")


# ------------------------------------------------------------------------------------------------- HDF5


def _open_hdf5(path: Path, group: str) -> _Opened:
    with hdf5.opened(path) as file:
        where = _dataset_name(path, file, group)
        data = hdf5.dataset(file, where, "uf", HDF5_FILTERS)
        _check_array(f"{path}:{where}", data.shape, data.dtype)
        _check_chunks(f"{path}:{where}", data)
        labels, folder = None, where.rpartition("/")[0]
        if where.rpartition("/")[2] == "images" and "labels" in hdf5.members(hdf5.group(file, folder)):
            name = f"{folder}/labels"
            found = hdf5.dataset(file, name, "iu", HDF5_FILTERS)
            _check_labels(f"{path}:{name}", found.shape, found.dtype, len(data))
            with reading(f"{path}:{name}", "a whole dataset"):
                labels = np.asarray(found[()])
        stated = {key: hdf5.attribute(file, key, list, optional=True) for key in ("mean", "std")}
        attributes = {key: values for key, values in stated.items() if values is not None}
        shape, dtype = tuple(data.shape), data.dtype

    def raw(start: int, stop: int) -> Array:
        with hdf5.opened(path) as file:
            data = hdf5.dataset(file, where, "uf", HDF5_FILTERS)
            with reading(f"{path}:{where}", "a whole dataset"):
                return np.asarray(data[start:stop])

    return _Opened(shape[0], shape[1:], dtype, raw, labels, attributes)


def _dataset_name(path: Path, file: Any, group: str) -> str:
    """The dataset that `file.h5:group` names: `images` in the group, or the group itself where it is a dataset."""
    names = hdf5.members(file)
    group = group.strip("/")
    if group and group.split("/")[0] not in names:
        raise IntvitError(f"{path}: group must be one of {', '.join(names[:20])}, not {group!r}")
    try:
        inner = hdf5.group(file, group)
    except IntvitError:
        return group
    if "images" not in hdf5.members(inner):
        raise IntvitError(f"{path}: must hold a dataset `images`; name its group: {path}:GROUP")
    return f"{group}/images".lstrip("/")


def _check_chunks(where: str, data: Any) -> None:
    """A chunk is read whole; one that is missing reads as zeros, which are no image."""
    if data.chunks is None:
        return
    size = math.prod(data.chunks) * data.dtype.itemsize
    if size > CHUNK_BYTES:
        raise IntvitError(f"{where}: chunks must hold at most {CHUNK_BYTES} bytes, not {size}")
    with reading(where, "a whole dataset"):
        n_chunks = math.prod(-(-n // chunk) for n, chunk in zip(data.shape, data.chunks, strict=True))
        stored = data.id.get_num_chunks()
    if stored != n_chunks:
        raise IntvitError(f"{where}: must be stored whole, in {n_chunks} chunks, not {stored}")


# ------------------------------------------------------------------------------------------------- NumPy


def _header(where: str, head: bytes) -> tuple[tuple[int, ...], Any, bool, int]:
    """Shape, type, whether in Fortran order, and place of the data, from the first bytes of an .npy file."""
    stream = io.BytesIO(head)
    with reading(where, "a whole NumPy file of plain arrays"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files of Python 2
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{dtype} of shape {shape}")
    return shape, dtype, fortran, stream.tell()


def _n_bytes(where: str, shape: tuple[int, ...], dtype: Any, found: int) -> int:
    size = math.prod(shape) * dtype.itemsize
    if size != found:
        raise IntvitError(f"{where}: must be whole, {size} bytes for {dtype} of shape {shape}, not {found}")
    return int(size)


def _open_npy(path: Path, stream: BinaryIO) -> _Opened:
    with reading(path, "a whole NumPy file"):
        head = stream.read(HEADER_BYTES)
    shape, dtype, fortran, offset = _header(str(path), head)
    _check_array(str(path), shape, dtype)
    _n_bytes(str(path), shape, dtype, os.fstat(stream.fileno()).st_size - offset)

    def raw(start: int, stop: int) -> Array:
        with reading(path, "a whole NumPy file"):  # mapped anew each time: memory holds no more than the part
            return np.array(np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")[start:stop])

    return _Opened(shape[0], shape[1:], dtype, raw)


def _open_npz(path: Path, stream: BinaryIO) -> _Opened:
    with reading(path, "a whole NumPy file of plain arrays"), zipfile.ZipFile(stream) as file:
        names = [entry.filename.removesuffix(".npy") for entry in file.infolist()]
        if len(set(names)) != len(names):
            raise IntvitError(f"{path}: must name each array once")
        if "images" not in names and len(names) != 1:
            raise IntvitError(f"{path}: must hold an array `images`, not {', '.join(names[:20])}")
        entries = dict(zip(names, file.infolist(), strict=True))
        key = "images" if "images" in names else names[0]
        images = _npz_array(f"{path}:{key}", file, entries[key], _check_array)
        labels = None
        if "labels" in names and key != "labels":
            labels = _npz_array(f"{path}:labels", file, entries["labels"], partial(_check_labels, n_images=len(images)))
    return _Opened(len(images), images.shape[1:], images.dtype, lambda start, stop: images[start:stop], labels)


def _npz_array(where: str, file: zipfile.ZipFile, entry: zipfile.ZipInfo, check: Callable[..., None]) -> Array:
    """One array of an .npz file, of the size that both its zip entry and its own header declare."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise IntvitError(f"{where}: must be stored or deflated, as NumPy does")
    with cast(io.BufferedIOBase, file.open(entry)) as stream:
        head = stream.read(HEADER_BYTES)
        shape, dtype, fortran, offset = _header(where, head)
        check(where, shape, dtype)
        size = _n_bytes(where, shape, dtype, entry.file_size - offset)
        if size > NPZ_BYTES:
            raise IntvitError(f"{where}: must hold at most {NPZ_BYTES} bytes, not {size}; .npy and HDF5 have no bound")
        data = np.empty(size, np.uint8)  # no memory is taken before there is something to put there
        view, at = data.data, len(head) - offset
        view[:at] = head[offset:]
        while count := stream.readinto(view[at : at + PART_BYTES]):
            at += count
        if at != size or stream.read(1):  # the read that finds the end also compares the checksum
            raise IntvitError(f"{where}: must be whole, {size} bytes, not {at}")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


# ------------------------------------------------------------------------------------------------- image files


def _image_files(folder: Path) -> list[tuple[str, ...]]:
    """Image files below `folder`, hidden ones left out, as parts of their relative paths, by code point."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    with reading(folder, "a folder that can be read"):
        for root, folders, names in os.walk(folder, onerror=fail):
            at = Path(root)
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
            for name in (*folders, *images):
                inside(folder, at / name)
            found += [(at / name).relative_to(folder).parts for name in images]
    return sorted(found)


def _open_folder(folder: Path, size: tuple[int, ...], channels: int, resize: int | None) -> _Opened:
    files = _image_files(folder)
    if not files:
        raise IntvitError(f"{folder}: must hold image files ({', '.join(sorted(SUFFIXES))})")
    if channels not in (1, 3) or len(size) != 2:
        raise IntvitError(f"{folder}: image files have 1 or 3 channels, the model takes {(channels, *size)}")
    labels = None
    if all(len(parts) > 1 for parts in files):
        classes = {parent: i for i, parent in enumerate(sorted({parts[:-1] for parts in files}))}
        labels = np.array([classes[parts[:-1]] for parts in files], np.int64)

    def raw(start: int, stop: int) -> Array:
        return np.stack([_load_image(folder.joinpath(*parts), size, channels, resize) for parts in files[start:stop]])

    return _Opened(len(files), (channels, *size), np.dtype(np.uint8), raw, labels)


def _load_image(path: Path, size: tuple[int, ...], channels: int, resize: int | None) -> Array:
    """One file as uint8 (C, H, W): shorter side to `resize`, bicubic, centre crop.

    The first frame, as it is stored: a camera's orientation mark and transparency are not applied.
    """
    from PIL import Image

    height, width = size
    mode = "L" if channels == 1 else "RGB"
    with reading(path, "a readable image file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what stands beside the pixels; pixels that cannot be read are an error
        with Image.open(regular(path), formats=FORMATS) as file:
            _check_pixels(path, "image", file.size)
            if file.mode[0] in "IF":
                raise IntvitError(f"{path}: must have 8 bits per channel, not those of mode {file.mode}")
            image: Image.Image = file if file.mode == mode else file.convert(mode)
            image.load()
            scale = max(height / image.height, width / image.width) if resize is None else resize / min(image.size)
            target = (round(image.width * scale), round(image.height * scale))
            if target[0] < width or target[1] < height:
                raise IntvitError(f"{path}: must cover the crop {width} x {height} when resized, not {_text(target)}")
            _check_pixels(path, "resized image", target)
            if scale != 1:
                image = image.resize(target, Image.Resampling.BICUBIC)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _check_pixels(path: Path, what: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise IntvitError(f"{path}: {what} must have at most {MOST_PIXELS} pixels, not {_text(size)}")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (width x height)"
