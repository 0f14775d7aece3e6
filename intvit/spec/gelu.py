"""GELU over one token (last axis): ShiftGELU mixes channels through the row maximum, I-BERT's does not.

Every method takes `row` (C,), C >= 1, integers of any width in steps of the input scale, and its parameters; it returns
(C,). ValueError for an empty row (ShiftGELU) and for constants of another length. docs/quantization.md, "GELU".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intvit.spec.arith import truncated_div, wrap
from intvit.spec.ranges import require, require_all, require_lengths
from intvit.spec.softmax import SUM_MAX, X0_LEAST, shift_exp, shift_exp_tvm
from intvit.spec.taps import tap


@dataclass(frozen=True)
class IvitGelu:
    """ShiftGELU. `x0 = floor(-1/(scale*1.702))` in 1 - 2**30 .. -1; `n` 23 (0..23); sigmoid of `out_bits` 8 (1..8).

    IntvitError for an integer outside its range.
    """

    x0: int
    n: int
    out_bits: int

    def __post_init__(self) -> None:
        require("gelu ivit: x0", X0_LEAST, -1, self.x0)
        require("gelu ivit: n", 0, 23, self.n)
        require("gelu ivit: out_bits", 1, 8, self.out_bits)


def ivit(row: Sequence[int], p: IvitGelu) -> list[int]:
    """y_j = x_j * sigmoid(1.702 x_j), the sigmoid as e^(x-max) / (e^(x-max) + e^(-max)).

    (C,) in steps of the input scale times 2**-(out_bits - 1).
    Source: I-ViT (arXiv 2207.01405), ShiftGELU; one row of C + 1 exponentials, of x - max and of 0 - max.
    """
    top = tap("x_max", max(row))
    delta = tap("delta", [x - top for x in (*row, 0)])
    *e, em = shift_exp(delta, p.x0, p.n)
    total = tap("sum", [v + em for v in e])
    factor = tap("factor", [SUM_MAX // min(v, SUM_MAX) for v in total])
    product = tap("product", [v * f for v, f in zip(e, factor, strict=True)])
    sigmoid = tap("sigmoid", [v >> (32 - p.out_bits) for v in product])
    return [x * v for x, v in zip(row, sigmoid, strict=True)]


@dataclass(frozen=True)
class IbertGelu:
    """I-BERT GELU. `b` < 0, `c` <= 0, `shift` = floor(1/g) <= 0: (C,) or (1,); `n` 14 published, 6 here (0..30).

    IntvitError for an integer outside its range or vectors of different lengths.
    """

    b: tuple[int, ...]
    c: tuple[int, ...]
    shift: tuple[int, ...]
    n: int

    def __post_init__(self) -> None:
        require_lengths("gelu ibert: b, c and shift", self.b, self.c, self.shift)
        require_all("gelu ibert: b", 1 - 2**30, -1, self.b)
        require_all("gelu ibert: c", 1 - 2**62, 0, self.c)
        require_all("gelu ibert: shift", 1 - 2**62, 0, self.shift)
        require("gelu ibert: n", 0, 30, self.n)


def ibert(row: Sequence[int], p: IbertGelu) -> list[int]:
    """y = x * ((sign(x) * ((min(|x|, -b) + b)**2 + c) >> n) + shift).

    (C,) in steps of scale * g / 2, which is negative: g, the step of erf, has the sign of a = -0.2888.
    Source: I-BERT (arXiv 2101.01321), Eq. 8 and 9, Algorithm 2; `>> n` stands in the published code.
    """
    b, c, shift = (values if len(values) > 1 else values * len(row) for values in (p.b, p.c, p.shift))
    sign = [(x > 0) - (x < 0) for x in row]
    clipped = tap("clipped", [min(abs(x), -bj) for x, bj in zip(row, b, strict=True)])
    polynomial = tap("polynomial", [(v + bj) ** 2 + cj for v, bj, cj in zip(clipped, b, c, strict=True)])
    erf = tap("erf", [(s * v) >> p.n for s, v in zip(sign, polynomial, strict=True)])
    gate = tap("gate", [v + w for v, w in zip(erf, shift, strict=True)])
    return [x * v for x, v in zip(row, gate, strict=True)]


@dataclass(frozen=True)
class IvitTvmGelu:
    """ShiftGELU in 32-bit words that wrap. `x0` in 1 - 2**30 .. -1; `n` 23 (0..23). IntvitError outside the ranges."""

    x0: int
    n: int

    def __post_init__(self) -> None:
        require("gelu ivit_tvm: x0", X0_LEAST, -1, self.x0)
        require("gelu ivit_tvm: n", 0, 23, self.n)


def ivit_tvm(row: Sequence[int], p: IvitTvmGelu) -> list[int]:
    """ShiftGELU on 32-bit words that wrap; divisions toward zero; a sum that wraps to 0 gives 0.

    (C,) s32 in steps of the input scale times 2**-7.
    Source: docs/quantization.md, "I-ViT in 32 bits"; informative, no published text defines it.
    """
    top = tap("x_max", max(row))
    delta = tap("delta", [x - top for x in (*row, 0)])
    *e, em = shift_exp_tvm(delta, p.x0, p.n)
    total = tap("sum", [wrap(v + em, 32) for v in e])
    factor = tap("factor", [truncated_div(SUM_MAX, v) if v else 0 for v in total])
    product = tap("product", [wrap(v * f, 32) for v, f in zip(e, factor, strict=True)])
    sigmoid = tap("sigmoid", [v >> 24 for v in product])
    return [wrap(x * v, 32) for x, v in zip(row, sigmoid, strict=True)]
