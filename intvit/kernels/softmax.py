"""Softmax methods: `lower` from real scales, Numba kernels over rows, and the Method values.

Bounds that the kernels rely on (checked in `lower` or at the border): |x| < 2**31, so that differences fit 33 bits;
exponents e < 2**62 / C, so that row sums fit int64.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import (
    INT64_MIN,
    bit_length,
    kernel,
    rhe_div,
    rhe_product,
    saturate,
    truncated_div,
    wrap32,
)
from intvit.kernels.border import SIGNED, border, constants, integer, real, shown
from intvit.kernels.method import Accurate, Method, SoftmaxForms
from intvit.kernels.requantize import dyadic
from intvit.spec import softmax as spec

IVIT_N, IBERT_N, TVM_N = 15, 30, 16
IBERT_A, IBERT_B, IBERT_C = 0.35815147, 0.96963238, 1.0
IBERT_LN2 = -0.6931
X0_MAX = 2**30
RANGE_MIN, RANGE_MAX = 2.0**-100, 2.0**120
"""I-BERT's range of the exponent over 32767 must be a float32."""
EXP_MAX = 2**62
"""Row sums of I-BERT exponents must stay below this, so that they fit int64."""
CODED_SUM_MAX = EXP_MAX // 4
"""Row sums below this keep every word of `code_of` in int64."""
LEAST_SCALE, MOST_SCALE = 2.0**-64, 2.0**300
"""Between these the powers of a scale that a method takes are doubles; each has a narrower limit below."""


def check_scale(operator: str, scale: Any) -> float:
    number = real(f"{operator}: input scale", scale)
    if not (math.isfinite(number) and number > 0):
        raise IntvitError(f"{operator}: input scale must be positive and finite, not {shown(scale)}")
    return number


def check_power_scale(operator: str, scale: Any) -> float:
    """As `check_scale`, for a method that divides by the scale or takes a power of it."""
    number = check_scale(operator, scale)
    if not LEAST_SCALE <= number <= MOST_SCALE:
        raise IntvitError(f"{operator}: input scale must lie in 2**-64..2**300, not {number}")
    return number


def check_bits(operator: str, bits: Any) -> int:
    return integer(f"{operator}: out_bits", bits, 1, 32)


@cache
def no_mask(columns: int) -> np.ndarray:
    return np.zeros((0, columns), np.bool_)


def check_rows(operator: str, x: np.ndarray, limit: int = 2**31) -> None:
    """The border: inputs must lie within the range that the kernel's words were proven for."""
    if x.size and (int(x.min()) < -limit or int(x.max()) >= limit):
        raise IntvitError(f"{operator}: x must lie in -{limit}..{limit - 1}, not {int(x.min())}..{int(x.max())}")


@kernel
def hidden(mask, i, j):
    """True if position (i, j) is masked; an empty mask hides nothing."""
    return mask.shape[0] > 0 and mask[i, j]


@kernel
def row_max(rows, mask, i):
    """Maximum over the positions that are not hidden; INT64_MIN if all are."""
    top = np.int64(INT64_MIN)
    for j in range(rows.shape[1]):
        if not hidden(mask, i, j):
            top = max(top, rows[i, j])
    return top


# ------------------------------------------------------------------------------------------- I-ViT


@kernel
def shift_exp(d, x0, n):
    """About exp(d*scale) * |x0| * 2**n for any d; at least 2**31 when d > 0 makes it astronomically large.

    d <= 0: |x0| < 2**30 and n <= 23 give 2 * |x0| * 2**23 < 2**54.
    """
    t = max(d + (d >> 1) - (d >> 4), n * x0)
    q = t // x0
    r = t - x0 * q
    return ((r - 2 * x0) << min(n - q, 31)) >> 1  # r - 2 * x0 >= 2: the caller's sum clamps beyond a shift of 31


@border(rows="int64 R C", mask="bool R|0 C", out="int64 R C")
@kernel
def _ivit(rows, mask, x0, n, out_bits, out):
    limit = 2147483647
    for i in range(rows.shape[0]):
        top = row_max(rows, mask, i)
        total = 0
        for j in range(rows.shape[1]):
            e = -x0 if hidden(mask, i, j) else shift_exp(rows[i, j] - top, x0, n)
            out[i, j] = e
            total = min(total + e, limit)
        factor = limit // total
        for j in range(rows.shape[1]):
            out[i, j] = (out[i, j] * factor) >> (32 - out_bits)


