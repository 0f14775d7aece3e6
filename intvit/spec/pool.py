"""Average pooling: one rounded division, ties to even."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.arith import rhe
from intvit.spec.taps import tap


def mean(values: Sequence[int]) -> int:
    """`rhe(sum, count)` of (N,) values, N >= 1, in their own steps. ZeroDivisionError if there are none.

    Source: docs/quantization.md, "Average pooling".
    """
    return rhe(tap("sum", sum(values)), len(values))
