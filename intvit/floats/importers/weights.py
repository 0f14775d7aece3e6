"""Weight files: .safetensors, .npz and PyTorch's, read without unpickling, and tensors that are taken one by one."""

from __future__ import annotations

import argparse
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16  # registers the type with NumPy, so that safetensors can read it

from intvit.errors import IntvitError, reading, shortened
from intvit.files import regular
from intvit.floats.importers.config import TORCH_SUFFIXES, options, parse_object
from intvit.floats.importers.onnx import METADATA_KEY

Array = np.ndarray[Any, Any]
HARMLESS = ("relative_position_index", "attn_mask", "num_batches_tracked", "mask_token")
"""Buffers that carry nothing which the shapes do not tell, and what only training uses."""
STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Where training codes put the weights in what they save."""
MOST_BYTES = 2**31
"""Of the weights as float32: an ONNX file holds no more."""
MOST_TENSORS = 100_000
LONGEST_NAME = 300
PARAMETERS = (".weight", ".bias", ".gamma", "_token", "_tokens", "_embed", "_embeddings", "_table")
"""How the names of what must be floats end; integers of other names are buffers."""


def load_weights(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors (float32) and the checked `intvit` metadata of a .safetensors, .npz or PyTorch file.

    PyTorch files are read with `weights_only=True`, by the `torch` extra. Nothing is ever unpickled. Tensors that are
    not of floats are left out; one that is called a weight or bias is refused.
    """
    path = regular(path)
    metadata: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        with reading(path, "a whole safetensors file"):
            metadata = _metadata(path)
            return _floats(path, _safetensors(path)), metadata
    elif path.suffix == ".npz":
        with reading(path, "a whole npz file of plain arrays"):
            return _floats(path, _npz(path)), metadata
    elif path.suffix in TORCH_SUFFIXES:
        with reading(path, "a PyTorch file of plain tensors"):
            return _floats(path, _torch(path)), metadata
    known = f".safetensors, .npz or PyTorch's {', '.join(TORCH_SUFFIXES)}"
    raise IntvitError(f"{path}: weights must be {known}, not {path.suffix or 'without a suffix'}")


@dataclass(frozen=True)
class _Stored:
    """A tensor of a file, not read yet."""

    name: str
    size: int
    """At least so many values."""
    read: Any
    """() -> its values."""


def _floats(path: Path, stored: Iterator[_Stored]) -> dict[str, Array]:
    """The float tensors as float32, read one by one; what is wrong with one is said before the next is read."""
    found: dict[str, Array] = {}
    n_bytes = 0
    for tensor in stored:
        name = tensor.name
        if not name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise IntvitError(f"{path}: tensors must have printable names, not {shortened(name)}")
        if name in found:
            raise IntvitError(f"{path}: {name}: tensor must be there once, not twice")
        if n_bytes + 4 * tensor.size > MOST_BYTES or len(found) >= MOST_TENSORS:
            raise IntvitError(f"{path}: must hold less than 2 GiB of weights (float32), which is what ONNX can hold")
        values = np.asarray(tensor.read())
        if values.dtype.kind in "iu" and name.endswith("_integer"):  # I-ViT's, in the type that they are
            n_bytes += values.nbytes
            found[name] = values
            continue
        if values.dtype.kind != "f" and values.dtype != bfloat16:
            if values.dtype.kind in "cV" or name.endswith(PARAMETERS):
                raise IntvitError(
                    f"{path}: {name}: weights must be float16, bfloat16, float32 or 64, not {values.dtype}"
                )
            continue
        n_bytes += 4 * values.size
        with np.errstate(over="ignore"):
            found[name] = np.ascontiguousarray(values.astype(np.float32, copy=False))
        if not np.isfinite(found[name]).all():
            raise IntvitError(f"{path}: {name}: weights must be finite float32, not NaN or infinite")
    return found


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    where = f"{path}: metadata {METADATA_KEY!r}"
    with reading(where, "a readable JSON object"):
        found = parse_object(text)
    told = {"architecture": found["architecture"]} if isinstance(found.get("architecture"), str) else {}
    return {**options(where, found), **told}


def _safetensors(path: Path) -> Iterator[_Stored]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            header = file.get_slice(name)
            if header.get_dtype().startswith(("F4", "F6", "F8")):
                raise ValueError(f"{shortened(name)} of {header.get_dtype()}")
            size = math.prod(header.get_shape())
            yield _Stored(name, size, partial(file.get_tensor, name))


