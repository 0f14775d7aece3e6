"""Tables from analysis results; computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from intvit.analysis.mapping import Mapping


def accuracy_table(top1: float, rows: list[list[str]], n_test: int) -> Table:
    """`rows` are (model, bits, top-1 in %, SQNR of the logits in dB)."""
    table = Table(title=f"Top-1 on {n_test} test images", title_justify="left")
    for header in ("model", "bits", "top-1 %", "against float, %p", "SQNR, dB"):
        table.add_column(header, justify="left" if header == "model" else "right")
    table.add_row("float", "32", f"{100 * top1:.1f}", "", "")
    for name, bits, value, sqnr in rows:
        label = f"{name} (GELU of ivit)" if name == "fqvit" else name
        table.add_row(label, bits, value, f"{float(value) - 100 * top1:+.1f}", sqnr)
    return table


def mapping_table(mapping: Mapping) -> Table:
    """Per site: ASQNR in > out and SQNR diff of each method, and the choice."""
    methods = list(dict.fromkeys(s.choice.method for s in mapping.scores))
    outputs = ", ".join(f"{name} {value:.1f}" for name, value in mapping.outputs.items())
    title = f"ASQNR in > out (difference), dB as in the paper (20 log10); rule {mapping.rule}"
    title += f"\nSQNR of the outputs, dB (10 log10): {outputs}"
    if mapping.uniform:
        title += f"; the mapping holds uniform {mapping.uniform}"
    table = Table(title=title, title_justify="left")
    for header in ("site", *methods, "chosen"):
        table.add_column(header, justify="left" if header in ("site", "chosen") else "right")
    skipped = {(s.site, s.method) for s in mapping.skipped}
    for site, scores in mapping.by_site().items():
        chosen = mapping.recipe.sites[site].method
        found = {s.choice.method: s for s in scores}
        cells = []
        for method in methods:
            s = found.get(method)
            missing = "undefined here" if (site, method) in skipped else "-"
            text = missing if s is None else f"{s.asqnr_in:.1f} > {s.asqnr_out:.1f} ({s.sqnr_diff:+.1f})"
            cells.append(f"[bold]{text}[/bold]" if method == chosen else text)
        table.add_row(site, *cells, chosen)
    return table
