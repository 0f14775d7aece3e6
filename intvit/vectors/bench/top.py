"""A top module as the bench sees it: its name and the parameters that its header declares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from intvit.errors import IntvitError
from intvit.files import read_text

COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Top:
    """Module `name` in `path`; parameter -> whether it has a default."""

    path: Path
    name: str
    parameters: dict[str, bool]


def read_top(path: str | Path) -> Top:
    """The module of the file's own name, whose parameters stand in its header (`module m #(parameter ...) (...)`).

    IntvitError for a file that does not hold it.
    """
    path = Path(path)
    text = COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " ", read_text(path))
    name = path.stem
    if not IDENTIFIER.fullmatch(name):
        raise IntvitError(f"{path}: top must be named like a module, not {name!r}")
    found = re.search(rf"\bmodule\s+(?:automatic\s+|static\s+)?{re.escape(name)}\b", text)
    if found is None:
        raise IntvitError(f"{path}: must hold module {name}, and does not")
    rest = re.sub(r"^(\s*import\s[^;]*;)+", "", text[found.end() :])
    header = re.match(r"\s*#\s*\(", rest)
    declared = _split(path, rest[header.end() :]) if header else []
    parameters: dict[str, bool] = {}
    overridable = True
    for each in declared:
        kind = re.match(r"\s*(parameter|localparam)\b", each)
        overridable = kind[1] == "parameter" if kind else overridable
        before, has_default, _ = each.partition("=")
        names = IDENTIFIER.findall(re.sub(r"\[[^\]]*\]", " ", before))
        if overridable and names and names[-1] not in ("parameter", "type"):
            parameters[names[-1]] = bool(has_default)
    return Top(path, name, parameters)


def _split(path: Path, text: str) -> list[str]:
    """What stands between commas up to the parenthesis that closes the list."""
    parts, depth, start, quoted = list[str](), 0, 0, False
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
            if depth < 0:
                return [part for part in [*parts, text[start:at]] if part.strip()]
        elif letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    raise IntvitError(f"{path}: must have a parameter list that ends")
