"""Average pooling: sums are exact in int64, one rounded division."""

from __future__ import annotations

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import as_rows, kernel, rhe_div
from intvit.kernels.border import border


@border(rows="int64 R C", out="int64 R")
@kernel
def _mean(rows, out):
    count, width = rows.shape
    for i in range(count):
        total = 0
        for j in range(width):
            total += rows[i, j]
        out[i] = rhe_div(total, width)


def mean(x: np.ndarray, axis: int) -> np.ndarray:
    """round_half_even(sum / count) along `axis`, which is dropped; int64."""
    moved = np.moveaxis(x, axis, -1)
    count, out = moved.shape[-1], np.empty(moved.shape[:-1], np.int64)
    if not count:
        raise IntvitError(f"mean: must be of at least one element, and axis {axis} of {x.shape} has none")
    if x.dtype.itemsize > 4 and x.size and count * max(-int(x.min()), int(x.max())) >= 2**63:
        raise IntvitError(f"mean: sums must stay below 2**63, and {count} of {int(x.min())}..{int(x.max())} do not")
    if not out.size:
        return out
    _mean(as_rows(moved), out.reshape(-1))
    return out
