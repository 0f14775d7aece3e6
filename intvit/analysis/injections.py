"""What `--inject` says: `SITE:KIND=VALUE[,WORD...][@INDEX]`, read and nothing else. `inject` puts it into a graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from intvit.errors import IntvitError

SYNTAX = "SITE:KIND=VALUE[,WORD...][@INDEX]"
USAGE = {
    "rounding": "rounding=half_even|half_up|half_away|floor|toward_zero: of a requantization",
    "overflow": "overflow=saturate|wrap: at the output of a requantization",
    "multiplier_bits": "multiplier_bits=N: m of a requantization, with its sign; the nearest m / 2**e",
    "product_bits": "product_bits=N[,saturate|wrap]: the word of x * m in a requantization",
    "rounded_bits": "rounded_bits=N[,saturate|wrap]: the word behind the shift of a requantization",
    "numerics": "numerics=PRESET: the whole datapath of a requantization, docs/numerics.md",
    "accumulator_bits": "accumulator_bits=N,saturate|saturate_end|wrap|raise|prove: of linear and matrix products",
    "output_bits": "output_bits=N[,saturate|wrap][,input]: a narrower word, of any site",
    "bit": "bit=K,stuck0|stuck1|flip[,input][@INDEX]: a bit of every element or of one, of any site",
    "drop_lsb": "drop_lsb=N[,input][@INDEX]: the lowest bits are 0, of any site",
    "method": "method=NAME[,OPTION=N]: of a nonlinear operator",
}
"""Kind of a change -> how it is written, and what it is."""
INDEXED = ("bit", "drop_lsb")
"""Kinds that may be of one element."""


@dataclass(frozen=True)
class Injection:
    """One `--inject`: what is changed, and at which sites."""

    text: str
    pattern: str
    kind: str
    value: str
    words: tuple[str, ...] = ()
    index: tuple[int, ...] | None = None

    def at(self, site: str) -> str:
        """The same at one site, for messages."""
        return f"{site}:{self.text.rpartition(':')[2]}"

    def one_of(self, choices: Sequence[str], default: str | None = None) -> str:
        """The word that is one of `choices`."""
        found = [word for word in self.words if word in choices]
        if len(found) > 1 or (not found and default is None):
            said = ", ".join(found) or "none of them"
            raise IntvitError(f"{self.kind}={self.value}: must say one of {', '.join(choices)}, and says {said}")
        return found[0] if found else cast(str, default)

    def knows(self, *choices: str, options: bool = False) -> None:
        """IntvitError for any other word; `options`: KEY=VALUE is none of them."""
        for each in self.words:
            if each not in choices and not (options and "=" in each):
                known = f"one of {', '.join(choices)}" if choices else "OPTION=N" if options else "nothing"
                raise IntvitError(f"{self.kind}={self.value}: what follows must be {known}, not {each!r:.60}")

    def number(self, low: int, high: int, now: int | None = None) -> int:
        """The value in low..high; one with a minus is so many fewer than `now`."""
        found = int(self.value) if re.fullmatch(r"-?[0-9]{1,18}", self.value) else None
        if found is not None and found < 0 and now is not None:
            found += now
        if found is None or not low <= found <= high:
            raise IntvitError(f"{self.kind}: must be an integer in {low}..{high}, not {self.value[:40]}")
        return found


def parse(text: str) -> Injection:
    """
    >>> parse("blocks.0.*:accumulator_bits=20,wrap").words, parse("a:b:bit=3,flip@1,2").index
    (('wrap',), (1, 2))
    """
    pattern, colon, change = text.rpartition(":")
    head, at, tail = change.partition("@")
    first, *words = (part.strip() for part in head.split(","))
    kind, equals, value = first.partition("=")
    kind, value = kind.strip(), value.strip()
    if not (colon and pattern and equals and value) or "" in words:
        raise IntvitError(f"--inject: must be {SYNTAX}, not {text!r:.120}")
    if kind not in USAGE:
        raise IntvitError(f"--inject: kind must be one of {', '.join(USAGE)}, not {kind!r:.40}")
    index = None
    if at:
        parts = [part.strip() for part in tail.split(",")]
        if not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
            raise IntvitError(f"--inject: what follows @ must be the index of an element, as 3,17, not {tail!r:.60}")
        if kind not in INDEXED:
            raise IntvitError(f"--inject: @INDEX must go with one of {', '.join(INDEXED)}, not with {kind}")
        index = tuple(map(int, parts))
    return Injection(text, pattern, kind, value, tuple(words), index)
