"""Dyadic requantization (HAWQ-V3, arXiv 2011.10680): multiply by m / 2**e, round half to even, saturate."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.arith import rhe_shift, saturate
from intvit.spec.taps import tap

STORAGE_BITS = 64


def requantize(
    row: Sequence[int],
    m: Sequence[int],
    e: Sequence[int],
    bits: int | None,
    *,
    residual: Sequence[int] | None = None,
    residual_m: Sequence[int] = (),
    residual_e: Sequence[int] = (),
) -> list[int]:
    """`saturate(rhe(x*m, 2**e) [+ rhe(residual*residual_m, 2**residual_e)])`: two roundings, then one addition.

    `row` (C,) in steps of the input scale, `m` and `e` (C,): input scale / output scale = m / 2**e, m in
    -2**31..2**31, e any integer (negative multiplies). The same for `residual`. Returns (C,) s<bits> in steps of the
    output scale; `bits` None saturates at s64 only. Each rounded term saturates at s64 as well, where an accumulator
    ends. ValueError for different lengths.
    Source: HAWQ-V3 (arXiv 2011.10680), dyadic arithmetic. docs/quantization.md, "Requantization".
    """
    product = tap("product", [x * f for x, f in zip(row, m, strict=True)])
    rounded = tap("rounded", [rhe_shift(v, k) for v, k in zip(product, e, strict=True)])
    y = [saturate(v, STORAGE_BITS) for v in rounded]
    if residual is not None:
        product = tap("residual_product", [x * f for x, f in zip(residual, residual_m, strict=True)])
        rounded = tap("residual_rounded", [rhe_shift(v, k) for v, k in zip(product, residual_e, strict=True)])
        y = tap("total", [v + saturate(w, STORAGE_BITS) for v, w in zip(y, rounded, strict=True)])
    return [saturate(v, STORAGE_BITS if bits is None else bits) for v in y]
