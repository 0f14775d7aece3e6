"""Average pooling: sums are exact in int64, one rounded division."""

from __future__ import annotations

import numpy as np

from intvit.kernels.arith import as_rows, kernel, rhe_div


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
    rows = as_rows(moved)
    out = np.empty(len(rows), np.int64)
    _mean(rows, out)
    return out.reshape(moved.shape[:-1])
