"""LayerNorm: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import numpy as np
import pytest
from backends import METHODS, SETTINGS, both, rows_of
from hypothesis import given
from hypothesis import strategies as st

from intvit import ops

GAINS = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1e-30, -1e-12, 1.0, -1.0]))


@pytest.mark.parametrize("method", METHODS["layernorm"])
def test_layernorm_every_16_bit_value_beside_fixed_ones(method):
    x = np.arange(-(2**15), 2**15)
    rows = np.stack([x, np.full_like(x, 77), np.full_like(x, -900)], axis=1)
    gamma, beta = [0.7, -1.3, 2.0], [0.1, 0.2, -0.3]
    both(ops.layernorm, rows, 2e-4, gamma, beta, method=method, shift=1, out_scale=0.01)


@pytest.mark.parametrize("method", METHODS["layernorm"])
@pytest.mark.parametrize("bits", [8, 16])
def test_layernorm(method, bits):
    @SETTINGS
    @given(rows_of(bits), st.data())
    def run(rows, data):
        x = np.array(rows)
        n = x.shape[1]
        gamma = np.array(data.draw(st.lists(GAINS, min_size=n, max_size=n)), np.float32)
        beta = np.array(data.draw(st.lists(st.floats(-4, 4, width=32), min_size=n, max_size=n)), np.float32)
        options = {"shift": data.draw(st.integers(0, 6))}
        if method == "fqvit":
            factor = np.array(data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=n, max_size=n)))
            options |= {"factor": factor, "out_scale": data.draw(st.floats(1e-5, 1.0))}
        both(ops.layernorm, x, 0.02, gamma, beta, method=method, **options)

    run()


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_layernorm_32_bit_inputs(method):
    @SETTINGS
    @given(rows_of(27, 20))
    def run(rows):
        x = np.array(rows)
        ones = np.ones(x.shape[1])
        both(ops.layernorm, x, 1e-4, ones, ones / 3, method=method, shift=4)

    run()


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_deployed_layernorm_of_32_bit_inputs(gamma):
    @SETTINGS
    @given(rows_of(32, 12))
    def run(rows):
        x = np.array(rows)
        ones = np.ones(x.shape[1])
        both(ops.layernorm, x, 1e-6, gamma * ones, 3.9 * ones, method="ivit_tvm")

    run()
    x = np.array([[2**31 - 1, -(2**31), -(2**31), 2**31 - 1, 5]])
    both(ops.layernorm, x, 1e-6, np.ones(5), -np.ones(5), method="ivit_tvm")
