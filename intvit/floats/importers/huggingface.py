"""Hugging Face folders -> float ONNX: `config.json` + `model.safetensors` (or its shards), by a translation of names.

ViTForImageClassification, DeiTForImageClassification (and WithTeacher), SwinForImageClassification, Dinov2 and
Dinov2WithRegisters (classifier, or backbone: its output is then the normed tokens). Preprocessing is read from
`preprocessor_config.json`. Nothing is downloaded and nothing unpickled.

Every field of the configuration classes of transformers is used, compared with the tensors, known not to matter, or
refused where its value is another than what is built. Fields that no such class has change nothing there, and are said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from pydantic import BaseModel, ConfigDict, Field

from intvit.errors import IntvitError, shortened
from intvit.floats.importers.architectures import activation
from intvit.floats.importers.config import Count, Epsilon, Numbers, Side, member, read_json, validated
from intvit.floats.importers.config import options as checked_options
from intvit.floats.importers.timm import build_swin, build_vit
from intvit.floats.importers.weights import agree, load_weights
from intvit.graph.ir import Array

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
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
]
_UNUSED_TENSORS = ("relative_position_index", "mask_token", "pooler.dense.weight", "pooler.dense.bias")
HARMLESS = frozenset(
    {
        *(
            "architectures",
            "model_type",
            "transformers_version",
            "_name_or_path",
            "_commit_hash",
            "id2label",
            "label2id",
        ),
        *("num_labels", "problem_type", "finetuning_task", "dtype", "torch_dtype", "torchscript", "use_bfloat16"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range"),
        *("layerscale_value", "use_mask_token", "encoder_stride", "pooler_act", "pooler_output_size"),
        *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "chunk_size_feed_forward"),
        *("is_encoder_decoder", "gradient_checkpointing", "_attn_implementation", "attn_implementation"),
        *("_attn_implementation_autoset", "stage_names", "reshape_hidden_states", "tie_last_hidden_states"),
        *("num_layers", "path_norm", "auto_map", "task_specific_params", "tie_word_embeddings"),
    }
)
"""Fields that concern training, labels, outputs that are not built, or how the result is handed over."""
REFUSED: dict[str, tuple[Any, str]] = {
    "use_swiglu_ffn": (False, "a gated unit cannot be built here"),
    "use_absolute_embeddings": (False, "absolute positions of a Swin cannot be built here"),
    "quantization_config": (None, "the weights must not be quantized"),
    "per_layer_config": ({}, "layers that differ cannot be built here"),
    "pruned_heads": ({}, "pruned heads cannot be built here"),
    "is_decoder": (False, "a decoder cannot be built here"),
    "add_cross_attention": (False, "a decoder cannot be built here"),
}
"""Fields of which only one value is built -> that value, and why."""


@dataclass(frozen=True)
class Family:
    """A `model_type`: how its tensors are called, and what transformers takes where its config is silent."""

    prefix: str
    defaults: Mapping[str, Any]
    interpolate: str | None = None
    """How positions are resized to another image size; None where transformers refuses one."""


_VIT = {"num_attention_heads": 12, "image_size": 224, "layer_norm_eps": 1e-12, "qkv_bias": True}
_DINOV2 = {**_VIT, "layer_norm_eps": 1e-6}
FAMILIES = {
    "vit": Family("vit.", _VIT),
    "deit": Family("deit.", _VIT),
    "swin": Family("swin.", {"num_heads": [3, 6, 12, 24], "image_size": 224, "layer_norm_eps": 1e-5, "qkv_bias": True}),
    "dinov2": Family("dinov2.", _DINOV2, "bicubic"),
    "dinov2_with_registers": Family("dinov2_with_registers.", {**_DINOV2, "num_register_tokens": 4}, "antialias"),
}


class Config(BaseModel):
    """The fields of the configuration classes that change the computation."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    model_type: str
    architectures: list[str] | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon | None = None
    image_size: Side | None = None
    patch_size: Side | None = None
    num_channels: Count | None = None
    qkv_bias: bool | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=2**10)] | None = None
    head_dim: Count | None = None
    # ViT, DeiT, DINOv2
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | list[Count] | None = None
    intermediate_size: Count | None = None
    num_register_tokens: Annotated[int, Field(ge=0)] | None = None
    # Swin
    embed_dim: Count | None = None
    depths: list[Count] | None = None
    num_heads: Count | list[Count] | None = None
    window_size: Count | None = None
    # backbones
    apply_layernorm: bool = True
    out_features: list[str] | None = None
    out_indices: list[int] | None = None


