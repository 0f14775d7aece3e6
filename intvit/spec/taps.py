"""Intermediates of the specification by name: values for debug vectors, widths for registers.

`tap("sum", total)` gives its value back and shows it to whoever listens. Nobody does unless `intermediates` or
`listening` asked for it, in the same thread; then every value is noted under its name, row elements in their order.
`names()` lists the names that the methods of this package use. They are part of the interface: a name never changes its
meaning, and new ones may join. A name that a row does not come by is missing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

Values = list[int | None]
"""Of a masked or undefined element None: no signal of hardware has to agree with it."""
Taps = dict[str, Values]
T = TypeVar("T")

OUTPUT = "y"


@cache
def names() -> dict[str, dict[str, str]]:
    """Operator -> name -> meaning, of all modules of the specification; every operator has `y` as well, its output."""
    from intvit import spec

    modules = [
        importlib.import_module(f"{spec.__name__}.{found.name}") for found in pkgutil.iter_modules(spec.__path__)
    ]
    return {operator: known for module in modules for operator, known in getattr(module, "TAPS", {}).items()}


def sometimes(operator: str, method: str | None) -> frozenset[str]:
    """Names that some rows do not come by."""
    names()
    module = importlib.import_module(f"intvit.spec.{operator}") if method else None
    return frozenset(getattr(module, "SOMETIMES", {}).get(method, ()))


_taps: ContextVar[Taps | None] = ContextVar("intvit.spec.taps", default=None)


def tap(name: str, value: T) -> T:
    """`value`, an integer or lists of them, noted under `name` if this thread listens; `Changed` alone changes it.

    >>> tap("sum", 7)
    7
    """
    taps = _taps.get()
    if taps is None:
        return value
    taps.setdefault(name, []).extend(_flat(value))
    return taps.changed(name, value) if isinstance(taps, Changed) else value


class Aligned(dict[str, Values]):
    """Taps of several rows, in which each has its place: None where it does not come by a name."""


def skip(name: str, count: int) -> None:
    """`count` values that a row does not come by; only `Aligned` notes them."""
    taps = _taps.get()
    if isinstance(taps, Aligned):
        taps.setdefault(name, []).extend([None] * count)


class Changed(dict[str, Values]):
    """Taps of a run in which the intermediate `name` is another one: what an error in it does to what follows.

    `change` gets every element that is no None. Tests of stimuli use it: an error that no stimulus shows is not tested.

    >>> from intvit.spec.pool import mean
    >>> with listening(Changed("sum", lambda value: value + 4)):
    ...     mean([1, 2, 3, 6])
    4
    """

    def __init__(self, name: str, change: Callable[[int], int]) -> None:
        super().__init__()
        self.name, self.change = name, change

    def changed(self, name: str, value: Any) -> Any:
        if name != self.name:
            return value
        if isinstance(value, (list, tuple)):
            return [self.changed(name, part) for part in value]
        return None if value is None else self.change(value)


@contextmanager
def listening(taps: Taps | None = None) -> Iterator[Taps]:
    """A dictionary that fills with what this thread taps inside the block: name -> values in the order of computing.

    Matrices are flattened row by row. Several calls follow one another under the same names. An inner block takes what
    is tapped inside it from the outer one.

    >>> with listening() as taps:
    ...     total = tap("sum", 3) + tap("sum", 4)
    >>> total, taps
    (7, {'sum': [3, 4]})
    """
    taps = {} if taps is None else taps
    token = _taps.set(taps)
    try:
        yield taps
    finally:
        _taps.reset(token)


def intermediates(function: Callable[..., Any], *args: Any, **options: Any) -> Taps:
    """Every intermediate of one call of a function of the specification, and its result under `y`.

    >>> from intvit.spec.pool import mean
    >>> intermediates(mean, [3, 4, 4])
    {'sum': [11], 'y': [4]}

    Raises what the function raises.
    """
    with listening() as taps:
        result = function(*args, **options)
    taps[OUTPUT] = _flat(result)
    return taps


def integer_type(values: Values) -> str:
    """The narrowest type that holds all of them: `u<bits>`, or `s<bits>` where one is negative; None counts as nothing.

    >>> integer_type([0, 255]), integer_type([-1, 255]), integer_type([0]), integer_type([None])
    ('u8', 's9', 'u1', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    if low >= 0:
        return f"u{max(high.bit_length(), 1)}"
    return f"s{max(max(high, 0).bit_length(), (-1 - low).bit_length()) + 1}"


def listing(taps: Taps) -> str:
    """One line for each name: name, type and values, as the worked rows of docs/quantization.md show them.

    >>> print(listing({"delta": [-28, None, 0], "sum": [11]}))
    delta  s6  -28 - 0
    sum    u4  11
    """
    types = {name: integer_type(values) for name, values in taps.items()}
    wide = max(map(len, taps), default=0)
    kind = max(map(len, types.values()), default=0)
    return "\n".join(
        f"{name:{wide}}  {types[name]:{kind}}  {' '.join('-' if v is None else str(v) for v in values)}"
        for name, values in taps.items()
    )


def _flat(value: Any) -> Values:
    if isinstance(value, (list, tuple)):
        return [element for part in value for element in _flat(part)]
    return [value]
