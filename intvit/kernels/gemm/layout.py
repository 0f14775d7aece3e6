"""How operands lie in memory: the size of a tile, words, panels, matrices inside a vector.

A left operand is packed in tiles of MR rows, a right one in panels of NR columns; both in words of WORD bytes, each of
one row or column and as many steps of the depth as fit. Nothing here is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MR, NR = 12, 32
"""Rows and columns of a tile: 24 vector registers of sums with AVX-512; with AVX2 four parts of 6 x 16."""
WORD = 4
"""Bytes of one row (left) or one column (right) that one instruction takes."""
ROW_BLOCK = 8 * MR


def words_of(depth: int, packed: Array) -> int:
    """Words that `depth` elements fill, packed as `packed` is."""
    return -(-depth // (WORD // packed.itemsize))


def padded_columns(columns: int) -> int:
    """Columns of whole panels."""
    return columns + -columns % NR


@dataclass(frozen=True)
class Operand:
    """A batch of matrices inside an array: `flat[starts[n] + i*row + k*column]`."""

    flat: Array
    starts: Array
    row: int
    column: int


def operand(x: Array) -> Operand:
    """View (..., R, K) without a copy; copied only if its strides are no multiples of its item size."""
    if any(stride < 0 or stride % x.itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    strides = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,))
    starts = np.zeros((), np.int64)
    for n, stride in zip(x.shape[:-2], strides[:-2], strict=True):
        starts = np.add.outer(starts, np.arange(n) * stride)
    return Operand(flat, np.ascontiguousarray(starts.reshape(-1)), strides[-2], strides[-1])


def aligned(count: int, kind: Any) -> Array:
    """An uninitialised vector that starts a cache line, so that no vector load crosses one."""
    raw = np.empty(count * np.dtype(kind).itemsize + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + count * np.dtype(kind).itemsize].view(kind)
