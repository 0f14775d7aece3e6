"""The compiled products: packed operands met tile by tile, finished into the output. No memory is taken here but for
a vector of offsets or a tile, and nothing is decided.
"""

from __future__ import annotations

import numpy as np

from intvit.kernels.arith import kernel
from intvit.kernels.border import border
from intvit.kernels.gemm.checks import check_batch, check_bounded, check_packed
from intvit.kernels.gemm.epilogue import Epilogue, finish
from intvit.kernels.gemm.intrinsics import multiply_tile
from intvit.kernels.gemm.layout import BLOCK, MR, NR, ROW_BLOCK, WORD, Matrices, Matrix, Parts, Scratch, Size
from intvit.kernels.gemm.pack import column_sums, pack_columns, pack_rows


@kernel
def multiply_packed(x, out, size, right, offset, epilogue, scratch):
    """out[i, c] = saturate(round((sum over k of x[i, k] * y[k, c] + offset[c]) * m[c] / 2**e[c])), block by block.

    x int8 or int16 (rows, depth); `right` is y (depth, columns), packed; `offset` int32 (padded columns,). Sums wrap at
    32 bits. Where `right` is uint8, x + 128 is multiplied: `offset` holds -128 times the sums of the columns of y.
    """
    shift = 128 if right.itemsize == 1 else 0
    left, sums, steps = scratch.left, scratch.sums, size.steps
    panels = (size.columns + NR - 1) // NR
    for i in range(0, size.rows, ROW_BLOCK):
        n = min(ROW_BLOCK, size.rows - i)
        pack_rows(x.flat, x.start + i * x.row, x.row, x.column, n, size.depth, steps, shift, left)
        for panel in range(panels):
            j = panel * NR
            for tile in range((n + MR - 1) // MR):
                left_at, right_at = tile * steps * MR * WORD, panel * steps * NR * WORD
                multiply_tile(left, left_at, right, right_at, steps, sums)
                row = i + tile * MR
                finish(scratch, min(MR, size.rows - row), min(NR, size.columns - j), j, offset, epilogue, out, row)


@kernel
def multiply_batch(a, b, out, size, right, correction, epilogue, scratch):
    """out[n] = saturate(round((a[n] @ b[n] + correction * column sums of b[n]) * m / 2**e)), n = 0, 1, ...

    a int8 or int16 (rows, depth), b int8 or int16 (depth, columns), which is packed into `right` here. `correction` is
    -128 where the bytes of a are stored plus 128, and z where a holds values less z. False if a matrix lies outside its
    array; those before it are written.
    """
    offset = np.zeros((size.columns + NR - 1) // NR * NR, np.int32)
    last = a.flat.shape[0] - 1 - (size.rows - 1) * a.row - (size.depth - 1) * a.column
    b_last = b.flat.shape[0] - 1 - (size.depth - 1) * b.row - (size.columns - 1) * b.column
    out_last = out.flat.shape[0] - 1 - (size.rows - 1) * out.row - (size.columns - 1)
    for n in range(a.starts.shape[0]):
        at, b_at, to = a.starts[n], b.starts[n], out.starts[n]
        if min(at, b_at, to) < 0 or at > last or b_at > b_last or to > out_last:
            return False
        pack_columns(b.flat, b_at, b.row, b.column, size.depth, size.columns, size.steps, right)
        if correction != 0:
            column_sums(b.flat, b_at, b.row, b.column, size.depth, size.columns, offset)
            for c in range(size.columns):
                offset[c] = np.int32(offset[c] * correction)
        x, target = Matrix(a.flat, at, a.row, a.column), Matrix(out.flat, to, out.row, 1)
        multiply_packed(x, target, size, right, offset, epilogue, scratch)
    return True


@kernel
def multiply_bounded(x, out, size, right, parts, low, high, scratch):
    """out[i, c] = the sum over k of x[i, k] * y[k, c] and the bias, clamped to low..high, and where that is not enough.

    parts.open[i, c // BLOCK] is 1 where a sum of the first products, without the bias, may be beyond low..high; else it
    is left as it is. The magnitudes of the products of a part of K add to at most reach = |x| |y|, the lengths of row
    and column in it (Cauchy and Schwarz), so that no partial sum in a part that begins at p and adds s is above
    p + (reach + s) / 2 or below p - (reach - s) / 2. The reaches of all parts add to less than 2**30.
    """
    shift = 128 if right.itemsize == 1 else 0
    left, sums, steps = scratch.left, scratch.sums, size.steps
    top, bottom = np.int32(high), np.int32(low)
    before, beyond = np.empty((MR, NR), np.int32), np.empty((MR, NR), np.int32)
    for i in range(0, size.rows, ROW_BLOCK):
        n = min(ROW_BLOCK, size.rows - i)
        pack_rows(x.flat, x.start + i * x.row, x.row, x.column, n, size.depth, steps, shift, left)
        for j in range(0, size.columns, NR):
            width = min(NR, size.columns - j)
            for tile in range((n + MR - 1) // MR):
                row = i + tile * MR
                rows = min(MR, size.rows - row)
                before[:], beyond[:] = np.int32(0), np.int32(0)
                for p in range(parts.offset.shape[0]):
                    first = p * parts.steps
                    left_at, right_at = (tile * steps + first) * MR * WORD, (j // NR * steps + first) * NR * WORD
                    multiply_tile(left, left_at, right, right_at, min(parts.steps, steps - first), sums)
                    offset, lengths = parts.offset[p, j : j + NR], parts.of_columns[p, j : j + NR]
                    for r in range(rows):
                        length = parts.of_rows[p, row + r]
                        for c in range(NR):
                            found = np.int32(sums[r, c] + offset[c])
                            reach = np.int32(np.int32(length * lengths[c]) + 1)
                            above = np.int32((np.int32(reach + found) >> 1) + np.int32(before[r, c] - top))
                            below = np.int32((np.int32(reach - found) >> 1) + np.int32(bottom - before[r, c]))
                            beyond[r, c] = max(beyond[r, c], max(above, below))
                            before[r, c] = np.int32(before[r, c] + found)
                for r in range(rows):
                    most, to = np.int32(0), out.start + (row + r) * out.row + j
                    for c in range(width):
                        most = max(most, beyond[r, c])
                        out.flat[to + c] = min(max(np.int32(before[r, c] + parts.bias[j + c]), bottom), top)
                    if most > 0:
                        parts.open[row + r, j // BLOCK] = 1


# The same for Python. The border spreads their tuples: Numba takes 20 us to look at these, and 5 us at what they hold.


@border(check_packed)
@kernel
def enter_multiply_packed(
    flat, start, row, column, out, to, out_row, out_column, rows, depth, columns, steps, right, offset, m, rounding,
    mask, low, high, plus, left, sums, edge,
):  # fmt: skip
    multiply_packed(
        Matrix(flat, start, row, column),
        Matrix(out, to, out_row, out_column),
        Size(rows, depth, columns, steps),
        right,
        offset,
        Epilogue(m, rounding, mask, low, high, plus),
        Scratch(left, sums, edge),
    )


@border(check_batch)
@kernel
def enter_multiply_batch(
    flat, starts, row, column, b, b_starts, b_row, b_column, out, out_starts, out_row, out_column, rows, depth, columns,
    steps, right, correction, m, rounding, mask, low, high, plus, left, sums, edge,
):  # fmt: skip
    return multiply_batch(
        Matrices(flat, starts, row, column),
        Matrices(b, b_starts, b_row, b_column),
        Matrices(out, out_starts, out_row, out_column),
        Size(rows, depth, columns, steps),
        right,
        correction,
        Epilogue(m, rounding, mask, low, high, plus),
        Scratch(left, sums, edge),
    )


@border(check_bounded)
@kernel
def enter_multiply_bounded(
    flat, start, row, column, out, to, out_row, out_column, rows, depth, columns, steps, right, offset, bias, of_rows,
    of_columns, part_steps, open, low, high, left, sums, edge,
):  # fmt: skip
    multiply_bounded(
        Matrix(flat, start, row, column),
        Matrix(out, to, out_row, out_column),
        Size(rows, depth, columns, steps),
        right,
        Parts(offset, bias, of_rows, of_columns, part_steps, open),
        low,
        high,
        Scratch(left, sums, edge),
    )
