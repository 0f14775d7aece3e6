"""Preprocessing: how stored images become what a network is fed. Stated once; recordings and graphs carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reading
from intvit.graph.ir import Array

OPTIONS = ("mean", "std", "resize")


@dataclass(frozen=True)
class Preprocessing:
    """uint8 images are divided by 255, then `(x - mean) / std`; float images are fed as they are.

    `mean`, `std`: one number or one per channel. `resize`: image files only, the length of the shorter side before the
    centre crop; None: the least that covers the crop. `normalize_floats`: float images too get `(x - mean) / std`.

    The rest is no part of the rule: the images that it is applied to, their type and, of image files, the size of the
    crop; and of an option who stated it.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | None = None
    normalize_floats: bool = False
    dtype: str = field(default="uint8", compare=False)
    crop: tuple[int, ...] | None = field(default=None, compare=False)
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

    def as_json(self) -> dict[str, Any]:
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "normalize_floats": self.normalize_floats,
        }

    def restate(self, metadata: Mapping[str, Any], where: str = "the model") -> dict[str, Any]:
        """`metadata` changed so that it states this value, and not at all where it does already."""
        found, mine, theirs = dict(metadata), self.as_json(), stated(metadata, where).as_json()
        for key, value in mine.items():
            if value == theirs[key]:
                continue
            if value is None:
                del found[key]
            else:
                found[key] = value
        return found

    @property
    def normalizes(self) -> bool:
        """Whether mean and deviation are applied to images of this type."""
        return self.dtype == "uint8" or self.normalize_floats

    def constants(self, channels: int, n_axes: int) -> tuple[Array, Array]:
        """Mean and deviation, float32 (channels, 1, ...): 0 and 1 for what is fed as it is."""
        values = (self.mean, self.std) if self.normalizes else ((0.0,), (1.0,))
        for name, value in zip(("mean", "std"), values, strict=True):
            if len(value) not in (1, channels):
                raise IntvitError(f"{name}: must be one number, or {channels} for the channels, not {list(value)}")
        mean, std = (np.broadcast_to(np.asarray(value, np.float32), (channels,)) for value in values)
        return mean.reshape(channels, *(1,) * n_axes), std.reshape(channels, *(1,) * n_axes)

    def __str__(self) -> str:
        """One line for people: what is done to the images, and who said so."""
        first = "uint8 / 255" if self.dtype == "uint8" else self.dtype
        names = [key for key in ("mean", "std") if key in self.origin]
        if not self.normalizes:
            return f"{first}, as they are" + (f"; not applied to floats: {self._states(names)}" if names else "")
        parts = [first, self._states(names) or "no mean or std stated"]
        if self.crop is not None:
            parts += [self._states(["resize"])] if self.resize is not None else []
            parts.append(f"crop {' x '.join(map(str, self.crop))}")
        return ", ".join(parts)

    def _states(self, names: list[str]) -> str:
        """`mean 0.5, std 0.25 (from the model)`."""
        parts = []
        for origin, keys in groupby(names, lambda name: self.origin.get(name)):
            text = ", ".join(f"{key} {_text(getattr(self, key))}" for key in keys)
            parts.append(f"{text} ({origin})" if origin else text)
        return ", ".join(parts)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _numbers(place: str, value: Any) -> tuple[float, ...]:
    """Numbers at float32, in which they are applied; one where all are equal."""
    rule = f"{place}: must be one finite number or one per channel"
    with reading(place, "one finite number or one per channel"):
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.ndim > 1 or not 1 <= array.size <= 4096:
            raise IntvitError(f"{rule}, not {str(value)[:100]}")
        with np.errstate(over="ignore", under="ignore"):
            narrow = array.reshape(-1).astype(np.float32)
    if not np.isfinite(narrow).all():
        raise IntvitError(f"{rule}, not {array.tolist()}")
    numbers = tuple(float(str(v)) for v in narrow)  # the shortest decimal of the same float32
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _deviations(place: str, value: Any) -> tuple[float, ...]:
    numbers = _numbers(place, value)
    if min(numbers) <= 0:
        raise IntvitError(f"{place}: must be positive, not {list(numbers)}")
    return numbers


