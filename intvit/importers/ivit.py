"""Checkpoints of the published I-ViT training code: float weights with the scales that training found.

Every `QuantAct` leaves a buffer `act_scaling_factor` (its minimum and maximum are no buffers, and are lost on reload);
`QuantLinear` and `QuantConv2d` leave `weight_integer`. The scales become ranges, so that the network runs as it was
trained. `audit` looks for what such files are known to get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intvit.calibrate import source_tensor
from intvit.errors import IntvitError
from intvit.graph.ir import Array, Graph
from intvit.graph.widths import quantizer_bits
from intvit.importers.onnx import float_graph, set_metadata
from intvit.importers.timm import build_swin, build_vit
from intvit.kernels.quantize import LEAST_SCALE, quantize_weight
from intvit.recipe import build_recipe

SCALE = ".act_scaling_factor"
DERIVED = (
    "act_scaling_factor", "fc_scaling_factor", "conv_scaling_factor", "norm_scaling_factor", "weight_integer",
    "bias_integer",
)  # fmt: skip
"""Buffers of the published modules; everything else is a float parameter."""
_BLOCK = {
    "qact1": "norm1",
    "attn.qact1": "attn.qkv",
    "attn.qact_attn1": "attn.scores",
    "qact2": "add1",
    "qact3": "norm2",
    "mlp.qact_gelu": "mlp.fc1",
    "mlp.qact1": "mlp.act",
    "mlp.qact2": "mlp.fc2",
    "qact4": "add2",
}
BLOCK_RANGES = {
    "vit": {**_BLOCK, "attn.qact2": "attn.context", "attn.qact3": "attn.proj"},
    "swin": {
        **_BLOCK,
        "attn.qact_table": "attn.bias.value",
        "attn.qact2": "attn.bias",
        "attn.qact3": "attn.context",
        "attn.qact4": "attn.proj",
    },
}
"""Published quantizer -> the float tensor that it rounds, below a block."""
MODEL_RANGES = {
    "vit": {
        "qact_input": "input",
        "patch_embed.qact": "patch_embed.proj",
        "qact_pos": "pos_drop.value",
        "qact1": "pos_drop",
        "qact2": "pool",
    },
    "swin": {
        "qact_input": "input",
        "patch_embed.qact_before_norm": "patch_embed.proj",
        "patch_embed.qact": "patch_embed.norm",
        "qact1": "pos_drop",
        "qact2": "norm",
        "qact3": "avgpool",
    },
}
"""The same, outside the blocks."""
OPERATORS = {"matmul_1": "matmul_qk", "matmul_2": "matmul_av", "int_softmax": "softmax", "log_int_softmax": "softmax"}


def split(module: str) -> tuple[str, str]:
    """`layers.0.blocks.1.attn.qact1` -> (`layers.0.blocks.1.`, `attn.qact1`); outside a block the first part is ''."""
    parts = module.split(".")
    if "blocks" in parts:
        at = parts.index("blocks") + 2
        return ".".join(parts[:at]) + ".", ".".join(parts[at:])
    return "", module


def float_name(kind: str, module: str) -> str:
    """Our float tensor (or `<site>.value` for a constant) for a published quantizer or operator."""
    block, name = split(module)
    if not block and name.endswith("downsample.qact1"):
        return name.replace("qact1", "norm")
    if not block and name.endswith("downsample.qact2"):
        return name.replace("qact2", "reduction")
    table = BLOCK_RANGES[kind] if block else MODEL_RANGES[kind]
    if name in table:
        return block + table[name]
    head, _, last = name.rpartition(".")
    return block + (f"{head}." if head else "") + OPERATORS.get(last, last)


def is_ivit(tensors: Mapping[str, Array]) -> bool:
    return any(name.endswith(SCALE) for name in tensors)


def architecture(tensors: Mapping[str, Array]) -> str:
    return "swin" if any("relative_position_bias_table" in name for name in tensors) else "vit"


def build_ivit(tensors: Mapping[str, Array], options: Mapping[str, Any]) -> onnx.ModelProto:
    """Float ONNX with the trained ranges in its metadata. IntvitError names the first quantizer whose scale is lost."""
    kind = architecture(tensors)
    floats = {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}
    model = (build_swin if kind == "swin" else build_vit)(floats, options)
    set_metadata(model, ranges=_ranges(float_graph(model), kind, tensors))
    return model


def _ranges(graph: Graph, kind: str, tensors: Mapping[str, Array]) -> dict[str, list[float]]:
    scales = _scales(kind, tensors)
    ranges = {}
    for name, bits in _quantizers(graph).items():
        try:
            source = name if name in scales else source_tensor(graph, name, scales)
        except IntvitError:
            raise IntvitError(f"{name}: its quantizer's act_scaling_factor is missing from the checkpoint") from None
        module, scale = scales[source]
        if not np.isfinite(scale) or scale <= LEAST_SCALE:
            raise IntvitError(f"{module}: act_scaling_factor must be above {LEAST_SCALE:.3g}, not {scale:.3g}")
        top = scale * (2 ** (bits - 1) - 1)
        ranges[source] = [-top, top]
    return ranges


def _quantizers(graph: Graph) -> dict[str, int]:
    """Everything that has a trained scale: activations, and constants that are added; with its width."""
    recipe = build_recipe({})
    found = dict(quantizer_bits(graph, recipe))
    for node in graph.nodes:
        if node.op == "add" and "value" in node.arrays and node.output in found:
            found[f"{node.name}.value"] = found[node.output]
    return found


def _scales(kind: str, tensors: Mapping[str, Array]) -> dict[str, tuple[str, float]]:
    """Float tensor -> (published module, scale)."""
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(SCALE)
        if name.endswith(SCALE) and tensor.size == 1 and module.rpartition(".")[2].startswith("qact"):
            found[float_name(kind, module)] = module, float(tensor.reshape(-1)[0])
    return found


# -------------------------------------------------------------------------------------------- audit


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a site of a checkpoint."""

    site: str
    rule: str
    found: str


