"""Changes of an ONNX model around its nodes: inputs and outputs, versions, metadata, subgraphs and functions."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import onnx
from fuzz_text import mutate_json
from onnx import helper, numpy_helper

HOSTILE = ("../../outside/x", "../../../outside/x", "/tmp/intvit-fuzz-outside/x", "..", ".", "", "a/b/c", "logits",
           "input", "index.json", "x" * 300, "a b", "A", "a", "\u00e9\u202e", "[red]", "a\nb",
           "head", "con", "blocks.0.norm1.quant", "\x1b[31m", "%2e", "a\0b")  # fmt: skip


def some_node(rng: Random, model: onnx.ModelProto) -> onnx.NodeProto:
    """A node, seldom one that only handles shapes."""
    nodes = model.graph.node
    interesting = [n for n in nodes if n.op_type not in ("Constant", "Shape", "Gather", "Unsqueeze", "Concat", "Cast")]
    return rng.choice(interesting or nodes)


def change_border(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """Inputs and outputs: shapes, types, more, fewer, doubled."""
    kind = rng.choice(
        [
            "shape",
            "shape",
            "shape",
            "type",
            "more",
            "none",
            "double",
            "output",
            "optional",
            "sequence",
            "initializer is input",
        ]
    )
    values = rng.choice([model.graph.input, model.graph.input, model.graph.output])
    if not values:
        return "nothing"
    value = values[0]
    dims = value.type.tensor_type.shape.dim
    if kind == "shape" and dims:
        at = rng.randrange(len(dims))
        choice = rng.randrange(5)
        if choice == 0:
            dims[at].dim_param = rng.choice(["N", "", "batch"])
        elif choice == 1:
            del dims[at]
        elif choice == 2:
            dims.add().dim_value = rng.choice([1, 3])
        else:
            dims[at].dim_value = rng.choice(
                [0, 1, 2, 7, -1, 2**31, 2**62, 10**5, dims[at].dim_value + 1, dims[at].dim_value * 2]
            )
        return f"{value.name} {[d.dim_value for d in dims]}"
    if kind == "type":
        value.type.tensor_type.elem_type = rng.choice([0, 2, 7, 8, 9, 10, 11, 16, 99])
    elif kind == "more":
        values.append(helper.make_tensor_value_info(rng.choice(["x2", value.name]), 1, [1, 3]))
    elif kind == "none":
        del values[:]
    elif kind == "double":
        values.append(value)
    elif kind == "output":
        model.graph.output[0].name = rng.choice(
            [*some_node(rng, model).output[:1], model.graph.input[0].name, "not_there"]
        )
    elif kind == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif kind == "optional":
        value.ClearField("type")
    elif model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return kind


def change_version(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    kind = rng.choice(["opset", "opset", "ir", "drop", "double", "domain", "producer"])
    if kind == "opset" and model.opset_import:
        model.opset_import[0].version = rng.choice(
            [0, 1, 6, 9, 11, 12, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25, 99, 2**31, -1, 2**62]
        )
        return f"opset {model.opset_import[0].version}"
    if kind == "ir":
        model.ir_version = rng.choice([0, 1, 3, 4, 7, 10, 13, 14, 99, -1, 2**31])
    elif kind == "drop":
        del model.opset_import[:]
    elif kind == "double":
        model.opset_import.append(helper.make_opsetid("", rng.choice([11, 20])))
    elif kind == "domain":
        model.opset_import.append(
            helper.make_opsetid(rng.choice(["x", "com.microsoft", "ai.onnx.ml"]), rng.choice([0, 1, 99]))
        )
    else:
        model.producer_name, model.doc_string = "x" * 10_000, "\u202e"
    return kind


def change_metadata(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """The `intvit` entry of the metadata, there or not."""
    entries = [entry for entry in model.metadata_props if entry.key == "intvit"]
    if not entries:
        values = [{}, {"mean": [0.5], "std": [0.5]}, {"mean": "x"}, {"std": [0]}, {"resize": "big"}, {"ranges": {}},
                  {"architecture": "vit"},
                  {"ranges": {"input": [1, -1]}}, {"num_heads": 1e400}, {"resize": 10**9}, {"std": [1e-45]},
                  {"mean": []}]  # fmt: skip
        model.metadata_props.add(key="intvit", value=json.dumps(rng.choice(values)))
        return "added"
    kind = rng.choice(["json"] * 6 + ["drop", "double", "key"])
    if kind == "json":
        text, kind = mutate_json(rng, entries[0].value.encode())
        entries[0].value = text.decode("utf-8", "replace")
    elif kind == "drop":
        model.metadata_props.remove(entries[0])
    elif kind == "double":
        model.metadata_props.add(key="intvit", value='{"mean": [3.0]}')
    else:
        entries[0].key = rng.choice(HOSTILE).replace("\0", "")
    return kind


def add_subgraph(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """Control flow, nested a little or a lot; a function of the model; training information; sparse constants."""
    kind = rng.choice(
        ["if", "loop", "deep", "function", "recursive function", "training", "sparse", "quantization", "value_info"]
    )
    name = some_node(rng, model).output[0]
    out = helper.make_tensor_value_info(name + "_s", 1, None)
    if kind in ("if", "deep"):
        graph = helper.make_graph([helper.make_node("Identity", [name], [name + "_s"])], "g", [], [out])
        for _ in range(60 if kind == "deep" else 1):
            node = helper.make_node(
                "If", ["condition_"], [name + "_s"], then_branch=graph, else_branch=graph if kind == "if" else None
            )
            graph = helper.make_graph([node], "g", [], [out])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition_"))
        model.graph.node.append(node)
    elif kind == "loop":
        body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b",
                                 [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, [])],
                                 [helper.make_tensor_value_info("d", 9, [])])  # fmt: skip
        model.graph.node.append(helper.make_node("Loop", ["", "condition_"], [], body=body))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition_"))
    elif "function" in kind:
        inner = helper.make_node(
            "F" if kind == "recursive function" else "Identity", ["a"], ["b"], domain="f" if kind != "function" else ""
        )
        model.functions.append(
            helper.make_function(
                "f", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
            )
        )
        model.opset_import.append(helper.make_opsetid("f", 1))
        node = some_node(rng, model)
        old, node.output[0] = node.output[0], f"{node.output[0]}_before"
        model.graph.node.append(helper.make_node("F", [node.output[0]], [old], domain="f"))
    elif kind == "training":
        model.training_info.add().initialization.name = "x"
    elif kind == "sparse":
        model.graph.sparse_initializer.add().dims.extend([2, 2])
    elif kind == "quantization":
        model.graph.quantization_annotation.add(tensor_name=name)
    else:
        model.graph.value_info.append(
            helper.make_tensor_value_info(name, rng.choice([1, 7]), rng.choice([[1], [0], [9, 9]]))
        )
    return kind
