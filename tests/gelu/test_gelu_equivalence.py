"""GELU: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import math

import numpy as np
import pytest
from backends import METHODS, SCALES, SETTINGS, both, rows_of
from hypothesis import given
from hypothesis import strategies as st

from intvit import ops


def gelu_refuses(method, rows, scales, n):
    """I-BERT's GELU keeps |y| below 2**63: |x| times the most that the polynomial may be, per channel."""
    if method != "ibert":
        return False
    tops = []
    for scale in np.atleast_1d(scales):
        inner = scale / 1.4142
        b, c = math.floor(-1.769 / inner), math.floor((1 / -0.2888) / inner**2)
        shift = math.floor(1 / (inner**2 * -0.2888 * 2**n))
        tops.append((max(abs(c), abs(b * b + c)) >> n) + 1 + abs(shift))
    return max(abs(int(x)) for x in rows.flat) * max(tops) >= 2**63


@pytest.mark.parametrize("method", METHODS["gelu"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_gelu(method, bits):
    @SETTINGS
    @given(rows_of(bits), SCALES, st.sampled_from([6, 14]))
    def run(rows, scale, n):
        x = np.array(rows)
        both(ops.gelu, x, scale, method=method, n=n, refused=gelu_refuses(method, x, scale, n))

    run()


@pytest.mark.parametrize("n", [6, 14])
def test_ibert_gelu_every_16_bit_input(n):
    x = np.arange(-(2**15), 2**15)[:, None]
    for scale in (0.05, 0.002, 3e-4):
        both(ops.gelu, x, scale, method="ibert", n=n)


def test_ibert_gelu_per_channel_accumulators():
    @SETTINGS
    @given(st.lists(st.tuples(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(1e-5, 0.1)), min_size=1, max_size=20))
    def run(pairs):
        x, scales = np.array([[p[0] for p in pairs]]), np.array([p[1] for p in pairs])
        both(ops.gelu, x, scales, method="ibert", n=14, refused=gelu_refuses("ibert", x, scales, 14))

    run()


@pytest.mark.parametrize("method", ["ivit", "ivit_tvm"])
def test_shiftgelu_every_pair_of_8_bit_input_and_row_maximum(method):
    """ShiftGELU depends on (x, row maximum) alone: all 32,896 pairs."""
    for scale in (0.02, 0.5, 0.001):
        for top in range(-128, 128):
            x = np.arange(-128, top + 1)[None]
            both(ops.gelu, x, scale, method=method)
