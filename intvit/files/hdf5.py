"""HDF5 files: written whole or not at all, read as if an enemy had made them.

The C library does not survive a write that fails when a file is closed: it crashes, or stays broken for the rest of
the process. So it never learns of one: it writes through a file object of ours, and the failure is raised beside it.

Reading: a file may name others (external links, external storage, virtual datasets), declare arrays without end, or
hold types that make the library run code or follow references. `opened`, `dataset`, `attribute` and their kin let
through what is a plain value stored in the file itself, and refuse the rest in one line.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5t, h5z

from intvit.errors import IntvitError, reading, reason
from intvit.files import regular, whole_file

LIBVER = ("v110", "v110")
"""Of the file format: all metadata carry checksums, and equal writes in equal order give equal bytes."""
FILTERS = frozenset({h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32})
LARGEST_RATIO = 1032
"""Bytes that deflate makes of one, at most."""
SMALL = 2**20
"""Bytes that may be declared whatever the file holds."""
LONGEST_ATTRIBUTE = 2**22
MOST_SOFT_LINKS = 8
HEAP = b"GCOL\1\0\0\0"
"""What every collection of texts of variable length begins with."""


class Output:
    """A file for HDF5 to write that never fails: the first failure, an interrupt too, is kept for `check` to raise.

    What lies in the file beforehand is no part of it: the bytes that are never written are zero.
    """

    def __init__(self, file: FileIO) -> None:
        self._file, self._at, self._end = file, 0, 0
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._failure is not None:
            raise self._failure

    def sync(self) -> None:
        """`check`, and bring to the disk what was written so far."""
        self.check()
        os.fsync(self._file.fileno())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        left = memoryview(data)
        size = len(left)
        try:
            if self._failure is None:
                if self._at > self._end:
                    self._write(self._end, bytes(self._at - self._end))
                self._write(self._at, left)
        except BaseException as error:
            self._failure = error
        self._at += size
        self._end = max(self._end, self._at)
        return size

    def _write(self, at: int, left: Any) -> None:
        self._file.seek(at)
        while left:  # a disk that is nearly full takes a part
            left = left[self._file.write(left) :]

    def readinto(self, buffer: Any) -> int:
        left = memoryview(buffer)
        size = len(left)
        try:
            self._file.seek(self._at)
            while left and (n := self._file.readinto(left)):
                left = left[n:]
        except BaseException as error:
            self._failure = self._failure or error
        left[:] = bytes(len(left))
        self._at += size
        return size

    read = readinto
    """Never called: h5py recognises a file object by it."""

    def truncate(self, size: int) -> int:
        try:
            if self._failure is None:
                for end in (min(size, self._end), size):  # what is added is zero
                    self._file.truncate(end)
        except BaseException as error:
            self._failure = error
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing is held back."""


@contextmanager
def written(path: Path, kind: str, version: int, *, over: bool = False) -> Iterator[tuple[h5py.File, Output]]:
    """A new HDF5 file at `path`, and what it goes through: its `check` raises if a write failed, as does the end.

    With `over`, bytes of a file that is already there stay until they are written: they can be read beside.
    """
    with open(path, "r+b" if over else "w+b", buffering=0) as raw:
        output = Output(raw)
        try:
            with h5py.File(output, "w", driver="fileobj", libver=LIBVER, rdcc_nbytes=0) as file:
                file.attrs["format"], file.attrs["version"] = kind, version
                yield file, output
        except Exception:
            output.check()
            raise
        output.check()


@contextmanager
def create(path: str | Path, kind: str, version: int) -> Iterator[tuple[h5py.File, Output]]:
    """`written` to a file that appears at `path` whole or not at all."""
    with whole_file(path) as partial, written(partial, kind, version) as opened:
        yield opened


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """Open any HDF5 file to read; IntvitError if it is missing, no regular file, truncated or no HDF5."""
    path = regular(path)
    with reading(path, "a whole HDF5 file"):
        file = h5py.File(path, "r", locking=False)
    with file:
        with reading(path, "a whole HDF5 file"):
            block = file.userblock_size
        if block:
            raise IntvitError(f"{path}: must begin with HDF5, not with a user block of {block} bytes")
        yield file


