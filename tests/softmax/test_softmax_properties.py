"""Softmax: what must hold whatever the numbers."""

import numpy as np
import pytest
from backends import BACKENDS

from intvit import ops

RNG = np.random.default_rng(11)
X = RNG.integers(-128, 128, (6, 17))


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_softmax_rows_are_independent(method):
    whole, _ = ops.softmax(X, 0.05, method=method, out_bits=8)
    alone = [ops.softmax(X[i : i + 1], 0.05, method=method, out_bits=8)[0][0] for i in range(len(X))]
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_masked_columns_do_not_change_the_maximum(method, backend):
    mask = np.zeros(X.shape, bool)
    mask[:, 5] = True
    changed = X.copy()
    changed[:, 5] = 127
    first = ops.softmax(X, 0.05, method=method, out_bits=8, mask=mask, backend=backend)[0]
    assert np.array_equal(first, ops.softmax(changed, 0.05, method=method, out_bits=8, mask=mask, backend=backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "expected"), [("ivit", [31] * 4), ("ibert", [0] * 4), ("fqvit", [2] * 4)])
def test_a_row_that_is_masked_whole(method, expected, backend):
    y, _ = ops.softmax([[3, 1, 2, 9]], 0.05, method=method, out_bits=8, mask=[[True] * 4], backend=backend)
    assert y.tolist() == [expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_softmax_whose_sum_wraps_to_zero(backend):
    """x0 = -256: 256 equal columns of 256 * 2**16 sum to 2**32, which is 0 as a word."""
    y, _ = ops.softmax(np.zeros((1, 256), np.int64), 1 / 255, method="ivit_tvm", out_bits=8, backend=backend)
    assert not y.any()
    y, _ = ops.softmax(np.zeros((1, 255), np.int64), 1 / 255, method="ivit_tvm", out_bits=8, backend=backend)
    assert y.any()
