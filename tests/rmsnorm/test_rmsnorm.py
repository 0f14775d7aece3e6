"""RMSNorm: what the integers stand for."""

import numpy as np
import pytest

from intvit import ops


@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_rmsnorm_stands_for_its_function(method):
    x, gamma = np.random.default_rng(4).integers(-20000, 20000, (20, 48)), np.linspace(-2, 2, 48)
    y, scale = ops.apply("rmsnorm", x, 0.01, method=method, facts={"gamma": gamma})
    real = x / np.sqrt((x.astype(float) ** 2).mean(axis=1, keepdims=True)) * gamma
    assert np.abs(y * scale - real).max() < 1e-3
    assert ops.apply("rmsnorm", np.zeros((1, 48), int), 0.01, method=method, facts={"gamma": gamma})[0].tolist() == [
        [0] * 48
    ]