def audit(path: str | Path, tensors: Mapping[str, Array], bits: int = 8) -> list[Finding]:
    """What is wrong with an I-ViT checkpoint, site by site; empty if nothing is."""
    if not is_ivit(tensors):
        raise IntvitError(f"{path}: must be an I-ViT checkpoint with act_scaling_factor buffers, and has none")
    findings = []
    for name, tensor in tensors.items():
        site = name.rpartition(".")[0]
        if not np.isfinite(tensor).all():
            findings.append(Finding(site, f"{name.rpartition('.')[2]} must be finite", "NaN or infinite"))
        elif name.endswith(SCALE) and site.rpartition(".")[2].startswith("qact"):
            findings += _audit_scale(site, tensor)
        elif name.endswith(".weight") and tensor.ndim in (2, 4):
            findings += _audit_weight(site, tensor, tensors.get(f"{site}.weight_integer"), bits)
    return findings


def _audit_scale(site: str, tensor: Array) -> list[Finding]:
    if tensor.size != 1:
        return [Finding(site, "act_scaling_factor must be one number", f"shape {list(tensor.shape)}")]
    scale = float(tensor.reshape(-1)[0])
    if scale == 0:
        return [Finding(site, "act_scaling_factor must be set", "0: the site never ran, or its range was lost")]
    if scale <= LEAST_SCALE:
        return [Finding(site, "act_scaling_factor must be above eps", f"{scale:.3g}: the range was lost on reload")]
    return []


def _audit_weight(site: str, weight: Array, integer: Array | None, bits: int) -> list[Finding]:
    if integer is None:
        return [Finding(site, "weight_integer must be there", "missing")]
    if integer.shape != weight.shape:
        return [Finding(site, f"weight_integer must have shape {list(weight.shape)}", f"{list(integer.shape)}")]
    codes = quantize_weight(weight, bits)[0]
    off = np.abs(codes - integer)
    n_off = int(np.count_nonzero(off > 1))  # the published float32 division may round a tie the other way
    if n_off:
        share = 100 * n_off / off.size
        return [Finding(site, "weight_integer must be the rounded weight", f"{share:.1f} % of the codes are stale")]
    return []
