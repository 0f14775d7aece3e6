"""`$readmemh` and `$readmemb`: words as Verilog reads and dumps them, with `@` addresses that count words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from intvit.errors import IntvitError
from intvit.vectors.layouts.memory import Bank
from intvit.vectors.layouts.text import AT_ONCE, HEX, LF, Radix, blanked, encode, joined, line_of, lines, parse, runs

COMMENT = re.compile(rb"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
ADDRESS_DIGITS = 8


def write(bank: Bank, word_bits: int, header: str, radix: Radix) -> bytes:
    """The bank with an `@` wherever words do not follow one another, and at the start unless that is 0."""
    return joined(_pieces(bank, word_bits, header, radix))


def _pieces(bank: Bank, word_bits: int, header: str, radix: Radix) -> Iterator[bytes]:
    if header:
        yield f"// {header}\n".encode("ascii")
    bounds = runs(bank.addresses)
    n_runs = len(bounds) - 1
    lengths = np.diff(bounds)
    if n_runs > 1 and (lengths == lengths[0]).all():
        yield from _equal_runs(bank, int(lengths[0]), word_bits, radix)
        return
    for i in range(n_runs):
        part, first = slice(bounds[i], bounds[i + 1]), int(bank.addresses[int(bounds[i])])
        if first:
            yield b"@%0*x\n" % (ADDRESS_DIGITS, first)
        yield from lines(bank.words[part], word_bits, radix, None if bank.unknown is None else bank.unknown[part])


def _equal_runs(bank: Bank, length: int, word_bits: int, radix: Radix) -> Iterator[bytes]:
    """Runs of equal length, each an address and its words."""
    addresses = np.asarray(bank.addresses, np.int64)[::length]
    n_address = max(ADDRESS_DIGITS, len(f"{int(addresses.max()):x}"))
    n_digits = radix.digits(word_bits)
    block = n_address + 2 + length * (n_digits + 1)
    count = max(1, AT_ONCE // block)
    for i in range(0, len(addresses), count):
        part, rows = addresses[i : i + count], slice(i * length, (i + count) * length)
        text = np.full((len(part), block), LF, np.uint8)
        text[:, 0] = ord("@")
        text[:, 1 : n_address + 1] = encode(part.astype("<i8")[:, None].view(np.uint8), 4 * n_address, HEX)
        digits = encode(bank.words[rows], word_bits, radix, None if bank.unknown is None else bank.unknown[rows])
        text[:, n_address + 2 :].reshape(len(part), length, n_digits + 1)[:, :, :n_digits] = digits.reshape(
            len(part), length, n_digits
        )
        yield text.tobytes()


def read(data: bytes, word_bits: int, radix: Radix, where: object) -> Bank:
    """The words. Comments, `_`, any case, short words, x and z are understood."""
    start = data.find(b"\n") + 1
    if data.startswith(b"//") and data.find(b"/", start) < 0:
        return parse(data, word_bits, radix, where, start or len(data))
    return parse(uncommented(data, where) if b"/" in data else data, word_bits, radix, where)


def uncommented(data: bytes, where: object) -> bytes:
    """Without comments of Verilog and C, every line at its number."""
    for comment in COMMENT.finditer(data):
        if comment[0].startswith(b"/*") and (len(comment[0]) < 4 or not comment[0].endswith(b"*/")):
            at = line_of(data, comment.start())
            raise IntvitError(f"{where}: line {at}: comment must end with */, and the file ends first")
    return blanked(COMMENT, data)
