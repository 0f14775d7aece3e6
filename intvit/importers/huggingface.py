"""Hugging Face folders -> float ONNX: `config.json` + `model.safetensors` (or its shards), by a translation of names.

ViTForImageClassification, DeiTForImageClassification (and WithTeacher), SwinForImageClassification, Dinov2 (classifier,
or backbone: its output is then the normed tokens). Preprocessing is read from `preprocessor_config.json`. Nothing is
downloaded and nothing unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intvit.errors import IntvitError
from intvit.graph.ir import Array
from intvit.importers.timm import build_swin, build_vit
from intvit.importers.weights import load_weights

_BLOCK = [
    (r"attention\.(?:attention|self)\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.(?:attention|self)\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
]
_OUTSIDE = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
]
_PREFIX = {"vit": "vit.", "deit": "deit.", "swin": "swin.", "dinov2": "dinov2."}
_HARMLESS = ("relative_position_index", "mask_token", "pooler.dense.weight", "pooler.dense.bias")


def import_huggingface(folder: str | Path, **options: Any) -> onnx.ModelProto:
    """Folder -> float ONNX. Options go before what `config.json` says."""
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in _PREFIX:
        raise IntvitError(f"{folder}: model_type must be one of {', '.join(_PREFIX)}, not {kind!r}")
    if config.get("use_swiglu_ffn"):
        raise IntvitError(f"{folder}: use_swiglu_ffn must be false: a gated unit has no integer form")
    if config.get("hidden_act", "gelu") != "gelu":
        raise IntvitError(f"{folder}: hidden_act must be gelu, not {config['hidden_act']!r}")
    tensors = translate(_load_tensors(folder), str(kind))
    found = {
        "num_heads": config.get("num_heads") or config.get("num_attention_heads"),
        "img_size": config.get("image_size"),
        "layer_norm_eps": config.get("layer_norm_eps"),
        **_preprocessing(folder),
    }
    if kind == "dinov2":
        found |= {"interpolate": True, "img_size": found.pop("crop", None) or found["img_size"]}
    merged = {**found, **{key: value for key, value in options.items() if value is not None}}
    try:
        return (build_swin if kind == "swin" else build_vit)(tensors, merged)
    except IntvitError as error:
        raise IntvitError(f"{folder}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise IntvitError(f"{path}: must be a readable JSON object, not: {error}") from None


def _load_tensors(folder: Path) -> dict[str, Array]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return load_weights(folder / "model.safetensors")[0]
    tensors: dict[str, Array] = {}
    for shard in sorted(set(_read_json(index)["weight_map"].values())):
        if Path(shard).name != shard:
            raise IntvitError(f"{index}: shard must be a file of the folder, not {shard!r}")
        tensors |= load_weights(folder / shard)[0]
    missing = sorted(set(_read_json(index)["weight_map"]) - set(tensors))
    if missing:
        raise IntvitError(f"{index}: {missing[0]}: tensor is listed, and no shard holds it")
    return tensors


def translate(tensors: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """Hugging Face names to timm's; query, key and value joined to `qkv`."""
    renamed: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if not name.endswith(_HARMLESS):
            renamed[_rename(name, kind)] = tensor
    joined: dict[str, Array] = {}
    for name, tensor in renamed.items():
        match = re.fullmatch(r"(.*\.attn\.)(query|key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "query":
            parts = [f"{match[1]}{part}.{match[3]}" for part in ("query", "key", "value")]
            for part in parts:
                if part not in renamed:
                    raise IntvitError(f"{part}: tensor is missing; it must have shape {list(tensor.shape)}")
            joined[f"{match[1]}qkv.{match[3]}"] = np.concatenate([renamed[part] for part in parts])
    return joined


def _rename(name: str, kind: str) -> str:
    bare = name.removeprefix(_PREFIX[kind])
    block = re.match(r"encoder\.(layer\.(\d+)|layers\.(\d+)\.blocks\.(\d+))\.(.*)", bare)
    if block:
        site = f"blocks.{block[2]}" if block[2] is not None else f"layers.{block[3]}.blocks.{block[4]}"
        return f"{site}.{_substitute(block[5], _BLOCK)}"
    if bare.startswith("encoder.layers."):
        return bare.removeprefix("encoder.")
    return _substitute(bare, _OUTSIDE)


def _substitute(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        changed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return changed
    return name


def _preprocessing(folder: Path) -> dict[str, Any]:
    """mean, std and the length to which the shorter side is resized, where the folder says so."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    config, found = _read_json(path), {}
    if config.get("do_normalize", True) and "image_mean" in config and "image_std" in config:
        found = {"mean": config["image_mean"], "std": config["image_std"]}
    size = config.get("size")
    side = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
    if config.get("do_resize", True) and side:
        found["resize"] = int(side)
    crop = config.get("crop_size")
    if config.get("do_center_crop") and isinstance(crop, dict):
        found["crop"] = [int(crop["height"]), int(crop["width"])]
    return found
