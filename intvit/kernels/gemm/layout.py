"""How operands lie in memory: the size of a tile, words, panels, matrices inside a vector; the values that say so.

A left operand is packed in tiles of MR rows, a right one in panels of NR columns; both in words of WORD bytes, each of
one row or column and as many steps of the depth as fit. Nothing here is compiled; kernels take the named tuples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
MR, NR = 12, 32
"""Rows and columns of a tile: 24 vector registers of sums with AVX-512; with AVX2 four parts of 6 x 16."""
WORD = 4
"""Bytes of one row (left) or one column (right) that one instruction takes."""
TILE_BYTES = MR * NR * WORD
"""The sums of a tile: whole cache lines."""
ROW_BLOCK = 8 * MR
"""Rows that are packed at a time."""
BLOCK = 2 * NR
"""Columns whose accumulators are followed side by side."""


def words_of(depth: int, itemsize: int) -> int:
    """Words that `depth` elements fill, packed in `itemsize` bytes each."""
    return -(-depth // (WORD // itemsize))


def padded_columns(columns: int) -> int:
    """Columns of whole panels."""
    return columns + -columns % NR


class Matrix(NamedTuple):
    """A matrix inside a vector: element (i, k) is `flat[start + i*row + k*column]`."""

    flat: Array
    start: int
    row: int
    column: int


class Matrices(NamedTuple):
    """A batch of matrices inside a vector: element (i, k) of matrix n is `flat[starts[n] + i*row + k*column]`."""

    flat: Array
    starts: Array
    row: int
    column: int


class Size(NamedTuple):
    """Of one product (rows, depth) times (depth, columns); `steps` words hold the depth of a packed operand."""

    rows: int
    depth: int
    columns: int
    steps: int


class Parts(NamedTuple):
    """Of K, where partial sums are looked at: `steps` packed words each. Columns are padded to whole panels."""

    offset: Array
    """(parts, columns) int32: what makes the products of packed operands those of a part."""
    bias: Array
    """(columns,) int32"""
    of_rows: Array
    """(parts, rows) int32: Euclidean lengths, rounded up."""
    of_columns: Array
    """(parts, columns) int32"""
    steps: int
    open: Array
    """(rows, blocks of BLOCK columns) uint8"""


class Scratch(NamedTuple):
    """The memory that one call needs: a block of packed rows, the sums of a tile, a tile at the edge of the output."""

    left: Array
    sums: Array
    edge: Array

    @staticmethod
    def of(left: Any, steps: int, kind: Any) -> Scratch:
        """For rows packed as `left` and an output of dtype `kind`."""
        both = aligned(TILE_BYTES + ROW_BLOCK * steps * WORD, np.uint8)
        sums = both[:TILE_BYTES].view(np.int32).reshape(MR, NR)
        return Scratch(both[TILE_BYTES:].view(left), sums, np.empty(MR * NR, kind))


def operands(x: Array) -> Matrices:
    """View (..., R, K) without a copy; copied only if its strides are no multiples of its item size."""
    if any(stride < 0 or stride % x.itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    strides = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,))
    starts = np.zeros((), np.int64)
    for n, stride in zip(x.shape[:-2], strides[:-2], strict=True):
        starts = np.add.outer(starts, np.arange(n) * stride)
    return Matrices(flat, np.ascontiguousarray(starts.reshape(-1)), strides[-2], strides[-1])


def aligned(count: int, kind: Any) -> Array:
    """An uninitialised vector that starts a cache line, so that no vector load crosses one."""
    size = count * np.dtype(kind).itemsize
    raw = np.empty(size + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + size].view(kind)
