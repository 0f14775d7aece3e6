"""Softmax: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import math

import numpy as np
import pytest
from backends import METHODS, SCALES, SETTINGS, both, rows_of
from hypothesis import assume, given
from hypothesis import strategies as st

from intvit import ops
from intvit.kernels import registry


def softmax_refuses(method, rows, scale, masked=False):
    """The limits of the softmax kernels for rows of 32 bits: I-BERT's c = 0, FQ-ViT's sum of exponents of 2**62."""
    c = math.floor((1 / 0.35815147) / scale**2)
    if method == "ibert":
        return c == 0
    shifts = 30 if masked else min(30, int(np.ptp(rows)) // -math.floor(-0.6931 / scale) + 1)
    return method == "fqvit" and rows.shape[1] * (c << shifts) >= 2**62


@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax(method):
    @SETTINGS
    @given(rows_of(8), SCALES, st.sampled_from([4, 8, 16]), st.booleans(), st.randoms(use_true_random=False))
    def run(rows, scale, bits, masked, random):
        assume(method != "fqvit" or bits < 16)
        bits = 8 if method == "ivit_tvm" else bits
        x = np.array(rows)
        mask = np.array([[random.random() < 0.3 for _ in row] for row in rows]) if masked else None
        refused = softmax_refuses(method, x, scale, masked)
        both(ops.softmax, x, scale, method=method, out_bits=bits, mask=mask, refused=refused)

    run()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax_wide_inputs_and_ranges(method, bits):
    out_bits = {"fqvit": 4, "ivit_tvm": 8}.get(method, 16)

    @SETTINGS
    @given(rows_of(bits, 12), SCALES, st.floats(0.3, 3.0))
    def run(rows, scale, stretch):
        options = {}
        if method == "ibert":
            assume(scale < 1.6)
            params, _ = registry.get("softmax", "ibert").lower(scale, out_bits=16)
            options = {"exp_range_max": (params.c << 30) * stretch}
        x = np.array(rows)
        both(
            ops.softmax,
            x,
            scale,
            method=method,
            out_bits=out_bits,
            refused=softmax_refuses(method, x, scale),
            **options,
        )

    run()
    extremes = np.array([[2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 0, 5, -(2 ** (bits - 2)) - 3]])
    both(ops.softmax, extremes, 0.3, method=method, out_bits=out_bits)


@pytest.mark.parametrize("method", METHODS["softmax"])
def test_softmax_every_8_bit_pair(method):
    """Rows (x, 127) for all x, and every constant row: exhaustive in one 8-bit operand."""
    x = np.arange(-128, 128)
    pairs = np.stack([x, np.full_like(x, 127)], axis=1)
    for scale in (0.5, 0.02, 1 / 128, 0.3):
        for rows in (pairs, x[:, None], np.repeat(x[:, None], 7, axis=1)):
            both(ops.softmax, rows, scale, method=method, out_bits=8)


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_softmax_every_16_bit_distance_to_the_maximum(method):
    x = np.arange(-(2**15), 2**15)
    rows = np.stack([x, np.full_like(x, 2**15 - 1)], axis=1)
    for scale in (2e-4, 0.003):
        both(ops.softmax, rows, scale, method=method, out_bits=16 if method != "fqvit" else 4)
