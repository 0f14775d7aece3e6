"""Weight files: .safetensors, .npz and PyTorch's, read without unpickling, and tensors that are taken one by one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16  # registers the type with NumPy, so that safetensors can read it

from intvit.errors import IntvitError
from intvit.importers.kinds import TORCH_SUFFIXES
from intvit.importers.onnx import METADATA_KEY

Array = np.ndarray[Any, Any]
HARMLESS = ("relative_position_index", "attn_mask", "num_batches_tracked")
"""Buffers that carry nothing which the shapes do not tell."""
STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Where training codes put the weights in what they save."""


def load_weights(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors (float32) and the `intvit` metadata of a .safetensors, .npz or PyTorch file.

    PyTorch files are read with `weights_only=True`, by the `torch` extra. Nothing is ever unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise IntvitError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors, metadata = _load_safetensors(path)
    elif path.suffix == ".npz":
        tensors, metadata = _load_npz(path), {}
    elif path.suffix in TORCH_SUFFIXES:
        tensors, metadata = _load_torch(path), {}
    else:
        known = f".safetensors, .npz or PyTorch's {', '.join(TORCH_SUFFIXES)}"
        raise IntvitError(f"{path}: weights must be {known}, not {path.suffix or 'without a suffix'}")
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


def _load_torch(path: Path) -> dict[str, Array]:
    try:
        import torch
    except ImportError:
        raise IntvitError(f"{path}: reading it needs PyTorch: pip install 'intvit[torch]'") from None
    try:
        # training codes save their command line with the weights: a plain record of values
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IntvitError(f"{path}: must be a PyTorch file of plain tensors, not: {line}") from None
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise IntvitError(f"{path}: must hold a state_dict, not {type(content).__name__}")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in tensors.items()}


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
