"""What docs/quantization.md says of ranges and shift counts is what the code requires and computes."""

from pathlib import Path
from random import Random

import corners
import numpy as np
import pytest
import ranges

from intvit.errors import IntvitError
from intvit.kernels import registry
from intvit.kernels.requantize import dyadic
from intvit.spec import softmax
from intvit.spec.arith import rhe_shift, saturate
from intvit.spec.layernorm import fqvit_derived, inverse_sqrt
from intvit.spec.ranges import asked, require
from intvit.spec.requantize import requantize
from intvit.spec.taps import intermediates

ARITHMETIC = (Path(__file__).resolve().parent.parent / "docs" / "quantization.md").read_text()


def test_tables_are_those_of_the_tool():
    assert ranges.with_tables(ARITHMETIC) == ARITHMETIC, "python tools/ranges.py --write"


def test_every_constant_of_every_method_is_in_the_table():
    table = "\n".join(ranges.method_table())
    for method in corners.METHODS:
        for key in vars(corners.sample(method, 4)):
            lines = [line for line in table.splitlines() if f"{method.operator} {method.name}" in line]
            assert any(f"| `{key}` |" in line for line in lines), (method.id, key)


def test_asking_does_not_hide_a_refusal_and_ends_with_it():
    with pytest.raises(IntvitError, match=r"x must be an integer in 1\.\.3, not 4"):
        asked(lambda: require("x", 1, 3, 4))
    found = asked(lambda: require("y", 0, 1, 0))
    require("z", 0, 9, 5)
    assert found == {"y": (0, 1)}


def test_ends_of_a_range_that_depends_on_nothing_are_taken_and_no_more():
    rng = Random(0)
    for method in corners.METHODS:
        params = corners.sample(method, 3)
        for key, (low, high) in ranges.of_params(params).items():
            usual = getattr(params, key)
            for value in (low - 1, high + 1):
                given = {**vars(params), key: (value,) * len(usual) if isinstance(usual, tuple) else value}
                with pytest.raises(IntvitError, match=f"{key}.* must be an integer in {low}..{high}, not"):
                    method.params(**given)
        drawn = [corners.constants(method, 2, rng) for _ in range(60)]
        for key, (low, high) in {} if method.name == "fqvit" else ranges.of_params(params).items():
            values = [v for p in drawn for v in np.atleast_1d(np.array(getattr(p, key), object))]
            if not (method.params is softmax.IbertSoftmax and key == "b"):
                assert {low, high} <= set(values), (method.id, key)


def test_shift_counts_of_a_requantization():
    """Outside 31 - b < e < 31 + k the result is known, and e may be clamped to the ends."""
    rng = Random(2)
    for _ in range(4000):
        k, b = rng.randint(2, 40), rng.randint(2, 32)
        m = rng.choice((-1, 1)) * rng.choice((2**30, 2**31, 2**31 - 1, rng.randint(2**30, 2**31)))
        x = corners.drawn(rng, -(2 ** (k - 1)), 2 ** (k - 1) - 1)
        e = rng.choice((31 - b, 32 - b, 30 + k, 31 + k, 32 + k, rng.randint(-300, 300)))
        (y,) = requantize([x], [m], [e], b)
        assert y == requantize([x], [m], [min(max(e, 31 - b), 31 + k)], b)[0]
        if e >= 31 + k:
            assert y == 0
        if e <= 31 - b:
            assert y == (0 if x == 0 else saturate(x * m * 2**80, b))


def test_the_ends_of_those_counts_are_needed():
    assert requantize([-(2**31)], [2**31 - 1], [62], 8) == [-1]
    assert requantize([1], [2**30], [24], 8) == [64]
    assert requantize([1], [2**30], [23], 8) == [127]


def test_a_lowered_multiplier_has_all_its_bits():
    rng = Random(3)
    for _ in range(2000):
        ((m,), _) = dyadic(rng.choice((-1, 1)) * 2.0 ** rng.uniform(-60, 20), 2.0 ** rng.uniform(-20, 20))
        assert 2**30 <= abs(m) <= 2**31


@pytest.mark.parametrize("name", ["softmax.ivit", "softmax.ibert", "softmax.fqvit", "gelu.ivit"])
def test_counts_of_exponentials(name):
    rng = Random(4)
    method = registry.get(*name.split("."))
    for _ in range(60):
        params = corners.constants(method, 3, rng)
        for row in corners.rows(rng, corners.largest(method, params, 3), 3):
            taps = intermediates(method.spec, row, params)
            counts = [params.n - q for q in taps["quotient"][:3]]
            assert 0 <= min(counts) <= max(counts) <= params.n <= (23 if name.endswith("ivit.v1") else 30)
            if name == "gelu.ivit" and params.n - taps["quotient"][3] >= 31:
                assert taps["exp"][3] + 1 >= 2**31


def test_the_shift_of_the_16_bit_exponential():
    rng = Random(5)
    for _ in range(3000):
        p, m = rng.getrandbits(rng.randint(1, 62)), rng.choice((2**30, 2**31, rng.randint(2**30, 2**31)))
        count = rng.choice((14, 15, 16, 93, 94, 95, rng.randint(-200, 300)))
        exact = saturate(rhe_shift(p * m, count), 16)
        assert exact == saturate(rhe_shift(p * m, min(max(count, 15), 94)), 16)
        assert count < 94 or exact == 0
        assert count > 15 or exact == (32767 if p else 0)


def test_counts_of_fqvit_layernorm():
    rng, seen = Random(6), set()
    method = registry.get("layernorm", "fqvit")
    for value in (1, 2, 3, 4, 2**61, 2**62 - 1, *(rng.getrandbits(rng.randint(1, 62)) or 1 for _ in range(500))):
        inverse, exponent = inverse_sqrt(value)
        assert 2 * (91 - exponent) in range(0, 61, 2)
        seen.add(2 * (91 - exponent))
        assert inverse <= 2**61
    assert {0, 60} <= seen
    for _ in range(40):
        params = corners.fqvit_layernorm(3, rng)
        for row in corners.rows(rng, corners.largest(method, params, 3), 3):
            found = fqvit_derived(row, params)
            assert all(0 <= n <= 31 for n in found["shift"])
            assert all(0 <= m <= 255 for m in found["multiplier"])
