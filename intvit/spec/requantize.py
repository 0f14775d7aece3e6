"""Dyadic requantization (HAWQ-V3, arXiv 2011.10680): multiply by m / 2**e, round half to even, saturate."""

from __future__ import annotations

from intvit.spec.arith import rhe_shift, saturate

STORAGE_BITS = 64


def requantize(
    x: int,
    m: int,
    e: int,
    bits: int | None,
    *,
    residual: int | None = None,
    residual_m: int = 0,
    residual_e: int = 0,
) -> int:
    """`saturate(rhe(x*m, 2**e) [+ rhe(residual*residual_m, 2**residual_e)])`: two roundings, then one addition.

    `m` in -2**31..2**31, `e` any integer (negative multiplies). `bits` None saturates at s64 only; each rounded term
    saturates at s64 as well, where an accumulator ends.
    """
    y = saturate(rhe_shift(x * m, e), STORAGE_BITS)
    if residual is not None:
        y += saturate(rhe_shift(residual * residual_m, residual_e), STORAGE_BITS)
    return saturate(y, STORAGE_BITS if bits is None else bits)
