"""Where the files of a bundle lie: a folder or a zip. No links, no pipes, nothing that is not listed."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Protocol

from intvit.errors import IntvitError, reading
from intvit.files import NO_LINK, inside, regular

PLAIN = os.O_RDONLY | NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member of a zip: the earliest that zip knows."""


class Source(Protocol):
    """Files by their path below the bundle, with `/`."""

    def shown(self, path: str) -> str:
        """A path as messages name it."""

    def read(self, path: str, most: int) -> bytes:
        """The bytes of a plain file, at most `most`; IntvitError for links, pipes, devices and what is missing."""

    def holds_exactly(self, folder: str, names: Collection[str]) -> None:
        """IntvitError unless a folder holds `names` and nothing else."""


def open_source(path: str | Path) -> Source:
    path = Path(path)
    if os.path.isdir(path):  # False for any name
        return Folder(path)
    if path.suffix == ".zip":
        return Zip(regular(path))
    raise IntvitError(f"{path}: must be a folder of golden vectors, or a zip of them")


def read_bytes(folder: Path, path: Path, most: int) -> bytes:
    """The bytes of a plain file below `folder`, at most `most`; IntvitError for links, pipes and devices."""
    inside(folder, path)
    with reading(path, "a readable file"), open(os.open(path, PLAIN), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IntvitError(f"{path}: must be a plain file")
        if status.st_size > most:
            raise IntvitError(f"{path}: must have at most {most} bytes, not {status.st_size}")
        return file.read(most)


class Folder:
    """A folder of files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def shown(self, path: str) -> str:
        return str(self.root / path)

    def read(self, path: str, most: int) -> bytes:
        return read_bytes(self.root, self.root / path, most)

    def holds_exactly(self, folder: str, names: Collection[str]) -> None:
        at = self.root / folder
        inside(self.root, at)
        with reading(at, "a readable folder"):
            found = set(os.listdir(at))
        _exactly(str(at), found, names)


class Zip:
    """A zip of stored files, as `write_zip` makes it; other zips of the same files are read too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        with reading(self.path, "a zip of golden vectors"):
            return zipfile.ZipFile(self.path)

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            parts = info.filename.split("/")
            link = stat.S_ISLNK(info.external_attr >> 16)
            if info.is_dir() or "\\" in info.filename or {"", ".", ".."} & set(parts) or link:
                raise IntvitError(f"{self.path}: must hold plain files below it, not {ascii(info.filename)[:80]}")
            if info.filename in found:
                raise IntvitError(f"{self.path}: must hold {info.filename} once")
            found[info.filename] = info
        return found

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {"": set()}
        for name in self._members:
            parts = name.split("/")
            for i in range(len(parts)):
                found.setdefault("/".join(parts[:i]), set()).add(parts[i])
        return found

    def shown(self, path: str) -> str:
        return f"{self.path}/{path}"

    def read(self, path: str, most: int) -> bytes:
        info = self._members.get(path)
        if info is None:
            raise IntvitError(f"{self.shown(path)}: is listed but missing")
        if info.file_size > most:
            raise IntvitError(f"{self.shown(path)}: must have at most {most} bytes, not {info.file_size}")
        with reading(self.shown(path), "a readable file"), self._archive.open(info) as file:
            data = file.read(most + 1)
        if len(data) != info.file_size:
            raise IntvitError(f"{self.shown(path)}: must have {info.file_size} bytes, and has others")
        return data

    def holds_exactly(self, folder: str, names: Collection[str]) -> None:
        _exactly(self.shown(folder).rstrip("/"), self._folders.get(folder, set()), names)


def _exactly(at: str, found: Collection[str], names: Collection[str]) -> None:
    for name in sorted({*found, *names}):
        if name not in found:
            raise IntvitError(f"{at}/{name}: is listed but missing")
        if name not in names:
            raise IntvitError(f"{at}/{ascii(name)[1:-1]}: must not be there, as nothing lists it")


def write_zip(folder: Path, path: Path) -> None:
    """The files of a folder, stored: equal folders give equal bytes on every machine."""
    names = sorted(place.relative_to(folder).as_posix() for place in folder.rglob("*") if place.is_file())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, DATE)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, (folder / name).read_bytes())
