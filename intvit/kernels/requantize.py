"""Dyadic requantization, fast: one pass over an accumulator, constants per channel or one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import INT64_MAX, INT64_MIN, doubled_high, kernel, rhe_product, rhe_shift, saturate
from intvit.kernels.border import SIGNED, border, real, reals, shown

WIDE_LIMIT = 2**61
PUBLISHED_SATURATING_WIDTHS = (4, 8, 16, 32)


def dyadic(in_scale: Any, out_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(m, e) int64 with `in_scale / float32(out_scale) = m / 2**e` to 31 bits, per channel if in_scale is.

    m is the nearest integer to f * 2**31, ties away from zero, 2**30 <= |m| <= 2**31: both ends occur. A zero ratio
    gives m = 0. HAWQ-V3; docs/quantization.md, "Requantization".
    """
    scales = np.atleast_1d(reals("requantize: input scale", in_scale))
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        target = float(np.float32(real("requantize: output scale", out_scale)))
        ratio = scales / target
    if not np.isfinite(ratio).all() or not np.isfinite(target) or scales.ndim > 1:
        raise IntvitError(
            "requantize: scales must be one number or one per channel, finite, and so their ratio to the output scale, "
            f"not {shown(in_scale)} to {shown(out_scale)}"
        )
    mantissa, exponent = np.frexp(ratio)
    scaled = mantissa * 2.0**31
    m = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled).astype(np.int64)
    return m, 31 - exponent.astype(np.int64)


@border(x="int32 R C", m="int64 M=C|1", e="int64 M", out=f"{SIGNED} R C")
@kernel
def _narrow(x, m, e, bits, out):
    """|x| < 2**31, so that x*m fits one word: |x*m| <= 2**62, equality only for x = -2**31."""
    rows, cols = x.shape
    step = 1 if m.shape[0] > 1 else 0
    for i in range(rows):
        for j in range(cols):
            k = j * step
            product = np.int64(x[i, j]) * m[k]
            out[i, j] = saturate(rhe_shift(product, e[k]), bits)


@border(x="int64 R C", m="int64 M=C|1", e="int64 M", out=f"{SIGNED} R C")
@kernel
def _wide(x, m, e, bits, out):
    """Any int64 x: products in two words."""
    rows, cols = x.shape
    step = 1 if m.shape[0] > 1 else 0
    for i in range(rows):
        for j in range(cols):
            k = j * step
            out[i, j] = saturate(rhe_product(np.int64(x[i, j]), m[k], e[k]), bits)


