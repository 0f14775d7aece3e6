"""ONNX -> float Graph. The one reader of the canonical float form; every importer ends in ONNX first.

The batch axis is axis 0 of every activation and is dropped: a Graph is the program for one image. Node names become
site names. MatMul + Add with constants becomes `linear`, a patch convolution becomes layout moves and `linear`.

The canonical form is what `Builder` writes, and nothing near it: whoever edits such a file is told what differs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper

from intvit.errors import IntvitError
from intvit.files import safe_name
from intvit.floats.importers.onnxfile import METADATA_KEY, load_model, model_metadata, set_metadata
from intvit.graph import layout, operators
from intvit.graph.ir import MOST_AXES, MOST_ELEMENTS, Array, FloatGraph, FloatTensor, Graph, Node

__all__ = [
    "DOMAIN", "METADATA_KEY", "OPSET", "Reader", "attributes", "float_graph", "functions", "load_model",
    "model_metadata", "model_sha256", "set_metadata",
]  # fmt: skip

OPSET, DOMAIN = 20, "intvit"
"""Of the canonical form: of ONNX's operators, and of the functions that a file carries."""
TRAINED = ("weight_integer", "weight_scale", "bias_integer")
"""Constants that a site of a trained network has beside its float weights."""


@cache
def functions() -> list[onnx.FunctionProto]:
    """The kinds that ONNX has no operator for, as functions of ONNX operators."""
    head = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'
    kinds = operators.operators().values()
    return [onnx.parser.parse_function(f"{head} {kind.function}") for kind in kinds if kind.function]


