"""What names say about a network: timm's architectures, activations, and tensors that belong to other networks.

A ViT's tensors look the same whatever its activation, its LayerNorm's epsilon and its number of heads. timm's names
imply them; a name with a part that is not known here implies nothing, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from intvit.errors import IntvitError, shortened
from intvit.graph import operators

VIT_SIZES = {
    "tiny": (192, 3),
    "wee": (256, 4),
    "xsmall": (256, 4),
    "little": (320, 5),
    "small": (384, 6),
    "medium": (512, 8),
    "mediumd": (512, 8),
    "betwixt": (640, 10),
    "base": (768, 12),
    "so150m2": (832, 13),
    "so150m": (896, 14),
    "intern300m": (1024, 16),
    "large": (1024, 16),
    "so400m": (1152, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "giantopt": (1536, 16),
    "gigantic": (1664, 16),
}
SWIN_SIZES = {
    "tiny": (96, 3),
    "small": (96, 3),
    "base": (128, 4),
    "large": (192, 6),
    "s3tiny": (96, 3),
    "s3small": (96, 3),
    "s3base": (96, 3),
}
"""Size in a name -> width and heads; of a Swin, those of its first stage."""
FAMILIES = {
    "vit": (
        VIT_SIZES,
        r"in21k|miil|laion2b|36x1|plus|quickgelu|dinov2|dino|tipsv2|radio|v3|v4|clip|siglip|gap|reg\d+",
    ),
    "deit": (VIT_SIZES, "distilled"),
    "deit3": (VIT_SIZES, "in21ft1k"),
    "flexivit": (VIT_SIZES, "never"),
    "eva": ({"large": VIT_SIZES["large"]}, "never"),
    "swin": (SWIN_SIZES, r"window\d+|in22k"),
}
"""First part of a name -> its sizes, and the parts that may stand there besides patch and image size."""
OTHERS = {
    "rpn": "LayerNorm behind attention and MLP",
    "xp|pwee|dpwee|18x2": "attention and MLP side by side",
    "dwee|dlittle": "differential attention",
    "map": "attention pooling",
    "rope|pe|dinov3|eva02": "rotary positions",
    "aimv2|rmsnorm|swiglu": "RMSNorm or gated units",
    "beit|beitv2|beit3": "relative positions or norms inside attention",
    "cait": "talking heads and class attention",
    "swinv2": "Swin v2's cosine attention",
    "relpos|srelpos": "relative positions",
}
"""Parts of a name that stand for what cannot be built here."""
FOREIGN_TENSORS = {
    r"(.*\.)?attn_pool\..*": "attention pooling (SigLIP and others)",
    r"blocks_token_only\..*|blocks\.\d+\.attn\.proj_[lw]\..*": "talking heads and class attention (CaiT)",
    r".*\.attn\.[qk]_norm\..*": "norms of queries and keys",
    r".*\.(attn|mlp)\.norm\..*": "norms inside attention or MLP",
    r".*\.mlp\.(w\d+|fc1_[gx]|weights_(in|out)|gate_proj|up_proj)\..*": "a gated unit (SwiGLU)",
    r"layers\.\d+\..*\.(logit_scale|cpb_mlp\..*)": "Swin v2's cosine attention",
    r"blocks\.\d+\.attn\.(relative_position_bias_table|rel_pos.*|[qv]_bias)": "relative positions (BEiT)",
    r"rel_pos_bias\..*": "relative positions (BEiT)",
    r"(.*\.)?rope\..*|rope_embed\..*": "rotary positions",
    r"absolute_pos_embed": "a Swin with absolute positions",
    r".*\.lambda_[qk]\d": "differential attention",
    r"blocks\.\d+\.(attns|ffns|in_proj|mlp_bias).*": "attention and MLP side by side",
    r"patch_embed\.(conv\d*|backbone|blocks|stem|proj\.\d+|norm\d)\..*": "a stem of several convolutions",
}
"""Names of tensors that no network built here has -> what they belong to."""


@dataclass(frozen=True)
class Facts:
    """What a timm name implies, for the width that its size has."""

    family: str
    width: int
    heads: int
    """Both of the first stage of a Swin."""
    act: str
    layer_norm_eps: float


def facts(architecture: str) -> Facts:
    """The facts of a timm name; IntvitError if a part of it is unknown, or stands for what cannot be built here.

    >>> facts("vit_huge_patch14_clip_224.laion2b_ft_in1k")
    Facts(family='vit', width=1280, heads=16, act='gelu', layer_norm_eps=1e-05)
    """
    name = architecture.rpartition("/")[2].partition(".")[0]
    family, *parts = name.replace("_s3_", "_s3").split("_")
    for part in (family, *parts):
        for pattern, what in OTHERS.items():
            if re.fullmatch(pattern, part):
                raise IntvitError(f"architecture: {shortened(name)} has {what}, which cannot be built here")
    sizes, more = FAMILIES.get(family, ({}, "never"))
    size = next((part for part in parts if part in sizes), None)
    strange = [part for part in parts if part != size and not re.fullmatch(rf"patch\d+|\d+|{more}", part)]
    if size is None or strange:
        unknown = shortened(strange[0] if size else name)
        raise IntvitError(f"architecture: must be a ViT, DeiT or Swin of timm in all its parts, not {unknown}")
    width, heads = (896, 14) if "plus" in parts else sizes[size]
    if name == "vit_base_patch16_gap_224":
        heads = 16
    tanh = "siglip" in parts and (
        bool({"patch32", "giantopt"}.intersection(parts))
        or {"large", "512"}.issubset(parts)
        or {"so400m", "patch16"}.issubset(parts)
    )
    act = "quick_gelu" if "quickgelu" in parts else "gelu_tanh" if tanh else "gelu"
    return Facts(family, width, heads, act, 1e-5 if family == "swin" or "clip" in parts else 1e-6)


def refuse_others(names: Iterable[str]) -> None:
    """IntvitError with the cause if a tensor belongs to a network that cannot be built here."""
    for name in names:
        for pattern, what in FOREIGN_TENSORS.items():
            if re.fullmatch(pattern, name):
                raise IntvitError(f"{name}: {what} cannot be built here")


def activation(where: str, name: object) -> str:
    """The activation of this name of timm and transformers, as `activation_node` takes it; IntvitError for others."""
    known = [known for kind in operators.operators().values() for known in kind.activations]
    if not isinstance(name, str) or name not in known:
        raise IntvitError(f"{where} must be one of {', '.join(known)}, not {shortened(name)}")
    return name


def activation_node(name: str) -> tuple[str, dict[str, Any]]:
    """The canonical ONNX operator of an activation, and its attributes."""
    kind = next(kind for kind in operators.operators().values() if name in kind.activations)
    return next(iter(kind.reads)), dict(kind.activations[name])
