"""Seeded numbers that are the same on every machine and with every version of NumPy: splitmix64, on 64-bit words."""

from __future__ import annotations

import hashlib

import numpy as np

from intvit.graph.ir import Array

_STEP, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class Stream:
    """Words from a seed and a name. Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014.

    >>> Stream(0, "a").below(100), Stream(0, "a").below(100) == Stream(0, "a").below(100)
    (9, True)
    """

    def __init__(self, seed: int, *names: str) -> None:
        text = "\x00".join([str(seed), *names])
        self._state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def words(self, count: int) -> Array:
        """`count` words, uint64."""
        at = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(self._state)
        self._state = (self._state + count * _STEP) & _MASK
        at = (at ^ (at >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        at = (at ^ (at >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return at ^ (at >> np.uint64(31))

    def below(self, limit: int) -> int:
        """0 .. limit - 1, for a limit of at most 2**63; the bias is below limit / 2**64."""
        return int(self.words(1)[0]) * limit >> 64

    def within(self, low: int, high: int) -> int:
        """low..high, both included."""
        return low + self.below(high - low + 1)

    def integers(self, low: int, high: int, count: int) -> Array:
        """`count` of low..high, int64; the ends must fit it."""
        span = high - low + 1
        words = self.words(count)
        if span < 1 << 31:
            found = ((words >> np.uint64(32)) * np.uint64(span)) >> np.uint64(32)
            return found.astype(np.int64) + low
        return np.array([low + (int(word) * span >> 64) for word in words], np.int64)

    def shuffled(self, count: int) -> list[int]:
        """A permutation of 0 .. count - 1."""
        return np.argsort(self.words(count), kind="stable").tolist()
