"""GELU over one token (last axis): ShiftGELU mixes channels through the row maximum, I-BERT's does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intvit.spec.arith import floor_shift, truncated_div, wrap
from intvit.spec.ranges import require, require_all, require_lengths
from intvit.spec.softmax import SUM_MAX, X0_LEAST, shift_exp, shift_exp_tvm


@dataclass(frozen=True)
class IvitGelu:
    """ShiftGELU (arXiv 2207.01405). `x0 = floor(-1/(scale*1.702))`; `n` 23; sigmoid of `out_bits` 8."""

    x0: int
    n: int
    out_bits: int

    def __post_init__(self) -> None:
        require("gelu ivit: x0", X0_LEAST, -1, self.x0)
        require("gelu ivit: n", 0, 23, self.n)
        require("gelu ivit: out_bits", 1, 8, self.out_bits)


def ivit(row: Sequence[int], p: IvitGelu) -> list[int]:
    """y_j = x_j * sigmoid(1.702 x_j), the sigmoid as e^(x-max) / (e^(x-max) + e^(-max))."""
    top = max(row)
    em = shift_exp(-top, p.x0, p.n)
    result = []
    for x in row:
        e = shift_exp(x - top, p.x0, p.n)
        factor = SUM_MAX // min(e + em, SUM_MAX)
        result.append(x * ((e * factor) >> (32 - p.out_bits)))
    return result


@dataclass(frozen=True)
class IbertGelu:
    """I-BERT GELU (arXiv 2101.01321). `b`, `c` < 0, `shift` = floor(1/g) < 0, per channel or one; `n` 14 or 6."""

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
    """y = x * ((sign(x) * ((min(|x|, -b) + b)**2 + c) >> n) + shift); the scale of y is negative."""
    result = []
    for j, x in enumerate(row):
        b, c, shift = (values[j] if len(values) > 1 else values[0] for values in (p.b, p.c, p.shift))
        sign = (x > 0) - (x < 0)
        a = min(abs(x), -b)
        result.append(x * (floor_shift(sign * ((a + b) ** 2 + c), p.n) + shift))
    return result


@dataclass(frozen=True)
class IvitTvmGelu:
    """The 32-bit wrap-around form of ShiftGELU (conformance README, section 9; informative)."""

    x0: int
    n: int

    def __post_init__(self) -> None:
        require("gelu ivit_tvm: x0", X0_LEAST, -1, self.x0)
        require("gelu ivit_tvm: n", 0, 23, self.n)


def ivit_tvm(row: Sequence[int], p: IvitTvmGelu) -> list[int]:
    """ShiftGELU on 32-bit words that wrap; divisions toward zero; a sum that wraps to 0 gives 0."""
    top = max(row)
    em = shift_exp_tvm(-top, p.x0, p.n)
    result = []
    for x in row:
        e = shift_exp_tvm(x - top, p.x0, p.n)
        total = wrap(e + em, 32)
        factor = truncated_div(SUM_MAX, total) if total else 0
        result.append(wrap(x * (wrap(e * factor, 32) >> 24), 32))
    return result
