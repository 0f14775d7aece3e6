"""The compiled products: packed operands met tile by tile, finished into the output. No memory is taken here but for
one vector of offsets, and nothing is decided.
"""

from __future__ import annotations

import numpy as np

from intvit.kernels.arith import kernel
from intvit.kernels.border import border
from intvit.kernels.gemm.checks import check_batch, check_packed
from intvit.kernels.gemm.epilogue import finish
from intvit.kernels.gemm.intrinsics import multiply_tile
from intvit.kernels.gemm.layout import MR, NR, ROW_BLOCK, WORD
from intvit.kernels.gemm.pack import column_sums, pack_columns, pack_rows


@kernel
def multiply_packed(
    flat, start, row_stride, step_stride, rows, depth, shift, left, right, steps, columns, sums, offset, m, e, half,
    low, high, edge, out, to, out_stride,
):  # fmt: skip
    """A left operand (strided in `flat`) times a packed right one, block by block, finished into `out`."""
    panels = (columns + NR - 1) // NR
    for i in range(0, rows, ROW_BLOCK):
        n = min(ROW_BLOCK, rows - i)
        pack_rows(flat, start + i * row_stride, row_stride, step_stride, n, depth, steps, shift, left)
        for panel in range(panels):
            j = panel * NR
            for tile in range((n + MR - 1) // MR):
                left_at, right_at = tile * steps * MR * WORD, panel * steps * NR * WORD
                multiply_tile(left, left_at, right, right_at, steps, sums)
                row = i + tile * MR
                finish(
                    sums, min(MR, rows - row), min(NR, columns - j), j, offset, m, e, half, low, high, edge, out,
                    to + row * out_stride + j, out_stride,
                )  # fmt: skip


@kernel
def multiply_batch(
    flat, starts, row_stride, step_stride, rows, depth, shift, left, b, b_starts, depth_stride, column_stride, right,
    right_signed, steps, columns, sums, correction, m, e, half, low, high, edge, out, tos,
    out_stride,
):  # fmt: skip
    """One product of activations per entry of `starts`: pack the right operand, then as `multiply_packed`.

    False if a matrix lies outside its array.
    """
    offset = np.zeros((columns + NR - 1) // NR * NR, np.int32)
    last = flat.shape[0] - 1 - (rows - 1) * row_stride - (depth - 1) * step_stride
    b_last = b.shape[0] - 1 - (depth - 1) * depth_stride - (columns - 1) * column_stride
    out_last = out.shape[0] - 1 - (rows - 1) * out_stride - (columns - 1)
    for n in range(starts.shape[0]):
        if min(starts[n], b_starts[n], tos[n]) < 0 or starts[n] > last or b_starts[n] > b_last or tos[n] > out_last:
            return False
        pack_columns(b, b_starts[n], depth_stride, column_stride, depth, columns, steps, right_signed)
        if correction != 0:
            column_sums(b, b_starts[n], depth_stride, column_stride, depth, columns, offset)
            for c in range(columns):
                offset[c] = np.int32(offset[c] * correction)
        multiply_packed(
            flat, starts[n], row_stride, step_stride, rows, depth, shift, left, right, steps, columns, sums, offset, m,
            e, half, low, high, edge, out, tos[n], out_stride,
        )  # fmt: skip
    return True


enter_multiply_packed = border(check_packed)(multiply_packed)
enter_multiply_batch = border(check_batch)(multiply_batch)
