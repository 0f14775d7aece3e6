"""Image sources: HDF5, .npy, .npz, folders of image files, the embedded data; read in batches, normalised float32."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array

EMBEDDED = {"fashion-mnist": "fashion_mnist.h5"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


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

    def __len__(self) -> int:
        return self.n_images

    def read(self, start: int, stop: int) -> Array:
        images = self.raw(start, stop)
        if images.shape[1:] != self.shape:
            raise IntvitError(f"{self.name}: image size must be {self.shape}, not {images.shape[1:]}")
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
        images = (images.astype(np.float32) - self.mean) / self.std
        if not np.isfinite(images).all():
            bad = start + int(np.argwhere(~np.isfinite(images))[0][0])
            raise IntvitError(f"{self.name}: image {bad} must be finite, not NaN or infinite")
        return images

    def sha256(self, limit: int | None = None) -> str:
        """Hash of the normalised images, as they are fed."""
        digest = hashlib.sha256(str(self.shape).encode())
        n_images = min(limit or self.n_images, self.n_images)
        for start in range(0, n_images, 256):
            digest.update(self.read(start, min(start + 256, n_images)).astype("<f4").tobytes())
        return digest.hexdigest()


def open_images(
    source: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: tuple[int, ...],
    channels: int,
    resize: int | None = None,
) -> ImageSource:
    """Open `source` for images of (channels, *size).

    `fashion-mnist:test`, `file.h5` or `file.h5:group` (dataset `images`, `labels` if there are any, attributes `mean`
    and `std`), `.npy`, `.npz` (array `images` or the only one), or a folder of image files: shorter side resized to
    `resize` (default: the size), centre crop; names of subfolders are the classes.
    """
    name, _, group = source.partition(":")
    if name in EMBEDDED:
        path = Path(str(resources.files("intvit") / "data" / EMBEDDED[name]))
        raw, n_images, labels, found = _open_hdf5(path, group or "test")
    elif Path(source).is_dir():
        raw, n_images, labels, found = _open_folder(Path(source), size, channels, resize)
    elif Path(name).suffix in (".h5", ".hdf5"):
        raw, n_images, labels, found = _open_hdf5(Path(name), group)
    elif Path(source).suffix in (".npy", ".npz"):
        raw, n_images, labels, found = _open_numpy(Path(source))
    else:
        raise IntvitError(f"{source}: images must be .h5, .npy, .npz, a folder or one of {', '.join(EMBEDDED)}")
    mean_array = _channel_values("mean", mean if mean is not None else found.get("mean", [0.0]), channels, len(size))
    std_array = _channel_values("std", std if std is not None else found.get("std", [1.0]), channels, len(size))
    if not (std_array > 0).all():
        raise IntvitError("std: must be positive")
    result = ImageSource(source, n_images, raw, (channels, *size), mean_array, std_array, labels)
    if labels is not None and len(labels) != n_images:
        raise IntvitError(f"{source}: labels must number {n_images}, not {len(labels)}")
    if n_images < 1:
        raise IntvitError(f"{source}: must hold at least one image")
    if raw(0, 1).shape[1:] != result.shape:
        raise IntvitError(f"{source}: image size must be {result.shape}, not {raw(0, 1).shape[1:]}")
    return result


def _channel_values(name: str, values: Any, channels: int, n_axes: int) -> Array:
    array = np.asarray(values, np.float32).reshape(-1)
    if array.size not in (1, channels) or not np.isfinite(array).all():
        raise IntvitError(f"{name}: must be one or {channels} finite numbers, not {array.tolist()}")
    return np.broadcast_to(array, (channels,)).reshape(channels, *(1,) * n_axes)


Opened = tuple[Callable[[int, int], Array], int, Array | None, dict[str, Any]]


def _check_array(where: str, shape: tuple[int, ...], dtype: Any) -> None:
    if len(shape) < 3:
        raise IntvitError(f"{where}: images must have axes (N, C, H, W), tokens (N, T, D), not shape {shape}")
    if dtype != np.uint8 and dtype.kind != "f":
        raise IntvitError(f"{where}: images must be uint8 or float, not {dtype}")


def _open_hdf5(path: Path, group: str) -> Opened:
    if not path.is_file():
        raise IntvitError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            if group and group not in file:
                raise IntvitError(f"{path}: group must be one of {', '.join(file)}, not {group!r}")
            node = file[group] if group else file
            if isinstance(node, h5py.Dataset):
                where, labels = group, None
            elif "images" in node:
                where = f"{group}/images" if group else "images"
                labels = np.asarray(node["labels"]) if "labels" in node else None
            else:
                raise IntvitError(f"{path}: must hold a dataset `images`; name its group: {path}:GROUP")
            data = file[where]
            _check_array(f"{path}:{where}", data.shape, data.dtype)
            n_images = len(data)
            found = {key: np.asarray(file.attrs[key]) for key in ("mean", "std") if key in file.attrs}
    except OSError as error:
        raise IntvitError(f"{path}: must be a whole HDF5 file, not: {error}") from None

    def raw(start: int, stop: int) -> Array:
        try:
            with h5py.File(path, "r") as file:
                return np.asarray(file[where][start:stop])
        except OSError as error:
            raise IntvitError(f"{path}: is damaged: {error}") from None

    return raw, n_images, labels, found


def _open_numpy(path: Path) -> Opened:
    labels = None
    try:
        if path.suffix == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                key = "images" if "images" in file.files or len(file.files) != 1 else file.files[0]
                if key not in file.files:
                    raise IntvitError(f"{path}: must hold an array `images`, not {', '.join(file.files)}")
                images = np.asarray(file[key])
                labels = np.asarray(file["labels"]) if "labels" in file.files else None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, IntvitError):
            raise
        raise IntvitError(f"{path}: must be a whole NumPy file of plain arrays, not: {error}") from None
    _check_array(str(path), images.shape, images.dtype)
    return lambda start, stop: np.asarray(images[start:stop]), len(images), labels, {}


def _open_folder(folder: Path, size: tuple[int, ...], channels: int, resize: int | None) -> Opened:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise IntvitError(f"{folder}: must hold image files ({', '.join(sorted(SUFFIXES))})")
    if channels not in (1, 3):
        raise IntvitError(f"{folder}: image files have 1 or 3 channels, the model has {channels}")
    parents = [path.parent for path in files]
    labels = None
    if all(parent != folder for parent in parents):
        classes = sorted(set(parents))
        labels = np.array([classes.index(parent) for parent in parents], np.int64)

    def raw(start: int, stop: int) -> Array:
        return np.stack([_load_image(path, size, channels, resize) for path in files[start:stop]])

    return raw, len(files), labels, {}


def _load_image(path: Path, size: tuple[int, ...], channels: int, resize: int | None) -> Array:
    """One file as uint8 (C, H, W): shorter side to `resize`, bicubic, centre crop."""
    from PIL import Image

    height, width = size
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
            scale = (resize or max(size)) / min(image.size)
            if resize is None:
                scale = max(height / image.height, width / image.width)
            if scale != 1:
                target = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
                image = image.resize(target, Image.Resampling.BICUBIC)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    except OSError as error:
        raise IntvitError(f"{path}: must be a readable image file, not: {error}") from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
