"""Softmax over one row, in the three published integer methods and I-ViT's 32-bit deployment.

Every method takes `row` (C,), C >= 1, integers of any width in steps of the input scale, its parameters, and `mask`
(C,) bools or None; it returns (C,). A mask marks positions that take no part: they are left out of the row maximum, and
their exponent argument is the saturation value n*x0. A row that is masked whole has no maximum: every argument is the
saturation value. ValueError for an empty row or a mask of another length. docs/quantization.md, "Softmax".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intvit.spec.arith import rhe, rhe_shift, saturate, truncated_div, wrap
from intvit.spec.ranges import require
from intvit.spec.taps import tap

Mask = Sequence[bool] | None
SUM_MAX = 2**31 - 1
X0_LEAST = 1 - 2**30
EXPONENT_LEAST, EXPONENT_MOST = -1100, 1200
"""Shifts e of a dyadic ratio of two finite doubles."""


def deltas(row: Sequence[int], mask: Mask) -> list[int | None]:
    """`x_j - max(row)` (C,), at most 0, in steps of the input scale; None where the position is masked."""
    hidden = [False] * len(row) if mask is None else mask
    seen = [x for x, h in zip(row, hidden, strict=True) if not h]
    top = tap("x_max", max(seen or row))  # of a row that is masked whole nobody reads it
    return tap("delta", [None if h else x - top for x, h in zip(row, hidden, strict=True)])


# ------------------------------------------------------------------------------------------- I-ViT


@dataclass(frozen=True)
class IvitSoftmax:
    """Shiftmax. `x0 = floor(-1/scale)` in 1 - 2**30 .. -1; `n` 15 (0..23); `out_bits` 1..32, sign included.

    IntvitError for an integer outside its range.
    """

    x0: int
    n: int
    out_bits: int

    def __post_init__(self) -> None:
        require("softmax ivit: x0", X0_LEAST, -1, self.x0)
        require("softmax ivit: n", 0, 23, self.n)
        require("softmax ivit: out_bits", 1, 32, self.out_bits)


def shift_exp(deltas: Sequence[int | None], x0: int, n: int) -> list[int]:
    """ShiftExp: about exp(d * scale) * |x0| * 2**n for every d, at least 1; None is a masked position.

    For d <= 0 at most |x0| * 2**n. d > 0 is allowed (ShiftGELU): the quotient is then negative and the exponential has
    no bound. The published code halves after the shift, so that the half bit of r/2 - x0 is kept.
    """
    least = n * x0
    t = tap("argument", [least if d is None else max(d + (d >> 1) - (d >> 4), least) for d in deltas])
    q = tap("quotient", [v // x0 for v in t])
    r = tap("remainder", [v - x0 * k for v, k in zip(t, q, strict=True)])
    return tap("exp", [((v - 2 * x0) << (n - k)) >> 1 for v, k in zip(r, q, strict=True)])


def ivit(row: Sequence[int], p: IvitSoftmax, mask: Mask = None) -> list[int]:
    """y_j = (e_j * F) >> (32 - out_bits), F = (2**31 - 1) // min(sum e, 2**31 - 1).

    (C,) in steps of 2**-(out_bits - 1): below 2**(out_bits - 1), and beyond it only where the sum was clamped.
    Source: I-ViT (arXiv 2207.01405), Shiftmax; the clamp of the sum stands in the published code.
    """
    e = shift_exp(deltas(row, mask), p.x0, p.n)
    total = tap("sum", sum(e))
    factor = tap("factor", SUM_MAX // min(total, SUM_MAX))
    product = tap("product", [v * factor for v in e])
    return [v >> (32 - p.out_bits) for v in product]


# ------------------------------------------------------------------------------------------ I-BERT


@dataclass(frozen=True)
class IbertSoftmax:
    """I-BERT softmax. `x0 = floor(-ln 2 / scale)`, `b`, `c`: the polynomial in units of the scale; `n` 30 (0..30).

    `m` / 2**`e`: dyadic form of the inner 16-bit requantization, m in 0..2**31. `out_bits` 1..32, unsigned.
    IntvitError for an integer outside its range; b is at least 2*|x0| - 2, so that the polynomial rises.
    """

    x0: int
    b: int
    c: int
    n: int
    m: int
    e: int
    out_bits: int

    def __post_init__(self) -> None:
        require_polynomial("softmax ibert", self.x0, self.b, self.c, self.n)
        require("softmax ibert: m", 0, 2**31, self.m)
        require("softmax ibert: e", EXPONENT_LEAST, EXPONENT_MOST, self.e)
        require("softmax ibert: out_bits", 1, 32, self.out_bits)


def require_polynomial(where: str, x0: int, b: int, c: int, n: int) -> None:
    """IntvitError unless r*(r + b) + c rises over x0 < r <= 0, so that no exponent is above c."""
    require(f"{where}: x0", X0_LEAST, -1, x0)
    require(f"{where}: b", -2 * (x0 + 1), 2**32, b)
    require(f"{where}: c", 0, 2**62 - 1, c)
    require(f"{where}: n", 0, 30, n)


def int_exp(deltas: Sequence[int | None], x0: int, b: int, c: int, n: int) -> list[int]:
    """I-BERT's i-exp (Eq. 12 to 14): a second-order polynomial on (-ln 2, 0], shifted by the quotient; at least 0.

    About exp(d * scale) * c * 2**n, and at most c * 2**n, for every d <= 0; None is a masked position. The paper shifts
    right by the quotient; the published code shifts left by n less the quotient, and loses no bit.
    """
    least = n * x0
    t = tap("argument", [least if d is None else max(d, least) for d in deltas])
    q = tap("quotient", [v // x0 for v in t])
    r = tap("remainder", [v - x0 * k for v, k in zip(t, q, strict=True)])
    polynomial = tap("polynomial", [v * (v + b) + c for v in r])
    return tap("exp", [max(v << (n - k), 0) for v, k in zip(polynomial, q, strict=True)])


def ibert(row: Sequence[int], p: IbertSoftmax, mask: Mask = None) -> list[int]:
    """y_j = (h_j * F) >> (32 - out_bits), h the exponential at 16 bits, F = 2**32 // sum h; all zero if sum h is.

    (C,) in steps of 2**-out_bits, unsigned: 2**out_bits itself where one power of two is the whole sum.
    Source: I-BERT (arXiv 2101.01321), Algorithm 3; the requantization to 16 bits stands in the published code.
    """
    e = int_exp(deltas(row, mask), p.x0, p.b, p.c, p.n)
    h = tap("exp16", [saturate(rhe_shift(v * p.m, p.e), 16) for v in e])
    total = tap("sum", sum(h))
    factor = tap("factor", 2**32 // max(total, 1))
    product = tap("product", [v * factor for v in h])
    return [v >> (32 - p.out_bits) for v in product]


# ------------------------------------------------------------------------------------------ FQ-ViT


@dataclass(frozen=True)
class FqvitSoftmax:
    """Log-Int-Softmax: I-BERT's `x0`, `b`, `c`, `n`; log2 codes of `bits` 1..8. IntvitError outside the ranges."""

    x0: int
    b: int
    c: int
    n: int
    bits: int

    def __post_init__(self) -> None:
        require_polynomial("softmax fqvit", self.x0, self.b, self.c, self.n)
        require("softmax fqvit: bits", 1, 8, self.bits)


