"""Comparisons that failed, each as one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.graph.inttypes import IntType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Mismatch:
    """What was compared, what it must be and what it is."""

    place: str
    what: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}: expected {self.expected}, got {self.actual}"


def word(value: int, dtype: IntType) -> str:
    """A value in decimal, and as the two's complement word of its type.

    >>> word(-3, IntType(6)), word(40, IntType(6))
    ('-3 (0x3d)', '40 (beyond s6)')
    """
    if not dtype.min <= value <= dtype.max:
        return f"{value} (beyond {dtype})"
    return f"{value} (0x{value & ((1 << dtype.bits) - 1):0{-(-dtype.bits // 4)}x})"


def first_difference(place: str, what: str, expected: Array, actual: Array, dtype: IntType) -> Iterator[Mismatch]:
    """Nothing where two arrays of one shape are equal, else their first differing element in row-major order."""
    different = (expected != actual).reshape(-1)
    if different.any():
        at = int(different.argmax())
        index = [int(i) for i in np.unravel_index(at, expected.shape)]
        values = (word(int(array.reshape(-1)[at]), dtype) for array in (expected, actual))
        yield Mismatch(place, f"{what} differs first at index {index}", *values)


def shown(name: str) -> str:
    """A name as printable ASCII."""
    return ascii(name)[1:-1]
