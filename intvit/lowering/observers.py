"""Observers: a range (lo, hi) from a stream of float batches. One small class each; `update` then `range`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from intvit.lowering.recipe import Observer


class RangeObserver(Protocol):
    def update(self, batch: np.ndarray) -> None: ...

    def range(self) -> tuple[float, float]: ...


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

    def range(self) -> tuple[float, float]:
        assert self.lo is not None
        return self.lo, self.hi


class _Histogram:
    """Counts of |x| in 4096 equal bins up to the largest value; bins merge in pairs when the range doubles."""

    N_BINS = 4096

    def __init__(self) -> None:
        self.counts = np.zeros(self.N_BINS, np.int64)
        self.top = 0.0

    def update(self, batch: np.ndarray) -> None:
        magnitude = np.abs(batch).reshape(-1)
        peak = float(magnitude.max())
        if self.top == 0.0:
            self.top = peak or 1e-12
        while peak > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(self.N_BINS // 2, np.int64)])
            self.top *= 2
        self.counts += np.histogram(magnitude, self.N_BINS, (0.0, self.top))[0]

    @property
    def edges(self) -> np.ndarray:
        return np.arange(1, self.N_BINS + 1) * (self.top / self.N_BINS)


class Percentile(_Histogram):
    """The symmetric range that holds the given percentile of |x|, to one part in 4096 of the largest value."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def range(self) -> tuple[float, float]:
        share = np.cumsum(self.counts) / self.counts.sum()
        top = float(self.edges[int(np.searchsorted(share, self.percentile / 100 - 1e-15))])
        return -top, top


class MeanSquaredError(_Histogram):
    """The symmetric clip, of 100 candidates, with the least mean squared error of quantize and dequantize."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.q_max = 2 ** (bits - 1) - 1

    def range(self) -> tuple[float, float]:
        centres = self.edges - 0.5 * self.top / self.N_BINS
        best, clip = np.inf, self.top
        for candidate in np.linspace(self.top / 100, self.top, 100):
            scale = candidate / self.q_max
            error = centres - np.minimum(np.rint(centres / scale), self.q_max) * scale
            total = float(np.sum(self.counts * error**2))
            if total < best:
                best, clip = total, float(candidate)
        return -clip, clip


def build_observer(observer: Observer, bits: int) -> RangeObserver:
    if observer.kind == "minmax":
        return MinMax(observer.momentum)
    if observer.kind == "percentile":
        return Percentile(observer.percentile)
    return MeanSquaredError(bits)
