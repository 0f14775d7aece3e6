"""Average pooling: one rounded division."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.arith import rhe
from intvit.spec.taps import tap


def mean(values: Sequence[int]) -> int:
    """`round_half_even(sum / count)`."""
    return rhe(tap("sum", sum(values)), len(values))
