"""What a device dumped, behind one small interface: arrays by case, image and key, and which elements are known.

`open_dump` reads an npz archive, or a folder of `.hex`, `.npy` and `.npz` files that are named as in a bundle. Other
layouts and formats give the same: a class with the two methods of `Dump`.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from intvit.errors import IntvitError, reading, shortened
from intvit.files import inside, regular, safe_name
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array
from intvit.vectors.layouts.dump import read_dump
from intvit.vectors.layouts.formats import SUFFIXES
from intvit.vectors.layouts.layout import Layouts
from intvit.vectors.layouts.memory import Plan

Key = tuple[str, int, str]
"""(safe name of the case, image, safe name of the tensor, or `output`)."""
VALID = ".valid"
"""What a mask of known elements is called: the key, and this."""
MOST_BYTES = 1 << 31
EXTENSIONS = (".hex", ".npy", ".npz")


@dataclass(frozen=True)
class Place:
    """Where an element lies in the device's memory, if a layout tells."""

    address: int | None = None
    beat: int | None = None
    lane: int | None = None
    bank: int | None = None

    def __str__(self) -> str:
        said = {"bank": self.bank, "beat": self.beat, "lane": self.lane}
        at = [] if self.address is None else [f"address {self.address:#x}"]
        return ", ".join(at + [f"{key} {value}" for key, value in said.items() if value is not None])


@dataclass(frozen=True, eq=False)
class Dumped:
    """A tensor of one image: int64 (*shape), and bool (*shape), true where the device gave a value."""

    values: Array
    valid: Array
    source: str
    """The file, and what of it."""
    undefined: Array
    """bool (*shape), true where it gave x or z."""

    @property
    def given(self) -> Array:
        """bool (*shape), true where it gave anything."""
        return np.asarray(self.valid | self.undefined)


class Dump(Protocol):
    """What was dumped, whatever the files."""

    def keys(self) -> Collection[Key]:
        """What there is; names that are no tensor's are among them, and become `extra`."""
        ...

    def read(self, key: Key, shape: tuple[int, ...], dtype: IntType) -> Dumped:
        """One of `keys` as a tensor. IntvitError, one line with file and place, unless it is exactly that: truncated,
        too long, of words that do not fit."""
        ...

    def place(self, key: Key, index: tuple[int, ...], shape: tuple[int, ...]) -> Place | None:
        """Where an element of a tensor of a shape lies, if that is known."""
        ...


def fitted(where: str, values: Array, shape: tuple[int, ...], dtype: IntType, valid: Array | None = None,
           undefined: Array | None = None) -> Dumped:  # fmt: skip
    """Integers of a dump as a tensor: of its shape, or all its elements in row-major order; IntvitError otherwise."""
    n = int(np.prod(shape))
    if values.dtype.kind not in "iu":
        raise IntvitError(f"{where}: must hold integers, not {values.dtype}")
    if values.shape not in (shape, (n,), (1, *shape)):
        raise IntvitError(f"{where}: must be of shape {list(shape)}, or {n} elements, not {list(values.shape)}")
    known = np.ones(values.shape, bool) if valid is None else valid
    if known.shape not in (values.shape, shape, (n,)) or known.dtype != np.bool_:
        raise IntvitError(
            f"{where}{VALID}: must be bools of shape {list(shape)}, not {known.dtype} {list(known.shape)}"
        )
    values, known = values.reshape(shape), known.reshape(shape)
    beyond = known & ((values < dtype.min) | (values > dtype.max))
    if beyond.any():
        at = tuple(int(i) for i in np.unravel_index(int(beyond.argmax()), shape))
        raise IntvitError(f"{where}: element {list(at)} must fit {dtype}, not {int(values[at])}")
    none = np.zeros(shape, np.bool_)
    return Dumped(np.where(known, values, 0).astype(np.int64), known, where, none if undefined is None else undefined)


# ------------------------------------------------------------------------------------------------- archives


def _split(name: str, where: object) -> Key:
    """`case/image<i>/key` apart; a name that is not of this form is a key of no case."""
    parts = name.split("/")
    if len(parts) == 3 and re.fullmatch(r"image(0|[1-9][0-9]{0,8})", parts[1]):
        return parts[0], int(parts[1][5:]), parts[2]
    raise IntvitError(f"{where}: {shortened(name)} must read like case/image0/output, as in golden vectors")


