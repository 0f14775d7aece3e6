"""A word of hardware, fast: whole tensors in int64."""

from __future__ import annotations

import numpy as np

from intvit.spec.numerics import STORAGE_BITS


def word(
    x: np.ndarray,
    bits: int,
    overflow: str,
    *,
    keep: np.ndarray | None = None,
    force: np.ndarray | None = None,
    flip: np.ndarray | None = None,
) -> np.ndarray:
    """int64 of the shape of `x`: x narrowed to `bits` bits, then the masks, int64, which broadcast to it."""
    y = x.astype(np.int64)
    if overflow == "saturate":
        np.clip(y, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, out=y)
    else:
        y = (y << (STORAGE_BITS - bits)) >> (STORAGE_BITS - bits)  # the sign comes back from above
    if keep is not None:
        y &= keep
    if force is not None:
        y |= force
    if flip is not None:
        y ^= flip
    return y
