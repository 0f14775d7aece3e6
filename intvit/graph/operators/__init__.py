"""The kinds of operators, one file each: shape rule, quantizers, lowering, backends, fusion, float ONNX form.

What is here: everything that differs from one kind to the next. What is not: the arithmetic, which stands in `spec` and
in `kernels`, and the walks over a graph (`importers.onnx`, `lowering`, `graph.check`, `evaluate`, `plan`), which ask
here. A new kind is a file here, one in `spec` and one in `kernels`; no list names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from intvit.graph.operators.kind import Operator

FIRST = ("softmax", "gelu", "layernorm")
"""The kinds with methods that every recipe names, in its order."""


@cache
def operators() -> dict[str, Operator]:
    """Name -> kind, of all files of this package."""
    found: dict[str, Operator] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Operator) and found.setdefault(value.name, value) is not value:
                raise RuntimeError(f"{module.name}: there is another operator {value.name}")
    return found


def get(name: str) -> Operator | None:
    return operators().get(name)


@cache
def with_methods() -> tuple[str, ...]:
    """The kinds whose integer forms are methods: those of a Softmax, GELU and LayerNorm first."""
    others = sorted(name for name, kind in operators().items() if kind.facts is not None and name not in FIRST)
    return (*FIRST, *others)


@cache
def named(trait: str) -> frozenset[str]:
    """The kinds for which a field is true, as `named("narrow_input")`."""
    return frozenset(name for name, kind in operators().items() if getattr(kind, trait))


def norms() -> frozenset[str]:
    """The kinds whose methods give a scale per channel."""
    return named("per_channel").intersection(with_methods())