@dataclass(frozen=True, eq=False)
class Archive:
    """An npz archive: `case/image<i>/key` -> integers; `case/image<i>/key.valid` -> bools."""

    path: Path
    arrays: Mapping[Key, Array]

    def keys(self) -> Collection[Key]:
        return [key for key in self.arrays if not key[2].endswith(VALID)]

    def read(self, key: Key, shape: tuple[int, ...], dtype: IntType) -> Dumped:
        where = f"{self.path}: {'/'.join(map(str, (key[0], f'image{key[1]}', key[2])))}"
        valid = self.arrays.get((key[0], key[1], f"{key[2]}{VALID}"))
        return fitted(where, self.arrays[key], shape, dtype, valid)

    def place(self, key: Key, index: tuple[int, ...], shape: tuple[int, ...]) -> Place | None:
        return None


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an npz archive by their names, of at most 2 GiB; never a pickle."""
    with reading(path, "an npz archive"), zipfile.ZipFile(regular(path)) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > MOST_BYTES:
            raise IntvitError(f"{path}: must hold at most {MOST_BYTES} bytes of arrays, not {total}")
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise IntvitError(f"{path}: must hold every name once")
        found = {}
        for member in members:
            if not member.filename.endswith(".npy"):
                raise IntvitError(f"{path}: must hold .npy files, not {shortened(member.filename)}")
            with reading(f"{path}: {shortened(member.filename)}", "an npy array"), archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):
                    raise ValueError("it holds more bytes than its array")
            found[member.filename.removesuffix(".npy")] = array
    return found


def open_archive(path: Path) -> Archive:
    return Archive(path, {_split(name, path): array for name, array in read_npz(path).items()})


# -------------------------------------------------------------------------------------------------- folders


@dataclass(frozen=True, eq=False)
class Folder:
    """`case/image<i>/key.hex`, `.npy` or `.npz` below a folder."""

    path: Path
    files: Mapping[Key, Path]

    def keys(self) -> Collection[Key]:
        return list(self.files)

    def read(self, key: Key, shape: tuple[int, ...], dtype: IntType) -> Dumped:
        path = inside(self.path, self.files[key])
        if path.stat().st_size > MOST_BYTES:
            raise IntvitError(f"{path}: must have at most {MOST_BYTES} bytes, not {path.stat().st_size}")
        if path.suffix == ".hex":
            return read_hex(path, shape, dtype)
        if path.suffix == ".npy":
            with reading(path, "an npy array"), open(regular(path), "rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):
                    raise ValueError("it holds more bytes than its array")
            return fitted(str(path), array, shape, dtype)
        arrays = read_npz(path)
        names = [name for name in arrays if not name.endswith("valid")]
        if len(names) != 1:
            raise IntvitError(f"{path}: must hold one array, not {len(names)}")
        valid = arrays.get(f"{names[0]}{VALID}", arrays.get("valid"))
        return fitted(str(path), arrays[names[0]], shape, dtype, valid)

    def place(self, key: Key, index: tuple[int, ...], shape: tuple[int, ...]) -> Place | None:
        return None


def open_folder(path: Path) -> Folder:
    files: dict[Key, Path] = {}
    with reading(path, "a readable folder"):
        for folder, folders, names in os.walk(path):
            for name in (*folders, *names):
                inside(path, Path(folder, name))
            for name in sorted(names):
                found = Path(folder, name)
                if found.suffix not in EXTENSIONS:
                    raise IntvitError(f"{found}: must be one of {', '.join(EXTENSIONS)}")
                key = _split(str(found.relative_to(path).with_suffix("").as_posix()), path)
                if key in files:
                    raise IntvitError(f"{found}: must be there once, and is as {files[key].name} too")
                files[key] = found
    return Folder(path, files)


def read_hex(path: Path, shape: tuple[int, ...], dtype: IntType) -> Dumped:
    """`$readmemh` text as simulators write it: a word a token, `//` comments, x and z for what is undefined.

    A word has the digits of its type or more; the bits above the type are 0 or repeat its sign.
    """
    with reading(path, "ASCII text of hex words"):
        lines = regular(path).read_bytes().decode("ascii").split("\n")
    words: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        words += [(number, word) for word in line.partition("//")[0].split()]
    n = int(np.prod(shape))
    if len(words) != n:
        last = f", the last in line {words[-1][0]}" if words else ""
        raise IntvitError(f"{path}: must hold {n} words, not {len(words)}{last}")
    values, valid = np.zeros(n, np.int64), np.ones(n, bool)
    seen: dict[str, int | None] = {}
    for i, (number, word) in enumerate(words):
        if word not in seen:
            try:
                seen[word] = parse_word(word, dtype)
            except IntvitError as error:
                raise IntvitError(f"{path}: line {number}: {error}") from None
            except LookupError:
                seen[word] = None
        value = seen[word]
        values[i], valid[i] = value or 0, value is not None
    known = valid.reshape(shape)
    return fitted(str(path), values.reshape(shape), shape, dtype, known, ~known)


DIGITS = frozenset("0123456789abcdefABCDEF")


def parse_word(word: str, dtype: IntType) -> int:
    """The value of a hex word; LookupError for one that is not known, IntvitError for what is none or too wide."""
    if word.startswith("@"):
        raise IntvitError(f"addresses need a layout (--layout), and it is {shortened(word)}")
    if not word or not set(word) <= DIGITS:
        prefixed = word[:2] in ("0x", "0X") and len(word) > -(-dtype.bits // 4)
        if word and not prefixed and set(word) <= DIGITS | set("xXzZ?"):
            raise LookupError(word)
        raise IntvitError(f"must be hex digits, not {shortened(word)}")
    value, wide = int(word, 16), 4 * len(word)
    if len(word) < -(-dtype.bits // 4):
        raise IntvitError(f"must have {-(-dtype.bits // 4)} hex digits as {dtype} has, not {shortened(word)}")
    if dtype.signed and value >= (1 << wide) - (1 << (dtype.bits - 1)):
        return value - (1 << wide)  # its sign, repeated
    if value >> dtype.bits:
        raise IntvitError(f"must have no bit above {dtype}, not {shortened(word)}")
    sign = (1 << dtype.bits) >> 1 if dtype.signed else 0
    return (value ^ sign) - sign


def open_dump(path: str | Path, layouts: Layouts | None = None) -> Dump:
    """An npz file or a folder, of memory files if there are `layouts`; IntvitError where nothing is in it."""
    path = Path(path)
    dump: Dump
    if layouts is not None and os.path.isdir(path):
        dump = open_laid(path, layouts)
    else:
        dump = open_folder(path) if os.path.isdir(path) else open_archive(path)
    if not dump.keys():
        raise IntvitError(f"{path}: must hold a tensor at least, and holds none")
    return dump


@dataclass(frozen=True, eq=False)
class Laid:
    """`case/image<i>/key` and the suffix of a format, with `.bank<i>` before it: memories under layouts."""

    path: Path
    layouts: Layouts
    found: Collection[Key]

    def keys(self) -> Collection[Key]:
        return self.found

    def read(self, key: Key, shape: tuple[int, ...], dtype: IntType) -> Dumped:
        case, image, name = key
        folder = self.path / case / f"image{image}"
        dump = read_dump(folder, {name: (shape, dtype)}, self.layouts.within(case))
        if name not in dump.signals:
            raise IntvitError(f"{folder / name}: must be a file of a memory, and is none")
        signal = dump.signals[name]
        return fitted(f"{folder}/{dump.files[name][0]}", signal.values, shape, dtype, signal.valid,
                      signal.undefined)  # fmt: skip

    def place(self, key: Key, index: tuple[int, ...], shape: tuple[int, ...]) -> Place | None:
        """Where an element of a tensor of a shape lies."""
        layout = self.layouts.within(key[0]).of(key[2]).as_stored()
        plan = Plan(shape, layout, key[2])
        ordinals = plan.arrange(np.arange(1, int(np.prod(shape)) + 1).reshape(shape))
        wanted = int(np.ravel_multi_index(index, shape)) + 1 if shape else 1
        tile, element = (int(i) for i in np.argwhere(ordinals == wanted)[0])
        beat, lane = divmod(element, layout.lanes)
        word = beat * layout.words + lane * layout.element_bits // layout.word_bits
        for bank in range(layout.banks):
            tiles, words = plan.part(bank)
            of_tiles, of_words = range(plan.n_tiles)[tiles], range(plan.n_words)[words]
            if tile in of_tiles and word in of_words:
                at = of_tiles.index(tile) * plan.tile_stride + of_words.index(word) * plan.word_stride
                return Place(layout.base + at, beat, lane, bank if layout.banks > 1 else None)
        raise AssertionError(f"{key}: {index} lies in no bank")


def open_laid(path: Path, layouts: Layouts) -> Laid:
    found: dict[Key, None] = {}
    endings = sorted({end for ends in SUFFIXES.values() for end in ends}, key=len, reverse=True)
    with reading(path, "a readable folder"):
        for folder, folders, names in os.walk(path):
            for name in (*folders, *names):
                inside(path, Path(folder, name))
            for name in sorted(names):
                relative = Path(folder, name).relative_to(path).as_posix()
                end = next((end for end in endings if name.endswith(end)), None)
                if end is None:
                    raise IntvitError(f"{Path(folder, name)}: must be one of {', '.join(endings)}")
                found[_split(re.sub(r"\.bank[0-9]{1,4}$", "", relative.removesuffix(end)), path)] = None
    return Laid(path, layouts, list(found))


def key_of(case: str, image: int, name: str) -> Key:
    """Of a tensor by its own name."""
    return safe_name(case), image, safe_name(name)
