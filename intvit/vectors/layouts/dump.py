"""Folders of signals: every tensor to its files by its layout, and what a device dumped back to tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from intvit.errors import IntvitError, placed, reading
from intvit.files import regular, safe_name, whole_folder
from intvit.graph.inttypes import IntType
from intvit.vectors.compare import shown
from intvit.vectors.layouts.formats import SUFFIXES, detect, read, write
from intvit.vectors.layouts.layout import NUMBERS, Layout, Layouts
from intvit.vectors.layouts.memory import Array, Memory, Unpacked, pack, unpack
from intvit.vectors.layouts.numbers import EXACT_BITS, VALID, bank_of, parse_npz
from intvit.vectors.source import read_bytes

Wanted = tuple[tuple[int, ...], IntType]
"""Shape and type of a signal."""

MOST_FILE = 1 << 32
"""Bytes of one file of a dump."""
_BANK = re.compile(r"\.bank(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Dump:
    """Signals that were found, by name; files of the dump that belong to none."""

    signals: dict[str, Unpacked]
    files: dict[str, tuple[str, ...]]
    """The files of each signal, one a bank."""
    extra: tuple[str, ...]

    def missing(self, wanted: Mapping[str, object]) -> tuple[str, ...]:
        """Signals that were asked for and are not there."""
        return tuple(key for key in wanted if key not in self.signals)


def encoded(
    signals: Mapping[str, tuple[Array, IntType]], layouts: Layouts, header: str = ""
) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of every signal: its safe name and the suffix of its format. Each header is the signal's name,
    type and shape, then `header`."""
    taken: dict[str, str] = {}
    for key, (array, dtype) in signals.items():
        layout = layouts.of(key)
        memory = pack(array, dtype, layout, key)
        facts = f"{safe_name(key)} {dtype} shape {list(array.shape)}"
        with placed(key):
            files = write(memory, layout.format, f"{facts}; {header}" if header else facts, safe_name(key))
        for end, data in files.items():
            name = safe_name(key) + end
            if name in taken:
                raise IntvitError(f"{key}: must have a file of its own, and {name} is of {taken[name]}")
            taken[name] = key
            yield name, data


def write_dump(
    folder: str | Path, signals: Mapping[str, tuple[Array, IntType]], layouts: Layouts, header: str = ""
) -> list[str]:
    """Write `encoded` to a folder that must not exist; the names of its files."""
    names = []
    with whole_folder(folder) as partial:
        for name, data in encoded(signals, layouts, header):
            (partial / name).write_bytes(data)
            names.append(name)
    return names


