"""Whole-model conformance: the published network through the ordinary importer and lowering, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.floats.importers.ivit import float_name
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import build_swin, build_vit, relative_position_index
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, LOGITS, Graph
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower
from intvit.lowering.recipe import Recipe, build_recipe

Arrays = dict[str, np.ndarray]

SOFTMAX_BITS = {"vit": 16, "swin": 8}


def recipe_of(kind: str, meta: dict[str, Any], graph: Graph) -> Recipe:
    """The file's choice of operators as a recipe with a choice for every site."""
    *blocks, last = meta["choice"]
    depths = meta["config"].get("depths")
    names = (
        [f"blocks.{i}." for i in range(len(blocks))]
        if depths is None
        else [f"layers.{s}.blocks.{i}." for s, depth in enumerate(depths) for i in range(depth)]
    )
    sites: dict[str, Any] = {}
    for name, choice in zip(names, blocks, strict=True):
        method, _, n = choice["gelu"].partition("_n")
        sites[f"{name}attn.softmax"] = {"method": choice["softmax"]}
        sites[f"{name}mlp.act"] = {"method": method, **({"n": int(n)} if n else {})}
        sites[f"{name}norm1"], sites[f"{name}norm2"] = {"method": choice["norm1"]}, {"method": choice["norm2"]}
    types = {entry["name"]: entry["type"] for entry in meta["order"]}
    for node in graph.nodes:
        if node.op == "layernorm" and node.name not in sites:
            sites[node.name] = {"method": types[node.name].split(".")[0]}
    if last["norm"] != sites["norm"]["method"]:
        raise ValueError(f"choice names {last['norm']} for the final norm, order {sites['norm']['method']}")
    return build_recipe({"softmax_bits": SOFTMAX_BITS[kind], "sites": sites})


def integer_graph(meta: dict[str, Any], arrays: Arrays, bits: int = 8) -> tuple[Graph, Graph]:
    """(float graph, integer graph) from the file's parameters, ranges and choice; `bits` other than the file's 8."""
    kind, config = meta["kind"], meta["config"]
    params = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    build = build_vit if kind == "vit" else build_swin
    graph = float_graph(build(params, {"num_heads": config["num_heads"], "img_size": config["img_size"]}))
    ranges = {
        float_name(kind, key.removeprefix("range/")): (float(value[0]), float(value[1]))
        for key, value in arrays.items()
        if key.startswith("range/")
    }
    shifts = {entry["name"]: int(entry["shift"]) for entry in meta["order"] if "shift" in entry}
    exp_range_max = {
        float_name(kind, key.removeprefix("exp_range_max/")): float(value)
        for key, value in arrays.items()
        if key.startswith("exp_range_max/")
    }
    calibration = Calibration(ranges, shifts=shifts, exp_range_max=exp_range_max)
    return graph, lower(graph, calibration, recipe_of(kind, meta, graph).model_copy(update={"bits": bits}))


def layout_path(graph: Graph, start: str) -> Iterator[tuple[str, Any]]:
    """Tensors that single layout moves reach from `start`, with the node that makes each."""
    at = start
    while len(graph.consumers[at]) == 1:
        (node,) = graph.consumers[at]
        if node.op not in LAYOUT_OPS or len(node.inputs) != 1 or node.arrays:
            return
        at = node.output
        yield at, node


