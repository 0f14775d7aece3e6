"""LayerNorm: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels import registry

# I-BERT LayerNorm: a shift of 3 hides a deviation of 1, so that the root is 0 and nothing but the bias is left. With
# beta = gamma = 1 and C = 4 that is floor(1 / (2 / 2**30)) = 2**29, whose scale is 2 / 2**30


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ibert_layernorm_of_a_deviation_below_its_shift(backend):
    y, scale = ops.layernorm([[0, 0, 0, 1]], 0.1, [1.0] * 4, [1.0] * 4, method="ibert", shift=3, backend=backend)
    assert y.tolist() == [[2**29] * 4]
    assert np.array_equal(scale, [2.0**-29] * 4)


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_layernorm_bound_of_the_variance_is_met_exactly(method):
    """C * (max - min)**2 must stay below 2**62: 4 * (2**30)**2 is refused, one step less is computed."""
    half = 2**29
    for low in (-half, -half + 1):
        rows = [[low, half, half, low]]
        if low == -half:
            with pytest.raises(IntvitError, match=r"below 2\*\*62"):
                ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method)
            continue
        fast, _ = ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method)
        slow, _ = ops.layernorm(rows, 0.1, [1.0] * 4, [0.0] * 4, method=method, backend="spec")
        assert np.array_equal(fast, slow)


# LayerNorm of (1, -1): mean 0, var 2. I-ViT's ten steps from 2**16 only halve: k = 64, F = floor((2**31 - 1) / 64) =
# 33554431, y = (+-F) >> 1, toward zero in its 32-bit form. I-BERT: root 1, F = 2**31, y = +-2**30


@pytest.mark.parametrize(
    ("method", "y"),
    [("ivit", [16777215, -16777216]), ("ivit_tvm", [16777215, -16777215]), ("ibert", [2**30, -(2**30)])],
)
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_layernorm_of_the_smallest_variance(method, y, backend):
    got, _ = ops.layernorm([[1, -1]], 0.1, [1.0, 1.0], [0.0, 0.0], method=method, backend=backend)
    assert got.tolist() == [y]


# FQ-ViT: Dv = 2 * (1 + 0) - 1 = 1, A = gamma * 2 / out_scale = 2 * 2**5: M = 128, N = 1; B = rhe(-A / 2 * 2) = -64;
# y = rhe((128 * x - 64) / 2)


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_fqvit_layernorm_of_a_variance_of_1(backend):
    y, _ = ops.layernorm([[1, 0]], 0.1, [1, 1], [0, 0], method="fqvit", out_scale=2.0**-5, backend=backend)
    assert y.tolist() == [[32, -32]]


@pytest.mark.parametrize(("ratio", "replaced"), [(1.5 / 2, False), (0.999, False), (1.03, True), (4.0, True)])
def test_layernorm_bias_is_replaced_from_61_bits_on(ratio, replaced):
    """bias = (beta / gamma) / u with u = sqrt(C) / 2**30 = 2**-30 for one channel."""
    params, _ = registry.get("layernorm", "ivit").lower(0.1, gamma=[2.0**-31], beta=[ratio])
    assert params.bias == ((2**40,) if replaced else (int(ratio * 2.0**61),))


# I-ViT's ten steps from 2**16 give 2**31 - 1 for variances from 142617140447281152 on (far from their root 2**28.5), so
# that F = 1 and y = d >> 1; I-ViT deployed: the variance is 2**32 - 1 = 65536**2 - 1, where the steps do not settle:
# they alternate between 65535 and 65536


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_ivit_layernorm_of_the_largest_root_that_has_a_factor(backend):
    a, b = 267036645, 21232
    assert 142617140447281152 <= 2 * a * a + 2 * b * b < 142617140514390016
    y, _ = ops.layernorm([[a, -a, b, -b]], 0.1, [1.0] * 4, [0.0] * 4, method="ivit", backend=backend)
    assert y.tolist() == [[a >> 1, -a >> 1, b >> 1, -b >> 1]]


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_deployed_layernorm_of_a_variance_where_the_steps_alternate(backend):
    row = [20926, -20926, 41342, -41342, 1, -754, 357, 393]
    assert sum(row) == -3  # a mean of 0, toward zero
    assert sum(x * x for x in row) == 2**32 - 1
    k = 2**16
    for _ in range(10):
        k = (k + (2**32 - 1) // k) // 2
    factor = (2**31 - 1) // k
    assert factor == 32767
    y, _ = ops.layernorm([row], 0.1, [1.0] * 8, [0.0] * 8, method="ivit_tvm", backend=backend)
    assert y.tolist() == [[int(x * factor / 2) for x in row]]
