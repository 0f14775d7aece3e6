"""GELU methods: `lower` from real scales, Numba kernels over tokens, and the Method values."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from intvit.errors import IntvitError
from intvit.kernels.arith import kernel, row_runner, truncated_div, wrap32
from intvit.kernels.border import border, integer, reals
from intvit.kernels.method import Accurate, GeluForms, Method, Options
from intvit.kernels.softmax import X0_MAX, check_power_scale, check_rows, clamps, shift_exp, shift_exp_tvm, tvm_x0
from intvit.spec import gelu as spec

IVIT_N, IVIT_BITS, SIGMOID = 23, 8, 1.702
IBERT_N, ROOT2, COEFFICIENT, CLIP = 14, 1.4142, -0.2888, -1.769


def one_scale(name: str, in_scale: Any) -> float:
    """The input scale of a method that compares channels."""
    scales = np.unique(reals(f"{name}: input scale", in_scale))
    if scales.size != 1:
        raise IntvitError(f"{name}: input scale must be one number, as channels are compared, not {scales.size}")
    return check_power_scale(name, float(scales[0]))


# ------------------------------------------------------------------------------------------- I-ViT


@border(rows="int64 R C", out="int64 R C")
@kernel
def _ivit(rows, x0, n, out_bits, out):
    limit = 2147483647
    for i in range(rows.shape[0]):
        top = rows[i, 0]
        for j in range(rows.shape[1]):
            top = max(top, rows[i, j])
        em = shift_exp(-top, x0, n)
        for j in range(rows.shape[1]):
            e = shift_exp(rows[i, j] - top, x0, n)
            factor = limit // min(e + em, limit)
            out[i, j] = rows[i, j] * ((e * factor) >> (32 - out_bits))


def ivit_lower(where: str, factor: float, in_scale: Any) -> tuple[Any, float]:
    """Constants of x * sigmoid(factor * x)."""
    scale = one_scale(where, in_scale)
    x0 = math.floor(-1.0 / (scale * factor))
    if -x0 >= X0_MAX:
        raise IntvitError(f"{where}: input scale must be above {1 / X0_MAX:.3g}, not {scale}")
    return spec.IvitGelu(x0, IVIT_N, IVIT_BITS), scale * 2.0**-7


def ivit_kernel(p: spec.IvitGelu) -> Any:
    return row_runner(partial(check_rows, "gelu ivit"), _ivit, p.x0, p.n, p.out_bits)


def ivit_bound(p: spec.IvitGelu, x_max: int, n_channels: int) -> int:
    """|x| * sigmoid; where the sum clamps, the sigmoid is e >> 24, at most that of the largest e."""
    return int(x_max * max(2 ** (p.out_bits - 1) - 1, (-p.x0 << p.n) >> (32 - p.out_bits)))


# ------------------------------------------------------------------------------------------ I-BERT


@border(rows="int64 R C", b="int64 M=C|1", c="int64 M", shift="int64 M", out="int64 R C")
@kernel
def _ibert(rows, b, c, shift, n, out):
    step = 1 if b.shape[0] > 1 else 0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            k, x = j * step, rows[i, j]
            sum_ab = min(abs(x), -b[k]) + b[k]
            p = sum_ab * sum_ab + c[k]
            if x < 0:  # x = 0 gives 0 whatever p is
                p = -p
            out[i, j] = x * ((p >> n) + shift[k])


class IbertGeluOptions(Options):
    """`n`: bits that the polynomial loses; 14 is published, "least" the fewest with which the output fits 32 bits."""

    n: Annotated[int, Field(ge=0, le=30)] | Literal["least"] = IBERT_N


def _ibert_lower(in_scale: Any, *, x_max: int | None = None, n: int | Literal["least"] = IBERT_N) -> tuple[Any, Any]:
    """Per-channel scales give per-channel constants. `n` may be "least" where `x_max`, the largest |x|, is known."""
    if n == "least":
        if x_max is None:
            raise IntvitError("gelu ibert: n may be 'least' where a graph is lowered, and nowhere else")
        found = (_ibert_lower(in_scale, n=n) for n in range(31))
        fitting = (each for each in found if _ibert_bound(each[0], x_max, 1) < 2**31)
        try:
            return next(fitting)
        except StopIteration:
            raise IntvitError(f"gelu ibert: no n up to 30 keeps the output in 32 bits for |x| up to {x_max}") from None
    scales = np.atleast_1d(reals("gelu ibert: input scale", in_scale))
    if scales.ndim > 1 or not scales.size:
        raise IntvitError(f"gelu ibert: input scale must be one number or one per channel, not {scales.shape}")
    n = integer("gelu ibert: n", n, 0, 62)
    b, c, shift, gains = [], [], [], []
    for value in scales:
        inner = check_power_scale("gelu ibert", float(value)) / ROOT2
        gain = inner**2 * COEFFICIENT * 2**n
        b.append(math.floor(CLIP / inner))
        c.append(math.floor((1 / COEFFICIENT) / inner**2))
        shift.append(math.floor(1 / gain))
        gains.append(gain)
        if b[-1] <= -(2**30):
            raise IntvitError(f"gelu ibert: input scale must keep 1.769/scale below 2**30, and {value} does not")
    out_scale = scales * np.array(gains) / 2
    params = spec.IbertGelu(tuple(b), tuple(c), tuple(shift), n)
    return params, out_scale if np.ndim(in_scale) else float(out_scale[0])


def _ibert_kernel(p: spec.IbertGelu) -> Any:
    constants = [np.array(values, np.int64) for values in (p.b, p.c, p.shift)]

    def check(rows: np.ndarray) -> None:
        check_rows("gelu ibert", rows)
        largest = int(np.abs(rows).max(initial=0))
        if _ibert_bound(p, largest, rows.shape[1]) >= 2**63:
            raise IntvitError(f"gelu ibert: |x| must keep the output below 2**63, and {largest} does not")

    return row_runner(check, _ibert, *constants, p.n)


def _ibert_bound(p: spec.IbertGelu, x_max: int, n_channels: int) -> int:
    """|x| * (|p| + |shift|), p between c and b*b + c before its shift."""
    tops = [
        (max(abs(c), abs(b * b + c)) >> p.n) + 1 + abs(shift) for b, c, shift in zip(p.b, p.c, p.shift, strict=True)
    ]
    return x_max * max(tops)


# ------------------------------------------------------------------- I-ViT, deployed in 32 bits


@border(rows="int64 R C", out="int64 R C")
@kernel
def _ivit_tvm(rows, x0, n, out):
    for i in range(rows.shape[0]):
        top = rows[i, 0]
        for j in range(rows.shape[1]):
            top = max(top, rows[i, j])
        em = shift_exp_tvm(-top, x0, n)
        for j in range(rows.shape[1]):
            e = shift_exp_tvm(rows[i, j] - top, x0, n)
            total = wrap32(e + em)
            factor = truncated_div(2147483647, total) if total != 0 else 0
            out[i, j] = wrap32(rows[i, j] * (wrap32(e * factor) >> 24))


def _ivit_tvm_lower(in_scale: Any) -> tuple[Any, float]:
    scale = one_scale("gelu ivit_tvm", in_scale)
    return spec.IvitTvmGelu(tvm_x0(scale, SIGMOID), IVIT_N), scale * 2.0**-7


def _ivit_tvm_kernel(p: spec.IvitTvmGelu) -> Any:
    return row_runner(partial(check_rows, "gelu ivit_tvm"), _ivit_tvm, p.x0, p.n)


IVIT = Method(
    "gelu", "ivit", 1, spec.IvitGelu, partial(ivit_lower, "gelu ivit", SIGMOID), spec.ivit, ivit_kernel,
    "ShiftGELU: x * sigmoid(1.702 x), channels share a row maximum", "arXiv 2207.01405", bound=ivit_bound,
    fast=GeluForms("row_max"), outside=clamps,
)  # fmt: skip
IBERT = Method(
    "gelu", "ibert", 1, spec.IbertGelu, _ibert_lower, spec.ibert, _ibert_kernel,
    "i-GELU: second-order polynomial of erf; n = 14 published, 6 for 8-bit inputs", "arXiv 2101.01321",
    bound=_ibert_bound, fast=GeluForms("element"), options=IbertGeluOptions, uniform={"n": 6},
    accurate=Accurate({"n": "least"}, 12),
)  # fmt: skip
IVIT_TVM = Method(
    "gelu", "ivit_tvm", 1, spec.IvitTvmGelu, _ivit_tvm_lower, spec.ivit_tvm, _ivit_tvm_kernel,
    "ShiftGELU as deployed in 32-bit words", 'docs/quantization.md, "I-ViT in 32 bits"', informative=True,
    bound=lambda params, x_max, n_channels: 2**31,
)  # fmt: skip
