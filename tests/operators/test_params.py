"""`ops` with the integers of a parameter class in place of scales: an accelerator with constants of its own."""

import dataclasses
import random

import corners
import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError
from intvit.graph.operators import get
from intvit.kernels import registry
from intvit.spec.gelu import IbertGelu, IvitGelu
from intvit.spec.layernorm import IbertLayerNorm
from intvit.spec.softmax import IbertSoftmax, IvitSoftmax

BACKENDS = ("kernel", "spec")


def ident(method):
    return method.id


def facts_of(method, channels):
    named = get(method.operator).facts
    known = {
        "gamma": np.linspace(0.5, 1.5, channels), "beta": np.linspace(-1, 1, channels), "shift": 3, "out_scale": 0.02,
        "out_bits": 8,
    }  # fmt: skip
    return {key: value for key, value in known.items() if key in named}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", registry.methods(), ids=ident)
def test_the_integers_of_a_scale_give_what_the_scale_gives(method, backend):
    x = np.random.default_rng(1).integers(-3000, 3000, (2, 3, 5))
    x = x if method.operator in corners.NORMS else x // 30
    name = f"{method.name}.v{method.version}"
    facts = facts_of(method, 5)
    expected, _ = ops.apply(method.operator, x, 0.01, method=name, facts=facts, backend=backend)
    params, _ = method.constants(0.01, facts, {})
    found, scale = ops.apply(method.operator, x, method=name, params=params, backend=backend)
    np.testing.assert_array_equal(found, expected)
    assert scale is None


@pytest.mark.parametrize("method", corners.METHODS, ids=ident)
def test_both_backends_agree_on_any_constants(method):
    """Or the kernel refuses a row that its words do not hold; the specification has no such limit."""
    rng, compared = random.Random(7), 0
    for _ in range(40):
        channels = rng.choice((1, 2, 3, 7))
        params = corners.constants(method, channels, rng)
        for row in corners.rows(rng, corners.largest(method, params, channels), channels):
            try:
                found, _ = ops.apply(method.operator, row, method=method.name, params=params)
            except IntvitError:
                continue
            compared += 1
            by_spec, _ = ops.apply(method.operator, row, method=method.name, params=params, backend="spec")
            assert found.tolist() == by_spec.tolist(), (params, row)
    assert compared > 200


def test_gelu_of_an_accelerator():
    """I-BERT's GELU with n = 0 and constants rounded to the nearest: no scale gives them."""
    params = IbertGelu(b=(-50,), c=(-2770,), shift=(-2770,), n=0)
    for backend in BACKENDS:
        y, scale = ops.gelu([[12, -3, 40]], method="ibert", params=params, backend=backend)
        clipped = (12 - 50) ** 2 - 2770, -((3 - 50) ** 2 - 2770), (40 - 50) ** 2 - 2770
        assert y.tolist() == [[12 * (clipped[0] - 2770), -3 * (clipped[1] - 2770), 40 * (clipped[2] - 2770)]]
        assert scale is None


