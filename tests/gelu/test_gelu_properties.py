"""GELU: what must hold whatever the numbers."""

import numpy as np
import pytest
from backends import BACKENDS

from intvit import ops


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_gelu_keeps_zero(method):
    y, _ = ops.gelu(np.array([[0, 5, -7]]), 0.05, method=method, n=6)
    assert y[0, 0] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_shiftgelu_of_all_negative_rows(backend):
    """The second exponential is of a positive argument: it saturates the sum, F = 1, and the sigmoid is e >> 24 = 1."""
    y, _ = ops.gelu(np.full((1, 5), -128), 0.5, method="ivit", backend=backend)
    assert y.tolist() == [[-128] * 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_gelu_wraps_its_product_at_32_bits(backend):
    """x = 2**26 with a sigmoid of 127 or so: the product passes 32 bits."""
    x = [[2**26 + 12345, 0, 5]]
    exact, _ = ops.gelu(x, 0.5, method="ivit", backend=backend)
    y, _ = ops.gelu(x, 0.5, method="ivit_tvm", backend=backend)
    assert exact[0, 0] > 2**31
    assert y[0, 0] == (x[0][0] * 127 + 2**31) % 2**32 - 2**31


def test_default_exponent_of_ibert_gelu_is_the_published_one():
    x = np.arange(-2000, 2000)[None]
    assert np.array_equal(ops.gelu(x, 1e-3, method="ibert")[0], ops.gelu(x, 1e-3, method="ibert", n=14)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_gelu_shifts_by_exactly_31(backend):
    """x0 = -3, maximum -17: t = 24, q = -8, em = 3 << 31 = -2**31 as a word; e = 3 << 23, F = -1, e*F >> 24 = -2."""
    y, _ = ops.gelu([[-17, -17]], 0.25, method="ivit_tvm", backend=backend)
    assert y.tolist() == [[34, 34]]
