"""The methods that exist: Method values found by scanning `intvit.kernels`, subfolders too, and entry points of others.

A third party registers one with an entry point in the group `intvit.methods` that names a Method value.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from intvit import kernels
from intvit.errors import IntvitError
from intvit.method import Method

ENTRY_POINTS = "intvit.methods"


@cache
def _table() -> dict[tuple[str, str], Method]:
    found: dict[tuple[str, str], Method] = {}
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Method):
                found[value.operator, value.name] = value
    for point in entry_points(group=ENTRY_POINTS):
        value = point.load()
        if not isinstance(value, Method):
            raise IntvitError(f"entry point {point.name}: must be an intvit Method, not {type(value).__name__}")
        if (value.operator, value.name) in found:
            raise IntvitError(f"entry point {point.name}: {value.operator}.{value.name} must not exist already")
        found[value.operator, value.name] = value
    return found


def methods(operator: str | None = None) -> list[Method]:
    """All methods, or those of one operator, by id."""
    return sorted((m for m in _table().values() if operator in (None, m.operator)), key=lambda m: m.id)


def get(operator: str, name: str) -> Method:
    """The method `name` of `operator`; IntvitError that lists the known ones otherwise."""
    found = _table().get((operator, name))
    if found is None:
        known = ", ".join(m.name for m in methods(operator)) or "none"
        raise IntvitError(f"{operator} method must be one of {known}, not {name!r}")
    return found
