"""What a parameter class accepts: the ranges for which spec and kernel were shown to agree."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.errors import IntvitError


def require(where: str, low: int, high: int, value: int | Sequence[int]) -> None:
    """IntvitError unless `value`, or every element of it, is an int in low..high.

    >>> require("softmax ivit: n", 0, 23, 24)
    Traceback (most recent call last):
    intvit.errors.IntvitError: softmax ivit: n must be an integer in 0..23, not 24
    """
    for v in (value,) if isinstance(value, int) or not isinstance(value, Sequence) else value:
        if type(v) is not int or not low <= v <= high:
            text = repr(v) if type(v) is not int or v.bit_length() < 80 else f"one of {v.bit_length()} bits"
            raise IntvitError(f"{where} must be an integer in {low}..{high}, not {text[:60]}")


def require_lengths(where: str, *vectors: Sequence[int]) -> None:
    """IntvitError unless all vectors have one length, at least 1."""
    lengths = [len(v) for v in vectors]
    if min(lengths) < 1 or len(set(lengths)) > 1:
        raise IntvitError(f"{where} must be vectors of one length, not {lengths}")