@contextmanager
def read(path: str | Path, kind: str, version: int, *older: int) -> Iterator[h5py.File]:
    """Open a file that this package wrote; IntvitError if it is another one, or of a version that is not listed."""
    with opened(path) as file:
        found = attribute(file, "format", str, optional=True), attribute(file, "version", int, optional=True)
        if found[0] != kind or found[1] not in (version, *older):
            again = "; make it again" if found[0] == kind else ""
            raise IntvitError(f"{path}: must be {kind} version {version}, not {found[0]} version {found[1]}{again}")
        yield file


def members(group: h5py.Group) -> list[str]:
    """Names in a group, sorted."""
    with _reading(group, "", "a group of named members"):
        return sorted(group)


def holds(group: h5py.Group, name: str) -> bool:
    """Whether a group has a member of that name."""
    with _reading(group, name, "there or not"):
        return name in group


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group at the path `name` below `parent`, reached without leaving the file."""
    found = _find(parent, name)
    if not isinstance(found, h5py.Group):
        raise IntvitError(f"{_place(parent, name)}: must be a group")
    return found


def dataset(
    parent: h5py.Group, name: str, kinds: str = "biuf", filters: frozenset[int] = FILTERS
) -> h5py.Dataset:  # fmt: skip
    """The dataset at the path `name` below `parent`, safe to read: plain numbers of `kinds` that this file stores.

    `kinds` are NumPy's letters (`b`, `i`, `u`, `f`; `S` is text of fixed length, `O` of variable length and no other
    object). Nothing of the data is read here.
    """
    found = _find(parent, name)
    if not isinstance(found, h5py.Dataset):
        raise IntvitError(f"{_place(parent, name)}: must be a dataset")
    with _reading(parent, name, "a dataset of numbers"):
        made, kind = found.id.get_create_plist(), _kind(found.id.get_type())
        if kind not in kinds:
            raise _refused(parent, name, f"hold plain values of kind {'/'.join(kinds)}, not {_type_name(found)}")
        if kind == "O":
            check_heaps(found.file)
        if made.get_external_count() or made.get_layout() not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            raise _refused(parent, name, "be stored in this file, not in others")
        used = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
        if not filters.issuperset(used):
            raise _refused(parent, name, f"be stored as it is or deflated, not with filters {used}")
        shape, item, stored = found.shape, found.dtype.itemsize, found.id.get_storage_size()
        needed = max(prod(shape) * item, prod(found.chunks) * item if found.chunks else 0)
        held = min(stored, os.stat(found.file.filename).st_size)
        if needed > held * (LARGEST_RATIO if used else 1) + SMALL:
            raise _refused(parent, name, f"be stored whole; {stored} bytes cannot hold the shape {list(shape)}")
    return found


def array(parent: h5py.Group, name: str, kinds: str = "biuf") -> np.ndarray[Any, Any]:
    """All values of a `dataset`."""
    data = dataset(parent, name, kinds)
    with _reading(parent, name, "a whole dataset"):
        return np.asarray(data[()])


def text(parent: h5py.Group, name: str) -> str:
    """A scalar dataset of text in UTF-8."""
    data = dataset(parent, name, "SO")
    with _reading(parent, name, "text"):
        return bytes(data[()]).decode()


def attribute(node: h5py.Group | h5py.Dataset, name: str, kind: type, *, optional: bool = False) -> Any:
    """The attribute `name`, a `str`, `int` or `float`, or a flat `list` of numbers; None if `optional` and missing."""
    place = f"attribute {name}"
    with _reading(node, place, "there and readable"):
        if not h5a.exists(node.id, name.encode()):
            if optional:
                return None
            raise _refused(node, place, "be there")
        held = h5a.open(node.id, name.encode())
        stored = _kind(held.get_type())
        if stored not in "OSbiuf" or held.get_storage_size() > LONGEST_ATTRIBUTE:
            raise _refused(node, place, "be a number or text")
        if stored == "O":
            check_heaps(node.file)
        value = node.attrs[name]
        if kind is list:
            value = np.asarray(value)
            if value.dtype.kind in "biuf" and value.ndim <= 1:
                return value.reshape(-1).tolist()
        else:
            value = value.decode() if isinstance(value, bytes) else value
            wanted: dict[type, Any] = {str: str, int: np.integer, float: (np.floating, np.integer)}
            if isinstance(value, wanted[kind]):
                return kind(value)
        raise _refused(node, place, f"be of type {kind.__name__}, not {type(value).__name__}")


def check_heaps(file: h5py.File) -> None:
    """IntvitError unless one can walk through all texts of variable length: HDF5 walks for ever where a size is 0."""
    if file.driver == "fileobj":  # our own, being written
        return
    found = os.stat(file.filename)
    refused = _heap_fault(file.filename, found.st_ino, found.st_size, found.st_mtime_ns)
    if refused:
        raise IntvitError(f"{file.filename}: must be a whole HDF5 file, not: {refused}")


@lru_cache
def _heap_fault(path: str, inode: int, size: int, changed: int) -> str:
    """What is wrong with the first damaged collection of the file that has this inode, size and time; "" if none is."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        at, left = held.find(HEAP), size // 16
        while at >= 0:
            end = at + int.from_bytes(held[at + 8 : at + 16], "little")
            step = at + 16
            while step + 16 <= end <= size and left >= 0:
                left -= 1  # as many as a file can hold side by side
                index = int.from_bytes(held[step : step + 2], "little")
                length = int.from_bytes(held[step + 8 : step + 16], "little")
                # of what is free the header is a part
                step += 16 + -(-length // 8) * 8 if index else length if length >= 16 else size
            if end > size or step > end or left < 0:
                return f"the collection of texts at byte {at} is damaged"
            at = held.find(HEAP, at + 1)
    return ""


def held_text(name: str) -> str:
    """`name` as an attribute can hold it: NUL and halves of surrogate pairs as escapes."""
    return "".join(c if c != "\0" and not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in name)


def _place(node: h5py.Group | h5py.Dataset, name: str) -> str:
    path = "/".join(part for part in (str(node.name or "").strip("/"), name) if part)
    return ": ".join(part for part in (node.file.filename, path) if part)


def _refused(node: h5py.Group | h5py.Dataset, name: str, rule: str) -> IntvitError:
    return IntvitError(f"{_place(node, name)}: must {rule}")


@contextmanager
def _reading(node: h5py.Group | h5py.Dataset, name: str, what: str) -> Iterator[None]:
    """`errors.reading` of a place that takes a while to name."""
    try:
        yield
    except IntvitError:
        raise
    except Exception as error:
        raise _refused(node, name, f"be {what}, not: {reason(error)}") from None


def _type_name(data: h5py.Dataset) -> str:
    try:
        return str(data.dtype)
    except Exception:
        return "a type that NumPy does not know"


def _kind(held: h5t.TypeID) -> str:
    """NumPy's letter for a plain type, `O` for text of variable length; `?` for references and types of other types."""
    kind = held.get_class()
    if kind == h5t.STRING:
        return "O" if held.is_variable_str() else "S"
    if kind in (h5t.INTEGER, h5t.FLOAT):
        return str(held.dtype.kind)
    return "b" if kind == h5t.ENUM and held.dtype == np.bool_ else "?"


def _find(parent: h5py.Group, name: str) -> Any:
    with _reading(parent, name, "there"):
        return _follow(parent, name, MOST_SOFT_LINKS)


def _follow(parent: h5py.Group, name: str, n_soft: int) -> Any:
    """The object at a path, one step at a time, so that no link out of the file is taken."""
    at: Any = parent
    for step in (part for part in name.split("/") if part not in ("", ".")):
        key = step.encode("utf-8", "surrogateescape")
        if not isinstance(at, h5py.Group) or b"\0" in key or not at.id.links.exists(key):
            raise _refused(parent, name, "be there")
        link = at.id.links.get_info(key).type
        if link == h5l.TYPE_SOFT:
            if n_soft < 1:
                raise _refused(parent, name, "not be a chain of links")
            target = at.id.links.get_val(key).decode("utf-8", "surrogateescape")
            at = _follow(at.file if target.startswith("/") else at, target, n_soft - 1)
        elif link == h5l.TYPE_HARD:
            found = h5o.open(at.id, key)
            kinds: Sequence[tuple[type, type]] = [(h5py.h5g.GroupID, h5py.Group), (h5d.DatasetID, h5py.Dataset)]
            wrap = next((wrapper for kind, wrapper in kinds if isinstance(found, kind)), None)
            if wrap is None:
                raise _refused(parent, name, "be a group or a dataset")
            at = wrap(found)
        else:
            raise _refused(parent, name, "be stored in this file, not linked from another")
    return at
