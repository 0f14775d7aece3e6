"""Interval analysis: proves how wide each accumulator gets, from the actual integers."""

from __future__ import annotations

import numpy as np

from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array

ACCUMULATOR_BITS = 32


def linear_bound(weight: Array, bias: Array | None, x_max: int) -> Array:
    """Largest |sum_k w[o,k] x[k] + b[o]| over |x| <= x_max, per output channel (O,): Python integers, of any width."""
    total = np.abs(weight.astype(np.int64)).sum(axis=1).astype(object) * x_max
    return total if bias is None else total + np.abs(bias.astype(np.int64))


def narrowest(bound: int, least: int = 2) -> IntType:
    """The narrowest signed type of at least `least` bits that holds -bound..bound.

    >>> str(narrowest(127)), str(narrowest(128)), str(narrowest(5, 32))
    ('s8', 's9', 's32')
    """
    return IntType(max(least, int(bound).bit_length() + 1))


def accumulator_type(bound: int) -> IntType:
    """int32 where the bound proves it, else the width that the bound asks for."""
    return narrowest(bound, ACCUMULATOR_BITS)
