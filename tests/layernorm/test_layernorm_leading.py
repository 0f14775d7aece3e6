"""FQ-ViT's LayerNorm by the leading bits of its constants: the definition's integers, or a doubt that is resolved."""

from fractions import Fraction

import numpy as np
import pytest

from intvit.kernels import layernorm as kernels
from intvit.kernels import registry
from intvit.spec import layernorm as spec

METHOD = registry.get("layernorm", "fqvit")


def lowered(gamma, beta, out_scale=0.03, factor=None):
    return METHOD.lower(0.05, gamma=gamma, beta=beta, factor=factor, out_scale=out_scale)[0]


def general(params, rows):
    """The kernel without the leading bits."""
    *leading, _ = kernels._leading(params)
    out = np.empty(rows.shape, np.int64)
    kernels._fqvit(rows, np.array(params.factor, np.int16), kernels._constants(params), *leading, 0, out)
    return out


def led(params, rows):
    """Per row, whether the leading bits alone gave it; if so, its multipliers and offsets are the definition's."""
    words, longs, gap, least, most, room = kernels._leading(params)
    factor, n = np.array(params.factor, np.int64), rows.shape[1]
    found = []
    for i, row in enumerate(rows.astype(np.int64) * factor):
        total = int(row.sum())
        inverse, exponent = kernels.inverse_sqrt(n * int((row * row).sum()) - total**2)
        fits = least + exponent >= 2 and most + exponent <= 31 and room - exponent >= 33
        m, offset, out = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(rows.shape, np.int64)
        arguments = rows, i, factor.astype(np.int16), total, inverse, exponent, words, longs, gap, m, offset, out
        found.append(fits and kernels._fqvit_leading_row(*arguments))
        if found[-1]:
            for j, sign in enumerate(params.sign):
                expected, power, bias = spec.fqvit_constants(total, inverse, exponent, j, params)
                top = int(m[j]) >> 8
                assert (int(m[j]) >> top, sign * int(offset[j])) == (expected, bias), (i, j)
                assert power == int(words[kernels.POWER, j]) + exponent - top
    return np.array(found)


def check(params, rows):
    run = METHOD.kernel(params)
    expected = [METHOD.spec(row, params) for row in rows.tolist()]
    assert run(rows).tolist() == expected
    assert general(params, rows).tolist() == expected


@pytest.mark.parametrize("channels", [2, 3, 8, 33, 96, 384])
@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("signs", ["positive", "both"])
def test_layernorm_from_leading_bits(channels, kind, signs):
    rng = np.random.default_rng(channels)
    for spread, mean, gamma_scale, beta_scale in (
        (30, 0, 1, 1), (30, 40, 0.02, 0), (3, 1, 30, 0.01), (1, -2, 1, 1e-9), (60, -100, 1, 1e-30), (1, 0, 1, 20),
    ):  # fmt: skip
        gamma = gamma_scale * rng.uniform(0.3, 2, channels) * (rng.choice([-1, 1], channels) if signs == "both" else 1)
        beta = beta_scale * rng.normal(0, 1, channels)
        factor = 2 ** rng.integers(0, 4, channels) if spread > 1 else None
        stretch = 1 if kind is np.int8 else 100
        rows = np.clip(rng.normal(mean, spread, (6, channels)), -128, 127) * stretch
        check(lowered(gamma, beta, factor=factor), rows.astype(kind))


def test_most_rows_of_a_layernorm_need_no_more_than_the_leading_bits():
    rng = np.random.default_rng(0)
    params = lowered(rng.normal(1, 0.3, 384), rng.normal(0, 0.5, 384))
    assert led(params, rng.normal(100, 3000, (200, 384)).astype(np.int16)).mean() > 0.9


def test_layernorm_offsets_at_ties_are_in_doubt():
    """A mean of 0 leaves offset = bias: every one of these lies half way between two integers."""
    power = 9  # slope = gamma * C / sqrt(C * squares) / out_scale = 1 / 2, whose 8-bit multiplier is 128 / 2**8
    rows = np.array([[1, -1, 1, -1], [2, -2, 2, -2]], np.int8)
    for half in np.arange(-7, 8, 2):
        params = lowered([0.6, 0.7, 0.8, 0.9], [half / 2.0**power] * 4, 1.0)
        check(params, rows)
        exact = lowered([0.6, 0.7, 0.8, 0.9], [half / 2.0 ** (power - 1)] * 4, 1.0)
        check(exact, rows)
    params = lowered([0.6, 0.7, 0.8, 0.9], [3 / 2.0**power] * 4, 1.0)
    assert not led(params, rows[:1]).any()
    assert led(lowered([0.6, 0.7, 0.8, 0.9], [4 / 2.0**power] * 4, 1.0), rows[:1]).all()


