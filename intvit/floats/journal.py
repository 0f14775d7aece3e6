"""What a killed writer got done: entries about pieces of a file, each written after its pieces are on disk.

An entry lists where pieces of the file lie and what they hash to. It is believed if its line is whole and follows the
lines before (each ends with a hash that chains it to them, and to what is being written), and its pieces hash right.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Self


class Piece(NamedTuple):
    offset: int
    size: int
    sha256: str


class Journal:
    """The journal at `path` of a file about `subject`: opens with the entries that hold; `keep` before `append`."""

    def __init__(self, path: Path, subject: str) -> None:
        self._file: FileIO = path.open("r+b" if path.is_file() else "w+b", buffering=0)
        self._chain = [hashlib.sha256(subject.encode()).hexdigest()]
        self._ends = [0]
        self.entries: list[list[Piece]] = []
        with suppress(ValueError, TypeError, RecursionError):  # from the first line that is not as it was written
            for line in self._file.readall().splitlines(keepends=True):
                body, chained, end = line[:-66], line[-65:-1].decode("ascii"), line[-1:]
                if end != b"\n" or chained != self._next(body):
                    break
                self.entries.append(
                    [Piece(int(offset), int(size), str(digest)) for offset, size, digest in json.loads(body)]
                )
                self._advance(line)

    def _next(self, body: bytes) -> str:
        return hashlib.sha256(self._chain[-1].encode() + body).hexdigest()

    def _advance(self, line: bytes) -> None:
        self._chain.append(line[-65:-1].decode("ascii"))
        self._ends.append(self._ends[-1] + len(line))

    def keep(self, n_entries: int) -> None:
        """Forget all entries but the first."""
        del self.entries[n_entries:], self._chain[n_entries + 1 :], self._ends[n_entries + 1 :]
        self._file.truncate(self._ends[-1])

    def append(self, entries: Sequence[Sequence[Piece]]) -> None:
        """Add entries whose pieces are on disk; they are when this returns."""
        at = self._ends[-1]
        lines = b""
        for pieces in entries:
            body = json.dumps(pieces).encode("ascii")
            line = body + b" " + self._next(body).encode("ascii") + b"\n"
            self.entries.append(list(pieces))
            self._advance(line)
            lines += line
        self._file.seek(at)
        left = memoryview(lines)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()


def read_piece(file: FileIO, piece: Piece) -> bytes | None:
    """The bytes of a piece of `file`; None if they are not what they were."""
    if not (piece.offset >= 0 and 0 <= piece.size <= os.fstat(file.fileno()).st_size - piece.offset):
        return None
    file.seek(piece.offset)
    data = file.read(piece.size)
    return data if hashlib.sha256(data).hexdigest() == piece.sha256 else None
