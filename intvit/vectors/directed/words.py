"""The datapath of a requantization over whole arrays, with every rounding and every narrowing in sight.

What `spec.requantize` computes, element by element; `directed` holds its outputs against the kernel on every call, and
a test its intermediates against the taps of the specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intvit.graph.ir import Array
from intvit.spec.numerics import STORAGE_BITS, Numerics

SAFE = 1 << 61


@dataclass(frozen=True)
class Rounding:
    """`numerator / 2**shift`, by `mode`; where the shift is 0 nothing is rounded."""

    name: str
    numerator: Array
    shift: Array
    mode: str


@dataclass(frozen=True)
class Narrowing:
    """A value on its way into a word of low..high."""

    name: str
    value: Array
    low: int
    high: int
    overflow: str


@dataclass(frozen=True)
class Trace:
    roundings: tuple[Rounding, ...]
    narrowings: tuple[Narrowing, ...]
    y: Array


@dataclass(frozen=True)
class Operands:
    """Arrays of one length: x, m, e of one term or two, and what is added at the end; all int64, or all objects."""

    x: Array
    m: Array
    e: Array
    residual: Array | None = None
    residual_m: Array | None = None
    residual_e: Array | None = None
    addend: int = 0

    def exact(self) -> Operands:
        """As unbounded integers wherever 64 bits might not do."""
        terms = [(self.x, self.m, self.e)]
        if self.residual is not None:
            assert self.residual_m is not None
            assert self.residual_e is not None
            terms.append((self.residual, self.residual_m, self.residual_e))
        fits = all(
            _most(x) * _most(m) << max(-_least(e), 0) < SAFE and _least(e) > -60 and _largest(e) <= 62
            for x, m, e in terms
        )
        kind = np.int64 if fits else object

        def typed(values: Array | None) -> Array | None:
            return None if values is None else values.astype(kind)

        first = [self.x.astype(kind), self.m.astype(kind), self.e.astype(kind)]
        return Operands(
            first[0],
            first[1],
            first[2],
            typed(self.residual),
            typed(self.residual_m),
            typed(self.residual_e),
            self.addend,
        )


def _least(values: Array) -> int:
    return int(values.min(initial=0))


def _largest(values: Array) -> int:
    return int(values.max(initial=0))


def _most(values: Array) -> int:
    return max(_largest(values), -_least(values))


def run(at: Operands, how: Numerics, bits: int, instead: Mapping[str, Array] | None = None) -> Trace:
    """Every step. `instead`: what a rounding gives in place of its own result, by its name."""
    given, roundings, narrowings = instead or {}, list[Rounding](), list[Narrowing]()

    def narrow(name: str, value: Array, width: int, overflow: str) -> Array:
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        narrowings.append(Narrowing(name, value, low, high, overflow))
        if width >= STORAGE_BITS and value.dtype != object:
            return value
        if overflow == "wrap":
            return ((value - low) & ((1 << width) - 1)) + low
        return np.minimum(np.maximum(value, low), high)

    def rounding(name: str, value: Array, shift: Array, mode: str) -> Array:
        roundings.append(Rounding(name, value, np.maximum(shift, 0), mode))
        return given[name] if name in given else rounded(value, shift, mode)

    def term(name: str, value: Array, e: Array) -> Array:
        if how.double_rounding:
            part = how.multiplier_bits - 1
            value = rounding(f"{name}rounded to the upper word", value, np.minimum(e, part), "half_up")
            if value.dtype == object:
                value = narrow(f"{name}upper word", value, STORAGE_BITS, "saturate")
            value = rounding(f"{name}rounded", value, np.maximum(e - part, 0), how.rounding)
        else:
            value = rounding(f"{name}rounded", value, e, how.rounding)
        return value

    def product(name: str, x: Array, m: Array) -> Array:
        return narrow(f"{name}product", x * m, how.product_bits, how.product_overflow)

    def word(name: str, value: Array) -> Array:
        return narrow(name, value, how.rounded_bits, how.rounded_overflow)

    value = product("", at.x, at.m)
    if at.residual is None:
        value = word("rounded", term("", value, at.e))
    elif how.residual == "together":
        assert at.residual_m is not None
        value = value + product("residual_", at.residual, at.residual_m)
        value = narrow("total", value, how.product_bits, how.product_overflow)
        value = word("rounded", term("", value, at.e))
    else:
        assert at.residual_m is not None
        assert at.residual_e is not None
        value = word("rounded", term("", value, at.e))
        other = term("residual_", product("residual_", at.residual, at.residual_m), at.residual_e)
        value = word("total", value + word("residual_rounded", other))
    if at.addend:
        value = word("total", value + at.addend)
    y = narrow("y", value, bits, how.output_overflow)
    return Trace(tuple(roundings), tuple(narrowings), y)


def rounded(value: Array, shift: Array, mode: str) -> Array:
    """value / 2**shift; a negative shift multiplies."""
    value, shift = value << np.maximum(-shift, 0), np.maximum(shift, 0)
    below = value >> shift
    rest = value - (below << shift)
    return below + up(below, rest, shift, mode).astype(below.dtype)


def up(below: Array, rest: Array, shift: Array, mode: str) -> Array:
    """Whether the quotient below is raised by one."""
    if mode == "floor":
        return np.zeros(below.shape, bool)
    if mode == "toward_zero":
        return np.asarray((below < 0) & (rest != 0), bool)
    twice, one = rest << 1, np.ones_like(rest) << shift
    tied = {"half_even": below & 1 != 0, "half_up": np.True_, "half_away": below >= 0}[mode]
    return np.asarray((twice > one) | ((twice == one) & (rest != 0) & tied), bool)


def visible(at: Operands, how: Numerics, bits: int, trace: Trace, names: Sequence[str]) -> dict[str, Array]:
    """Of each named rounding: where the quotient below and the one above it give different outputs."""
    found = {}
    for each in trace.roundings:
        if each.name in names:
            below = each.numerator >> each.shift
            found[each.name] = np.asarray(
                run(at, how, bits, {each.name: below}).y != run(at, how, bits, {each.name: below + 1}).y, bool
            )
    return found


def step(value: int, shift: int, mode: str) -> int:
    """`rounded` of one integer."""
    if shift <= 0:
        return value << -shift
    below = value >> shift
    twice, one = (value - (below << shift)) << 1, 1 << shift
    if mode == "floor" or not twice:
        return below
    if mode == "toward_zero":
        return below + (below < 0)
    tied = mode == "half_up" or (below & 1 == 1 if mode == "half_even" else below >= 0)
    return below + (twice > one or (twice == one and tied))