@pytest.mark.parametrize("channels", [2, 3, 7, 64, 385])
def test_layernorm_offsets_beside_ties(channels):
    """Biases that put every offset a few 2**-22 beside a half: what is cut from the constants must not tip one over."""
    rng = np.random.default_rng(channels)
    n_led = 0
    for trial in range(60):
        rows = rng.integers(-30000, 30001, (1, channels)).astype(np.int16)
        rows[0] += rng.integers(-2700, 2700)
        gamma = rng.uniform(0.2, 3, channels) * rng.choice([-1, 1], channels)
        plain, total = lowered(gamma, np.zeros(channels)), int(rows.sum(dtype=np.int64))
        inverse, exponent = kernels.inverse_sqrt(channels * int((rows.astype(np.int64) ** 2).sum()) - total**2)
        beta, nearest = [], (0, 1, 3, 5, 7, 9, 15, 17, 24)[trial % 9]
        for j in range(channels):
            _, power, _ = spec.fqvit_constants(total, inverse, exponent, j, plain)
            mean = Fraction(
                plain.sign[j] * plain.gain[j] * inverse * total, 2 ** (plain.gain_exp[j] + exponent - power)
            )
            delta = Fraction(int(rng.choice([-1, 1])) * nearest, 2**22)
            beta.append(float((mean + Fraction(1, 2) + int(rng.integers(-50, 50)) + delta) / 2**power) * 0.03)
        params = lowered(gamma, beta)
        check(params, rows)
        n_led += led(params, rows).sum() if nearest > 20 else 0
    assert n_led  # beyond what is known, the leading bits are enough


@pytest.mark.parametrize("shrink", [0, 2.0**-52, 2.0**-40, 2.0**-33, 2.0**-28, 2.0**-22, 2.0**-21, -(2.0**-33)])
def test_layernorm_multipliers_at_a_power_of_two_are_in_doubt(shrink):
    """slope / sqrt(Dv) at 128 or 256 times a power of two: an ulp below it has a multiplier of 255 and one more bit."""
    rows = np.array([[1, -1], [2, -2], [4, -4], [64, -64]], np.int8)
    params = lowered([1.0 - shrink, -0.5 * (1.0 - shrink)], [0.013, 0.2], 2.0**-5)
    check(params, rows)
    assert led(params, rows).any() == (abs(shrink) > 2.0**-30)


def test_layernorm_at_the_limits_of_the_leading_bits():
    rng = np.random.default_rng(1)
    rows = rng.integers(-128, 128, (4, 8)).astype(np.int8)
    seen = set()
    for exponent in range(-40, 41):
        params = lowered(rng.uniform(0.5, 0.99, 8), rng.normal(0, 1, 8), 2.0**exponent)
        check(params, rows)
        seen |= set(led(params, rows).tolist())
        check(lowered(rng.uniform(0.5, 0.99, 8), rng.normal(0, 2.0**exponent, 8), 0.03), rows)
    assert seen == {True, False}
    wide = np.array([[2**20 - 1, -(2**20) + 1, 5, 7], [2**21, -(2**21), 5, 7], [2**28, 3, -(2**28), 0]])
    check(lowered(rng.uniform(0.5, 2, 4), rng.normal(0, 1, 4), 0.03), wide)
    check(lowered(rng.uniform(0.5, 2, 4), rng.normal(0, 1, 4), 0.03), wide[:1] - 2)


def test_a_gamma_of_0_in_a_layernorm():
    rng = np.random.default_rng(2)
    rows = rng.integers(-128, 128, (4, 8)).astype(np.int8)
    params = lowered([0, 1, 2, 0, 1, -1, 0.5, 1], rng.normal(0, 1, 8))
    check(params, rows)
    assert not led(params, rows).any()


