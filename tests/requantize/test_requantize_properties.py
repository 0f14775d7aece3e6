"""Requantization: what must hold whatever the numbers."""

import numpy as np
import pytest
from backends import BACKENDS

from intvit import ops

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_requantize_is_monotonic_and_saturates(bits):
    x = np.sort(RNG.integers(-(2**40), 2**40, 500))
    y = ops.requantize(x, 1e-3, 0.7, bits)
    assert (np.diff(y) >= 0).all()
    assert y.min() >= -(2 ** (bits - 1))
    assert y.max() <= 2 ** (bits - 1) - 1


def test_published_rule_saturates_at_no_other_width():
    assert ops.requantize([10**6], 1.0, 1.0, 6).tolist() == [10**6]
    assert ops.requantize([10**6], 1.0, 1.0, 8, clamp=False).tolist() == [10**6]
    assert ops.requantize([10**6], 1.0, 1.0, 8).tolist() == [127]


def test_multiplier_may_be_exactly_two_to_the_31():
    from intvit.kernels.requantize import dyadic

    m, e = dyadic(1 - 2.0**-53, 1.0)
    assert (m.tolist(), e.tolist()) == ([2**31], [31])
    x = np.array([5, -7, 2**31 - 1, -(2**31)])
    for backend in BACKENDS:
        assert np.array_equal(ops.requantize(x, 1 - 2.0**-53, 1.0, 64, clamp=False, backend=backend), x)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_requantize_of_two_channels_with_scales_of_their_own(backend, kind):
    x = np.array([[100, 100], [-7, -7]], kind)
    assert ops.requantize(x, [1.0, 0.5], 1.0, 8, backend=backend).tolist() == [[100, 50], [-7, -4]]
    y = ops.requantize(x, 1.0, 1.0, 8, residual=x, residual_scale=[0.25, -1.0], backend=backend)
    assert y.tolist() == [[125, 0], [-9, 0]]
    y = ops.requantize(x, [0.25, -1.0], 1.0, 8, residual=x, residual_scale=1.0, backend=backend)
    assert y.tolist() == [[125, 0], [-9, 0]]
