"""The page: HTML from a Report and nothing else. The template holds the words, this the cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import resources
from typing import Any

from intvit.report import figures
from intvit.report.data import MIXED, Estimate, Model, Report, Score, Site
from intvit.report.notes import interval
from intvit.report.svg import looks, printable

NONE = "-"


def render(report: Report) -> str:
    """One HTML file that needs no other and no network."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Names of foreign graphs are shown as they are, without what a browser would obey."""
        return printable(value) if type(value) is str else value

    def drawn(make: Callable[..., str], *values: Any) -> Markup:
        return Markup(make(*values))

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=finalize,
    )  # fmt: skip
    return environment.from_string(_text("template.html")).render(
        report=report,
        headline=headline(report),
        css=Markup(_text("page.css")),
        js=Markup(_text("page.js")),
        accuracy=accuracy(report),
        sites=[site_row(report, site) for site in report.sites],
        methods=[*report.methods, MIXED],
        colours={name: look.colour for name, look in looks(report.methods).items()},
        operators=list(dict.fromkeys(site.operator for site in report.sites)),
        panels=[(kind, Markup(picture)) for kind, picture in figures.panels(report)],
        histograms=[(each, drawn(figures.histogram, each, report.methods)) for each in report.histograms],
        depth=drawn(figures.depth, report),
        heat=drawn(figures.heat, report.search, [site.site for site in report.sites])
        if report.search and report.search.interactions else "",
        front=drawn(figures.front, report.search) if report.search and report.search.points else "",
        search=search_lines(report),
    )  # fmt: skip


def _text(name: str) -> str:
    return (resources.files("intvit.report") / name).read_text(encoding="utf-8")


def fixed(value: float | None, digits: int, factor: float = 1, sign: bool = False) -> str:
    """
    >>> fixed(0.9215, 1, 100), fixed(0.5, 2, sign=True), fixed(None, 2)
    ('92.2', '+0.50', '-')
    """
    if value is None:
        return NONE
    value = round(factor * value, digits) + 0.0  # no -0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def between(found: Estimate | None, digits: int, factor: float = 1, sign: bool = False) -> str:
    """A value and its interval."""
    if found is None:
        return NONE
    value, low, high = (fixed(v, digits, factor, sign) for v in (found.value, found.low, found.high))
    return value if found.low is None is found.high else f"{value} ({low} to {high})"


def headline(report: Report) -> str:
    """Model, widths and choice in a sentence with numbers."""
    model = report.model(MIXED)
    choice = f"the choice of rule {report.rule}"
    if report.search is not None:
        choice = f"what a search ({report.search.kind}, by {report.search.objective}) chose"
    counts = Counter(site.chosen for site in report.sites)
    held = f"{choice} ({', '.join(f'{name} at {n}' for name, n in counts.items())} of {len(report.sites)} sites)"
    if report.fallback is not None:
        held = f"uniform {report.fallback}, which was better than {choice}"
    parts = [f"{fixed(model.sqnr, 1)} dB SQNR at the outputs"] if model.sqnr is not None else []
    if report.fallback == report.best:
        parts.append("the best of the uniform models here too")
    elif model.sqnr_gain is not None:
        parts.append(f"{interval(model.sqnr_gain)} against the best uniform model ({report.best})")
    if model.top1 is not None and (top1 := report.model("float").top1) is not None:
        parts.append(
            f"top-1 {fixed(model.top1.value, 1, 100)} % where the float model has {fixed(top1.value, 1, 100)} %"
        )
    if model.agreement is not None:
        parts.append(f"the float model's class for {fixed(model.agreement, 1, 100)} % of the images")
    return (
        f"{report.name} with {report.bits}-bit products, preset {report.preset}: the mapping holds {held}. "
        f"On {report.images} test image{'s' if report.images > 1 else ''}: {'; '.join(parts)}."
    )