def _npz(path: Path) -> Iterator[_Stored]:
    with zipfile.ZipFile(path) as file:
        n_bytes = sum(info.file_size for info in file.infolist())
        if n_bytes > 2**28 + 100 * sum(info.compress_size for info in file.infolist()):
            raise ValueError(f"{n_bytes} bytes in {path.stat().st_size}")  # weights do not compress
        for info in file.infolist():
            if not info.filename.endswith(".npy"):
                continue

            def read(info: zipfile.ZipInfo = info) -> Array:
                with file.open(info) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)

            least = max(info.file_size // 8 - 2**14, 0)  # behind the longest header, float64
            yield _Stored(info.filename.removesuffix(".npy"), least, read)


def _torch(path: Path) -> Iterator[_Stored]:
    try:
        import torch
    except ImportError:
        raise IntvitError(f"{path}: reading it needs PyTorch: pip install 'intvit[torch]'") from None
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as file:
            if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in file.infolist()):
                raise ValueError("an archive with compressed parts, which PyTorch does not write")
            if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                raise ValueError("an archive with parts that overlap")
    # training codes save their command line with the weights: a plain record of values
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise IntvitError(f"{path}: must hold a state_dict, not {type(content).__name__}")
    for key, value in content.items():
        if isinstance(value, torch.Tensor):

            def read(value: Any = value) -> Array:
                plain = value.detach()
                if plain.layout != torch.strided:
                    raise ValueError(f"{plain.layout}")
                if plain.numel() * plain.element_size() > plain.untyped_storage().nbytes():
                    raise ValueError(f"a tensor of shape {shortened(list(plain.shape))} that repeats its values")
                if plain.is_floating_point() and plain.element_size() < 2:
                    raise ValueError(f"{plain.dtype}")
                return np.asarray((plain.float() if plain.is_floating_point() else plain).numpy())

            yield _Stored(str(key).removeprefix("module."), value.numel(), read)


@dataclass
class Weights:
    """Tensors by name; each is taken once, with the shape that it must have, and leftovers are an error."""

    tensors: Mapping[str, Array]
    taken: set[str] = field(default_factory=set)

    def take(self, name: str, *shape: int) -> Array:
        if name not in self.tensors:
            raise IntvitError(f"{name}: tensor is missing; it must have shape {list(shape)}")
        if self.tensors[name].shape != shape or 0 in shape:
            raise IntvitError(f"{name}: shape must be {list(shape)}, not {list(self.tensors[name].shape)}")
        self.taken.add(name)
        return self.tensors[name]

    def maybe(self, name: str, *shape: int) -> Array | None:
        return self.take(name, *shape) if name in self.tensors else None

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        if name not in self.tensors:
            raise IntvitError(f"{name}: tensor is missing; it must have {ndim} axes")
        if self.tensors[name].ndim != ndim or 0 in self.tensors[name].shape:
            raise IntvitError(
                f"{name}: must have {ndim} axes, none of them empty, not shape {list(self.tensors[name].shape)}"
            )
        return self.tensors[name].shape

    def count(self, pattern: str) -> int:
        """How many consecutive indices of `pattern` (with one {}) have tensors."""
        indexed = re.compile(re.escape(pattern).replace(r"\{\}", r"(0|[1-9]\d{0,5})"))
        found = {int(match[1]) for match in map(indexed.match, self.tensors) if match}
        return next(n for n in range(len(found) + 1) if n not in found)

    def check_all_taken(self) -> None:
        left = [n for n in self.tensors if n not in self.taken and not n.endswith(HARMLESS)]
        if left:
            raise IntvitError(
                f"{left[0]}: tensor must belong to the model, and no site uses it ({len(left)} left over)"
            )


def shapes_say(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """What names and shapes (in timm's naming) say of the facts that configurations repeat; by timm's arguments."""
    first = "layers.0.blocks.0." if "layers.0.blocks.0.norm1.weight" in tensors else "blocks.0."
    weights = Weights(tensors)
    found: dict[str, Any] = {
        "class_token": "cls_token" in tensors,
        "pre_norm": "norm_pre.weight" in tensors,
        "qkv_bias": f"{first}attn.qkv.bias" in tensors,
        "proj_bias": f"{first}attn.proj.bias" in tensors,
        "init_values": f"{first}ls1.gamma" in tensors,
        "depth": weights.count("blocks.{}."),
        "reg_tokens": 0,
        "num_classes": 0,
    }
    n_stages = weights.count("layers.{}.")
    found["depths"] = [weights.count(f"layers.{i}.blocks.{{}}.") for i in range(n_stages)]
    patch = tensors.get("patch_embed.proj.weight", np.empty(0))
    if patch.ndim == 4:
        found |= {"embed_dim": patch.shape[0], "in_chans": patch.shape[1], "patch_size": list(patch.shape[2:])}
    for key, names, axis in (
        ("hidden", (f"{first}mlp.fc1.weight",), 0),
        ("reg_tokens", ("reg_token", "register_tokens"), 1),
        ("num_classes", ("head.weight", "head.fc.weight"), 0),
    ):
        for name in names:
            if name in tensors and tensors[name].ndim > axis:
                found[key] = tensors[name].shape[axis]
    return found


def agree(where: str, stated: Mapping[str, Any], tensors: Mapping[str, Array], **called: str) -> None:
    """IntvitError if one of the facts `stated` differs from what the tensors say; None is not stated.

    mlp_ratio counts by the hidden width that it gives. `called`: what the file calls a fact, where that is not ours.
    """
    found = shapes_say(tensors)
    for key, value in stated.items():
        name = f"{where}: {called.get(key, key)}"
        if key == "mlp_ratio" and value is not None and "hidden" in found and "embed_dim" in found:
            if int(value * found["embed_dim"]) != found["hidden"]:
                raise IntvitError(f"{name}: must give the {found['hidden']} channels of the weights, not {value}")
        elif key in found and value is not None:
            same = bool(value) if isinstance(found[key], bool) else value
            if isinstance(found[key], list) and not isinstance(value, list):
                same = [value] * len(found[key])
            if same != found[key]:
                raise IntvitError(f"{name}: must be {found[key]}, as the weights say, not {shortened(value)}")
