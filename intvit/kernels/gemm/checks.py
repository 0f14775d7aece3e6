"""What the borders of the compiled products compare: arrays with the sizes and places that come with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.border import characters
from intvit.kernels.gemm.epilogue import Epilogue
from intvit.kernels.gemm.layout import (
    BLOCK,
    MR,
    NR,
    ROW_BLOCK,
    WORD,
    Array,
    Matrices,
    Matrix,
    Parts,
    Scratch,
    Size,
    padded_columns,
    words_of,
)

_INT32, _INT64, _NARROW = (characters(kinds) for kinds in ("int32", "int64", "int8|int16"))
_PACKED = characters("int8|int16|uint8|uint16")
_PAIRS = ("bB", "hH", "hh")
"""Codes of the dtypes of packed operands that meet in an instruction."""


def is_line(array: Any, kinds: str) -> bool:
    """True for a contiguous vector of the machine's byte order whose dtype has one of these one-letter codes."""
    kind = array.dtype
    return array.ndim == 1 and kind.char in kinds and kind.isnative and array.flags.c_contiguous


def lies_inside(x: Matrix, rows: int, columns: int) -> bool:
    """True if every element of a matrix of this size lies in its vector."""
    flat, start, row, column = x
    fits = start >= 0 and row >= 0 and column >= 0 and rows >= 1 and columns >= 1
    return fits and start + (rows - 1) * row + (columns - 1) * column < flat.size


def lie_inside(x: Matrices, rows: int, columns: int) -> bool:
    """As `lies_inside` for a matrix at 0; the kernel compares every start."""
    return is_line(x.starts, _INT64) and lies_inside(Matrix(x.flat, 0, x.row, x.column), rows, columns)


def require(name: str, fits: bool) -> None:
    if not fits:
        raise IntvitError(f"gemm {name}: arrays must fit the sizes that come with them, and do not")


def check_columns(
    flat: Array, start: int, row: int, column: int, depth: int, columns: int, steps: int, packed: Array
) -> None:
    fits = is_line(flat, _NARROW) and is_line(packed, _PACKED) and flat.itemsize <= packed.itemsize
    fits = fits and steps == words_of(depth, packed.itemsize)
    fits = fits and packed.nbytes >= padded_columns(columns) * steps * WORD
    require("pack_columns", fits and lies_inside(Matrix(flat, start, row, column), depth, columns))


def check_sums(flat: Array, start: int, row: int, column: int, depth: int, columns: int, sums: Array) -> None:
    fits = is_line(flat, _NARROW) and is_line(sums, _INT32) and sums.size >= columns
    require("column_sums", fits and lies_inside(Matrix(flat, start, row, column), depth, columns))


def operands_fit(x: Array, out: Array, size: Size, right: Array, epilogue: Epilogue, scratch: Scratch) -> bool:
    """Whether all is there that one tile after another reads and writes: packed operands, constants, sums, edge."""
    (left, sums, edge), (m, rounding, _, _, high, _) = scratch, epilogue
    padded, constants = padded_columns(size.columns), m.size
    return (
        left.dtype.char + right.dtype.char in _PAIRS
        and is_line(x, _NARROW)
        and x.itemsize <= left.itemsize
        and size.steps == words_of(size.depth, left.itemsize)
        and is_line(left, _NARROW)
        and left.nbytes >= ROW_BLOCK * size.steps * WORD
        and right.nbytes >= padded * size.steps * WORD
        and is_line(right, right.dtype.char)
        and sums.dtype == np.int32
        and sums.shape == (MR, NR)
        and sums.flags.c_contiguous
        and (constants >= padded or (not constants and out.dtype.char in _INT32))
        and is_line(m, _INT32)
        and rounding.dtype == np.int64
        and rounding.shape == (3, constants)
        and rounding.flags.c_contiguous
        and is_line(out, _NARROW + _INT32)
        and high >> (8 * out.itemsize - 1) == 0
        and is_line(edge, out.dtype.char)
        and edge.size >= MR * NR
    )


def check_packed(
    x: Matrix, out: Matrix, size: Size, right: Array, offset: Array, epilogue: Epilogue, scratch: Scratch
) -> None:
    fits = operands_fit(x.flat, out.flat, size, right, epilogue, scratch)
    fits = fits and is_line(offset, _INT32) and offset.size >= padded_columns(size.columns)
    fits = fits and lies_inside(x, size.rows, size.depth)
    require("multiply_packed", fits and out.column == 1 and lies_inside(out, size.rows, size.columns))


def check_batch(
    a: Matrices, b: Matrices, out: Matrices, size: Size, right: Array, correction: int, epilogue: Epilogue,
    scratch: Scratch,
) -> None:  # fmt: skip
    fits = operands_fit(a.flat, out.flat, size, right, epilogue, scratch)
    fits = fits and is_line(b.flat, _NARROW) and b.flat.itemsize <= right.itemsize
    fits = fits and a.starts.size == b.starts.size == out.starts.size
    fits = fits and lie_inside(a, size.rows, size.depth) and lie_inside(b, size.depth, size.columns)
    require("multiply_batch", fits and out.column == 1 and lie_inside(out, size.rows, size.columns))


def check_bounded(
    x: Matrix, out: Matrix, size: Size, right: Array, parts: Parts, low: int, high: int, scratch: Scratch
) -> None:
    padded, blocks = padded_columns(size.columns), -(-size.columns // BLOCK)
    n_parts = -(-size.steps // max(parts.steps, 1))
    tables = (
        (parts.offset, np.int32, (n_parts, padded)),
        (parts.of_rows, np.int32, (n_parts, size.rows)),
        (parts.of_columns, np.int32, (n_parts, padded)),
        (parts.open, np.uint8, (size.rows, blocks)),
    )
    fits = operands_fit(x.flat, out.flat, size, right, Epilogue.raw(), scratch) and is_line(out.flat, _INT32)
    fits = fits and parts.steps >= 1 and is_line(parts.bias, _INT32) and parts.bias.size == padded
    fits = fits and all(
        a.dtype == kind and a.dtype.isnative and a.shape == shape and a.flags.c_contiguous for a, kind, shape in tables
    )
    fits = fits and -(2**30) <= low < high < 2**30 and lies_inside(x, size.rows, size.depth)
    require("multiply_bounded", fits and out.column == 1 and lies_inside(out, size.rows, size.columns))
