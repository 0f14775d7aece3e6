"""Changes of ONNX files: nodes, attributes, constants, names, versions, outside data; and of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
from fuzz_arrays import other_array
from fuzz_onnx_model import HOSTILE, add_subgraph, change_border, change_metadata, change_version, some_node
from fuzz_text import FLOATS, NUMBERS
from onnx import AttributeProto, TensorProto, helper, numpy_helper

OPS = (
    "Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Conv", "Softmax", "LogSoftmax", "LayerNormalization", "Gelu", "Erf",
    "Tanh", "Relu", "Sigmoid",
    "Pow", "Sqrt", "ReduceMean", "ReduceSum", "ReduceMax", "Reshape", "Transpose", "Concat", "Split", "Slice",
    "Gather", "Identity", "Dropout", "Cast",
    "Where", "Expand", "Shape", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Clip", "Einsum", "Attention",
    "RMSNormalization", "QuantizeLinear",
    "DequantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "If",
    "Loop", "Scan", "NonZero", "TopK",
    "Constant", "ConstantOfShape", "Range", "Swish", "HardSwish", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "CumSum", "Neg",
    "GlobalAveragePool", "AveragePool", "MaxPool", "Resize", "FastGelu", "BiasGelu", "QuickGelu", "SequenceAt",
    "StringConcat", "Optional", "Nope",
)  # fmt: skip
INSERTED = (
    "Relu",
    "Identity",
    "Neg",
    "Tanh",
    "Erf",
    "Sigmoid",
    "Sqrt",
    "Exp",
    "Abs",
    "Softmax",
    "Gelu",
    "Floor",
    "Round",
    "Sign",
    "Elu",
    "Softplus",
)
RANDOM = ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Dropout")


def mutate_onnx(rng: Random, path: Path) -> str:
    """One change through the protobuf classes, in place."""
    model = onnx.load(str(path), load_external_data=False)
    name = rng.choice(sorted(_CHANGES))
    what = _CHANGES[name](rng, model, path) or ""
    path.write_bytes(model.SerializeToString())
    return f"onnx {name} {what}"


def _op(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    node = some_node(rng, model)
    old, node.op_type = node.op_type, rng.choice(OPS)
    if rng.random() < 0.1:
        node.domain = rng.choice(
            ["com.microsoft", "ai.onnx", "ai.onnx.ml", "x", "ai.onnx.training", "pkg.onnxscript.torch_lib"]
        )
    return f"{old} to {node.domain}{node.op_type}"


def _insert(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """An operator more on the way of one tensor."""
    node = some_node(rng, model)
    if not node.output:
        return "nothing"
    op = rng.choice(INSERTED if rng.random() < 0.7 else RANDOM)
    name = node.output[0]
    node.output[0] = f"{name}_before"
    inputs, attrs = [node.output[0]], {}
    if op == "Dropout":
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio_"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training_"))
        inputs += ["ratio_", "training_"]
    if op == "Softmax":
        attrs["axis"] = rng.choice([-1, 1, 2, 0])
    at = next(i for i, n in enumerate(model.graph.node) if n is node or n.output[:1] == node.output[:1])
    model.graph.node.insert(at + 1, helper.make_node(op, inputs, [name], name=f"inserted_{op}", **attrs))
    return f"{op} after {node.op_type}"


def _binary(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """An arithmetic operator with a constant more on the way of one tensor: the meaning changes, the shapes do not."""
    node = some_node(rng, model)
    name = node.output[0]
    node.output[0] = f"{name}_before"
    op, value = (
        rng.choice(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"]),
        rng.choice([0.0, 1.0, -1.0, 0.5, 2.0, 1e-20, 1e20, float("nan")]),
    )
    width = rng.choice([(), (1,), (8,), (24,), (1, 1, 1), (1, 5, 1)])
    model.graph.initializer.append(numpy_helper.from_array(np.full(width, value, np.float32), "constant_"))
    at = next(i for i, n in enumerate(model.graph.node) if n.output[:1] == node.output[:1])
    inputs = [node.output[0], "constant_"] if rng.random() < 0.6 else ["constant_", node.output[0]]
    model.graph.node.insert(at + 1, helper.make_node(op, inputs, [name], name=f"inserted_{op}"))
    return f"{op} {value} {width} after {node.op_type}"


def _drop(rng: Random, model: onnx.ModelProto, path: Path) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _bypass(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """A node's readers read its input instead."""
    node = some_node(rng, model)
    if not node.input:
        return "nothing"
    for other in model.graph.node:
        for i, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[i] = node.input[0]
    return node.op_type


