"""Softmax: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

import numpy as np
import pytest

from intvit import ops
from intvit.kernels import registry


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_ivit(backend):
    # I-ViT (arXiv 2207.01405), Shiftmax, scale 1: x0 = -1, n = 15. d = 0: e = (0 + 2) << 15 >> 1 = 2**15.
    # d = -1: t = -1 - 1 + 1 = -1, q = 1, r = 0: e = 2 << 14 >> 1 = 2**14; d = -4: t = -4 - 2 + 1 = -5: 2**10
    y, scale = ops.softmax(np.array([[0, -1, -4]]), 1.0, method="ivit", out_bits=8, backend=backend)
    total = 2**15 + 2**14 + 2**10
    factor = (2**31 - 1) // total
    assert factor == 42799
    assert y.tolist() == [[83, 41, 2]] == [[(e * factor) >> 24 for e in (2**15, 2**14, 2**10)]]
    assert scale == 2.0**-7


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_fqvit_codes_are_rounded_logarithms(backend):
    # equal scores: 1/n; log2(4) = 2, log2(6) rounds to 3 (6 is at 1.5 * 4: up), log2(5) to 2
    for n, code in ((1, 0), (2, 1), (4, 2), (5, 2), (6, 3), (8, 3), (11, 3), (12, 4)):
        y, _ = ops.softmax(np.zeros((1, n), np.int64), 0.01, method="fqvit", out_bits=4, backend=backend)
        assert y.tolist() == [[code] * n]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_ibert_of_equal_scores(backend):
    # every h = 32767, F = 2**32 // (n * 32767): 131076, 65538, 43692, 32769; y = (32767 * F) >> 24
    for n, expected in ((1, 255), (2, 127), (3, 85), (4, 63)):
        y, scale = ops.softmax(np.zeros((1, n), np.int64), 0.01, method="ibert", out_bits=8, backend=backend)
        assert y.tolist() == [[expected] * n]
        assert scale == 2.0**-8


# I-BERT (arXiv 2101.01321): y = (h * floor(2**32 / sum h)) >> (32 - bits). One position is the whole sum: 641 divides
# 2**32 + 1 = 641 * 6700417, and 641 * 6700416 = 2**32 - 640, so that its 8-bit output is 255 and not 256; of h = 1 it
# is 2**32 >> 24 = 256


@pytest.mark.parametrize(("h", "y"), [(641, 255), (1, 256), (3, 255), (2, 256)])
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ibert_softmax_of_one_position(h, y, backend):
    scale = 0.05
    c = int((1.0 / 0.35815147) / scale**2)
    got, _ = ops.softmax(
        [[5]], scale, method="ibert", out_bits=8, exp_range_max=c * 2.0**30 * 32767 / h, backend=backend
    )
    assert got.tolist() == [[y]]


def test_bound_of_an_ibert_softmax_counts_a_hidden_position_alone():
    """At a range of 32767 * c a hidden position has h = 1, the maximum 32767: alone they give 256 and 255."""
    method = registry.get("softmax", "ibert")
    natural = method.lower(0.05, out_bits=8)[0]
    params, _ = method.lower(0.05, out_bits=8, exp_range_max=32767.0 * natural.c)
    assert method.spec([0], params) == [255]
    assert method.spec([0], params, [True]) == [256]
    assert method.bound(params, 127, 1) == 256


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_softmax_with_a_mask_of_one_row(backend):
    y, _ = ops.softmax([[50, -128]], 0.05, method="ivit", out_bits=8, mask=[[True, False]], backend=backend)
    assert y.tolist() == [[0, 127]]


# A row that is hidden whole: every exponent is -x0. Deployed in 32 bits: 641 * 6700417 = 2**32 + 1 wraps to 1, so that
# F = 2**31 - 1, and 6700417 * F is 2**31 - 6700417 modulo 2**32, y that >> 24; 255 * 16843009 = 2**32 - 1 wraps to -1,
# F = -(2**31 - 1), 16843009 * F is 16843009 - 2**31


@pytest.mark.parametrize(("n", "x0", "y"), [(641, -6700417, 127), (255, -16843009, -127)])
def test_deployed_softmax_of_a_hidden_row_whose_sum_wraps_to_one(n, x0, y):
    method = registry.get("softmax", "ivit_tvm")
    params, rows, mask = method.params(x0, 16), np.arange(n)[None], np.ones((1, n), bool)
    assert method.kernel(params)(rows, mask).tolist() == [[y] * n]
    assert method.spec(rows[0].tolist(), params, mask[0].tolist()) == [y] * n


def test_ivit_softmax_of_one_hidden_position_with_the_smallest_exponent():
    """x0 = -1: the sum is 1 and F = 2**31 - 1 itself, which 32 bits of output show whole."""
    method = registry.get("softmax", "ivit")
    params, rows, mask = method.params(-1, 15, 32), np.array([[5]]), np.ones((1, 1), bool)
    assert method.kernel(params)(rows, mask).tolist() == [[2**31 - 1]]
    assert method.spec([5], params, [True]) == [2**31 - 1]
    out = np.empty((1, 1), np.int64)
    method.fast.narrow(params, 1, True)(rows.astype(np.int8), mask, out)
    assert out.tolist() == [[2**31 - 1]]


def test_deployed_softmax_exponents_are_32_bit_words():
    from intvit.spec.softmax import shift_exp_tvm

    # t = 6 + 3 - 0 = 9, q = -9: 1 << 31 for n = 22, which is -2**31 as a word, and 1 << 32 for n = 23
    assert [shift_exp_tvm([6], -1, n) for n in (21, 22, 23, 24)] == [[2**30], [-(2**31)], [0], [0]]


def test_softmax_polynomial_below_zero_is_clamped():
    """x0 = -10, b = 18, c = 3: at -5 it is -5 * 13 + 3 = -62, clamped; at 0 it is 3 << 30, which 16 bits saturate."""
    ibert, fqvit = registry.get("softmax", "ibert"), registry.get("softmax", "fqvit")
    rows = np.array([[0, -5]])
    params = ibert.params(-10, 18, 3, 30, 2**30, 30, 8)
    assert ibert.kernel(params)(rows).tolist() == [ibert.spec([0, -5], params)] == [[255, 0]]
    codes = fqvit.params(-10, 18, 3, 30, 4)
    assert fqvit.kernel(codes)(rows).tolist() == [fqvit.spec([0, -5], codes)] == [[0, -1]]
