"""timm's `config.json`: what it says of the computation, used, compared with the tensors, or refused.

Exporting, timm writes the architecture's name, the arguments that differ from what the name implies (`model_args`), and
`pretrained_cfg` with the preprocessing. Older files have all in one object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from intvit.errors import IntvitError, shortened
from intvit.floats.importers.architectures import Facts, activation, facts
from intvit.floats.importers.config import Count, Numbers, Side, options, read_json, validated
from intvit.floats.importers.weights import Weights, agree
from intvit.graph.ir import Array

HARMLESS_ARGS = frozenset(
    {
        *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        *("weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "scriptable"),
        *(
            "exportable",
            "no_jit",
            "checkpoint_path",
            "cache_dir",
            "device",
            "dtype",
            "pretrained",
            "fc_norm",
            "final_norm",
        ),
    }
)
"""Arguments that training or loading uses, and those that the tensors tell whatever they are."""
DEFAULT_ARGS = {
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "pool_include_prefix": (False,),
    "pos_embed": ("learn",),
    "attn_layer": ("", "attn"),
    "embed_norm_layer": ("",),
    "head_dim": (),
    "always_partition": (False,),
    "use_naflex": (False,),
    "features_only": (False,),
    "distilled_training": (False,),
}
"""Arguments of which only these values, or none, are built here."""
COMPARED_ARGS = frozenset(
    {
        *("embed_dim", "depth", "depths", "patch_size", "in_chans", "mlp_ratio", "class_token", "reg_tokens"),
        *("pre_norm", "init_values", "qkv_bias", "proj_bias"),
    }
)
"""Arguments that the tensors tell as well."""


class Arguments(BaseModel):
    """Those arguments of a timm model whose types matter here; extra ones are looked at by name."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    act_layer: str | None = None
    norm_layer: str | None = None
    num_heads: Count | list[Count] | None = None
    img_size: Side | None = None
    global_pool: str | None = None
    no_embed_class: bool | None = None
    num_classes: Annotated[int, Field(ge=0)] | None = None
    window_size: Side | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    depths: list[Count] | None = None
    patch_size: Side | None = None
    in_chans: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=2**10)] | None = None
    class_token: bool | None = None
    reg_tokens: Annotated[int, Field(ge=0)] | None = None
    pre_norm: bool | None = None
    init_values: float | None = None
    qkv_bias: bool | None = None
    proj_bias: bool | None = None


class Trained(BaseModel):
    """timm's pretrained_cfg, as far as it is used."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    mean: Numbers | None = None
    std: Numbers | None = None
    input_size: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    crop_mode: str | None = None


class TimmConfig(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), strict=True, extra="allow", allow_inf_nan=False)

    architecture: str | None = None
    num_classes: Annotated[int, Field(ge=0)] | None = None
    global_pool: str | None = None
    act_layer: str | None = None
    hidden_act: str | None = None
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] | None = None


def timm_config(file: Path, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Options for the builders that a `config.json` states: keys of our own, or timm's."""
    raw = read_json(file)
    where = str(file)
    config = validated(where, TimmConfig, raw)
    found = options(where, raw)
    for key in ("act_layer", "hidden_act"):
        if getattr(config, key) is not None:
            found["act"] = activation(f"{where}: {key}", getattr(config, key))
    if config.architecture is None:
        return found
    args = validated(f"{where}: model_args", Arguments, config.model_args or {})
    trained = validated(
        f"{where}: pretrained_cfg", Trained, raw if config.pretrained_cfg is None else config.pretrained_cfg
    )
    _refuse_unknown(f"{where}: model_args", args)
    agree(f"{where}: model_args", {key: getattr(args, key) for key in COMPARED_ARGS}, tensors)
    agree(where, {"num_classes": config.num_classes}, tensors)
    try:
        implied = facts(config.architecture)
    except IntvitError as error:
        raise IntvitError(f"{where}: {error}") from None
    stated = {
        "act": implied.act,
        "layer_norm_eps": implied.layer_norm_eps,
        **_heads(implied, args, tensors),
        **_preprocessing(trained),
        **_stated(where, implied, args),
        **_pool(where, implied, args.global_pool if args.global_pool is not None else config.global_pool, tensors),
    }
    return {**stated, **found}


def _refuse_unknown(where: str, args: Arguments) -> None:
    for key, value in (args.model_extra or {}).items():
        if key in HARMLESS_ARGS or value is None or (key in DEFAULT_ARGS and value in DEFAULT_ARGS[key]):
            continue
        rule = "must be left out or as published" if key in DEFAULT_ARGS else "must be an argument that is known here"
        raise IntvitError(f"{where}: {shortened(key)}: {rule}, not {shortened(value)}")
    if isinstance(args.window_size, list) and args.window_size[0] != args.window_size[1]:
        raise IntvitError(f"{where}: window_size: must be a square, not {args.window_size}")


def _stated(where: str, implied: Facts, args: Arguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if args.act_layer is not None:
        found["act"] = activation(f"{where}: model_args: act_layer", args.act_layer.lower())
        if implied.family == "swin" and found["act"] != implied.act:
            raise IntvitError(f"{where}: model_args: act_layer: must be left out for a Swin, not {args.act_layer!r}")
    if args.norm_layer is not None:
        if implied.family == "swin" or args.norm_layer.replace("_", "").lower() not in ("layernorm", "layernormfp32"):
            raise IntvitError(f"{where}: model_args: norm_layer: must be layernorm of a ViT, not {args.norm_layer!r}")
        found["layer_norm_eps"] = 1e-6  # what timm's own LayerNorm has
    if args.img_size is not None:
        found["img_size"] = args.img_size
    if args.no_embed_class is not None:
        found["no_embed_class"] = args.no_embed_class
    return found


def _heads(implied: Facts, args: Arguments, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """num_heads as stated, or as the name's size has them; of another width, heads as wide as usual, and said."""
    if args.num_heads is not None:
        return {"num_heads": args.num_heads}
    width = len(np.atleast_1d(tensors.get("patch_embed.proj.weight", np.empty(0))))
    heads, assumed = implied.heads, {}
    if width != implied.width and args.embed_dim is None:
        usual = 32 if implied.family == "swin" else 64
        heads = max(width // usual, 1)
        line = (
            f"assumed: heads of width {usual}; the architecture's width is {implied.width}, not {width} (--num-heads)"
        )
        assumed = {"assumed": [line]}
    if implied.family == "swin":
        n_stages = Weights(tensors).count("layers.{}.")
        return {"num_heads": [heads << stage for stage in range(n_stages)], **assumed}
    return {"num_heads": heads, **assumed}


def _preprocessing(trained: Trained) -> dict[str, Any]:
    found: dict[str, Any] = {key: getattr(trained, key) for key in ("mean", "std") if getattr(trained, key) is not None}
    if trained.input_size is not None:
        found["img_size"] = trained.input_size[1:]
        if trained.crop_pct is not None and trained.crop_mode in (None, "center"):
            found["resize"] = math.floor(min(trained.input_size[1:]) / trained.crop_pct)
    return found


def _pool(where: str, implied: Facts, pool: str | None, tensors: Mapping[str, Array]) -> dict[str, Any]:
    has_head = "head.weight" in tensors or "head.fc.weight" in tensors
    if pool is None or (pool == "" and not has_head):
        return {}
    if pool not in (("avg",) if implied.family == "swin" else ("token", "avg")):
        raise IntvitError(f"{where}: global_pool: must be the class token or the mean, not {shortened(pool)}")
    return {"pool": pool}
