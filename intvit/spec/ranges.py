"""What a parameter class accepts: the ranges for which spec and kernel were shown to agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

from intvit.errors import IntvitError

Range = tuple[int, int]
_asked: ContextVar[dict[str, Range] | None] = ContextVar("intvit.spec.ranges", default=None)


def asked(make: Callable[[], object]) -> dict[str, Range]:
    """Every range that is required while `make` runs: what stands in front of the rule -> (least, largest).

    >>> asked(lambda: require("softmax ivit: n", 0, 23, 15))
    {'softmax ivit: n': (0, 23)}

    Raises what `make` raises.
    """
    ranges: dict[str, Range] = {}
    token = _asked.set(ranges)
    try:
        make()
    finally:
        _asked.reset(token)
    return ranges


def require(where: str, low: int, high: int, value: int) -> None:
    """IntvitError unless `value` is an int, and no bool, in low..high.

    >>> require("softmax ivit: n", 0, 23, 24)
    Traceback (most recent call last):
    intvit.errors.IntvitError: softmax ivit: n must be an integer in 0..23, not 24
    """
    ranges = _asked.get()
    if ranges is not None:
        ranges[where] = (low, high)
    if type(value) is not int or not low <= value <= high:
        text = repr(value) if type(value) is not int or value.bit_length() < 80 else f"{value.bit_length()} bits"
        raise IntvitError(f"{where} must be an integer in {low}..{high}, not {text[:60]}")


def require_all(where: str, low: int, high: int, values: tuple[int, ...]) -> None:
    """`require` of every element of a tuple."""
    if type(values) is not tuple:
        raise IntvitError(f"{where} must be a vector of integers, not {values!r:.60}")
    for value in values:
        require(where, low, high, value)


def require_lengths(where: str, *vectors: Sequence[int]) -> None:
    """IntvitError unless all are tuples of one length, at least 1."""
    lengths = [len(v) if type(v) is tuple else 0 for v in vectors]
    if min(lengths) < 1 or len(set(lengths)) > 1:
        raise IntvitError(f"{where} must be vectors of one length, not {lengths}")