def _ivit_lower(in_scale: float, *, out_bits: int) -> tuple[Any, float]:
    in_scale, out_bits = check_power_scale("softmax ivit", in_scale), check_bits("softmax ivit", out_bits)
    x0 = math.floor(-1.0 / in_scale)
    if -x0 >= X0_MAX:
        raise IntvitError(f"softmax ivit: input scale must be above {1 / X0_MAX:.3g}, not {in_scale}")
    return spec.IvitSoftmax(x0, IVIT_N, out_bits), 2.0 ** -(out_bits - 1)


def _ivit_kernel(p: spec.IvitSoftmax) -> Any:
    return _runner("softmax ivit", _ivit, p.x0, p.n, p.out_bits)


def _runner(name: str, compiled: Any, *values: Any) -> Any:
    values = constants(name, *values)

    def run(rows: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        check_rows(name, rows)
        out = np.empty(rows.shape, np.int64)
        compiled(rows, no_mask(rows.shape[1]) if mask is None else mask, *values, out)
        return out

    return run


def _ivit_bound(p: spec.IvitSoftmax, x_max: int, n_channels: int) -> int:
    """Below 2**(out_bits-1), unless the sum may clamp: then F = 1 and e itself is shifted."""
    return int(max(2 ** (p.out_bits - 1) - 1, (-p.x0 << p.n) >> (32 - p.out_bits)))


# ------------------------------------------------------------------------------------------ I-BERT


@kernel
def quotient(d, x0, n):
    """How often ln 2 goes into d <= 0, at most n times."""
    return max(d, n * x0) // x0


@kernel
def polynomial(d, x0, b, c, n):
    """I-BERT's i-exp without its last shift: i-exp(d) = polynomial(d) << (n - quotient(d)). At most c < 2**62."""
    d = max(d, n * x0)
    r = d - x0 * (d // x0)
    return max(r * (r + b) + c, 0)


@border(rows="int64 R C", mask="bool R|0 C", out="int64 R C")
@kernel
def _ibert(rows, mask, x0, b, c, n, m, e, out_bits, out):
    for i in range(rows.shape[0]):
        top = row_max(rows, mask, i)
        total = 0
        for j in range(rows.shape[1]):
            d = n * x0 if hidden(mask, i, j) else rows[i, j] - top
            # the exponent may pass 64 bits; its shift goes into the requantization, which is exact either way
            h = saturate(rhe_product(polynomial(d, x0, b, c, n), m, e - (n - quotient(d, x0, n))), 16)
            out[i, j] = h
            total += h
        factor = 4294967296 // max(total, 1)
        for j in range(rows.shape[1]):
            out[i, j] = (out[i, j] * factor) >> (32 - out_bits)


def _polynomial(operator: str, in_scale: float) -> tuple[int, int, int]:
    """x0, b, c of I-BERT's exponent in units of the scale; double arithmetic in the published order."""
    in_scale = check_power_scale(operator, in_scale)
    x0 = math.floor(IBERT_LN2 / in_scale)
    b = math.floor((IBERT_B / IBERT_A) / in_scale)
    c = math.floor((IBERT_C / IBERT_A) / in_scale**2)
    if c >= EXP_MAX:
        raise IntvitError(f"{operator}: input scale must keep the polynomial below 2**62, and {in_scale} does not")
    return x0, b, c


def ibert_lower(in_scale: float, *, out_bits: int, exp_range_max: float | None = None) -> tuple[Any, float]:
    """`exp_range_max` is the calibrated maximum of the exponent in its own integer units; natural: c * 2**30."""
    x0, b, c = _polynomial("softmax ibert", in_scale)
    out_bits = check_bits("softmax ibert", out_bits)
    if c == 0 and exp_range_max is None:
        raise IntvitError(f"softmax ibert: input scale must be below 1.67, or every exponent is 0; not {in_scale}")
    name = "softmax ibert: exp_range_max"
    largest = float(c << IBERT_N) if exp_range_max is None else real(name, exp_range_max)
    if not RANGE_MIN <= largest <= RANGE_MAX:  # not NaN either
        raise IntvitError(f"{name} must lie in 2**-100..2**120, not {shown(exp_range_max)}")
    m, e = dyadic(1.0, largest / 32767)
    return spec.IbertSoftmax(x0, b, c, IBERT_N, int(m[0]), int(e[0]), out_bits), 2.0**-out_bits


def _ibert_kernel(p: spec.IbertSoftmax) -> Any:
    return _runner("softmax ibert", _ibert, p.x0, p.b, p.c, p.n, p.m, p.e, p.out_bits)


def _ibert_bound(p: spec.IbertSoftmax, x_max: int, n_channels: int) -> int:
    """h * (2**32 // sum h) with sum h >= h: the most for a row of one element, its maximum or hidden."""
    alone = [saturate(rhe_product(polynomial(d, p.x0, p.b, p.c, p.n), p.m, p.e - (p.n - quotient(d, p.x0, p.n))), 16)
             for d in (0, p.n * p.x0)]  # fmt: skip
    return int(max((h * (2**32 // max(h, 1))) >> (32 - p.out_bits) for h in alone))


# ------------------------------------------------------------------------------------------ FQ-ViT


@kernel
def log2_code(ratio, bits):
    k = bit_length(ratio) - 1
    if 2 * (ratio - (1 << k)) >= (1 << k):
        k += 1
    return -1 if k >= (1 << bits) else k


@border(rows="int64 R C", mask="bool R|0 C", out="int64 R C")
@kernel
def _fqvit(rows, mask, x0, b, c, n, bits, out):
    for i in range(rows.shape[0]):
        top = row_max(rows, mask, i)
        last = 0
        for j in range(rows.shape[1]):
            last = max(last, n if hidden(mask, i, j) else quotient(rows[i, j] - top, x0, n))
        total = 0
        for j in range(rows.shape[1]):
            d = n * x0 if hidden(mask, i, j) else rows[i, j] - top
            # exponents over their common factor 2**(n - last): the ratio below is the same
            e = polynomial(d, x0, b, c, n) << (last - quotient(d, x0, n))
            out[i, j] = e
            total += e
        for j in range(rows.shape[1]):
            e = out[i, j]
            out[i, j] = -1 if e == 0 else log2_code(rhe_div(total, e), bits)


def _fqvit_lower(in_scale: float, *, out_bits: int) -> tuple[Any, float]:
    """`out_bits` is the width of the codes; out_scale 1: a code is an exponent, not a number."""
    polynomial, bits = _polynomial("softmax fqvit", in_scale), check_bits("softmax fqvit", out_bits)
    return spec.FqvitSoftmax(*polynomial, IBERT_N, bits), 1.0


def _fqvit_kernel(p: spec.FqvitSoftmax) -> Any:
    compiled = _runner("softmax fqvit", _fqvit, p.x0, p.b, p.c, p.n, p.bits)

    def run(rows: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if not rows.size:
            return compiled(rows, mask)
        spread = int(rows.max()) - int(rows.min())
        last = p.n if mask is not None else min(p.n, spread // -p.x0 + 1)
        if rows.shape[1] * (p.c << last) >= EXP_MAX:
            raise IntvitError(
                f"softmax fqvit: scale, row length and spread must keep the sum of exponents below 2**62, and "
                f"{rows.shape[1]} columns of spread {spread} do not"
            )
        return compiled(rows, mask)

    return run


def _fqvit_bound(p: spec.FqvitSoftmax, x_max: int, n_channels: int) -> int:
    return int(2**p.bits - 1)


# ------------------------------------------------------------------- I-ViT, deployed in 32 bits


@kernel
def shift_exp_tvm(d, x0, n):
    t = max(wrap32(d + (d >> 1) - (d >> 4)), n * x0)
    q = truncated_div(t, x0)
    r = t - x0 * q
    shift = n - q
    if shift > 31:
        return 0
    return wrap32(((r >> 1) - x0) << shift)


@border(rows="int64 R C", mask="bool R|0 C", out="int64 R C")
@kernel
def _ivit_tvm(rows, mask, x0, n, out):
    for i in range(rows.shape[0]):
        top = row_max(rows, mask, i)
        total = 0
        for j in range(rows.shape[1]):
            d = n * x0 if hidden(mask, i, j) else rows[i, j] - top
            e = shift_exp_tvm(d, x0, n)
            out[i, j] = e
            total = wrap32(total + e)
        factor = truncated_div(2147483647, total) if total != 0 else 0
        for j in range(rows.shape[1]):
            out[i, j] = wrap32(factor * out[i, j]) >> 24


def tvm_x0(in_scale: float, gain: float = 1.0) -> int:
    """`trunc(float32(-1 / (scale * gain)) - 1)`: one lower than the floor when 1/scale is an integer."""
    x0 = int(np.trunc(np.float32(-1.0 / (in_scale * gain)) - np.float32(1)))
    if -x0 >= X0_MAX:
        raise IntvitError(f"ivit_tvm: input scale must be above {1 / X0_MAX:.3g}, not {in_scale}")
    return x0


def _ivit_tvm_lower(in_scale: float, *, out_bits: int) -> tuple[Any, float]:
    in_scale = check_power_scale("softmax ivit_tvm", in_scale)
    if check_bits("softmax ivit_tvm", out_bits) != 8:
        raise IntvitError(f"softmax ivit_tvm: out_bits must be 8, not {out_bits}")
    return spec.IvitTvmSoftmax(tvm_x0(in_scale), TVM_N), 2.0**-7


def _ivit_tvm_kernel(p: spec.IvitTvmSoftmax) -> Any:
    return _runner("softmax ivit_tvm", _ivit_tvm, p.x0, p.n)


# ---------------------------------------------------------------------------------- 8-bit scores
# A difference of two 8-bit scores is one of 256: the exponents are a table, made by the functions above.


@kernel
def narrow_max(rows, mask, i, g):
    """As `row_max`; row g of the mask belongs to row i."""
    top = rows[i, 0]
    if mask.shape[0] == 0:
        for j in range(rows.shape[1]):
            top = max(top, rows[i, j])
        return np.int64(top)
    return row_max_at(rows, mask, i, g)


@kernel
def row_max_at(rows, mask, i, g):
    top = np.int64(INT64_MIN)
    for j in range(rows.shape[1]):
        if not mask[g, j]:
            top = max(top, rows[i, j])
    return top


@border(table="int64 256")
@kernel
def _ivit_table(x0, n, table):
    for d in range(table.shape[0]):
        table[d] = shift_exp(-d, x0, n)


@kernel
def _divide(e, total, mask, g, masked, limit, shift, out, i):
    """The codes of a row of exponents; `masked` is that of a position which row g of the mask hides."""
    if mask.shape[0] > 0:
        total = 0
        for j in range(out.shape[1]):
            e[j] = masked if mask[g, j] else e[j]
            total += e[j]
    factor = limit // max(min(total, limit), 1)
    for j in range(out.shape[1]):
        out[i, j] = (e[j] * factor) >> shift


@border(rows="int8 R C", mask="bool * C", table="int64 256", out=f"{SIGNED} R C")
@kernel
def _ivit_narrow(rows, mask, table, masked, limit, shift, out):
    """table[d] is the exponent d below the row's maximum."""
    c = rows.shape[1]
    e = np.empty(c, np.int64)
    for i in range(rows.shape[0]):
        g = i % max(mask.shape[0], 1)
        top = narrow_max(rows, mask, i, g)
        total = 0
        for j in range(c):
            e[j] = table[(top - rows[i, j]) & 255]
            total += e[j]
        _divide(e, total, mask, g, masked, limit, shift, out, i)


def _narrow_runner(compiled: Any, *values: Any) -> Any:
    values = constants(compiled.__name__, *values)

    def run(rows: np.ndarray, mask: np.ndarray | None, out: np.ndarray) -> None:
        if mask is not None and (not len(mask) or len(rows) % len(mask)):
            raise IntvitError(f"softmax: mask must repeat over {len(rows)} rows, and has {len(mask)}")
        compiled(rows, no_mask(rows.shape[1]) if mask is None else mask, *values, out)

    return run


def _ivit_narrow_kernel(p: spec.IvitSoftmax, n_channels: int, masked: bool) -> Any:
    table = np.empty(256, np.int64)
    _ivit_table(p.x0, p.n, table)
    if int(table.max()) * n_channels >= EXP_MAX:
        return None
    return _narrow_runner(_ivit_narrow, table, -p.x0, 2**31 - 1, 32 - p.out_bits)


@border(table="int64 T")
@kernel
def _ibert_table(x0, b, c, n, m, e, table):
    for d in range(table.shape[0]):
        table[d] = saturate(rhe_product(polynomial(-d, x0, b, c, n), m, e - (n - quotient(-d, x0, n))), 16)


@kernel
def _ibert_masked(x0, b, c, n, m, e):
    return saturate(rhe_product(polynomial(n * x0, x0, b, c, n), m, e - (n - quotient(n * x0, x0, n))), 16)


@border(rows="int16 R C", mask="bool * C", table="int16 T", out=f"{SIGNED} R C")
@kernel
def _ibert_wide(rows, mask, table, masked, shift, out):
    """As `_ivit_narrow`, of 16-bit scores: what lies further below the maximum than the table has its last value."""
    c, last = rows.shape[1], table.shape[0] - 1
    e = np.empty(c, np.int64)
    for i in range(rows.shape[0]):
        g = i % max(mask.shape[0], 1)
        top = narrow_max(rows, mask, i, g)
        total = 0
        for j in range(c):  # a hidden score may lie above the maximum
            e[j] = table[max(min(top - rows[i, j], last), 0)]
            total += e[j]
        _divide(e, total, mask, g, masked, 4294967296, shift, out, i)


def _ibert_wide_kernel(p: spec.IbertSoftmax, n_channels: int, masked: bool) -> Any:
    """16-bit exponents of all differences up to n * x0, beyond which they are equal, or of all that there are."""
    table = np.empty(min(-p.n * p.x0, 2**16 - 1) + 1, np.int64)
    _ibert_table(p.x0, p.b, p.c, p.n, p.m, p.e, table)
    hidden_value = _ibert_masked(p.x0, p.b, p.c, p.n, p.m, p.e)
    return _narrow_runner(_ibert_wide, table.astype(np.int16), hidden_value, 32 - p.out_bits)


def _ibert_narrow_kernel(p: spec.IbertSoftmax, n_channels: int, masked: bool) -> Any:
    """I-BERT's normalisation differs from I-ViT's in its limit only: 2**32 instead of 2**31 - 1."""
    table = np.empty(256, np.int64)
    _ibert_table(p.x0, p.b, p.c, p.n, p.m, p.e, table)
    hidden_value = _ibert_masked(p.x0, p.b, p.c, p.n, p.m, p.e)
    return _narrow_runner(_ivit_narrow, table, hidden_value, 2**32, 32 - p.out_bits)


@border(exponents="int64 256")
@kernel
def _fqvit_table(x0, b, c, n, last, exponents):
    """exponents[d]: the exponent d below the maximum over the common factor 2**(n - last)."""
    for d in range(exponents.shape[0]):
        exponents[d] = polynomial(-d, x0, b, c, n) << (last - quotient(-d, x0, n))


@kernel
def code_of(e, total):
    """`log2_code` of rhe_div(total, e) for any number of bits, without a division; 0 < e <= total < 2**60.

    The ratio R, rounded half to even, reaches code 1 at R = 2, k >= 2 at 3 * 2**(k-2): where total / e >= 1.5, > 2.5,
    >= 5.5, 11.5, 23.5 and so on. With g = 2 * total + e, that is g >= 4e, > 6e, >= 12e, 24e, 48e: with 2**k * 3e <= g
    for the largest such k the code is k + 1, but for the two edges at 4e and 6e.
    """
    third, g = 3 * e, 2 * total + e
    k = bit_length(g) - bit_length(third)
    k -= np.int64((third << k) > g)
    return k + 1 - np.int64(6 * e == g) - np.int64(g < 4 * e)


@border(rows="int8 R C", mask="bool * C", table="int64 256", out=f"{SIGNED} R C")
@kernel
def _fqvit_narrow(rows, mask, table, masked, n_codes, weigh, out):
    """table[d] is the exponent d below the row's maximum, `masked` that of a hidden position; all are positive.

    With `weigh`, what each of 16 codes stands for in `log2_matmul`, less LOG2_LIFT: beyond the last that is 0.
    """
    c = rows.shape[1]
    e = np.empty(c, np.int64)
    for i in range(rows.shape[0]):
        g = i % max(mask.shape[0], 1)
        top = narrow_max(rows, mask, i, g)
        total = 0
        for j in range(c):
            e[j] = table[(top - rows[i, j]) & 255]
            total += e[j]
        if mask.shape[0] > 0:
            total = 0
            for j in range(c):
                e[j] = masked if mask[g, j] else e[j]
                total += e[j]
        if weigh:
            for j in range(c):
                out[i, j] = (32768 >> code_of(e[j], total)) - 16384
        else:
            for j in range(c):
                code = code_of(e[j], total)
                out[i, j] = -1 if code >= n_codes else code


def _fqvit_narrow_kernel(p: spec.FqvitSoftmax, n_channels: int, masked: bool, *, weigh: bool = False) -> Any:
    last = p.n if masked else min(p.n, 255 // -p.x0)
    if n_channels * (p.c << last) >= CODED_SUM_MAX:
        return None
    if p.bits > 5 or (weigh and p.bits != 4):
        return None
    table = np.zeros(256, np.int64)
    _fqvit_table(p.x0, p.b, p.c, p.n, last, table)
    hidden_value = polynomial(p.n * p.x0, p.x0, p.b, p.c, p.n)
    if table.min() == 0 or hidden_value == 0:
        return None
    return _narrow_runner(_fqvit_narrow, table, hidden_value, 1 << p.bits, weigh)


def clamps(params: Any, taps: Any) -> str | None:
    """Of Shiftmax and ShiftGELU: the reciprocal is of the clamped sum, and the parts no longer add up to 1."""
    return "the sum of exponentials must be below 2**31, and is clamped" if max(taps["sum"]) > spec.SUM_MAX else None


def _vanishes(params: Any, taps: Any) -> str | None:
    return None if any(taps["exp16"]) else "one exponent of a row must be above 0 in 16 bits, and none is"


IVIT = Method(
    "softmax", "ivit", 1, spec.IvitSoftmax, _ivit_lower, spec.ivit, _ivit_kernel,
    "Shiftmax: base-2 exponent by shifts", "arXiv 2207.01405", bound=_ivit_bound,
    fast=SoftmaxForms(_ivit_narrow_kernel), outside=clamps,
)  # fmt: skip
IBERT = Method(
    "softmax", "ibert", 1, spec.IbertSoftmax, ibert_lower, spec.ibert, _ibert_kernel,
    "second-order polynomial, 16-bit exponents", "arXiv 2101.01321", bound=_ibert_bound,
    fast=SoftmaxForms(_ibert_narrow_kernel, wide=_ibert_wide_kernel), accurate=Accurate(input_bits=16),
    outside=_vanishes,
)  # fmt: skip
FQVIT = Method(
    "softmax", "fqvit", 1, spec.FqvitSoftmax, _fqvit_lower, spec.fqvit, _fqvit_kernel,
    "Log-Int-Softmax: I-BERT's exponent, log2 codes", "arXiv 2111.13824", bound=_fqvit_bound, out_encoding="log2",
    fast=SoftmaxForms(_fqvit_narrow_kernel, partial(_fqvit_narrow_kernel, weigh=True)), stand_ins={"gelu": "ivit"},
)  # fmt: skip
IVIT_TVM = Method(
    "softmax", "ivit_tvm", 1, spec.IvitTvmSoftmax, _ivit_tvm_lower, spec.ivit_tvm, _ivit_tvm_kernel,
    "Shiftmax as deployed in 32-bit words", 'docs/quantization.md, "I-ViT in 32 bits"', informative=True, widths=(8, 8),
    bound=lambda params, x_max, n_channels: 2**7,  # the upper 8 of 32 bits
)  # fmt: skip