ACCURACY: tuple[tuple[str, Callable[[Model], str]], ...] = (
    ("top-1, %", lambda model: between(model.top1, 1, 100)),
    ("against the best uniform, %p", lambda model: between(model.top1_gain, 2, 100, True)),
    ("same class as float, %", lambda model: fixed(model.agreement, 1, 100)),
    ("SQNR of outputs, dB", lambda model: fixed(model.sqnr, 2)),
    ("against the best uniform, dB", lambda model: between(model.sqnr_gain, 2, 1, True)),
    ("KL, nats", lambda model: fixed(model.kl, 5)),
    ("cosine", lambda model: fixed(model.cosine, 5)),
)


def accuracy(report: Report) -> dict[str, Any]:
    """Headers and rows, without columns in which there is nothing."""
    columns = [[cell(model) for model in report.models] for _, cell in ACCURACY]
    kept = [i for i, column in enumerate(columns) if any(text != NONE for text in column)]
    return {
        "headers": [ACCURACY[i][0] for i in kept],
        "rows": [
            {"name": model.name, "kind": model.kind, "best": model.name == report.best,
             "cells": [columns[i][k] for i in kept]}
            for k, model in enumerate(report.models)
        ],
    }  # fmt: skip


def site_row(report: Report, site: Site) -> dict[str, Any]:
    """Cells of the mapping table; of a method `value` is what a column is sorted by."""
    cells = [_cell(site, name) for name in (*report.methods, MIXED)]
    before, here = _with_ties(site.rule, site.ties), _with_ties(site.here, site.ties_here)
    return {"site": site, "cells": cells, "before": before, "here": here}


def _cell(site: Site, method: str) -> dict[str, Any]:
    score: Score | None = site.score(method)
    if score is None:
        undefined = site.undefined.get(method)
        return {"text": "undefined here" if undefined else NONE, "value": "", "hint": undefined or "", "chosen": False}
    text = f"{fixed(score.asqnr_in, 1)} > {fixed(score.asqnr_out, 1)} ({fixed(score.sqnr_diff, 1, sign=True)})"
    hint = (
        f"difference {fixed(score.sqnr_diff, 2, sign=True)} dB, 95 % interval {fixed(score.low, 2, sign=True)} to "
        f"{fixed(score.high, 2, sign=True)}; largest error {score.max or 0.0:.3g}; "
        f"{fixed(score.saturated, 2, 100)} % of input codes at an end of their type"
    )
    value = "" if score.sqnr_diff is None else f"{score.sqnr_diff:.6f}"
    return {"text": text, "value": value, "hint": hint, "chosen": method == site.chosen}


def _with_ties(method: str | None, ties: list[str]) -> str:
    return NONE if method is None else f"{method} ~ {', '.join(ties)}" if ties else method


def search_lines(report: Report) -> list[str]:
    """What a search says, a sentence each."""
    search = report.search
    if search is None:
        return []
    lines = [
        f"Search {search.kind} by {search.objective}: {search.measured} mappings measured on the images of the "
        f"mapping; loss {_loss(search.base_loss)} of the base, {_loss(search.chosen_loss)} of the chosen one with "
        f"{len(search.changes)} changes" + (": " if search.changes else "")
        + ", ".join(f"{site} = {method}" for site, method in search.changes.items()) + "."
    ]  # fmt: skip
    if search.bound is not None:
        proven = "proven" if search.bound.proven else "not proven"
        lines.append(
            f"Quadratic model: least predicted loss {_loss(search.bound.predicted)}, bound {_loss(search.bound.least)} "
            f"({proven}); a prediction for any number of changes, which is not measured."
        )
    if search.independent is not None:
        lines.append(
            f"Independence: the sums of single changes explain the losses of {search.independent.n} pairs with "
            f"R2 {fixed(search.independent.r2, 3)}, rank correlation {fixed(search.independent.rank, 3)}."
        )
    if search.quadratic is not None:
        lines.append(
            f"Prediction by pairs of {search.quadratic.n} mappings of more changes: "
            f"R2 {fixed(search.quadratic.r2, 3)}, rank correlation {fixed(search.quadratic.rank, 3)}."
        )
    return lines


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
