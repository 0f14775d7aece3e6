"""Requantization: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import numpy as np
import pytest
from backends import SETTINGS
from hypothesis import given
from hypothesis import strategies as st

from intvit import ops


def test_requantize():
    @SETTINGS
    @given(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
        st.floats(1e-12, 1e6),
        st.floats(1e-6, 1e6),
        st.sampled_from([4, 6, 8, 16, 32]),
        st.booleans(),
        st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    )
    def run(values, in_scale, out_scale, bits, residual, kind):
        x = np.array(values).astype(kind)
        extra = {"residual": x[::-1].copy(), "residual_scale": 0.37} if residual else {}
        fast = ops.requantize(x, in_scale, out_scale, bits, **extra)
        assert np.array_equal(fast, ops.requantize(x, in_scale, out_scale, bits, backend="spec", **extra))

    run()


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("other", [np.int8, np.int16, np.int32, np.int64])
def test_requantize_with_a_residual_of_every_width(kind, other):
    """Ratios at which most results lie inside the range: saturated ones hide everything before them."""
    rng = np.random.default_rng(5)
    for bits in (8, 16, 32):
        for channels, width in ((1, 6), (6, 6), (2, 2), (1, 2)):
            x, r = (
                rng.integers(np.iinfo(k).min // 2, np.iinfo(k).max // 2, (20, width)).astype(k) for k in (kind, other)
            )
            scales = [
                rng.uniform(0.2, 0.9, channels) * rng.choice([-1, 1], channels) * 2.0 ** (bits - 8 * v.itemsize)
                for v in (x, r)
            ]
            extra = {"residual": r, "residual_scale": scales[1]}
            fast = ops.requantize(x, scales[0], 1.0, bits, **extra)
            assert np.array_equal(fast, ops.requantize(x, scales[0], 1.0, bits, backend="spec", **extra))
            assert np.abs(fast).max() > 2 ** (bits - 4)
            alone = ops.requantize(x, scales[0], 1.0, bits)
            assert np.array_equal(alone, ops.requantize(x, scales[0], 1.0, bits, backend="spec"))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint32])
def test_requantize_of_two_channels_and_of_ratios_beyond_the_fast_form(kind):
    top = np.iinfo(kind).max
    x = np.array([[0, 0], [1, 1], [3, top], [top - 1, 2], [np.iinfo(kind).min, 5]], kind)
    for scales in (
        [1.4, 2.0**33],
        [2.0**30, 0.3],
        [2.0**31, 2.0**29],
        [2.0**-40, 2.0**-33],
        [2.0**-62, 0.5],
        [0.9, 0.1],
    ):
        for bits in (8, 32):
            for extra in ({}, {"residual": x[::-1].copy(), "residual_scale": scales[::-1]}):
                if extra and np.dtype(kind).itemsize > 4:
                    continue
                fast = ops.requantize(x, scales, 1.0, bits, **extra)
                assert np.array_equal(fast, ops.requantize(x, scales, 1.0, bits, backend="spec", **extra)), scales
    for shape in ((0, 2), (0,), ()):
        empty = np.full(shape, 3, kind)
        assert ops.requantize(empty, 2.0, 1.0, 8).shape == shape
    assert ops.requantize(kind(3), 2.0, 1.0, 8).tolist() == 6


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_requantize_saturates_at_the_published_widths_and_no_other(bits):
    top = 2 ** (bits - 1) - 1
    for backend in ("kernel", "spec"):
        assert ops.requantize([2**40, -(2**40)], 1.0, 1.0, bits, backend=backend).tolist() == [top, -top - 1]
        for other in (bits - 1, bits + 1):
            assert ops.requantize([2**40], 1.0, 1.0, other, backend=backend).tolist() == [2**40]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("log2_ratio", [-30, -31, -32, -33, -34, -45, -61])
def test_requantize_of_the_largest_int64_inputs(bits, log2_ratio):
    """Around 2**61, where the two-word kernel ends, and at both ends of int64; also one row at a time."""
    edges = [2**61 - 1, 2**61, -(2**61) + 1, -(2**61), 2**62, -(2**62), 2**63 - 1, -(2**63), 2**45 + 1]
    for x in (edges, *([edge] for edge in edges)):
        for factor in (1.0, 0.7, -0.9):
            fast = ops.requantize(x, factor * 2.0**log2_ratio, 1.0, bits)
            assert np.array_equal(fast, ops.requantize(x, factor * 2.0**log2_ratio, 1.0, bits, backend="spec")), (
                x,
                factor,
            )


def test_requantize_every_16_bit_input():
    x = np.arange(-(2**15), 2**15, dtype=np.int32)
    cases = [(ratio, 8) for ratio in (1.0, 0.5, 2.0**-7, 1 / 3, -0.5, 1 - 2.0**-53, 2 - 2.0**-52, 2.0**-20, 2.0**33)]
    for ratio, bits in [*cases, (0.3, 4), (0.3, 6), (0.3, 16), (3e4, 32)]:
        fast = ops.requantize(x, ratio, 1.0, bits)
        assert np.array_equal(fast, ops.requantize(x, ratio, 1.0, bits, backend="spec"))
