"""Checkpoints of the published I-ViT training code: float weights with the scales that training found.

Every `QuantAct` leaves a buffer `act_scaling_factor` (its minimum and maximum are no buffers, and are lost on reload);
`QuantLinear` and `QuantConv2d` leave `weight_integer`, their scale and `bias_integer`. The scales become ranges at the
widths that the checkpoint tells, and the integers are carried along, so that the network runs as it was trained.
`audit` looks for what such files are known to get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from intvit.errors import IntvitError
from intvit.floats.importers.onnx import float_graph, set_metadata
from intvit.floats.importers.timm import build_swin, build_vit
from intvit.graph.ir import Array, Graph
from intvit.kernels.quantize import LEAST_SCALE, quantize_weight
from intvit.lowering.calibrate import source_tensor
from intvit.lowering.recipe import Recipe, build_recipe
from intvit.lowering.widths import quantizer_bits

SCALE = ".act_scaling_factor"
NEVER_CALLED = ("act_out", "attn.qact_softmax")
"""Quantizers that the published modules build and never call: their scale stays 0."""
GELU_BITS, RESIDUAL_BITS = 8, 16
"""As published; a GELU has no more."""
NEAR_WIDTH = 0.05
"""How far, in bits, a scale may be from a constant's own maximum: a running range follows what training changes. What
is farther from every width tells nothing."""
WEIGHT_SCALES = ("fc_scaling_factor", "conv_scaling_factor")
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
    """Float ONNX with the trained widths and ranges in its metadata, and the trained integers as constants.

    IntvitError names the first quantizer whose scale is lost, and the first layer whose integers are not its weights.
    """
    kind = architecture(tensors)
    floats = {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}
    widths, findings = checkpoint_widths(tensors)
    for site in _layers(tensors):
        findings += _audit_layer(site, tensors, widths.get("bits", 8))
    model = (build_swin if kind == "swin" else build_vit)(floats, options)
    if findings:
        raise IntvitError(str(findings[0]))
    graph = float_graph(model)
    recipe = {key: width for key, width in widths.items() if key != "gelu_bits"}
    ranges = _ranges(graph, kind, tensors, build_recipe(recipe, "widths of the checkpoint"))
    set_metadata(model, ranges=ranges, trained=widths)
    model.graph.initializer.extend(_integers(graph, tensors))
    return model


def _integers(graph: Graph, tensors: Mapping[str, Array]) -> Iterator[onnx.TensorProto]:
    """What the lowering takes instead of rounding the floats anew: constants named after their site."""
    for name, tensor in sorted(tensors.items()):
        site, _, kind = name.rpartition(".")
        if site not in graph.by_name:
            continue
        if kind == "weight_integer":
            yield numpy_helper.from_array(tensor.reshape(len(tensor), -1).astype(np.int8), name)
        elif kind == "bias_integer":
            yield numpy_helper.from_array(_whole(name, tensor), name)
        elif kind in WEIGHT_SCALES:
            yield numpy_helper.from_array(tensor.astype(np.float32), f"{site}.weight_scale")


def _whole(name: str, tensor: Array) -> Array:
    if np.any(tensor != np.rint(tensor)) or np.any(np.abs(tensor) > 2.0**61):
        raise IntvitError(f"{name}: must hold integers")
    return tensor.astype(np.int64)


def _ranges(graph: Graph, kind: str, tensors: Mapping[str, Array], recipe: Recipe) -> dict[str, list[float]]:
    scales = _scales(kind, tensors)
    ranges = {}
    for name, bits in _quantizers(graph, recipe).items():
        try:
            source = name if name in scales or name not in graph.tensors else source_tensor(graph, name, scales)
        except IntvitError:
            source = name
        if source not in scales:
            raise IntvitError(f"{name}: its quantizer's act_scaling_factor is missing from the checkpoint")
        module, scale = scales[source]
        if not np.isfinite(scale) or scale <= LEAST_SCALE:
            raise IntvitError(f"{module}: act_scaling_factor must be above {LEAST_SCALE:.3g}, not {scale:.3g}")
        top = scale * (2 ** (bits - 1) - 1)  # exact in double, and so is the way back
        ranges[source] = [-top, top]
    return ranges


def _quantizers(graph: Graph, recipe: Recipe) -> dict[str, int]:
    """Everything that has a trained scale: activations, and constants that are added; with its width."""
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


# ------------------------------------------------------------------------------------------- widths


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a site of a checkpoint."""

    site: str
    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.site}: {self.rule}, not {self.found}"


