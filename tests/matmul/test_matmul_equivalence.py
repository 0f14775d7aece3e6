"""Matrix products: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import numpy as np
import pytest
from backends import both

from intvit import ops


def test_log2_matmul_every_code_and_8_bit_value():
    q, v = np.repeat(np.arange(-1, 16), 256)[:, None, None], np.tile(np.arange(-128, 128), 17)[:, None, None]
    fast, _ = ops.log2_matmul(q, v, 1.0)
    assert np.array_equal(fast, ops.log2_matmul(q, v, 1.0, backend="spec")[0])


def test_every_8_bit_product_and_sum():
    from intvit.kernels.matmul import matmul
    from intvit.kernels.pool import mean
    from intvit.spec import pool
    from intvit.spec.matmul import matmul as spec_matmul

    x = np.arange(-128, 128)
    assert np.array_equal(matmul(x[:, None], x[None]), np.array(spec_matmul(x[:, None].tolist(), [x.tolist()])))
    pairs = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    assert np.array_equal(mean(pairs, 1), [pool.mean(pair) for pair in pairs.tolist()])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 33, 9), (7, 129, 17)])
def test_matrix_products_on_adversarial_operands(shape):
    from intvit.kernels.matmul import matmul, prepare_linear
    from intvit.spec.matmul import linear
    from intvit.spec.matmul import matmul as spec_matmul

    r, k, c = shape
    signs = np.where(np.arange(r * k).reshape(r, k) % 2, 127, -128)
    for a, b in (
        (np.full((r, k), -128), np.full((k, c), -128)),
        (signs, np.where(np.arange(k * c).reshape(k, c) % 2, -128, 127)),
        (np.full((r, k), 65535), np.full((k, c), -128)),
        (np.full((r, k), 2**31 - 1), np.full((k, c), 2**24)),
    ):
        expected = np.array(spec_matmul(a.tolist(), b.tolist()))
        assert np.array_equal(matmul(a, b), expected)
    bias = np.arange(c) - 2**30
    w = np.full((c, k), -128)
    run = prepare_linear(w, bias, 128)
    assert np.array_equal(run(signs), np.array(linear(signs.tolist(), w.tolist(), bias.tolist())))


@pytest.mark.parametrize(("a_top", "b_top", "depth"), [(2**31, 2**14, 600), (2**31, 2**13, 511), (70000, 128, 90)])
def test_matrix_products_on_wide_random_operands(a_top, b_top, depth):
    """float32, float64 and split float64 carriers, on operands of one sign and of both."""
    from intvit.kernels.matmul import matmul
    from intvit.spec.matmul import matmul as spec_matmul

    rng = np.random.default_rng(7)
    for low, b_low in ((-a_top, -b_top), (-2 * a_top, -b_top), (a_top * 7 // 8, b_top * 7 // 8)):
        a = rng.integers(low, low + a_top // 8, (3, depth))
        b = rng.integers(b_low, b_low + b_top // 8, (depth, 4))
        assert np.array_equal(matmul(a, b), np.array(spec_matmul(a.tolist(), b.tolist())))


@pytest.mark.parametrize("most", [128, 2**31, 2**38, 2**44])
@pytest.mark.parametrize(("q", "v"), [((2, 5, 9), (2, 9, 4)), ((5, 9), (3, 9, 4)), ((3, 1, 5, 9), (2, 9, 4))])
def test_log2_matmul(q, v, most):
    rng = np.random.default_rng(3)
    both(ops.log2_matmul, rng.integers(-1, 16, q), rng.integers(-most, most, v), 0.5)
    assert ops.log2_matmul([[0]], [[1]], 0.5)[1] == 2.0**-16
