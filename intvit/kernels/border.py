"""The borders of compiled kernels, where Python hands over arrays and constants: nothing passes that does not fit.

Compiled code trusts its arrays: an index beyond one of them reads or overwrites foreign memory. Therefore a kernel that
Python calls states what it relies on, and `border` compares it at every call. Kernels that only other kernels call have
no border; their arrays came through that of the caller.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np

from intvit.errors import IntvitError, reading

Array = np.ndarray[Any, Any]
BORDERS: list[Any] = []
"""Every function that leads from Python into compiled code, in order of definition."""
SIGNED = "int8|int16|int32|int64"
"""The integers of tensors, in whatever width they are stored."""
LONGEST_SHOWN = 60


def border(check: Callable[..., None] | None = None, **arrays: str) -> Callable[[Any], Any]:
    """Give a kernel its border: a function of the same arguments that calls it if its arrays fit one another.

    Each array is described by its dtypes and sizes, `"int8|int16 R C"`. A name stands for one size of at least 1, the
    same wherever it occurs; `R|0` allows either, `M=C|1` names a size that is one of these, `*` is any size. Arrays are
    contiguous and of the machine's byte order. With an empty `out` the call does nothing. Where sizes follow from other
    arguments there is a function `check` instead, which gets all arguments and raises; what it leaves to the kernel,
    that answers with False. It may take named tuples, whose fields are arguments of the kernel.
    """

    def wrap(compiled: Any) -> Any:
        call = _compared(compiled, arrays) if check is None else _checked(compiled, check)
        call.__name__ = call.__qualname__ = compiled.py_func.__name__
        call.__module__, call.__doc__ = compiled.py_func.__module__, compiled.py_func.__doc__
        call.compiled, call.arrays = compiled, arrays
        BORDERS.append(call)
        return call

    return wrap


def _checked(compiled: Any, check: Callable[..., None]) -> Any:
    """Named tuples, as the annotations of `check` name them, are spread: Numba takes long to see the type of one."""
    kinds = get_type_hints(check)
    names = list(inspect.signature(check).parameters)
    spread = [
        f"*{name}" if isinstance(kinds[name], type) and issubclass(kinds[name], tuple) else name for name in names
    ]
    lines = [
        f"def call({', '.join(names)}):",
        f" check({', '.join(names)})",
        f" result = compiled({', '.join(spread)})",
        " if result is False:",
        "  raise IntvitError(f'{place}: an index leaves its array')",
        " return result",
    ]
    place = f"{compiled.py_func.__module__}.{compiled.py_func.__name__}"
    space: dict[str, Any] = {"check": check, "compiled": compiled, "place": place, "IntvitError": IntvitError}
    exec("\n".join(lines), space)
    space["call"].check = check
    return space["call"]


def _compared(compiled: Any, arrays: dict[str, str]) -> Any:
    """One flat function, written out: a loop over descriptions takes longer than many a kernel."""
    names = list(inspect.signature(compiled.py_func).parameters)
    known: list[str] = []
    unpack, fits = [], []
    for name, text in arrays.items():
        kinds, *sizes = text.split()
        fits += [f"{name}.dtype.char in {characters(kinds)!r}", f"{name}.dtype.isnative", f"{name}.flags.c_contiguous"]
        found = []
        for axis, size in enumerate(sizes):
            label, _, choices = size.rpartition("=")
            new = label or (size if size.isidentifier() and size not in known else "")
            found.append(new or f"{name}_{axis}")
            if new:
                known.append(new)
            if new != size and size != "*":
                fits.append("(" + " or ".join(f"{found[-1]} == {choice}" for choice in choices.split("|")) + ")")
        unpack.append(f"{', '.join(found)}, = {name}.shape")
    lines = [
        f"def call({', '.join(names)}):",
        " try:",
        *(f"  {line}" for line in unpack),
        f"  fits = {' and '.join(fits)}",
        " except (AttributeError, TypeError, ValueError):",
        "  fits = False",
        f" if {' and '.join(['fits', *(f'{name} > 0' for name in known)])}:",
        f"  return compiled({', '.join(names)})",
        *([" if fits and not out.size:", "  return None"] if "out" in arrays else []),
        f" refuse(compiled, arrays, {{{', '.join(f'{name!r}: {name}' for name in arrays)}}})",
    ]
    space: dict[str, Any] = {"compiled": compiled, "arrays": arrays, "refuse": _refuse}
    exec("\n".join(lines), space)
    return space["call"]


def characters(kinds: str) -> str:
    """NumPy's one-letter codes of dtypes, whatever their byte order; some have two."""
    wanted = [np.dtype(kind) for kind in kinds.split("|")]
    return "".join(c for c in np.typecodes["All"] if c not in "SUV" and np.dtype(c) in wanted)


def _refuse(compiled: Any, arrays: dict[str, str], values: dict[str, Any]) -> None:
    rule = ", ".join(f"{name} {text}" for name, text in arrays.items())
    found = ", ".join(f"{name} {_describe(value)}" for name, value in values.items())
    place = f"{compiled.py_func.__module__}.{compiled.py_func.__name__}"
    raise IntvitError(f"{place}: arrays must be {rule}, not {found}")


def _describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    gaps = "" if value.flags.c_contiguous else " with gaps"
    return " ".join([str(value.dtype), *map(str, value.shape)]) + gaps


# ---------------------------------------------------------------------------------------- constants


def shown(value: Any) -> str:
    """A value as part of a message of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def integer(name: str, value: Any, low: int, high: int) -> int:
    """A constant that must be an integer in low..high; neither a bool nor a float is one."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise IntvitError(f"{name} must be an integer in {low}..{high}, not {shown(value)}")
    return number


def reals(name: str, values: Any) -> Array:
    """Real numbers of any shape as float64; NaN and infinity are left to the caller."""
    with reading(name, "real numbers"), np.errstate(over="ignore"):
        array = np.asarray(values)
        if array.dtype.kind in "fiu":
            return array.astype(np.float64)
    raise IntvitError(f"{name}: must be real numbers, not {shown(values)}")


def real(name: str, value: Any) -> float:
    """One real number; NaN and infinity are left to the caller."""
    array = reals(name, value)
    if array.size != 1:
        raise IntvitError(f"{name} must be one number, not {array.size}")
    return float(array.reshape(()))


def constants(name: str, *values: Any) -> tuple[Any, ...]:
    """The constants of a prepared kernel: its integers must fit int64, beyond which Numba would compute with floats."""
    for value in values:
        if not isinstance(value, (np.ndarray, bool)):
            integer(f"{name}: constant", value, -(2**63), 2**63 - 1)
    return values
