"""Observers: a range (lo, hi) from a stream of float batches. One small class each; `update` then `range`.

A range is for a quantizer of so many bits. Its larger side is what the observer decides; the smaller one ends where the
values do, so that a zero point finds the room.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from intvit.lowering.recipe import Observer


def clipped(low: float, high: float, top: float) -> tuple[float, float]:
    """The part of a range between -top and top; the nearest of them where there is none."""
    return min(max(low, -top), top), max(min(high, top), -top)


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
            self.top = max(peak, 1e-30) if peak else 1e-12
        while peak > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(self.N_BINS // 2, np.int64)])
            self.top *= 2
        self.counts += np.histogram(magnitude, self.N_BINS, (0.0, self.top))[0]

    def clipped(self, top: float, bits: int) -> tuple[float, float]:
        """The values between -top and top."""
        low, high = self.extremes.range(bits)
        return clipped(low, top, top) if -low < high else clipped(-top, high, top)

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


class _Searched(_Histogram):
    """The clip with the least `loss`, of 100 candidates."""

    def range(self, bits: int) -> tuple[float, float]:
        best, clip = np.inf, self.top
        for candidate in np.linspace(self.top / 100, self.top, 100):
            total = self.loss(float(candidate), bits)
            if total < best:
                best, clip = total, float(candidate)
        return self.clipped(clip, bits)

    def loss(self, clip: float, bits: int) -> float:
        raise NotImplementedError


class MeanSquaredError(_Searched):
    """Mean squared error of symmetric codes."""

    def loss(self, clip: float, bits: int) -> float:
        q_max = 2 ** (bits - 1) - 1
        centres, scale = self.edges - 0.5 * self.top / self.N_BINS, clip / q_max
        error = centres - np.minimum(np.rint(centres / scale), q_max) * scale
        return float(np.sum(self.counts * error**2))


class KullbackLeibler(_Searched):
    """KL divergence of the clipped distribution of |x| from the rounded one.

    What lies beyond the clip counts at the clip. Every level of the codes holds the counts of the bins that round to
    it, spread evenly over those that are not empty. Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """

    def loss(self, clip: float, bits: int) -> float:
        n_bins = max(1, round(clip / self.top * self.N_BINS))
        p = self.counts[:n_bins].astype(np.float64)
        q_max = 2 ** (bits - 1) - 1
        level = np.minimum(np.rint((np.arange(n_bins) + 0.5) / n_bins * q_max).astype(np.int64), q_max)
        filled = p > 0
        share = np.bincount(level, p) / np.maximum(np.bincount(level, filled), 1)
        q = np.where(filled, share[level], 0.0)
        p[-1] += self.counts[n_bins:].sum()
        if p[-1] and not q[-1]:  # a clip at which nothing lies
            return float("inf")
        p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
        return float(np.sum(p * np.log(p / q)))


def seen_as(observed: RangeObserver, observer: Observer) -> RangeObserver:
    """Another observer of the values that a histogram has counted; minmax: their extremes, whatever its momentum."""
    assert isinstance(observed, _Histogram)
    if observer.kind == "minmax":
        return observed.extremes
    found = build_observer(observer)
    assert isinstance(found, _Histogram)
    found.counts, found.top, found.extremes = observed.counts, observed.top, observed.extremes
    return found


def build_observer(observer: Observer) -> RangeObserver:
    if observer.kind == "minmax":
        return MinMax(observer.momentum)
    if observer.kind == "percentile":
        return Percentile(observer.percentile)
    return SEARCHED[observer.kind]()


SEARCHED: dict[str, type[_Searched]] = {"mse": MeanSquaredError, "kl": KullbackLeibler}
"""Observers whose ranges depend on the width of the quantizer."""
