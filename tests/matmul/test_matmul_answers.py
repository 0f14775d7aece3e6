"""Matrix products: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_log2_matmul(backend):
    # codes 0, 1, 3, -1 weigh 1, 1/2, 1/8, 0: values 8, 8, 8, 100 give 8 + 4 + 1
    q, v = np.array([[[0, 1, 3, -1]]]), np.array([[[8], [8], [8], [100]]])
    y, scale = ops.log2_matmul(q, v, 1.0, backend=backend)
    assert float(y[0, 0, 0]) * float(np.ravel(scale)[0]) == 13.0


def test_matrix_product_of_a_magnitude_that_no_float_holds():
    """321 * 28059810762433 = 2**53 + 1 is no float64: one product alone must already go by integers."""
    from intvit.kernels.matmul import matmul

    assert matmul(np.array([[321]]), np.array([[28059810762433]])).tolist() == [[2**53 + 1]]
    assert matmul(np.array([[2**26, 1]]), np.array([[2**27], [-1]])).tolist() == [[2**53 - 1]]
    pair = np.array([[3, 3, 3]]), np.array([[(2**53 + 1) // 3], [1], [0]])
    assert matmul(*pair).tolist() == [[2**53 + 4]]


def test_matrix_product_of_no_elements():
    from intvit.kernels.matmul import matmul

    assert matmul(np.zeros((0, 3), np.int64), np.full((3, 2), 2**62)).shape == (0, 2)
    assert matmul(np.zeros((2, 0), np.int64), np.zeros((0, 2), np.int64)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_log2_matmul_of_values_up_to_48_bits(backend):
    for v in (2**48 - 1, -(2**48) + 1, 2**47, 2**38):
        y, _ = ops.log2_matmul([[0], [15], [-1]], [[v]], 1.0, backend=backend)
        assert y.tolist() == [[v << 15], [v], [0]]
    if backend == "kernel":
        with pytest.raises(IntvitError, match=r"below 2\*\*63"):
            ops.log2_matmul([[0]], [[2**48]], 1.0)
