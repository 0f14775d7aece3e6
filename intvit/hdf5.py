"""HDF5 files as this package writes them: a format name and version, no half-written file, one-line errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from intvit.errors import IntvitError


@contextmanager
def create(path: str | Path, kind: str, version: int) -> Iterator[h5py.File]:
    """Write `path` through a temporary name; it appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs["format"], file.attrs["version"] = kind, version
            yield file
        os.replace(partial, path)
    except OSError as error:
        raise IntvitError(f"{path}: cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def read(path: str | Path, kind: str, version: int) -> Iterator[h5py.File]:
    """Open a file of this kind; IntvitError if it is missing, truncated, foreign or of another version."""
    if not Path(path).is_file():
        raise IntvitError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise IntvitError(f"{path}: must be a whole HDF5 file, not: {error}") from None
    with file:
        found = (file.attrs.get("format"), int(file.attrs.get("version", 0)))
        if found != (kind, version):
            raise IntvitError(f"{path}: must be {kind} version {version}, not {found[0]} version {found[1]}")
        try:
            yield file
        except (OSError, KeyError, RuntimeError) as error:
            raise IntvitError(f"{path}: is damaged: {error}") from None
