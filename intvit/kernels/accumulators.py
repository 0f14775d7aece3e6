"""Accumulators narrower than their sums: what a policy makes of products that were added exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intvit.errors import Beyond, IntvitError
from intvit.kernels.arith import kernel
from intvit.kernels.border import border
from intvit.kernels.datapath import word

Array = np.ndarray[Any, Any]
Exact = Callable[[], Array]


@border(a="int64 N R K", b="int64 N K C", bias="int64 C", out="int64 N R C")
@kernel
def _saturating(a, b, bias, bits, out):
    """Saturated after every product, in the order of k, and after the bias."""
    for n in range(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(b.shape[2]):
                total = np.int64(0)
                for k in range(a.shape[2]):
                    total = word(total + a[n, i, k] * b[n, k, j], 0, bits, 0)
                out[n, i, j] = word(total + bias[j], 0, bits, 0)


def saturating(a: Array, b: Array, bias: Array | None, bits: int) -> Array:
    """a (..., R, K) times b (..., K, C), saturated after every product, and after the bias (C,); int64.

    Every product, and every one of them plus a sum of `bits` bits, must fit int64: |a| * |b| < 2**62, bits <= 62.
    """
    most = int(np.abs(a.astype(np.int64)).max(initial=0)) * int(np.abs(b.astype(np.int64)).max(initial=0))
    if most >= 2**62 or bits > 62:
        raise IntvitError(f"accumulator: products must stay below 2**62, sums of 62 bits at most; not {most}, {bits}")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.zeros((*lead, a.shape[-2], b.shape[-1]), np.int64)
    flat = [np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b)]
    offset = np.zeros(b.shape[-1], np.int64) if bias is None else np.ascontiguousarray(bias, np.int64)
    ready = (np.ascontiguousarray(x, np.int64) for x in flat)
    _saturating(*ready, offset, bits, out.reshape(-1, *out.shape[-2:]))
    return out


def fitting(y: Array, bits: int, policy: str) -> Array:
    """Exact sums (B, ...) as words of `bits` bits. raise: Beyond, with the image, the index and the value."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if policy == "saturate_end":
        return np.clip(y, low, high)
    if policy == "wrap":
        return (y.astype(np.int64) << (64 - bits)) >> (64 - bits)
    beyond = (y < low) | (y > high)
    if beyond.any():
        at = np.unravel_index(int(np.argmax(beyond)), y.shape)
        image, *index = (int(i) for i in at)
        raise Beyond(f"accumulator must lie in {low}..{high}, its {bits} bits, and is {int(y[at])} at {index}", image)
    return y
