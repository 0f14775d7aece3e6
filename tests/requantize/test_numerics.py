"""Datapaths as data: kernel = specification = APyTypes, in every mode and width; what does not fit is refused."""

import numpy as np
import pytest
from apytypes import APyFixedArray, OverflowMode, QuantizationMode

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels.requantize import dyadic, dyadic_together, prepare_requantize
from intvit.spec.numerics import HAWQ, PRESETS, Numerics, build_numerics

MODES = {
    "half_even": QuantizationMode.TIES_EVEN,
    "half_up": QuantizationMode.TIES_POS,
    "half_away": QuantizationMode.TIES_AWAY,
    "floor": QuantizationMode.TO_NEG,
    "toward_zero": QuantizationMode.TO_ZERO,
}
OVERFLOWS = {"saturate": OverflowMode.SAT, "wrap": OverflowMode.WRAP}


def datapath(rng, **given):
    signed = bool(rng.integers(2))
    fields = {
        "multiplier_bits": int(rng.integers(4, 32 + signed)),
        "multiplier_signed": signed,
        "rounding": str(rng.choice(list(MODES))),
        "double_rounding": bool(rng.integers(2)),
        "residual": str(rng.choice(["each", "together"])),
        "product_bits": int(rng.integers(8, 97)),
        "rounded_bits": int(rng.integers(4, 65)),
        **{f"{word}_overflow": str(rng.choice(list(OVERFLOWS))) for word in ("product", "rounded", "output")},
    }
    return Numerics(**{**fields, **given})


def values(rng, bits, shape):
    """Codes of a width: its ends, small ones, such as end in zeros, and any."""
    top = 2 ** (bits - 1)
    found = rng.integers(-top, top - 1, shape, endpoint=True)
    found[0], found[1], found[2] = -top, top - 1, rng.integers(-9, 9, shape[1:])
    zeros = rng.integers(0, bits - 1)
    found[3] = found[3] >> zeros << zeros
    return found.astype({8: np.int8, 16: np.int16, 32: np.int32}.get(bits, np.int64))


def both(x, **options):
    found = [ops.requantize(x, backend=backend, **options) for backend in ("kernel", "spec")]
    np.testing.assert_array_equal(*found)
    return found[0]


@pytest.mark.parametrize("seed", range(400))
def test_kernel_is_the_specification_in_any_datapath(seed):
    rng = np.random.default_rng(seed)
    how = datapath(rng)
    low, high = how.multipliers
    columns = int(rng.integers(1, 5))
    n = int(rng.choice([1, columns]))
    bits = min(int(rng.choice([8, 16, 32, 62, 64])), 62 if how.residual == "together" else 64)
    m, other = rng.integers(low, high + 1, (2, n))
    e, f = rng.integers(-3, 70, (2, n)) if rng.integers(4) else rng.integers(-80, 130, (2, n))
    options = {}
    if rng.integers(2):
        shift = e if how.residual == "together" else f
        residual = values(rng, bits, (6, columns))
        options |= {"residual": residual, "residual_multiplier": other, "residual_shift": shift}
    if rng.integers(2):
        options["addend"] = rng.integers(-(2 ** int(rng.integers(1, 62))), 2**61, columns)
    signed, out = bool(rng.integers(3)), int(rng.integers(2, 63))
    both(values(rng, bits, (6, columns)), bits=out, multiplier=m, shift=e, numerics=how, signed=signed, **options)


def integers(fixed, bits):
    """Bit patterns as signed integers."""
    return [int(v) - (int(v) >> (bits - 1) << bits) for v in fixed.to_bits()]


def fresh(fixed, bits, fraction):
    """The same integers, made anew with fraction bits: 0.5.1 casts wrongly what was wrapped from more than a limb."""
    wide = bits + 2
    return APyFixedArray([v % 2**wide for v in integers(fixed, bits)], int_bits=wide - fraction, frac_bits=fraction)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("rounding", MODES)
