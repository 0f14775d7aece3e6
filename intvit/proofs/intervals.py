"""Intervals of unbounded integers, and roundings of them. All bounds are inclusive and Python integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """The integers low..high. Operations give the least interval that holds every result of independent operands."""

    low: int
    high: int

    def __post_init__(self) -> None:
        assert self.low <= self.high, (self.low, self.high)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Interval) -> Interval:
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def __and__(self, other: Interval) -> Interval:
        """What both hold; of two proven intervals of one value never empty."""
        return Interval(max(self.low, other.low), min(self.high, other.high))

    def __contains__(self, other: Interval) -> bool:
        return self.low <= other.low and other.high <= self.high

    def rising(self, f: Callable[[int], int]) -> Interval:
        """Of a function that never falls."""
        return Interval(f(self.low), f(self.high))

    def falling(self, f: Callable[[int], int]) -> Interval:
        """Of a function that never rises."""
        return Interval(f(self.high), f(self.low))

    def abs(self) -> Interval:
        return Interval(max(self.low, -self.high, 0), max(-self.low, self.high))

    def squared(self) -> Interval:
        return self.abs().rising(lambda v: v * v)

    def wrapped(self, bits: int) -> Interval:
        """Two's complement: itself if it fits, else every value of the type."""
        word = signed(bits)
        return self if self in word else word

    @property
    def bits(self) -> int:
        return width(self.low, self.high)

    @property
    def span(self) -> int:
        """How many integers it holds."""
        return self.high - self.low + 1


def signed(bits: int) -> Interval:
    return Interval(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def point(value: int) -> Interval:
    return Interval(value, value)


def hull(parts: Iterable[Interval]) -> Interval:
    parts = list(parts)
    return Interval(min(p.low for p in parts), max(p.high for p in parts))


def width(low: int, high: int) -> int:
    """The least two's complement width that holds low..high.

    >>> width(-128, 127), width(0, 128), width(0, 0), width(-1, 0)
    (8, 9, 1, 1)
    """
    magnitude = max(max(high, 0).bit_length(), (-1 - low if low < 0 else 0).bit_length())
    return magnitude + 1 if magnitude or low < 0 else 1


def text(value: int) -> str:
    """In decimal digits; hexadecimal beyond 256 bits, as of exponentials whose shift has no bound."""
    return str(value) if value.bit_length() <= 256 else hex(value)


@dataclass(frozen=True, slots=True)
class Box:
    """One interval for all channels of a tensor, or one for each (its last axis): `low`, `high` of length 1 or C."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def uniform(self) -> bool:
        return len(self.low) == 1

    @property
    def hull(self) -> Interval:
        return Interval(min(self.low), max(self.high))

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, channel: int) -> Interval:
        i = 0 if self.uniform else channel
        return Interval(self.low[i], self.high[i])

    def over(self, channels: int) -> tuple[Sequence[int], Sequence[int]]:
        """(low, high) of `channels` channels."""
        return (self.low * channels, self.high * channels) if self.uniform else (self.low, self.high)


def box(parts: Iterable[Interval]) -> Box:
    """Of one interval for each channel; of one alone where they are all equal."""
    parts = list(parts)
    if all(part == parts[0] for part in parts):
        parts = parts[:1]
    return Box(tuple(p.low for p in parts), tuple(p.high for p in parts))


def rounded_shift(value: int, shift: int) -> int:
    """value / 2**shift to the nearest integer, ties to even; a negative shift multiplies."""
    if shift <= 0:
        return value << -shift
    below = value >> shift
    twice = (value - (below << shift)) << 1
    one = 1 << shift
    return below + (twice > one or (twice == one and below & 1))


def rounded_quotient(value: int, divisor: int) -> int:
    """value / divisor to the nearest integer, ties to even; divisor >= 1."""
    below, rest = divmod(value, divisor)
    return below + (2 * rest > divisor or (2 * rest == divisor and below & 1))


def truncated(value: int, divisor: int) -> int:
    """value / divisor toward zero."""
    quotient = abs(value) // abs(divisor)
    return quotient if (value < 0) == (divisor < 0) else -quotient
