"""What is known of an output before there is an input: `Method.bound`, of every operator."""

import numpy as np
import pytest

from intvit.kernels import registry

RNG = np.random.default_rng(11)
# (operator, method, scale, options, bound on |y| for |x| <= 127 in rows of 8)
BOUNDS = [
    ("softmax", "ivit", 0.05, {"out_bits": 8}, 127),
    ("softmax", "ivit", 0.05, {"out_bits": 16}, 32767),
    ("softmax", "ivit", 1e-6, {"out_bits": 8}, (10**6 << 15) >> 24),
    ("softmax", "ivit", 1e-4, {"out_bits": 8}, 127),
    ("softmax", "ibert", 0.05, {"out_bits": 8}, 255),
    ("softmax", "ibert", 0.05, {"out_bits": 16}, 65535),
    ("softmax", "ibert", 0.05, {"out_bits": 8, "exp_range_max": (1116 << 30) * 32767.0}, 256),
    ("softmax", "fqvit", 0.05, {"out_bits": 4}, 15),
    ("gelu", "ivit", 0.05, {}, 127 * 127),
    ("gelu", "ivit", 1e-4, {}, 127 * ((5876 << 23) >> 24)),
    ("gelu", "ibert", 0.05, {"n": 6}, 127 * ((2771 >> 6) + 1 + 44)),
    ("layernorm", "ivit", 0.05, {"gamma": np.ones(8), "beta": np.zeros(8)}, 2**30),
    ("layernorm", "ibert", 0.05, {"gamma": np.ones(8), "beta": np.zeros(8)}, 2**30),
]


@pytest.mark.parametrize(("operator", "method", "scale", "options", "expected"), BOUNDS)
def test_bound_is_the_documented_one_and_holds(operator, method, scale, options, expected):
    m = registry.get(operator, method)
    params, _ = m.lower(scale, **options)
    assert m.bound(params, 127, 8) == expected
    rows = RNG.integers(-127, 128, (200, 8))
    rows[:20] = np.repeat(np.arange(-127, 128, 13)[:20, None], 8, axis=1)
    rows[20:40, 1:] = -127
    rows[20:40, 0] = 127
    assert np.abs(m.kernel(params)(rows)).max() <= expected


def test_bounds_of_fine_scales():
    """An exponent beyond 31 bits: the sum clamps, F = 1, and e >> (32 - bits) itself is the output."""
    softmax, gelu = registry.get("softmax", "ivit"), registry.get("gelu", "ivit")
    for x0, expected in ((-65535, 127), (-65536, 128), (-100000, 195)):
        params = softmax.params(x0, 15, 8)
        assert softmax.bound(params, 127, 1) == expected
        assert max(softmax.spec([0], params)) <= expected
    assert gelu.bound(gelu.lower(0.001)[0], 127, 5) == 127 * 294  # x0 = -588, (588 << 23) >> 24
    ibert = registry.get("layernorm", "ibert")
    for shift in (0, 1):
        params = ibert.lower(0.1, gamma=[1.0, 1.0], beta=[0.0, 0.0], shift=shift)[0]
        assert ibert.bound(params, 127, 2) == 2**31 - 2 ** (30 - shift)
