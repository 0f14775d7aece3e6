"""The figures of a report, each an SVG made from nothing but the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from intvit.report.data import FLOAT, MIXED, Histogram, Interaction, Point, Report, Search, Site
from intvit.report.svg import (
    Axis,
    Look,
    curve,
    drawing,
    hint,
    legend,
    level,
    line,
    looks,
    mark,
    named,
    number,
    short,
    shortened,
    tag,
    upright,
    word,
)

WIDTH, LEFT, RIGHT, TOP = 1120.0, 150.0, 60.0, 34.0
"""Of a picture as wide as the page, pixels: whole, and around its axes; names of sites reach to the left."""
BELOW = 100.0
"""For names of sites."""
LESS, MORE = "#4477aa", "#ee6677"


def panels(report: Report) -> list[tuple[str, str]]:
    """For each kind of operator its name and the SQNR differences of the methods, as bars, below their output ASQNR."""
    kinds = dict.fromkeys(site.operator for site in report.sites)
    return [(kind, _panel(report, kind)) for kind in kinds]


def _panel(report: Report, kind: str) -> str:
    sites = [site for site in report.sites if site.operator == kind]
    methods = [name for name in report.methods if any(site.score(name) for site in sites)]
    seen, height = looks(report.methods), TOP + 220 + BELOW
    scores = [score for site in sites for score in site.scores if score.method in methods]
    left = Axis.over([score.sqnr_diff for score in scores], TOP + 220, TOP, "ASQNR out - in, dB", zero=True)
    right = Axis.over([score.asqnr_out for score in scores], TOP + 220, TOP, "ASQNR out, dB")
    places = _places(len(sites))
    wide = 0.7 * (WIDTH - LEFT - RIGHT) / len(sites) / max(1, len(methods))
    wide = min(wide, 26)
    parts = [upright(left, LEFT, WIDTH - RIGHT), upright(right, LEFT, WIDTH - RIGHT, opposite=True, grid=False)]
    for (site, x), (i, method) in itertools.product(zip(sites, places, strict=True), enumerate(methods)):
        score = site.score(method)
        if score is not None and score.sqnr_diff is not None:
            at = x + (i - len(methods) / 2) * wide
            top, bottom = sorted((left(0), left(score.sqnr_diff)))
            said = f"{site.site}, {method}: {score.sqnr_diff:+.2f} dB"
            parts.append(tag("rect", hint(said), x=at, y=top, width=wide - 1, height=max(bottom - top, 0.5),
                             fill=seen[method].colour, opacity="0.75"))  # fmt: skip
    parts.append(line(LEFT, left(0), WIDTH - RIGHT, left(0), "axis"))
    parts += [_series(seen[method], right, sites, places, method) for method in methods]
    parts.append(named([site.site for site in sites], places, TOP + 220))
    entries = [(f"{method}, difference", seen[method], "bar") for method in methods]
    entries += [(f"{method}, ASQNR out", seen[method], "line") for method in methods]
    return drawing(WIDTH, height, f"SQNR difference by site, {kind}", *parts, legend(LEFT, 16, entries))


def _places(n: int) -> list[float]:
    """The middles of `n` equal parts of the axis."""
    part = (WIDTH - LEFT - RIGHT) / max(1, n)
    return [LEFT + (i + 0.5) * part for i in range(n)]


def _series(look: Look, y: Axis, sites: Sequence[Site], places: Sequence[float], method: str) -> str:
    """Output ASQNR of a method where it has one."""
    points: list[tuple[float, float]] = []
    marks: list[str] = []
    for site, x in zip(sites, places, strict=True):
        score = site.score(method)
        if score is not None and score.asqnr_out is not None:
            points.append((x, y(score.asqnr_out)))
            marks.append(mark(look, *points[-1], hint(f"{site.site}, {method}: {score.asqnr_out:.2f} dB")))
    return curve(look, points) + "".join(marks)


def depth(report: Report) -> str:
    """Output ASQNR of every model over the sites in order of execution, and of its outputs."""
    models, seen = [*report.methods, MIXED], looks(report.methods)
    names = [*(site.site for site in report.sites), "outputs"]
    places, bottom = _places(len(names)), TOP + 300
    known = [score.asqnr_out for site in report.sites for score in site.scores] + [*report.outputs.values()]
    y = Axis.over(known, bottom, TOP, "ASQNR out, dB")
    parts = [upright(y, LEFT, WIDTH - RIGHT)]
    for model in models:
        points: list[tuple[float, float]] = []
        marks: list[str] = []
        for site, x in zip([*report.sites, None], places, strict=True):
            score = None if site is None else site.score(model)
            value = report.outputs.get(model) if site is None else score.asqnr_out if score else None
            if value is not None:
                points.append((x, y(value)))
                said = f"{'outputs' if site is None else site.site}, {model}: {value:.2f} dB"
                marks.append(mark(seen[model], *points[-1], hint(said)))
        parts += [curve(seen[model], points), *marks]
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(named(names, places, bottom))
    entries = [(model, seen[model], "line") for model in models]
    return drawing(WIDTH, bottom + BELOW, "ASQNR over depth", *parts, legend(LEFT, 16, entries))


def histogram(found: Histogram, methods: Sequence[str]) -> str:
    """Shares of the float values, filled, and of what the integers of each method stand for, as lines."""
    width, left, bottom = 550.0, 62.0, TOP + 190
    seen = looks(methods)
    shares = {name: [n / max(1, sum(counts)) for n in counts] for name, counts in found.counts.items()}
    least = min((share for each in shares.values() for share in each if share), default=0.1)
    y = Axis(10.0 ** math.floor(math.log10(least)), 1.0, bottom, TOP, "share of values", log=True)
    x = Axis(found.low, found.high, left, width - 20, "value, real units")
    parts = [upright(y, left, width - 20), level(x, bottom)]
    for name, each in shares.items():
        path = _steps(each, x, y, bottom)
        if name == FLOAT:
            path = f"{path}L{number(x.stop)} {number(bottom)}L{number(x.start)} {number(bottom)}Z"
            parts.append(tag("path", hint("float"), d=path, class_="filled"))
        else:
            dash = {"stroke_dasharray": seen[name].dash} if seen[name].dash else {}
            parts.append(tag("path", hint(name), d=path, stroke=seen[name].colour, class_="curve", **dash))
    entries = [(name, seen[name], "bar" if name == FLOAT else "line") for name in shares]
    said = f"values at {found.site}"
    return drawing(width, bottom + 44, said, *parts, legend(left, 16, entries))


def _steps(shares: Sequence[float], x: Axis, y: Axis, bottom: float) -> str:
    """The `d` of a path along the tops of bins of equal width."""
    bin_ = (x.stop - x.start) / len(shares)
    path = ""
    for i, share in enumerate(shares):
        at = y(share) if share else bottom
        path += f"{'L' if path else 'M'}{number(x.start + i * bin_)} {number(at)}H{number(x.start + (i + 1) * bin_)}"
    return path


def heat(search: Search, sites: Sequence[str]) -> str:
    """By pair of sites the interaction that is furthest from 0; blue: less loss together than alone, red: more."""
    strongest: dict[tuple[str, str], Interaction] = {}
    for each in search.interactions:
        if abs(each.value) > abs(strongest[each.sites].value if each.sites in strongest else 0.0):
            strongest[each.sites] = each
    involved = {site for pair in strongest for site in pair}
    names = [site for site in sites if site in involved]
    values = sorted(abs(each.value) for each in strongest.values())
    full = values[min(len(values) - 1, math.ceil(0.98 * len(values)))] if values else 1.0
    cell = min(26.0, 800 / max(1, len(names)))
    side = cell * len(names)
    at = {site: i for i, site in enumerate(names)}
    parts: list[str] = []
    for (a, b), each in strongest.items():
        column, row = sorted((at[a], at[b]))
        said = f"{a} = {each.methods[0]}, {b} = {each.methods[1]}: {100 * each.value:+.2g} % of the base loss"
        parts.append(tag(
            "rect", hint(said), x=LEFT + cell * column, y=TOP + cell * row, width=cell - 1, height=cell - 1,
            fill=MORE if each.value > 0 else LESS, opacity=f"{min(1, abs(each.value) / full):.2f}",
        ))  # fmt: skip
    middles = [(i + 0.5) * cell for i in range(len(names))]
    step = max(1, math.ceil(12 / cell))
    for name, middle in itertools.islice(zip(names, middles, strict=True), 0, None, step):
        parts.append(tag("g", hint(name), word(LEFT - 6, TOP + middle + 4, shortened(name), "end", class_="tick")))
    parts.append(line(LEFT, TOP, LEFT, TOP + side, "axis") + line(LEFT, TOP + side, LEFT + side, TOP + side, "axis"))
    parts.append(named(names[::step], [LEFT + middle for middle in middles][::step], TOP + side))
    width = max(LEFT + side + 40, 620)
    return drawing(width, TOP + side + BELOW, "interactions of pairs of sites", _key(full), *parts)


def _key(full: float) -> str:
    """The colours of the heat map and what they stand for."""
    steps = [(k / 10, LESS if k < 0 else MORE) for k in range(-10, 11)]
    parts = [
        tag("rect", x=LEFT + 150 + 12 * i, y=6, width=12, height=12, fill=colour, opacity=f"{abs(share):.2f}")
        for i, (share, colour) in enumerate(steps)
    ]
    low, high = f"-{100 * full:.2g} %", f"+{100 * full:.2g} % of the base loss, or more"
    parts += [word(LEFT + 142, 16, low, "end", class_="tick"), word(LEFT + 410, 16, high, class_="tick")]
    return "".join(parts)


def front(search: Search) -> str:
    """Loss against cost of every measured mapping, with those that none beats in one without losing in the other."""
    bottom, seen = TOP + 320, looks([])
    losses = [point.loss for point in search.points]
    log = min(losses) > 0 and max(losses) > 20 * min(losses)
    x = Axis.over([point.cost for point in search.points], LEFT, WIDTH - RIGHT, "cost of all sites")
    y = Axis.over(losses, bottom, TOP, f"loss, {search.objective}", log=log)
    best = pareto(search.points)
    dots = dict.fromkeys(f"M{number(x(point.cost))} {number(y(point.loss))}h0" for point in search.points)
    parts = [upright(y, LEFT, WIDTH - RIGHT), level(x, bottom), tag("path", d="".join(dots), class_="dots")]
    parts.append(curve(seen["ibert"], [(x(point.cost), y(point.loss)) for point in best]))
    parts += [_point(seen["ibert"], point, x, y) for point in best]
    for role, name in (("base", "ivit"), ("chosen", "mixed")):
        parts += [_point(seen[name], point, x, y, 6) for point in search.points if point.role == role]
    entries = [("not beaten in both", seen["ibert"], "line"), ("base", seen["ivit"], "line")]
    entries.append(("chosen", seen["mixed"], "line"))
    said = f"loss against cost of {len(search.points)} mappings"
    return drawing(WIDTH, bottom + 44, said, *parts, legend(LEFT, 16, entries))


def _point(look: Look, point: Point, x: Axis, y: Axis, size: float = 3.5) -> str:
    role = f"{point.role}: " if point.role else ""
    said = f"{role}cost {short(point.cost)}, loss {point.loss:.4g}, {point.changes} changes"
    return mark(look, x(point.cost), y(point.loss), hint(said), size=size)


def pareto(points: Iterable[Point]) -> list[Point]:
    """By rising cost, those with less loss than all that cost no more."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found