def _double(rng: Random, model: onnx.ModelProto, path: Path) -> None:
    model.graph.node.append(rng.choice(model.graph.node))


def _order(rng: Random, model: onnx.ModelProto, path: Path) -> None:
    nodes = list(model.graph.node)
    i, j = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    nodes[i], nodes[j] = nodes[j], nodes[i]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _wire(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """A node reads another tensor: a constant, itself, the input, nothing."""
    node, other = some_node(rng, model), rng.choice(model.graph.node)
    if not node.input:
        return "nothing"
    names = [*other.output[:1], node.output[0], model.graph.input[0].name, "", "not_there"]
    names += [rng.choice(model.graph.initializer).name] if model.graph.initializer else []
    i = rng.randrange(len(node.input))
    kind = rng.random()
    if kind < 0.7:
        node.input[i] = rng.choice(names)
    elif kind < 0.85:
        del node.input[i]
    else:
        node.input.append(rng.choice(names))
    return f"{node.op_type} {list(node.input)}"


def _swap(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """The two inputs of a node trade places."""
    node = rng.choice([n for n in model.graph.node if len(n.input) > 1] or [some_node(rng, model)])
    names = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(names)
    return node.op_type


def _attribute(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    node = rng.choice([n for n in model.graph.node if n.attribute] or [some_node(rng, model)])
    kind = rng.choice(["drop", "value", "value", "value", "type", "add", "double", "name"])
    if not node.attribute or kind == "add":
        names = ["axis", "epsilon", "perm", "keepdims", "approximate", "stash_type", "axes", "alpha", "transA",
                 "group", "pads", "auto_pad", "dilations",
                 "allowzero", "is_causal", "softcap", "seed", "to", "mode", "noop_with_empty_axes", "noop",
                 "exclusive", "ceil_mode"]  # fmt: skip
        name = rng.choice(names)
        value = rng.choice([0, 1, -1, 2, 1.5, "tanh", [0, 1], [2, 2], [1.0], "SAME_UPPER"])
        node.attribute.append(helper.make_attribute(name, value))
        return f"{node.op_type} {name} = {value}"
    at = rng.randrange(len(node.attribute))
    attribute = node.attribute[at]
    name = attribute.name
    if kind == "drop":
        del node.attribute[at]
    elif kind == "double":
        node.attribute.append(attribute)
    elif kind == "name":
        attribute.name = rng.choice((*HOSTILE[:6], "axis", "epsilon"))
    elif kind == "type":
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice([0, 1, 2, 3, 4, -1, -2, -5, 2**31, 2**63 - 1, -(2**63), attribute.i + 1])
        name += f" = {attribute.i}"
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(
            [f for f in FLOATS if not abs(f) > 3e38] + [attribute.f * 1e4, 1e-5, float("nan"), float("inf")]
        )
        name += f" = {attribute.f}"
    elif attribute.type == AttributeProto.INTS:
        values = list(attribute.ints)
        values = rng.choice(
            [
                values[::-1],
                values[:-1],
                [*values, 1],
                [],
                [v + 1 for v in values],
                [-v for v in values],
                [0] * len(values),
                [2**62],
                values * 2,
            ]
        )
        if values and rng.random() < 0.4:
            i, j = rng.randrange(len(values)), rng.randrange(len(values))
            values[i], values[j] = values[j], values[i]
        del attribute.ints[:]
        attribute.ints.extend(values)
        name += f" = {values}"
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice([b"", b"none", b"tanh", b"\xff", b"NOTSET", b"VALID"])
    elif attribute.type == AttributeProto.TENSOR:
        _tensor(rng, attribute.t)
    return f"{node.op_type} {kind} {name}"


def _tensor(rng: Random, tensor: TensorProto) -> str:
    """A constant: its values, its declared shape or type, its storage."""
    kind = rng.choice(
        ["array", "array", "array", "array", "dims", "type", "raw", "both", "empty", "external", "strings", "segment"]
    )
    if kind == "array":
        try:
            array = other_array(rng, numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
            kind = f"array {array.dtype} {array.shape}"
        except Exception:
            tensor.dims.append(1)
    elif kind == "dims":
        dims = list(tensor.dims)
        dims = rng.choice(
            [
                dims[::-1],
                [*dims, 1],
                dims[:-1],
                [0, *dims],
                [-1],
                [2**40],
                [2**31, 2**31, 4],
                [2**62, 2],
                [1] * 100,
                [n * 2 for n in dims],
            ]
        )
        del tensor.dims[:]
        tensor.dims.extend(dims)
        kind = f"dims {dims[:5]}"
    elif kind == "type":
        tensor.data_type = rng.choice([*TensorProto.DataType.values(), 99, -1])
    elif kind == "raw":
        tensor.raw_data = rng.choice(
            [b"", tensor.raw_data[:-1], tensor.raw_data + b"x", tensor.raw_data[: len(tensor.raw_data) // 2]]
        )
    elif kind == "both":
        tensor.float_data.extend([1.0, 2.0])
        tensor.int64_data.extend([2**40])
    elif kind == "empty":
        name = tensor.name
        tensor.Clear()
        tensor.name = name
    elif kind == "external":
        tensor.raw_data = b""
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(
            [
                "../outside/secret.h5",
                "../../outside/secret.h5",
                "/etc/passwd",
                "",
                ".",
                "data.bin",
                "a\0b",
                "vit.onnx",
                "x" * 5000,
            ]
        )
        for key, value in (
            ("location", location),
            ("offset", str(rng.choice(NUMBERS[:20]))),
            ("length", str(rng.choice(NUMBERS))),
        ):
            if rng.random() < 0.8:
                tensor.external_data.add(key=key, value=value)
        kind = f"external {location[:30]}"
    elif kind == "strings":
        tensor.data_type = TensorProto.STRING
        tensor.string_data.append(b"\xff")
    else:
        tensor.segment.begin, tensor.segment.end = 0, 5
    return kind


def _constant(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    if not model.graph.initializer:
        return _attribute(rng, model, path)
    tensor = rng.choice(model.graph.initializer)
    return f"{tensor.name[:40]} {_tensor(rng, tensor)}"


def _rename(rng: Random, model: onnx.ModelProto, path: Path) -> str:
    """A tensor or node gets a hostile name, everywhere that it is called so; or only in one place."""
    new, everywhere = rng.choice(HOSTILE).replace("\0", rng.choice(["\0", "0"])), rng.random() < 0.8
    kind = rng.choice(["node", "tensor", "tensor", "initializer", "input", "output"])
    if kind == "node":
        node = some_node(rng, model)
        old, node.name = node.name, new
        return f"node {old[:40]} to {new[:30]!r}"
    source = {"tensor": lambda: some_node(rng, model).output[0], "input": lambda: model.graph.input[0].name,
              "output": lambda: model.graph.output[0].name,
              "initializer": lambda: rng.choice(model.graph.initializer).name if model.graph.initializer
              else ""}  # fmt: skip
    old = source[kind]()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old and (everywhere or rng.random() < 0.5):
                    names[i] = new
    for values in (model.graph.input, model.graph.output, model.graph.initializer, model.graph.value_info):
        for value in values:
            if value.name == old and everywhere:
                value.name = new
    return f"{kind} {old[:40]} to {new[:30]!r}"


_CHANGES: dict[str, Callable[[Random, onnx.ModelProto, Path], str | None]] = {
    "attribute": _attribute,
    "attribute again": _attribute,
    "binary": _binary,
    "border": change_border,
    "bypass": _bypass,
    "constant": _constant,
    "constant again": _constant,
    "double": _double,
    "drop": _drop,
    "insert": _insert,
    "metadata": change_metadata,
    "metadata again": change_metadata,
    "op": _op,
    "order": _order,
    "rename": _rename,
    "subgraph": add_subgraph,
    "swap": _swap,
    "version": change_version,
    "wire": _wire,
}