def test_gelu_of_constants_per_channel():
    params = IbertGelu(b=(-50, -60, -70), c=(-2770, -3000, -3300), shift=(-40, -50, -60), n=3)
    both = [ops.gelu([[12, -3, 40]], method="ibert", params=params, backend=b)[0].tolist() for b in BACKENDS]
    assert both[0] == both[1]
    alone = [IbertGelu((params.b[j],), (params.c[j],), (params.shift[j],), 3) for j in range(3)]
    assert both[0] == [
        [int(ops.gelu([x], method="ibert", params=p)[0][0]) for x, p in zip((12, -3, 40), alone, strict=True)]
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_and_its_mask(backend):
    p = IvitSoftmax(x0=-20, n=15, out_bits=8)
    x, mask = [[12, -3, 40]], [[False, False, True]]
    expected = ops.softmax(x, 0.05, method="ivit", out_bits=8, mask=mask, backend=backend)[0]
    found = ops.softmax(x, method="ivit", params=p, mask=mask, backend=backend)[0]
    np.testing.assert_array_equal(found, expected)


SOFTMAX = IbertSoftmax(x0=-14, b=54, c=1116, n=30, m=1970390814, e=56, out_bits=8)
NORM = IbertLayerNorm((5, 6, 7), 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: ops.gelu([1], method="ivit", params=SOFTMAX, backend=b),
         "gelu ivit: params must be IvitGelu, not IbertSoftmax"),
        (lambda b: ops.gelu([1], method="ivit", params={"x0": -1}, backend=b), "params must be IvitGelu, not {'x0'"),
        (lambda b: ops.gelu([1], method="ivit", params=IvitGelu, backend=b), "params must be IvitGelu, not <class"),
        (lambda b: ops.gelu([1], 0.05, method="ivit", params=IvitGelu(-3, 23, 8), backend=b),
         "gelu ivit: in_scale must not be given beside params"),
        (lambda b: ops.gelu([1], method="ibert", n=6, params=IbertGelu((-3,), (-4,), (-5,), 6), backend=b),
         "gelu ibert: n must not be given beside params"),
        (lambda b: ops.gelu([1, 2, 3], method="ibert", params=IbertGelu((-3,) * 2, (-4,) * 2, (-5,) * 2, 6), backend=b),
         "gelu ibert: params.b must have 1 or 3 elements, not 2"),
        (lambda b: ops.softmax([1], method="ibert", out_bits=8, params=SOFTMAX, backend=b),
         "softmax ibert: out_bits must not be given beside params"),
        (lambda b: ops.softmax([1], method="ibert", exp_range_max=3.0, params=SOFTMAX, backend=b),
         "exp_range_max must not be given"),
        (lambda b: ops.layernorm([1, 2, 3], method="ibert", shift=1, params=NORM, backend=b), "shift must not be"),
        (lambda b: ops.layernorm([1, 2, 3], None, [1.0] * 3, method="ibert", params=NORM, backend=b), "gamma must not"),
        (lambda b: ops.layernorm([1, 2], method="ibert", params=NORM, backend=b),
         "layernorm ibert: params.bias must have 2 elements, not 3"),
        (lambda b: ops.layernorm([1, 2], method="ibert", params=IbertLayerNorm((4,), 0), backend=b),
         "params.bias must have 2 elements, not 1"),
        (lambda b: ops.layernorm([1, 2, 3], method="ibert", params=NORM, backend=b, epsilon=2), "epsilon must not be"),
        (lambda b: ops.softmax(3, method="ibert", params=SOFTMAX, backend=b), "must have an axis to run over"),
        (lambda b: ops.gelu(3, method="ibert", params=IbertGelu((-3,), (-4,), (-5,), 6), backend=b), "an axis to run"),
        (lambda b: ops.softmax([1], method="ibert", out_bits=8, backend=b), "softmax: input scale: must be"),
        (lambda b: ops.gelu([1], method="ibert", backend=b), "gelu: input scale: must be"),
        (lambda b: ops.layernorm([1], 0.1, method="ibert", backend=b), "gamma: must be"),
        (lambda b: ops.softmax([1], 0.1, method="ivit", backend=b), "out_bits must be an integer in 1..32, not None"),
    ],
)  # fmt: skip
def test_what_is_refused(call, words, backend):
    with pytest.raises(IntvitError) as caught:
        call(backend)
    assert words in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_input_without_elements():
    y, scale = ops.softmax(np.zeros((2, 0), int), method="ibert", params=SOFTMAX)
    assert (y.shape, scale) == ((2, 0), None)


def test_a_parameter_class_refuses_what_is_out_of_range():
    with pytest.raises(IntvitError, match=r"softmax ibert: m must be an integer in 0..2147483648, not -1"):
        dataclasses.replace(SOFTMAX, m=-1)
