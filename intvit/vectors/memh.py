"""`$readmemh` text: one word a line, two's complement, lower-case hex, row-major order (golden/FORMAT.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.vectors.npz import stored_type

Array = np.ndarray[Any, Any]
LF = ord("\n")
DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
NO_DIGIT = 255
VALUES = np.full(256, NO_DIGIT, np.uint8)
VALUES[DIGITS] = np.arange(16)
PAIRS = np.stack([np.repeat(DIGITS, 16), np.tile(DIGITS, 16)], axis=1).copy().view(np.uint16).reshape(-1)
"""The two digits of every byte."""


def format_memh(array: Array, dtype: IntType, header: str) -> bytes:
    """Words of `ceil(bits/4)` hex digits, last axis fastest; `header` becomes a comment. Values must fit `dtype`.

    >>> print(format_memh(np.array([1, -1]), IntType(8), "two words").decode(), end="")
    // two words
    01
    ff
    """
    n_digits, n_bytes = digits(dtype), -(-dtype.bits // 8)
    stored = stored_type(dtype)
    octets = np.ascontiguousarray(array, stored).reshape(-1).view(np.uint8).reshape(-1, stored.itemsize)
    fields: list[tuple[str, Any]] = [(f"byte{i}", np.uint16) for i in reversed(range(n_bytes))]
    if n_digits % 2:
        fields[0] = fields[0][0], np.uint8
    lines = np.empty(len(octets), [*fields, ("end", np.uint8)])
    for i, (name, kind) in zip(reversed(range(n_bytes)), fields, strict=True):
        mask = np.uint8((1 << min(8, dtype.bits - 8 * i)) - 1)
        lines[name] = (PAIRS if kind is np.uint16 else DIGITS)[octets[:, i] & mask]
    lines["end"] = LF
    return f"// {header}\n".encode("ascii") + lines.tobytes()


def parse_memh(data: bytes, dtype: IntType, shape: tuple[int, ...], header: str, where: object) -> Array:
    """The int64 array that `format_memh` wrote; IntvitError if it would not have written these very bytes."""
    first = f"// {header}\n".encode("ascii")
    if not data.startswith(first):
        actual = data[: len(first) + 1].partition(b"\n")[0].decode("ascii", "replace")
        raise IntvitError(f"{where}: line 1 must be '// {header}' and LF, not {actual!a}")
    n_words, n_digits = math.prod(shape), digits(dtype)
    body = data[len(first) :]
    if len(body) != n_words * (n_digits + 1):
        rule = f"{n_words} lines of {n_digits} lower-case hex digits and LF"
        raise IntvitError(f"{where}: must hold {rule}, not {len(body)} bytes{_first_bad(body, n_digits)}")
    lines = np.frombuffer(body, np.uint8).reshape(n_words, n_digits + 1)
    words, bad = np.zeros(n_words, np.int64), lines[:, -1] != LF
    for i in range(n_digits):
        digit = VALUES[lines[:, i]]
        bad |= digit == NO_DIGIT
        words <<= 4
        words |= digit
    if bad.any():
        raise IntvitError(f"{where}: must be {n_digits} lower-case hex digits a line{_first_bad(body, n_digits)}")
    if dtype.bits < 64:
        wide = words >= 1 << dtype.bits
        if wide.any():
            i = int(wide.argmax())
            raise IntvitError(f"{where}: line {i + 2} must have no bit above {dtype}, not {_text(lines[i].tobytes())}")
        if dtype.signed:
            sign = 1 << (dtype.bits - 1)
            words = (words ^ sign) - sign
    return words.reshape(shape)


def size_memh(dtype: IntType, shape: tuple[int, ...], header: str) -> int:
    """Bytes of the text."""
    return len(f"// {header}\n") + math.prod(shape) * (digits(dtype) + 1)


def digits(dtype: IntType) -> int:
    """Hex digits of a word."""
    return -(-dtype.bits // 4)


def _first_bad(body: bytes, n_digits: int) -> str:
    """Where and what the first line is that is no word."""
    for i, line in enumerate(body.removesuffix(b"\n").split(b"\n")):
        if len(line) != n_digits or any(VALUES[c] == NO_DIGIT for c in line):
            return f"; line {i + 2} is {_text(line)}"
    return ""


def _text(line: bytes) -> str:
    return ascii(line[:40].strip(b"\n").decode("ascii", "replace"))
