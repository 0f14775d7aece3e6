"""Linear quantizers of weights, biases and activations in the published conventions. Lowering only: these use floats.

docs/quantization.md, "Scales and linear quantizers". Scales are formed in double; the activation scales of a lowered
graph are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.border import integer, real, reals, shown

Array = np.ndarray[Any, Any]
LEAST_SCALE = 2.0**-23
IBERT_LEAST_RANGE = 1e-8
PTF_FACTORS = (1, 2, 4, 8)


def symmetric_scale(min_val: float, max_val: float, bits: int) -> float:
    """I-ViT's activation scale `max(-min, max) / (2**(bits-1) - 1)`, at least 2**-23, rounded to float32."""
    return float(np.float32(max(max(-min_val, max_val) / (2 ** (bits - 1) - 1), LEAST_SCALE)))


def affine_scale(min_val: float, max_val: float, bits: int) -> tuple[float, int]:
    """(scale rounded to float32, zero point) of signed codes for a range that is widened to hold 0.

    `scale = (max - min) / (2**bits - 1)`, at least 2**-23; min stands for the least code, `zero_point - min / scale`
    rounded half to even.
    """
    low, high = min(min_val, 0.0), max(max_val, 0.0)
    scale = float(np.float32(max((high - low) / (2**bits - 1), LEAST_SCALE)))
    return scale, int(np.clip(np.rint(-low / scale), 0, 2**bits - 1)) - 2 ** (bits - 1)


@dataclass(frozen=True)
class Convention:
    """How one paper maps a symmetric range to codes."""

    scale: Callable[[Array, Array, int], Array]
    """(min, max, bits) -> scale."""
    low: Callable[[int], int]
    high: Callable[[int], int]
    by_reciprocal: bool = True
    """Codes are rhe(x * (1/scale)); False: rhe(x / scale)."""

    def codes(self, x: Array, scale: Array, bits: int) -> Array:
        with np.errstate(over="ignore", under="ignore"):  # what overflows saturates
            scaled = x * (1.0 / scale) if self.by_reciprocal else x / scale
        return np.clip(np.rint(scaled), self.low(bits), self.high(bits)).astype(np.int64)


def _ivit_scale(low: Array, high: Array, bits: int) -> Array:
    return np.maximum(np.maximum(-low, high) / (2 ** (bits - 1) - 1), LEAST_SCALE)


def _ibert_scale(low: Array, high: Array, bits: int) -> Array:
    return np.maximum(np.maximum(np.abs(low), np.abs(high)), IBERT_LEAST_RANGE) / (2 ** (bits - 1) - 1)


def _fqvit_scale(low: Array, high: Array, bits: int) -> Array:
    return np.maximum(np.maximum(-low, high) / ((2**bits - 1) / 2), LEAST_SCALE)


CONVENTIONS = {
    "ivit": Convention(_ivit_scale, lambda b: -(2 ** (b - 1)), lambda b: 2 ** (b - 1) - 1),
    "ibert": Convention(_ibert_scale, lambda b: -(2 ** (b - 1) - 1), lambda b: 2 ** (b - 1) - 2),
    "fqvit": Convention(_fqvit_scale, lambda b: -(2 ** (b - 1)), lambda b: 2 ** (b - 1) - 1, by_reciprocal=False),
}


def _convention(method: str) -> Convention:
    if not isinstance(method, str) or method not in CONVENTIONS:
        raise IntvitError(f"quantizer method must be one of {', '.join(CONVENTIONS)}, not {method!r}")
    return CONVENTIONS[method]


def _check_bits(bits: Any, most: int) -> int:
    return integer("bits:", bits, 2, most)


def _check_scale(scale: Any, of: str) -> None:
    """A scale by which codes are divided, or by whose reciprocal they are multiplied."""
    with np.errstate(all="ignore"):
        fits = np.isfinite(scale) & (np.asarray(scale) > 0) & np.isfinite(1.0 / np.asarray(scale))
    if not fits.all():
        raise IntvitError(f"{of} must be positive and finite, and so its reciprocal, not {shown(scale)}")


def _finite(name: str, x: Any) -> Array:
    array = reals(name, x)
    if array.size == 0 or not np.isfinite(array).all():
        raise IntvitError(f"{name}: must be finite and not empty")
    return array


CLIPS = tuple(1 - i / 100 for i in range(61))
"""Shares of a row's largest weight that are tried as its range."""


