"""What an integer Graph must hold: run after every construction, and on every file that is read.

Names, shapes, types, and every constant in the range for which `lower` proves that kernel and spec agree. Bounds are
proven anew, from the actual integers: a tensor's declared bound must be at least the proven one, and its type hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, MOST_AXES, MOST_ELEMENTS, Array, Graph, Node, Tensor
from intvit.graph.parameters import method_params, node_method
from intvit.graph.ranges import linear_bound
from intvit.spec.matmul import LOG2_FRACTION_BITS
from intvit.spec.softmax import EXPONENT_LEAST, EXPONENT_MOST


def check(graph: Graph) -> None:
    """Raise IntvitError naming the first tensor or node that is not well formed."""
    if len(graph.inputs) != 1 or not set(graph.inputs) <= set(graph.tensors):
        raise IntvitError(f"graph: inputs must be one of its tensors, not {list(graph.inputs)!r:.80}")
    if graph.tensors[graph.inputs[0]].bound is not None:
        raise IntvitError(f"{graph.inputs[0]}: bound of the input must be left to its type")
    for tensor in graph.tensors.values():
        _check_tensor(tensor)
    seen, names = set(graph.inputs), set[str]()
    for node in graph.nodes:
        if node.name in names:
            raise IntvitError(f"{node.name}: name must be of one node only")
        names.add(node.name)
        for name in node.inputs:
            if name not in seen:
                raise IntvitError(f"{node.name}: input {name!r} must be computed before it is used")
        if node.output in seen:
            raise IntvitError(f"{node.name}: output {node.output!r} must not be computed twice")
        if node.output not in graph.tensors:
            raise IntvitError(f"{node.name}: output {node.output!r} must be a tensor of the graph")
        seen.add(node.output)
        _check_node(node, [graph.tensors[name] for name in node.inputs], graph.tensors[node.output])
    for name in (*graph.inputs, *graph.outputs, *graph.tensors):
        if name not in seen or name not in graph.tensors:
            raise IntvitError(f"graph: tensor {name!r} must be computed")
    if not graph.outputs:
        raise IntvitError("graph: outputs must be at least one")


def check_operator(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    """One operator by itself, as a golden case holds it: raise IntvitError if it is not well formed."""
    for tensor in (*inputs, output):
        _check_tensor(tensor)
    _check_node(node, list(inputs), output)


def _check_node(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    rule = _RULES.get("layout" if node.op in LAYOUT_OPS else node.op)
    if rule is None:
        raise IntvitError(f"{node.name}: must be an integer operator, not {node.op!r}")
    for key, array in node.arrays.items():
        if array.dtype.kind not in "iub" or array.size == 0:
            raise IntvitError(f"{node.name}: {key} must hold integers, not {array.dtype} {list(array.shape)}")
    for tensor in inputs:
        wanted = "log2" if node.op == "log2_matmul" and tensor is inputs[0] else "linear"
        if tensor.encoding != wanted and node.op not in LAYOUT_OPS:
            raise IntvitError(f"{node.name}: input {tensor.name} must be of encoding {wanted}, not {tensor.encoding}")
    rule(node, inputs, output)


# ------------------------------------------------------------------------------------------ parts


def _check_tensor(tensor: Tensor) -> None:
    name, dtype, scale = tensor.name, tensor.dtype, tensor.scale
    if dtype is None or scale is None:
        raise IntvitError(f"{name}: must have an integer type and a scale")
    if not dtype.signed:
        raise IntvitError(f"{name}: type must be signed, not {dtype}")
    if min(tensor.shape, default=1) < 1 or math.prod(tensor.shape) > MOST_ELEMENTS or len(tensor.shape) > MOST_AXES:
        raise IntvitError(f"{name}: shape must be of 1..{MOST_ELEMENTS} elements, not {tensor.shape}")
    if scale.ndim and scale.shape != tensor.shape[-1:]:
        raise IntvitError(f"{name}: scale must be one or {tensor.shape[-1:]}, not {scale.shape}")
    if not np.isfinite(scale).all() or not np.all(scale != 0):
        raise IntvitError(f"{name}: scale must be finite and not 0")
    if tensor.encoding not in ("linear", "log2"):
        raise IntvitError(f"{name}: encoding must be linear or log2, not {tensor.encoding!r}")
    if tensor.bound is not None and not 0 <= tensor.bound <= dtype.max:
        raise IntvitError(f"{name}: bound must lie in 0..{dtype.max} as {dtype} does, not {tensor.bound}")


def _count(node: Node, inputs: list[Tensor], *counts: int) -> None:
    if len(inputs) not in counts:
        raise IntvitError(f"{node.name}: {node.op} must have {' or '.join(map(str, counts))} inputs, not {len(inputs)}")


def _attrs(node: Node, **types: type) -> None:
    """The attributes must be just these, of just these types."""
    if set(node.attrs) != set(types):
        raise IntvitError(f"{node.name}: attributes must be {sorted(types)}, not {sorted(node.attrs)}")
    for key, kind in types.items():
        if type(node.attrs[key]) is not kind:
            raise IntvitError(f"{node.name}: {key} must be {kind.__name__}, not {node.attrs[key]!r:.60}")


def _arrays(node: Node, needed: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    if not needed <= set(node.arrays) <= needed | optional:
        raise IntvitError(f"{node.name}: arrays must be {sorted(needed | optional)}, not {sorted(node.arrays)}")


def _shape(node: Node, output: Tensor, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        raise IntvitError(f"{node.name}: output shape must be {expected}, not {output.shape}")


def _holds(node: Node, output: Tensor, proven: int | None) -> None:
    """The output's type and bound must hold what the operator was proven to give; None is any 64-bit value."""
    assert output.dtype is not None
    if proven is None:
        if output.dtype.bits != 64 or output.bound is not None:
            raise IntvitError(f"{node.name}: output must be s64 without a bound, as none is proven; not {output.dtype}")
    elif output.max_abs < proven or output.dtype.max < proven:
        raise IntvitError(f"{node.name}: output must hold +-{proven}, not {output.dtype} bound {output.bound}")


