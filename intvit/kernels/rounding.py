"""How the fast kernels round p / 2**e: one formula without a branch, the modes as constants of it.

    (p + add + (mask & (p >> at))) >> e            |p| <= 2**62, 1 <= e <= 62

The last shift is a floor; what is added before it turns that into any other mode. Half to even adds half of 2**e less
1, and 1 more where the floor is odd: below a tie the sum stays under the next multiple, above it passes it, at a tie
the parity decides. Half away from zero adds half, less 1 where p is negative, as the sign shifted down by 63 says. With
the constants in registers every mode costs what half to even alone does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from intvit.kernels.arith import kernel

Array = np.ndarray[Any, Any]
M, E, ADD, AT, LIMIT = range(5)
"""Rows of what `regular` returns; LIMIT is the largest |x| for which |x * m| <= 2**62."""


class Rounding(NamedTuple):
    """A mode: `add` is `half` * 2**(e-1) + `more`; `at` is 63 if it looks at the sign of p, else e."""

    half: int
    more: int
    mask: int
    sign: bool


ROUNDINGS = {
    "half_even": Rounding(1, -1, 1, False),
    "half_up": Rounding(1, 0, 0, False),
    "half_away": Rounding(1, 0, -1, True),
    "floor": Rounding(0, 0, 0, False),
}
HALF_EVEN = ROUNDINGS["half_even"]


@kernel
def round_shift(p, e, add, at, mask):
    """p / 2**e, rounded as the constants say: 1 <= e <= 62, |p| <= 2**62."""
    return (p + add + (mask & (p >> at))) >> e


def regular(m: Array, e: Array, rounding: Rounding) -> Array | None:
    """(5, n) int64: m, e, the constants of `round_shift`, and LIMIT, with |m| < 2**31; None if some e leaves 1..62."""
    m, e = m.astype(np.int64), e.astype(np.int64)  # a file may store them in any width that holds them
    full = np.abs(m) == 2**31
    m, e = np.where(full, m >> 1, m), np.where(full, e - 1, e)
    if e.min() < 1 or e.max() > 62:
        return None
    add = rounding.half * (np.int64(1) << (e - 1)) + rounding.more
    at = np.full_like(e, 63) if rounding.sign else e
    return np.array([m, e, add, at, 2**62 // np.maximum(np.abs(m), 1)], np.int64)
