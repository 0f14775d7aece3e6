"""Accumulators of a stated width: sums of products, word by word. docs/numerics.md, "Accumulators"."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.arith import saturate, wrap


def accumulate(products: Sequence[int], bias: int, bits: int, policy: str) -> int:
    """The sum of `products` in their order, the bias last, in a word of `bits` bits.

    saturate: after every addition; saturate_end: once; wrap: two's complement; raise: OverflowError where the sum does
    not fit.

    >>> accumulate([20000, 20000, -20000], 0, 16, "saturate"), accumulate([20000, 20000, -20000], 0, 16, "wrap")
    (12767, 20000)
    """
    total = 0
    for value in (*products, bias):
        total += value
        if policy == "saturate":
            total = saturate(total, bits)
        elif policy == "wrap":
            total = wrap(total, bits)
    if policy == "saturate_end":
        return saturate(total, bits)
    if saturate(total, bits) != total:
        raise OverflowError(f"{total} does not fit {bits} bits")
    return total