def _length(place: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise IntvitError(f"{place}: must be a length in pixels, at least 1, not {str(value)[:100]}")
    return value


_READ = {"mean": _numbers, "std": _deviations, "resize": _length}


def _read(source: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key: read(f"{prefix}{key}", source[key]) for key, read in _READ.items() if source.get(key) is not None}


def stated(metadata: Mapping[str, Any], where: str = "the model") -> Preprocessing:
    """What the metadata of a model, a graph or a recording states; IntvitError for values that mean nothing."""
    found = _read(metadata, f"{where}: ")
    floats = metadata.get("normalize_floats", False)
    if not isinstance(floats, bool):
        raise IntvitError(f"{where}: normalize_floats: must be true or false, not {str(floats)[:100]}")
    return Preprocessing(**found, normalize_floats=floats, origin=dict.fromkeys(found, f"from {where}"))


def write(preprocessing: Preprocessing) -> str:
    """As text for a recording; `read` is the inverse."""
    images = {"dtype": preprocessing.dtype, "crop": preprocessing.crop}
    return json.dumps({**preprocessing.as_json(), **images}, sort_keys=True)


def read(place: str, text: str) -> Preprocessing:
    """What `write` wrote; IntvitError, which names the place, for anything else."""
    with reading(place, "as `intvit record` states it"):
        found = json.loads(text)
        crop = None if found["crop"] is None else tuple(map(int, found["crop"]))
        return replace(stated(found, "the recording"), dtype=np.dtype(found["dtype"]).name, crop=crop)


def resolve(
    given: Mapping[str, Any],
    *,
    dtype: str = "uint8",
    crop: tuple[int, ...] | None = None,
    recorded: Preprocessing | None = None,
    metadata: Mapping[str, Any] | None = None,
    calibrated: bool = False,
    file: Mapping[str, Any] | None = None,
) -> Preprocessing:
    """The preprocessing of images of type `dtype`, of everybody who states a part of it.

    `given` (options of this call) goes before a recording's, that before the `metadata` of a model, or of a graph that
    was `calibrated` with what it states, that before the attributes of an image `file`. Float images are normalised
    where `given` says so (0 and 1: as they are), or where the recording or graph was made so.

    IntvitError if `given` contradicts the recording, whose activations are what they are, and if it is not known who is
    right: a model and a file that state different values, float images whose file states any.
    """
    options = _read(given, "--")
    as_they_are = (options.get("mean"), options.get("std")) == ((0.0,), (1.0,))
    if recorded is not None:
        if as_they_are and not recorded.normalizes:
            del options["mean"], options["std"]
        for key, value in options.items():
            if value != getattr(recorded, key):
                kept = _text(getattr(recorded, key))
                raise IntvitError(f"--{key}: must be what the recording was made with, {kept}, not {_text(value)}")
        return replace(recorded, dtype=dtype, crop=crop)
    where = "the graph" if calibrated else "the model"
    base, own = stated(metadata or {}, where), _read(file or {}, "images: attribute ")
    is_float, floats = dtype != "uint8", base.normalize_floats
    if is_float and options.keys() & {"mean", "std"}:
        floats = not as_they_are
        if as_they_are:  # what uint8 images need stays as it is stated
            del options["mean"], options["std"]
    elif is_float and own and not (floats or calibrated):
        raise IntvitError(
            "images: attributes mean and std of float images may be done or to be done; give --mean and --std "
            "(0 and 1 to feed them as they are)"
        )
    theirs = {key: getattr(base, key) for key in base.origin}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key in OPTIONS:
        said = [(source[key], name) for source, name in ((theirs, where), (own, "the file")) if key in source]
        if key in options:
            values[key], origin[key] = options[key], f"--{key}"
        elif said:
            values[key], origin[key] = said[0][0], f"from {said[0][1]}"
        for value, name in said:
            if value == values[key]:
                continue
            if key not in options and not calibrated and (floats or not is_float):
                raise IntvitError(
                    f"images: {key} must be known, and is {_text(values[key])} by {where}, {_text(value)} by {name}; "
                    f"give --{key}"
                )
            origin[key] += f", not the {_text(value)} of {name}"
    return Preprocessing(**values, normalize_floats=floats, dtype=dtype, crop=crop, origin=origin)
