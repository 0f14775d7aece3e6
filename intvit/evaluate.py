"""One integer node, evaluated by either backend: `kernel` (Numba, prepared once) or `spec` (plain Python integers).

The engine runs graphs through this, and golden vectors are checked through it, so that both mean the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, Array, Node, Tensor
from intvit.graph.parameters import method_params, node_method
from intvit.inttypes import IntType

BACKENDS = ("kernel", "spec")
Evaluate = Callable[[Sequence[Array]], Array]
"""Batched inputs (B, ...) to the batched output."""


def storage(dtype: IntType) -> type[np.signedinteger[Any]]:
    """The narrowest NumPy integer that holds `dtype`."""
    bits = dtype.bits + (not dtype.signed)
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.int64


def prepare(node: Node, inputs: Sequence[Tensor], output: Tensor, backend: str = "kernel") -> Evaluate:
    """A function that evaluates `node` on batches; constants are laid out once, here."""
    if backend not in BACKENDS:
        raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    assert output.dtype is not None
    kind = storage(output.dtype)
    if node.op in LAYOUT_OPS:
        return lambda values: layout.apply(node, values).astype(kind, copy=False)
    table = _KERNELS if backend == "kernel" else _SPECS
    if node.op not in table:
        raise IntvitError(f"{node.name}: operator must be one of {', '.join(sorted(table))}, not {node.op!r}")
    evaluate = table[node.op](node, inputs, output)

    def stored(values: Sequence[Array]) -> Array:
        result = evaluate(values)
        return result.astype(kind, copy=False)

    return stored


def signed(node: Node, key: str) -> Array:
    """Constants as int64: a file may store them in any width that holds them."""
    return np.ascontiguousarray(node.arrays[key], np.int64)


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def mask_rows(node: Node, shape: tuple[int, ...]) -> Array | None:
    mask = node.arrays.get("mask")
    return None if mask is None else _rows(np.broadcast_to(mask.astype(np.bool_), shape))


def _mean(node: Node, over_last: Callable[[Array], Array]) -> Evaluate:
    """Average pooling by a backend's mean over the last axis."""
    axis, keepdims = node.attrs["axis"] + 1, node.attrs["keepdims"]

    def run(values: Sequence[Array]) -> Array:
        y = over_last(np.moveaxis(values[0], axis, -1))
        return np.expand_dims(y, axis) if keepdims else y

    return run


# ------------------------------------------------------------------------------------------ kernel


