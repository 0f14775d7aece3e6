"""File formats of memories: write one, read one that we or others wrote, tell them apart.

A format without addresses (coe, bin, npy, npz, c, sv) begins with the first word of its bank. Each bank has a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from intvit.errors import IntvitError, placed
from intvit.graph.inttypes import IntType
from intvit.vectors.layouts import initial, numbers, octets, readmem
from intvit.vectors.layouts.layout import NUMBERS, Layout, Layouts
from intvit.vectors.layouts.memory import MOST_BYTES, Array, Bank, Memory, pack
from intvit.vectors.layouts.text import BINARY, HEX

__all__ = ["SUFFIXES", "constants", "detect", "header_of", "read", "suffix", "write"]

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "memh": (".hex", ".mem", ".memh", ".vmem", ".dat", ".txt"),
    "memb": (".memb", ".mem", ".dat", ".txt"),
    "coe": (".coe",),
    "mif": (".mif",),
    "ihex": (".ihex", ".ihx", ".hex"),
    "bin": (".bin", ".raw"),
    "npy": (".npy",),
    "npz": (".npz",),
    "c": (".h", ".c"),
    "sv": (".sv", ".svh", ".vh"),
}
"""Of each format: the first is the one that is written."""


def suffix(kind: str, bank: int, n_banks: int) -> str:
    """The end of a file's name behind that of the signal."""
    return f".bank{bank}{SUFFIXES[kind][0]}" if n_banks > 1 else SUFFIXES[kind][0]


def detect(name: str, data: bytes, layout: Layout) -> str:
    """The format of a file by its name; the layout's where the name allows that, and Intel HEX by its first `:`."""
    kinds = [kind for kind, ends in SUFFIXES.items() if name.endswith(ends)]
    if not kinds:
        raise IntvitError(f"{name}: must end in a known suffix, as {', '.join(ends[0] for ends in SUFFIXES.values())}")
    if name.endswith(".hex"):
        return "ihex" if data[:4096].lstrip().startswith(b":") else "memh"
    return layout.format if layout.format in kinds else kinds[0]


def _header(text: str) -> str:
    if not text.isascii() or not text.isprintable() or "*/" in text:
        raise IntvitError(f"header: must be one line of printable ASCII without */, not {text!a}")
    return text


def write(memory: Memory, kind: str, header: str = "", name: str = "memory") -> dict[str, bytes]:
    """A file for each bank: suffix -> bytes. `header` is a comment where the format has comments, and `name` that of
    the array in npz, C and SystemVerilog."""
    header = _header(header)
    n = len(memory.banks)
    if kind not in SUFFIXES:
        raise IntvitError(f"format: must be one of {', '.join(SUFFIXES)}, not {kind!r}")
    if memory.bytewise:
        raise IntvitError(f"{name}: must be words to be written, not bytes")
    files = {}
    for i, bank in enumerate(memory.banks):
        where = name if n == 1 else f"{name} bank {i}"
        files[suffix(kind, i, n)] = _write_bank(
            memory, bank, kind, header, where, name if n == 1 else f"{name}_bank{i}"
        )
    return files


def _write_bank(memory: Memory, bank: Bank, kind: str, header: str, where: str, name: str) -> bytes:
    if bank.unknown is not None and bank.unknown.any() and kind not in ("memh", "memb", "sv", "npz"):
        raise IntvitError(f"{where}: every word must be known in {kind}")
    if kind == "bin":
        return octets.write_raw(memory, bank, MOST_BYTES, where)
    if kind == "ihex":
        return octets.write_intel(memory, bank, where)
    bank = _by_word(memory, bank, where)
    if kind in ("memh", "memb"):
        return readmem.write(bank, memory.word_bits, header, HEX if kind == "memh" else BINARY)
    if kind == "mif":
        last = int(bank.addresses[-1]) if len(bank.addresses) else 0
        return initial.write_mif(bank, memory.word_bits, header, memory.depth or last + 1)
    bank = _dense(bank, memory.word_bytes, where)
    if kind == "coe":
        return initial.write_coe(bank, memory.word_bits, header)
    if kind in ("c", "sv") and not len(bank.words):
        raise IntvitError(f"{where}: must have a word at least in {kind}")
    if kind == "npy":
        return numbers.write_npy(memory, bank)
    if kind == "npz":
        return numbers.write_npz(memory, bank, name)
    known = numbers.identifier(name)
    if kind == "c":
        return numbers.format_c({known: (memory, bank)}, header, f"INTVIT_{known.upper()}_H")
    return numbers.format_sv({known: (memory, bank)}, header, f"{known}_pkg")


