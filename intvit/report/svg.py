"""Inline SVG out of strings: scales, marks and words. Every word and attribute is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FONT = 11
"""Pixels; a letter is about 0.56 of that wide."""


def printable(text: str) -> str:
    """Without what would move or hide its neighbours: control and direction characters as escapes.

    >>> printable("a\\tb")
    'a\\\\tb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def escaped(text: object) -> str:
    return html.escape(printable(str(text)), quote=True)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel.

    >>> number(1.26), number(3.0)
    ('1.3', '3')
    """
    return f"{value:.1f}".removesuffix(".0")


def tag(name: str, *inside: str, **attributes: object) -> str:
    """An element around markup; `_` in a name of an attribute is `-`, one at its end is dropped.

    >>> tag("rect", width=1.26, class_='a"b')
    '<rect width="1.3" class="a&quot;b"/>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{number(value) if isinstance(value, float) else escaped(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{words}>{''.join(inside)}</{name}>" if inside else f"<{name}{words}/>"


def hint(text: object) -> str:
    """What a pointer shows over the element that this is put into."""
    return tag("title", escaped(text))


def word(x: float, y: float, text: object, anchor: str = "start", turn: float = 0, class_: str = "word") -> str:
    """Words at a point, turned by degrees about it."""
    turned = {"transform": f"rotate({number(turn)} {number(x)} {number(y)})"} if turn else {}
    return tag("text", escaped(text), x=x, y=y, text_anchor=anchor, class_=class_, **turned)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("path", d=f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", class_=class_)


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """The `d` of a path through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def drawing(width: float, height: float, text: str, *inside: str) -> str:
    """A whole picture, which says what it is to who cannot see it."""
    box = f"0 0 {number(width)} {number(height)}"
    return tag("svg", *inside, viewBox=box, width=width, role="img", aria_label=text)


def shortened(name: str, most: int = 24) -> str:
    """A name that fits below an axis, both its ends kept.

    >>> shortened("blocks.0.attn.softmax", 11)
    'block..tmax'
    """
    half = (most - 2) // 2
    return name if len(name) <= most else f"{name[: most - 2 - half]}..{name[-half:]}"


@dataclass(frozen=True)
class Look:
    """How a model is drawn everywhere: told apart by colour, and by mark and dashes without it."""

    colour: str
    mark: str
    dash: str


LOOKS = {
    "ibert": Look("#4477aa", "circle", ""),
    "fqvit": Look("#ee6677", "square", "6 3"),
    "ivit": Look("#228833", "triangle", "2 2"),
    "mixed": Look("#aa3377", "diamond", "9 3 2 3"),
    "float": Look("#888888", "circle", ""),
}
OTHERS = (Look("#ccbb44", "circle", "4 4"), Look("#66ccee", "square", "8 2"), Look("#bbbbbb", "triangle", "1 3"))
"""The rest of Paul Tol's bright palette."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    return LOOKS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def mark(look: Look, x: float, y: float, *inside: str, size: float = 3.5) -> str:
    """A point of a series."""
    a = size
    if look.mark == "circle":
        return tag("circle", *inside, cx=x, cy=y, r=a, fill=look.colour)
    corners = {
        "square": [(-a, -a), (a, -a), (a, a), (-a, a)],
        "triangle": [(0, -1.3 * a), (1.2 * a, a), (-1.2 * a, a)],
        "diamond": [(0, -1.4 * a), (1.4 * a, 0), (0, 1.4 * a), (-1.4 * a, 0)],
    }[look.mark]
    return tag("path", *inside, d=polyline([(x + dx, y + dy) for dx, dy in corners]) + "Z", fill=look.colour)


def curve(look: Look, points: Sequence[tuple[float, float]]) -> str:
    """A line of a series."""
    dash = {"stroke_dasharray": look.dash} if look.dash else {}
    return tag("path", d=polyline(points), stroke=look.colour, class_="curve", **dash) if len(points) > 1 else ""


@dataclass(frozen=True)
class Axis:
    """Values `low`..`high` at pixels `start`..`stop`; `log`: decades are equally long."""

    low: float
    high: float
    start: float
    stop: float
    text: str
    log: bool = False

    @staticmethod
    def over(values: Iterable[float | None], start: float, stop: float, text: str, *, zero: bool = False,
             log: bool = False) -> Axis:  # fmt: skip
        """Over all values that there are, with a little room; `zero`: 0 is one of them."""
        known = [value for value in values if value is not None] + ([0.0] if zero else [])
        if log:
            known = [math.log10(value) for value in known]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        room = 0.06 * (high - low) or 0.5
        below, above = (0 if zero and end == 0 and low < high else room for end in (low, high))
        low, high = low - below, high + above
        return Axis(10**low, 10**high, start, stop, text, True) if log else Axis(low, high, start, stop, text)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(v) for v in (low, high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values, about five.

        >>> Axis(0, 10, 0, 1, "").ticks()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        """
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            found = [10.0**k for k in decades[:: max(1, len(decades) // 6 + (len(decades) > 6))]]
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / 5
        decade = 10.0 ** math.floor(math.log10(rough))
        step = min((decade * k for k in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def short(value: float) -> str:
    """Of a tick.

    >>> short(2.0), short(1e-5), short(0.25)
    ('2', '1e-5', '0.25')
    """
    text = f"{value:.4g}"
    if value and not 1e-3 <= abs(value) < 1e5:
        base, _, power = f"{value:.3g}".partition("e")
        text = f"{base}e{int(power)}" if power else f"{value:.0e}".replace("e-0", "e-")
    return "0" if text == "-0" else text


def upright(y: Axis, left: float, right: float, *, opposite: bool = False, grid: bool = True) -> str:
    """A vertical axis at one side of `left`..`right`, and its lines across."""
    x, sign, anchor = (right, 1, "start") if opposite else (left, -1, "end")
    parts = [line(x, y.start, x, y.stop, "axis")]
    for value in y.ticks():
        at = y(value)
        parts.append(line(left, at, right, at, "grid-line") if grid else line(x, at, x + 4 * sign, at, "axis"))
        parts.append(word(x + 6 * sign, at + 4, short(value), anchor, class_="tick"))
    middle = (y.start + y.stop) / 2
    parts.append(word(x + 44 * sign, middle, y.text, "middle", 90 if opposite else -90))
    return "".join(parts)


def level(x: Axis, bottom: float) -> str:
    """A horizontal axis below."""
    parts = [line(x.start, bottom, x.stop, bottom, "axis")]
    for value in x.ticks():
        parts.append(line(x(value), bottom, x(value), bottom + 4, "axis"))
        parts.append(word(x(value), bottom + 16, short(value), "middle", class_="tick"))
    parts.append(word((x.start + x.stop) / 2, bottom + 33, x.text, "middle"))
    return "".join(parts)


def named(names: Sequence[str], places: Sequence[float], bottom: float, most: int = 60) -> str:
    """Names below an axis, turned; of more than `most` every second, third ... one."""
    step = -(-len(names) // most)
    return "".join(
        tag("g", hint(name), word(x + 3, bottom + 12, shortened(name), "end", -35, class_="tick"))
        for i, (name, x) in enumerate(zip(names, places, strict=True)) if i % step == 0
    )  # fmt: skip


def legend(x: float, y: float, entries: Sequence[tuple[str, Look, str]]) -> str:
    """A row of swatches: (text, look, "line" or "bar")."""
    parts: list[str] = []
    for text, look, kind in entries:
        if kind == "bar":
            parts.append(tag("rect", x=x, y=y - 9, width=18, height=10, fill=look.colour))
        else:
            parts += [curve(look, [(x, y - 4), (x + 18, y - 4)]), mark(look, x + 9, y - 4)]
        parts.append(word(x + 23, y, text))
        x += 40 + 0.56 * FONT * len(text)
    return "".join(parts)
