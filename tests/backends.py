"""What the tests of both backends share: calls of the two, rows and scales to draw from."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from intvit.errors import IntvitError
from intvit.graph.operators.kind import BACKENDS as BACKENDS
from intvit.kernels import registry

SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
METHODS = {op: [m.name for m in registry.methods(op)] for op in ("softmax", "gelu", "layernorm")}
EXTREME_SCALES = [1.0, 0.5, 2.0**-7, 1 / 3, 0.0023, 1e-3, 1e-5, 7.3, 100.0, 1 / 255, 0.6931, 0.05]
SCALES = st.one_of(st.sampled_from(EXTREME_SCALES), st.floats(1e-6, 20.0))


def rows_of(bits, most_columns=40):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    value = st.one_of(st.integers(low, high), st.sampled_from([low, low + 1, -1, 0, 1, high - 1, high]))
    return st.integers(1, most_columns).flatmap(
        lambda n: st.lists(st.lists(value, min_size=n, max_size=n), min_size=1, max_size=3)
    )


def both(function, *args, refused=False, **kwargs):
    """Call both backends, whose results must be equal.

    `refused`: the input is beyond a documented limit of the kernel, which the test works out by itself: the kernel must
    refuse it. A refusal that the test does not expect is a failure.
    """
    if refused:
        with pytest.raises(IntvitError):
            function(*args, backend="kernel", **kwargs)
        return
    fast, scale = function(*args, backend="kernel", **kwargs)
    slow, slow_scale = function(*args, backend="spec", **kwargs)
    assert np.array_equal(fast, slow)
    assert np.array_equal(scale, slow_scale)