def test_kernel_is_apytypes(rounding, double, seed):
    """A third implementation, by others: fixed point, cast from `e` fraction bits to none."""
    rng = np.random.default_rng([seed, double, list(MODES).index(rounding)])
    how = datapath(rng, rounding=rounding, double_rounding=double)
    low, high = how.multipliers
    m, e, out = int(rng.integers(low, high + 1)), int(rng.integers(1, 63)), int(rng.integers(2, 33))
    width = int(rng.choice([8, 16, 32]))
    x = values(rng, width, (64, 1)).reshape(-1)
    if m and e - 1 - ((m & -m).bit_length() - 1) in range(width - 1):  # ties
        x[8:24] = (2 * rng.integers(0, 4, 16) + 1) << (e - 1 - ((m & -m).bit_length() - 1))
    product = APyFixedArray.from_array(x.astype(np.int64), int_bits=width, frac_bits=0).cast(int_bits=64, frac_bits=0)
    product = product * APyFixedArray.from_array(np.full(x.shape, m), int_bits=34, frac_bits=0)
    product = product.cast(int_bits=how.product_bits, frac_bits=0, overflow=OVERFLOWS[how.product_overflow])
    first, mode = how.multiplier_bits - 1, MODES[rounding]
    fixed = fresh(product, how.product_bits, e)
    if double and e > first:
        fixed = fixed.cast(int_bits=how.product_bits + 2, frac_bits=e - first, quantization=QuantizationMode.TIES_POS)
    elif double:
        mode = QuantizationMode.TIES_POS
    fixed = fixed.cast(int_bits=how.rounded_bits, frac_bits=0, quantization=mode,
                       overflow=OVERFLOWS[how.rounded_overflow])  # fmt: skip
    fixed = fresh(fixed, how.rounded_bits, 0).cast(int_bits=out, frac_bits=0, overflow=OVERFLOWS[how.output_overflow])
    expected = integers(fixed, out)
    found = both(x[:, None], bits=out, multiplier=m, shift=e, numerics=how)
    assert found.reshape(-1).tolist() == expected


