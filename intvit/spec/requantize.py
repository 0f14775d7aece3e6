"""Dyadic requantization: multiply by m / 2**e, round, saturate. HAWQ-V3 (arXiv 2011.10680), or as `Numerics` say."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.numerics import HAWQ, STORAGE_BITS, Numerics, narrowed, product, shifted
from intvit.spec.taps import tap

TAPS = {
    "requantize": {
        "product": "x * m",
        "rounded": "product / 2**e, rounded, before any saturation",
        "residual_product": "residual * residual_m",
        "residual_rounded": "residual_product / 2**residual_e, rounded",
        "total": "the sum of the two terms, rounded or products that are added together, before its saturation",
    },
}


def requantize(
    row: Sequence[int],
    m: Sequence[int],
    e: Sequence[int],
    bits: int | None,
    *,
    residual: Sequence[int] | None = None,
    residual_m: Sequence[int] = (),
    residual_e: Sequence[int] = (),
    addend: Sequence[int] | None = None,
    numerics: Numerics = HAWQ,
    signed: bool = True,
) -> list[int]:
    """`saturate(round(x*m, 2**e) [+ round(residual*residual_m, 2**residual_e)] [+ addend])`.

    `row` (C,) in steps of the input scale, `m` and `e` (C,): input scale / output scale = m / 2**e, m in
    -2**31..2**31, e any integer (negative multiplies). The same for `residual`; `addend` (C,) in steps of the output
    scale. Returns (C,) of `bits` bits, `signed` or not, in steps of the output scale; `bits` None: what fits s64.
    Each word is narrowed as `numerics` say; as usual all are exact up to s64, where they saturate.
    ValueError for different lengths, or numerics that add products of different e.
    Source: HAWQ-V3 (arXiv 2011.10680), dyadic arithmetic. docs/quantization.md, "Requantization"; docs/numerics.md.
    """
    how = numerics

    def narrow(values: Sequence[int]) -> list[int]:
        return [narrowed(v, how.rounded_bits, how.rounded_overflow) for v in values]

    def multiplied(values: Sequence[int], factors: Sequence[int]) -> list[int]:
        return [product(x, f, how) for x, f in zip(values, factors, strict=True)]

    def rounded(values: Sequence[int], shifts: Sequence[int]) -> list[int]:
        return [shifted(v, k, how) for v, k in zip(values, shifts, strict=True)]

    products = tap("product", multiplied(row, m))
    if residual is None:
        y = narrow(tap("rounded", rounded(products, e)))
    elif how.residual == "together":
        if list(e) != list(residual_e):
            raise ValueError("products that are added together must have one e")
        others = tap("residual_product", multiplied(residual, residual_m))
        sums = tap("total", [p + q for p, q in zip(products, others, strict=True)])
        sums = [narrowed(v, how.product_bits, how.product_overflow) for v in sums]
        y = narrow(tap("rounded", rounded(sums, e)))
    else:
        y = narrow(tap("rounded", rounded(products, e)))
        others = tap("residual_product", multiplied(residual, residual_m))
        z = narrow(tap("residual_rounded", rounded(others, residual_e)))
        y = narrow(tap("total", [v + w for v, w in zip(y, z, strict=True)]))
    if addend is not None:
        y = narrow([v + a for v, a in zip(y, addend, strict=True)])
    return [narrowed(v, STORAGE_BITS if bits is None else bits, how.output_overflow, signed=signed) for v in y]