@pytest.mark.parametrize("total", [4, 12, -4, -12, 20])
def test_a_tiny_beta_of_a_layernorm_beside_a_tie(total):
    """M = 128.25 at exponent 0, so that the mean's part is 64.125 * total, a tie; beta decides it from 2**-25 on."""
    rows = np.array([[total // 2 + 8, total // 2 - 8]])
    for part in (0.0, 0.1, 0.24, 0.26, 0.4, 0.5, 0.51, 0.74, 0.76, 1.0, 1.5):
        for beta in (part * 2.0**-24, -part * 2.0**-24):
            check(lowered([1 + 2.0**-9, 1 + 2.0**-9], [beta * 2.0**-10] * 2, 2.0**-10), rows)


def alone(slope, inverse, gain, total, bias):
    """`_fqvit_leading_row` on one channel: (whether there was no doubt, multiplier, offset)."""
    words = np.array([[1], [slope], [0], [gain >> 30], [gain & (2**30 - 1)]], np.int32)
    longs, m, offset = np.array([[bias], [70]]), np.zeros(1, np.int32), np.zeros(1, np.int32)
    rows, factor, out = np.array([[1]]), np.array([1], np.int16), np.zeros((1, 1), np.int64)
    arguments = rows, 0, factor, total, inverse, 70 - BIAS_SHIFT, words, longs, 0, m, offset, out
    return kernels._fqvit_leading_row(*arguments), int(m[0]), int(offset[0])


BIAS_SHIFT = 5


def described(slope, inverse, gain, total, bias):
    """The same from its description, on unbounded integers."""
    product = slope * min(inverse >> 30, 2**31 - 1)
    m = product >> 53
    mean = (gain * (inverse * total >> 32) - (gain & (2**30 - 1)) * ((inverse * total >> 32) & (2**30 - 1))) >> 60
    offset = (bias >> (BIAS_SHIFT + (m >> 8))) - (mean >> (m >> 8))
    least, most = ((offset + step + 2**21) >> 22 for step in (-8, 8))  # rounded, in 2**-22
    return m == (product + 2**32) >> 53 and least == most, m, least


def agrees(*case):
    fast, slow = alone(*case), described(*case)
    return fast == slow if slow[0] else not fast[0]


def test_layernorm_multipliers_are_in_doubt_where_the_product_may_reach_the_next_and_nowhere_else():
    for leading in (2**30, 2**30 + 4, 3 * 2**29, 2**31 - 1):
        inverse = leading << 30
        for m in (128, 200, 255, 256, 300, 511):
            slope = -(-m * 2**53 // leading)
            for step in range(-9, 4):
                if 2**30 <= slope + step < 2**31:
                    for total in (0, 1000):
                        assert agrees(slope + step, inverse, 2**60, total, 2**40), (leading, m, step)
    assert 1073902167 * 1140680345 == 136 * 2**53 - 2**32 - 1  # just not in doubt
    assert agrees(1073902167, 1140680345 << 30, 2**60, 0, 0)
    assert agrees(2**31 - 1, 2**61, 2**60, 0, 0)
    assert alone(1073902167, 1140680345 << 30, 2**60, 0, 0)[:2] == (True, 135)


def test_layernorm_offsets_are_in_doubt_within_8_of_a_half_and_nowhere_else():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(4000):
        slope, inverse = int(rng.integers(2**30, 2**31)), int(rng.integers(2**60, 2**61)) | 1
        gain, total = int(rng.integers(2**60, 2**61)) | 1, int(rng.integers(-(2**26), 2**26))
        m = slope * (inverse >> 30) >> 53
        mean = (gain * (inverse * total >> 32) - (gain & (2**30 - 1)) * ((inverse * total >> 32) & (2**30 - 1))) >> 60
        for beside in (-9, -8, -7, 0, 7, 8, 9):
            offset = (int(rng.integers(-50, 50)) << 22) + 2**21 + beside
            case = slope, inverse, gain, total, (offset + (mean >> (m >> 8))) << (BIAS_SHIFT + (m >> 8))
            assert agrees(*case), (beside, case)
            seen.add((beside, described(*case)[0]))
    assert {(-9, True), (-8, False), (0, False), (7, False), (8, True), (9, True)} <= seen


def test_layernorm_words_hold_the_constants():
    rng = np.random.default_rng(4)
    params = lowered(rng.uniform(0.2, 3, 40), rng.normal(0, 1, 40))
    words, longs, gap, *_ = kernels._leading(params)
    between = np.array(params.gain_exp) - np.array(params.slope_exp)
    wide = words.astype(np.int64)
    gains = np.array(params.gain) >> (between - between.min())
    assert np.array_equal((wide[kernels.GAIN] << 30) + wide[kernels.GAIN_LOW], gains)
    assert gap == between.min() - 1
    assert np.array_equal(wide[kernels.SLOPE], np.array(params.slope) >> 30)
    assert np.array_equal(longs[0], np.array(params.bias))
