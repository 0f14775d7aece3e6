"""LayerNorm methods: `lower` from real scales and affine parameters, Numba kernels over rows, the Method values.

Bounds that the kernels rely on, checked at the border: C * (max - min)**2 < 2**62, so that variances fit int64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import (
    bit_length,
    isqrt,
    kernel,
    rhe_div,
    rhe_product,
    rhe_shift,
    row_runner,
    truncated_div,
    wrap32,
)
from intvit.kernels.border import SIGNED, border, integer, reals, shown
from intvit.kernels.method import Accurate, LayerNormForms, Method
from intvit.kernels.softmax import check_rows, check_scale
from intvit.spec import layernorm as spec

VARIANCE_MAX = 2**62
UNIT = 2.0**30
BIAS_LIMIT = 2.0**61
SIGN, SLOPE, SLOPE_EXP, GAIN, GAIN_EXP, BIAS, BIAS_EXP = range(7)
"""The rows of FQ-ViT's constants."""
POWER, GAIN_LOW = 2, 4
"""The other rows of their leading bits, which have SIGN, SLOPE and GAIN too."""
REPLACED_BIAS = 2.0**40
LEAST_GAMMA = 2.0**-23


def _affine(operator: str, gamma: Any, beta: Any) -> tuple[np.ndarray, np.ndarray]:
    g, b = (np.atleast_1d(reals(f"{operator}: {name}", v)) for name, v in (("gamma", gamma), ("beta", beta)))
    if g.shape != b.shape or g.ndim != 1 or not g.size:
        raise IntvitError(f"{operator}: gamma and beta must be equal vectors, not {g.shape} and {b.shape}")
    if not (np.isfinite(g).all() and np.isfinite(b).all()):
        raise IntvitError(f"{operator}: gamma and beta must be finite")
    return g, b


def integer_bias(gamma: Any, beta: Any) -> tuple[tuple[int, ...], np.ndarray]:
    """(bias, out_scale) of I-ViT's and I-BERT's LayerNorm: floor((beta/gamma) / u) and u*gamma, u = sqrt(C) / 2**30.

    A gamma of 0, or one so small that |bias| reaches 2**61, has no such form: it is replaced by the step at which
    |bias| = 2**40 (beta 0: by 2**-23), so that the output is beta with the normalised part below 2**-9 of it.
    """
    g, b = _affine("layernorm", gamma, beta)
    unit = float(np.float32(math.sqrt(len(g)))) / UNIT
    with np.errstate(all="ignore"):
        raw = (b / g) / unit
    lost = ~np.isfinite(raw) | (np.abs(raw) >= BIAS_LIMIT) | (g == 0)
    with np.errstate(under="ignore"):
        step = np.abs(b) / (unit * REPLACED_BIAS)
    step = np.where(step == 0, LEAST_GAMMA, step)
    g = np.where(lost, np.where(g < 0, -step, step), g)
    bias = np.floor((b / g) / unit)
    return tuple(int(v) for v in bias), unit * g


def variance_shift(variance: float) -> int:
    """I-BERT's shift: the least s >= 0 with variance / 4**s <= 2**32, ceil(log2 sqrt(variance / 2**32)) if positive."""
    shift = 0
    while variance > 2.0 ** (32 + 2 * shift):
        shift += 1
    return shift


def check_variance(operator: str, rows: np.ndarray) -> None:
    """The border of every LayerNorm kernel: C * (max - min)**2 < 2**62."""
    check_rows(operator, rows, 2**40)
    spread = int(rows.max()) - int(rows.min()) if rows.size else 0
    if rows.shape[1] * spread**2 >= VARIANCE_MAX:
        raise IntvitError(
            f"{operator}: inputs must keep C * (max - min)**2 below 2**62, not C {rows.shape[1]}, spread {spread}"
        )


# ------------------------------------------------------------------------------------------- I-ViT


@kernel
def row_mean(rows, i):
    total = 0
    for j in range(rows.shape[1]):
        total += rows[i, j]
    return rhe_div(total, rows.shape[1])