@pytest.mark.parametrize("seed", range(60))
def test_fast_loops_are_taken_only_where_no_word_is_narrowed(seed):
    """Datapaths for which both loops are there give the same by either."""
    rng = np.random.default_rng(seed)
    how = Numerics(rounding=str(rng.choice(["half_even", "half_up", "half_away", "floor"])),
                   product_bits=int(rng.integers(20, 97)), rounded_bits=int(rng.integers(6, 65)))  # fmt: skip
    bits = int(rng.choice([8, 16, 32]))
    m, e = rng.integers(2**29, 2**31, 3), rng.integers(26, 50, 3)
    prepared = prepare_requantize(m, e, 8, numerics=how)
    x = values(rng, bits, (40, 3))
    plain = prepared.is_plain(bits // 8)
    out = np.empty(x.shape, np.int64)
    prepared._any(x, None, out, x.shape)
    np.testing.assert_array_equal(prepared.run(x), out)
    assert plain or how.product_bits < 64 or how.rounded_bits < 64
    assert not (plain and how.product_bits < bits + 31)


def test_presets_are_what_their_names_say():
    assert HAWQ == PRESETS["hawq"] == build_numerics({})
    assert build_numerics({"preset": "ita", "rounding": "floor"}) == PRESETS["ita"].model_copy(
        update={"rounding": "floor"}
    )
    x = np.array([5, -5, 7, -7])
    expected = {"half_even": [2, -2, 4, -4], "half_up": [3, -2, 4, -3], "half_away": [3, -3, 4, -4],
                "floor": [2, -3, 3, -4], "toward_zero": [2, -2, 3, -3]}  # fmt: skip
    for rounding, y in expected.items():
        assert both(x, bits=8, multiplier=1, shift=1, numerics={"rounding": rounding}).tolist() == y


@pytest.mark.parametrize("name", PRESETS)
def test_multipliers_are_the_nearest_that_the_datapath_has(name):
    rng, how = np.random.default_rng(3), PRESETS[name]
    ratios = 2.0 ** rng.uniform(-18, -4, 500) * (1 if not how.multiplier_signed else rng.choice([-1, 1], 500))
    m, e = dyadic(ratios, 1.0, how)
    low, high = how.multipliers
    assert m.min() >= low
    assert m.max() <= high
    assert e.min() >= how.shift_least
    assert e.max() <= how.shift_most
    assert np.all(np.abs(np.ldexp(ratios, e) - m) <= 0.5)
    assert np.all((np.abs(m) >= 2 ** (how.precision - 1)) | (e == how.shift_most))
    one, other, shared = dyadic_together(ratios, ratios[::-1] / 3, 1.0, how)
    assert np.all(np.abs(np.ldexp(ratios, shared) - one) <= 0.5)
    assert np.all(np.abs(np.ldexp(ratios[::-1] / 3, shared) - other) <= 0.5)


def test_products_have_room():
    how = build_numerics("deeploy")
    for most in (127, 1000, 2**20):
        m, e = dyadic(np.array([0.013, 0.9, 1e-5]), 1.0, how, most)
        assert np.all(most * m + 2 ** np.maximum(e - 1, 0) < 2**31)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"numerics": "tpu"}, r"numerics: must be one of hawq, .*ita, not 'tpu'"),
        ({"numerics": {"rounding": "up"}}, r"numerics: rounding: must be 'half_even', .* not 'up'"),
        ({"numerics": {"rouding": "floor"}}, r"numerics: rouding: must be a known key \(rounding\?\), not 'floor'"),
        ({"numerics": {"preset": 3}}, r"numerics: preset: must be a name, not 3"),
        ({"numerics": {"multiplier_bits": 33}}, r"numerics: multiplier_bits: must be less than or equal to 32, not 33"),
        ({"numerics": {"multiplier_bits": 32, "multiplier_signed": False}}, r"must be 31 at most without a sign"),
        ({"numerics": {"shift_least": 8, "shift_most": 4}}, r"shift_least must not be above shift_most"),
        ({"numerics": {"accumulator": "wrap"}}, r"accumulator_bits must be given for the policy wrap"),
        ({"numerics": 3}, r"numerics: must be the name of a preset or a table, not 3"),
        ({"multiplier": 256, "numerics": "ita"}, r"multiplier must be one or one per channel in 0..255, not 256"),
        ({"shift": 36, "numerics": "ita"}, r"shift must be one or one per channel in 0..35, not 36"),
        ({"multiplier": [1, 2, 3]}, r"scale must be one or \(2,\), not 3"),
        ({"shift": None}, r"scale or multiplier and shift must be given"),
        ({"in_scale": 1.0, "out_scale": 1.0}, r"one of these and not both"),
        ({"bits": None}, r"bits"),
        ({"residual_multiplier": 3}, r"residual must be given with"),
        ({"signed": False, "bits": 64, "numerics": "hawq"}, r"bits of unsigned results must be 62 at most, not 64"),
        ({"residual": [1, 2], "residual_multiplier": 3, "residual_shift": 5, "numerics": {"residual": "together"}},
         r"must have one shift"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(options, rule):
    options = {"bits": 8, "multiplier": 5, "shift": 3, **options}
    with pytest.raises(IntvitError, match=rule) as caught:
        ops.requantize([1, 2], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ratio", "rule"),
    [(300.0, r"must be below 2\*\*8: the least shift is 0, and is 300"), (-0.5, "must not be negative"),
     (1e-12, r"must be 2\*\*-36 at least: the largest shift is 35, and is 1e-12")],
)  # fmt: skip
def test_ratios_that_the_datapath_has_no_multiplier_for(ratio, rule):
    with pytest.raises(IntvitError, match=rule):
        ops.requantize([1, 2], ratio, 1.0, 8, numerics="ita")