def checkpoint_widths(tensors: Mapping[str, Array]) -> tuple[dict[str, int], list[Finding]]:
    """The widths of a recipe, and `gelu_bits`, as far as a checkpoint tells them, and what contradicts them.

    Exact: `weight_integer` fills its width in every channel, the scales of a softmax and, over that of its input, of a
    GELU are powers of two. Within a fraction of
    a bit: Swin's tables and the position embeddings are constants, and their maximum over their scale tells the width
    of narrow activations, and that of the residual stream, 16 bits or 8. Where there is no table, narrow activations
    are as wide as the weights: the published modules have one default for both.
    """
    found = {site: _weight_width(tensors, site) for site in _layers(tensors)}
    known = [width for width in found.values() if width]
    if not known:
        return {}, [Finding("checkpoint", "weight_integer must tell the width", "missing or 0 in every layer")]
    bits = max(sorted(set(known)), key=known.count)
    widths = {"bits": bits}
    findings = [
        Finding(site, f"weight_integer must have {bits} bits as in most layers", f"{width} bits")
        for site, width in found.items()
        if width not in (0, bits)
    ]
    for module, scale in _act_scales(tensors).items():
        block, _, name = module.rpartition(".")
        if name in ("int_softmax", "log_int_softmax"):
            width = 1 - math.log2(scale)
            if width != widths.setdefault("softmax_bits", round(width)):
                findings.append(_unlike(module, widths["softmax_bits"], width))
        elif name == "act" and f"{block}.qact_gelu" in _act_scales(tensors):
            width = 1 - math.log2(scale / _act_scales(tensors)[f"{block}.qact_gelu"])
            if abs(width - widths.setdefault("gelu_bits", round(width))) > 1e-5 or not 2 <= width <= GELU_BITS:
                findings.append(_unlike(module, min(widths["gelu_bits"], GELU_BITS), width))
        elif name == "qact_table":
            width = _constant_width(tensors.get(f"{block}.relative_position_bias_table"), scale) or bits
            if width != bits:
                findings.append(_unlike(module, bits, width))
        elif module == "qact_pos":
            width = _constant_width(tensors.get("pos_embed"), scale) or RESIDUAL_BITS
            widths["residual_bits"] = width if width == 8 else RESIDUAL_BITS
    return widths, findings


def _unlike(module: str, bits: int, width: float) -> Finding:
    return Finding(module, f"act_scaling_factor must be that of {bits} bits", f"of {width:.4g}")


def _layers(tensors: Mapping[str, Array]) -> list[str]:
    """Modules with quantized weights."""
    return [n.removesuffix(".weight") for n, t in tensors.items() if n.endswith(".weight") and t.ndim in (2, 4)]


def _act_scales(tensors: Mapping[str, Array]) -> dict[str, float]:
    """Published module -> its one positive `act_scaling_factor`."""
    single = {name: float(t.reshape(-1)[0]) for name, t in tensors.items() if name.endswith(SCALE) and t.size == 1}
    return {name.removesuffix(SCALE): scale for name, scale in single.items() if LEAST_SCALE < scale < math.inf}


def _weight_width(tensors: Mapping[str, Array], site: str) -> int:
    """Bits of the largest integer weight; 0 where nothing is known."""
    integer = tensors.get(f"{site}.weight_integer", np.zeros(0))
    if not integer.size or not np.isfinite(integer).all():
        return 0
    top = int(np.abs(integer).max())
    return top.bit_length() + 1 if top else 0


def _constant_width(constant: Array | None, scale: float) -> int | None:
    """The width, 4 to 16 bits, at which a constant has this scale; None if there is none such."""
    top = 0.0 if constant is None or not constant.size else float(np.abs(constant).max())
    width = math.log2(top / scale + 1) + 1 if 0 < top < math.inf else 0.0
    return round(width) if 4 <= round(width) <= 16 and abs(width - round(width)) <= NEAR_WIDTH else None


# -------------------------------------------------------------------------------------------- audit


def audit(path: str | Path, tensors: Mapping[str, Array], bits: int | None = None) -> list[Finding]:
    """What is wrong with an I-ViT checkpoint, site by site; empty if nothing is. `bits`: what its width must be."""
    if not is_ivit(tensors):
        raise IntvitError(f"{path}: must be an I-ViT checkpoint with act_scaling_factor buffers, and has none")
    widths, findings = checkpoint_widths(tensors)
    if bits is not None and widths.get("bits", bits) != bits:
        raise IntvitError(f"{path}: bits must be the {widths['bits']} of weight_integer, not {bits}")
    for name, tensor in tensors.items():
        site, _, buffer = name.rpartition(".")
        if not np.isfinite(tensor).all():
            findings.append(Finding(site, f"{buffer} must be finite", "NaN or infinite"))
        elif name.endswith(SCALE) and site.rpartition(".")[2].startswith("qact") and not site.endswith(NEVER_CALLED):
            findings += _audit_scale(site, tensor)
    for site in _layers(tensors):
        findings += _audit_layer(site, tensors, widths.get("bits", bits or 8))
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


def _audit_layer(site: str, tensors: Mapping[str, Array], bits: int) -> list[Finding]:
    """The integers and the scale of a layer against its float weights; `bits` where they tell no width."""
    weight, integer = tensors[f"{site}.weight"], tensors.get(f"{site}.weight_integer")
    if integer is None:
        return [Finding(site, "weight_integer must be there", "missing")]
    if integer.shape != weight.shape:
        return [Finding(site, f"weight_integer must have shape {list(weight.shape)}", f"{list(integer.shape)}")]
    if not (np.isfinite(weight).all() and np.isfinite(integer).all() and weight.size):
        return []  # told elsewhere
    bits = _weight_width(tensors, site) or bits
    codes, scale = quantize_weight(weight, bits)
    off = np.abs(codes - integer)
    n_off = int(np.count_nonzero((off > 1) | (integer != np.rint(integer))))
    if n_off:  # the published float32 division may round a tie the other way
        share = 100 * n_off / off.size
        return [Finding(site, "weight_integer must be the rounded weight", f"{share:.1f} % of the codes are stale")]
    for name in WEIGHT_SCALES:
        given = tensors.get(f"{site}.{name}")
        if given is not None and (given.shape != scale.shape or not np.allclose(given, scale, rtol=1e-6, atol=0)):
            return [Finding(site, f"{name} must be the largest weight / {2 ** (bits - 1) - 1}", "another: it is stale")]
    return []
