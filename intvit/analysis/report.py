"""Tables from analysis results; computes nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

from intvit.lowering.recipe import Recipe

if TYPE_CHECKING:
    from intvit.analysis.diagnosis import Diagnosis, Loss
    from intvit.mapping.mapping import Mapping


def accuracy_table(top1: float, rows: list[list[str]], n_test: int, preset: str) -> Table:
    """`rows` are (model, bits, top-1 in %, SQNR of the logits in dB)."""
    title = f"Top-1 on {n_test} test images; bits of the operands of products, {preset}"
    table = Table(title=title, title_justify="left")
    for header in ("model", "bits", "top-1 %", "against float, %p", "SQNR, dB"):
        table.add_column(header, justify="left" if header == "model" else "right")
    table.add_row("float", "32", f"{100 * top1:.1f}", "", "")
    for name, bits, value, sqnr in rows:
        label = f"{name} (GELU of ivit)" if name == "fqvit" else name
        table.add_row(label, bits, value, f"{float(value) - 100 * top1:+.1f}", sqnr)
    return table


def widths_line(recipe: Any) -> str:
    """What W8A8 means here: products of 8 bits, and what is wider between them. `recipe`: as JSON, as graphs state it.

    >>> widths_line({"preset": "accurate", "bits": 6, "residual_bits": 16})
    'Products of 6-bit integers, sums of 16 bits between blocks, other inputs by the preset accurate (docs/recipes.md)'
    """
    stated = recipe if isinstance(recipe, dict) else {}
    keys = ("bits", "residual_bits", "preset")
    bits, between, preset = (stated.get(key, Recipe.model_fields[key].default) for key in keys)
    return (
        f"Products of {bits}-bit integers, sums of {between} bits between blocks, other inputs by the preset {preset} "
        "(docs/recipes.md)"
    )


def mapping_table(mapping: Mapping) -> Table:
    """Per site: ASQNR in > out and SQNR diff of each method, and the choice."""
    outputs = ", ".join(f"{name} {value:.1f}" for name, value in mapping.outputs.items())
    title = widths_line(mapping.recipe.model_dump())
    title += (
        f"\nASQNR in > out (difference), dB as in the paper (20 log10); rule {mapping.rule}, scores {mapping.basis}"
    )
    title += "\n~: not surely worse than what the rule chose (95 % of resamples of the images)"
    title += f"\nSQNR of the outputs, dB (10 log10): {outputs}"
    if mapping.uniform:
        title += f"; the mapping holds uniform {mapping.uniform}"
    table = Table(title=title, title_justify="left")
    for header in ("site", *mapping.methods, "chosen"):
        table.add_column(header, justify="left" if header in ("site", "chosen") else "right")
    skipped = {(s.site, s.method) for s in mapping.skipped}
    for site, scores in mapping.by_site().items():
        chosen = mapping.recipe.sites[site].method
        found = {s.method: s for s in scores}
        cells = []
        for method in mapping.methods:
            s = found.get(method)
            missing = "undefined here" if (site, method) in skipped else "-"
            text = missing if s is None else f"{s.asqnr_in:.1f} > {s.asqnr_out:.1f} ({s.sqnr_diff:+.1f})"
            cells.append(f"[bold]{text}[/bold]" if method == chosen else text)
        decision = mapping.decisions[site]
        ties = decision.ties if decision.method == chosen and not mapping.uniform else ()
        table.add_row(site, *cells, f"{chosen} ~ {', '.join(ties)}" if ties else chosen)
    return table


WHAT = {"rounding": "rounding for", "weights": "weights of", "operator": "method of"}


def loss_table(title: str, losses: list[Loss], *, sites: bool) -> Table:
    """What parts cost: of single `sites`, or of all parts of a kind together."""
    headers = ("site" if sites else "parts", "what", "of", "left float, dB", "alone, dB")
    table = _measures(title, headers)
    for loss in losses:
        name = loss.site if sites else str(loss.n_parts)
        error = "" if math.isnan(loss.error) else f" ± {loss.error:.2f}"
        gain = "-" if math.isnan(loss.gain) else f"{loss.gain:+.2f}{error}"
        table.add_row(name, f"{WHAT[loss.what]} {loss.kind}", loss.detail, gain, f"{loss.alone:.1f}")
    return table


def _measures(title: str, headers: tuple[str, ...]) -> Table:
    """A table whose columns of decibels stand to the right, and whose long names are never cut."""
    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, justify="right" if header.endswith("dB") else "left", overflow="fold")
    return table


def diagnosis_tables(found: Diagnosis, rows: int) -> list[Table]:
    """The tables of `doctor`, long lists cut after `rows`."""
    title = "Parts of a kind. Left float: what the outputs gain then. Alone: SQNR if nothing else is quantized"
    tables = [
        loss_table(title, found.kinds, sites=False),
        loss_table("Single parts, the worst first", found.parts[:rows], sites=True),
    ]
    if found.findings:
        table = _measures("Rules that are broken", ("site", "rule", "found", "line"))
        for each in found.findings[:rows]:
            table.add_row(each.site, each.rule, each.found, each.line or "")
        tables.append(table)
    measured = [remedy for remedy in found.remedies if remedy.gain is not None]
    if measured:
        table = _measures("Lines of a recipe, each tried alone", ("line", "SQNR, dB", "gain, dB"))
        for remedy in measured[:rows]:
            table.add_row(remedy.line, f"{remedy.sqnr:.1f}", f"{remedy.gain:+.2f}")
        tables.append(table)
    if found.sweeps:
        widths = list(dict.fromkeys(swept.bits for swept in found.sweeps))
        table = Table(title="SQNR in dB with all quantizers of a kind at another width", title_justify="left")
        for header in ("quantizers", *(f"{bits} bits" for bits in widths)):
            table.add_column(header, justify="left" if header == "quantizers" else "right")
        rows_of: dict[str, list[str]] = {}
        for swept in found.sweeps:
            cell = "-" if swept.sqnr is None else f"{swept.sqnr:.1f}"
            rows_of.setdefault(f"{swept.kind}.{swept.key}", []).append(cell)
        for name, cells in rows_of.items():
            table.add_row(name, *cells)
        tables.append(table)
    return tables
