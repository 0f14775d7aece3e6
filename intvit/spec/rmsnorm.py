"""RMSNorm over one row: x / sqrt(mean x**2), times gamma, which the output's scale carries; no mean is taken away.

`row` (C,), C >= 1, integers of any width in steps of the input scale; the result (C,) is neither clamped nor
requantized. docs/quantization.md, "RMSNorm".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intvit.spec.arith import isqrt
from intvit.spec.layernorm import newton_sqrt
from intvit.spec.ranges import require
from intvit.spec.taps import tap

TAPS = {
    "rmsnorm": {
        "shifted": "I-BERT: x >> shift",
        "square_sum": "sum of x**2 (I-BERT: of shifted**2)",
        "step": "I-ViT: the ten iterates of the square root",
        "root": "square root of the square sum",
        "factor": "the reciprocal of the root, as an integer",
        "product": "x * factor",
    }
}


@dataclass(frozen=True)
class IvitRmsNorm:
    """I-LayerNorm without mean and bias: it has no constants."""


def ivit(row: Sequence[int], p: IvitRmsNorm) -> list[int]:
    """y_j = (x_j * F) >> 1, F = (2**31 - 1) // sqrt(sum x**2), the root by I-LayerNorm's ten steps.

    (C,) in steps of gamma_j * sqrt(C) / 2**30: |y| <= 2**30.
    Source: I-ViT (arXiv 2207.01405), I-LayerNorm; the form without a mean is ours.
    """
    total = tap("square_sum", sum(x * x for x in row))
    root = tap("root", newton_sqrt(total))
    factor = tap("factor", (2**31 - 1) // root)
    product = tap("product", [x * factor for x in row])
    return [v >> 1 for v in product]


@dataclass(frozen=True)
class IbertRmsNorm:
    """I-BERT's LayerNorm without mean and bias: calibrated `shift` 0..31, else IntvitError."""

    shift: int

    def __post_init__(self) -> None:
        require("rmsnorm ibert: shift", 0, 31, self.shift)


def ibert(row: Sequence[int], p: IbertRmsNorm) -> list[int]:
    """y_j = (x_j * F) >> 1, F = 2**31 // (isqrt(sum (x >> shift)**2) << shift); 0 where the root is.

    (C,) in steps of gamma_j * sqrt(C) / 2**30.
    Source: I-BERT (arXiv 2101.01321), Eq. 15, Algorithm 4 for the root; the form without a mean is ours.
    """
    shifted = tap("shifted", [x >> p.shift for x in row])
    total = tap("square_sum", sum(v * v for v in shifted))
    root = tap("root", isqrt(total) * 2**p.shift)
    if root == 0:
        return [0] * len(row)
    factor = tap("factor", 2**31 // root)
    product = tap("product", [x * factor for x in row])
    return [v >> 1 for v in product]
