"""What the borders of the compiled products compare: arrays with the sizes and places that come with them."""

from __future__ import annotations

from typing import Any

from intvit.errors import IntvitError
from intvit.kernels.border import characters
from intvit.kernels.gemm.layout import MR, NR, ROW_BLOCK, WORD, Array, padded_columns, words_of

_INT32, _INT64, _NARROW = (characters(kinds) for kinds in ("int32", "int64", "int8|int16"))
_PAIRS = ("bB", "hH", "hh")
"""Codes of the dtypes of packed operands that meet in an instruction."""


def is_line(array: Any, kinds: str) -> bool:
    """True for a contiguous vector whose dtype has one of these one-letter codes."""
    return bool(array.ndim == 1 and array.dtype.char in kinds and array.flags.c_contiguous)


def lies_inside(flat: Array, start: int, rows: int, row_stride: int, columns: int, column_stride: int) -> bool:
    """True if every element of a matrix at `start` of `flat` lies in it."""
    last = start + (rows - 1) * row_stride + (columns - 1) * column_stride
    return min(start, row_stride, column_stride) >= 0 and min(rows, columns) >= 1 and last < flat.size


def require(name: str, fits: bool) -> None:
    if not fits:
        raise IntvitError(f"gemm {name}: arrays must fit the sizes that come with them, and do not")


def check_columns(
    flat: Array, start: int, depth_stride: int, column_stride: int, depth: int, columns: int, steps: int, packed: Array
) -> None:
    fits = is_line(flat, _NARROW) and is_line(packed, _NARROW) and flat.itemsize <= packed.itemsize
    fits = fits and steps == words_of(depth, packed) and packed.nbytes >= padded_columns(columns) * steps * WORD
    require("pack_columns", fits and lies_inside(flat, start, depth, depth_stride, columns, column_stride))


def check_sums(
    flat: Array, start: int, depth_stride: int, column_stride: int, depth: int, columns: int, sums: Array
) -> None:
    fits = is_line(flat, _NARROW) and is_line(sums, _INT32) and sums.size >= columns
    require("column_sums", fits and lies_inside(flat, start, depth, depth_stride, columns, column_stride))


def check_tiles(
    depth: int, left: Array, right: Array, steps: int, columns: int, sums: Array, m: Array, e: Array, half: Array,
    high: int, edge: Array, out: Array,
) -> bool:  # fmt: skip
    """Whether all is there that one tile after another reads and writes: packed operands, constants, sums, edge."""
    padded, constants = padded_columns(columns), m.size
    return (
        left.dtype.char + right.dtype.char in _PAIRS
        and steps == words_of(depth, left)
        and is_line(left, _NARROW)
        and left.nbytes >= ROW_BLOCK * steps * WORD
        and right.nbytes >= padded * steps * WORD
        and is_line(right, right.dtype.char)
        and sums.dtype.char in _INT32
        and sums.shape == (MR, NR)
        and sums.flags.c_contiguous
        and (constants >= padded or (not constants and out.dtype.char in _INT32))
        and constants == e.size == half.size
        and is_line(m, _INT32)
        and is_line(e, _INT64)
        and is_line(half, _INT64)
        and is_line(out, _NARROW + _INT32)
        and high >> (8 * out.itemsize - 1) == 0
        and is_line(edge, out.dtype.char)
        and edge.size >= MR * NR
    )


def check_packed(
    flat: Array, start: int, row_stride: int, step_stride: int, rows: int, depth: int, shift: int, left: Array,
    right: Array, steps: int, columns: int, sums: Array, offset: Array, m: Array, e: Array, half: Array, low: int,
    high: int, edge: Array, out: Array, to: int, out_stride: int,
) -> None:  # fmt: skip
    fits = check_tiles(depth, left, right, steps, columns, sums, m, e, half, high, edge, out)
    fits = fits and is_line(flat, _NARROW) and flat.itemsize <= left.itemsize
    fits = fits and is_line(offset, _INT32) and offset.size >= padded_columns(columns)
    fits = fits and lies_inside(flat, start, rows, row_stride, depth, step_stride)
    require("multiply_packed", fits and lies_inside(out, to, rows, out_stride, columns, 1))


def check_batch(
    flat: Array, starts: Array, row_stride: int, step_stride: int, rows: int, depth: int, shift: int, left: Array,
    b: Array, b_starts: Array, depth_stride: int, column_stride: int, right: Array, right_signed: Array, steps: int,
    columns: int, sums: Array, correction: int, m: Array, e: Array, half: Array, low: int, high: int, edge: Array,
    out: Array, tos: Array, out_stride: int,
) -> None:  # fmt: skip
    """The kernel itself compares every start with the arrays."""
    fits = check_tiles(depth, left, right, steps, columns, sums, m, e, half, high, edge, out)
    fits = fits and is_line(flat, _NARROW) and flat.itemsize <= left.itemsize
    fits = fits and is_line(right_signed, _NARROW) and right_signed.nbytes >= padded_columns(columns) * steps * WORD
    fits = fits and is_line(b, _NARROW) and b.itemsize <= right_signed.itemsize == right.itemsize
    fits = fits and is_line(starts, _INT64) and is_line(b_starts, _INT64) and is_line(tos, _INT64)
    fits = fits and starts.size == b_starts.size == tos.size
    fits = fits and lies_inside(flat, 0, rows, row_stride, depth, step_stride)
    fits = fits and lies_inside(b, 0, depth, depth_stride, columns, column_stride)
    require("multiply_batch", fits and lies_inside(out, 0, rows, out_stride, columns, 1))
