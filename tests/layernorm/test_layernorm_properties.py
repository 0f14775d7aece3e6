"""LayerNorm: what must hold whatever the numbers."""

import numpy as np
import pytest
from backends import BACKENDS

from intvit import ops
from intvit.kernels import registry

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_layernorm_of_equal_values_is_its_bias(method, backend):
    gamma, beta = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.25, 0.5, -1.0, 0.0])
    y, scale = ops.layernorm(np.full((1, 4), 9), 0.1, gamma, beta, method=method, out_scale=2.0**-7, backend=backend)
    assert np.allclose(y[0] * scale, beta, atol=2.0**-7)


@pytest.mark.parametrize("method", ["ivit", "ibert"])
@pytest.mark.parametrize("gamma", [0.0, 1e-30, -1e-30, 1e-18])
def test_a_gamma_that_vanishes_leaves_beta(method, gamma):
    x = RNG.integers(-128, 128, (3, 4))
    y, scale = ops.layernorm(x, 0.1, [1.0, gamma, gamma, 1.0], [0.0, 0.75, -3.0, 1.0], method=method)
    real = (y * scale)[:, 1:3]
    assert np.allclose(real, [0.75, -3.0], rtol=2.0**-9)
    codes = ops.requantize(y, scale, 3.0 / 127, 8)
    assert (np.abs(codes[:, 1:3] - [32, -127]) <= 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-9, -1e-8, 1e-7, 1e-6])
@pytest.mark.parametrize("beta", [0.75, 31.0, 33.0, -65.0, 106.0, 127.0, -300.0, 1e6])
def test_a_gamma_that_vanishes_leaves_beta_in_steps_of_the_output(backend, gamma, beta):
    """FQ-ViT: N is 31 then, and a beta of 33 steps with all guard bits was cut to 60 bits."""
    x = np.random.default_rng(3).integers(-128, 128, (3, 4))
    y, _ = ops.layernorm(
        x, 0.1, [1.0, gamma, 1.0, 1.0], [0.0, beta, 1.0, -1.0], method="fqvit", out_scale=1.0, backend=backend
    )
    assert (y[:, 1] == np.rint(beta)).all()


def test_gamma_zero_replacement_is_the_documented_one():
    params, scale = registry.get("layernorm", "ivit").lower(0.1, gamma=[0.0, 0.0], beta=[0.5, 0.0])
    unit = float(np.float32(np.sqrt(2))) / 2**30
    assert params.bias[0] in (2**40, 2**40 - 1)
    assert params.bias[1] == 0
    assert scale[1] == unit * 2.0**-23


def test_bound_of_layernorm_grows_with_the_bias_and_the_shift():
    params, _ = registry.get("layernorm", "ivit").lower(0.05, gamma=[0.5, 1.0], beta=[1.0, -3.0])
    assert registry.get("layernorm", "ivit").bound(params, 127, 2) == 2**30 + max(abs(b) for b in params.bias)


@pytest.mark.parametrize("shift", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("operator", ["layernorm", "rmsnorm"])
def test_bound_of_ibert_after_a_shift_is_attained_and_never_passed(operator, shift):
    """What a shift cuts off is missing in the root: one deviation of 2**(shift + 1) - 1 is seen as 1."""
    m = registry.get(operator, "ibert")
    facts = {"gamma": [1.0] * 4, "shift": shift, **({"beta": [0.0] * 4} if operator == "layernorm" else {})}
    params, _ = m.constants(0.05, facts, {})
    bound = m.bound(params, 2**15, 4)
    rng, low = np.random.default_rng(shift), -(2**shift)
    rows = rng.integers(low * 2, -low * 2, (3000, 4)).tolist()
    extreme = [2 ** (shift + 1) - 1, *([low] * 2 if operator == "layernorm" else [0, 0]), 0]
    largest = max(max(map(abs, m.spec(row, params))) for row in [*rows, extreme])
    assert largest <= bound == 2**31 - 2 ** (30 - shift)
    assert largest == bound


@pytest.mark.parametrize("backend", BACKENDS)
def test_fqvit_layernorm_of_equal_values_rounds_half_even(backend):
    beta = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.75, 1.25, -3.75])
    y, _ = ops.layernorm(np.full((1, 8), -3), 0.1, np.ones(8), beta, method="fqvit", out_scale=1.0, backend=backend)
    assert y.tolist() == [[0, 2, 2, 0, -2, 1, 1, -4]]


def test_a_gamma_is_replaced_from_a_bias_of_two_to_the_61_on():
    lower = registry.get("layernorm", "ivit").lower
    unit = float(np.float32(1.0)) / 2**30
    kept, _ = lower(0.1, gamma=[1.0], beta=[2.0**61 * unit * 0.99])
    replaced, _ = lower(0.1, gamma=[1.0], beta=[2.0**61 * unit])
    assert kept.bias[0] > 2**60
    assert replaced.bias[0] == 2**40


@pytest.mark.parametrize("backend", BACKENDS)
def test_deployed_layernorm_wraps_at_32_bits(backend):
    """The bias passes 32 bits and wraps; the sum with the normalised part wraps again."""
    x = np.array([[127, -128, 3, 0]])
    y, _ = ops.layernorm(x, 0.1, [0.5] * 4, [3.9, -3.9, 3.9, 0.97], method="ivit_tvm", backend=backend)
    assert y.min() >= -(2**31)
    assert y.max() < 2**31
    exact, _ = ops.layernorm(x, 0.1, [0.5] * 4, [3.9, -3.9, 3.9, 0.97], method="ivit")
    assert (np.abs((y - exact + 2**31) % 2**32 - 2**31) <= 2**24).all()


def test_layernorm_fqvit_with_beta_far_beyond_the_output_scale():
    x = RNG.integers(-128, 128, (4, 6))
    for beta, out_scale in ((1e6, 1e-6), (3e3, 1e-7), (1e9, 1e-9), (-1e12, 1e-6)):
        for gamma in (1.0, 0.0, -1e-4, 1e5):
            args = (x, 0.02, [gamma] * 6, [beta] * 6)
            fast, _ = ops.layernorm(*args, method="fqvit", out_scale=out_scale)
            slow, _ = ops.layernorm(*args, method="fqvit", out_scale=out_scale, backend="spec")
            assert np.array_equal(fast, slow)
