"""SiLU and quick GELU: what the integers stand for, and how the two meet GELU."""

import numpy as np
import pytest

from intvit import ops


@pytest.mark.parametrize(("operator", "factor"), [("silu", 1.0), ("quick_gelu", 1.702)])
@pytest.mark.parametrize(("method", "most"), [("ivit", 0.07), ("ibert", 0.02)])
def test_integers_stand_for_the_function(operator, factor, method, most):
    """Against x * sigmoid on all 8-bit inputs: I-ViT's reciprocal has 4 bits here, I-BERT's ln 2 some 10 steps."""
    x, scale = np.arange(-128, 128), 0.05
    y, out_scale = ops.apply(operator, x[None], scale, method=method)
    real = scale * x
    error = np.abs(y.reshape(-1) * out_scale - real / (1 + np.exp(-factor * real)))
    assert (error < most * np.abs(real) + 0.02).all()


def test_quick_gelu_is_shift_gelu():
    """ShiftGELU is x * sigmoid(1.702 x): as GELU and as quick GELU it gives the same integers."""
    x = np.random.default_rng(3).integers(-128, 128, (50, 33))
    gelu, quick = (ops.apply(name, x, 0.04, method="ivit") for name in ("gelu", "quick_gelu"))
    np.testing.assert_array_equal(gelu[0], quick[0])
    assert gelu[1] == quick[1]
