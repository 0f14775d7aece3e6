"""Values for other tools: JSON without what JSON has no number for, CSV with a line per record."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def plain(value: Any, rounded: Callable[[float], float] = float) -> Any:
    """The value with None for every float that is not finite, inside dicts and lists too, and the others `rounded`.

    >>> plain({"a": [1, math.inf], "b": 0.12345}, lambda value: round(value, 2))
    {'a': [1, None], 'b': 0.12}
    """
    if isinstance(value, dict):
        return {key: plain(item, rounded) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, rounded) for item in value]
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return value


def write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One line per record, under the names of the first one's keys; nothing without a record. UTF-8."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for record in records:
            if writer is None:
                writer = csv.DictWriter(file, list(record), lineterminator="\n")
                writer.writeheader()
            writer.writerow(record)
