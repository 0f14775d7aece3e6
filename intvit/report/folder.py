"""The folder of a report: the page, its data, and tables that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intvit.files.records import write_csv
from intvit.mapping.scores import Key
from intvit.mapping.tables import Table
from intvit.report.data import JSON, PAGE, Report
from intvit.report.page import render


def write(folder: Path, report: Report, table: Table[Key]) -> None:
    """The page, report.json and the tables for other tools, into a folder that there is."""
    (folder / PAGE).write_text(render(report), encoding="utf-8")
    (folder / JSON).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_csv(folder / "outputs.csv", [_flat(model.model_dump()) for model in report.models])
    write_csv(folder / "sites.csv", [
        {"site": site.site, "operator": site.operator, "chosen": site.chosen, **each.model_dump()}
        for site in report.sites for each in site.scores
    ])  # fmt: skip
    table.write_csv(folder / "rows.csv")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Estimates as columns: the value under its name, the ends of the interval under `_low` and `_high`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("top1", "top1_gain", "sqnr_gain"):
            ends = value or {"value": None, "low": None, "high": None}
            found |= {key: ends["value"], f"{key}_low": ends["low"], f"{key}_high": ends["high"]}
        else:
            found[key] = value
    return found
