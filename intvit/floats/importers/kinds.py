"""The kinds of files that `intvit import` reads: how each is recognised, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError, reading
from intvit.floats.importers.config import TORCH_SUFFIXES

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Kind:
    """A kind of file; the first of KINDS whose `matches` says yes reads it."""

    text: str
    """For people: what it is."""
    matches: Callable[[Path], bool]
    read: Callable[..., onnx.ModelProto]
    """(path, **options) -> canonical float ONNX."""


def _folder(path: Path, **options: Any) -> onnx.ModelProto:
    """A folder of timm names its architecture, one of transformers its model_type."""
    from intvit.floats.importers.config import member, read_json
    from intvit.floats.importers.huggingface import FAMILIES, import_huggingface

    config = read_json(path / "config.json")
    if "architecture" not in config or config.get("model_type") in FAMILIES:
        return import_huggingface(path, **options)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).exists():
            return _timm(member(path, name), **options)
    raise IntvitError(f"{path / 'model.safetensors'}: no such file, nor pytorch_model.bin")


def _foreign(path: Path, **options: Any) -> onnx.ModelProto:
    from intvit.floats.importers.foreign import import_foreign

    return import_foreign(path, **options)


def _timm(path: Path, **options: Any) -> onnx.ModelProto:
    from intvit.floats.importers.timm import import_timm

    return import_timm(path, **options)


KINDS = (
    Kind(
        "a Hugging Face folder (config.json, model.safetensors or its shards): ViT, DeiT, distilled DeiT, Swin, "
        "DINOv2 (with registers too); or a folder of timm's hub (`architecture` in its config.json)",
        lambda path: path.is_dir() and (path / "config.json").is_file(),
        _folder,
    ),
    Kind(
        "an .onnx graph exported by PyTorch (either exporter), optimum or others, opset 13 or newer",
        lambda path: path.suffix == ".onnx",
        _foreign,
    ),
    Kind(
        ".safetensors or .npz weights in the naming of timm or the original repositories: ViT, DeiT, Swin; "
        "or of I-ViT's training code, whose ranges are taken over",
        lambda path: path.suffix in (".safetensors", ".npz"),
        _timm,
    ),
    Kind(
        f"the same weights in a PyTorch file ({', '.join(TORCH_SUFFIXES)}), with the torch extra",
        lambda path: path.suffix in TORCH_SUFFIXES,
        _timm,
    ),
)


def import_model(path: str | Path, **options: Any) -> onnx.ModelProto:
    """Any supported file or folder -> canonical float ONNX. Options that are None count as not given."""
    path = Path(path)
    with reading(path, "a file or folder that can be read"):
        if not path.exists():
            raise IntvitError(f"{path}: no such file")
    given = {key: value for key, value in options.items() if value is not None}
    for kind in KINDS:
        if kind.matches(path):
            for key in ("until", "start"):
                if key in given and kind.read is not _foreign:
                    raise IntvitError(f"{path}: --until and --from cut ONNX graphs, not {path.suffix or 'folders'}")
            with np.errstate(all="ignore"):  # what overflows is refused where it would be stored
                return kind.read(path, **given)
    raise IntvitError(f"{path}: must be one of: {'; '.join(kind.text for kind in KINDS)}")