def model_sha256(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def float_graph(model: onnx.ModelProto) -> FloatGraph:
    """The float Graph of `model`; raises IntvitError naming the first node that cannot be lowered."""
    metadata = model_metadata(model)
    reader = Reader(model)
    for name, array in reader.constants.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IntvitError(f"{name}: weights must be finite, not NaN or infinite")
    reader.read()
    if "trained" in metadata:
        reader.nodes = [reader.with_trained(node) for node in reader.nodes]
    metadata = {**metadata, "model_sha256": model_sha256(model)}
    return Graph((reader.input,), (model.graph.output[0].name,), tuple(reader.nodes), reader.tensors, metadata)


@dataclass
class Reader:
    model: onnx.ModelProto
    constants: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, FloatTensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    input: str = ""
    consumers: dict[str, int] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    """Constants that stand there once per image."""

    def __post_init__(self) -> None:
        graph = self.model.graph
        opsets = [entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")]
        if opsets != [OPSET]:
            raise IntvitError(f"ONNX graph: must be of opset {OPSET}, not {opsets}; import it with `intvit import`")
        for tensor in graph.initializer:
            if tensor.name in self.constants:
                raise IntvitError(f"{tensor.name}: must be defined once")
            self.constants[tensor.name] = numpy_helper.to_array(tensor)
        inputs = [i for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1:
            raise IntvitError(f"ONNX graph: must have one input, not {[i.name for i in inputs]}")
        if len(graph.output) != 1:
            raise IntvitError(f"ONNX graph: must have one output, not {[o.name for o in graph.output]}")
        known = {f.name: f.SerializeToString(deterministic=True) for f in functions()}
        for function in self.model.functions:
            if function.domain != DOMAIN or known.get(function.name) != function.SerializeToString(deterministic=True):
                raise IntvitError(f"{function.domain}.{function.name}: must be a function as `intvit import` writes it")
        carried = {function.name for function in self.model.functions}
        for node in graph.node:
            if node.domain == DOMAIN and node.op_type in known and node.op_type not in carried:
                raise IntvitError(f"{node.name}: the file must carry the function {DOMAIN}.{node.op_type}")
        self.input = inputs[0].name
        kind = inputs[0].type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        if len(dims) < 3 or min(dims[1:]) < 1:
            raise IntvitError(f"{self.input}: must be of a fixed size (batch, C, H, W) or (batch, T, D), not {dims}")
        if dims[0] or kind.elem_type != TensorProto.FLOAT:
            raise IntvitError(
                f"{self.input}: must be float32 with a free batch axis, not type {kind.elem_type}, {dims}"
            )
        self._add(FloatTensor(self.input, tuple(dims[1:])))
        for node in graph.node:
            for name in node.input:
                self.consumers[name] = self.consumers.get(name, 0) + 1
            for name in node.output:
                if not name or name in self.producers or name in self.constants or name == self.input:
                    raise IntvitError(f"{name or node.name}: must be computed by one node")
                self.producers[name] = node

    def read(self) -> None:
        output = self.model.graph.output[0].name
        needed = self._depended_on(output, lambda node: node.input)
        handled = self._depended_on(output, lambda node: node.input[:1] if node.op_type == "Expand" else node.input)
        handlers = _readers()
        for node in self.model.graph.node:
            name = next(iter(node.output), node.name)
            if name not in needed:
                raise IntvitError(f"{name}: the output must depend on every node, and not on this")
            if name not in handled:
                continue  # the shape of an Expand
            operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            handler = handlers.get(operator)
            if handler is None:
                raise IntvitError(f"{name}: ONNX operator {operator} has no integer form")
            if len(node.output) != 1 or node.name not in ("", name):
                raise IntvitError(f"{node.name}: must have one output, of its own name, not {list(node.output)}")
            handler(self, node)
        self.shape(output)

    def _depended_on(self, output: str, inputs: Callable[[onnx.NodeProto], Iterable[str]]) -> set[str]:
        """The tensors that `output` is computed from, itself included."""
        seen: set[str] = set()
        todo = [output]
        while todo:
            name = todo.pop()
            if name in self.producers and name not in seen:
                seen.add(name)
                todo += inputs(self.producers[name])
        return seen

    # -- small parts used by the handlers

    def _add(self, tensor: FloatTensor) -> None:
        if not tensor.name.isprintable() or not safe_name(tensor.name) or not tensor.name:
            raise IntvitError(f"{tensor.name!r}: a name must not be empty and must be printable")
        if math.prod(tensor.shape) > MOST_ELEMENTS or len(tensor.shape) > MOST_AXES:
            raise IntvitError(f"{tensor.name}: shape must be of at most {MOST_ELEMENTS} elements, not {tensor.shape}")
        if tensor.name in self.tensors:
            raise IntvitError(f"{tensor.name}: must be computed by one node")
        self.tensors[tensor.name] = tensor

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise IntvitError(f"{name}: must be an activation that is computed before it is used")
        return self.tensors[name].shape

    def emit(
        self, op: str, node: onnx.NodeProto, inputs: tuple[str, ...], shape: tuple[int, ...], **values: Any
    ) -> None:
        """Append a compute node that is named after `node` and writes its output."""
        self.append(Node(op, node.output[0], inputs, node.output[0], **values), shape)

    def append(self, node: Node, shape: tuple[int, ...]) -> None:
        self._add(FloatTensor(node.output, shape))
        if node.name in self.names:
            raise IntvitError(f"{node.name}: must be the name of one node")
        self.names.add(node.name)
        self.nodes.append(node)

    def move(self, op: str, name: str, source: str, output: str, **attrs: Any) -> None:
        node = Node(op, name, (source,), output, attrs)
        if op == "reshape":
            layout.check_reshape(name, self.shape(source), tuple(attrs["shape"]))
        self.append(node, layout.output_shape(node, [self.shape(source)]))

    def constant(self, node: onnx.NodeProto, index: int, kind: str, shape: tuple[int | None, ...] | None) -> Array:
        """A constant input: `kind` f (float32) or i (int64, int32), of `shape` (None: any length; None at all: any)."""
        name = node.input[index] if index < len(node.input) else ""
        if name not in self.constants:
            raise IntvitError(f"{node.output[0]}: {node.op_type} input {index} must be a constant, not {name!r}")
        array = self.constants[name]
        if array.dtype not in ((np.float32,) if kind == "f" else (np.int64, np.int32)):
            raise IntvitError(f"{name}: must be {'float32' if kind == 'f' else 'int64'}, not {array.dtype}")
        fits = shape is None or (
            array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        )
        if not fits or not array.size:
            wanted = "of any size" if shape is None else str(["any" if n is None else n for n in shape])
            raise IntvitError(f"{name}: shape must be {wanted}, not {list(array.shape)}")
        return array

    def integers(self, node: onnx.NodeProto, index: int) -> list[int]:
        return [int(v) for v in self.constant(node, index, "i", (None,))]

    def inner_axis(self, node: onnx.NodeProto, axis: int) -> int:
        """Axis of the per-image array for the axis that a node counts with the batch."""
        ndim = len(self.shape(node.input[0])) + 1
        if not -ndim <= axis < ndim or axis % ndim == 0:
            raise IntvitError(
                f"{node.output[0]}: {node.op_type} axis must be one of {ndim}, not the batch's, not {axis}"
            )
        return axis % ndim - 1

    def without_batch(self, name: str, shape: tuple[int, ...]) -> Array:
        """A constant that broadcasts against an activation of `shape`, its batch axis of length 1 dropped."""
        array = self.constants[name]
        if array.ndim == len(shape) + 1 and array.shape[0] == 1:
            array = array[0]
        fits = array.ndim <= len(shape) and all(
            n in (1, m) for n, m in zip(array.shape[::-1], shape[::-1], strict=False)
        )
        if array.dtype != np.float32 or not fits:
            raise IntvitError(f"{name}: must be float32 and broadcast to {shape}, not {array.dtype} {array.shape}")
        return array

    def attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        return attributes(node)

    def check_last_axis(self, node: onnx.NodeProto) -> None:
        axis, shape = attributes(node).get("axis", -1), self.shape(node.input[0])
        if axis not in (-1, len(shape)):
            raise IntvitError(f"{node.name}: {node.op_type} axis must be the last, not {axis}")

    def with_trained(self, node: Node) -> Node:
        """`node` with the integers that were trained for it."""
        found = {key: self.constants[f"{node.name}.{key}"] for key in TRAINED if f"{node.name}.{key}" in self.constants}
        if node.op == "linear" and "weight_integer" not in found:
            raise IntvitError(f"{node.name}: its trained weight_integer must be there")
        kinds = {"weight_integer": np.int8, "weight_scale": np.float32, "bias_integer": np.int64}
        for key, array in found.items():
            if array.dtype != kinds[key] or node.op not in ("linear", "layernorm"):
                raise IntvitError(f"{node.name}.{key}: must be {np.dtype(kinds[key])} of a linear or layernorm")
        return replace(node, arrays={**node.arrays, **found}) if found else node


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _constant(r: Reader, node: onnx.NodeProto) -> None:
    value = attributes(node).get("value")
    if not isinstance(value, TensorProto):
        raise IntvitError(f"{node.output[0]}: Constant must have a tensor value")
    r.constants[node.output[0]] = numpy_helper.to_array(value)


def _expand(r: Reader, node: onnx.NodeProto) -> None:
    """A constant repeated over the batch is that constant."""
    value = r.constant(node, 0, "f", None)
    if value.shape[:1] != (1,) or not _is_batch_and(r, node.input[1], value.shape[1:]):
        raise IntvitError(f"{node.output[0]}: Expand must repeat a constant (1, ...) once per image, and nothing else")
    r.constants[node.output[0]] = value
    r.repeated.add(node.output[0])


def _is_batch_and(r: Reader, name: str, rest: tuple[int, ...]) -> bool:
    """True if tensor `name` is the shape (length of the input's batch axis, *rest)."""
    concat = r.producers.get(name)
    if concat is None or concat.op_type != "Concat" or len(concat.input) != 2 or attributes(concat) != {"axis": 0}:
        return False
    gather = r.producers.get(concat.input[0])
    if gather is None or gather.op_type != "Gather" or attributes(gather).get("axis", 0) != 0:
        return False
    shape = r.producers.get(gather.input[0])
    if shape is None or shape.op_type != "Shape" or shape.attribute or list(shape.input) != [r.input]:
        return False
    index = r.constants.get(gather.input[1])
    return (index is not None and index.dtype.kind == "i" and index.tolist() == [0]) and r.integers(concat, 1) == list(
        rest
    )


def _reshape(r: Reader, node: onnx.NodeProto) -> None:
    before, (batch, *target) = r.shape(node.input[0]), r.integers(node, 1)
    if batch != 0 or attributes(node).get("allowzero", 0) or min(target, default=1) < -1 or target.count(-1) > 1:
        raise IntvitError(f"{node.name}: Reshape must be to [0, ...], one -1 at most, not {[batch, *target]}")
    if 0 in target[len(before) :]:
        raise IntvitError(f"{node.name}: Reshape must not ask for more axes than there are, not {[batch, *target]}")
    target = [before[i] if v == 0 else v for i, v in enumerate(target)]
    if -1 in target:
        target[target.index(-1)] = math.prod(before) // -math.prod(target)
    r.move("reshape", node.output[0], node.input[0], node.output[0], shape=target)


def _transpose(r: Reader, node: onnx.NodeProto) -> None:
    axes = len(r.shape(node.input[0])) + 1
    perm = list(attributes(node).get("perm", range(axes)[::-1]))
    if sorted(perm) != list(range(axes)) or perm[0] != 0:
        raise IntvitError(f"{node.name}: Transpose must keep the batch axis first of {axes}, not {perm}")
    r.move("transpose", node.output[0], node.input[0], node.output[0], perm=[int(p) - 1 for p in perm[1:]])


def _gather(r: Reader, node: onnx.NodeProto) -> None:
    axis = r.inner_axis(node, attributes(node).get("axis", 0))
    index, length = int(r.constant(node, 1, "i", ())), r.shape(node.input[0])[axis]
    if not -length <= index < length:
        raise IntvitError(f"{node.name}: Gather index must be one of {length}, not {index}")
    r.move("take", node.output[0], node.input[0], node.output[0], axis=axis, index=index)


def _slice(r: Reader, node: onnx.NodeProto) -> None:
    starts, ends = r.integers(node, 1), r.integers(node, 2)
    axes = r.integers(node, 3) if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = r.integers(node, 4) if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    inner = [r.inner_axis(node, axis) for axis in axes]
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(inner)) or min(steps) < 1:
        raise IntvitError(f"{node.name}: Slice must have a start, an end and a positive step for each of its axes")
    source = node.input[0]
    for i, (start, stop, axis, step) in enumerate(zip(starts, ends, inner, steps, strict=True)):
        begin, end, stride = slice(start, stop, step).indices(r.shape(source)[axis])
        if begin >= end:
            raise IntvitError(f"{node.name}: Slice must leave something, not {start}:{stop} of {r.shape(source)[axis]}")
        last = i == len(starts) - 1
        output = node.output[0] if last else f"{node.output[0]}.{i}"
        r.move("slice", output, source, output, axis=axis, start=begin, stop=end, step=stride)
        source = output


def _concat(r: Reader, node: onnx.NodeProto) -> None:
    activations = [name for name in node.input if name not in r.constants]
    if not activations:
        raise IntvitError(f"{node.name}: Concat must join at least one activation")
    shape, axis = r.shape(activations[0]), attributes(node)["axis"]
    if not -len(shape) <= axis <= len(shape) or axis == 0:
        raise IntvitError(f"{node.name}: Concat axis must be one of 1..{len(shape)}, not {axis}")
    axis = axis % (len(shape) + 1) - 1
    order: list[int | str] = []
    inputs: list[str] = []
    arrays: dict[str, Array] = {}
    for i, name in enumerate(node.input):
        if name in r.constants:
            if name not in r.repeated:
                raise IntvitError(f"{node.name}: Concat must join constants that Expand repeats over the batch: {name}")
            arrays[f"part{i}"] = r.constants[name][0]
            order.append(f"part{i}")
        else:
            order.append(len(inputs))
            inputs.append(name)
        found = arrays[f"part{i}"].shape if name in r.constants else r.shape(name)
        if (*found[:axis], *found[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]) or len(found) != len(shape):
            raise IntvitError(f"{node.name}: Concat shapes must agree but for axis {axis + 1}, not {shape} and {found}")
    result = Node("concat", node.output[0], tuple(inputs), node.output[0], {"axis": axis, "order": order}, arrays)
    r.append(result, layout.output_shape(result, [r.shape(name) for name in inputs]))


_HANDLERS: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "Concat": _concat,
    "Constant": _constant,
    "Expand": _expand,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
}
"""Layout and constants; how the others are read, their kinds say."""


@cache
def _readers() -> dict[str, Callable[[Reader, onnx.NodeProto], None]]:
    """ONNX operator -> how it is read; `intvit.Silu` for one of the functions that a file carries."""
    found = dict(_HANDLERS)
    for kind in operators.operators().values():
        for op, read in kind.reads.items():
            found[f"{DOMAIN}.{op}" if kind.function else op] = read
    return found
