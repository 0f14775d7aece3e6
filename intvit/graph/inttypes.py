"""Integer types as values: `IntType(8)` is s8, `IntType(4, signed=False)` is u4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intvit.errors import IntvitError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class IntType:
    """An integer of `bits` bits (1..64), two's complement when signed.

    >>> IntType(8).min, IntType(8).max, str(IntType(8))
    (-128, 127, 's8')
    >>> IntType.parse("u4").max
    15
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64:
            raise IntvitError(f"integer type: bits must lie in 1..64, not {self.bits}")

    @property
    def min(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max(self) -> int:
        return (1 << (self.bits - int(self.signed))) - 1

    def __str__(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}"

    @classmethod
    def parse(cls, text: str) -> IntType:
        if text[:1] not in ("s", "u") or not text[1:].isdecimal():
            raise IntvitError(f"integer type: must read like 's8' or 'u4', not {text!r}")
        return cls(int(text[1:]), text[0] == "s")


def storage(dtype: IntType) -> type[np.signedinteger[Any]]:
    """The narrowest NumPy integer that holds `dtype`."""
    import numpy as np

    bits = dtype.bits + (not dtype.signed)
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.int64
