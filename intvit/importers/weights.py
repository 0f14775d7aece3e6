"""Weight files: .safetensors and .npz, read without unpickling anything, and tensors that are taken one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16  # registers the type with NumPy, so that safetensors can read it

from intvit.errors import IntvitError
from intvit.importers.onnx import METADATA_KEY

Array = np.ndarray[Any, Any]
HARMLESS = ("relative_position_index", "attn_mask", "num_batches_tracked")
"""Buffers that carry nothing which the shapes do not tell."""


def load_weights(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors (float32) and the `intvit` metadata of a .safetensors or .npz file. Nothing is ever unpickled."""
    path = Path(path)
    if not path.is_file():
        raise IntvitError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors, metadata = _load_safetensors(path)
    elif path.suffix == ".npz":
        tensors, metadata = _load_npz(path), {}
    else:
        raise IntvitError(f"{path}: weights must be .safetensors or .npz, not {path.suffix or 'without a suffix'}")
    floats = {name: t.astype(np.float32) for name, t in tensors.items() if t.dtype.kind == "f" or t.dtype == bfloat16}
    for name, tensor in floats.items():
        if not np.isfinite(tensor).all():
            raise IntvitError(f"{path}: {name}: weights must be finite float32, not NaN or infinite")
    return floats, metadata


def _load_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(text)  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise IntvitError(f"{path}: must be a whole safetensors file, not: {error}") from None


def _load_npz(path: Path) -> dict[str, Array]:
    import zipfile

    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise IntvitError(f"{path}: must be a whole npz file of plain arrays, not: {error}") from None


@dataclass
class Weights:
    """Tensors by name; each is taken once, with the shape that it must have, and leftovers are an error."""

    tensors: Mapping[str, Array]
    taken: set[str] = field(default_factory=set)

    def take(self, name: str, *shape: int) -> Array:
        if name not in self.tensors:
            raise IntvitError(f"{name}: tensor is missing; it must have shape {list(shape)}")
        if self.tensors[name].shape != shape:
            raise IntvitError(f"{name}: shape must be {list(shape)}, not {list(self.tensors[name].shape)}")
        self.taken.add(name)
        return self.tensors[name]

    def maybe(self, name: str, *shape: int) -> Array | None:
        return self.take(name, *shape) if name in self.tensors else None

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        if name not in self.tensors:
            raise IntvitError(f"{name}: tensor is missing; it must have {ndim} axes")
        if self.tensors[name].ndim != ndim:
            raise IntvitError(f"{name}: must have {ndim} axes, not shape {list(self.tensors[name].shape)}")
        return self.tensors[name].shape

    def count(self, pattern: str) -> int:
        """How many consecutive indices of `pattern` (with one {}) have tensors."""
        n = 0
        while any(name.startswith(pattern.format(n)) for name in self.tensors):
            n += 1
        return n

    def check_all_taken(self) -> None:
        left = [n for n in self.tensors if n not in self.taken and not n.endswith(HARMLESS)]
        if left:
            raise IntvitError(
                f"{left[0]}: tensor must belong to the model, and no site uses it ({len(left)} left over)"
            )
