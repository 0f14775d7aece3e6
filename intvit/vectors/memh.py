"""`$readmemh` text: one word a line, two's complement, lower-case hex, row-major order (golden/FORMAT.md)."""

from __future__ import annotations

import numpy as np

from intvit.errors import IntvitError
from intvit.inttypes import IntType


def format_memh(array: np.ndarray, dtype: IntType, header: str) -> str:
    """Words of `ceil(bits/4)` hex digits, last axis fastest; `header` becomes a comment.

    >>> print(format_memh(np.array([1, -1]), IntType(8), "two words"), end="")
    // two words
    01
    ff
    """
    digits, mask = -(-dtype.bits // 4), (1 << dtype.bits) - 1
    words = [f"{int(v) & mask:0{digits}x}" for v in array.reshape(-1).tolist()]
    return "\n".join([f"// {header}", *words, ""])


def parse_memh(text: str, dtype: IntType, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The int64 array that `format_memh` wrote."""
    words = [line for line in text.splitlines() if line and not line.startswith("//")]
    n_words = int(np.prod(shape, dtype=np.int64))
    if len(words) != n_words:
        raise IntvitError(f"{where}: must hold {n_words} words, not {len(words)}")
    sign, span = 1 << (dtype.bits - 1), 1 << dtype.bits
    values = []
    for i, word in enumerate(words):
        try:
            value = int(word, 16)
        except ValueError:
            raise IntvitError(f"{where}: word {i} must be hexadecimal, not {word!r}") from None
        if value >= span:
            raise IntvitError(f"{where}: word {i} must fit {dtype}, not {word}")
        values.append(value - span if dtype.signed and value & sign else value)
    return np.array(values, np.int64).reshape(shape)