def quantize_weight(
    w: Any, bits: int = 8, *, method: str = "ivit", clip: bool = False, least: Any = 0.0
) -> tuple[Array, Array]:
    """Symmetric per-channel weights: (O, ...) float -> (codes int64 of the same shape, scale (O,) float64).

    `clip`: the range of each channel is the share of its own (`CLIPS`) with the least mean squared rounding error.
    `least`: scales () or (O,) that none may be below, as something else must fit them.
    """
    bits = _check_bits(bits, 16)
    w = _finite("weight", w)
    if not w.ndim:
        raise IntvitError("weight: must have an axis of output channels, and is one number")
    convention, flat = _convention(method), w.reshape(len(w), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    scale = convention.scale(low, high, bits)
    if clip:
        lowest = np.full(len(flat), np.inf)
        for share in CLIPS:
            tried = convention.scale(share * low, share * high, bits)
            error = np.sum((convention.codes(flat, tried[:, None], bits) * tried[:, None] - flat) ** 2, axis=1)
            scale = np.where(error < lowest, tried, scale)
            lowest = np.minimum(lowest, error)
    scale = np.maximum(scale, least)
    return convention.codes(flat, scale[:, None], bits).reshape(w.shape), scale


def quantize_bias(
    b: Any, act_scale: float, w_scale: Any, bits: int = 32, *, method: str = "ivit"
) -> tuple[Array, Array]:
    """Bias (O,) at the accumulator's own scale `w_scale * act_scale`: (codes int64, that scale)."""
    bits, b = _check_bits(bits, 32), _finite("bias", b)
    act, weight = real("bias: activation scale", act_scale), reals("bias: weight scale", w_scale)
    _check_scale(act, "bias: activation scale")
    _check_scale(weight, "bias: weight scale")
    if b.ndim > 1 or weight.shape not in ((), (1,), b.shape):
        raise IntvitError(f"bias: weight scale must be one or {b.shape}, and the bias a vector, not {weight.shape}")
    with np.errstate(over="ignore", under="ignore"):
        scale = np.asarray(weight) * act
    _check_scale(scale, "bias: weight scale times activation scale")
    return _convention(method).codes(b, scale, bits), scale


def quantize_activation(
    x: Any,
    *,
    method: str = "ivit",
    bits: int = 8,
    min_val: float | None = None,
    max_val: float | None = None,
    ptf: bool = False,
) -> tuple[Array, ...]:
    """Per-tensor activations: (codes, scale). FQ-ViT's are unsigned: (codes, scale, zero_point), and with `ptf`
    (power-of-two factors, per channel of the last axis) (codes, scale (C,), zero_point, factor (C,)).

    The range is that of x unless `min_val` and `max_val` say otherwise.
    """
    bits = _check_bits(bits, 16)
    x = _finite("activation", x)
    low = float(x.min()) if min_val is None else real("activation: min_val", min_val)
    high = float(x.max()) if max_val is None else real("activation: max_val", max_val)
    if not low <= high or not math.isfinite(high - low):
        raise IntvitError(f"activation: range must be finite and ordered, not {low}..{high}")
    if ptf and (method != "fqvit" or not x.ndim):
        raise IntvitError("activation: ptf must come with method fqvit and a last axis of channels")
    if method == "fqvit":
        return _fqvit_ptf(x, low, high, bits) if ptf else _fqvit_affine(x, low, high, bits)
    convention = _convention(method)
    scale = convention.scale(np.array(low), np.array(high), bits)
    return convention.codes(x, scale, bits), float(scale)  # type: ignore[return-value]


def _affine(x: Array, scale: Any, zero_point: int, bits: int) -> Array:
    return np.clip(np.rint(x / scale + zero_point), 0, 2**bits - 1)


def _affine_scale(low: float, high: float, bits: int) -> tuple[float, int]:
    """FQ-ViT: `s = (max-min) / (2**bits - 1)`, `zp = clamp(-rhe(min/s))`."""
    scale = max((high - low) / (2**bits - 1), LEAST_SCALE)
    return scale, int(np.clip(-np.rint(low / scale), 0, 2**bits - 1))


def _fqvit_affine(x: Array, low: float, high: float, bits: int) -> tuple[Array, ...]:
    scale, zero_point = _affine_scale(low, high, bits)
    return _affine(x, scale, zero_point, bits).astype(np.int64), scale, zero_point  # type: ignore[return-value]


def _fqvit_ptf(x: Array, low: float, high: float, bits: int) -> tuple[Array, ...]:
    """Per channel the k of the least mean squared error with scale s1 * 2**k; the first minimum wins."""
    widest, zero_point = _affine_scale(low, high, bits)
    finest, rows = widest / PTF_FACTORS[-1], x.reshape(-1, x.shape[-1])
    errors = []
    for factor in PTF_FACTORS:
        scale = finest * factor
        back = (_affine(rows, scale, zero_point, bits) - zero_point) * scale
        with np.errstate(over="ignore"):
            errors.append(np.mean((rows - back) ** 2, axis=0))
        if not np.isfinite(errors[-1]).all():
            raise IntvitError("activation: squares of quantization errors must be finite, and are not")
    factors = np.array(PTF_FACTORS)[np.argmin(np.stack(errors), axis=0)]
    scale = finest * factors
    relative = (factors // factors.min()).astype(np.int64)
    return _affine(x, scale, zero_point, bits).astype(np.int64), scale, zero_point, relative  # type: ignore[return-value]
