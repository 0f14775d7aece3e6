"""ONNX graphs exported by others -> the canonical float ONNX form.

The graph is fixed to one image (batch 1, one size). onnxruntime's optimizer folds constants and fuses decomposed
LayerNorm and GELU; what is left is walked once, node by node, and written anew. At batch 1 every shape is known, so
shape arithmetic is folded on the way, and layout is recognised by what it does to the axes, never by a node's name.

Constant factors are not written where they stand: a scalar travels through layout to the product or linear operator
that takes it (attention scale, SDPA's two square roots), a vector goes into the linear or LayerNorm before it
(LayerScale). A chain of element-wise operators over one activation is a GELU if it computes one.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from intvit.errors import IntvitError
from intvit.graph.ir import LOGITS, Array
from intvit.importers.builder import Builder
from intvit.importers.onnx import METADATA_KEY, attributes, load_model

Shape = tuple[int, ...]
NOT_FUSED = [
    "AttentionFusion", "BiasGeluFusion", "BiasSoftmaxFusion", "ConvAddFusion", "ConvMulFusion", "ConvActivationFusion",
    "GemmActivationFusion", "MatMulActivationFusion", "MatMulAddFusion", "MatMulScaleFusion", "MatmulTransposeFusion",
    "NchwcTransformer", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "QuickGeluFusion",
]  # fmt: skip
"""Fusions of onnxruntime that would hide what is to be seen."""
OPERATOR_NAME = re.compile(r"(?:node_)?[A-Z]\w*")
MOST_CAUSES = 4


def is_canonical(model: onnx.ModelProto) -> bool:
    return any(entry.key == METADATA_KEY for entry in model.metadata_props)


def import_foreign(
    path: str | Path, *, until: str | None = None, start: str | None = None, **options: Any
) -> onnx.ModelProto:
    """ONNX file -> canonical float ONNX.

    `until`: the node or tensor that becomes the output; `start`: the node or tensor that becomes the input. Option
    img_size fixes free height and width; mean, std and resize go to the metadata.
    """
    for key in options:
        if key not in ("img_size", "mean", "std", "resize", "num_heads", "layer_norm_eps"):
            raise IntvitError(f"import: option must not be {key!r} for an ONNX file")
    model = load_model(path)
    try:
        folded = _fold(model, until, start, options.get("img_size"))
        return _Walker(folded).rewrite({key: options[key] for key in ("mean", "std", "resize") if options.get(key)})
    except IntvitError as error:
        raise IntvitError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------- fixing and folding


def _fold(model: onnx.ModelProto, until: str | None, start: str | None, img_size: Any) -> onnx.ModelProto:
    """The part of `model` from `start` to `until` at one image, constants folded and LayerNorm and GELU fused."""
    model = inliner.inline_local_functions(model)
    graph = model.graph
    output = _tensor(model, "--until", until) if until else _only_output(model)
    source = _tensor(model, "--from", start) if start else None
    _fix_input(model, img_size)
    del graph.value_info[:]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys([output, source or output]))
    folded = _optimize(model)
    if source is not None and source != folded.graph.input[0].name:
        kinds = {value.name: value for value in folded.graph.output}
        del folded.graph.input[:]
        folded.graph.input.append(kinds[source])
    del folded.graph.output[1:]
    _prune(folded.graph, source)
    return folded


def _prune(graph: onnx.GraphProto, source: str | None) -> None:
    """Keep the nodes that the output needs; `source` is given, not computed."""
    needed, kept = {graph.output[0].name} - {source}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name != source)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept[::-1])


def _tensor(model: onnx.ModelProto, option: str, name: str) -> str:
    """The tensor called `name`, or the first output of the node called so."""
    for node in model.graph.node:
        if name in node.output:
            return name
        if name == node.name:
            return str(node.output[0])
    if any(name == value.name for value in model.graph.input):
        return name
    raise IntvitError(f"{option}: must name a node or tensor of the graph, and {name!r} is none")


def _only_output(model: onnx.ModelProto) -> str:
    names = [value.name for value in model.graph.output]
    if len(names) != 1:
        raise IntvitError(f"outputs: the graph has {len(names)}, {', '.join(names)}; choose one with --until")
    return names[0]


def _fix_input(model: onnx.ModelProto, img_size: Any) -> None:
    constants = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise IntvitError(f"inputs: the graph must have one, not {[value.name for value in inputs]}")
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) < 2:
        raise IntvitError(f"{inputs[0].name}: must be images (batch, C, H, W) or tokens, not {len(dims)} axes")
    if dims[0].dim_value > 1:
        raise IntvitError(f"{inputs[0].name}: batch must be free or 1, not fixed to {dims[0].dim_value}; export it so")
    sides = [int(v) for v in (img_size if isinstance(img_size, (list, tuple)) else [img_size, img_size]) if v]
    fixed = [1, *(dim.dim_value for dim in dims[1:])]
    if len(dims) == 4 and sides:
        for axis, side in zip((2, 3), sides, strict=True):
            if fixed[axis] not in (0, side):
                raise IntvitError(f"img_size: must be the {fixed[axis]} that the graph is fixed to, not {side}")
            fixed[axis] = side
    if len(dims) == 4 and fixed[1] == 0:
        fixed[1] = _channels(model, inputs[0].name)
    if min(fixed) < 1:
        raise IntvitError(f"{inputs[0].name}: size must be known, not {fixed}; give it with --img-size")
    for dim, value in zip(dims, fixed, strict=True):
        dim.Clear()
        dim.dim_value = value


def _channels(model: onnx.ModelProto, name: str) -> int:
    """Channels that the convolution over the input wants."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in shapes:
            return int(shapes[node.input[1]][1])
    return 0


