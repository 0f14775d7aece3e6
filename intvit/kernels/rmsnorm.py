"""RMSNorm methods: `lower` from real scales and gamma, Numba kernels over rows, the Method values.

Bounds that the kernels rely on, checked at the border: C * max|x|**2 < 2**62, so that square sums fit int64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import isqrt, kernel, row_runner
from intvit.kernels.border import SIGNED, border, integer, reals
from intvit.kernels.layernorm import LEAST_GAMMA, UNIT, VARIANCE_MAX, unconverged, unscaled
from intvit.kernels.method import LayerNormForms, Method
from intvit.kernels.softmax import check_rows, check_scale
from intvit.spec import rmsnorm as spec


def out_scales(gamma: Any) -> np.ndarray:
    """gamma * sqrt(C) / 2**30 (C,); a gamma of 0 stands as 2**-23."""
    values = np.atleast_1d(reals("rmsnorm: gamma", gamma))
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise IntvitError(f"rmsnorm: gamma must be a finite vector, not of shape {values.shape}")
    unit = float(np.float32(math.sqrt(len(values)))) / UNIT
    return unit * np.where(np.abs(values) < LEAST_GAMMA, np.copysign(LEAST_GAMMA, values), values)


def check_squares(operator: str, rows: np.ndarray) -> None:
    """The border of every RMSNorm kernel: C * max|x|**2 < 2**62."""
    check_rows(operator, rows, 2**40)
    largest = max(int(rows.max()), -int(rows.min())) if rows.size else 0
    if rows.shape[1] * largest**2 >= VARIANCE_MAX:
        raise IntvitError(
            f"{operator}: inputs must keep C * max|x|**2 below 2**62, not C {rows.shape[1]}, max|x| {largest}"
        )


@border(rows=f"{SIGNED} R C", out=f"{SIGNED} R C")
@kernel
def _ivit(rows, out):
    for i in range(rows.shape[0]):
        total = np.int64(0)
        for j in range(rows.shape[1]):
            x = np.int64(rows[i, j])
            total += x * x
        k = np.int64(65536)
        for _ in range(10):
            k = (k + total // k) >> 1
        factor = 2147483647 // k
        for j in range(rows.shape[1]):
            out[i, j] = (np.int64(rows[i, j]) * factor) >> 1


@border(rows=f"{SIGNED} R C", out=f"{SIGNED} R C")
@kernel
def _ibert(rows, shift, out):
    for i in range(rows.shape[0]):
        total = np.int64(0)
        for j in range(rows.shape[1]):
            x = np.int64(rows[i, j]) >> shift
            total += x * x
        root = isqrt(total) << shift
        factor = 2147483648 // root if root > 0 else 0
        for j in range(rows.shape[1]):
            out[i, j] = (np.int64(rows[i, j]) * factor) >> 1


def _ivit_lower(in_scale: float, *, gamma: Any) -> tuple[Any, np.ndarray]:
    check_scale("rmsnorm ivit", in_scale)
    return spec.IvitRmsNorm(), out_scales(gamma)


def _ibert_lower(in_scale: float, *, gamma: Any, shift: int = 0) -> tuple[Any, np.ndarray]:
    check_scale("rmsnorm ibert", in_scale)
    return spec.IbertRmsNorm(integer("rmsnorm: shift", shift, 0, 31)), out_scales(gamma)


def _ivit_kernel(p: spec.IvitRmsNorm) -> Any:
    return row_runner(partial(check_squares, "rmsnorm ivit"), _ivit)


def _ibert_kernel(p: spec.IbertRmsNorm) -> Any:
    return row_runner(partial(check_squares, "rmsnorm ibert"), _ibert, p.shift)


def _bound(p: Any, x_max: int, n_channels: int) -> int:
    """|x| is at most the root, so that |x * F| <= 2**31 before the halving."""
    return 2**30


def _ibert_bound(p: spec.IbertRmsNorm, x_max: int, n_channels: int) -> int | None:
    """x * F < 2**32 - 2**(31 - shift) before the halving, as of I-BERT's LayerNorm; docs/prove.md."""
    return 2**31 - (2**30 >> p.shift)


IVIT = Method(
    "rmsnorm", "ivit", 1, spec.IvitRmsNorm, _ivit_lower, spec.ivit, _ivit_kernel,
    "I-LayerNorm's ten Newton steps, no mean", "arXiv 2207.01405", bound=_bound, fast=LayerNormForms(any_rows=True),
    outside=unconverged,
)  # fmt: skip
IBERT = Method(
    "rmsnorm", "ibert", 1, spec.IbertRmsNorm, _ibert_lower, spec.ibert, _ibert_kernel,
    "exact integer square root, calibrated shift, no mean", "arXiv 2101.01321", bound=_ibert_bound,
    fast=LayerNormForms(any_rows=True), outside=unscaled,
)  # fmt: skip
