"""Formats that hold numbers: npy, npz, C headers and SystemVerilog packages of constants.

Elements are read as the exact values of 64 bits that they are: one that its type does not hold is found, not cut off.
"""

from __future__ import annotations

import ast
import io
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reading, shortened
from intvit.graph.inttypes import IntType
from intvit.vectors.layouts.memory import Array, Bank, Memory
from intvit.vectors.layouts.readmem import uncommented
from intvit.vectors.layouts.text import HEX, encode, line_of, shown
from intvit.vectors.npz import format_npz, stored_type

EXACT_BITS = 64
"""Of an element as it is read."""
MOST_MEMBERS, MOST_UNPACKED = 1 << 16, 1 << 32
VALID = ".valid"
"""Behind the name of an array, the name of its mask: false where nothing is known."""
NPY_MAGIC = b"\x93NUMPY"


def values_of(bank: Bank, bits: int, signed: bool) -> Array:
    """int64 of words of at most 64 bits; u64 beyond s64 is the caller's to prevent."""
    wide = np.zeros((len(bank.words), 8), np.uint8)
    wide[:, : bank.words.shape[1]] = bank.words
    values = wide.view("<i8")[:, 0]
    return (values << (64 - bits)) >> (64 - bits) if signed else values


def exact(values: Array, place: Callable[[int], str], unknown: Array | None = None) -> Bank:
    """A bank of elements (n,) int64, from address 0."""
    words = np.ascontiguousarray(values.reshape(-1).astype("<i8")).view(np.uint8).reshape(-1, 8)
    lacking = None
    if unknown is not None and unknown.any():
        lacking = np.repeat(np.where(unknown.reshape(-1), np.uint8(255), np.uint8(0))[:, None], 8, axis=1)
    return Bank(range(len(words)), words, lacking, place, False)


