"""A store of rows that were computed, in SQLite: what was measured once is not measured again.

Rows are kept under the digest of all that they follow from, so that a store never holds a stale one, and stores of any
runs can be merged. Whatever is written is whole, or not there, however a run ends.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.graph.ir import Array

FORMAT, VERSION = "intvit.store", 1
SCHEMA = """
create table if not exists about (format text not null, version integer not null);
create table if not exists rows (key text primary key, kind text not null, digest text not null, value blob not null);
"""


def key_of(kind: str, facts: Any) -> str:
    """The key of what follows from `facts`, which are JSON."""
    return hashlib.sha256(json.dumps([kind, facts], sort_keys=True).encode()).hexdigest()


class Store:
    """Structured arrays by key. A context, which leaves no new file without rows behind when it ends by an error.

    IntvitError for a file that is none, or that was damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.parent.is_dir():
            raise IntvitError(f"{path}: must be in a folder that there is")
        self._new = not path.exists()
        with self._reading():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=60)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        names = {name for (name,) in self._connection.execute("select name from sqlite_master where type = 'table'")}
        if names - {"about", "rows"}:
            raise IntvitError(f"{self.path}: must be a store of intvit, and holds tables {', '.join(sorted(names))}")
        self._connection.execute("pragma synchronous = normal")
        self._connection.executescript(SCHEMA)
        found = self._connection.execute("select format, version from about").fetchone()
        if found is None:
            self._connection.execute("insert into about values (?, ?)", (FORMAT, VERSION))
        elif found != (FORMAT, VERSION):
            raise IntvitError(f"{self.path}: store must be {FORMAT} {VERSION}, not {found[0]} {found[1]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        unused = kind is not None and self._new and not len(self)
        self._connection.close()
        if unused:
            self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        with self._reading():
            return int(self._connection.execute("select count(*) from rows").fetchone()[0])

    def get(self, key: str, kind: np.dtype[Any]) -> Array | None:
        """The rows under a key, of dtype `kind`; None where there are none."""
        with self._reading():
            found = self._connection.execute("select digest, value from rows where key = ?", (key,)).fetchone()
        if found is None:
            return None
        value = self._whole(key, *found)
        if len(value) % kind.itemsize:
            raise IntvitError(f"{self.path}: rows {key[:12]} must be of {kind.itemsize} bytes each, not {len(value)}")
        return np.frombuffer(value, kind)

    def _whole(self, key: str, digest: str, value: Any) -> bytes:
        if not isinstance(value, bytes) or hashlib.sha256(value).hexdigest() != digest:
            raise IntvitError(f"{self.path}: rows {key[:12]} must be as they were written, and were damaged")
        return value

    def put(self, rows: Mapping[str, Array], kind: str) -> None:
        """Add rows by key, all of them or none."""
        values = [
            (key, kind, hashlib.sha256(array.tobytes()).hexdigest(), array.tobytes()) for key, array in rows.items()
        ]
        with self._reading(), self._whole_or_not():
            self._connection.executemany("insert or replace into rows values (?, ?, ?, ?)", values)

    def merge(self, other: Path) -> int:
        """Add the rows of another store, all or none; how many were new.

        IntvitError where both have a key with other rows.
        """
        with Store(other) as source, source._reading(), closing(source._connection.cursor()) as cursor:
            before = len(self)
            rows = cursor.execute("select key, kind, digest, value from rows")
            with self._reading(), self._whole_or_not():
                for key, kind, digest, value in rows:
                    source._whole(key, digest, value)
                    here = self._connection.execute("select digest from rows where key = ?", (key,)).fetchone()
                    if here is None:
                        self._connection.execute("insert into rows values (?, ?, ?, ?)", (key, kind, digest, value))
                    elif here[0] != digest:
                        raise IntvitError(f"{other}: rows {key[:12]} must be those of {self.path}, and differ")
            return len(self) - before

    @contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            self._connection.execute("rollback")
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IntvitError(
                f"{self.path}: must be a store of intvit that can be read and written: {reason(error)}"
            ) from None
