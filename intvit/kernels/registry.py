"""The methods that exist: Method values found by scanning `intvit.kernels`, subfolders too, and entry points of others.

A third party registers one with an entry point in the group `intvit.methods` that names a Method value. Versions of a
method stand side by side: `ivit` is the newest, `ivit.v1` is the first for ever.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from importlib.metadata import entry_points

from intvit import kernels
from intvit.errors import IntvitError
from intvit.kernels.method import Method

ENTRY_POINTS = "intvit.methods"
PINNED = re.compile(r"(.+)\.v([1-9][0-9]{0,5})")
"""A name with its version."""
Key = tuple[str, str, int]
"""Operator, name, version."""


@cache
def _table() -> dict[Key, Method]:
    found: dict[Key, Method] = {}
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Method):
                _add(found, value, module.name)
    for point in entry_points(group=ENTRY_POINTS):
        value = point.load()
        if not isinstance(value, Method):
            raise IntvitError(f"entry point {point.name}: must be an intvit Method, not {type(value).__name__}")
        _add(found, value, f"entry point {point.name}")
    return found


def _add(found: dict[Key, Method], method: Method, where: str) -> None:
    if PINNED.fullmatch(method.name):
        raise IntvitError(f"{where}: the name of a method must not end like a version, as {method.name!r} does")
    if found.setdefault((method.operator, method.name, method.version), method) is not method:
        raise IntvitError(f"{where}: {method.id} must not exist already; a change of its bits is a new version")


def methods(operator: str | None = None) -> list[Method]:
    """All versions of all methods, or of those of one operator, by id."""
    return sorted(
        (m for m in _table().values() if operator in (None, m.operator)), key=lambda m: (m.operator, m.name, m.version)
    )


def get(operator: str, name: str, version: int | None = None) -> Method:
    """The method `name` of `operator`: of that `version`, else of the one that `name` ends in (`ivit.v1`), else newest.

    Raises IntvitError that lists what there is.
    """
    match = PINNED.fullmatch(name)
    if match and version is None:
        name, version = match[1], int(match[2])
    known = methods(operator)
    found = [m for m in known if m.name == name and version in (None, m.version)]
    if not found:
        names = (
            ", ".join(dict.fromkeys(m.name if version is None else f"{m.name}.v{m.version}" for m in known)) or "none"
        )
        asked = name if version is None else f"{name}.v{version}"
        raise IntvitError(f"{operator} method must be one of {names}, not {asked!r}")
    return found[-1]