@border(rows=f"{SIGNED} R C", bias="int64 C", out=f"{SIGNED} R C")
@kernel
def _ivit(rows, bias, out):
    for i in range(rows.shape[0]):
        mean = row_mean(rows, i)
        var = 0
        for j in range(rows.shape[1]):
            d = rows[i, j] - mean
            var += d * d
        k = 65536
        for _ in range(10):
            k = (k + var // k) >> 1
        factor = 2147483647 // k
        for j in range(rows.shape[1]):
            out[i, j] = (((rows[i, j] - mean) * factor) >> 1) + bias[j]


def _bias_lower(params: Any) -> Any:
    def lower(in_scale: float, *, gamma: Any, beta: Any) -> tuple[Any, np.ndarray]:
        check_scale("layernorm", in_scale)
        bias, scale = integer_bias(gamma, beta)
        return params(bias), scale

    return lower


def _ibert_lower(in_scale: float, *, gamma: Any, beta: Any, shift: int = 0) -> tuple[Any, np.ndarray]:
    check_scale("layernorm", in_scale)
    shift = integer("layernorm: shift", shift, 0, 31)
    bias, scale = integer_bias(gamma, beta)
    return spec.IbertLayerNorm(bias, shift), scale


def _ivit_kernel(p: spec.IvitLayerNorm) -> Any:
    return row_runner(partial(check_variance, "layernorm ivit"), _ivit, np.array(p.bias, np.int64))


def _bias_bound(p: Any, x_max: int, n_channels: int) -> int:
    """|d * F| <= 2**31 before the halving, for every row."""
    return int(2**30 + max(abs(b) for b in p.bias))


# ------------------------------------------------------------------------------------------ I-BERT


@border(rows=f"{SIGNED} R C", bias="int64 C", out=f"{SIGNED} R C")
@kernel
def _ibert(rows, bias, shift, out):
    for i in range(rows.shape[0]):
        mean = row_mean(rows, i)
        var = 0
        for j in range(rows.shape[1]):
            d = (rows[i, j] - mean) >> shift
            var += d * d
        root = isqrt(var) << shift
        factor = 2147483648 // root if root > 0 else 0
        for j in range(rows.shape[1]):
            out[i, j] = (((rows[i, j] - mean) * factor) >> 1) + bias[j]


def _ibert_kernel(p: spec.IbertLayerNorm) -> Any:
    return row_runner(partial(check_variance, "layernorm ibert"), _ibert, np.array(p.bias, np.int64), p.shift)


def _ibert_bound(p: spec.IbertLayerNorm, x_max: int, n_channels: int) -> int | None:
    """d * F < 2**32 - 2**(31 - shift) before the halving: a root taken after a shift misses less than 2**shift of a d.

    docs/prove.md, "LayerNorm".
    """
    return int(2**31 - (2**30 >> p.shift) + max(abs(b) for b in p.bias))


# ------------------------------------------------------------------------------------------ FQ-ViT


@kernel
def product_high(a, b):
    """floor(a * b / 2**62) for 0 <= a, b < 2**62, in 31-bit halves."""
    a_high, a_low = a >> 31, a & 0x7FFFFFFF
    b_high, b_low = b >> 31, b & 0x7FFFFFFF
    middle = a_high * b_low + a_low * b_high + ((a_low * b_low) >> 31)
    return a_high * b_high + (middle >> 31)


@kernel
def inverse_sqrt(value):
    """(J, k): 1/sqrt(value) = J / 2**k, J of 61 bits. Every term below stays under 2**62."""
    shift = 62 - bit_length(value)
    shift -= shift & 1
    scaled = value << shift
    root = isqrt(scaled)
    fraction = ((scaled - root * root) << 30) // (2 * root)
    reciprocal = 2305843009213693952 // root
    rest = 2305843009213693952 - reciprocal * root
    error = (rest << 30) - reciprocal * fraction
    return (reciprocal << 30) + rhe_product(error, reciprocal, 61), 91 - (shift >> 1)


@kernel
def rounded(value, shift):
    """rhe(value, 2**shift) for |value| <= 2**61 and 0 <= shift <= 62, without a branch; from 62 on it is 0."""
    return (value + (((1 << shift) - 1) >> 1) + ((value >> shift) & min(shift, 1))) >> shift


@kernel
def clamped_offset(value):
    return min(max(value, -1152921504606846976), 1152921504606846976)


@kernel
def _fqvit_row(rows, i, factor, total, inverse, exponent, constants, out):
    """Row i for whatever constants: per channel an 8-bit multiplier m / 2**power and an offset of `guard` more bits.

    Nonzero slopes, gains and biases have 61 bits, so that a negative shift of one is beyond every clamp.
    """
    for j in range(rows.shape[1]):
        sign, bias, bias_exp = constants[SIGN, j], constants[BIAS, j], constants[BIAS_EXP, j]
        product = product_high(constants[SLOPE, j], inverse)
        product_exp = constants[SLOPE_EXP, j] + exponent - 62
        power = min(max(8 - bit_length(product) + product_exp, 0), 31)  # 31 for a gamma of 0
        m = min(product >> min(max(product_exp - power, 0), 62), 255)
        guard = min(max(bias_exp - power - 1, 0), 24)
        slant = sign * product_high(constants[GAIN, j], inverse)
        u = clamped_offset(rhe_product(slant, total, constants[GAIN_EXP, j] + exponent - 62 - power - guard))
        b = clamped_offset(rounded(bias, min(max(bias_exp - power - guard, 0), 62)))
        out[i, j] = rounded(sign * m * rows[i, j] * factor[j] + rounded(b - u, guard), power)


@kernel
def rounded32(value, shift):
    """rhe(value, 2**shift) for |value| < 2**30 and 1 <= shift <= 31, in 32-bit words."""
    odd = np.int32(np.int32(value >> (shift & 31)) & 1)
    half = np.int32(np.int32(1 << ((shift - 1) & 31)) - 1)
    return np.int32(np.int32(value + half) + odd) >> (shift & 31)


@kernel
def _fqvit_leading_row(rows, i, factor, total, inverse, exponent, words, longs, gap, m, offset, out):
    """Row i from the leading bits of its constants; False, with `out` undefined, where those leave a doubt.

    `_leading` says what must hold. The product slope * inverse has 61 + top bits and is known to 2**32, what is cut
    from the two; its leading 8 bits are the multiplier. The offset is taken in 2**-22 and known to 8 of these: what is
    cut from the mean's word times gain (2), from that product (2), from gain (1), from both at the exponent (1) and
    from the bias (1), and the guard bits of the definition (1/4). Where the two ends of what is known round to
    different integers, there is a doubt: a tie always is one. Few arrays meet in a loop: compilers give up vectorizing
    where too many might overlap.
    """
    n = rows.shape[1]
    leading = np.int32(min(inverse >> 30, 2147483647))
    word = (inverse >> 32) * total + (((inverse & 0xFFFFFFFF) * total) >> 32)
    high, low = np.int32(word >> 30), np.int32(word & 0x3FFFFFFF)
    doubt, offset_doubt = np.int64(0), np.int64(0)
    for j in range(n):
        product = np.int64(words[SLOPE, j]) * np.int64(leading)
        doubt |= product ^ (product + 4294967296)
        m[j] = product >> 53
    if doubt >> 53 != 0:
        return False
    for j in range(n):
        top = np.int64(m[j]) >> 8
        cross = np.int64(words[GAIN, j]) * np.int64(low) + np.int64(words[GAIN_LOW, j]) * np.int64(high)
        mean = np.int64(words[GAIN, j]) * np.int64(high) + (cross >> 30)
        y = (longs[0, j] >> (longs[1, j] + top - exponent)) - (mean >> (gap + top)) + 2097144
        offset_doubt |= y ^ (y + 16)
        offset[j] = y >> 22
    if offset_doubt >> 22 != 0:
        return False
    shift = np.int32(exponent)
    for j in range(n):
        bit = np.int32(m[j] >> 8)
        term = np.int32(np.int32(np.int32(m[j] >> (bit & 1)) * factor[j]) * np.int32(rows[i, j]))
        power = np.int32(np.int32(words[POWER, j] + shift) - bit)
        out[i, j] = words[SIGN, j] * rounded32(np.int32(term + offset[j]), power)
    return True


@border(
    rows=f"{SIGNED} R C", factor="int16 C", constants="int64 7 C", words="int32 5 C", longs="int64 2 C",
    out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def _fqvit(rows, factor, constants, words, longs, gap, least, most, room, out):
    """`room`: the least bias_exp - power of a channel, or NO_ROOM."""
    n = rows.shape[1]
    m, offset = np.empty(n, np.int32), np.empty(n, np.int32)
    for i in range(rows.shape[0]):
        total, squares = 0, 0
        for j in range(n):
            x = rows[i, j] * factor[j]
            total += x
            squares += x * x
        spread = n * squares - total * total
        if spread == 0:
            for j in range(n):
                out[i, j] = rhe_shift(constants[BIAS, j], constants[BIAS_EXP, j])
            continue
        inverse, exponent = inverse_sqrt(spread)
        leads = least + exponent >= 2 and most + exponent <= 31 and room - exponent >= 33
        if not leads or not _fqvit_leading_row(
            rows, i, factor, total, inverse, exponent, words, longs, gap, m, offset, out
        ):
            _fqvit_row(rows, i, factor, total, inverse, exponent, constants, out)


def _mantissa(values: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(m, k) with values = m / 2**k, |m| of 61 bits; zeros have m = 0, k = 61."""
    fraction, exponent = np.frexp(values)
    m = np.rint(fraction * 2.0**61).astype(np.int64)
    return tuple(int(v) for v in m), tuple(61 - int(v) for v in exponent)


def _fqvit_lower(
    in_scale: float, *, gamma: Any, beta: Any, factor: Any = None, out_scale: Any = None
) -> tuple[Any, Any]:
    """`out_scale`: of the next quantizer, one or per channel (required). `factor`: powers of two of the input scale."""
    g, b = _affine("layernorm fqvit", gamma, beta)
    check_scale("layernorm fqvit", in_scale)
    target = reals("layernorm fqvit: out_scale", math.nan if out_scale is None else out_scale)
    if target.shape not in ((), g.shape) or not (np.isfinite(target).all() and np.all(target > 0)):
        raise IntvitError(f"layernorm fqvit: out_scale must be the next quantizer's scale, not {shown(out_scale)}")
    factors = np.ones(len(g), np.int64) if factor is None else np.asarray(factor)
    if factors.dtype.kind not in "iu" or factors.shape != g.shape or factors.min() < 1 or factors.max() > 2**8:
        raise IntvitError(f"layernorm fqvit: factor must be {len(g)} integers in 1..256, not {shown(factor)}")
    with np.errstate(over="ignore", under="ignore"):
        offsets, gains = b / target, np.abs(g) / target
        slopes = np.abs(g) * len(g) / target
    if not (np.isfinite(offsets).all() and np.isfinite(slopes).all()):
        raise IntvitError(
            f"layernorm fqvit: out_scale must keep gamma and beta over it finite, and {shown(out_scale)} does not"
        )
    offset, offset_exp = _mantissa(offsets)
    slope, slope_exp = _mantissa(slopes)
    gain, gain_exp = _mantissa(gains)
    return (
        spec.FqvitLayerNorm(
            factor=tuple(int(v) for v in factors),
            sign=tuple(int(v) for v in np.sign(g)),
            slope=slope,
            slope_exp=slope_exp,
            gain=gain,
            gain_exp=gain_exp,
            bias=offset,
            bias_exp=offset_exp,
        ),
        target if target.ndim else float(target),
    )


LEADING_INPUT = 2**20
NO_ROOM = 0
"""In place of a room where the leading bits of the constants must not be used: less than every exponent needs."""
MOST_ROOM = 144
"""A tiny bias has more and is cut to it: its shift in `_fqvit_leading_row` stays below 63 (exponents are 61..91)."""


def _leading(p: spec.FqvitLayerNorm) -> tuple[Any, ...]:
    """Arguments of `_fqvit` after the constants: their leading bits.

    `_fqvit_leading_row` needs gamma != 0, |x| * factor < 2**20 and bias_exp - power >= 33: then multiplier times
    input, multiplier times mean and offset stay below 2**28 each, and the guard bits are 24, beyond its own 22. It
    clamps no multiplier: 1 <= power <= 31.
    """
    sign, slope, slope_exp, gain, gain_exp, bias, bias_exp = _constants(p)
    power, between = slope_exp - 113, gain_exp - slope_exp  # slope = C * gain, so that between is log2(C), up or down
    gain = gain >> (between - between.min())
    room = bias_exp - power
    beyond = np.maximum(room - MOST_ROOM, 0)
    words = np.array([sign, slope >> 30, power, gain >> 30, gain & (2**30 - 1)])
    longs = np.array([sign * bias >> beyond, room - beyond - 22])
    least_room = int(room.min()) if sign.all() else NO_ROOM
    return words.astype(np.int32), longs, int(between.min()) - 1, int(power.min()), int(power.max()), least_room


def _constants(p: spec.FqvitLayerNorm) -> np.ndarray:
    return np.array([p.sign, p.slope, p.slope_exp, p.gain, p.gain_exp, p.bias, p.bias_exp], np.int64)


def _fqvit_kernel(p: spec.FqvitLayerNorm) -> Any:
    factor = np.array(p.factor, np.int16)
    constants = _constants(p)
    *leading, room = _leading(p)

    def run(rows: np.ndarray, mask: np.ndarray | None = None, kind: Any = np.int64) -> np.ndarray:
        if mask is not None:
            raise IntvitError("layernorm fqvit: only a softmax has a mask")
        out = np.empty(rows.shape, kind)
        if not rows.size:
            return out
        largest = max(-int(rows.min()), int(rows.max())) * max(p.factor)
        if rows.shape[1] ** 2 * largest**2 >= VARIANCE_MAX or rows.shape[1] * largest >= 2**31:
            raise IntvitError(
                f"layernorm fqvit: inputs must keep C * |x| * factor below 2**31, and C {rows.shape[1]}, "
                f"|x| * factor {largest} do not"
            )
        _fqvit(rows, factor, constants, *leading, room if largest < LEADING_INPUT else NO_ROOM, out)
        return out

    return run


# ------------------------------------------------------------------- I-ViT, deployed in 32 bits


@border(rows=f"{SIGNED} R C", bias="int64 C", out=f"{SIGNED} R C")
@kernel
def _ivit_tvm(rows, bias, out):
    for i in range(rows.shape[0]):
        total = 0
        for j in range(rows.shape[1]):
            total = wrap32(total + rows[i, j])
        mean = truncated_div(total, rows.shape[1])
        var = 0
        for j in range(rows.shape[1]):
            d = rows[i, j] - mean
            var = (var + d * d) & 0xFFFFFFFF
        k = 65536
        for _ in range(10):
            k = (k + var // k) >> 1
        factor = 2147483647 // k
        for j in range(rows.shape[1]):
            d = rows[i, j] - mean
            out[i, j] = wrap32(truncated_div(wrap32(d * factor), 2) + bias[j])


def _ivit_tvm_kernel(p: spec.IvitTvmLayerNorm) -> Any:
    return row_runner(partial(check_rows, "layernorm ivit_tvm"), _ivit_tvm, np.array(p.bias, np.int64))


NEWTON_ERROR = 2**-7
"""Of the root, relative: more than an 8-bit output shows."""
LEAST_STATISTIC = 2**14
"""Of I-BERT's shifted rows: its root has seven bits."""
STATISTICS = ("variance", "square_sum")
"""Intermediates of which a norm takes the root."""


def unconverged(params: Any, taps: Any) -> str | None:
    """Of I-LayerNorm: the root of a small or huge sum of squares is not reached from 2**16 in ten steps."""
    (total,) = next(taps[name] for name in STATISTICS if name in taps)
    true, root = math.isqrt(total), taps["root"][0]
    if abs(root - true) <= NEWTON_ERROR * true + 1:
        return None
    return "ten Newton steps must reach the root of the sum of squares, from 2**15 to 2**44, and do not"


def unscaled(params: Any, taps: Any) -> str | None:
    """Of I-BERT's norms: the calibrated shift leaves nothing of a row, or too much of it."""
    (total,) = next(taps[name] for name in STATISTICS if name in taps)
    if total >= 2**32:
        return "the sum of squares must be below 2**32 after the calibrated shift, and is not"
    if params.shift and total < LEAST_STATISTIC:
        return "a row must keep a root of 7 bits after the calibrated shift, and does not"
    return None


IVIT = Method(
    "layernorm", "ivit", 1, spec.IvitLayerNorm, _bias_lower(spec.IvitLayerNorm), spec.ivit, _ivit_kernel,
    "I-LayerNorm: ten Newton steps", "arXiv 2207.01405", bound=_bias_bound,
    fast=LayerNormForms(any_rows=True), accurate=Accurate(input_bits=16), outside=unconverged,
)  # fmt: skip
IBERT = Method(
    "layernorm", "ibert", 1, spec.IbertLayerNorm, _ibert_lower, spec.ibert, _ibert_kernel,
    "exact integer square root, calibrated shift", "arXiv 2101.01321", bound=_ibert_bound,
    fast=LayerNormForms(any_rows=True), accurate=Accurate(input_bits=16), outside=unscaled,
)  # fmt: skip
FQVIT = Method(
    "layernorm", "fqvit", 1, spec.FqvitLayerNorm, _fqvit_lower, spec.fqvit, _fqvit_kernel,
    "8-bit multiplier per channel and row, power-of-two factors", "arXiv 2111.13824", widths=(2, 8),
    fast=LayerNormForms(any_rows=True), stand_ins={"gelu": "ivit"}, accurate=Accurate(input_bits=16),
    derived=spec.fqvit_derived,
)  # fmt: skip
IVIT_TVM = Method(
    "layernorm", "ivit_tvm", 1, spec.IvitTvmLayerNorm, _bias_lower(spec.IvitTvmLayerNorm), spec.ivit_tvm,
    _ivit_tvm_kernel, "I-LayerNorm as deployed in 32-bit words", 'docs/quantization.md, "I-ViT in 32 bits"',
    informative=True, bound=lambda params, x_max, n_channels: 2**31,
)  # fmt: skip
