"""SQNR of integer tensors against recorded float ones, streamed: nothing is stored but two sums per image.

Paper: "Mixed Non-linear Quantization for Vision Transformers", Eq. 10 and 11. Its Eq. 10 reads
`20 log10(mean over images of E[x^2] / E[(x-q)^2])`: a power ratio behind a factor 20. The usual form has factor 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


ERRORS = np.dtype([(name, "<f8") for name in ("ratio", "signal", "noise", "mean", "max", "saturated")])
"""Of one image: signal over noise power, inf without noise; both powers, means of x**2 and of (q - x)**2 in real units
squared; mean of `q - x` and largest |q - x|, real units; share of codes at an end of their type."""
LANES = 256
"""Partial sums of a tensor with one scale: the order of the additions is the same on every machine."""


@border(
    real="float32 B N", q=f"{SIGNED}|float32 B N", scale="float64 L", signal="float64 B", noise="float64 B",
    mean="float64 B", largest="float64 B",
)  # fmt: skip
@compiled
def _powers(real, q, scale, signal, noise, mean, largest):
    """Per image sums of x**2, of d**2 and of d over (B, N), and the largest |d|, for d = scale*q - x.

    One partial sum per entry of `scale`, in turn.
    """
    lanes = len(scale)
    for b in range(real.shape[0]):
        s, n, m = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
        top = np.zeros(lanes)
        for start in range(0, real.shape[1], lanes):
            xs, qs = real[b, start : start + lanes], q[b, start : start + lanes]
            for j in range(len(xs)):
                x = np.float64(xs[j])
                d = np.float64(qs[j]) * scale[j] - x
                s[j] += x * x
                n[j] += d * d
                m[j] += d
                top[j] = max(top[j], abs(d))
        signal[b], noise[b], mean[b], largest[b] = s.sum(), n.sum(), m.sum(), top.max()


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


def errors(real: np.ndarray, q: np.ndarray, tensor: Tensor) -> np.ndarray:
    """ERRORS (B,) of integers `q` (B, ...) of `tensor` against float values `real` (B, ...), an entry per image."""
    if real.shape != q.shape:
        raise IntvitError(
            f"{tensor.name}: float values must have the shape {q.shape} of the integers, not {real.shape}"
        )
    found = np.zeros(len(q), ERRORS)
    found["ratio"] = math.inf
    if not q.size:
        return found
    flat = np.ascontiguousarray(q).reshape(len(q), -1)
    ends = (flat == tensor.dtype.min) | (flat == tensor.dtype.max)
    found["saturated"] = np.count_nonzero(ends, axis=1) / flat.shape[1]
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
    signal, noise, mean, largest = np.empty((4, len(q)))
    _powers(np.ascontiguousarray(real, np.float32).reshape(len(real), -1), flat, scale, signal, noise, mean, largest)
    np.divide(signal, noise, out=found["ratio"], where=noise > 0)
    found["signal"], found["noise"] = signal / flat.shape[1], noise / flat.shape[1]
    found["mean"], found["max"] = mean / flat.shape[1], largest
    return found


def mean_decibel(ratios: Sequence[float] | np.ndarray, factor: float = PAPER_FACTOR) -> float:
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