def _keeps(node: Node, source: Tensor, output: Tensor) -> None:
    """The output must hold every value of the input as it is."""
    assert source.dtype is not None
    assert output.dtype is not None
    if source.dtype.bits > output.dtype.bits or source.max_abs > output.max_abs:
        raise IntvitError(f"{node.name}: output must hold {source.name}, {source.dtype}, not {output.dtype}")


def _values(node: Node, key: str, low: int, high: int, shapes: tuple[tuple[int, ...], ...]) -> Array:
    array = node.arrays[key]
    if array.shape not in shapes:
        raise IntvitError(f"{node.name}: {key} must be of shape {' or '.join(map(str, shapes))}, not {array.shape}")
    if int(array.min()) < low or int(array.max()) > high:
        raise IntvitError(
            f"{node.name}: {key} must lie in {low}..{high}, not {int(array.min())}..{int(array.max())}"
        )  # fmt: skip
    return array


# ---------------------------------------------------------------------------------- one per operator

_MOVE_ATTRS: dict[str, dict[str, type]] = {
    "reshape": {"shape": list},
    "transpose": {"perm": list},
    "take": {"axis": int, "index": int},
    "slice": {"axis": int, "start": int, "stop": int, "step": int},
    "concat": {"axis": int, "order": list},
}


