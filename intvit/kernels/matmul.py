"""Exact integer matrix products on BLAS: the only place where integers ride in floats.

Why that is exact. A float32 holds every integer of magnitude up to 2**24, a float64 up to 2**53, and the sum, the
product or the fused multiply-add of two floats is exact when its real value is one of those. If the sum of |a_k|*|b_k|
over k stays below the limit, then so does every partial sum in whatever order, split or fusing BLAS takes: every step
is exact and so is the result. The bound is proven per operator from the actual weights, or from the operand types; K is
split into parts, added in int64, where even float64 is too narrow. NaN and infinity cannot arise from finite bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import kernel
from intvit.kernels.border import border

Array = np.ndarray[Any, Any]
FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53
INT32_MAX = 2**31 - 1
LOG2_FRACTION_BITS = 15


def carrier(bound: int) -> type[np.floating[Any]] | None:
    """The narrowest float type in which sums of magnitude up to `bound` are exact; None if there is none."""
    if bound < FLOAT32_EXACT:
        return np.float32
    return np.float64 if bound < FLOAT64_EXACT else None


def _accumulator(bound: int) -> type[np.signedinteger[Any]]:
    return np.int32 if bound <= INT32_MAX else np.int64


def prepare_linear(weight: Array, bias: Array | None, x_max: int) -> Callable[[Array], Array]:
    """A function x (..., K) -> accumulator (..., O), exact for |x| <= x_max; the weight is laid out once.

    weight (O, K), bias (O,) integers. The accumulator is int32 where the proven bound fits it, else int64.
    """
    wide = weight.astype(np.int64)
    offset = np.zeros(len(wide), np.int64) if bias is None else bias.astype(np.int64)
    if not wide.size or offset.shape != (len(wide),):
        raise IntvitError(f"linear: weight and bias must be (O, K) and (O,), not {wide.shape} and {offset.shape}")
    product_bound = int(np.abs(wide).sum(axis=1).max()) * x_max
    kind = carrier(product_bound)
    if kind is None:
        raise IntvitError(f"linear: products must stay below 2**53, not {product_bound}")
    accumulator = _accumulator(product_bound + _max_abs(offset))
    columns, offset = np.ascontiguousarray(wide.T.astype(kind)), offset.astype(accumulator)

    def run(x: Array) -> Array:
        if x.shape[-1:] != wide.shape[1:]:
            raise IntvitError(f"linear: x must be (..., {wide.shape[1]}), not {x.shape}")
        rows = x.reshape(-1, x.shape[-1]).astype(kind)
        acc = (rows @ columns).astype(accumulator)
        acc += offset
        return acc.reshape(*x.shape[:-1], columns.shape[1])

    return run


def matmul(a: Array, b: Array, *, a_max: int | None = None, b_max: int | None = None) -> Array:
    """a (..., R, K) times b (..., K, C), exact; `a_max`, `b_max` bound the operands (default: what they hold).

    Leading axes are broadcast.
    """
    lead = check_shapes("matmul", a, b)
    if not (a.size and b.size):  # the sum of nothing is 0
        return np.zeros((*lead, a.shape[-2], b.shape[-1]), np.int32)
    a_max = _max_abs(a) if a_max is None else a_max
    b_max = _max_abs(b) if b_max is None else b_max
    depth = a.shape[-1]
    bound = depth * a_max * b_max
    kind = carrier(bound)
    if kind is None:
        if bound >= 2**63:
            raise IntvitError(f"matmul: sums must stay below 2**63, not {bound}")
        part = (FLOAT64_EXACT - 1) // (a_max * b_max)
        if part < 1:
            return _slow(a, b)
        kind = np.float64
        parts = [(a[..., i : i + part], b[..., i : i + part, :]) for i in range(0, depth, part)]
    else:
        parts = [(a, b)]
    acc = sum((_product(x, y, kind) for x, y in parts), start=np.int64(0))
    return np.asarray(acc).astype(_accumulator(bound), copy=False)


def _product(a: Array, b: Array, kind: Any) -> Array:
    left, right = a.astype(kind), np.ascontiguousarray(b, kind)
    result = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), kind)
    np.matmul(left, right, out=result)
    return result.astype(np.int64 if kind is np.float64 else np.int32)


def _max_abs(x: Array) -> int:
    return max(-int(x.min()), int(x.max()))


@border(a="int64 N R K", b="int64 N K C", out="int64 N R C")
@kernel
def _slow_kernel(a, b, out):
    for n in range(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(b.shape[2]):
                total = 0
                for k in range(a.shape[2]):
                    total += a[n, i, k] * b[n, k, j]
                out[n, i, j] = total


def _slow(a: Array, b: Array) -> Array:
    """Products beyond 2**53: plain int64 loops."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.zeros((*lead, a.shape[-2], b.shape[-1]), np.int64)
    flat = [np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b)]
    _slow_kernel(*(np.ascontiguousarray(x, np.int64) for x in flat), out.reshape(-1, *out.shape[-2:]))
    return out


def check_shapes(name: str, a: Array, b: Array) -> tuple[int, ...]:
    """The leading axes of a product of (..., R, K) and (..., K, C), broadcast."""
    try:
        if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise IntvitError(f"{name}: shapes must be (..., R, K) and (..., K, C), not {a.shape} and {b.shape}") from None


LOG2_LIFT = 1 << (LOG2_FRACTION_BITS - 1)
"""Weights 0..2**15 are one too many for 16 bits; less this they fit."""


@border(rows="int8 R C", out="int16 R C")
@kernel
def _log2_weights(rows, out):
    """Codes -1..15 to weights: 2**(15 - q), or 0 for -1; less LOG2_LIFT."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            q = np.int64(rows[i, j])
            out[i, j] = (np.int64(0) if q < 0 else np.int64(32768) >> (q & 15)) - 16384


def log2_weights(codes: Array) -> Array:
    """FQ-ViT codes (..., C) int8 to their weights less LOG2_LIFT, int16 of the same shape."""
    rows = np.ascontiguousarray(codes).reshape(-1, codes.shape[-1])
    out = np.empty(rows.shape, np.int16)
    _log2_weights(rows, out)
    return out.reshape(codes.shape)


def check_codes(q: Array) -> None:
    if q.size and (int(q.min()) < -1 or int(q.max()) > LOG2_FRACTION_BITS):
        raise IntvitError(f"log2_matmul: codes must lie in -1..15, not {int(q.min())}..{int(q.max())}")


def log2_matmul_codes(q: Array, v: Array) -> Array:
    """FQ-ViT attention times V: sum_k (0 if q < 0 else v << (15 - q)); q (..., R, K) in -1..15, v (..., K, C).

    The weights 2**(15-q) are table entries; the product is an ordinary exact one.
    """
    check_codes(q)
    table = np.array([0, *(1 << (LOG2_FRACTION_BITS - k) for k in range(LOG2_FRACTION_BITS + 1))], np.int32)
    return matmul(table[q.astype(np.intp) + 1], v, a_max=1 << LOG2_FRACTION_BITS)
