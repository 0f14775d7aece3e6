"""Integer operators: the public functions, one signature for both backends.

Each is a method's `lower` (scales to integer constants, the only floats) followed by its integer kernel, or by its
scalar spec with `backend="spec"`. Inputs may have any integer dtype and any leading shape, reductions run over the last
axis; outputs are int64. `real = y_int * out_scale`; out_scale is a float, or float64 (C,) per channel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from intvit import registry
from intvit.errors import IntvitError
from intvit.kernels.arith import as_rows
from intvit.kernels.quantize import quantize_activation, quantize_bias, quantize_weight
from intvit.kernels.requantize import PUBLISHED_SATURATING_WIDTHS, apply_requantize, dyadic
from intvit.method import Method

Array = np.ndarray[Any, Any]
BACKENDS = ("kernel", "spec")


def softmax(
    x_int: Any,
    in_scale: float,
    *,
    method: str,
    out_bits: int,
    exp_range_max: float | None = None,
    mask: Any = None,
    backend: str = "kernel",
) -> tuple[Array, float]:
    """Softmax over the last axis; x (..., N) -> (codes (..., N) int64, out_scale).

    `method` ivit (values below 2**(out_bits-1), scale 2**-(out_bits-1)), ibert (unsigned, scale 2**-out_bits) or fqvit
    (log2 codes of `out_bits` bits: probability 2**-code, -1 for zero; out_scale 1). `exp_range_max`: I-BERT's frozen
    range of the exponent in its own integers, natural by default. `mask` (broadcast against x): True takes no part.
    """
    x = _integers("softmax", x_int)
    m = registry.get("softmax", method)
    params, out_scale = m.lower(_scalar("softmax", in_scale), out_bits=out_bits, exp_range_max=exp_range_max)
    hidden = None if mask is None else np.broadcast_to(np.asarray(mask, np.bool_), x.shape)
    return _apply(m, params, x, backend, hidden), out_scale


def gelu(x_int: Any, in_scale: Any, *, method: str, n: int | None = None, backend: str = "kernel") -> tuple[Array, Any]:
    """GELU; x (..., C) -> (y (..., C) int64, out_scale). I-BERT takes per-channel scales; its out_scale is negative.

    I-ViT's outputs depend on the other channels of the token. `n` is I-BERT's exponent, 14 (published) by default.
    """
    x = _integers("gelu", x_int)
    m = registry.get("gelu", method)
    params, out_scale = m.lower(in_scale, n=n)
    return _apply(m, params, x, backend), out_scale


def layernorm(
    x_int: Any,
    in_scale: Any,
    gamma: Any,
    beta: Any,
    *,
    method: str,
    shift: int = 0,
    factor: Any = None,
    out_scale: float | None = None,
    backend: str = "kernel",
) -> tuple[Array, Any]:
    """LayerNorm over the last axis; x (..., C) -> (y int64, out_scale), y neither clamped nor requantized.

    ivit and ibert: out_scale (C,) carries gamma and its sign; `shift` is I-BERT's frozen shift. fqvit: `factor` are the
    power-of-two factors of the input scale, `out_scale` the next quantizer's scale, which is also returned.
    """
    x = _integers("layernorm", x_int)
    m = registry.get("layernorm", method)
    scale = float(np.min(np.asarray(in_scale, np.float64)))
    params, result = m.lower(scale, gamma=gamma, beta=beta, shift=shift, factor=factor, out_scale=out_scale)
    if x.shape[-1] != np.size(gamma):
        raise IntvitError(f"layernorm: gamma must have {x.shape[-1]} channels, not {np.size(gamma)}")
    return _apply(m, params, x, backend), result


def requantize(
    x_int: Any,
    in_scale: Any,
    out_scale: float,
    bits: int,
    *,
    residual: Any = None,
    residual_scale: Any = None,
    clamp: bool = True,
    backend: str = "kernel",
) -> Array:
    """Dyadic requantization, round half to even: x (..., C) at `in_scale` (one or C) to codes at `out_scale`.

    Two roundings, one per term, then the sum. The published rule saturates at 4, 8, 16 and 32 bits and at no other
    width; `clamp=False` never saturates (beyond s64). Products are exact.
    """
    x = _integers("requantize", x_int)
    m, e = dyadic(in_scale, out_scale)
    extra: dict[str, Any] = {}
    if residual is not None:
        if residual_scale is None:
            raise IntvitError("requantize: residual must come with residual_scale")
        rm, re = dyadic(residual_scale, out_scale)
        others = np.broadcast_to(_integers("requantize", residual), x.shape)
        extra = {"residual": others, "residual_m": rm, "residual_e": re}
    for constants in (m, extra.get("residual_m", m)):
        if len(constants) not in (1, x.shape[-1] if x.ndim else 1):
            raise IntvitError(f"requantize: scale must be one or {x.shape[-1]}, not {len(constants)}")
    width = bits if clamp and bits in PUBLISHED_SATURATING_WIDTHS else None
    if _backend(backend) == "kernel":
        return apply_requantize(x, m, e, width, **extra)
    return _spec_requantize(x, m, e, width, **extra)


def _spec_requantize(x: Array, m: Array, e: Array, bits: int | None, **extra: Array) -> Array:
    from intvit.spec.requantize import requantize as spec

    shape = x.shape or (1,)

    def column(values: Array) -> list[int]:
        return [int(v) for v in np.broadcast_to(values, shape).reshape(-1)]

    columns = [column(x), column(m), column(e)]
    if extra:
        columns += [column(extra[key]) for key in ("residual", "residual_m", "residual_e")]
        result = [spec(a, b, c, bits, residual=r, residual_m=rm, residual_e=re) for a, b, c, r, rm, re in zip(*columns, strict=True)]  # fmt: skip  # noqa: E501
    else:
        result = [spec(a, b, c, bits) for a, b, c in zip(*columns, strict=True)]
    return np.array(result, np.int64).reshape(x.shape)


def log2_matmul(q: Any, v_int: Any, v_scale: float, *, backend: str = "kernel") -> tuple[Array, float]:
    """FQ-ViT attention times V: codes q (..., R, K), values v (..., K, C) -> (y int64, v_scale * 2**-15)."""
    codes, values = _integers("log2_matmul", q), _integers("log2_matmul", v_int)
    if _backend(backend) == "kernel":
        from intvit.kernels.matmul import log2_matmul_codes

        y = log2_matmul_codes(codes, values).astype(np.int64)
    else:
        from intvit.spec.matmul import log2_matmul as spec

        lead = np.broadcast_shapes(codes.shape[:-2], values.shape[:-2])
        left = np.broadcast_to(codes, (*lead, *codes.shape[-2:])).reshape(-1, *codes.shape[-2:])
        right = np.broadcast_to(values, (*lead, *values.shape[-2:])).reshape(-1, *values.shape[-2:])
        rows = [spec(a.tolist(), b.tolist()) for a, b in zip(left, right, strict=True)]
        y = np.array(rows, np.int64).reshape(*lead, codes.shape[-2], values.shape[-1])
    return y, v_scale * 2.0**-15


def layernorm_shift(x_int: Any, shift: int = 0) -> int:
    """I-BERT's calibration rule: the shift that a batch of rows (..., C) asks for, never below the one it has.

    If the largest sum of squared deviations, after `shift`, reaches 2**32: max over rows of
    ceil(log2 sqrt(unshifted sum / 2**32)).
    """
    rows = as_rows(_integers("layernorm_shift", x_int))
    largest = largest_shifted = 0
    for row in rows.tolist():
        n = len(row)
        total = sum(row)
        mean, rest = divmod(total, n)
        mean += 2 * rest > n or (2 * rest == n and mean % 2 == 1)
        largest = max(largest, sum((x - mean) ** 2 for x in row))
        largest_shifted = max(largest_shifted, sum(((x - mean) >> shift) ** 2 for x in row))
    if largest_shifted < 2**32:
        return shift
    return max(shift, variance_shift(largest))


def variance_shift(variance: float) -> int:
    """ceil(log2 sqrt(variance / 2**32)), at least 0."""
    return max(0, math.ceil(0.5 * (math.log2(variance) - 32))) if variance > 0 else 0


# ------------------------------------------------------------------------------------------ borders


def _integers(name: str, x: Any) -> Array:
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise IntvitError(f"{name}: input must be integers, not {array.dtype}")
    if array.dtype == np.uint64:
        raise IntvitError(f"{name}: input must fit int64, not uint64")
    return array


def _scalar(name: str, scale: Any) -> float:
    if np.size(scale) != 1:
        raise IntvitError(f"{name}: input scale must be one number, not {np.size(scale)}")
    return float(np.asarray(scale, np.float64).reshape(()))


def _backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return backend


def _apply(m: Method, params: Any, x: Array, backend: str, mask: Array | None = None) -> Array:
    rows = as_rows(x)
    hidden = None if mask is None else np.ascontiguousarray(mask.reshape(rows.shape))
    if _backend(backend) == "kernel":
        run = m.kernel(params)
        y = run(rows) if hidden is None else run(rows, hidden)
        return y.reshape(x.shape)
    lists = rows.tolist()
    if hidden is None:
        result = [m.spec(row, params) for row in lists]
    else:
        result = [m.spec(row, params, h) for row, h in zip(lists, hidden.tolist(), strict=True)]
    return np.array(result, np.int64).reshape(x.shape)


__all__ = [
    "gelu",
    "layernorm",
    "layernorm_shift",
    "log2_matmul",
    "quantize_activation",
    "quantize_bias",
    "quantize_weight",
    "requantize",
    "softmax",
]
