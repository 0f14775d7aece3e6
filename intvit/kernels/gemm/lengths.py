"""Euclidean lengths of rows and columns: what bounds every partial sum of their products."""

from __future__ import annotations

import numpy as np

from intvit.kernels.arith import isqrt, kernel
from intvit.kernels.border import border
from intvit.kernels.gemm.layout import Array


@border(a="int8|int16 R K", out="int32 S R")
@kernel
def _row_lengths(a, lift, part, out):
    for p in range(out.shape[0]):
        for i in range(a.shape[0]):
            square, row = np.int64(0), a[i, p * part : min((p + 1) * part, a.shape[1])]
            for k in range(len(row)):
                x = np.int64(np.int32(row[k] + lift))
                square += x * x
            out[p, i] = isqrt(square) + 1


@border(b="int8 N K C", out="int32 N C")
@kernel
def _column_lengths(b, out):
    squares = np.empty(b.shape[2], np.int64)
    for n in range(b.shape[0]):
        squares[:] = 0
        for k in range(b.shape[1]):
            row = b[n, k]
            for c in range(len(row)):
                squares[c] += np.int64(np.int32(row[c]) * np.int32(row[c]))
        for c in range(len(squares)):
            out[n, c] = isqrt(squares[c]) + 1


def row_lengths(a: Array, part: int, lift: int = 0) -> Array:
    """(parts, R) int32: Euclidean lengths, rounded up, of a + lift (..., K), 16 bits, in parts of `part` elements."""
    rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
    out = np.empty((-(-a.shape[-1] // part), len(rows)), np.int32)
    _row_lengths(rows, lift, part, out)
    return out


def longest_column(b: Array) -> int:
    """The greatest of these lengths of the columns of b (..., K, C) int8."""
    flat = np.ascontiguousarray(b).reshape(-1, *b.shape[-2:])
    out = np.empty((len(flat), b.shape[-1]), np.int32)
    _column_lengths(flat, out)
    return int(out.max(initial=0))
