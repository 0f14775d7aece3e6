"""Memory initialization of FPGA tools: Xilinx COE, which has no addresses, and Intel (Altera) MIF."""

from __future__ import annotations

import re

import numpy as np

from intvit.errors import IntvitError
from intvit.vectors.layouts.memory import Bank
from intvit.vectors.layouts.text import AT_ONCE, BINARY, HEX, blanked, encode, joined, line_of, lines, parse, shown

MOST_EXPANDED = 1 << 26
"""Words that the ranges of a MIF file stand for."""


def write_coe(bank: Bank, word_bits: int, header: str) -> bytes:
    """The words one after another; the bank must have no gaps."""
    first = f"; {header}\n" if header else ""
    first += "memory_initialization_radix=16;\nmemory_initialization_vector=\n"
    body = joined(lines(bank.words, word_bits, HEX, None, b",\n"))
    return first.encode("ascii") + body[:-2] + b";\n"


_COE = re.compile(
    rb"\s*memory_initialization_radix\s*=\s*(\d+)\s*;\s*memory_initialization_vector\s*=([^;]*)(;)?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_COE_COMMENT = re.compile(rb"^[ \t]*;[^\n]*", re.MULTILINE)


def read_coe(data: bytes, word_bits: int, where: object) -> Bank:
    """Radix 2, 10 or 16; words between commas or white space; lines that begin with `;` are comments."""
    data = data.replace(b"\r", b" ")
    found = _COE.fullmatch(blanked(_COE_COMMENT, data[: _vector(data)]) + data[_vector(data) :])
    if found is None:
        rule = "be memory_initialization_radix=...; and memory_initialization_vector=...;"
        raise IntvitError(f"{where}: line 1 and on must {rule}, and are not")
    if not found[3]:
        raise IntvitError(f"{where}: line {line_of(data, len(data))}: vector must end with ;, and the file ends first")
    if _COE_COMMENT.sub(b"", found[4]).strip():
        raise IntvitError(f"{where}: line {line_of(data, found.start(4) + 1)}: nothing must stand behind the vector")
    body, radix = b"\n" * (line_of(data, found.start(2)) - 1) + found[2].replace(b",", b" "), int(found[1])
    if radix not in (2, 10, 16):
        raise IntvitError(f"{where}: line {line_of(data, found.start(1))}: radix must be 2, 10 or 16, not {radix}")
    if radix == 10:
        body = _in_hex(body, 10, word_bits, where)
    bank = parse(body, word_bits, BINARY if radix == 2 else HEX, where)
    if bank.placed:
        raise IntvitError(f"{where}: must have no addresses")
    return bank


def _vector(data: bytes) -> int:
    """Where the vector begins: behind it a `;` is its end."""
    found = re.search(rb"memory_initialization_vector", data, re.IGNORECASE)
    return found.start() if found else len(data)


def _in_hex(body: bytes, base: int, bits: int, where: object, start: int = 0, end: int | None = None) -> bytes:
    """Numbers of another base in a part of a text as two's complement words in hex."""
    n_digits = -(-bits // 4)

    def word(match: re.Match[bytes]) -> bytes:
        try:
            value = int(match[0], base)
        except ValueError:
            text = ascii(match[0][:40].decode("ascii", "replace"))
            at = line_of(body, match.start())
            raise IntvitError(f"{where}: line {at}: {text} must be a number of base {base}") from None
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise IntvitError(f"{where}: line {line_of(body, match.start())}: {shown(value)} must fit {bits} bits")
        return b"%0*x" % (n_digits, value & ((1 << bits) - 1))

    end = len(body) if end is None else end
    pieces, at = [], start
    for match in _NUMBER.finditer(body, start, end):
        pieces += [body[at : match.start()], word(match)]
        at = match.end()
    return b"".join([*pieces, body[at:end]])


_NUMBER = re.compile(rb"[^\s]+")


def write_mif(bank: Bank, word_bits: int, header: str, depth: int) -> bytes:
    """An address and a word a line."""
    first = f"-- {header}\n" if header else ""
    first += f"WIDTH={word_bits};\nDEPTH={depth};\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
    addresses = np.asarray(bank.addresses, np.int64)
    n_address, n_digits = max(1, len(f"{depth - 1:x}")), HEX.digits(word_bits)
    pieces = [first.encode("ascii")]
    count = max(1, AT_ONCE // (n_address + n_digits + 5))
    for i in range(0, len(addresses), count):
        part, words = addresses[i : i + count].astype("<i8"), bank.words[i : i + count]
        text = np.empty((len(part), n_address + n_digits + 5), np.uint8)
        text[:, :n_address] = encode(part[:, None].view(np.uint8), 4 * n_address, HEX)
        text[:, n_address : n_address + 3] = np.frombuffer(b" : ", np.uint8)
        text[:, n_address + 3 : -2] = encode(words, word_bits, HEX)
        text[:, -2:] = np.frombuffer(b";\n", np.uint8)
        pieces.append(text.tobytes())
    return b"".join([*pieces, b"END;\n"])


_MIF_COMMENT = re.compile(rb"--[^\n]*|%[^%]*%")
_MIF_BEGIN = re.compile(rb"\bCONTENT\s+BEGIN\b", re.IGNORECASE)
_MIF_END = re.compile(rb"\bEND\s*;", re.IGNORECASE)
_MIF_KEYS = {b"WIDTH", b"DEPTH", b"ADDRESS_RADIX", b"DATA_RADIX"}
_RADIX = {b"HEX": 16, b"BIN": 2, b"OCT": 8, b"DEC": 10, b"UNS": 10}
_ENTRY = re.compile(rb"(?<![0-9A-Za-z])(\[[^\]\[:;]{1,80}\]|[0-9A-Za-z]{1,40})(\s*):([^:;]*);")
_BEFORE_COLON = re.compile(rb"(?<![0-9A-Za-z])([0-9A-Za-z]{1,40})(\s*):")


def read_mif(data: bytes, word_bits: int, where: object) -> Bank:
    """All radices, comments, several words behind an address, ranges `[a..b]`; addresses count words."""
    text = blanked(_MIF_COMMENT, data)
    begin = _MIF_BEGIN.search(text)
    end = _MIF_END.search(text, begin.end()) if begin else None
    if begin is None or end is None or text[end.end() :].strip():
        at = line_of(data, len(data))
        raise IntvitError(f"{where}: line {at}: must be WIDTH, DEPTH, radices, CONTENT BEGIN ... END;, and is not")
    keys = _mif_keys(text[: begin.start()], where)
    width, depth = (_positive(keys, key, where) for key in (b"WIDTH", b"DEPTH"))
    if width != word_bits:
        raise IntvitError(f"{where}: WIDTH must be {word_bits}, as in the layout, not {width}")
    radix = {key: _radix(keys.get(key, b"HEX"), key, where) for key in (b"ADDRESS_RADIX", b"DATA_RADIX")}
    start = begin.end()
    body = re.sub(rb"[^\n]", b" ", text[:start]) + text[start : end.start()]
    if body.count(b";") != body.count(b":") or _ENTRY.sub(b"", body).strip():
        at = next((m.start() for m in re.finditer(rb"\S", _ENTRY.sub(lambda m: b" " * len(m[0]), body))), start)
        raise IntvitError(f"{where}: line {line_of(text, at)}: must be ADDRESS : WORDS;, and is not")
    base = radix[b"DATA_RADIX"]
    body = _mif_entries(body, radix[b"ADDRESS_RADIX"], base, word_bits, where)
    bank = parse(body, word_bits, BINARY if base == 2 else HEX, where)
    held = np.asarray(bank.addresses)
    if len(held) and int(held.max()) >= depth:
        i = int(held.argmax())
        raise IntvitError(f"{bank.place(i)}: address {int(held[i]):#x} must be below DEPTH, {depth}")
    ordered = np.sort(held)
    twice = ordered[1:][np.diff(ordered) == 0]
    if len(twice):
        i = int(np.flatnonzero(held == twice[0])[1])
        raise IntvitError(f"{bank.place(i)}: address {int(twice[0]):#x} must be given once, not twice")
    return bank


def _mif_keys(text: bytes, where: object) -> dict[bytes, bytes]:
    keys: dict[bytes, bytes] = {}
    for statement in text.split(b";"):
        if not statement.strip():
            continue
        key, equals, value = (part.strip().upper() for part in statement.partition(b"="))
        if not equals or key not in _MIF_KEYS or key in keys:
            shown = ascii(statement.strip()[:40].decode("ascii", "replace"))
            raise IntvitError(f"{where}: must begin with WIDTH, DEPTH and radices, each once, not {shown}")
        keys[key] = value
    return keys


def _positive(keys: dict[bytes, bytes], key: bytes, where: object) -> int:
    value = keys.get(key, b"")
    if not re.fullmatch(rb"0*[1-9][0-9]{0,15}", value):
        raise IntvitError(f"{where}: {key.decode()} must be a number above 0, not {value.decode('latin1')!a}")
    return int(value)


def _radix(value: bytes, key: bytes, where: object) -> int:
    if value not in _RADIX:
        raise IntvitError(
            f"{where}: {key.decode()} must be HEX, BIN, OCT, DEC or UNS, not {value[:40].decode('latin1')!a}"
        )
    return _RADIX[value]


def _mif_entries(body: bytes, address_base: int, base: int, word_bits: int, where: object) -> bytes:
    """As a text of `@` addresses, each line at its number, of hex or binary words."""
    if address_base == 16 and base in (2, 16) and b"[" not in body:
        return _BEFORE_COLON.sub(rb"@\1\2 ", body).replace(b";", b" ")
    left = MOST_EXPANDED

    def entry(match: re.Match[bytes]) -> bytes:
        nonlocal left
        try:
            bounds = [int(part, address_base) for part in match[1].strip(b"[]").split(b"..")]
        except ValueError:
            bounds = []
        if len(bounds) != (2 if match[1].startswith(b"[") else 1) or bounds[0] < 0 or bounds[-1] < bounds[0]:
            rule = f"address must be a number of base {address_base} or [FIRST..LAST]"
            raise IntvitError(f"{where}: line {line_of(body, match.start())}: {rule}")
        words = match[3] if base in (2, 16) else _in_hex(body, base, word_bits, where, match.start(3), match.end(3))
        if len(bounds) == 2:
            n, given = bounds[1] - bounds[0] + 1, words.split()
            left -= n
            if left < 0 or not given:
                rule = f"range must have words, and at most {MOST_EXPANDED} in all"
                raise IntvitError(f"{where}: line {line_of(body, match.start())}: {rule}")
            words = b" ".join((given * -(-n // len(given)))[:n]) + b"\n" * words.count(b"\n")
        return b"@%x %s%s " % (bounds[0], match[2], words)

    return _ENTRY.sub(entry, body)
