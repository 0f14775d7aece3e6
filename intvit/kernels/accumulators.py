"""Accumulators narrower than their sums: what a policy makes of products that were added exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intvit.errors import Beyond, IntvitError
from intvit.kernels.arith import isqrt, kernel
from intvit.kernels.border import border
from intvit.kernels.datapath import word

BLOCK = 64
"""Accumulators that are followed side by side."""
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


@border(a="int8|int16 N R K", b="int8 N K C", of_rows="int64 S N R", of_columns="int64 S N C")
@kernel
def _lengths(a, lift, b, part, of_rows, of_columns):
    """Euclidean lengths, rounded up, of the parts of the rows of a + lift and of the columns of b."""
    depth = a.shape[2]
    for p in range(of_rows.shape[0]):
        for n in range(a.shape[0]):
            for i in range(a.shape[1]):
                square, row = np.int64(0), a[n, i]
                for k in range(p * part, min((p + 1) * part, depth)):
                    square += (np.int64(row[k]) + lift) * (np.int64(row[k]) + lift)
                of_rows[p, n, i] = isqrt(square) + 1
            columns = of_columns[p, n]
            columns[:] = 0
            for k in range(p * part, min((p + 1) * part, depth)):
                row = b[n, k]
                for c in range(b.shape[2]):
                    columns[c] += np.int64(row[c]) * np.int64(row[c])
            for c in range(b.shape[2]):
                columns[c] = isqrt(columns[c]) + 1


@border(
    a="int8|int16 N R K", b="int8 N K C", bias="int64 C", sums="int32 S N R C", of_rows="int64 S N R",
    of_columns="int64 S N C", out="int32 N R C",
)  # fmt: skip
@kernel
def _follow(a, lift, b, bias, sums, of_rows, of_columns, bits, out):
    """(a + lift) times b, saturated after every product, in the order of k, and after the bias.

    `sums`: exact, of parts of K. The magnitudes of the products of a part add to at most reach = |a| |b|, the lengths
    of row and column in it (Cauchy and Schwarz), so that no partial sum in a part that begins at p and adds s is above
    p + (reach + s) / 2 or below p - (reach - s) / 2. Only where one of them leaves the word are products added one by
    one. 32 bits hold a word of 31 and a product of 24 more.
    """
    high = (np.int64(1) << (bits - 1)) - 1
    low = -high - 1
    top, bottom = np.int32(high), np.int32(low)
    depth, columns = a.shape[2], b.shape[2]
    total, block = np.empty(BLOCK, np.int32), np.zeros((depth, BLOCK), np.int32)
    before, beyond = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for first in range(0, columns, BLOCK):
        width = min(BLOCK, columns - first)
        for n in range(a.shape[0]):
            filled = False
            for i in range(a.shape[1]):
                for c in range(width):
                    before[c], beyond[c] = 0, 0
                for p in range(sums.shape[0]):
                    length, lengths = of_rows[p, n, i], of_columns[p, n, first : first + width]
                    row = sums[p, n, i, first : first + width]
                    for c in range(width):
                        exact, reach = np.int64(row[c]), length * lengths[c]
                        over = max(reach + exact - 2 * (high - before[c]), reach - exact - 2 * (before[c] - low))
                        beyond[c] = max(beyond[c], over)
                        before[c] += exact
                target, offset = out[n, i, first : first + width], bias[first : first + width]
                for c in range(width):
                    target[c] = min(max(before[c] + offset[c], low), high)
                if beyond[:width].max() <= 0:
                    continue
                if not filled:  # in the words of `total`: the compiler then takes many of them at a time
                    for k in range(depth):
                        for c in range(width):
                            block[k, c] = b[n, k, first + c]
                    filled = True
                total[:] = np.int32(0)
                for k in range(depth):
                    x = np.int32(a[n, i, k] + lift)
                    for c in range(BLOCK):
                        total[c] = min(max(np.int32(total[c] + x * block[k, c]), bottom), top)
                for c in range(width):
                    target[c] = min(max(total[c] + offset[c], low), high)


@border(sums="int32 S N R C", of_rows="int64 S N R", of_columns="int64 S N C", out="int64 N")
@kernel
def _stays(sums, of_rows, of_columns, bits, out):
    """By how much, twice, a partial sum may leave the word, as `_follow` bounds them; 0 if none can."""
    high = (np.int64(1) << (bits - 1)) - 1
    low = -high - 1
    before = np.empty(sums.shape[3], np.int64)
    for n in range(sums.shape[1]):
        most = np.int64(0)
        for i in range(sums.shape[2]):
            before[:] = 0
            for p in range(sums.shape[0]):
                length, lengths, row = of_rows[p, n, i], of_columns[p, n], sums[p, n, i]
                for c in range(sums.shape[3]):
                    exact, reach = np.int64(row[c]), length * lengths[c]
                    over = max(reach + exact - 2 * (high - before[c]), reach - exact - 2 * (before[c] - low))
                    most = max(most, over)
                    before[c] += exact
        out[n] = most


def follow(a: Array, lift: int, b: Array, bias: Array, exact: Array, sums: Callable[[], tuple[int, list[Array]]] | None,
           bits: int) -> Array:  # fmt: skip
    """`saturating` of a + lift (..., R, K) and b (..., K, C), int32 (..., R, C), from `exact`, without the bias.

    a + lift 16 bits, with or without a sign, b 8, words of 31 bits at most. b (K, C) is one for all. sums(): (elements
    of K in a part, for every part the exact sum of its products, int32), asked for where a sum may leave the word.
    """
    if bits > 31:
        raise IntvitError(f"accumulator: words must be of 31 bits at most, not {bits}")
    n = 1 if b.ndim == 2 else int(np.prod(b.shape[:-2]))
    left, right = (np.ascontiguousarray(x).reshape(n, -1, x.shape[-1]) for x in (a, b))

    def reached(part: int, found: Array) -> tuple[Array, Array, bool]:
        of_rows, over = np.empty(found.shape[:-1], np.int64), np.empty(n, np.int64)
        of_columns = np.empty((len(found), n, b.shape[-1]), np.int64)
        _lengths(left, lift, right, part, of_rows, of_columns)
        _stays(found, of_rows, of_columns, bits, over)
        return of_rows, of_columns, not over.any()

    found = exact.reshape(1, n, -1, exact.shape[-1])
    of_rows, of_columns, stays = reached(a.shape[-1], found)
    if not stays and sums is not None:
        part, parts = sums()
        found = np.stack([y.reshape(found.shape[1:]) for y in parts])
        of_rows, of_columns, stays = reached(part, found)
    if stays:
        return fitting(exact + bias.astype(np.int32), bits, "saturate_end")
    out = np.empty(exact.shape, np.int32)
    _follow(left, lift, right, bias.astype(np.int64), found, of_rows, of_columns, bits, out.reshape(found.shape[1:]))
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
