"""What each ONNX operator of a foreign graph becomes: layout, arithmetic and constants here, the others by their kinds.

And functions of one activation, which chains of arithmetic compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import onnx

from intvit.floats.importers.builder import Builder
from intvit.floats.importers.onnx import attributes
from intvit.floats.importers.views import Affine, Pointwise, Refused, Value, View, Writer, last_axis_vector
from intvit.graph import operators as kinds
from intvit.graph.ir import Array


def _scalar(value: Value) -> float | None:
    """The one number that all of a constant is."""
    array = np.asarray(value, np.float64)
    return float(array.flat[0]) if array.size and np.all(array == array.flat[0]) else None


# ------------------------------------------------------------------------- functions of one activation

TOLERANCE = 2e-4
"""Constants of half precision miss GELU by 1e-4; its two forms differ by 4.7e-4."""
MOST_STEPS = 200
"""A GELU by arithmetic takes about ten operators."""
GRID = np.concatenate([np.linspace(-12, 12, 4801), [-1e3, 1e3]])


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Mul": np.multiply,
    "Pow": np.power,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -700, 700))),
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
_NEVER_LINEAR = frozenset({"Erf", "Pow", "Sigmoid", "Tanh"})


def _activations() -> str:
    names = [name for name, kind in kinds.operators().items() if kind.pointwise]
    return f"{', '.join(names[:-1])} or {names[-1]} (a GELU by erf or tanh)"


def pointwise(w: Writer, node: onnx.NodeProto, inputs: list[Value]) -> Pointwise | None:
    """The node as a function of one activation, if it is one and more than a factor."""
    function = _FUNCTIONS.get(node.op_type)
    active = [value for value in inputs if isinstance(value, (View, Pointwise))]
    if function is None or not (node.op_type in _NEVER_LINEAR or len(active) == 2 or isinstance(active[0], Pointwise)):
        return None
    parts: list[Callable[[Array], Array]] = []
    sources = []
    n_steps = 1 + sum(value.n_steps for value in active if isinstance(value, Pointwise))
    if n_steps > MOST_STEPS:
        raise Refused(f"the function of one activation before it must be {_activations()}, and is far longer")
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
    return Pointwise(sources[0], lambda x: function(*(part(x) for part in parts)), n_steps)


def recognised(w: Writer, value: Value) -> Value:
    """A function of one activation as the operator that computes it, if there is one."""
    if not isinstance(value, Pointwise):
        return value
    if value.written is None:
        with np.errstate(all="ignore"):  # a function that is not defined there is another one
            y = value.function(GRID)
            known = [(op, f) for kind in kinds.operators().values() for op in kind.reads for f in kind.pointwise]
            errors = [float(np.abs(y - f.function(GRID)).max()) for _, f in known]
        found = min(range(len(known)), key=lambda i: math.inf if math.isnan(errors[i]) else errors[i])
        if not errors[found] <= TOLERANCE:
            raise Refused(f"the function of one activation before it must be {_activations()}, and is another")
        op, form = known[found]
        value.written = w.activation(op, value.source, w.site(w.last_name), **form.attributes)
    return value.written


# ----------------------------------------------------------------------------------------- handlers


def _same(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return inputs[0]


def _cast(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    if attrs["to"] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        raise Refused("activations must stay floats")
    return inputs[0]


def _shape(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.array(inputs[0].shape[attrs.get("start", 0) : attrs.get("end")], np.int64)


def _size(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.array(int(np.prod(inputs[0].shape)), np.int64)


def _is_nan(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return np.broadcast_to(np.False_, inputs[0].shape)


def _where(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    condition, yes, no = inputs
    chosen = None if isinstance(condition, View) else _scalar(condition)
    if chosen is None or not isinstance(yes if chosen else no, View):
        raise Refused("the condition must be the same everywhere")
    return yes if chosen else no


def _conv(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if isinstance(weight, View) or x.batch != 0 or weight.ndim != 4:
        raise Refused("must be a two-dimensional convolution with constant weights")
    kernel, strides = list(weight.shape[2:]), list(attrs.get("strides", [1, 1]))
    padded = any(attrs.get("pads", [0])) or attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if strides != kernel or padded or attrs.get("group", 1) != 1 or any(d != 1 for d in attrs.get("dilations", [])):
        raise Refused(f"must have stride = kernel, no padding, one group; not kernel {kernel}, strides {strides}")
    _, _, rows, cols = x.shape
    if rows % kernel[0] or cols % kernel[1]:
        raise Refused(f"image size {(rows, cols)} must be a multiple of the patch size {tuple(kernel)}")
    name = w.site(node.output[0])
    names = [w.builder.constant(f"{name}.weight", weight)]
    if bias is not None:
        names.append(w.builder.constant(f"{name}.bias", bias))
    w.builder.add("Conv", name, w.settle(x), *names, kernel_shape=kernel, strides=kernel)
    return View(name, (1, len(weight), rows // kernel[0], cols // kernel[1]), 0)


def write_linear(builder: Builder, name: str, affine: Affine) -> None:
    builder.linear(name, affine.source, affine.scale, affine.offset)


def _linear(w: Writer, node: onnx.NodeProto, x: View, weight: Array, bias: Array | None) -> View:
    """`x` times weight (O, I) plus bias, still open for constants after it."""
    x = w.clear_of(x, [len(x.shape) - 1])
    affine = Affine(write_linear, w.settle(x), np.asarray(weight, np.float32), bias)
    return View(node.output[0], (*x.shape[:-1], len(weight)), x.batch, affine=affine)


def _gemm(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if isinstance(weight, View) or isinstance(bias, View) or not isinstance(x, View) or attrs.get("transA", 0):
        raise Refused("must multiply an activation by constant weights")
    weight = (weight if attrs.get("transB", 0) else weight.T) * np.float32(attrs.get("alpha", 1.0))
    if bias is not None:
        if not last_axis_vector(bias, (1, len(weight))):
            raise Refused(f"the bias must be one per output, not of shape {bias.shape}")
        bias = np.broadcast_to(bias.reshape(-1), len(weight)) * np.float32(attrs.get("beta", 1.0))
    return _linear(w, node, x, weight, bias)


def _matmul(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs
    if isinstance(a, View) and isinstance(b, View):
        return _product(w, a, b, node.output[0])
    if not isinstance(a, View):
        raise Refused("the constant must stand on the right")
    if b.ndim > 2 and b.size == b.shape[-1] * b.shape[-2]:
        b = b.reshape(b.shape[-2:])
    if b.ndim != 2:
        raise Refused(f"weights must have two axes, not shape {b.shape}")
    return _linear(w, node, a, b.T, None)


def _product(w: Writer, a: View, b: View, label: str) -> View:
    """A product of activations, its factor after it: the attention scale when it is one over the root of the width."""
    n = len(a.shape)
    if n != len(b.shape) or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise Refused(f"shapes must agree, not {a.shape} and {b.shape}")
    a = w.clear_of(a, [n - 2, n - 1])
    b = w.with_batch(w.clear_of(b, [n - 2, n - 1]), a.batch)
    gain, root = a.gain * b.gain, a.shape[-1] ** -0.5
    gain = root if abs(gain / root - 1) < 1e-6 else gain
    name = w.builder.add("MatMul", w.unique(label), a.name, b.name)
    return View(name, (*a.shape[:-1], b.shape[-1]), a.batch, gain)


def _add(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs if isinstance(inputs[0], View) else inputs[::-1]
    if not isinstance(b, View):
        return w.plus_constant(a, b, node.output[0])
    if a.shape != b.shape:
        raise Refused(f"terms must have one shape, not {a.shape} and {b.shape}")
    if a.gain == b.gain != 1:  # an average of two: the factor stays outside
        first, second = w.placed(a), w.with_batch(w.placed(b), a.batch)
        return View(w.builder.add("Add", w.unique(node.output[0]), first.name, second.name), a.shape, a.batch, a.gain)
    terms = [w.settle(a), w.settle(w.with_batch(b, a.batch) if b.batch != a.batch else b)]
    return View(w.builder.add("Add", w.unique(node.output[0]), *terms), a.shape, a.batch)


def _sub(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs
    if isinstance(b, View):
        raise Refused("must subtract a constant")
    return w.plus_constant(a, -b, node.output[0])


def _times(w: Writer, node: onnx.NodeProto, x: View, factor: Array) -> View:
    if np.broadcast_shapes(factor.shape, x.shape) != x.shape:
        raise Refused(f"a constant of shape {factor.shape} must not enlarge {x.shape}")
    scalar = _scalar(factor)
    if scalar is not None and scalar > 0:
        return replace(x, gain=x.gain * scalar)
    if last_axis_vector(factor, x.shape):
        changed = x.changed(lambda affine: affine.times(factor))
        if changed is not None:
            return changed if changed.affine is None else replace(changed, name=node.output[0])
    raise Refused("a constant factor must be one positive number, or one per channel after a linear or LayerNorm")


def _mul(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    a, b = inputs if isinstance(inputs[0], View) else inputs[::-1]
    if isinstance(b, View):
        raise Refused("two activations must not be multiplied element by element")
    return _times(w, node, a, b)


def _div(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    if isinstance(inputs[1], View):
        raise Refused("must divide by a constant")
    return _times(w, node, inputs[0], 1 / inputs[1].astype(np.float64))


def _reshape(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, target = inputs[0], [int(v) for v in inputs[1]]
    if not attrs.get("allowzero", 0):
        target = [x.shape[i] if v == 0 else v for i, v in enumerate(target)]
    total = int(np.prod(x.shape))
    if -1 in target:
        target[target.index(-1)] = total // max(-int(np.prod(target)), 1)
    if int(np.prod(target)) != total:
        raise Refused(f"{x.shape} cannot become {target}")
    return w.reshaped(x, tuple(target))


def _flatten(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    axis, shape = attrs.get("axis", 1), inputs[0].shape
    return w.reshaped(inputs[0], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


def _axes(inputs: list[Value], attrs: dict[str, Any], ndim: int) -> list[int] | None:
    """Axes from the second input or the attribute, counted from the front."""
    given = attrs.get("axes") if len(inputs) < 2 or inputs[1] is None else inputs[1].tolist()
    return None if given is None else [int(axis) % ndim for axis in given]


def _squeeze(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    axes = _axes(inputs, attrs, len(x.shape))
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else axes
    return w.reshaped(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def _unsqueeze(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    given: list[int] = attrs["axes"] if len(inputs) < 2 else inputs[1].tolist()
    ndim = len(x.shape) + len(given)
    new, rest = {int(axis) % ndim for axis in given}, iter(x.shape)
    return w.reshaped(x, tuple(1 if i in new else next(rest) for i in range(ndim)))


def _transpose(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
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


def _gather(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, index = inputs
    if not isinstance(x, View) or isinstance(index, View):
        raise Refused("indices must be constants, and what they pick from an activation")
    axis = attrs.get("axis", 0) % len(x.shape)
    if not index.size or index.min() < -x.shape[axis] or index.max() >= x.shape[axis]:
        raise Refused(f"indices must be of {x.shape[axis]}")
    picks = [int(i) % x.shape[axis] for i in index.reshape(-1)]
    if index.ndim == 0:
        x = w.clear_of(x, [axis])
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        name = w.builder.take(w.unique(node.output[0]), x.name, x.inner(axis), picks[0])
        batch = x.batch if x.batch is None or x.batch < axis else x.batch - 1
        return View(name, shape, batch, x.gain)
    if index.ndim != 1:
        raise Refused(f"indices must have at most one axis, not {index.ndim}")
    return _picked(w, node, x, axis, picks)


def _picked(w: Writer, node: onnx.NodeProto, x: View, axis: int, picks: list[int]) -> View:
    """Elements of an axis in the given order: slices, joined."""
    runs: list[list[int]] = []
    for pick in picks:
        step = 1 if not runs or len(runs[-1]) < 2 else runs[-1][1] - runs[-1][0]
        if runs and pick - runs[-1][-1] > 0 and (len(runs[-1]) < 2 or pick - runs[-1][-1] == step):
            runs[-1].append(pick)
        else:
            runs.append([pick])
    if len(runs) > 64:
        raise Refused(f"{len(picks)} indices must form a few regular runs, not {len(runs)}")
    parts = [_cut(w, node, x, axis, r[0], r[-1] + 1, r[1] - r[0] if len(r) > 1 else 1) for r in runs]
    return parts[0] if len(parts) == 1 else _joined(w, node, parts, axis)


def _cut(w: Writer, node: onnx.NodeProto, x: View, axis: int, start: int, stop: int, step: int) -> View:
    count = len(range(start, stop, step))
    if not count:
        raise Refused("must leave something of an activation")
    if count == x.shape[axis] and step == 1:
        return x
    x = w.clear_of(x, [axis])
    name = w.builder.slice(w.unique(node.output[0]), x.name, x.inner(axis), start, stop, step)
    return View(name, (*x.shape[:axis], count, *x.shape[axis + 1 :]), x.batch, x.gain)


def _slice(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    given = dict(zip(("starts", "ends", "axes", "steps"), inputs[1:], strict=False))
    found: dict[str, list[int]] = {**attrs, **{key: [int(i) for i in v] for key, v in given.items() if v is not None}}
    starts, ends = found["starts"], found["ends"]
    axes = found.get("axes", list(range(len(starts))))
    steps = found.get("steps", [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(x.shape)
        begin, stop, stride = slice(start, end, step).indices(x.shape[axis])
        if stride < 0:
            raise Refused(f"step must be positive, not {stride}")
        x = _cut(w, node, x, axis, begin, stop, stride)
    return x


def _split(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
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


def _concat(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    first = next(value for value in inputs if isinstance(value, View))
    return _joined(w, node, inputs, attrs["axis"] % len(first.shape))


def _joined(w: Writer, node: onnx.NodeProto, parts: Sequence[Value], axis: int) -> View:
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
            raise Refused("a constant must be joined along an axis other than the batch")
        else:
            constant = np.take(part, 0, axis=batch)[None].astype(np.float32)
            written.append(w.builder.over_batch(f"{name}.part{i}", constant))
    shape = (*views[0].shape[:axis], length, *views[0].shape[axis + 1 :])
    after = View(name, shape, batch, gain if same else 1.0)
    w.builder.add("Concat", name, *written, axis=after.inner(axis))
    return after


def _expand(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x, target = inputs
    if not isinstance(x, View) or np.broadcast_shapes(x.shape, tuple(int(v) for v in target)) != x.shape:
        raise Refused("an activation must not be repeated")
    return x


def _pad(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    pads = attrs.get("pads") if len(inputs) < 2 else inputs[1]
    if np.any(pads):
        raise Refused("an activation must not be padded; choose an image size that needs none")
    return inputs[0]


def _mean(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
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
        raise Refused(f"axes must be neighbours, not {axes}")
    x = w.clear_of(x, real)
    merged = (*x.shape[: real[0]], int(np.prod([x.shape[i] for i in real])), *x.shape[real[-1] + 1 :])
    batch = x.batch if x.batch is None or x.batch < real[0] else x.batch - len(real) + 1
    view = w.reshaped(View(w.settle(x), x.shape, x.batch), merged, batch)
    name = w.unique(node.output[0])
    axis = w.builder.constant(f"{name}.axes", np.array([view.inner(real[0])], np.int64))
    w.builder.add("ReduceMean", name, view.name, axis, keepdims=1)
    squeezed = View(name, (*merged[: real[0]], 1, *merged[real[0] + 1 :]), batch)
    return w.reshaped(squeezed, final)


def _average_pool(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    padded = any(attrs.get("pads", [0])) or attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    dilated = any(d != 1 for d in attrs.get("dilations", []))
    if tuple(attrs["kernel_shape"]) != x.shape[2:] or padded or dilated:
        raise Refused("must average over the whole image")
    return _mean(w, node, [x, np.arange(2, len(x.shape))], {})


def _attention(w: Writer, node: onnx.NodeProto, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    """The ONNX operator of opset 23: products, scale, mask and softmax written out."""
    if any(value is not None for value in inputs[4:]) or attrs.get("is_causal", 0) or attrs.get("softcap", 0.0):
        raise Refused("must have no cache, no causal mask and no soft cap")
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
            raise Refused("the mask must be a constant")
        mask = np.where(mask, 0.0, -1e4) if mask.dtype == bool else mask
        scores = w.plus_constant(scores, np.maximum(mask, -1e4).astype(np.float32), f"{node.output[0]}.masked")
    probabilities = w.builder.add("Softmax", w.unique(f"{node.output[0]}.softmax"), w.settle(scores), axis=-1)
    result = _product(w, View(probabilities, scores.shape, scores.batch), v, node.output[0])
    if not flat:
        return result
    back = onnx.helper.make_node("Transpose", [], [f"{node.output[0]}.heads_last"], perm=[0, 2, 1, 3])
    joined = _transpose(w, back, [result], attributes(back))
    return w.reshaped(joined, (*joined.shape[:2], joined.shape[2] * joined.shape[3]))


def _heads_first(w: Writer, x: View, heads: int) -> View:
    batch, tokens, width = x.shape
    split = w.reshaped(x, (batch, tokens, heads, width // heads), 0)
    node = onnx.helper.make_node("Transpose", [], [f"{split.name}.heads"], perm=[0, 2, 1, 3])
    return _transpose(w, node, [split], attributes(node))  # type: ignore[no-any-return]


_HANDLERS: dict[str, Callable[[Writer, onnx.NodeProto, list[Value], dict[str, Any]], Value]] = {
    "Add": _add,
    "Attention": _attention,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _same,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _same,
    "IsNaN": _is_nan,
    "MatMul": _matmul,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}


@cache
def handlers() -> dict[str, Callable[[Writer, onnx.NodeProto, list[Value], dict[str, Any]], Value]]:
    """ONNX operator (`com.microsoft.Gelu`: of that domain) -> how it is rewritten: those above and those of kinds."""
    return _HANDLERS | {op: rewrite for kind in kinds.operators().values() for op, rewrite in kind.rewrites.items()}
