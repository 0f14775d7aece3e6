"""Words as hex or binary digits, many at once: what the text formats of memories share.

A word is (bytes) u8, lowest byte first. Texts are read as Verilog's `$readmemh` reads them: words between white space,
`@` and a hex address, `_` in numbers, `x` and `z` for what is not known, fewer digits than the word has.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.vectors.layouts.memory import Addresses, Bank

Array = np.ndarray[Any, Any]

LF, AT = ord("\n"), ord("@")
UNKNOWN, NO_DIGIT = 16, 255
VALUES = np.full(256, NO_DIGIT, np.uint8)
VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
VALUES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
VALUES[np.frombuffer(b"xXzZ?", np.uint8)] = UNKNOWN
SPACE = np.zeros(256, np.bool_)
SPACE[np.frombuffer(b" \t\n\v\f\r", np.uint8)] = True
MOST_ADDRESS_DIGITS = 15
AT_ONCE = 1 << 20
"""Characters that are handled at once."""


@dataclass(frozen=True)
class Radix:
    """Digits of so many bits each."""

    bits: int
    what: str

    def digits(self, word_bits: int) -> int:
        """Of a word."""
        return -(-word_bits // self.bits)


HEX, BINARY = Radix(4, "hex digits"), Radix(1, "binary digits")


def encode(words: Array, word_bits: int, radix: Radix, unknown: Array | None = None) -> Array:
    """(n, digits) ASCII of words (n, bytes), lower case, the highest digit first; x where a bit is unknown."""
    n, size = words.shape
    if radix is BINARY:
        text = np.unpackbits(words[:, ::-1], axis=1) + np.uint8(ord("0"))
    else:
        text = np.frombuffer(binascii.hexlify(_reversed(words).data), np.uint8).reshape(n, 2 * size)
    text = text[:, text.shape[1] - radix.digits(word_bits) :]
    if unknown is not None and unknown.any():
        bits = np.unpackbits(unknown[:, ::-1], axis=1)
        some = bits.reshape(n, -1, radix.bits).max(axis=2)[:, -text.shape[1] :]
        text = np.where(some, np.uint8(ord("x")), text)
    return text


def _reversed(words: Array) -> Array:
    """The highest byte first, contiguous."""
    size = words.shape[1]
    if size in (2, 4, 8):
        return np.ascontiguousarray(words).view(f"<u{size}").byteswap().view(np.uint8)
    return np.ascontiguousarray(words[:, ::-1])


def lines(words: Array, word_bits: int, radix: Radix, unknown: Array | None, end: bytes = b"\n") -> Iterator[bytes]:
    """Each word and `end`."""
    n_digits = radix.digits(word_bits)
    count = max(1, AT_ONCE // (n_digits + len(end)))
    whole = radix is HEX and n_digits == 2 * words.shape[1] and len(end) == 1 and unknown is None
    for i in range(0, len(words), count):
        part = words[i : i + count]
        if whole:
            yield binascii.hexlify(_reversed(part).data, end, part.shape[1])
            yield end
            continue
        text = np.empty((len(part), n_digits + len(end)), np.uint8)
        text[:, :n_digits] = encode(part, word_bits, radix, None if unknown is None else unknown[i : i + count])
        text[:, n_digits:] = np.frombuffer(end, np.uint8)
        yield text.tobytes()


def joined(pieces: Iterable[bytes]) -> bytes:
    """What `b"".join` gives, with one piece in memory beside it."""
    text = io.BytesIO()
    text.writelines(pieces)
    return text.getvalue()


def runs(addresses: Addresses, step: int = 1) -> Array:
    """Where runs of addresses that follow one another by `step` begin, and the end of the last: (n + 1,)."""
    n = len(addresses)
    if not n:
        return np.zeros(1, np.int64)
    if isinstance(addresses, range):
        return np.array([0, n]) if n == 1 or addresses.step == step else np.arange(n + 1)
    return np.concatenate([[0], np.flatnonzero(np.diff(addresses) != step) + 1, [n]])


def line_of(text: bytes, at: int) -> int:
    """Number of the line of a byte."""
    return text.count(b"\n", 0, max(0, at)) + 1


def blanked(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    """Every match becomes spaces, but for line ends."""
    return pattern.sub(lambda match: re.sub(rb"[^\n]", b" ", match[0]), text)


def parse(text: bytes, word_bits: int, radix: Radix, where: object, start: int = 0) -> Bank:
    """The words of a text without comments from byte `start` on.

    IntvitError names file, line and address for what is no word, and for one that is too wide.
    """
    found = _parse_regular(text, word_bits, radix, where, start)
    return _parse_tokens(text, word_bits, radix, where, start) if found is None else found


_BLANK = re.compile(rb"[ \t\n\v\f\r]*")
_ONE_ADDRESS = re.compile(rb"@([0-9a-fA-F]{1,%d})[ \t\n\v\f\r]+" % MOST_ADDRESS_DIGITS)


def _parse_regular(
    text: bytes, word_bits: int, radix: Radix, where: object, start: int
) -> Bank | None:  # fmt: skip
    """What a writer writes: one address at most, and words of all their digits at equal distances; else None."""
    start = _end(_BLANK, text, start)
    address = _ONE_ADDRESS.match(text, start)
    first = int(address[1], 16) if address else 0
    start = address.end() if address else start
    end = len(text)
    while end > start and SPACE[text[end - 1]]:
        end -= 1
    n_digits = radix.digits(word_bits)
    pitch = _end(_BLANK, text, start + n_digits) - start if start + n_digits < end else n_digits + 1
    n = -(-(end - start) // pitch)
    if n < 1 or not n_digits < pitch < n_digits + 8 or end - start != (n - 1) * pitch + n_digits:
        return None
    if start + n * pitch > len(text):
        text += b"\n" * pitch
    chars = np.frombuffer(text, np.uint8, n * pitch, start).reshape(n, pitch)
    size = -(-word_bits // 8)
    words = np.empty((n, size), np.uint8)
    count = max(1, AT_ONCE // pitch)
    for i in range(0, n, count):
        part = _decode_regular(chars[i : i + count], n_digits, size, radix)
        if part is None:
            return None
        words[i : i + count] = part
    if word_bits % 8 and (words[:, -1] >> (word_bits % 8)).any():
        return None

    def place(index: int) -> str:
        return f"{where}: line {line_of(text, start + index * pitch)}"

    return Bank(range(first, first + n), words, None, place, address is not None)


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _decode_regular(chars: Array, n_digits: int, size: int, radix: Radix) -> Array | None:
    """(n, size) from lines (n, pitch) of digits and white space; None if they are something else."""
    n, behind = len(chars), chars[:, n_digits:]
    if not ((behind == LF).all() or SPACE[behind].all()):
        return None
    if radix is BINARY:
        bits = chars[:, :n_digits] - np.uint8(ord("0"))
        return None if (bits > 1).any() else np.packbits(bits[:, ::-1], axis=1, bitorder="little")
    try:
        if n_digits == 2 * size:
            words = bytes.fromhex(str(chars.data.cast("B"), "ascii"))  # which passes over white space
        else:
            whole = np.full((n, 2 * size), ord("0"), np.uint8)
            whole[:, 2 * size - n_digits :] = chars[:, :n_digits]
            words = binascii.unhexlify(whole.data)
    except ValueError:
        return None
    if len(words) != n * size:
        return None
    return _reversed(np.frombuffer(words, np.uint8).reshape(n, size)).reshape(n, size)


def _parse_tokens(text: bytes, word_bits: int, radix: Radix, where: object, start: int) -> Bank:
    """Any text: found by its white space, addresses and words in any order."""
    text = re.sub(rb"[^\n]", b" ", text[:start]) + text[start:].replace(b"_", b"")
    chars = np.frombuffer(text, np.uint8)
    space = np.concatenate([[True], SPACE[chars], [True]])
    starts = np.flatnonzero(space[:-1] & ~space[1:])[: len(chars)]
    ends = np.flatnonzero(~space[:-1] & space[1:])
    is_address = chars[starts] == AT if len(starts) else np.zeros(0, np.bool_)

    def refuse(at: int, rule: str) -> IntvitError:
        shown = ascii(text[at : at + 40].split(None, 1)[0].decode("ascii", "replace"))
        return IntvitError(f"{where}: line {line_of(text, at)}: {shown} must {rule}")

    given = _addresses(chars, starts[is_address] + 1, ends[is_address], refuse)
    word_starts, word_ends = starts[~is_address], ends[~is_address]
    n = len(word_starts)
    section = (np.cumsum(is_address))[~is_address]  # the last address before each word, 0 for none
    first = np.zeros(len(given) + 1, np.int64)  # index of the first word behind each address
    first[1:] = (np.cumsum(~is_address))[is_address]
    addresses = np.concatenate([[0], given])[section] + np.arange(n) - first[section]
    size = -(-word_bits // 8)
    words, unknown = np.empty((n, size), np.uint8), np.empty((n, size), np.uint8)
    longest = int((word_ends - word_starts).max(initial=0))
    if longest > 2 * radix.digits(word_bits) + 64:
        at = int(word_starts[(word_ends - word_starts).argmax()])
        raise refuse(at, f"have {radix.digits(word_bits)} {radix.what} at most")
    count = max(1, AT_ONCE // (4 * max(1, longest)))
    for i in range(0, n, count):
        part = slice(i, i + count)
        words[part], unknown[part] = _decode(
            chars, word_starts[part], word_ends[part], addresses[part], word_bits, radix, refuse
        )

    def place(index: int) -> str:
        return f"{where}: line {line_of(text, int(word_starts[index]))}"

    return Bank(addresses, words, unknown if unknown.any() else None, place, len(given) > 0)


def _gather(chars: Array, starts: Array, ends: Array, width: int) -> Array:
    """(n, width) values of digits, right-aligned, 0 before the first."""
    at = ends[:, None] - np.arange(width, 0, -1)
    inside = at >= starts[:, None]
    return np.where(inside, VALUES[chars[np.where(inside, at, 0)]], 0)


def _addresses(chars: Array, starts: Array, ends: Array, refuse: Callable[[int, str], IntvitError]) -> Array:
    """int64 of hex tokens."""
    lengths = ends - starts
    bad = (lengths < 1) | (lengths > MOST_ADDRESS_DIGITS)
    if not bad.any() and len(starts):
        values = np.zeros(len(starts), np.int64)
        for digit in _gather(chars, starts, ends, int(lengths.max())).T:
            bad |= digit >= 16
            values = values * 16 + digit
    if bad.any():
        rule = f"be @ and an address of at most {MOST_ADDRESS_DIGITS} hex digits"
        raise refuse(int(starts[bad.argmax()]) - 1, rule)
    return values if len(starts) else np.zeros(0, np.int64)


def _decode(
    chars: Array, starts: Array, ends: Array, addresses: Array, word_bits: int, radix: Radix,
    refuse: Callable[[int, str], IntvitError],
) -> tuple[Array, Array]:  # fmt: skip
    """Words and their unknown bits, (n, bytes) each, of tokens."""
    n_digits, lengths = radix.digits(word_bits), ends - starts
    width = max(int(lengths.max()), n_digits)
    digits = _gather(chars, starts, ends, width)
    open_ = digits == UNKNOWN
    bad = ((digits >= 1 << radix.bits) & ~open_).any(axis=1)
    if bad.any():
        raise refuse(int(starts[bad.argmax()]), f"be {radix.what}")
    leading = open_[np.arange(len(starts)), width - lengths]  # an x in front stands for all bits before it
    open_ |= leading[:, None] & (np.arange(width) < (width - lengths)[:, None])
    digits[open_] = 0
    values, lacking = (_packed(part, radix) for part in (digits, np.where(open_, (1 << radix.bits) - 1, 0)))
    size, spare = -(-word_bits // 8), word_bits % 8
    wide = values[:, size:].any(axis=1)
    if spare:
        wide |= values[:, size - 1] >> spare != 0
        lacking[:, size - 1] &= (1 << spare) - 1
    if wide.any():
        i = int(wide.argmax())
        raise refuse(int(starts[i]), f"fit {word_bits} bits, at address {addresses[i]:#x}")
    return values[:, :size], lacking[:, :size]


def _packed(digits: Array, radix: Radix) -> Array:
    """(n, bytes), the lowest first, of values of digits (n, digits), the highest first."""
    lowest = digits.astype(np.uint8)[:, ::-1]
    if radix is BINARY:
        return np.packbits(lowest, axis=1, bitorder="little")
    if lowest.shape[1] % 2:
        lowest = np.concatenate([lowest, np.zeros((len(lowest), 1), np.uint8)], axis=1)
    return lowest[:, ::2] | lowest[:, 1::2] << 4


def shown(value: int) -> str:
    """An integer of any size, in a message."""
    return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
