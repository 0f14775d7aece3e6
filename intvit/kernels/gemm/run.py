"""Products as Python prepares and runs them: memory, packing of weights, the proof that sums fit 32 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.gemm.detect import packed_type
from intvit.kernels.gemm.epilogue import Epilogue
from intvit.kernels.gemm.layout import (
    BLOCK,
    NR,
    WORD,
    Array,
    Matrix,
    Parts,
    Scratch,
    Size,
    aligned,
    operands,
    padded_columns,
    words_of,
)
from intvit.kernels.gemm.lengths import row_lengths
from intvit.kernels.gemm.pack import enter_column_sums, enter_pack_columns
from intvit.kernels.gemm.product import enter_multiply_batch, enter_multiply_bounded, enter_multiply_packed

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Linear:
    """A prepared linear operator: packed weights and the constants of its epilogue. One value serves every thread."""

    right: Array
    """[panel][step][NR] words of the weights, as `packed_type` names them."""
    steps: int
    depth: int
    columns: int
    offset: Array
    """(padded columns,) int32, modulo 2**32: the bias, less 128 times the column sums where x is stored plus 128."""
    left: Any
    """dtype of the packed left operand."""
    takes: Any
    """dtype of the operand that it was prepared for."""
    epilogue: Epilogue

    def run(self, x: Array, kind: Any) -> Array:
        """x (..., K) int8 or int16 -> (..., O) of dtype `kind`: `saturate(round((x @ w.T + bias) * m / 2**e))`."""
        rows = self.rows(x)
        out = np.empty((len(rows), self.columns), kind)
        if not out.size:
            return out.reshape(*x.shape[:-1], self.columns)
        enter_multiply_packed(
            Matrix(rows.reshape(-1), 0, self.depth, 1),
            Matrix(out.reshape(-1), 0, self.columns, 1),
            Size(len(rows), self.depth, self.columns, self.steps),
            self.right,
            self.offset,
            self.epilogue,
            Scratch.of(self.left, self.steps, kind),
        )
        return out.reshape(*x.shape[:-1], self.columns)

    def rows(self, x: Array) -> Array:
        """x (..., K) as (R, K); IntvitError if it is not what this was prepared for."""
        if x.dtype != self.takes or x.shape[-1:] != (self.depth,):
            raise IntvitError(f"linear: x must be {np.dtype(self.takes)} (..., {self.depth}), not {x.dtype} {x.shape}")
        return np.ascontiguousarray(x).reshape(-1, self.depth)


@dataclass(frozen=True)
class InParts:
    """A linear operator whose partial sums are bounded where one part of K ends and the next begins."""

    linear: Linear
    """The whole, without a bias."""
    part: int
    """Elements of K in a part."""
    steps: int
    """Packed words in a part."""
    offset: Array
    """(parts, padded columns) int32: less 128 times the column sums of the part, where x is stored plus 128."""
    of_columns: Array
    """(parts, padded columns) int32: Euclidean lengths of the weights, rounded up."""
    bias: Array
    """(padded columns,) int32"""

    def run(self, x: Array, bits: int, out: Array) -> Array:
        """Words of `bits` bits to out (R, O) int32, of x (R, K) @ w.T and the bias; -> where a partial sum may not fit.

        That is uint8 (R, blocks of BLOCK columns). |x| |w| is to be below 2**30 for every row and column.
        """
        rows, linear = self.linear.rows(x), self.linear
        open = np.zeros((len(rows), -(-linear.columns // BLOCK)), np.uint8)
        if not rows.size:
            return open
        high = (1 << (bits - 1)) - 1
        enter_multiply_bounded(
            Matrix(rows.reshape(-1), 0, linear.depth, 1),
            Matrix(out.reshape(-1), 0, linear.columns, 1),
            Size(len(rows), linear.depth, linear.columns, linear.steps),
            linear.right,
            Parts(self.offset, self.bias, row_lengths(rows, self.part), self.of_columns, self.steps, open),
            -high - 1,
            high,
            Scratch.of(linear.left, linear.steps, np.int32),
        )
        return open


def in_parts(linear: Linear, weight: Array, bias: Array | None, n_parts: int) -> InParts:
    """The operator that was prepared from weight (O, K), without a bias, looked at in at most so many parts of K."""
    elements = WORD // linear.right.itemsize
    steps = -(-linear.steps // n_parts)
    part = steps * elements
    cuts = [weight[:, at : at + part].astype(np.int64) for at in range(0, linear.depth, part)]
    lift = 128 if linear.right.itemsize == 1 else 0
    lengths = np.ceil(np.sqrt(np.array([(cut**2).sum(1) for cut in cuts]))).astype(np.int64) + 1
    tables = np.array([-lift * cut.sum(1) for cut in cuts]), lengths, np.zeros(len(weight)) if bias is None else bias
    offset, of_columns, added = (
        np.ascontiguousarray(np.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, -len(weight) % NR)]), np.int32)
        for table in tables
    )
    return InParts(linear, part, steps, offset, of_columns, added)


def _packed(flat: Array, depth: int, columns: int, strides: tuple[int, int], kind: Any) -> tuple[Array, Array, int]:
    """(packed right operand, column sums, steps)"""
    steps, padded = words_of(depth, np.dtype(kind).itemsize), padded_columns(columns)
    packed, sums = aligned(padded * steps * WORD, np.uint8).view(kind), np.empty(padded, np.int32)
    enter_pack_columns(flat, 0, *strides, depth, columns, steps, packed)
    enter_column_sums(flat, 0, *strides, depth, columns, sums)
    return packed, sums.astype(np.int64), steps


def prepare_linear(
    weight: Array, bias: Array | None, x_max: int, left: Any, epilogue: Epilogue, path: str
) -> Linear | None:
    """A linear operator for |x| <= x_max of dtype `left`, or None where the proven bound leaves 32 bits.

    weight (O, K) and bias (O,) integers. Bound: the largest `sum over k of |w[o, k]| * x_max + |bias[o]|`.
    """
    columns, depth = weight.shape
    if not weight.size:
        return None
    offset = np.zeros(columns, np.int64) if bias is None else bias.astype(np.int64)
    if offset.shape != (columns,):
        raise IntvitError(f"linear: bias must have {columns} elements, not {offset.shape}")
    bound = np.abs(weight.astype(np.int64)).sum(axis=1) * x_max + np.abs(offset)
    if path == "blas" or left not in (np.int8, np.int16) or int(bound.max()) > INT32_MAX:
        return None
    kind = packed_type(path, left)
    eight = kind == np.uint8
    flat = np.ascontiguousarray(weight, np.int8 if eight else np.int16).reshape(-1)
    right, sums, steps = _packed(flat, depth, columns, (1, depth), kind)
    offset = np.pad(offset, (0, -columns % NR)) - (128 * sums if eight else 0)
    offset = offset.astype(np.int32)  # wraps, as the sums do
    return Linear(right, steps, depth, columns, offset, np.int8 if eight else np.int16, left, epilogue)


@dataclass(frozen=True)
class Product:
    """A prepared product of activations a (..., R, K) and b (..., K, C); `a` may stand for a + lift (16 bits)."""

    path: str
    epilogue: Epilogue
    lift: int

    def run(self, a: Array, b: Array, kind: Any, order: tuple[int, ...] | None = None) -> Array:
        """a int8 or int16, b int8 (..., K, C) -> (..., R, C) of dtype `kind`.

        `order`: a permutation of the result's axes in which it lies in memory.
        """
        self.check(a, b)
        (depth, columns), rows, lead = b.shape[-2:], a.shape[-2], a.shape[:-2]
        out = _ordered((*lead, rows, columns), kind, order)
        if not (a.size and b.size):  # the sum of nothing is 0
            out[...] = 0
            return out
        left_kind = np.int8 if a.dtype == np.int8 and self.path == "vnni" else np.int16
        right_kind = packed_type(self.path, left_kind)
        steps = words_of(depth, np.dtype(left_kind).itemsize)
        enter_multiply_batch(
            operands(a),
            operands(b),
            operands(out),
            Size(rows, depth, columns, steps),
            aligned(padded_columns(columns) * steps * WORD // np.dtype(right_kind).itemsize, right_kind),
            -128 if right_kind == np.uint8 else self.lift,
            self.epilogue,
            Scratch.of(left_kind, steps, kind),
        )
        return out

    def check(self, a: Array, b: Array) -> None:
        """Raise IntvitError if a (..., R, K) and b (..., K, C) are no operands of one product."""
        if min(a.ndim, b.ndim) < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
            raise IntvitError(f"matmul: shapes must be (..., R, K) and (..., K, C), not {a.shape} and {b.shape}")
        if a.dtype not in (np.int8, np.int16) or b.dtype != np.int8 or (self.lift and a.dtype == np.int8):
            lifted = "int16" if self.lift else "int8 or int16"
            raise IntvitError(f"matmul: operands must be {lifted} and int8, not {a.dtype} and {b.dtype}")


def _ordered(shape: tuple[int, ...], kind: Any, order: tuple[int, ...] | None) -> Array:
    """An array of `shape`, contiguous once its axes are permuted by `order`; the last axis stays last."""
    if order is None or order[-1] != len(shape) - 1:
        return np.empty(shape, kind)
    return np.empty([shape[axis] for axis in order], kind).transpose(np.argsort(order))
