"""What happens to the sums of a tile on their way out: an offset per column, requantization, the edge of the matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from intvit.kernels.arith import inlined
from intvit.kernels.gemm.intrinsics import finish_panel
from intvit.kernels.gemm.layout import NR, Array
from intvit.kernels.requantize import regular


class Epilogue(NamedTuple):
    """What happens to accumulators before they are stored: constants per column, padded to whole panels.

    `m` empty: nothing, they are stored as they are.
    """

    m: Array
    e: Array
    half: Array
    low: int
    high: int

    @staticmethod
    def raw() -> Epilogue:
        nothing = np.zeros(0, np.int64)
        return Epilogue(np.zeros(0, np.int32), nothing, nothing, 0, 0)

    @staticmethod
    def dyadic(m: Array, e: Array, bits: int, columns: int) -> Epilogue | None:
        """`saturate(rhe(x*m, 2**e))` at `bits`; None where the fast form does not hold: e outside 1..62."""
        constants = regular(np.asarray(m), np.asarray(e))
        if constants is None or bits > 32:
            return None
        m, e, half = (np.pad(np.broadcast_to(v, columns), (0, -columns % NR), mode="edge") for v in constants)
        return Epilogue(m.astype(np.int32), e, half, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@inlined
def finish(scratch, rows, columns, first, offset, epilogue, out, row):
    """out = saturate(rhe((sums + offset) * m, 2**e)) for the tile at (row, first); for m empty sums + offset.

    1 <= e <= 62 and half = 2**(e-1) - 1: |sum * m| < 2**62, so that every term fits int64. A panel that the matrix
    does not fill goes through `edge`.
    """
    sums, edge, flat, to = scratch.sums, scratch.edge, out.flat, out.start + row * out.row + first
    if epilogue.m.shape[0] == 0:
        for i in range(rows):
            for c in range(columns):
                flat[to + i * out.row + c] = np.int32(sums[i, c] + offset[first + c])
        return
    if columns == NR:
        finish_panel(sums, rows, offset, epilogue, first, flat, to, out.row)
        return
    finish_panel(sums, rows, offset, epilogue, first, edge, 0, NR)
    for i in range(rows):
        for c in range(columns):
            flat[to + i * out.row + c] = edge[i * NR + c]
