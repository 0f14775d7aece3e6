"""What happens to the sums of a tile on their way out: an offset per column, requantization, the edge of the matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from intvit.kernels.arith import inlined
from intvit.kernels.gemm.intrinsics import add_panel, finish_panel
from intvit.kernels.gemm.layout import NR, Array
from intvit.kernels.rounding import ADD, AT, HALF_EVEN, E, M, Rounding, regular


class Epilogue(NamedTuple):
    """What happens to accumulators before they are stored: constants per column, padded to whole panels.

    `m` empty: nothing, they are stored as they are.
    """

    m: Array
    """(padded columns,) int32: |m| < 2**31."""
    rounding: Array
    """(3, padded columns) int64: e, add and at of `round_shift`, in `kernels/rounding.py`."""
    mask: int
    """The same for all columns: of `round_shift`."""
    low: int
    high: int
    """What results saturate at, inclusive."""
    plus: int
    """A zero point: added to what was rounded."""

    @staticmethod
    def raw() -> Epilogue:
        return Epilogue(np.zeros(0, np.int32), np.zeros((3, 0), np.int64), 0, 0, 0, 0)

    @staticmethod
    def dyadic(
        m: Array, e: Array, bits: int, columns: int, rounding: Rounding = HALF_EVEN, *, plus: int = 0
    ) -> Epilogue | None:
        """`saturate(round(x*m / 2**e) + plus)` at `bits`; None where the fast form does not hold: e outside 1..62."""
        constants = regular(np.asarray(m), np.asarray(e), rounding)
        if constants is None or bits > 32:
            return None
        every = np.broadcast_to(constants, (len(constants), columns))
        padded = np.pad(every, ((0, 0), (0, -columns % NR)), mode="edge")
        limit = 2 ** (bits - 1)
        return Epilogue(padded[M].astype(np.int32), padded[[E, ADD, AT]], rounding.mask, -limit, limit - 1, plus)


@inlined
def finish(scratch, rows, columns, first, offset, epilogue, out, row):
    """out[row + i, first + c] = saturate(round((sums[i, c] + offset[first + c]) * m / 2**e) + plus), i < rows, c <
    columns.

    m and e are those of column first + c; for m empty the sum is stored as it is. Sums int32 (MR, NR) and offsets int32
    wrap; |sum * m| < 2**62, so that every term of `round_shift` fits int64. A panel that the matrix does not fill goes
    through `edge`.
    """
    sums, edge, flat, to = scratch.sums, scratch.edge, out.flat, out.start + row * out.row + first
    raw = epilogue.m.shape[0] == 0
    if columns == NR:
        if raw:
            add_panel(sums, rows, offset, first, flat, to, out.row)
        else:
            finish_panel(sums, rows, offset, epilogue, first, flat, to, out.row)
        return
    if raw:
        add_panel(sums, rows, offset, first, edge, 0, NR)
    else:
        finish_panel(sums, rows, offset, epilogue, first, edge, 0, NR)
    for i in range(rows):
        for c in range(columns):
            flat[to + i * out.row + c] = edge[i * NR + c]
