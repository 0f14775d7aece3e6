"""Accumulators narrower than their sums: what a policy makes of products that were added exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intvit.errors import Beyond, IntvitError
from intvit.kernels.arith import kernel
from intvit.kernels.border import border
from intvit.kernels.datapath import word
from intvit.kernels.gemm.intrinsics import saturate_row
from intvit.kernels.gemm.layout import BLOCK
from intvit.kernels.gemm.lengths import longest_column, row_lengths

Array = np.ndarray[Any, Any]


@border(a="int64 N R K", b="int64 N K C", bias="int64 C", out="int64 N R C")
@kernel
def _saturating(a, b, bias, bits, out):
    """Saturated after every product, in the order of k, and after the bias."""
    for n in range(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(b.shape[2]):
                total = np.int64(0)
                for k in range(a.shape[2]):
                    total = word(total + a[n, i, k] * b[n, k, j], 0, bits, 0)
                out[n, i, j] = word(total + bias[j], 0, bits, 0)


def saturating(a: Array, b: Array, bias: Array | None, bits: int) -> Array:
    """a (..., R, K) times b (..., K, C), saturated after every product, and after the bias (C,); int64.

    Every product, and every one of them plus a sum of `bits` bits, must fit int64: |a| * |b| < 2**62, bits <= 62.
    """
    most = int(np.abs(a.astype(np.int64)).max(initial=0)) * int(np.abs(b.astype(np.int64)).max(initial=0))
    if most >= 2**62 or bits > 62:
        raise IntvitError(f"accumulator: products must stay below 2**62, sums of 62 bits at most; not {most}, {bits}")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.zeros((*lead, a.shape[-2], b.shape[-1]), np.int64)
    flat = [np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b)]
    offset = np.zeros(b.shape[-1], np.int64) if bias is None else np.ascontiguousarray(bias, np.int64)
    ready = (np.ascontiguousarray(x, np.int64) for x in flat)
    _saturating(*ready, offset, bits, out.reshape(-1, *out.shape[-2:]))
    return out


@border(a="int8|int16 N R K", b="int8 N K C", bias="int64 C", open="uint8 N R X", out="int32 N R C")
@kernel
def _follow(a, lift, b, bias, bits, open, out):
    """What is open of (a + lift) times b, saturated after every product, in the order of k, and after the bias.

    32 bits hold a word of 31 and a product of 24 more.
    """
    high = (np.int64(1) << (bits - 1)) - 1
    low = -high - 1
    depth, columns = a.shape[2], b.shape[2]
    left, right, total = np.empty(depth, np.int32), np.zeros((depth, BLOCK), np.int32), np.empty(BLOCK, np.int32)
    for n in range(a.shape[0]):
        for x in range(open.shape[2]):
            first, filled = x * BLOCK, False
            width = min(BLOCK, columns - first)
            for i in range(a.shape[1]):
                if not open[n, i, x]:
                    continue
                if not filled:
                    for k in range(depth):
                        for c in range(width):
                            right[k, c] = b[n, k, first + c]
                    filled = True
                for k in range(depth):
                    left[k] = a[n, i, k] + lift
                saturate_row(left, right, depth, np.int32(low), np.int32(high), total)
                for c in range(width):
                    out[n, i, first + c] = min(max(total[c] + bias[first + c], low), high)


def follow(a: Array, lift: int, b: Array, bias: Array, bits: int, whole: Callable[[], Array],
           longest: int = 0, bounded: Callable[[int, Array], Array] | None = None) -> Array:  # fmt: skip
    """`saturating` of a + lift (..., R, K) and b (..., K, C), int32 (..., R, C).

    a + lift 16 bits, with or without a sign, b 8, words of 31 bits at most. b (K, C) is one for all. whole(): the exact
    sums, int32, without a bias; enough where no row is long enough to leave the word with any column (Cauchy and
    Schwarz). longest: `longest_column` of b, if it is known. bounded(reach, out): what is known better where the
    longest have the product `reach` < 2**30. It writes what does not saturate before the bias, and gives where more is
    to be done, (rows, blocks of BLOCK columns) uint8.
    """
    if bits > 31:
        raise IntvitError(f"accumulator: words must be of 31 bits at most, not {bits}")
    depth, columns = b.shape[-2:]
    n = 1 if b.ndim == 2 else int(np.prod(b.shape[:-2]))
    left, right = (np.ascontiguousarray(x).reshape(n, -1, x.shape[-1]) for x in (a, b))
    reach = int(row_lengths(left, max(depth, 1), lift).max(initial=0)) * (longest or longest_column(right))
    if reach < 1 << (bits - 1):
        return fitting(whole() + bias.astype(np.int32), bits, "saturate_end")
    out = np.empty((*a.shape[:-1], columns), np.int32)
    flat = out.reshape(n, -1, columns)
    if bounded is not None and reach < 2**30:
        open = bounded(reach, flat[0])[np.newaxis]
    else:
        open = np.ones((*flat.shape[:2], -(-columns // BLOCK)), np.uint8)
    _follow(left, lift, right, bias.astype(np.int64), bits, open, flat)
    return out


@border(y="int32 N", out="int16|int32 N")
@kernel
def _fit(y, bits, wraps, out):
    for n in range(y.shape[0]):
        out[n] = word(np.int64(y[n]), 0, bits, wraps)


def fitting(y: Array, bits: int, policy: str) -> Array:
    """Exact sums (B, ...) as words of `bits` bits. raise: Beyond, with the image, the index and the value."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if policy != "raise" and y.dtype == np.int32 and bits <= 32:
        out = np.empty(y.shape, np.int16 if bits <= 16 else np.int32)
        _fit(np.ascontiguousarray(y).reshape(-1), bits, policy == "wrap", out.reshape(-1))
        return out
    if policy == "saturate_end":
        return np.clip(y, low, high)
    if policy == "wrap":
        return (y.astype(np.int64) << (64 - bits)) >> (64 - bits)
    beyond = (y < low) | (y > high)
    if beyond.any():
        at = np.unravel_index(int(np.argmax(beyond)), y.shape)
        image, *index = (int(i) for i in at)
        raise Beyond(f"accumulator must lie in {low}..{high}, its {bits} bits, and is {int(y[at])} at {index}", image)
    return y