def _kernel_linear(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.matmul import prepare_linear

    run = prepare_linear(node.arrays["weight"], node.arrays.get("bias"), inputs[0].max_abs)
    return lambda values: run(values[0])


def _kernel_matmul(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.matmul import matmul

    a_max, b_max = inputs[0].max_abs, inputs[1].max_abs
    return lambda values: matmul(values[0], values[1], a_max=a_max, b_max=b_max)


def _kernel_log2_matmul(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.matmul import log2_matmul_codes

    return lambda values: log2_matmul_codes(values[0], values[1])


def _kernel_requantize(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.requantize import prepare_requantize

    bits, kind = node.attrs["bits"], storage(IntType(node.attrs["bits"]))
    names = {"residual_m": "residual_m", "residual_e": "residual_e", "residual": "constant"}
    extra = {argument: signed(node, key) for key, argument in names.items() if key in node.arrays}
    prepared = prepare_requantize(signed(node, "m"), signed(node, "e"), bits, out_dtype=kind, **extra)
    if "residual_m" in node.arrays and "residual" not in node.arrays:
        return lambda values: prepared.run(values[0], values[1])
    return lambda values: prepared.run(values[0])


def _residual(node: Node, values: Sequence[Array]) -> Array | None:
    if "residual_m" not in node.arrays:
        return None
    residual = signed(node, "residual") if "residual" in node.arrays else values[1]
    return np.broadcast_to(residual, values[0].shape)


def _kernel_method(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    run = node_method(node).kernel(method_params(node))

    def evaluate(values: Sequence[Array]) -> Array:
        x = values[0]
        rows = np.ascontiguousarray(_rows(x), np.int64)
        mask = mask_rows(node, x.shape)
        y = run(rows) if mask is None else run(rows, np.ascontiguousarray(mask))
        return y.reshape(x.shape)

    return evaluate


def _kernel_mean(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.pool import mean

    return _mean(node, lambda moved: mean(moved, -1))


_KERNELS: dict[str, Callable[[Node, Sequence[Tensor], Tensor], Evaluate]] = {
    "gelu": _kernel_method,
    "layernorm": _kernel_method,
    "linear": _kernel_linear,
    "log2_matmul": _kernel_log2_matmul,
    "matmul": _kernel_matmul,
    "mean": _kernel_mean,
    "requantize": _kernel_requantize,
    "softmax": _kernel_method,
}

# -------------------------------------------------------------------------------------------- spec


def _nested(function: Callable[..., list[Any]], *arrays: Array) -> Array:
    """`function` on lists of rows for every leading index; the result as int64."""
    lead = arrays[0].shape[:-2]
    flat = [a.reshape(-1, *a.shape[-2:]).tolist() for a in arrays]
    results = [function(*parts) for parts in zip(*flat, strict=True)]
    result = np.array(results, np.int64)
    return result.reshape(*lead, *result.shape[1:])


def _spec_linear(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.matmul import linear

    weight = node.arrays["weight"].tolist()
    bias = node.arrays["bias"].tolist() if "bias" in node.arrays else None

    def run(values: Sequence[Array]) -> Array:
        x = values[0]
        return np.array(linear(_rows(x).tolist(), weight, bias), np.int64).reshape(*x.shape[:-1], len(weight))

    return run


def _spec_matmul(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.matmul import matmul

    return lambda values: _nested(matmul, *values)


def _spec_log2_matmul(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.matmul import log2_matmul

    return lambda values: _nested(log2_matmul, *values)


def _spec_requantize(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.requantize import requantize

    bits, n = node.attrs["bits"], output.shape[-1]

    def per_channel(key: str) -> list[int]:
        return [int(v) for v in np.broadcast_to(node.arrays[key], (n,))]

    def run(values: Sequence[Array]) -> Array:
        residual, rows = _residual(node, values), _rows(values[0]).tolist()
        m, e = per_channel("m"), per_channel("e")
        if residual is None:
            result = [requantize(row, m, e, bits) for row in rows]
        else:
            second = {"residual_m": per_channel("residual_m"), "residual_e": per_channel("residual_e")}
            others = _rows(residual).tolist()
            result = [requantize(row, m, e, bits, residual=r, **second) for row, r in zip(rows, others, strict=True)]
        return np.array(result, np.int64).reshape(values[0].shape)

    return run


def _spec_method(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    spec, params = node_method(node).spec, method_params(node)

    def run(values: Sequence[Array]) -> Array:
        x, mask = values[0], mask_rows(node, values[0].shape)
        rows = _rows(x).tolist()
        if mask is None:
            result = [spec(row, params) for row in rows]
        else:
            result = [spec(row, params, hidden) for row, hidden in zip(rows, mask.tolist(), strict=True)]
        return np.array(result, np.int64).reshape(x.shape)

    return run


def _spec_mean(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.pool import mean

    def over_last(moved: Array) -> Array:
        return np.array([mean(row) for row in _rows(moved).tolist()], np.int64).reshape(moved.shape[:-1])

    return _mean(node, over_last)


_SPECS: dict[str, Callable[[Node, Sequence[Tensor], Tensor], Evaluate]] = {
    "gelu": _spec_method,
    "layernorm": _spec_method,
    "linear": _spec_linear,
    "log2_matmul": _spec_log2_matmul,
    "matmul": _spec_matmul,
    "mean": _spec_mean,
    "requantize": _spec_requantize,
    "softmax": _spec_method,
}