def _layout(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _attrs(node, **_MOVE_ATTRS[node.op])
    _arrays(node, {key for key in node.attrs.get("order", []) if isinstance(key, str)})
    order = node.attrs.get("order", [0])
    if sorted(item for item in order if not isinstance(item, str)) != list(range(len(inputs))) or (
        any(type(item) not in (int, str) for item in order) or len(set(order)) < len(order)
    ):
        raise IntvitError(f"{node.name}: {node.op} must take each of its {len(inputs)} inputs once")
    numbers = [v for value in node.attrs.values() for v in (value if isinstance(value, list) else [value])]
    if node.op != "concat" and any(type(v) is not int or abs(v) >= MOST_ELEMENTS for v in numbers):
        raise IntvitError(f"{node.name}: {node.op} must have integer attributes, not {dict(node.attrs)!r:.80}")
    rank, axis = len(inputs[0].shape), node.attrs.get("axis", 0)
    if not 0 <= axis < max(rank, 1) or min(node.attrs.get("perm", [0]), default=0) < 0:
        raise IntvitError(f"{node.name}: {node.op} must name axes in 0..{rank - 1}, not {dict(node.attrs)!r:.80}")
    if min(node.attrs.get("shape", [1]), default=1) < 1 or node.attrs.get("index", 0) < 0:
        raise IntvitError(f"{node.name}: {node.op} must have positive sizes, not {dict(node.attrs)!r:.80}")
    try:
        found = layout.output_shape(node, [t.shape for t in inputs])
    except (ValueError, IndexError, TypeError) as error:
        raise IntvitError(f"{node.name}: {node.op} must fit its input shapes: {reason(error)}") from None
    _shape(node, output, found)
    for tensor in inputs:
        if tensor.encoding != output.encoding:
            raise IntvitError(f"{node.name}: encoding must stay {tensor.encoding}, not {output.encoding}")
        _keeps(node, tensor, output)
    assert output.dtype is not None
    for key, array in node.arrays.items():
        _values(node, key, -output.max_abs, min(output.max_abs, output.dtype.max), (array.shape,))


def _requantize(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _count(node, inputs, 1, 2)
    _attrs(node, bits=int)
    assert output.dtype is not None
    if node.attrs["bits"] != output.dtype.bits or not 2 <= output.dtype.bits <= 32 or output.encoding != "linear":
        raise IntvitError(f"{node.name}: bits must lie in 2..32 and be those of {output.dtype}")
    if output.bound is not None:
        raise IntvitError(f"{node.name}: bound must be left to {output.dtype}, not {output.bound}")
    terms, shape = [""], inputs[0].shape
    if len(inputs) == 2 or len(node.arrays) > 2:
        terms = ["", "residual_"]
    constant = {"residual"} if terms[1:] and len(inputs) == 1 else set()
    _arrays(node, {f"{term}{key}" for term in terms for key in "me"} | constant)
    _shape(node, output, shape)
    for term in terms:
        lengths = ((1,), shape[-1:])
        _values(node, f"{term}m", -(2**31), 2**31, lengths)
        e = _values(node, f"{term}e", EXPONENT_LEAST, EXPONENT_MOST, lengths)
        if e.shape != node.arrays[f"{term}m"].shape:
            raise IntvitError(f"{node.name}: {term}m and {term}e must be of one length")
    if len(inputs) == 2 and inputs[1].shape != shape:
        raise IntvitError(f"{node.name}: residual must be of shape {shape}, not {inputs[1].shape}")
    if constant:
        residual = node.arrays["residual"]
        _values(node, "residual", -(2**31), 2**31 - 1, (residual.shape,))
        _broadcasts(node, "residual", residual.shape, shape)


def _broadcasts(node: Node, key: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    padded = (1,) * (len(shape) - len(found)) + found
    if len(padded) != len(shape) or any(n not in (1, m) for n, m in zip(padded, shape, strict=True)):
        raise IntvitError(f"{node.name}: {key} must broadcast to {shape}, not be of shape {found}")


def _linear(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _count(node, inputs, 1)
    _attrs(node)
    _arrays(node, {"weight"}, {"bias"})
    shape, weight = inputs[0].shape, node.arrays["weight"]
    if weight.ndim != 2 or not shape or weight.shape[1] != shape[-1]:
        raise IntvitError(f"{node.name}: weight must be of shape (outputs, {shape[-1:]}), not {weight.shape}")
    _values(node, "weight", -128, 127, (weight.shape,))
    bias = _values(node, "bias", -(2**31), 2**31 - 1, (weight.shape[:1],)) if "bias" in node.arrays else None
    _shape(node, output, (*shape[:-1], len(weight)))
    _holds(node, output, int(linear_bound(weight, bias, inputs[0].max_abs).max()))


def _matmul(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _count(node, inputs, 2)
    _attrs(node)
    _arrays(node, set())
    a, b = inputs
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise IntvitError(f"{node.name}: operands must be (..., R, K) and (..., K, C), not {a.shape} and {b.shape}")
    _shape(node, output, (*a.shape[:-1], b.shape[-1]))
    left = a.max_abs
    if node.op == "log2_matmul":
        if a.max_abs > LOG2_FRACTION_BITS:
            raise IntvitError(f"{node.name}: codes must be at most {LOG2_FRACTION_BITS}, not {a.max_abs}")
        left = 1 << LOG2_FRACTION_BITS
    _holds(node, output, a.shape[-1] * left * b.max_abs)


def _mean(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _count(node, inputs, 1)
    _attrs(node, axis=int, keepdims=bool)
    _arrays(node, set())
    shape, axis = inputs[0].shape, node.attrs["axis"]
    if not 0 <= axis < len(shape):
        raise IntvitError(f"{node.name}: axis must lie in 0..{len(shape) - 1}, not {axis}")
    _shape(node, output, (*shape[:axis], *((1,) if node.attrs["keepdims"] else ()), *shape[axis + 1 :]))
    _keeps(node, inputs[0], output)


def _method(node: Node, inputs: list[Tensor], output: Tensor) -> None:
    _count(node, inputs, 1)
    _attrs(node, method=str, version=int, params=dict)
    shape = inputs[0].shape
    if not shape:
        raise IntvitError(f"{node.name}: input must have channels")
    method, params = node_method(node), method_params(node)
    for key, array in node.arrays.items():
        if key == "mask" and node.op == "softmax":
            _values(node, "mask", 0, 1, (array.shape,))
            _broadcasts(node, "mask", array.shape, shape)
        elif array.shape not in ((shape[-1],), (1,))[: 1 + (node.op != "layernorm")]:
            raise IntvitError(f"{node.name}: {key} must be of {shape[-1]} channels, not of shape {array.shape}")
    _shape(node, output, shape)
    if output.encoding != method.out_encoding:
        raise IntvitError(f"{node.name}: encoding must be {method.out_encoding}, not {output.encoding}")
    _holds(node, output, method.bound(params, inputs[0].max_abs, shape[-1]) if method.bound else None)


_RULES: dict[str, Callable[[Node, list[Tensor], Tensor], Any]] = {
    "gelu": _method,
    "layernorm": _method,
    "layout": _layout,
    "linear": _linear,
    "log2_matmul": _matmul,
    "matmul": _matmul,
    "mean": _mean,
    "requantize": _requantize,
    "softmax": _method,
}