def _by_word(memory: Memory, bank: Bank, where: str) -> Bank:
    """The bank at addresses that count words."""
    if memory.step == 1:
        return bank
    held, step = bank.addresses, memory.step
    if isinstance(held, range) and not (held.start % step or held.step % step):
        return replace(bank, addresses=range(held.start // step, held.start // step + len(held) * (held.step // step),
            held.step // step))  # fmt: skip
    addresses = np.asarray(held, np.int64)
    odd = addresses % step != 0
    if odd.any():
        at = int(addresses[odd.argmax()])
        raise IntvitError(f"{where}: address {at:#x} must be a multiple of the {step} bytes of a word")
    return replace(bank, addresses=addresses // step)


def _dense(bank: Bank, word_bytes: int, where: str) -> Bank:
    """The bank from address 0 without gaps; words between its words are 0."""
    held = bank.addresses
    if not len(held) or (isinstance(held, range) and held.step == 1):
        return replace(bank, addresses=range(len(held)))
    at = np.asarray(held, np.int64) - int(held[0])
    n = int(at[-1]) + 1
    if n * word_bytes > MOST_BYTES:
        raise IntvitError(f"{where}: words with their gaps must fit {MOST_BYTES} bytes, not {n * word_bytes}")
    words = np.zeros((n, bank.words.shape[1]), np.uint8)
    words[at] = bank.words
    unknown = None
    if bank.unknown is not None:
        unknown = np.zeros_like(words)
        unknown[at] = bank.unknown
    return Bank(range(n), words, unknown)


def read(files: Sequence[tuple[object, bytes]], layout: Layout, name: str = "memory", kind: str = "") -> Memory:
    """The memory in the files of its banks, each (place for messages, bytes), in the layout's format or `kind`.

    Only what the layout says of words is used; where they belong is decided by `unpack`, whose layout must have the
    format that was read.
    """
    kind = kind or layout.format
    layout = layout.model_copy(update={"format": kind})
    elements = kind in NUMBERS and not layout.packed
    n = 1 if elements else layout.banks
    if len(files) != n:
        raise IntvitError(f"{name}: must have {n} files, one a bank, not {len(files)}")
    banks, shape = [], None
    for i, (where, data) in enumerate(files):
        bank, shape = _read_bank(data, kind, layout, name if n == 1 else f"{name}_bank{i}", elements, where)
        banks.append(bank)
    if elements:
        return Memory(numbers.EXACT_BITS, tuple(banks), signed=True, shape=shape)
    if kind in ("bin", "ihex"):
        return Memory(8, tuple(banks), "byte", bytewise=True)
    return Memory(layout.word_bits, tuple(banks))


def _read_bank(
    data: bytes, kind: str, layout: Layout, name: str, elements: bool, where: object
) -> tuple[Bank, tuple[int, ...] | None]:
    """The bank, and the shape of its numbers where the format keeps one."""
    bits = layout.word_bits
    if kind in ("memh", "memb"):
        return readmem.read(data, bits, HEX if kind == "memh" else BINARY, where), None
    if kind == "coe":
        return initial.read_coe(data, bits, where), None
    if kind == "mif":
        return initial.read_mif(data, bits, where), None
    if kind == "ihex":
        return octets.read_intel(data, where), None
    if kind == "bin":
        return octets.read_raw(data, where), None
    if kind in ("npy", "npz"):
        array, valid = _array(data, kind, name, where)
        return numbers.bank_of(array, valid, bits, elements, where), array.shape if elements else None
    found = (numbers.parse_c if kind == "c" else numbers.parse_sv)(data, where)
    known = numbers.identifier(name)
    if known not in found and len(found) > 1:
        raise IntvitError(f"{where}: must have a constant {known}, and has {len(found)} others")
    constant = found.get(known) or next(iter(found.values()))
    return constant.bank(bits, elements), None


def _array(data: bytes, kind: str, name: str, where: object) -> tuple[Array, Array | None]:
    if kind == "npy":
        return numbers.parse_npy(data, where), None
    arrays = numbers.parse_npz(data, where)
    named = [key for key in arrays if not key.endswith(numbers.VALID)]
    if name not in arrays and len(named) != 1:
        raise IntvitError(f"{where}: must have an array {name}, and has {len(named)} others")
    key = name if name in arrays else named[0]
    return arrays[key], arrays.get(key + numbers.VALID)


def constants(
    kind: str, name: str, values: Mapping[str, tuple[Array, IntType]], layouts: Layouts, header: str = ""
) -> bytes:
    """One C header (`c`) or SystemVerilog package (`sv`) of that name with all these tensors, numbers and vectors."""
    found: dict[str, tuple[Memory, Bank]] = {}
    for key, (array, dtype) in values.items():
        layout = layouts.of(key).model_copy(update={"format": kind})
        known = numbers.identifier(key)
        if known in found:
            raise IntvitError(f"{key}: must have a name of its own in {kind}, and {known} is taken")
        with placed(name):
            memory = pack(array, dtype, layout, key)
            if len(memory.banks) != 1:
                raise IntvitError(f"{key}: must have one bank, not {len(memory.banks)}")
            found[known] = memory, _dense(_by_word(memory, memory.banks[0], key), memory.word_bytes, key)
    if kind == "c":
        return numbers.format_c(found, _header(header), f"INTVIT_{numbers.identifier(name).upper()}_H")
    if kind != "sv":
        raise IntvitError(f"format: must be c or sv to hold constants, not {kind!r}")
    return numbers.format_sv(found, _header(header), numbers.identifier(name))


def header_of(data: bytes) -> str:
    """The first comment line of a text that `write` made, "" if there is none."""
    first = data[: data.find(b"\n") if b"\n" in data[:4096] else 0]
    for begin, end in ((b"// ", b""), (b"/* ", b" */"), (b"; ", b""), (b"-- ", b"")):
        if first.startswith(begin) and first.endswith(end):
            return first[len(begin) : len(first) - len(end)].decode("ascii", "replace")
    return ""
