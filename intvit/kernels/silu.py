"""SiLU, x * sigmoid(x): the two forms of x * sigmoid(a x) for any a, and the Method values for a = 1."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from intvit.kernels.arith import kernel, rhe_product, row_runner, saturate
from intvit.kernels.border import border
from intvit.kernels.gelu import ivit_bound, ivit_kernel, ivit_lower, one_scale
from intvit.kernels.method import GeluForms, Method
from intvit.kernels.softmax import check_rows, clamps, ibert_lower, polynomial, quotient
from intvit.spec import gelu as shift
from intvit.spec import silu as spec
from intvit.spec.softmax import IbertSoftmax

SIGMOID_BITS = 16
"""Of I-BERT's sigmoid: what its softmax gives."""


@border(rows="int64 R C", out="int64 R C")
@kernel
def _ibert(rows, x0, b, c, n, m, e, out_bits, out):
    most = saturate(rhe_product(polynomial(0, x0, b, c, n), m, e - n), 16)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            x = rows[i, j]
            d = -abs(x)  # of (x, 0) one is the maximum, and the other is d away from it
            least = saturate(rhe_product(polynomial(d, x0, b, c, n), m, e - (n - quotient(d, x0, n))), 16)
            factor = 4294967296 // max(least + most, 1)
            out[i, j] = x * (((most if x >= 0 else least) * factor) >> (32 - out_bits))


def _ibert_lower(where: str, factor: float, in_scale: Any) -> tuple[Any, float]:
    scale = one_scale(where, in_scale)
    params, step = ibert_lower(scale * factor, out_bits=SIGMOID_BITS)
    return params, scale * step


def _ibert_kernel(where: str, p: IbertSoftmax) -> Any:
    def check(rows: np.ndarray) -> None:
        check_rows(where, rows, 2**40)

    return row_runner(check, _ibert, p.x0, p.b, p.c, p.n, p.m, p.e, p.out_bits)


def _ibert_bound(p: IbertSoftmax, x_max: int, n_channels: int) -> int:
    """A softmax value is 2**out_bits at most."""
    return x_max << p.out_bits


def gated(operator: str, factor: float, formula: str) -> tuple[Method, Method]:
    """I-ViT's and I-BERT's form of x * sigmoid(factor * x)."""
    return (
        Method(
            operator, "ivit", 1, shift.IvitGelu, partial(ivit_lower, f"{operator} ivit", factor), shift.ivit,
            ivit_kernel, f"ShiftGELU's sigmoid: {formula}, channels share a row maximum", "arXiv 2207.01405",
            bound=ivit_bound, fast=GeluForms("row_max"), outside=clamps,
        ),
        Method(
            operator, "ibert", 1, IbertSoftmax, partial(_ibert_lower, f"{operator} ibert", factor), spec.ibert,
            partial(_ibert_kernel, f"{operator} ibert"), f"{formula}, the sigmoid by I-BERT's softmax of two",
            "arXiv 2101.01321", bound=_ibert_bound, fast=GeluForms("element"),
        ),
    )  # fmt: skip


IVIT, IBERT = gated("silu", 1.0, "x * sigmoid(x)")