def fqvit(row: Sequence[int], p: FqvitSoftmax, mask: Mask = None) -> list[int]:
    """Codes q (C,), -1 .. 2**bits - 1: the probability is 2**-q, and 0 for -1; q = log2 of sum e over e_j, rounded.

    Source: FQ-ViT (arXiv 2111.13824), Log-Int-Softmax on I-BERT's i-exp, without its requantization to 16 bits.
    """
    e = int_exp(deltas(row, mask), p.x0, p.b, p.c, p.n)
    total = tap("sum", sum(e))
    ratio = tap("ratio", [None if v == 0 else rhe(total, v) for v in e])
    return [-1 if v is None else log2_code(v, p.bits) for v in ratio]


def log2_code(ratio: int, bits: int) -> int:
    """log2(ratio) of a ratio >= 1, rounded up from 1.5 * 2**k on; -1 from 2**bits on."""
    k = ratio.bit_length() - 1
    if 2 * (ratio - 2**k) >= 2**k:
        k += 1
    return -1 if k >= 2**bits else k


# ------------------------------------------------------------------- I-ViT, deployed in 32 bits


@dataclass(frozen=True)
class IvitTvmSoftmax:
    """Shiftmax in 32-bit words that wrap. `x0` in 1 - 2**30 .. -1; `n` 16 (0..23). IntvitError outside the ranges."""

    x0: int
    n: int

    def __post_init__(self) -> None:
        require("softmax ivit_tvm: x0", X0_LEAST, -1, self.x0)
        require("softmax ivit_tvm: n", 0, 23, self.n)


def shift_exp_tvm(deltas: Sequence[int], x0: int, n: int) -> list[int]:
    """shift_exp in 32-bit words: the half bit is dropped before the shift, division truncates, words wrap.

    A wrapped exponential stays negative. A count of 32 and more gives 0, where C defines nothing.
    """
    t = tap("argument", [max(wrap(d + (d >> 1) - (d >> 4), 32), n * x0) for d in deltas])
    q = tap("quotient", [truncated_div(v, x0) for v in t])
    r = tap("remainder", [v - x0 * k for v, k in zip(t, q, strict=True)])
    return tap("exp", [wrap(((v >> 1) - x0) << (n - k), 32) if n - k < 32 else 0 for v, k in zip(r, q, strict=True)])


def ivit_tvm(row: Sequence[int], p: IvitTvmSoftmax, mask: Mask = None) -> list[int]:
    """y_j = (F * e_j) >> 24 (C,), s8 in steps of 2**-7; F = (2**31 - 1) / sum toward zero, 0 if the sum wraps to 0.

    Source: docs/quantization.md, "I-ViT in 32 bits"; informative, no published text defines it.
    """
    least = p.n * p.x0
    e = shift_exp_tvm([least if d is None else d for d in deltas(row, mask)], p.x0, p.n)
    total = tap("sum", wrap(sum(e), 32))
    factor = tap("factor", truncated_div(SUM_MAX, total) if total else 0)
    product = tap("product", [wrap(factor * v, 32) for v in e])
    return [v >> 24 for v in product]
