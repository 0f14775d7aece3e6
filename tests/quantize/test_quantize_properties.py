"""Quantizers: what must hold whatever the numbers."""

import numpy as np
import pytest

from intvit import ops


@pytest.mark.parametrize(("x", "zero_point"), [([-1.0, -0.5], 255), ([0.5, 1.0], 0), ([-1.0, 1.0], 128)])
def test_unsigned_zero_point_stays_in_its_range(x, zero_point):
    assert ops.quantize_activation(np.array(x), method="fqvit")[2] == zero_point