@border(
    x="int32|int64 R C", m="int64 M=C|1", e="int64 M", residual="int32|int64 R C", residual_m="int64 N=C|1",
    residual_e="int64 N", out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def _residual(x, m, e, residual, residual_m, residual_e, bits, out):
    """Two rounded terms, one addition, saturated: at s64 each, then at `bits`."""
    rows, cols = x.shape
    step = 1 if m.shape[0] > 1 else 0
    residual_step = 1 if residual_m.shape[0] > 1 else 0
    for i in range(rows):
        for j in range(cols):
            k, n = j * step, j * residual_step
            a = rhe_product(np.int64(x[i, j]), m[k], e[k])
            b = rhe_product(np.int64(residual[i, j]), residual_m[n], residual_e[n])
            out[i, j] = saturate(add_saturating(a, b), bits)


@kernel
def round_shift(product, half, e):
    """rhe(product, 2**e) without a branch: 1 <= e <= 62, half = 2**(e-1) - 1, |product| <= 2**62."""
    return (product + half + ((product >> e) & 1)) >> e


@border(x="int8|int16|int32 R C", out=f"{SIGNED} R C")
@kernel
def _regular(x, m, e, half, low, high, out):
    """One constant for all, `regular`: |x| <= 2**31, |m| < 2**31, 1 <= e <= 62."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = min(max(round_shift(np.int64(x[i, j]) * m, half, e), low), high)


@border(x="int8|int16|int32 R C", m="int64 C", e="int64 C", half="int64 C", out=f"{SIGNED} R C")
@kernel
def _regular_channels(x, m, e, half, low, high, out):
    """As `_regular`, constants per channel."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = min(max(round_shift(np.int64(x[i, j]) * m[j], half[j], e[j]), low), high)


@kernel
def wide_round_shift(x, m, half, e):
    """rhe(x * m, 2**(e + 31)) without a branch: |x| < 2**61, |m| < 2**31, 2 <= e <= 62, half = 2**(e-1) - 1."""
    return round_shift(doubled_high(x, m), half, e)


@border(x=f"{SIGNED} R C", out=f"{SIGNED} R C")
@kernel
def _clamp(x, low, high, out):
    """A ratio of 1: nothing but saturation."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = min(max(np.int64(x[i, j]), low), high)


@border(x="int64 R C", limit="int64 C", m="int64 C", e="int64 C", half="int64 C", out=f"{SIGNED} R C")
@kernel
def _regular_clamped(x, limit, m, e, half, low, high, out):
    """As `_regular_channels` for any int64 x: beyond limit = 2**62 // |m| all saturates, as e <= 62 - bits."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            clamped = min(max(x[i, j], -limit[j]), limit[j])
            out[i, j] = min(max(round_shift(clamped * m[j], half[j], e[j]), low), high)


@border(x="int64 R C", m="int64 C", e="int64 C", half="int64 C", out=f"{SIGNED} R C")
@kernel
def _regular_wide(x, m, e, half, low, high, out):
    """As `_regular_channels`, |x| < 2**61 and ratios m / 2**(e + 31)."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = min(max(wide_round_shift(x[i, j], m[j], half[j], e[j]), low), high)


@border(x="int8|int16|int32 R C", residual="int8|int16|int32 R C", out=f"{SIGNED} R C")
@kernel
def _regular_residual(x, m, e, half, residual, residual_m, residual_e, residual_half, low, high, out):
    """Two terms, each with one constant, `regular`."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            a = round_shift(np.int64(x[i, j]) * m, half, e)
            b = round_shift(np.int64(residual[i, j]) * residual_m, residual_half, residual_e)
            out[i, j] = min(max(a + b, low), high)


@border(x="int8|int16|int32 R C", addend="int32 A C", out=f"{SIGNED} R C")
@kernel
def _regular_constant(x, m, e, half, addend, low, high, out):
    """As `_regular`, plus a constant that is already at the output's scale; its rows repeat."""
    for i in range(x.shape[0]):
        k = i % addend.shape[0]
        for j in range(x.shape[1]):
            out[i, j] = min(max(round_shift(np.int64(x[i, j]) * m, half, e) + addend[k, j], low), high)


def prepare_constant(
    m: np.ndarray, e: np.ndarray, bits: int, constant: np.ndarray, constant_m: np.ndarray, constant_e: np.ndarray,
    out_dtype: Any,
) -> Any:  # fmt: skip
    """A function x (..., R, C) -> `saturate(rhe(x*m, 2**e) + rhe(constant*m', 2**e'))`; None if not `regular`.

    `constant` (..., R, C) is requantized once; leading axes of x repeat it.
    """
    first = regular(m, e)
    addend = apply_requantize(constant, constant_m, constant_e, None)
    addend = addend.reshape(-1, addend.shape[-1])
    narrow = np.ascontiguousarray(addend, np.int32)
    if first is None or len(m) > 1 or not np.array_equal(narrow, addend):
        return None
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def run(x: np.ndarray) -> np.ndarray:
        if x.shape[x.ndim - constant.ndim :] != constant.shape:
            raise IntvitError(f"requantize: constant must have the last axes of x {x.shape}, not {constant.shape}")
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        out = np.empty(rows.shape, out_dtype)
        _regular_constant(rows, *(int(v[0]) for v in first), narrow, low, high, out)
        return out.reshape(x.shape)

    return run


def regular(m: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(m, e, half) for `round_shift`: the same ratios with |m| < 2**31; None if some e leaves 1..62."""
    full = np.abs(m) == 2**31
    m, e = np.where(full, m >> 1, m), np.where(full, e - 1, e)
    if e.min() < 1 or e.max() > 62:
        return None
    return m.astype(np.int64), e.astype(np.int64), (np.int64(1) << (e.astype(np.int64) - 1)) - 1


@kernel
def add_saturating(a, b):
    """a + b, saturated at s64."""
    if b > 0:
        return a + b if a <= INT64_MAX - b else np.int64(INT64_MAX)
    return a + b if a >= INT64_MIN - b else np.int64(INT64_MIN)


def _border(x: np.ndarray) -> np.ndarray:
    """Rows for a kernel: int32 and int64 as they are, narrower ones widened."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return np.ascontiguousarray(rows, np.int64 if x.dtype.itemsize > 4 else np.int32)


def _columns(values: tuple[np.ndarray, ...], columns: int) -> list[np.ndarray]:
    """Constants, one or one per column, as one per column."""
    return [v if len(v) == columns else np.ascontiguousarray(np.broadcast_to(v, columns)) for v in values]


def _check_operand(x: np.ndarray, m: Any, e: Any) -> None:
    if x.dtype.kind != "i" or m.dtype != np.int64 or e.dtype != np.int64:
        raise IntvitError(f"requantize: x must be signed, m and e int64, not {x.dtype}, {m.dtype}, {e.dtype}")
    if m.ndim != 1 or m.shape != e.shape or len(m) not in (1, x.shape[-1]):
        raise IntvitError(f"requantize: m and e must be one or {x.shape[-1]}, not {m.shape} and {e.shape}")


def apply_requantize(
    x: np.ndarray,
    m: np.ndarray,
    e: np.ndarray,
    bits: int | None,
    *,
    residual: np.ndarray | None = None,
    residual_m: np.ndarray | None = None,
    residual_e: np.ndarray | None = None,
    out_dtype: Any = np.int64,
) -> np.ndarray:
    """`saturate(rhe(x*m, 2**e) [+ rhe(residual*m', 2**e')])` over (..., C); m, e of length 1 or C.

    Saturates at every width; `bits` None at s64 only. The result has `out_dtype`, which must hold `bits`. Integers are
    signed: of 32 unsigned bits no fast form could hold all.
    """
    width = 64 if bits is None else bits
    shape = x.shape
    if x.ndim == 0:
        x = x.reshape(1)
    _check_operand(x, m, e)
    if residual is not None:
        _check_operand(np.broadcast_to(residual, x.shape), residual_m, residual_e)
    if 8 * np.dtype(out_dtype).itemsize < width:
        raise IntvitError(f"requantize: {np.dtype(out_dtype)} must hold {width} bits, and does not")
    out = np.empty((math.prod(x.shape[:-1]), x.shape[-1]), out_dtype)
    if _apply_regular(x, m, e, width, residual, residual_m, residual_e, out):
        return out.reshape(shape)
    rows = _border(x)
    if residual is not None:
        assert residual_m is not None
        assert residual_e is not None
        _residual(rows, m, e, _border(np.broadcast_to(residual, x.shape)), residual_m, residual_e, width, out)
    elif rows.dtype == np.int32:
        _narrow(rows, m, e, width, out)
    else:
        _wide(rows, m, e, width, out)
    return out.reshape(shape)


def _apply_regular(
    x: np.ndarray, m: np.ndarray, e: np.ndarray, bits: int, residual: Any, residual_m: Any, residual_e: Any,
    out: np.ndarray,
) -> bool:  # fmt: skip
    """The branch-free kernels, where their bounds hold: operands of 32 bits, shifts in 1..62. False if they do not."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    rows = np.ascontiguousarray(x.reshape(out.shape))
    if residual is None and bool(np.all((m == 1 << 30) & (e == 30))):
        _clamp(rows, low, high, out)
        return True
    if x.dtype == np.int64 and residual is None:
        plain = regular(m, e)
        if plain is not None and plain[1].max() <= 62 - bits:
            limit = 2**62 // np.maximum(np.abs(plain[0]), 1)
            _regular_clamped(rows, *_columns((limit, *plain), rows.shape[1]), low, high, out)
            return True
    if x.dtype == np.int64:
        shifted = regular(m, e - 31)
        small = rows.size == 0 or (int(rows.min()) > -WIDE_LIMIT and int(rows.max()) < WIDE_LIMIT)
        if shifted is None or shifted[1].min() < 2 or residual is not None or not small:
            return False
        _regular_wide(rows, *_columns(shifted, rows.shape[1]), low, high, out)
        return True
    first = regular(m, e)
    if first is None:
        return False
    if residual is None and len(m) == 1:
        _regular(rows, *(int(v[0]) for v in first), low, high, out)
        return True
    if residual is None:
        _regular_channels(rows, *first, low, high, out)
        return True
    second = regular(residual_m, residual_e)
    if second is None or residual.dtype == np.int64 or max(len(m), len(residual_m)) > 1:
        return False
    other = np.ascontiguousarray(np.broadcast_to(residual, x.shape).reshape(out.shape))
    _regular_residual(
        rows, *(int(v[0]) for v in first), other, *(int(v[0]) for v in second), low, high, out
    )  # fmt: skip
    return True
