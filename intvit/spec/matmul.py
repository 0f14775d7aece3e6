"""Matrix products: exact sums of products, whatever their width."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from intvit.spec.taps import tap

Matrix = Sequence[Sequence[int]]
LOG2_FRACTION_BITS = 15


def linear(x: Matrix, weight: Matrix, bias: Sequence[int] | None = None) -> list[list[int]]:
    """`y[r][o] = sum_k x[r][k] * weight[o][k] + bias[o]`."""
    sums = tap("sum", [[sum(map(mul, row, w)) for w in weight] for row in x])
    return sums if bias is None else [[s + b for s, b in zip(row, bias, strict=True)] for row in sums]


def matmul(a: Matrix, b: Matrix) -> list[list[int]]:
    """`y[r][c] = sum_k a[r][k] * b[k][c]`."""
    return linear(a, list(zip(*b, strict=True)))


def log2_matmul(q: Matrix, v: Matrix) -> list[list[int]]:
    """FQ-ViT attention times V: `y[r][c] = sum_k (0 if q[r][k] < 0 else v[k][c] * 2**(15 - q[r][k]))`.

    Codes q in -1 ("zero") and 0..15; all 15 fraction bits are kept: real = y * v_scale * 2**-15.
    """
    weight = tap("weight", [[0 if code < 0 else 2 ** (LOG2_FRACTION_BITS - code) for code in row] for row in q])
    return matmul(weight, v)
