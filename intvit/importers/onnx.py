"""ONNX -> float Graph. The one reader of the canonical float form; every importer ends in ONNX first.

The batch axis is axis 0 of every activation and is dropped: a Graph is the program for one image. Node names become
site names. MatMul + Add with constants becomes `linear`, a patch convolution becomes layout moves and `linear`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from intvit.errors import IntvitError
from intvit.graph import layout
from intvit.graph.ir import Array, Graph, Node, Tensor

METADATA_KEY = "intvit"


def load_model(path: str | Path, *, check: bool = True) -> onnx.ModelProto:
    """Read an ONNX file; IntvitError if it is not one. Without `check`, whoever runs it judges the graph."""
    if not Path(path).is_file():
        raise IntvitError(f"{path}: no such file")
    try:
        model = onnx.load(str(path))
        if check:
            onnx.checker.check_model(model)
    except Exception as error:
        raise IntvitError(f"{path}: must be a valid ONNX model, not: {_first_line(error)}") from error
    return model


def model_sha256(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def model_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return dict(json.loads(entry.value))
    return {}


def set_metadata(model: onnx.ModelProto, **values: Any) -> None:
    """Add to the model's own metadata."""
    merged = {**model_metadata(model), **values}
    for entry in list(model.metadata_props):
        if entry.key == METADATA_KEY:
            model.metadata_props.remove(entry)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(merged, sort_keys=True))


def float_graph(model: onnx.ModelProto) -> Graph:
    """The float Graph of `model`; raises IntvitError naming the first node that cannot be lowered."""
    reader = _Reader(model)
    for name, array in reader.constants.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IntvitError(f"{name}: weights must be finite, not NaN or infinite")
    reader.read()
    metadata = {**model_metadata(model), "model_sha256": model_sha256(model)}
    return Graph((reader.input,), (model.graph.output[0].name,), tuple(reader.nodes), reader.tensors, metadata)


@dataclass
class _Reader:
    model: onnx.ModelProto
    constants: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    input: str = ""
    consumers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1:
            raise IntvitError(f"ONNX graph: must have one input, not {[i.name for i in inputs]}")
        self.input = inputs[0].name
        dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
        if len(dims) < 3 or min(dims[1:]) < 1:
            raise IntvitError(f"{self.input}: must be of a fixed size (batch, C, H, W) or (batch, T, D), not {dims}")
        self._add(Tensor(self.input, tuple(dims[1:])))
        for node in graph.node:
            for name in node.input:
                self.consumers[name] = self.consumers.get(name, 0) + 1

    def read(self) -> None:
        for node in self._needed():
            handler = _HANDLERS.get(node.op_type)
            if handler is None:
                raise IntvitError(f"{node.name}: ONNX operator {node.op_type} has no integer form")
            handler(self, node)

    def _needed(self) -> list[onnx.NodeProto]:
        """The nodes that the output depends on, in file order; shapes of Expand do not count."""
        producers = {name: node for node in self.model.graph.node for name in node.output}
        seen: set[str] = set()
        todo = [self.model.graph.output[0].name]
        while todo:
            name = todo.pop()
            node = producers.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            todo += node.input[:1] if node.op_type == "Expand" else node.input
        return [n for n in self.model.graph.node if n.output[0] in seen]

    # -- small parts used by the handlers

    def _add(self, tensor: Tensor) -> None:
        self.tensors[tensor.name] = tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def emit(
        self, op: str, node: onnx.NodeProto, inputs: tuple[str, ...], shape: tuple[int, ...], **values: Any
    ) -> None:
        """Append a compute node that is named after `node` and writes its output."""
        self.append(Node(op, node.name or node.output[0], inputs, node.output[0], **values), shape)

    def append(self, node: Node, shape: tuple[int, ...]) -> None:
        self.nodes.append(node)
        self._add(Tensor(node.output, shape))

    def move(self, op: str, name: str, source: str, output: str, **attrs: Any) -> None:
        node = Node(op, name, (source,), output, attrs)
        if op == "reshape":
            layout.check_reshape(name, self.shape(source), tuple(attrs["shape"]))
        self.append(node, layout.output_shape(node, [self.shape(source)]))

    def constant(self, node: onnx.NodeProto, index: int) -> Array:
        name = node.input[index]
        if name not in self.constants:
            raise IntvitError(f"{node.name}: {node.op_type} input {index} must be a constant, not the tensor {name}")
        return self.constants[name]

    def without_batch(self, array: Array, ndim: int) -> Array:
        """A constant that broadcasts against an activation, its batch axis of length 1 dropped."""
        return array[0] if array.ndim == ndim + 1 and array.shape[0] == 1 else array


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _constant(r: _Reader, node: onnx.NodeProto) -> None:
    r.constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])