def _optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=NOT_FUSED
            )
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntvitError(f"onnxruntime must be able to load the graph, and says: {line}") from None
        return onnx.load(str(target))


def _evaluate(node: onnx.NodeProto, constants: Sequence[Array], opsets: Any) -> list[Array]:
    """What a node computes from constants, by onnxruntime."""
    import onnxruntime as ort

    graph = onnx.GraphProto(name="constant", node=[node])
    for name, value in zip(node.input, constants, strict=True):
        if name and all(name != t.name for t in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(value, name))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    single = onnx.ModelProto(ir_version=8, graph=graph, opset_import=opsets)
    session = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {}))


# ------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Affine:
    """A linear or LayerNorm that is not written yet, as constants after it may still go into it."""

    op: str
    source: str
    scale: Array
    """Linear: weight (O, I); LayerNorm: gamma (C,)."""
    offset: Array | None
    eps: float = 0.0

    def times(self, factor: Any) -> Affine:
        column = np.asarray(factor, np.float32).reshape(-1)
        scale = self.scale * (column[:, None] if self.op == "linear" else column)
        return replace(self, scale=scale, offset=None if self.offset is None else self.offset * column)

    def plus(self, value: Array) -> Affine:
        column = np.broadcast_to(value.reshape(-1), self.scale.shape[:1])
        return replace(self, offset=column if self.offset is None else self.offset + column)


@dataclass(frozen=True)
class View:
    """An activation at batch 1: `gain` times the written tensor `name`, or an affine operator to be written so.

    `shape` has all axes; the written tensor, per image, lacks axis `batch` (of length 1; None: it has all).
    """

    name: str
    shape: Shape
    batch: int | None
    gain: float = 1.0
    affine: Affine | None = None
    remake: Callable[[Callable[[Affine], Affine]], View] | None = None
    """After layout that keeps the channels: the same moves over a changed affine operator."""

    def changed(self, change: Callable[[Affine], Affine]) -> View | None:
        """This value, had the affine operator that it comes from been another one; None if it comes from none."""
        if self.affine is not None:
            return replace(self, affine=change(self.affine))
        return None if self.remake is None else self.remake(change)

    @property
    def per_image(self) -> Shape:
        return tuple(n for i, n in enumerate(self.shape) if i != self.batch)

    def inner(self, axis: int) -> int:
        """Axis of the written tensor, its batch axis counted, that holds axis `axis`."""
        return axis + 1 - (self.batch is not None and axis > self.batch)


@dataclass(frozen=True)
class Pointwise:
    """A function of one written activation, element by element; what it is, is found by computing it."""

    source: View
    function: Callable[[Array], Array]

    @property
    def shape(self) -> Shape:
        return self.source.shape


@dataclass(frozen=True)
class Unknown:
    """What cannot be lowered, and all that depends on it."""

    causes: tuple[str, ...]


Value = Any
"""Array (a constant), View, Pointwise or Unknown."""


class _Refused(Exception):
    """A node that has no canonical form; the text says why."""


def unit_axis(shape: Shape) -> int | None:
    """The axis to drop as the batch: the first of length 1."""
    return shape.index(1) if 1 in shape else None


# ------------------------------------------------------------------------------------------- walker


