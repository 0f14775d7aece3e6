"""Constants and rows at the ends of their ranges: what any implementation of a method must survive."""

from __future__ import annotations

import dataclasses

import widths

from intvit.kernels import registry
from intvit.spec.layernorm import FqvitLayerNorm
from intvit.spec.ranges import asked

METHODS = [m for m in registry.methods() if not m.informative]
"""Those that a published text defines."""
NORMS = ("layernorm", "rmsnorm")
DEEPEST = 4000
"""Bits of a shift of ShiftGELU's specification that a test can bear."""


def sample(method, channels):
    """Ordinary constants."""
    setting = dataclasses.replace(widths.setting_of(method.operator), columns=channels)
    return widths.lowered(method, setting)


def ranges(params):
    """Field -> (least, largest) of a value of a parameter class."""
    given = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {where.rsplit(" ", 1)[-1]: found for where, found in asked(lambda: type(params)(**given)).items()}


def drawn(rng, low, high):
    """An integer of a range: an end, beside one, around 0, of any number of bits."""
    near = [low, high, low + 1, high - 1, 0, 1, -1, 2, -2]
    value = rng.choice(near) if rng.random() < 0.5 else rng.choice((-1, 1)) * rng.getrandbits(rng.randint(1, 64))
    return value if low <= value <= high else rng.randint(low, high)


def constants(method, channels, rng):
    """Constants of a method for rows of `channels`, each anywhere in its range."""
    if method.params is FqvitLayerNorm:
        return fqvit_layernorm(channels, rng)
    usual, values = sample(method, channels), {}
    for key, (low, high) in ranges(usual).items():
        if key == "b" and "x0" in values:  # a polynomial that rises
            low = -2 * (values["x0"] + 1)
        given = getattr(usual, key)
        several = isinstance(given, tuple)
        values[key] = tuple(drawn(rng, low, high) for _ in given) if several else drawn(rng, low, high)
    return type(usual)(**values)


def fqvit_layernorm(channels, rng):
    """Slopes are C times gains, whatever their exponents."""

    def mantissa(value, exponent):
        shift = value.bit_length() - 61
        return (value << -shift if shift < 0 else value >> shift), exponent - shift

    columns = []
    for _ in range(channels):
        sign = rng.choice((-1, 0, 1, 1, -1))
        gain, gain_exp = slope, slope_exp = bias, bias_exp = 0, 61
        if sign:
            gain = rng.choice((2**60, 2**61 - 1, rng.randrange(2**60, 2**61)))
            gain_exp = rng.choice((-400, 0, 50, 60, 70, 90, 900)) + rng.randint(-3, 3)
            slope, slope_exp = mantissa(channels * gain, gain_exp)
        if rng.random() < 0.7:
            bias = rng.choice((-1, 1)) * rng.choice((2**60, 2**61, rng.randrange(2**60, 2**61)))
            bias_exp = rng.randint(0, 140)
        columns.append((2 ** rng.randint(0, 8), sign, slope, slope_exp, gain, gain_exp, bias, bias_exp))
    return FqvitLayerNorm(*zip(*columns, strict=True))


def largest(method, params, channels):
    """The largest |x| that the kernels of a method take, or less where the specification's integers would not end."""
    if method.operator in NORMS:
        of_norm = 2**31 // (channels * max(getattr(params, "factor", (1,)))) - 1
        return of_norm if method.name == "fqvit" else int((2**62 // channels) ** 0.5) // 2 - 1
    if method.name == "ivit" and method.operator != "softmax":
        return min(2**31 - 1, DEEPEST * -params.x0)
    return 2**31 - 1


def rows(rng, most, channels):
    """Rows of every kind with |x| <= most."""
    step = max(most // max(channels, 1), 1)
    near = sorted({v for v in (0, 1, -1, most, -most, most - 1, 1 - most) if abs(v) <= most})

    def small():
        return rng.choice((-1, 1)) * min(rng.getrandbits(rng.randint(1, 12)), most)

    return [
        *([value] * channels for value in near),
        [most if j == channels // 2 else -most for j in range(channels)],
        [-most if j == channels // 2 else most for j in range(channels)],
        [min(j * step, most) for j in range(channels)],
        [-min(j * step + 1, most) for j in range(channels)],
        [rng.choice(near) for _ in range(channels)],
        *([rng.randint(-most, most) for _ in range(channels)] for _ in range(3)),
        *([small() for _ in range(channels)] for _ in range(4)),
        [min(2**k, most) * (-1) ** j for j, k in enumerate(rng.choices(range(32), k=channels))],
        [min(rng.choice((1, 2, 3, 50)), most) if j == 0 else 0 for j in range(channels)],
    ]