def expected_and_actual(
    kind: str, module: str, published: np.ndarray, graph: Graph, integer: Graph, tensors: Arrays, quantizer: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """The published tensor moved to where ours stands, ours, and our tensor's name."""
    name = float_name(kind, module)
    batch = len(tensors["input"])
    if name.endswith(".value"):
        constant = integer.node(name.removesuffix(".value")).arrays["residual"]
        if module.endswith("qact_table"):
            window = (int(np.sqrt(len(published))) + 1) // 2
            published = published[relative_position_index(window)].transpose(2, 0, 1)
        return published.reshape(constant.shape), constant, ""
    if name == "patch_embed.proj" and not quantizer:
        return published.transpose(0, 2, 3, 1), tensors[f"{name}.linear"], f"{name}.linear"
    if name == "patch_embed.proj":
        return published, tensors["patch_embed.tokens"], "patch_embed.tokens"
    if not quantizer or (name in tensors and f"{name}.quant" not in tensors and _made_here(integer, name)):
        return published.reshape(tensors[name].shape), tensors[name], name
    moved = published.reshape(batch, *graph.tensors[name].shape)
    if f"{name}.quant" in tensors:
        return moved, tensors[f"{name}.quant"], f"{name}.quant"
    for output, node in layout_path(graph, name):
        moved = layout.apply(node, [moved])
        if f"{output}.quant" in tensors:
            return moved, tensors[f"{output}.quant"], f"{output}.quant"
    raise ValueError(f"{module}: no tensor of the integer graph stands for it")


def _made_here(integer: Graph, name: str) -> bool:
    return name in integer.inputs or integer.by_output[name].op == "requantize"


def value_of(arrays: Arrays, module: str) -> float:
    return float(arrays[f"scale/{module}"].reshape(-1)[0])


def replay_model_file(score: Any, arrays: Arrays) -> None:
    """Compare every recorded tensor, scale, weight and bias of one file with both backends."""
    meta = json.loads(str(arrays["meta"]))
    kind = meta["kind"]
    graph, integer = integer_graph(meta, arrays)
    types = {entry["name"]: entry["type"] for entry in meta["order"]}
    score.cases = len(arrays["input"])
    used = {"meta", "input", "logits"} | {k for k in arrays if k.startswith(("param/", "range/", "exp_range_max/"))}
    images = quantize_images(integer, arrays["input"])
    score.compare("input_int8", arrays["input_int8"], images)
    used.add("input_int8")
    for backend in ("kernel", "spec"):
        tensors = Engine(integer, backend).evaluate(images, list(integer.tensors))
        for key, value in arrays.items():
            section, _, module = key.partition("/")
            if section == "int":
                quantizer = types[module] == "common.QuantAct"
                expected, actual, name = expected_and_actual(kind, module, value, graph, integer, tensors, quantizer)
                if name and integer.tensors[name].encoding == "log2":
                    codes = actual.astype(np.int64)
                    actual = np.where(codes < 0, 0, 1 << (15 - np.maximum(codes, 0)))
                score.compare(f"{backend} {key}", expected, actual)
                used.add(key)
                if name and f"scale/{module}" in arrays:
                    scale = integer.tensors[name].scale
                    assert scale is not None
                    if integer.tensors[name].encoding == "log2":
                        scale = np.float64(2.0**-15)
                    elif module.endswith("matmul_1"):  # ours carries the attention factor, the file's does not yet
                        q = integer.tensors[integer.node(name).inputs[0]]
                        factor = q.shape[-1] ** -0.5
                        score.compare(f"{backend} scale/{module} * factor", value_of(arrays, module) * factor, scale)
                        scale = value_of(arrays, module)
                    found = np.broadcast_to(scale, arrays[f"scale/{module}"].reshape(-1).shape)
                    score.compare(f"{backend} scale/{module}", arrays[f"scale/{module}"].reshape(-1), found)
                used.add(f"scale/{module}")
            elif section in ("weight_int", "bias_int"):
                node = integer.node(float_name(kind, module))
                constant = node.arrays["weight" if section == "weight_int" else "bias"]
                score.compare(f"{backend} {key}", value.reshape(constant.shape), constant)
                used.add(key)
            elif section == "weight_scale":
                node = integer.node(float_name(kind, module))
                scale, x = integer.tensors[node.output].scale, integer.tensors[node.inputs[0]].scale
                score.compare(f"{backend} {key}", value * x, scale)
                used.add(key)
        score.compare(f"{backend} logits_int", arrays["logits_int"], tensors["head"])
        score.compare(f"{backend} logits_scale", arrays["logits_scale"], integer.tensors["head"].scale)
        score.compare(f"{backend} logits", arrays["logits"], tensors["head"] * integer.tensors["head"].scale)
        used |= {"logits_int", "logits_scale"}
        fused = Engine(integer, backend).evaluate(images, integer.outputs)  # nothing else wanted: the fast steps
        score.compare(f"{backend} logits_int, fused", arrays["logits_int"], fused["head"])
        if "pool_int" in arrays:
            score.compare(f"{backend} pool_int", arrays["pool_int"], tensors["avgpool"])
            used.add("pool_int")
        common = tensors[LOGITS].argmax(1)
        score.compare(f"{backend} argmax", arrays["logits"].argmax(1), common)
    for key in sorted(set(arrays) - used):
        score.problems.append(f"{key}: recorded, and not compared")
