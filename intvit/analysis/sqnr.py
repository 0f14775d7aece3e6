"""SQNR of integer tensors against recorded float ones, streamed: nothing is stored but two sums per image.

Paper: "Mixed Non-linear Quantization for Vision Transformers", Eq. 10 and 11. Its Eq. 10 reads
`20 log10(mean over images of E[x^2] / E[(x-q)^2])`: a power ratio behind a factor 20. The usual form has factor 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Tensor
from intvit.kernels.border import SIGNED, border
from intvit.kernels.cache import compiled

PAPER_FACTOR = 20.0


def decibel(signal: float, noise: float) -> float:
    """10 log10 of the ratio of two powers, dB; that of two powers of 0 is 0.

    >>> decibel(1000.0, 1.0), decibel(1.0, 0.0), decibel(0.0, 0.0)
    (30.0, inf, 0.0)
    """
    if not noise:
        return math.inf if signal else 0.0
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass
class Sqnr:
    """Power ratios of one tensor, an entry per image, kept by image so that batches cannot reorder the sum."""

    ratios: dict[int, float] = field(default_factory=dict)

    def merge(self, start: int, ratios: Sequence[float]) -> None:
        """Add the ratios of images `start...`, from `power_ratios`."""
        self.ratios.update(enumerate(ratios, start))

    def decibel(self, factor: float = PAPER_FACTOR) -> float:
        """`factor * log10(mean ratio)`; images without any error count as the largest finite ratio met."""
        return mean_decibel([self.ratios[i] for i in sorted(self.ratios)], factor)

    def mean_noise(self) -> float:
        """`-10 log10(mean over images of noise power / signal power)`, dB: every image counts by what it loses.

        >>> round(Sqnr({0: 100.0, 1: 1e9}).mean_noise(), 2), Sqnr({0: math.inf}).mean_noise()
        (23.01, inf)
        """
        noise = math.fsum(1 / ratio if ratio else math.inf for ratio in self.ratios.values()) / len(self.ratios)
        return -10 * math.log10(noise) if noise else math.inf


LANES = 256
"""Partial sums of a tensor with one scale: the order of the additions is the same on every machine."""


@border(
    real="float32 B N", q=f"{SIGNED}|float32 B N", scale="float64 L", signal="float64 B", noise="float64 B"
)  # fmt: skip
@compiled
def _powers(real, q, scale, signal, noise):
    """Per image sums of x**2 and of (x - scale*q)**2 over (B, N); one partial sum per entry of `scale`, in turn."""
    lanes = len(scale)
    for b in range(real.shape[0]):
        s, n = np.zeros(lanes), np.zeros(lanes)
        for start in range(0, real.shape[1], lanes):
            xs, qs = real[b, start : start + lanes], q[b, start : start + lanes]
            for j in range(len(xs)):
                x = np.float64(xs[j])
                d = x - np.float64(qs[j]) * scale[j]
                s[j] += x * x
                n[j] += d * d
        signal[b], noise[b] = s.sum(), n.sum()


@border(codes="int8 B N", out="float32 B N")
@compiled
def _fractions(codes, out):
    """FQ-ViT codes to what they stand for: 2**-q, or 0 for -1."""
    table = np.zeros(256, np.float32)
    for q in range(128):
        table[q] = 2.0**-q
    for b in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            out[b, j] = table[codes[b, j] & 255]


def power_ratios(real: np.ndarray, q: np.ndarray, tensor: Tensor) -> list[float]:
    """Signal to noise of integers `q` (B, ...) of `tensor` against float values `real` (B, ...), per image."""
    if real.shape != q.shape:
        raise IntvitError(
            f"{tensor.name}: float values must have the shape {q.shape} of the integers, not {real.shape}"
        )
    if not q.size:
        return [math.inf] * len(q)
    flat = np.ascontiguousarray(q).reshape(len(q), -1)
    if tensor.encoding == "log2":
        scale, codes = np.ones(LANES), flat
        flat = np.empty(codes.shape, np.float32)
        _fractions(codes, flat)
    else:
        if tensor.zero_point:
            flat = flat.astype(np.int64) - tensor.zero_point
        scale = np.asarray(tensor.scale, np.float64).reshape(-1)
        if scale.shape not in ((1,), q.shape[-1:]):
            raise IntvitError(f"{tensor.name}: scale must be one or {q.shape[-1:]}, not {scale.shape}")
        scale = scale.repeat(LANES) if scale.size == 1 else np.ascontiguousarray(scale)
    signal, noise = np.empty(len(real)), np.empty(len(real))
    _powers(np.ascontiguousarray(real, np.float32).reshape(len(real), -1), flat, scale, signal, noise)
    return [float(s / n) if n > 0 else math.inf for s, n in zip(signal, noise, strict=True)]


def mean_decibel(ratios: Sequence[float], factor: float = PAPER_FACTOR) -> float:
    """ASQNR of per-image power ratios.

    >>> mean_decibel([100.0, 100.0]), mean_decibel([100.0, 100.0], factor=10.0)
    (40.0, 20.0)
    """
    finite = [r for r in ratios if math.isfinite(r)]
    if not finite:
        return math.inf
    values = [min(r, max(finite)) for r in ratios]
    mean = math.fsum(values) / len(values)
    return factor * math.log10(mean) if mean > 0 else -math.inf