class Preprocessing(BaseModel):
    """The fields of an image processor that are used."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    do_normalize: bool | None = None
    image_mean: Numbers | None = None
    image_std: Numbers | None = None
    do_rescale: bool | None = None
    rescale_factor: float | None = None
    do_resize: bool | None = None
    size: Count | dict[str, Count | None] | None = None
    do_center_crop: bool | None = None
    crop_size: Count | dict[str, Count | None] | None = None


def import_huggingface(folder: str | Path, **options: Any) -> onnx.ModelProto:
    """Folder -> float ONNX. Options go before what `config.json` says."""
    folder = Path(folder)
    options = checked_options("", options)
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise IntvitError(f"{folder}: model_type must be one of {', '.join(FAMILIES)}, not {shortened(kind)}")
    where, family = str(folder / "config.json"), FAMILIES[kind]
    config = validated(where, Config, {**family.defaults, **{k: v for k, v in raw.items() if v is not None}})
    if kind != "dinov2_with_registers" and config.num_register_tokens is not None:
        config = config.model_copy(update={"num_register_tokens": None})  # transformers reads it nowhere else
    act = activation(f"{folder}: hidden_act", config.hidden_act)
    _refuse_fields(where, config)
    swin = kind == "swin"
    found = {
        "num_heads": (config.num_heads or config.num_attention_heads) if swin else config.num_attention_heads,
        "img_size": config.image_size,
        "layer_norm_eps": config.layer_norm_eps,
        **_preprocessing(folder),
    }
    crop = found.pop("crop", None)
    if family.interpolate:
        found |= {"img_size": crop or found["img_size"], "interpolate": family.interpolate}
    try:
        tensors = translate(_load_tensors(folder), kind)
        _compare(where, config, tensors, swin)
        told = {**found, **options, "act": act, "merging_eps": 1e-5, "assumed": _said(config, raw, kind, tensors)}
        with np.errstate(all="ignore"):  # the Builder refuses what overflows
            return (build_swin if swin else build_vit)(tensors, told)
    except IntvitError as error:
        raise IntvitError(str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}") from None


def _refuse_fields(where: str, config: Config) -> None:
    for key, (built, why) in REFUSED.items():
        value = (config.model_extra or {}).get(key)
        if value is not None and value != built:
            raise IntvitError(f"{where}: {key} must be {str(built).lower()}, not {shortened(value)}: {why}")
    heads, width = config.num_attention_heads, config.hidden_size
    if config.head_dim is not None and isinstance(heads, int) and width and config.head_dim * heads != width:
        raise IntvitError(f"{where}: head_dim must be the width by the heads, {width // heads}, not {config.head_dim}")
    if any(name.endswith("Backbone") for name in config.architectures or []):
        layers = len(config.depths or []) or config.num_hidden_layers or 0
        last = config.out_features in (None, [f"stage{layers}"]) and config.out_indices in (None, [layers], [-1])
        if not config.apply_layernorm or not last:
            raise IntvitError(f"{where}: out_features: a backbone must end in its last stage, normed")


def _compare(where: str, config: Config, tensors: Mapping[str, Array], swin: bool) -> None:
    stated: dict[str, Any] = {
        "in_chans": config.num_channels,
        "patch_size": config.patch_size,
        "qkv_bias": config.qkv_bias,
        "reg_tokens": config.num_register_tokens or 0,
        "class_token": not swin,
    }
    stated |= (
        {"embed_dim": config.embed_dim, "depths": config.depths}
        if swin
        else {"embed_dim": config.hidden_size, "depth": config.num_hidden_layers}
    )
    plain = config.model_type in ("vit", "deit")
    stated |= {"hidden": config.intermediate_size} if plain else {"mlp_ratio": config.mlp_ratio}
    theirs = {} if swin else {"embed_dim": "hidden_size"}
    theirs |= {"depth": "num_hidden_layers", "hidden": "intermediate_size", "in_chans": "num_channels"}
    agree(where, stated, tensors, reg_tokens="num_register_tokens", **theirs)
    if FAMILIES[config.model_type].interpolate and config.image_size and config.patch_size:
        (height, width), (patch_h, patch_w) = (
            size if isinstance(size, list) else [size, size] for size in (config.image_size, config.patch_size)
        )
        n_positions = (height // patch_h) * (width // patch_w) + 1
        if tensors.get("pos_embed", np.empty(0)).shape[1:2] != (n_positions,):
            raise IntvitError(f"{where}: image_size: must give the positions of the weights, not {n_positions}")
    rows = (2 * (config.window_size or 0) - 1) ** 2
    for name, table in tensors.items():
        if swin and config.window_size and name.endswith("position_bias_table") and table.shape[:1] != (rows,):
            raise IntvitError(f"{where}: window_size: must fit {name} of shape {list(table.shape)}, not {rows} rows")


def _said(config: Config, raw: Mapping[str, Any], kind: str, tensors: Mapping[str, Array]) -> list[str]:
    known = HARMLESS | set(REFUSED) | set(Config.model_fields)
    lines = [
        f"ignored: {shortened(key)} of config.json, which is no field of a {kind} of transformers"
        for key in raw
        if key not in known
    ]
    if "head.weight" not in tensors:
        lines.append("assumed: the output is the normed tokens (last_hidden_state), for there is no classifier")
    return lines


def _load_tensors(folder: Path) -> dict[str, Array]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / f"{name}.index.json").is_file():
            return _load_shards(folder, member(folder, f"{name}.index.json"))
        if (folder / name).exists():
            return load_weights(member(folder, name))[0]
    raise IntvitError(f"{folder / 'model.safetensors'}: no such file, nor pytorch_model.bin")


class Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]


def _load_shards(folder: Path, index: Path) -> dict[str, Array]:
    weight_map = validated(str(index), Index, read_json(index)).weight_map
    tensors: dict[str, Array] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in load_weights(member(folder, shard))[0].items():
            if name in tensors:
                raise IntvitError(f"{index}: {name}: tensor must be in one shard, not in several")
            tensors[name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise IntvitError(f"{index}: {shortened(missing[0])}: tensor is listed, and no shard holds it")
    return tensors


def translate(tensors: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """Hugging Face names to timm's; query, key and value joined to `qkv`."""
    renamed: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if name.endswith(_UNUSED_TENSORS):
            continue
        ours = _rename(name, kind)
        if ours in renamed:
            raise IntvitError(f"{name}: tensor must be there once; {ours} is another of its names")
        renamed[ours] = tensor
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
                if renamed[part].shape != tensor.shape or not tensor.size:
                    raise IntvitError(f"{part}: shape must be {list(tensor.shape)}, not {list(renamed[part].shape)}")
            joined[f"{match[1]}qkv.{match[3]}"] = np.concatenate([renamed[part] for part in parts])
    return joined


def _rename(name: str, kind: str) -> str:
    bare = name.removeprefix(FAMILIES[kind].prefix)
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
    config = validated(str(path), Preprocessing, read_json(path))
    if config.do_rescale is False or (config.rescale_factor and abs(config.rescale_factor * 255 - 1) > 1e-6):
        raise IntvitError(
            f"{path}: rescale_factor must be 1/255, not {config.rescale_factor if config.do_rescale else 1}"
        )
    found: dict[str, Any] = {}
    if config.do_normalize is not False and config.image_mean is not None and config.image_std is not None:
        found = {"mean": config.image_mean, "std": config.image_std}
    size = config.size
    side = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
    if config.do_resize is not False and side:
        found["resize"] = side
    crop = config.crop_size
    if config.do_center_crop and isinstance(crop, dict) and crop.get("height") and crop.get("width"):
        found["crop"] = [crop["height"], crop["width"]]
    elif config.do_center_crop and isinstance(crop, int):
        found["crop"] = [crop, crop]
    return found
