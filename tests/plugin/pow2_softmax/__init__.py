"""A softmax in base 2 that shifts and adds only; its input scale must be a power of two."""

import math
from dataclasses import dataclass
from typing import Annotated

import numba
import numpy as np
from pydantic import Field

from intvit.errors import IntvitError
from intvit.kernels.method import Method, Options


@dataclass(frozen=True)
class Pow2Softmax:
    """`scale = 2**-fraction`; exponents have `guard` bits; outputs are at most 2**out_bits."""

    fraction: int
    guard: int
    out_bits: int


class Pow2Options(Options):
    guard: Annotated[int, Field(ge=4, le=24)] = 16


def spec(row, p, mask=None):
    """e_j = 2**guard >> ((max - x_j) >> fraction), y_j = (e_j << out_bits) // sum e; a masked e_j is 0."""
    hidden = [False] * len(row) if mask is None else mask
    top = max([x for x, h in zip(row, hidden, strict=True) if not h], default=0)
    e = [0 if h else (1 << p.guard) >> ((top - x) >> p.fraction) for x, h in zip(row, hidden, strict=True)]
    total = max(sum(e), 1)
    return [(v << p.out_bits) // total for v in e]


@numba.njit
def fill(rows, mask, fraction, guard, out_bits, out):
    for i in range(rows.shape[0]):
        top, seen = 0, False
        for j in range(rows.shape[1]):
            if not mask[i, j] and (not seen or rows[i, j] > top):
                top, seen = rows[i, j], True
        total = 0
        for j in range(rows.shape[1]):
            out[i, j] = 0 if mask[i, j] else (1 << guard) >> min((top - rows[i, j]) >> fraction, 62)
            total += out[i, j]
        for j in range(rows.shape[1]):
            out[i, j] = (out[i, j] << out_bits) // max(total, 1)


def kernel(p):
    def run(rows, mask=None):
        out = np.empty(rows.shape, np.int64)
        fill(rows, np.zeros(rows.shape, np.bool_) if mask is None else mask, p.fraction, p.guard, p.out_bits, out)
        return out

    return run


def lower(in_scale, *, out_bits, guard):
    mantissa, exponent = math.frexp(in_scale)
    if mantissa != 0.5 or not 0 <= 1 - exponent <= 30:
        raise IntvitError(f"softmax pow2: input scale must be a power of two in 2**-30..1, not {in_scale}")
    return Pow2Softmax(1 - exponent, guard, out_bits), 2.0**-out_bits


POW2 = Method(
    "softmax", "pow2", 1, Pow2Softmax, lower, spec, kernel, "base 2, shifts and one division", "tests of intvit",
    bound=lambda p, x_max, n_channels: 1 << p.out_bits, options=Pow2Options, widths=(4, 12), longest_row=4096,
    input_scale=lambda scale: 2.0 ** math.ceil(math.log2(scale)),
)  # fmt: skip
