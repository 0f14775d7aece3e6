"""Operators of 8 or 16 bits by table: what an operator and the requantization after it give for every input.

The table is filled by the operator's own kernel, so that it holds what the kernel would have computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from intvit.kernels.arith import kernel
from intvit.kernels.border import SIGNED, border

Array = np.ndarray[Any, Any]


@border(rows="int8 R C", table=f"{SIGNED} 256", out=f"{SIGNED} R C")
@kernel
def _by_element(rows, table, out):
    """table[x + 128] is the output for input x."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = table[np.int64(rows[i, j]) + 128]


@border(rows="int16 R C", table=f"{SIGNED} 65536", out=f"{SIGNED} R C")
@kernel
def _by_wide_element(rows, table, out):
    """table[x + 2**15] is the output for input x."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = table[np.int64(rows[i, j]) + 32768]


@border(rows="int8 R C", table=f"{SIGNED} 256 256", out=f"{SIGNED} R C")
@kernel
def _by_row_max(rows, table, out):
    """table[top + 128, x + 128] is the output for input x in a row whose maximum is `top`."""
    for i in range(rows.shape[0]):
        top = rows[i, 0]
        for j in range(rows.shape[1]):
            top = max(top, rows[i, j])
        line = table[np.int64(top) + 128]
        for j in range(rows.shape[1]):
            out[i, j] = line[np.int64(rows[i, j]) + 128]


def _runner(compiled: Any, table: Array) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        out = np.empty(rows.shape, table.dtype)
        compiled(rows, table, out)
        return out.reshape(x.shape)

    return run


def prepare(depends: str, evaluate: Callable[[Array], Array], low: int, high: int) -> Callable[[Array], Array] | None:
    """A function of int8 arrays (..., C) with inputs in low..high, or of int16 ones where these leave 8 bits.

    `evaluate` computes rows (R, C) of int64; `depends` says of what an output depends (`Method.depends`). None where a
    table would be too large.
    """
    inputs, wide = np.arange(low, high + 1), low < -128 or high > 127
    if depends == "element":
        found = evaluate(inputs[:, None])[:, 0]
        table = np.zeros(2**16 if wide else 256, found.dtype)
        table[inputs + len(table) // 2] = found
        return _runner(_by_wide_element if wide else _by_element, table)
    if wide:
        return None
    tops, x = np.meshgrid(inputs, inputs, indexing="ij")
    below = x <= tops
    found = evaluate(np.stack([x[below], tops[below]], axis=1))[:, 0]
    square = np.zeros((256, 256), found.dtype)
    square[tops[below] + 128, x[below] + 128] = found
    return _runner(_by_row_max, square)
