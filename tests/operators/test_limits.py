"""The limits of every operator: what lies just inside gives the definition's integers, what lies outside one line."""

import math

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError

C_LIMIT = math.sqrt(1.0 / 0.35815147 / 2**62)
"""The scale at which I-BERT's constant c = (1 / 0.35815147) / scale**2 reaches 2**62."""
FINE = 2.0**-15  # c of 32 bits, ln 2 at 22712: two columns may differ by 28 times that, and not by 29


def softmax(rows, scale, method, bits=8):
    return lambda backend: ops.softmax(rows, scale, method=method, out_bits=bits, backend=backend)


def gelu(rows, scale, method):
    return lambda backend: ops.gelu(rows, scale, method=method, backend=backend)


def layernorm(rows, method, **options):
    ones = np.ones(len(rows[0]))
    if method == "fqvit":
        options.setdefault("out_scale", 0.03)
    return lambda backend: ops.layernorm(rows, 0.1, ones, ones, method=method, backend=backend, **options)


TOP = 2**31 - 1
INSIDE = {
    **{f"softmax {m} extremes": softmax([[TOP, -TOP - 1, 0]], 0.1, m) for m in ("ivit", "ibert", "ivit_tvm")},
    "softmax fqvit extremes": softmax([[TOP, -TOP - 1, 0]], 0.1, "fqvit", 4),
    **{f"gelu {m} extremes": gelu([[TOP, -TOP - 1, 0]], 0.1, m) for m in ("ivit", "ibert", "ivit_tvm")},
    "softmax ivit finest scale": softmax([[5, -3, 0]], 1.0000001 / 2**30, "ivit"),
    "softmax ivit_tvm finest scale": softmax([[5, -3, 0]], 1.0000001 / 2**30, "ivit_tvm"),
    "gelu ivit finest scale": gelu([[5, -3, 0]], 1.0000001 / 2**30 / 1.702, "ivit"),
    "softmax ibert finest scale": softmax([[5, -3, 0]], C_LIMIT * 1.0000001, "ibert"),
    "softmax fqvit widest spread": softmax([[0, -22713 * 28]], FINE, "fqvit", 4),
    "layernorm ivit farthest rows": layernorm([[2**40 - 1, 2**40 - 900, 2**40 - 7]], "ivit"),
    "layernorm ibert farthest rows": layernorm([[-(2**40), -(2**40) + 900, -(2**40) + 7]], "ibert"),
    "layernorm fqvit farthest rows": layernorm([[2**30 - 1, 0]], "fqvit"),
    "layernorm fqvit farthest rows, factor": layernorm([[2**23 - 1, -(2**23) + 1]], "fqvit", factor=[128, 1]),
    "layernorm fqvit largest factor": layernorm([[100, -100]], "fqvit", factor=[256, 1]),
    "layernorm ibert largest shift": layernorm([[2**29, -(2**29)]], "ibert", shift=31),
}
OUTSIDE = {
    **{f"softmax {m} high": softmax([[TOP + 1, 0]], 0.1, m) for m in ("ivit", "ibert", "ivit_tvm")},
    **{f"softmax {m} low": softmax([[-TOP - 2, 0]], 0.1, m) for m in ("ivit", "ibert", "ivit_tvm")},
    "softmax fqvit high": softmax([[TOP + 1, 0]], 0.1, "fqvit", 4),
    **{f"gelu {m} high": gelu([[TOP + 1, 0]], 0.1, m) for m in ("ivit", "ibert", "ivit_tvm")},
    "softmax ivit finer scale": softmax([[5]], 1 / 2**30, "ivit"),
    "softmax ivit_tvm finer scale": softmax([[5]], 0.9999 / 2**30, "ivit_tvm"),
    "gelu ivit finer scale": gelu([[5]], 0.9999999 / 2**30 / 1.702, "ivit"),
    "softmax ibert finer scale": softmax([[5]], C_LIMIT * 0.9999999, "ibert"),
    "softmax fqvit finer scale": softmax([[5]], C_LIMIT * 0.9999999, "fqvit", 4),
    "softmax fqvit wider spread": softmax([[0, -22713 * 29]], FINE, "fqvit", 4),
    "softmax ivit_tvm bits": softmax([[5]], 0.1, "ivit_tvm", 16),
    "layernorm ivit rows": layernorm([[2**40, 2**40 - 1]], "ivit"),
    "layernorm ibert rows": layernorm([[-(2**40) - 1, -(2**40)]], "ibert"),
    "layernorm fqvit rows": layernorm([[2**30, 0]], "fqvit"),
    "layernorm fqvit low rows": layernorm([[-(2**30), 0]], "fqvit"),
    "layernorm fqvit rows, factor": layernorm([[2**23, 0]], "fqvit", factor=[128, 1]),
    "layernorm fqvit factor": layernorm([[100, -100]], "fqvit", factor=[512, 1]),
    "layernorm fqvit factor 0": layernorm([[100, -100]], "fqvit", factor=[0, 1]),
    "layernorm ibert shift": layernorm([[1, 2]], "ibert", shift=32),
    "layernorm ibert negative shift": layernorm([[1, 2]], "ibert", shift=-1),
}


@pytest.mark.parametrize("call", INSIDE.values(), ids=INSIDE)
def test_inside_the_limit(call):
    fast, fast_scale = call("kernel")
    slow, slow_scale = call("spec")
    assert np.array_equal(fast, slow)
    assert np.array_equal(fast_scale, slow_scale)


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE)
def test_outside_the_limit(call):
    with pytest.raises(IntvitError) as caught:
        call("kernel")
    assert "\n" not in str(caught.value)