def _expand(r: _Reader, node: onnx.NodeProto) -> None:
    """A constant repeated over the batch is that constant."""
    r.constants[node.output[0]] = r.constant(node, 0)


def _conv(r: _Reader, node: onnx.NodeProto) -> None:
    """Kernel = stride, no padding: cut into patches, then a linear operator; output (O, H/p, W/p)."""
    attrs, weight = attributes(node), r.constant(node, 1)
    (channels, height, width), (n_out, _, p, q) = r.shape(node.input[0]), weight.shape
    if list(attrs.get("strides", [1, 1])) != [p, q] or any(attrs.get("pads", [0])) or attrs.get("group", 1) != 1:
        raise IntvitError(
            f"{node.name}: convolution must have stride = kernel {[p, q]}, no padding, one group; not {attrs}"
        )
    if height % p or width % q:
        raise IntvitError(f"{node.name}: image size {(height, width)} must be a multiple of the patch size {(p, q)}")
    name, (h, w) = node.name, (height // p, width // q)
    r.move("reshape", f"{name}.cut", node.input[0], f"{name}.cut", shape=[channels, h, p, w, q])
    r.move("transpose", f"{name}.order", f"{name}.cut", f"{name}.order", perm=[1, 3, 0, 2, 4])
    r.move("reshape", f"{name}.patches", f"{name}.order", f"{name}.patches", shape=[h, w, channels * p * q])
    arrays = {"weight": weight.reshape(n_out, -1)}
    if len(node.input) > 2:
        arrays["bias"] = r.constant(node, 2)
    r.append(Node("linear", name, (f"{name}.patches",), f"{name}.linear", {}, arrays), (h, w, n_out))
    r.move("transpose", f"{name}.chw", f"{name}.linear", node.output[0], perm=[2, 0, 1])


def _matmul(r: _Reader, node: onnx.NodeProto) -> None:
    a, b = node.input[:2]
    if b in r.constants:
        weight = r.constants[b].T
        r.emit("linear", node, (a,), (*r.shape(a)[:-1], len(weight)), arrays={"weight": weight})
    else:
        left, right = r.shape(a), r.shape(b)
        if left[-1] != right[-2] or left[:-2] != right[:-2]:
            raise IntvitError(f"{node.name}: MatMul shapes must agree, not {left} and {right}")
        r.emit("matmul", node, (a, b), (*left[:-1], right[-1]))


def _add(r: _Reader, node: onnx.NodeProto) -> None:
    a, b = node.input
    if a in r.constants:
        a, b = b, a
    if b not in r.constants:
        if r.shape(a) != r.shape(b):
            raise IntvitError(f"{node.name}: Add shapes must be equal, not {r.shape(a)} and {r.shape(b)}")
        r.emit("add", node, (a, b), r.shape(a))
        return
    value = r.constants[b]
    producer = next((n for n in r.nodes if n.output == a and n.op == "linear" and "bias" not in n.arrays), None)
    if producer is not None and r.consumers[a] == 1 and value.size == r.shape(a)[-1]:  # its bias
        r.nodes.remove(producer)
        del r.tensors[a]
        arrays = {**producer.arrays, "bias": value.reshape(-1)}
        r.emit("linear", node, producer.inputs, (*r.shape(producer.inputs[0])[:-1], value.size), arrays=arrays)
        return
    value = r.without_batch(value, len(r.shape(a)))
    r.emit("add", node, (a,), r.shape(a), arrays={"value": value})


def _mul(r: _Reader, node: onnx.NodeProto) -> None:
    a, b = node.input
    if a in r.constants:
        a, b = b, a
    value = r.constants.get(b)
    if value is None or value.size != 1 or float(value.reshape(())) <= 0:
        raise IntvitError(f"{node.name}: Mul must have one positive scalar constant")
    r.emit("scale", node, (a,), r.shape(a), attrs={"factor": float(value.reshape(()))})


def _unary(op: str) -> Callable[[_Reader, onnx.NodeProto], None]:
    def handler(r: _Reader, node: onnx.NodeProto) -> None:
        r.emit(op, node, (node.input[0],), r.shape(node.input[0]))

    return handler


def _softmax(r: _Reader, node: onnx.NodeProto) -> None:
    axis, ndim = attributes(node).get("axis", -1), len(r.shape(node.input[0])) + 1
    if axis % ndim != ndim - 1:
        raise IntvitError(f"{node.name}: Softmax axis must be the last, not {axis}")
    r.emit("softmax", node, (node.input[0],), r.shape(node.input[0]))


def _layernorm(r: _Reader, node: onnx.NodeProto) -> None:
    shape, attrs = r.shape(node.input[0]), attributes(node)
    if attrs.get("axis", -1) % (len(shape) + 1) != len(shape):
        raise IntvitError(f"{node.name}: LayerNormalization axis must be the last, not {attrs['axis']}")
    gamma = r.constant(node, 1)
    beta = r.constant(node, 2) if len(node.input) > 2 else np.zeros_like(gamma)
    values = {"gamma": gamma.reshape(-1), "beta": beta.reshape(-1)}
    r.emit("layernorm", node, (node.input[0],), shape, attrs={"eps": attrs.get("epsilon", 1e-5)}, arrays=values)


def _reshape(r: _Reader, node: onnx.NodeProto) -> None:
    before = r.shape(node.input[0])
    target = [int(v) for v in r.constant(node, 1)][1:]
    target = [before[i] if v == 0 else v for i, v in enumerate(target)]
    if -1 in target:
        known = -int(np.prod(target))
        target[target.index(-1)] = int(np.prod(before)) // max(known, 1)
    r.move("reshape", node.name, node.input[0], node.output[0], shape=target)


def _transpose(r: _Reader, node: onnx.NodeProto) -> None:
    perm = attributes(node)["perm"]
    if perm[0] != 0:
        raise IntvitError(f"{node.name}: Transpose must keep the batch axis first, not {list(perm)}")
    r.move("transpose", node.name, node.input[0], node.output[0], perm=[int(p) - 1 for p in perm[1:]])


def _inner_axis(r: _Reader, node: onnx.NodeProto, axis: int) -> int:
    axis = axis % (len(r.shape(node.input[0])) + 1)
    if axis == 0:
        raise IntvitError(f"{node.name}: {node.op_type} must not work on the batch axis")
    return axis - 1


def _gather(r: _Reader, node: onnx.NodeProto) -> None:
    axis, index = _inner_axis(r, node, attributes(node).get("axis", 0)), r.constant(node, 1)
    if index.size != 1 or index.ndim:
        raise IntvitError(f"{node.name}: Gather index must be one scalar, not shape {index.shape}")
    r.move("take", node.name, node.input[0], node.output[0], axis=axis, index=int(index))


def _slice(r: _Reader, node: onnx.NodeProto) -> None:
    starts, ends = r.constant(node, 1), r.constant(node, 2)
    axes = r.constant(node, 3) if len(node.input) > 3 else np.arange(len(starts))
    steps = r.constant(node, 4) if len(node.input) > 4 else np.ones_like(starts)
    source = node.input[0]
    for i, (start, stop, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        inner = _inner_axis(r, node, int(axis))
        begin, end, stride = slice(int(start), int(stop), int(step)).indices(r.shape(source)[inner])
        last = i == len(starts) - 1
        output = node.output[0] if last else f"{node.output[0]}.{i}"
        r.move("slice", output, source, output, axis=inner, start=begin, stop=end, step=stride)
        source = output


def _concat(r: _Reader, node: onnx.NodeProto) -> None:
    activations = [name for name in node.input if name not in r.constants]
    axis = attributes(node)["axis"] % (len(r.shape(activations[0])) + 1)
    if axis == 0:
        raise IntvitError(f"{node.name}: Concat must not join along the batch axis")
    order: list[int | str] = []
    inputs: list[str] = []
    arrays: dict[str, Array] = {}
    for i, name in enumerate(node.input):
        if name in r.constants:
            arrays[f"part{i}"] = r.without_batch(r.constants[name], len(r.shape(activations[0])))
            order.append(f"part{i}")
        else:
            order.append(len(inputs))
            inputs.append(name)
    attrs = {"axis": axis - 1, "order": order}
    result = Node("concat", node.name, tuple(inputs), node.output[0], attrs, arrays)
    r.append(result, layout.output_shape(result, [r.shape(name) for name in inputs]))


def _mean(r: _Reader, node: onnx.NodeProto) -> None:
    attrs, shape = attributes(node), r.shape(node.input[0])
    axes = r.constant(node, 1).tolist() if len(node.input) > 1 else attrs.get("axes", [])
    if len(axes) != 1:
        raise IntvitError(f"{node.name}: ReduceMean must name one axis, not {axes}")
    axis = _inner_axis(r, node, axes[0])
    kept = (1,) if attrs.get("keepdims", 1) else ()
    after = (*shape[:axis], *kept, *shape[axis + 1 :])
    r.emit("mean", node, (node.input[0],), after, attrs={"axis": axis, "keepdims": bool(kept)})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_HANDLERS: dict[str, Callable[[_Reader, onnx.NodeProto], None]] = {
    "Add": _add,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Expand": _expand,
    "Gather": _gather,
    "Gelu": _unary("gelu"),
    "Identity": _unary("identity"),
    "LayerNormalization": _layernorm,
    "MatMul": _matmul,
    "Mul": _mul,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Transpose": _transpose,
}