def read_dump(path: str | Path, wanted: Mapping[str, Wanted], layouts: Layouts, *, partial: bool = True) -> Dump:
    """What a folder, or a single file, holds of the wanted signals (shape and type by name).

    A folder has the files of each signal under its safe name, in the layout's format or in one that the suffix names;
    a file is an npz with an array for each signal, or belongs to the signal that it is named after (to any, if only
    one is wanted). Without `partial`, a signal that is not whole is refused.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return _read_file(regular(path), wanted, layouts, partial)
    with reading(path, "a readable folder"):
        names = sorted(os.listdir(path))
    keys = {safe_name(key): key for key in wanted}
    files: dict[str, dict[int, str]] = {}
    extra = []
    for name in names:
        key, bank = _owner(name, keys)
        if key is None:
            extra.append(shown(name))
        elif bank in files.setdefault(key, {}):
            raise IntvitError(f"{path}: {shown(key)} must have one file a bank, not {files[key][bank]} and {name}")
        else:
            files[key][bank] = name
    signals = {}
    for key in wanted:
        if key in files:
            signals[key] = _signal(path, key, files[key], wanted[key], layouts.of(key), partial)
    found = {key: tuple(names for _, names in sorted(files[key].items())) for key in signals}
    return Dump(signals, found, tuple(extra))


def _owner(name: str, keys: Mapping[str, str]) -> tuple[str | None, int]:
    """The signal and the bank that a file name belongs to."""
    for end in sorted({end for ends in SUFFIXES.values() for end in ends}, key=len, reverse=True):
        if name.endswith(end):
            stem = name.removesuffix(end)
            if stem in keys:
                return keys[stem], 0
            bank = _BANK.search(stem)
            if bank and bank.end() == len(stem) and stem[: bank.start()] in keys:
                return keys[stem[: bank.start()]], int(bank[1])
    return None, 0


def _signal(
    folder: Path, key: str, files: Mapping[int, str], wanted: Wanted, layout: Layout, partial: bool
) -> Unpacked:
    """One signal from the files of its banks. A bank whose file is not there is missing as a whole."""
    texts = {i: (folder / name, read_bytes(folder, folder / name, MOST_FILE)) for i, name in files.items()}
    kinds = {detect(files[i], data, layout) for i, (_, data) in texts.items()}
    if len(kinds) != 1:
        raise IntvitError(f"{folder}: {shown(key)} must be in one format, not {' and '.join(sorted(kinds))}")
    return _decoded(key, texts, kinds.pop(), wanted, layout, folder, partial)


def _decoded(
    key: str,
    texts: Mapping[int, tuple[Path, bytes]],
    kind: str,
    wanted: Wanted,
    layout: Layout,
    where: Path,
    partial: bool,
) -> Unpacked:
    shape, dtype = wanted
    layout = layout.model_copy(update={"format": kind})
    n = 1 if kind in NUMBERS and not layout.packed else layout.banks
    if max(texts) >= n:
        raise IntvitError(f"{texts[max(texts)][0]}: bank must be below {n}, as in the layout")
    if len(texts) < n and kind in ("ihex", "mif", "coe", "npy", "npz", "c", "sv", "bin"):
        lacking = next(i for i in range(n) if i not in texts)
        raise IntvitError(f"{where}: {shown(key)} must have a file for each bank, and bank {lacking} has none")
    ordered = [texts.get(i, (where, b"")) for i in range(n)]
    memory = read(ordered, layout, safe_name(key), kind)
    place = next(iter(texts.values()))[0] if n == 1 else f"{where}: {shown(key)}"
    return unpack(memory, shape, dtype, layout, place, partial=partial)


def _read_file(path: Path, wanted: Mapping[str, Wanted], layouts: Layouts, partial: bool) -> Dump:
    data = read_bytes(path.parent, path, MOST_FILE)
    if path.name.endswith(".npz"):
        return _read_npz(path, data, wanted, layouts, partial)
    key, bank = _owner(path.name, {safe_name(key): key for key in wanted})
    if key is None and len(wanted) == 1:
        key = next(iter(wanted))
    if key is None:
        names = ", ".join(f"{safe_name(key)}.*" for key in list(wanted)[:3])
        raise IntvitError(f"{path}: must be named after one of the signals ({names})")
    layout = layouts.of(key)
    kind = detect(path.name, data, layout)
    signal = _decoded(key, {bank: (path, data)}, kind, wanted[key], layout, path.parent, partial)
    return Dump({key: signal}, {key: (path.name,)}, ())


def _read_npz(path: Path, data: bytes, wanted: Mapping[str, Wanted], layouts: Layouts, partial: bool) -> Dump:
    """Arrays by the name of their signal, or its safe name; masks beside them."""
    arrays = parse_npz(data, path)
    signals: dict[str, Unpacked] = {}
    used = set()
    for key, (shape, dtype) in wanted.items():
        name = key if key in arrays else safe_name(key)
        if name not in arrays:
            continue
        used |= {name, name + VALID}
        layout = layouts.of(key).model_copy(update={"format": "npz"})
        if layout.packed and layout.banks > 1:
            raise IntvitError(f"{path}: {shown(key)} must have one bank in an npz of many signals")
        array = arrays[name]
        where = f"{path}:{shown(name)}"
        bank = bank_of(array, arrays.get(name + VALID), layout.word_bits, not layout.packed, where)
        if layout.packed:
            memory = Memory(layout.word_bits, (bank,))
        else:
            memory = Memory(EXACT_BITS, (bank,), signed=True, shape=array.shape)
        signals[key] = unpack(memory, shape, dtype, layout, where, partial=partial)
    extra = tuple(shown(name) for name in arrays if name not in used)
    return Dump(signals, dict.fromkeys(signals, (path.name,)), extra)
