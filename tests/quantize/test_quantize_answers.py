"""Quantizers: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

import numpy as np
import pytest

from intvit import ops

# FQ-ViT (arXiv 2111.13824), unsigned: s = (max - min) / (2**b - 1), z = clamp(-rhe(min / s)), q = clamp(rhe(x/s + z))
AFFINE = [
    # bits, (min, max), x, codes, zero_point
    (4, (-1.0, 2.0), [-1.0, 0.0, 2.0, 9.0, -9.0], [0, 5, 15, 15, 0], 5),
    (4, (1.0, 4.0), [1.0, 2.0, 4.0], [5, 10, 15], 0),
    (4, (-8.0, -5.0), [-8.0, -3.0, -2.0, -1.0, 0.0], [0, 0, 5, 10, 15], 15),
    (6, (-8.0, -1.7), [-8.0, -7.9, -0.1, 0.0], [0, 0, 62, 63], 63),
    (6, (-2.0, 4.3), [-2.0, 0.0, 4.3, 5.0], [0, 20, 63, 63], 20),
    (8, (-1.0, 1.55), [-1.0, 0.0, 1.55, 3.0], [0, 100, 255, 255], 100),
    (2, (0.0, 3.0), [0.0, 1.0, 2.5, 3.5], [0, 1, 2, 3], 0),
]
# symmetric weights, 1/127 of the largest magnitude a step: ties to even, both ends of the range
SYMMETRIC = [
    # I-ViT: scale max|w| / (2**(b-1) - 1); codes -2**(b-1) .. 2**(b-1) - 1
    ("ivit", 4, [7.0, -7.0, 2.5, 3.5, -0.5], [7, -7, 2, 4, 0], 1.0),
    ("ivit", 8, [127.0, -127.0, 0.5, 1.5], [127, -127, 0, 2], 1.0),
    # I-BERT: the same scale, clamped to -(2**(b-1) - 1) .. 2**(b-1) - 2
    ("ibert", 4, [7.0, -7.0, 2.5, 3.5, -0.5], [6, -7, 2, 4, 0], 1.0),
    ("ibert", 8, [127.0, -127.0, 126.0], [126, -127, 126], 1.0),
    # FQ-ViT: scale max|w| / ((2**b - 1) / 2)
    ("fqvit", 4, [7.5, -7.5, 2.5, 3.5, -0.5], [7, -8, 2, 4, 0], 1.0),
    ("fqvit", 8, [127.5, -127.5, 126.5], [127, -128, 126], 1.0),
]


@pytest.mark.parametrize(("bits", "limits", "x", "codes", "zero_point"), AFFINE)
def test_fqvit_quantize_activation(bits, limits, x, codes, zero_point):
    got, scale, z = ops.quantize_activation(
        np.array(x), method="fqvit", bits=bits, min_val=limits[0], max_val=limits[1]
    )
    assert z == zero_point
    assert got.tolist() == codes
    assert scale == (limits[1] - limits[0]) / (2**bits - 1)


def test_fqvit_ptf_quantize_activation_gives_each_channel_its_power_of_two():
    # range 0..7.5 at 4 bits: s = 0.5, so the finest scale is 1/16; channel 0 lies on 1/16, channel 1 on 1/8 steps
    # up to 1.875 (clips at 15/16), channel 2 needs 1/4 up to 3.75, channel 3 all of it
    x = np.array([[1 / 16, 1 / 8, 1 / 4, 1 / 2], [15 / 16, 15 / 8, 15 / 4, 15 / 2]])
    codes, scale, z, factors = ops.quantize_activation(x, method="fqvit", bits=4, min_val=0, max_val=7.5, ptf=True)
    assert z == 0
    assert factors.tolist() == [1, 2, 4, 8]
    assert scale.tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert codes.tolist() == [[1, 1, 1, 1], [15, 15, 15, 15]]


@pytest.mark.parametrize(("method", "bits", "w", "codes", "scale"), SYMMETRIC)
def test_quantize_weight(method, bits, w, codes, scale):
    got, got_scale = ops.quantize_weight(np.array([w]), bits, method=method)
    assert got.tolist() == [codes]
    assert got_scale.tolist() == [scale]


def test_quantize_bias_is_at_the_accumulator_scale():
    # 0.25 * 0.5 = 1/8: 1.0 -> 8, 3/16 = 1.5 steps -> 2 (tie to even), 5/16 -> 2; saturated at s32
    codes, scale = ops.quantize_bias(np.array([1.0, 3 / 16, 5 / 16, 1e12]), 0.25, np.full(4, 0.5))
    assert codes.tolist() == [8, 2, 2, 2**31 - 1]
    assert scale.tolist() == [0.125] * 4


@pytest.mark.parametrize(("method", "scale"), [("ivit", 2.0**-23), ("fqvit", 2.0**-23), ("ibert", 1e-8 / 127)])
def test_quantize_weight_of_0_has_the_least_scale(method, scale):
    q, got = ops.quantize_weight(np.zeros((2, 3)), method=method)
    assert not q.any()
    assert (np.asarray(got) == scale).all()


# FQ-ViT and I-ViT clamp to -2**(b-1) .. 2**(b-1) - 1, I-BERT to -(2**(b-1) - 1) .. 2**(b-1) - 2; the scale of a bias is
# not its own, so that it meets both ends


@pytest.mark.parametrize(
    ("method", "codes"), [("ivit", [-128, 127, -128]), ("ibert", [-127, 126, -127]), ("fqvit", [-128, 127, -128])]
)
def test_quantize_bias_saturates_at_both_ends(method, codes):
    assert ops.quantize_bias([-200.0, 200.0, -128.0], 1.0, [1.0] * 3, 8, method=method)[0].tolist() == codes
