"""Matrix products: exact sums of products, whatever their width. docs/quantization.md, "Products".

Matrices are lists of rows. ValueError for rows of `b` of different lengths and for a bias that does not fit. That both
operands have the same K is the caller's to see to.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from intvit.spec.taps import tap

Matrix = Sequence[Sequence[int]]
LOG2_FRACTION_BITS = 15


def linear(x: Matrix, weight: Matrix, bias: Sequence[int] | None = None) -> list[list[int]]:
    """`y[r][o] = sum_k x[r][k] * weight[o][k] + bias[o]`: x (R, K), weight (O, K), bias (O,), y (R, O).

    y and bias in steps of the scale of x times that of weight row o.
    """
    sums = tap("sum", [[sum(map(mul, row, w)) for w in weight] for row in x])
    return sums if bias is None else [[s + b for s, b in zip(row, bias, strict=True)] for row in sums]


def matmul(a: Matrix, b: Matrix) -> list[list[int]]:
    """`y[r][c] = sum_k a[r][k] * b[k][c]`: a (R, K), b (K, C), y (R, C) in steps of the product of both scales."""
    return linear(a, list(zip(*b, strict=True)))


def log2_matmul(q: Matrix, v: Matrix) -> list[list[int]]:
    """FQ-ViT attention times V: `y[r][c] = sum_k (0 if q[r][k] < 0 else v[k][c] * 2**(15 - q[r][k]))`.

    q (R, K) in -1 ("zero") and 0..15, v (K, C), y (R, C): all 15 fraction bits are kept, real = y * v_scale * 2**-15.
    Source: FQ-ViT (arXiv 2111.13824), Log-Int-Softmax: attention times V by shifts.
    """
    weight = tap("weight", [[0 if code < 0 else 2 ** (LOG2_FRACTION_BITS - code) for code in row] for row in q])
    return matmul(weight, v)
