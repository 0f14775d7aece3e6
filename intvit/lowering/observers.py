"""Observers: a range (lo, hi) from a stream of float batches. One small class each; `update` then `range`.

A range is for a quantizer of so many bits. Its larger side is what the observer decides; the smaller one ends where the
values do, so that a zero point finds the room.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from intvit.lowering.recipe import Observer


class RangeObserver(Protocol):
    def update(self, batch: np.ndarray) -> None: ...

    def range(self, bits: int) -> tuple[float, float]: ...


class MinMax:
    """Extremes of each batch, exponentially smoothed (I-ViT's QuantAct: momentum 0.95); momentum 0: of everything."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.lo: float | None = None
        self.hi = 0.0

    def update(self, batch: np.ndarray) -> None:
        lo, hi = float(batch.min()), float(batch.max())
        if self.lo is None:
            self.lo, self.hi = lo, hi
        elif self.momentum == 0:
            self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        else:
            self.lo = self.momentum * self.lo + (1 - self.momentum) * lo
            self.hi = self.momentum * self.hi + (1 - self.momentum) * hi

    def range(self, bits: int) -> tuple[float, float]:
        assert self.lo is not None
        return self.lo, self.hi


class _Histogram:
    """Counts of |x| in 4096 equal bins up to the largest value; bins merge in pairs when the range doubles."""

    N_BINS = 4096

    def __init__(self) -> None:
        self.counts = np.zeros(self.N_BINS, np.int64)
        self.top = 0.0
        self.extremes = MinMax(0.0)

    def update(self, batch: np.ndarray) -> None:
        self.extremes.update(batch)
        magnitude = np.abs(batch).reshape(-1)
        peak = float(magnitude.max())
        if self.top == 0.0:
            self.top = peak or 1e-12
        while peak > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(self.N_BINS // 2, np.int64)])
            self.top *= 2
        self.counts += np.histogram(magnitude, self.N_BINS, (0.0, self.top))[0]

    def clipped(self, top: float, bits: int) -> tuple[float, float]:
        """The values between -top and top."""
        low, high = self.extremes.range(bits)
        return (max(low, -top), top) if -low < high else (-top, min(high, top))

    @property
    def edges(self) -> np.ndarray:
        return np.arange(1, self.N_BINS + 1) * (self.top / self.N_BINS)


class Percentile(_Histogram):
    """What holds the given percentile of |x|, to one part in 4096 of the largest value."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def range(self, bits: int) -> tuple[float, float]:
        share = np.cumsum(self.counts) / self.counts.sum()
        return self.clipped(float(self.edges[int(np.searchsorted(share, self.percentile / 100 - 1e-15))]), bits)


class MeanSquaredError(_Histogram):
    """The clip, of 100 candidates, with the least mean squared error of symmetric codes."""

    def range(self, bits: int) -> tuple[float, float]:
        q_max = 2 ** (bits - 1) - 1
        centres = self.edges - 0.5 * self.top / self.N_BINS
        best, clip = np.inf, self.top
        for candidate in np.linspace(self.top / 100, self.top, 100):
            scale = candidate / q_max
            error = centres - np.minimum(np.rint(centres / scale), q_max) * scale
            total = float(np.sum(self.counts * error**2))
            if total < best:
                best, clip = total, float(candidate)
        return self.clipped(clip, bits)


def build_observer(observer: Observer) -> RangeObserver:
    if observer.kind == "minmax":
        return MinMax(observer.momentum)
    if observer.kind == "percentile":
        return Percentile(observer.percentile)
    return MeanSquaredError()