def words_from(values: list[int], bits: int, place: Callable[[int], str]) -> Array:
    """(n, bytes) of integers, unsigned or two's complement, that must fit `bits`."""
    size = -(-bits // 8)
    for i, value in enumerate(values):
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise IntvitError(f"{place(i)}: {shown(value)} at address {i:#x} must fit {bits} bits")
    data = b"".join((value & ((1 << bits) - 1)).to_bytes(size, "little") for value in values)
    return np.frombuffer(data, np.uint8).reshape(-1, size)


# npy and npz


def array_of(memory: Memory, bank: Bank) -> tuple[Array, IntType]:
    """Elements in their shape; words as numbers, or, beyond 63 bits, as (n, bytes), the lowest first."""
    if memory.shape is not None:
        return values_of(bank, memory.word_bits, memory.signed).reshape(memory.shape), IntType(
            memory.word_bits, memory.signed)  # fmt: skip
    if memory.word_bits > 63:
        return bank.words, IntType(8, False)
    return values_of(bank, memory.word_bits, False), IntType(memory.word_bits, False)


def write_npy(memory: Memory, bank: Bank) -> bytes:
    """Version 1.0, the narrowest signed type."""
    array, dtype = array_of(memory, bank)
    file = io.BytesIO()
    np.lib.format.write_array(file, array.astype(_stored(dtype)), (1, 0), allow_pickle=False)
    return file.getvalue()


def _stored(dtype: IntType) -> np.dtype[Any]:
    return np.dtype("<i8") if dtype.bits == 64 else stored_type(dtype)


def write_npz(memory: Memory, bank: Bank, name: str) -> bytes:
    """One array, under its name; beside it its mask where not all is known."""
    array, dtype = array_of(memory, bank)
    arrays, layout = {name: array}, {name: (dtype, tuple(array.shape))}
    if bank.unknown is not None and bank.unknown.any():
        valid = (bank.unknown == 0).all(axis=1).astype(np.int8)
        if array.ndim == 2 and memory.shape is None:
            valid = np.repeat(valid[:, None], array.shape[1], axis=1)
        arrays[name + VALID], layout[name + VALID] = valid.reshape(array.shape), (IntType(8), tuple(array.shape))
    return format_npz(arrays, layout)


def parse_npy(data: bytes, where: object) -> Array:
    """An array of integers or truth values; never an object, never more than the bytes that are there."""
    with reading(where, "a whole npy file"):
        if not data.startswith(NPY_MAGIC) or data[6:7] not in (b"\1", b"\2", b"\3"):
            raise IntvitError(f"{where}: must be an npy file, and does not begin as one")
        head = struct.Struct("<H" if data[6] == 1 else "<I")
        (size,) = head.unpack_from(data, 8)
        start = 8 + head.size + size
        if size > 1 << 16 or start > len(data):
            raise IntvitError(f"{where}: must be a whole npy file, and ends in its header")
        facts = ast.literal_eval(data[8 + head.size : start].decode("ascii").strip())
        dtype, shape = np.dtype(facts["descr"]), tuple(facts["shape"])
        if dtype.hasobject or dtype.kind not in "iub":
            raise IntvitError(f"{where}: must hold integers, not {dtype}")
        if not all(type(axis) is int and 0 <= axis < 1 << 48 for axis in shape) or len(shape) > 32:
            raise IntvitError(f"{where}: shape must be sizes, not {shortened(shape)}")
        n = 1
        for axis in shape:
            n *= axis
        if len(data) - start != n * dtype.itemsize:
            raise IntvitError(
                f"{where}: must have {n * dtype.itemsize} bytes of {shape} {dtype}, not {len(data) - start}"
            )
        order = "F" if facts["fortran_order"] else "C"
        return np.frombuffer(data, dtype, n, start).reshape(shape, order=order)  # type: ignore[call-overload]


def parse_npz(data: bytes, where: object) -> dict[str, Array]:
    """Every array of the archive by its name, stored or deflated."""
    arrays, left = {}, MOST_UNPACKED
    with reading(where, "a whole npz file"), zipfile.ZipFile(io.BytesIO(data)) as file:
        for entry in file.infolist()[:MOST_MEMBERS]:
            left -= entry.file_size
            if left < 0 or entry.file_size > 1100 * entry.compress_size + 1024:
                raise IntvitError(f"{where}: must hold at most {MOST_UNPACKED} bytes, and be no more than deflated")
            if entry.filename.endswith(".npy"):
                name = entry.filename.removesuffix(".npy")
                with file.open(entry) as stream:
                    arrays[name] = parse_npy(stream.read(entry.file_size + 1), f"{where}:{shortened(name)[1:-1]}")
    return arrays


def bank_of(array: Array, valid: Array | None, word_bits: int, elements: bool, where: object) -> Bank:
    """What an array of a file holds: elements, or words as `array_of` writes them."""

    def place(index: int) -> str:
        return f"{where}: element {index}"

    if elements and array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
        raise IntvitError(f"{where}: values must fit s64, not {int(array.max())}")
    unknown = None if valid is None else ~valid.astype(np.bool_)
    if unknown is not None and unknown.shape != array.shape:
        raise IntvitError(f"{where}: mask must have the shape {list(array.shape)}, not {list(unknown.shape)}")
    if elements:
        return exact(array, place, unknown)
    size = -(-word_bits // 8)
    if array.ndim == 2 and array.shape[1] == size and array.dtype.itemsize <= 2 and word_bits > 63:
        if array.size and (int(array.min()) < 0 or int(array.max()) > 255):
            raise IntvitError(f"{where}: bytes of words must lie in 0..255")
        words, lacking = array.astype(np.uint8), unknown
    elif array.ndim == 1 and array.dtype.itemsize <= 8:
        words = words_from(array.tolist(), word_bits, place)
        lacking = None if unknown is None else np.repeat(unknown[:, None], size, axis=1)
    else:
        raise IntvitError(f"{where}: words must be of shape (n,), or (n, {size}) bytes, not {list(array.shape)}")
    if word_bits % 8 and len(words) and (words[:, -1] >> (word_bits % 8)).any():
        i = int((words[:, -1] >> (word_bits % 8) > 0).argmax())
        raise IntvitError(f"{place(i)}: word at address {i:#x} must fit {word_bits} bits")
    return Bank(range(len(words)), words, None if lacking is None else lacking.astype(np.uint8) * 255, place, False)


# Constants of C and SystemVerilog

_RESERVED = """
alias always and assert assign auto begin bind bins bit break buf byte case cell char class clocking config const
constraint context continue cover cross deassign default define design disable dist do double edge else end enum event
expect export extends extern final float for force foreach forever fork function generate genvar global goto if iff
import include initial inline inout input inside instance int integer interface intersect join large let library local
localparam logic long longint macromodule matches medium modport module nand negedge new nor not null or output package
packed parameter posedge primitive priority program property protected pure rand randc real realtime ref reg register
release repeat restrict return sequence short shortint shortreal signed sizeof small solve specify static string strong
struct super supply0 supply1 switch table tagged task this throughout time timeprecision timeunit tran tri type typedef
union unique unsigned until use uwire var vectored virtual void volatile wait wand weak while wildcard wire with within
wor xnor xor
"""
"""Words that C or SystemVerilog keeps for itself."""


def identifier(name: str) -> str:
    """A name of C and of SystemVerilog: what is no letter, digit or `_` becomes `_`.

    >>> identifier("blocks.0.weight"), identifier("0"), identifier("int")
    ('blocks_0_weight', '_0', 'int_')
    """
    text = re.sub(r"[^A-Za-z0-9_]", "_", name)
    text = f"_{text}" if not text or text[0].isdigit() else text
    return f"{text}_" if text in _RESERVED.split() else text


def format_c(constants: Mapping[str, tuple[Memory, Bank]], header: str, guard: str) -> bytes:
    """`static const` arrays of the narrowest type of stdint.h, by their names; a tensor without axes is a number."""
    lines = [f"/* {header} */"] if header else []
    lines += [f"#ifndef {guard}", f"#define {guard}", "#include <stdint.h>"]
    for name, (memory, bank) in constants.items():
        if memory.word_bits > 64 or (bank.unknown is not None and bank.unknown.any()):
            raise IntvitError(f"{name}: words must be known and fit 64 bits in C, not be of {memory.word_bits}")
        bits = next(n for n in (8, 16, 32, 64) if memory.word_bits <= n)
        values = values_of(bank, memory.word_bits, memory.signed).tolist()
        numbers = memory.shape is not None
        kind = f"{'' if memory.signed else 'u'}int{bits}_t"
        texts = [_c_number(value, memory.signed, numbers, memory.word_bits) for value in values]
        if memory.shape == ():
            lines.append(f"static const {kind} {name} = {texts[0]};")
        else:
            lines += [f"static const {kind} {name}[{len(texts)}] = {{", *_rows(texts, "    "), "};"]
    return "\n".join([*lines, "#endif\n"]).encode("ascii")


def _c_number(value: int, signed: bool, decimal: bool, bits: int) -> str:
    if decimal and signed:
        return str(value) if value != -(1 << 63) else "INT64_MIN"
    value &= (1 << 64) - 1
    return f"{value}u" if decimal else f"0x{value:0{-(-bits // 4)}x}u"


def _rows(texts: list[str], indent: str) -> list[str]:
    """As many a line as fit 100 characters."""
    n = max(1, 100 // (max(map(len, texts), default=1) + 2))
    rows = [indent + ", ".join(texts[i : i + n]) for i in range(0, len(texts), n)]
    return [f"{row}," for row in rows[:-1]] + rows[-1:]


def format_sv(constants: Mapping[str, tuple[Memory, Bank]], header: str, package: str) -> bytes:
    """A package of `localparam`s in sized hex: unpacked arrays [0:N-1]; a tensor without axes is one vector."""
    lines = [f"// {header}"] if header else []
    lines.append(f"package {package};")
    for name, (memory, bank) in constants.items():
        bits, signed = memory.word_bits, memory.signed
        digits = encode(bank.words, bits, HEX, bank.unknown)
        prefix = f"{bits}'{'s' if signed else ''}h"
        texts = [prefix + row.tobytes().decode("ascii") for row in digits]
        kind = f"localparam logic {'signed ' if signed else ''}[{bits - 1}:0] {name}"
        if memory.shape == ():
            value = int(values_of(bank, bits, signed)[0])
            lines.append(f"  {kind} = {texts[0]};  // {value}")
        else:
            lines += [f"  {kind} [0:{len(texts) - 1}] = '{{", *_rows(texts, "    "), "  };"]
    return "\n".join([*lines, "endpackage\n"]).encode("ascii")


class Constant:
    """A constant as it was found: its type, its dimensions, and each value with the byte where it stands."""

    def __init__(self, bits: int, signed: bool, dims: str, body: re.Match[bytes], text: bytes, where: object) -> None:
        self.bits, self.signed, self.text, self.where = bits, signed, text, where
        self.scalar = not dims.strip()
        start, raw = body.start("body"), body["body"]
        tokens = [(m[0], start + m.start()) for m in re.finditer(rb"[^\s{},]+", raw.replace(b"'{", b" {"))]
        self.tokens = tokens

    def place(self, index: int) -> str:
        """File and line of a value."""
        at = self.tokens[index][1] if index < len(self.tokens) else len(self.text)
        return f"{self.where}: line {line_of(self.text, at)}"

    def bank(self, word_bits: int, elements: bool) -> Bank:
        """Elements, or words."""
        values, unknown = [], []
        for i, (token, _) in enumerate(self.tokens):
            value, lacking = self._number(token, i)
            if not -(1 << (self.bits - 1)) <= value < 1 << self.bits:
                raise IntvitError(
                    f"{self.place(i)}: {shown(value)} at address {i:#x} must fit its type of {self.bits} bits"
                )
            value &= (1 << self.bits) - 1
            if self.signed and value >> (self.bits - 1) and elements:
                value -= 1 << self.bits
            values.append(value)
            unknown.append(lacking)
        if not elements:
            words, bits = words_from(values, word_bits, self.place), words_from(unknown, word_bits, self.place)
            return Bank(range(len(values)), words, bits if bits.any() else None, self.place, False)
        for i, value in enumerate(values):
            if not -(1 << 63) <= value < 1 << 63:
                raise IntvitError(f"{self.place(i)}: {shown(value)} at address {i:#x} must fit s64")
        return exact(np.array(values, np.int64), self.place, np.array(unknown, object) != 0 if unknown else None)

    def _number(self, token: bytes, index: int) -> tuple[int, int]:
        """Value and unknown bits of a literal."""
        text = token.decode("ascii", "replace").replace("_", "") if b"'" in token else token.decode("ascii", "replace")
        if text == "INT64_MIN":
            return -(1 << 63), 0
        plain = re.fullmatch(r"([-+]?)(0[xX][0-9a-fA-F]{1,1024}|0|[1-9][0-9]{0,1299})[uUlL]{0,3}", text)
        if plain:
            return int(plain[1] + plain[2], 0), 0
        sized = re.fullmatch(r"([-+]?)([1-9][0-9]{0,4})?'([sS]?)([hHdDbBoO])([0-9a-fA-FxXzZ?]{1,4096})", text)
        if sized:
            found = _sized(sized)
            if found is not None:
                return found
        raise IntvitError(f"{self.place(index)}: {text[:40]!a} must be an integer")


def _sized(literal: re.Match[str]) -> tuple[int, int] | None:
    """Value and unknown bits of a Verilog literal with a base; None if its digits are not of it."""
    base = {"h": 16, "d": 10, "b": 2, "o": 8}[literal[4].lower()]
    known = re.sub("[xXzZ?]", "0", literal[5])
    marked = re.sub("[^f]", "0", re.sub("[xXzZ?]", "f", re.sub("[fF]", "0", literal[5])))
    try:
        value = int(known, base)
    except ValueError:
        return None
    step = {16: 4, 2: 1, 8: 3, 10: 0}[base]
    if "f" in marked and not step:
        return None
    lacking = sum(((1 << step) - 1) << (i * step) for i, c in enumerate(reversed(marked)) if c == "f")
    size = int(literal[2]) if literal[2] else 32
    if value >> size:
        return None
    if literal[3] and value >> (size - 1):
        value -= 1 << size
    return (-value if literal[1] == "-" else value), lacking & ((1 << size) - 1)


_C_CONSTANT = re.compile(
    rb"\b(?P<u>u?)int(?P<bits>8|16|32|64)_t\s+(?:const\s+)?(?P<name>[A-Za-z_]\w*)\s*"
    rb"(?P<dims>(?:\[[^\]=;{}]*\]\s*)*)=\s*(?P<body>[^;]*);"
)
_SV_CONSTANT = re.compile(
    rb"\b(?:localparam|parameter)\s+(?:(?P<kind>logic|bit|reg|byte|shortint|int|longint|integer)\b\s*)?"
    rb"(?:(?P<sign>signed|unsigned)\b\s*)?(?:\[\s*(?P<high>[0-9]{1,4})\s*:\s*0\s*\]\s*)?(?P<name>[A-Za-z_]\w*)\s*"
    rb"(?P<dims>(?:\[[^\]=;{}]*\]\s*)*)=\s*(?P<body>[^;]*);"
)
_SV_BITS = {b"byte": 8, b"shortint": 16, b"int": 32, b"integer": 32, b"longint": 64, b"": 32}


def parse_c(data: bytes, where: object) -> dict[str, Constant]:
    """Every integer constant of types of stdint.h, by name."""
    text = uncommented(data, where)
    return _named(
        (
            (
                m["name"].decode(),
                Constant(int(m["bits"]), not m["u"], m["dims"].decode("ascii", "replace"), m, text, where),
            )
            for m in _C_CONSTANT.finditer(text)
        ),
        where,
    )


def parse_sv(data: bytes, where: object) -> dict[str, Constant]:
    """Every `localparam` and `parameter` of integers, by name."""
    text = uncommented(data, where)
    found = []
    for m in _SV_CONSTANT.finditer(text):
        kind = m["kind"] or b""
        vector = kind in (b"logic", b"bit", b"reg") or m["high"] is not None
        bits = int(m["high"] or 0) + 1 if vector else _SV_BITS[kind]
        signed = m["sign"] == b"signed" or (not vector and m["sign"] != b"unsigned")
        found.append((m["name"].decode(), Constant(bits, signed, m["dims"].decode("ascii", "replace"), m, text, where)))
    return _named(found, where)


def _named(found: Any, where: object) -> dict[str, Constant]:
    constants: dict[str, Constant] = {}
    for name, constant in found:
        if name in constants:
            raise IntvitError(f"{constant.place(0)}: {name} must be given once, not twice")
        constants[name] = constant
    if not constants:
        raise IntvitError(f"{where}: must have a constant of integers, and has none")
    return constants
