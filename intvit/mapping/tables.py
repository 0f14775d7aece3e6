"""Tables: rows of one image each, under keys. Whatever runs models writes them, whatever judges reads them.

Rows are kept in the order of the images: a table is the same whatever parts it was merged from, and in what order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from intvit.errors import IntvitError
from intvit.files.records import write_csv
from intvit.graph.ir import Array

K = TypeVar("K", bound=NamedTuple)


@dataclass(frozen=True)
class Table(Generic[K]):
    """Key -> structured rows (n,), whose first field is `image`, ascending and each once."""

    rows: Mapping[K, Array] = field(default_factory=dict)

    @staticmethod
    def merged(tables: Sequence[Table[K]]) -> Table[K]:
        """All rows of some tables. IntvitError where two of them disagree about one image."""
        parts: dict[K, list[Array]] = {}
        for table in tables:
            for key, rows in table.rows.items():
                parts.setdefault(key, []).append(rows)
        return Table({key: _joined(key, found) for key, found in sorted(parts.items())})

    def column(self, key: K, name: str) -> Array:
        """One field of the rows of a key, in the order of the images."""
        return np.asarray(self.rows[key][name])

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row as plain values, its key first."""
        for key, rows in self.rows.items():
            of = key._asdict()
            for row in rows:
                yield {**of, **dict(zip(rows.dtype.names or (), row.item(), strict=True))}

    def write_csv(self, path: Path) -> None:
        """One line per row, under the names of key and fields."""
        write_csv(path, self.records())


def _joined(key: Any, parts: list[Array]) -> Array:
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["image"], kind="stable")]
    again = np.flatnonzero(rows["image"][1:] == rows["image"][:-1])
    for at in again:
        if rows[at].tobytes() != rows[at + 1].tobytes():
            raise IntvitError(
                f"{'/'.join(map(str, key))}: rows of image {rows['image'][at]} must be equal in all tables, not "
                f"{rows[at].item()} and {rows[at + 1].item()}"
            )
    return np.delete(rows, again + 1)