@dataclass
class _Walker:
    model: onnx.ModelProto
    builder: Builder = field(init=False)
    values: dict[str, Value] = field(default_factory=dict)
    names: set[str] = field(default_factory=lambda: {LOGITS})
    written: dict[tuple[str, float, int], str] = field(default_factory=dict)
    last_name: str = ""
    """Name proposed for what the node at hand writes."""

    def rewrite(self, metadata: dict[str, Any]) -> onnx.ModelProto:
        graph = self.model.graph
        self.values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.values[""] = None
        (source,) = (value for value in graph.input if value.name not in self.values)
        shape = tuple(d.dim_value for d in source.type.tensor_type.shape.dim)
        self.builder = Builder(input=self.unique(source.name))
        start = View(self.builder.input, shape, 0 if shape[0] == 1 else None)
        self.values[source.name] = start
        for node in graph.node:
            self.node(node)
        self.last_name = graph.output[0].name
        result = self.recognised(self.values[graph.output[0].name])
        if isinstance(result, Unknown):
            raise IntvitError(self.complaint(result))
        if not isinstance(result, View):
            raise IntvitError(f"{graph.output[0].name}: output must depend on the input, and is constant")
        output = self.settle(result)
        found = {"architecture": "onnx", **metadata}
        if len(shape) == 4:
            found["img_size"] = list(shape[2:])
        self.prune(output)
        return self.builder.model(start.per_image, output, result.per_image, found)

    def complaint(self, result: Unknown) -> str:
        more = len(result.causes) - MOST_CAUSES
        text = "; ".join(result.causes[:MOST_CAUSES]) + (f"; and {more} more" if more > 0 else "")
        known = [n.output[0] for n in self.model.graph.node if isinstance(self.values.get(n.output[0]), View)]
        used = {name for n in self.model.graph.node for name in n.input if self.blocked(n)}
        border = [name for name in known if name in used]
        hint = f" Cut before it with --until, for example --until {border[-1]}" if border else ""
        return f"{text}.{hint}"

    def blocked(self, node: onnx.NodeProto) -> bool:
        return isinstance(self.values.get(node.output[0]), Unknown)

    def node(self, node: onnx.NodeProto) -> None:
        """Evaluate `node`: constants fold, views go to the handler, and what fails is remembered with its reason."""
        if node.op_type == "Constant":
            self.values[node.output[0]] = _constant_value(node)
            return
        inputs = [self.values[name] for name in node.input]
        outputs: list[Value]
        unknown = [value for value in inputs if isinstance(value, Unknown)]
        try:
            self.last_name = node.output[0]
            if unknown:
                outputs = [Unknown(tuple(dict.fromkeys(cause for value in unknown for cause in value.causes)))]
            elif any(isinstance(value, (View, Pointwise)) for value in inputs):
                pointwise = _pointwise(self, node, inputs)
                if pointwise is not None:
                    self.values[node.output[0]] = pointwise
                    return
                inputs = [self.recognised(value) for value in inputs]
                handler = _HANDLERS.get(node.op_type)
                if handler is None:
                    raise _Refused("this operator has no integer form")
                result = handler(self, node, inputs, attributes(node))
                outputs = result if isinstance(result, list) else [result]
            else:
                outputs = _evaluate(node, [v for v in inputs if v is not None], self.model.opset_import)
        except _Refused as reason:
            outputs = [Unknown((f"{node.name or node.output[0]} ({node.op_type}): {reason}",))]
        except IntvitError:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            outputs = [Unknown((f"{node.name or node.output[0]} ({node.op_type}): {line}",))]
        for i, name in enumerate(node.output):
            self.values[name] = outputs[i] if i < len(outputs) else outputs[0]

    # -- names

    def site(self, name: str) -> str:
        """The name of an operator with weights: the module that it came from, without the operator's own name."""
        parts = _parts(name)
        short = ".".join(parts[:-1] if len(parts) > 1 and OPERATOR_NAME.fullmatch(parts[-1]) else parts)
        return self.unique(name if short in self.names else short)

    def unique(self, name: str) -> str:
        """`name` without slashes and what exporters append, and with a number if it is taken."""
        plain = ".".join(_parts(name))
        found, n = plain, 2
        while found in self.names:
            found, n = f"{plain}.{n}", n + 1
        self.names.add(found)
        return found

    # -- writing

    def settle(self, view: View) -> str:
        """The written tensor that holds the values of `view`, all of them: gain and affine included."""
        key = (view.name, view.gain, id(view.affine))
        if key in self.written:
            return self.written[key]
        if view.affine is not None:
            affine = view.affine if view.gain == 1 else view.affine.times(view.gain)
            name = self.site(view.name)
            if affine.op == "linear":
                self.builder.linear(name, affine.source, affine.scale, affine.offset)
            else:
                beta = np.zeros_like(affine.scale) if affine.offset is None else affine.offset
                self.builder.layernorm(name, affine.source, affine.scale, np.ascontiguousarray(beta), affine.eps)
        elif view.gain == 1:
            return view.name
        else:
            name = self.unique(f"{view.name}.scaled")
            self.builder.add("Mul", name, view.name, self.builder.constant(f"{name}.factor", np.float32(view.gain)))
        self.written[key] = name
        return name

    def placed(self, view: View) -> View:
        """`view` with its affine operator written; the gain still travels."""
        if view.affine is None:
            return view
        written = View(self.settle(replace(view, gain=1.0)), view.shape, view.batch, view.gain)
        return self.remade(written, view, lambda v: v)

    def recognised(self, value: Value) -> Value:
        """A function of one activation as the operator that computes it, if there is one."""
        if not isinstance(value, Pointwise):
            return value
        found = {name: f for name, f in _KNOWN.items() if np.allclose(value.function(GRID), f(GRID), rtol=0, atol=2e-6)}
        if not found:
            raise _Refused("the function of one activation before it must be GELU (erf or tanh), and is another")
        name = self.site(self.last_name)
        self.builder.add("Gelu", name, value.source.name, approximate=next(iter(found)))
        return View(name, value.source.shape, value.source.batch)

    def reshaped(self, view: View, shape: Shape, batch: int | str | None = "any") -> View:
        """`view` with other axes; written only if the per-image shape changes."""
        axis = unit_axis(shape) if batch == "any" else batch
        assert not isinstance(axis, str)
        after = replace(self.placed(view), shape=tuple(shape), batch=axis)
        if shape and shape[-1] == view.shape[-1]:
            after = self.remade(after, view, lambda v: self.reshaped(v, shape, axis))
        if after.per_image == view.per_image:
            return after
        name = self.unique(self.last_name)
        return replace(after, name=self.builder.reshape(name, after.name, *after.per_image))

    def remade(self, after: View, before: View, move: Callable[[View], View]) -> View:
        """`after`, the result of `move` on `before`, with the way to make it anew."""

        def remake(change: Callable[[Affine], Affine]) -> View:
            changed = before.changed(change)
            assert changed is not None
            return move(changed)

        known = before.affine is not None or before.remake is not None
        return replace(after, remake=remake if known else None)

    def with_batch(self, view: View, batch: int | None) -> View:
        if view.batch == batch:
            return self.placed(view)
        if batch is not None and view.shape[batch] != 1:
            raise _Refused(f"axes must agree on one for the batch, not {view.shape}")
        return self.reshaped(view, view.shape, batch)

    def clear_of(self, view: View, axes: Sequence[int]) -> View:
        """`view` such that none of `axes` is the dropped batch axis."""
        if view.batch not in axes:
            return self.placed(view)
        others = [i for i, n in enumerate(view.shape) if n == 1 and i not in axes]
        return self.reshaped(view, view.shape, others[0] if others else None)

    def prune(self, output: str) -> None:
        """Drop what the output does not need."""
        needed, kept = {output}, []
        for node in reversed(self.builder.nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        self.builder.nodes = kept[::-1]
        self.builder.initializers = {k: v for k, v in self.builder.initializers.items() if k in needed}


def _parts(name: str) -> list[str]:
    return [part for part in re.sub(r"_output_\d+$", "", name).replace("::", "/").split("/") if part]


def _constant_value(node: onnx.NodeProto) -> Array:
    values = attributes(node)
    if "value" in values:
        return numpy_helper.to_array(values["value"])
    ((_, value),) = values.items()
    kind = np.float32 if isinstance(np.asarray(value).reshape(-1)[0], np.floating) else np.int64
    return np.asarray(value, kind)


def _scalar(value: Value) -> float | None:
    """The one number that all of a constant is."""
    array = np.asarray(value, np.float64)
    return float(array.flat[0]) if array.size and np.all(array == array.flat[0]) else None


def _last_axis_vector(value: Array, shape: Shape) -> bool:
    return value.ndim <= len(shape) and value.size in (1, shape[-1]) and value.shape[-1:] in ((1,), shape[-1:], ())


# ------------------------------------------------------------------------- functions of one activation

GRID = np.concatenate([np.linspace(-12, 12, 4801), [-1e3, 1e3]])


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


_KNOWN: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Erf": _erf,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -700, 700))),
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
_NEVER_LINEAR = frozenset({"Erf", "Pow", "Sigmoid", "Tanh"})


def _pointwise(w: _Walker, node: onnx.NodeProto, inputs: list[Value]) -> Pointwise | None:
    """The node as a function of one activation, if it is one and more than a factor."""
    function = _FUNCTIONS.get(node.op_type)
    active = [value for value in inputs if isinstance(value, (View, Pointwise))]
    if function is None or not (node.op_type in _NEVER_LINEAR or len(active) == 2 or isinstance(active[0], Pointwise)):
        return None
    parts: list[Callable[[Array], Array]] = []
    sources = []
    for value in inputs:
        if isinstance(value, Pointwise):
            parts.append(value.function)
            sources.append(value.source)
        elif isinstance(value, View):
            placed = w.placed(value)
            parts.append(partial(np.multiply, placed.gain))
            sources.append(replace(placed, gain=1.0, remake=None))
        else:
            number = _scalar(value)
            if number is None:
                return None
            parts.append(partial(np.full_like, fill_value=number))
    same = len({(source.name, source.shape) for source in sources}) == 1
    if not same or (node.op_type in ("Add", "Sub") and all(isinstance(value, View) for value in active)):
        return None
    return Pointwise(sources[0], lambda x: function(*(part(x) for part in parts)))


# ----------------------------------------------------------------------------------------- handlers


def _same(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return inputs[0]


def _cast(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    if attrs["to"] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        raise _Refused("activations must stay floats")
    return inputs[0]


def _shape(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.array(inputs[0].shape[attrs.get("start", 0) : attrs.get("end")], np.int64)


def _size(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.array(int(np.prod(inputs[0].shape)), np.int64)


def _is_nan(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.broadcast_to(np.False_, inputs[0].shape)


def _where(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    condition, yes, no = inputs
    chosen = None if isinstance(condition, View) else _scalar(condition)
    if chosen is None or not isinstance(yes if chosen else no, View):
        raise _Refused("the condition must be the same everywhere")
    return yes if chosen else no


def _conv(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if isinstance(weight, View) or x.batch != 0 or weight.ndim != 4:
        raise _Refused("must be a two-dimensional convolution with constant weights")
    kernel, strides = list(weight.shape[2:]), list(attrs.get("strides", [1, 1]))
    padded = any(attrs.get("pads", [0])) or attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if strides != kernel or padded or attrs.get("group", 1) != 1 or any(d != 1 for d in attrs.get("dilations", [])):
        raise _Refused(f"must have stride = kernel, no padding, one group; not kernel {kernel}, strides {strides}")
    _, _, rows, cols = x.shape
    if rows % kernel[0] or cols % kernel[1]:
        raise _Refused(f"image size {(rows, cols)} must be a multiple of the patch size {tuple(kernel)}")
    name = w.site(node.output[0])
    names = [w.builder.constant(f"{name}.weight", weight)]
    if bias is not None:
        names.append(w.builder.constant(f"{name}.bias", bias))
    w.builder.add("Conv", name, w.settle(x), *names, kernel_shape=kernel, strides=kernel)
    return View(name, (1, len(weight), rows // kernel[0], cols // kernel[1]), 0)


def _linear(w: _Walker, node: onnx.NodeProto, x: View, weight: Array, bias: Array | None) -> View:
    """`x` times weight (O, I) plus bias, still open for constants after it."""
    x = w.clear_of(x, [len(x.shape) - 1])
    affine = Affine("linear", w.settle(x), np.asarray(weight, np.float32), bias)
    return View(node.output[0], (*x.shape[:-1], len(weight)), x.batch, affine=affine)


def _gemm(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if isinstance(weight, View) or isinstance(bias, View) or not isinstance(x, View) or attrs.get("transA", 0):
        raise _Refused("must multiply an activation by constant weights")
    weight = (weight if attrs.get("transB", 0) else weight.T) * np.float32(attrs.get("alpha", 1.0))
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), len(weight)) * np.float32(attrs.get("beta", 1.0))
    return _linear(w, node, x, weight, bias)


def _matmul(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs
    if isinstance(a, View) and isinstance(b, View):
        return _product(w, a, b, node.output[0])
    if not isinstance(a, View):
        raise _Refused("the constant must stand on the right")
    if b.ndim > 2 and b.size == b.shape[-1] * b.shape[-2]:
        b = b.reshape(b.shape[-2:])
    if b.ndim != 2:
        raise _Refused(f"weights must have two axes, not shape {b.shape}")
    return _linear(w, node, a, b.T, None)


def _product(w: _Walker, a: View, b: View, label: str) -> View:
    """A product of activations, its factor after it: the attention scale when it is one over the root of the width."""
    n = len(a.shape)
    if n != len(b.shape) or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise _Refused(f"shapes must agree, not {a.shape} and {b.shape}")
    a = w.clear_of(a, [n - 2, n - 1])
    b = w.with_batch(w.clear_of(b, [n - 2, n - 1]), a.batch)
    gain, root = a.gain * b.gain, a.shape[-1] ** -0.5
    gain = root if abs(gain / root - 1) < 1e-6 else gain
    name = w.builder.add("MatMul", w.unique(label), a.name, b.name)
    return View(name, (*a.shape[:-1], b.shape[-1]), a.batch, gain)


def _add(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs if isinstance(inputs[0], View) else inputs[::-1]
    if not isinstance(b, View):
        return _plus_constant(w, node, a, b)
    if a.shape != b.shape:
        raise _Refused(f"terms must have one shape, not {a.shape} and {b.shape}")
    if a.gain == b.gain != 1:  # an average of two: the factor stays outside
        first, second = w.placed(a), w.with_batch(w.placed(b), a.batch)
        return View(w.builder.add("Add", w.unique(node.output[0]), first.name, second.name), a.shape, a.batch, a.gain)
    first, second = w.settle(a), w.settle(w.with_batch(b, a.batch) if b.batch != a.batch else b)
    return View(w.builder.add("Add", w.unique(node.output[0]), first, second), a.shape, a.batch)


def _plus_constant(w: _Walker, node: onnx.NodeProto, x: View, value: Array) -> View:
    if not np.any(value) and np.broadcast_shapes(value.shape, x.shape) == x.shape:
        return x
    if x.gain == 1 and _last_axis_vector(value, x.shape):
        changed = x.changed(lambda affine: affine.plus(value))
        if changed is not None:
            return changed if changed.affine is None else replace(changed, name=node.output[0])
    if np.broadcast_shapes(value.shape, x.shape) != x.shape:
        raise _Refused(f"a constant of shape {value.shape} must not enlarge {x.shape}")
    source = w.settle(x)
    aligned = value.reshape((1,) * (len(x.shape) - value.ndim) + value.shape).astype(np.float32)
    if x.batch is not None:
        aligned = np.take(aligned, 0, axis=x.batch)
    name = w.unique(node.output[0])
    w.builder.add("Add", name, source, w.builder.constant(f"{name}.value", aligned[None]))
    return View(name, x.shape, x.batch)


def _sub(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs
    if isinstance(b, View):
        raise _Refused("must subtract a constant")
    return _plus_constant(w, node, a, -b)


def _times(w: _Walker, node: onnx.NodeProto, x: View, factor: Array) -> View:
    if np.broadcast_shapes(factor.shape, x.shape) != x.shape:
        raise _Refused(f"a constant of shape {factor.shape} must not enlarge {x.shape}")
    scalar = _scalar(factor)
    if scalar is not None and scalar > 0:
        return replace(x, gain=x.gain * scalar)
    if _last_axis_vector(factor, x.shape):
        changed = x.changed(lambda affine: affine.times(factor))
        if changed is not None:
            return changed if changed.affine is None else replace(changed, name=node.output[0])
    raise _Refused("a constant factor must be one positive number, or one per channel after a linear or LayerNorm")


def _mul(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs if isinstance(inputs[0], View) else inputs[::-1]
    if isinstance(b, View):
        raise _Refused("two activations must not be multiplied element by element")
    return _times(w, node, a, b)


def _div(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    if isinstance(inputs[1], View):
        raise _Refused("must divide by a constant")
    return _times(w, node, inputs[0], 1 / inputs[1].astype(np.float64))


def _softmax(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    (x,) = inputs
    axis = attrs.get("axis", -1) % len(x.shape)
    if axis != len(x.shape) - 1:
        raise _Refused(f"axis must be the last, not {axis}")
    x = w.clear_of(x, [axis])
    return View(w.builder.add("Softmax", w.unique(node.output[0]), w.settle(x), axis=-1), x.shape, x.batch)


def _gelu(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    if len(inputs) > 1 and inputs[1] is not None:
        x = _plus_constant(w, node, x, inputs[1])
    tanh = node.op_type == "FastGelu" or attrs.get("approximate", b"none") == b"tanh"
    name = w.site(node.output[0])
    w.builder.add("Gelu", name, w.settle(x), approximate="tanh" if tanh else "none")
    return View(name, x.shape, x.batch)


def _layernorm(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, gamma, beta = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if attrs.get("axis", -1) % len(x.shape) != len(x.shape) - 1:
        raise _Refused(f"axis must be the last, not {attrs['axis']}")
    if isinstance(gamma, View) or isinstance(beta, View):
        raise _Refused("gamma and beta must be constants")
    x = w.clear_of(x, [len(x.shape) - 1])
    gamma = np.broadcast_to(gamma.reshape(-1), x.shape[-1:]).astype(np.float32)
    affine = Affine(
        "layernorm", w.settle(x), gamma, None if beta is None else beta.reshape(-1), attrs.get("epsilon", 1e-5)
    )
    return View(node.output[0], x.shape, x.batch, affine=affine)


def _reshape(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, target = inputs[0], [int(v) for v in inputs[1]]
    if not attrs.get("allowzero", 0):
        target = [x.shape[i] if v == 0 else v for i, v in enumerate(target)]
    total = int(np.prod(x.shape))
    if -1 in target:
        target[target.index(-1)] = total // max(-int(np.prod(target)), 1)
    if int(np.prod(target)) != total:
        raise _Refused(f"{x.shape} cannot become {target}")
    return w.reshaped(x, tuple(target))


def _flatten(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    axis, shape = attrs.get("axis", 1), inputs[0].shape
    return w.reshaped(inputs[0], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


def _axes(inputs: list[Value], attrs: dict[str, Any], ndim: int) -> list[int] | None:
    """Axes from the second input or the attribute, counted from the front."""
    given = attrs.get("axes") if len(inputs) < 2 or inputs[1] is None else inputs[1].tolist()
    return None if given is None else [int(axis) % ndim for axis in given]


def _squeeze(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    axes = _axes(inputs, attrs, len(x.shape))
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else axes
    return w.reshaped(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def _unsqueeze(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    given = attrs.get("axes") if len(inputs) < 2 else inputs[1].tolist()
    ndim = len(x.shape) + len(given)
    new, rest = {int(axis) % ndim for axis in given}, iter(x.shape)
    return w.reshaped(x, tuple(1 if i in new else next(rest) for i in range(ndim)))


def _transpose(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = w.placed(inputs[0])
    perm = list(attrs.get("perm", range(len(x.shape))[::-1]))
    after = replace(x, shape=tuple(x.shape[i] for i in perm), batch=None if x.batch is None else perm.index(x.batch))
    if perm[-1] == len(perm) - 1:
        before = inputs[0]
        after = w.remade(after, before, lambda v: _transpose(w, node, [v], attrs))
    inner = [0, *(x.inner(i) for i in perm if i != x.batch)]
    if inner == sorted(inner):
        return after
    return replace(after, name=w.builder.transpose(w.unique(node.output[0]), x.name, *inner))


def _gather(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, index = inputs
    if not isinstance(x, View) or isinstance(index, View):
        raise _Refused("indices must be constants, and what they pick from an activation")
    axis = attrs.get("axis", 0) % len(x.shape)
    picks = [int(i) % x.shape[axis] for i in index.reshape(-1)]
    if index.ndim == 0:
        x = w.clear_of(x, [axis])
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        name = w.builder.take(w.unique(node.output[0]), x.name, x.inner(axis), picks[0])
        batch = x.batch if x.batch is None or x.batch < axis else x.batch - 1
        return View(name, shape, batch, x.gain)
    if index.ndim != 1:
        raise _Refused(f"indices must have at most one axis, not {index.ndim}")
    return _picked(w, node, x, axis, picks)


def _picked(w: _Walker, node: onnx.NodeProto, x: View, axis: int, picks: list[int]) -> View:
    """Elements of an axis in the given order: slices, joined."""
    runs: list[list[int]] = []
    for pick in picks:
        step = 1 if not runs or len(runs[-1]) < 2 else runs[-1][1] - runs[-1][0]
        if runs and pick - runs[-1][-1] > 0 and (len(runs[-1]) < 2 or pick - runs[-1][-1] == step):
            runs[-1].append(pick)
        else:
            runs.append([pick])
    if len(runs) > 64:
        raise _Refused(f"{len(picks)} indices must form a few regular runs, not {len(runs)}")
    parts = [_cut(w, node, x, axis, r[0], r[-1] + 1, r[1] - r[0] if len(r) > 1 else 1) for r in runs]
    return parts[0] if len(parts) == 1 else _joined(w, node, parts, axis)


def _cut(w: _Walker, node: onnx.NodeProto, x: View, axis: int, start: int, stop: int, step: int) -> View:
    count = len(range(start, stop, step))
    if count == x.shape[axis] and step == 1:
        return x
    x = w.clear_of(x, [axis])
    name = w.builder.slice(w.unique(node.output[0]), x.name, x.inner(axis), start, stop, step)
    return View(name, (*x.shape[:axis], count, *x.shape[axis + 1 :]), x.batch, x.gain)


def _slice(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    given = [None if v is None else [int(i) for i in v] for v in inputs[1:]]
    starts, ends = (given[0], given[1]) if len(given) > 1 else (attrs["starts"], attrs["ends"])
    axes = given[2] if len(given) > 2 and given[2] is not None else attrs.get("axes", list(range(len(starts))))
    steps = given[3] if len(given) > 3 and given[3] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(x.shape)
        begin, stop, stride = slice(start, end, step).indices(x.shape[axis])
        if stride < 0:
            raise _Refused(f"step must be positive, not {stride}")
        x = _cut(w, node, x, axis, begin, stop, stride)
    return x


def _split(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, axis = inputs[0], attrs.get("axis", 0) % len(inputs[0].shape)
    length, parts = x.shape[axis], len(node.output)
    each = -(-length // parts)
    sizes = attrs.get("split") if len(inputs) < 2 or inputs[1] is None else [int(v) for v in inputs[1]]
    sizes = sizes or [min(each, length - i * each) for i in range(parts)]
    at, found = 0, []
    for size in sizes:
        found.append(_cut(w, node, x, axis, at, at + size, 1))
        at += size
    return found


def _concat(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    first = next(value for value in inputs if isinstance(value, View))
    return _joined(w, node, inputs, attrs["axis"] % len(first.shape))


def _joined(w: _Walker, node: onnx.NodeProto, parts: Sequence[Value], axis: int) -> View:
    views = [w.clear_of(part, [axis]) for part in parts if isinstance(part, View)]
    batch, gain = views[0].batch, views[0].gain
    same = all(view.gain == gain for view in views) and len(views) == len(parts)
    name = w.unique(node.output[0])
    written, length = [], 0
    for i, part in enumerate(parts):
        length += part.shape[axis]
        if isinstance(part, View):
            view = w.with_batch(w.clear_of(part, [axis]), batch)
            written.append(view.name if same else w.settle(view))
        elif batch is None:
            raise _Refused("a constant must be joined along an axis other than the batch")
        else:
            constant = np.take(part, 0, axis=batch)[None].astype(np.float32)
            written.append(w.builder.over_batch(f"{name}.part{i}", constant))
    shape = (*views[0].shape[:axis], length, *views[0].shape[axis + 1 :])
    after = View(name, shape, batch, gain if same else 1.0)
    w.builder.add("Concat", name, *written, axis=after.inner(axis))
    return after


def _expand(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, target = inputs
    if not isinstance(x, View) or np.broadcast_shapes(x.shape, tuple(int(v) for v in target)) != x.shape:
        raise _Refused("an activation must not be repeated")
    return x


def _pad(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    pads = attrs.get("pads") if len(inputs) < 2 else inputs[1]
    if np.any(pads):
        raise _Refused("an activation must not be padded; choose an image size that needs none")
    return inputs[0]


def _mean(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    n = len(x.shape)
    axes = _axes(inputs, attrs, n)
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, n))
    axes = sorted(range(n) if axes is None else axes)
    kept = bool(attrs.get("keepdims", 1))
    shape = tuple(1 if i in axes else v for i, v in enumerate(x.shape))
    final = shape if kept else tuple(v for i, v in enumerate(shape) if i not in axes)
    real = [i for i in axes if x.shape[i] > 1]
    if not real:
        return w.reshaped(x, final)
    if real != list(range(real[0], real[-1] + 1)):
        raise _Refused(f"axes must be neighbours, not {axes}")
    x = w.clear_of(x, real)
    merged = (*x.shape[: real[0]], int(np.prod([x.shape[i] for i in real])), *x.shape[real[-1] + 1 :])
    batch = x.batch if x.batch is None or x.batch < real[0] else x.batch - len(real) + 1
    view = w.reshaped(View(w.settle(x), x.shape, x.batch), merged, batch)
    name = w.unique(node.output[0])
    axis = w.builder.constant(f"{name}.axes", np.array([view.inner(real[0])], np.int64))
    w.builder.add("ReduceMean", name, view.name, axis, keepdims=1)
    squeezed = View(name, (*merged[: real[0]], 1, *merged[real[0] + 1 :]), batch)
    return w.reshaped(squeezed, final)


def _average_pool(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    if tuple(attrs["kernel_shape"]) != x.shape[2:] or any(attrs.get("pads", [0])):
        raise _Refused("must average over the whole image")
    return _mean(w, node, [x, np.arange(2, len(x.shape))], {})


def _attention(w: _Walker, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    """The ONNX operator of opset 23: products, scale, mask and softmax written out."""
    if any(value is not None for value in inputs[4:]) or attrs.get("is_causal", 0) or attrs.get("softcap", 0.0):
        raise _Refused("must have no cache, no causal mask and no soft cap")
    q, k, v = inputs[:3]
    flat = len(q.shape) == 3
    if flat:
        q = _heads_first(w, q, attrs["q_num_heads"])
        k, v = (_heads_first(w, x, attrs["kv_num_heads"]) for x in (k, v))
    swapped = onnx.helper.make_node("Transpose", [], [f"{node.output[0]}.k_transposed"], perm=[0, 1, 3, 2])
    k = _transpose(w, swapped, [k], attributes(swapped))
    scores = _product(w, q, k, f"{node.output[0]}.scores")
    root = q.shape[-1] ** -0.5
    scale = attrs.get("scale", root)
    scores = replace(scores, gain=scores.gain * (root if abs(scale / root - 1) < 1e-6 else scale))
    if len(inputs) > 3 and inputs[3] is not None:
        mask = inputs[3]
        if isinstance(mask, View):
            raise _Refused("the mask must be a constant")
        mask = np.where(mask, 0.0, -1e4) if mask.dtype == bool else mask
        label = onnx.NodeProto(output=[f"{node.output[0]}.masked"])
        scores = _plus_constant(w, label, scores, np.maximum(mask, -1e4).astype(np.float32))
    probabilities = w.builder.add("Softmax", w.unique(f"{node.output[0]}.softmax"), w.settle(scores), axis=-1)
    result = _product(w, View(probabilities, scores.shape, scores.batch), v, node.output[0])
    if not flat:
        return result
    back = onnx.helper.make_node("Transpose", [], [f"{node.output[0]}.heads_last"], perm=[0, 2, 1, 3])
    joined = _transpose(w, back, [result], attributes(back))
    return w.reshaped(joined, (*joined.shape[:2], joined.shape[2] * joined.shape[3]))


def _heads_first(w: _Walker, x: View, heads: int) -> View:
    batch, tokens, width = x.shape
    split = w.reshaped(x, (batch, tokens, heads, width // heads), 0)
    node = onnx.helper.make_node("Transpose", [], [f"{split.name}.heads"], perm=[0, 2, 1, 3])
    return _transpose(w, node, [split], attributes(node))  # type: ignore[no-any-return]


_HANDLERS: dict[str, Callable[[_Walker, onnx.NodeProto, list[Value], dict[str, Any]], Value]] = {
    "Add": _add,
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BiasGelu": _gelu,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _same,
    "Expand": _expand,
    "FastGelu": _gelu,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _same,
    "IsNaN": _is_nan,
    "LayerNormalization": _layernorm,
    "MatMul": _matmul,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
