"""Matrix products: what must hold whatever the numbers."""

import numpy as np


def test_linear_product_accumulator_is_int32_exactly_while_the_bound_fits():
    from intvit.kernels.matmul import carrier, matmul, prepare_linear

    one = np.ones((1, 1), np.int64)
    for bound, kind in ((2**31 - 1, np.int32), (2**31, np.int64)):
        assert prepare_linear(one, np.array([bound - 127]), 127)(one).dtype == kind
        assert matmul(one, one, a_max=bound, b_max=1).dtype == kind
    assert carrier(2**24 - 1) is np.float32
    assert carrier(2**24) is np.float64
    assert carrier(2**53 - 1) is np.float64
    assert carrier(2**53) is None
