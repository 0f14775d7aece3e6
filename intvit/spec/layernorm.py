"""LayerNorm over one row: the normalised row plus an integer bias, before any requantization.

Every method takes `row` (C,), C >= 1, integers of any width in steps of the input scale, and its parameters, one
constant of each kind per channel; it returns (C,), which is neither clamped nor requantized. ValueError for constants
of another length, ZeroDivisionError for an empty row. docs/quantization.md, "LayerNorm".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intvit.errors import IntvitError
from intvit.spec.arith import clamp, floor_shift, isqrt, rhe, rhe_shift, truncated_div, wrap
from intvit.spec.ranges import require, require_all, require_lengths
from intvit.spec.taps import skip, tap

TAPS = {
    "layernorm": {
        "scaled": "FQ-ViT: x * factor",
        "sum": "sum of the row",
        "square_sum": "FQ-ViT: sum of scaled**2",
        "mean": "sum / C, rounded",
        "delta": "x - mean",
        "shifted": "I-BERT: delta >> shift",
        "variance": "sum of delta**2 (I-BERT: of shifted**2); FQ-ViT: C * square_sum - sum**2",
        "step": "I-ViT: the ten iterates of the square root",
        "aligned": "FQ-ViT: variance * 2**even, in 2**60 .. 2**62",
        "root": "square root of the variance (FQ-ViT: of aligned, floor)",
        "fraction": "FQ-ViT: what the root lacks, in steps of 2**-30",
        "reciprocal": "FQ-ViT: 2**61 // root",
        "correction": "FQ-ViT: what one Newton step adds to reciprocal * 2**30",
        "inverse": "FQ-ViT: 1 / sqrt(variance) = inverse / 2**inverse_exp",
        "inverse_exp": "FQ-ViT: its exponent",
        "factor": "the reciprocal of the root, as an integer",
        "product": "delta * factor; FQ-ViT: sign * multiplier * scaled",
        "normalized": "product >> 1 (in 32 bits: halved toward zero)",
        "slope": "FQ-ViT: leading bits of A = abs(gamma) * C / (sqrt(variance) * out_scale)",
        "shift": "FQ-ViT: N, what the last rounding shifts",
        "multiplier": "FQ-ViT: M, the leading 8 bits of A",
        "beta_term": "FQ-ViT: beta / out_scale, N bits and guard bits behind the point",
        "mean_term": "FQ-ViT: what the mean takes away, in the same steps",
        "offset": "FQ-ViT: B, beta_term - mean_term rounded to N bits behind the point",
        "total": "FQ-ViT: product + offset",
    },
}
SOMETIMES = {
    "ibert": {"factor": False, "product": True, "normalized": True},
    "fqvit": {
        **dict.fromkeys(("aligned", "root", "fraction", "reciprocal", "correction", "inverse", "inverse_exp"), False),
        **dict.fromkeys(("slope", "shift", "multiplier", "beta_term", "mean_term", "offset", "product", "total"), True),
    },
}
"""Method -> what a row of equal values does not come by -> whether there is one for each channel."""

BIAS_MAX = 2**61


def centre(row: Sequence[int]) -> list[int]:
    """Deviations (C,) from the mean, the mean rounded half to even; in steps of the input scale."""
    total = tap("sum", sum(row))
    mean = tap("mean", rhe(total, len(row)))
    return tap("delta", [x - mean for x in row])


# ------------------------------------------------------------------------------------------- I-ViT


def _skip(method: str, channels: int) -> None:
    """Note that a row has none of what it may not come by."""
    for name, each in SOMETIMES[method].items():
        skip(name, channels if each else 1)


@dataclass(frozen=True)
class IvitLayerNorm:
    """I-LayerNorm: `bias[j] = floor((beta/gamma) / (sqrt(C) / 2**30))` (C,), |bias| <= 2**61, else IntvitError."""

    bias: tuple[int, ...]

    def __post_init__(self) -> None:
        require_all("layernorm ivit: bias", -BIAS_MAX, BIAS_MAX, self.bias)


def newton_sqrt(var: int) -> int:
    """Ten literal Newton steps from 2**16: not an integer square root below 2**15, nor above about 2**44.9."""
    k = 2**16
    for _ in range(10):
        k = tap("step", (k + var // k) >> 1)
    return k


def ivit(row: Sequence[int], p: IvitLayerNorm) -> list[int]:
    """y_j = ((d_j * F) >> 1) + bias_j, F = (2**31 - 1) // sqrt(sum d**2); a row of equal values gives its bias.

    (C,) in steps of gamma_j * sqrt(C) / 2**30: |y - bias| <= 2**30.
    Source: I-ViT (arXiv 2207.01405), I-LayerNorm; the ten steps, whatever they reach, stand in the published code.
    """
    d = centre(row)
    var = tap("variance", sum(v * v for v in d))
    root = tap("root", newton_sqrt(var))
    factor = tap("factor", (2**31 - 1) // root)
    product = tap("product", [v * factor for v in d])
    normalized = tap("normalized", [v >> 1 for v in product])
    return [v + b for v, b in zip(normalized, p.bias, strict=True)]


# ------------------------------------------------------------------------------------------ I-BERT


@dataclass(frozen=True)
class IbertLayerNorm:
    """I-BERT LayerNorm: `bias` (C,) as in I-LayerNorm; calibrated `shift` 0..31. IntvitError outside the ranges."""

    bias: tuple[int, ...]
    shift: int

    def __post_init__(self) -> None:
        require_all("layernorm ibert: bias", -BIAS_MAX, BIAS_MAX, self.bias)
        require("layernorm ibert: shift", 0, 31, self.shift)


def ibert(row: Sequence[int], p: IbertLayerNorm) -> list[int]:
    """y_j = ((d_j * F) >> 1) + bias_j, F = 2**31 // (isqrt(sum (d >> shift)**2) << shift).

    (C,) in steps of gamma_j * sqrt(C) / 2**30. A root of zero is undefined in the paper: here the normalised part is 0
    and y = bias.
    Source: I-BERT (arXiv 2101.01321), Eq. 15, Algorithm 4 for the root; `shift` stands in the published code.
    """
    d = centre(row)
    shifted = tap("shifted", [v >> p.shift for v in d])
    var = tap("variance", sum(v * v for v in shifted))
    root = tap("root", isqrt(var) * 2**p.shift)
    if root == 0:
        _skip("ibert", len(row))
        return list(p.bias)
    factor = tap("factor", 2**31 // root)
    product = tap("product", [v * factor for v in d])
    normalized = tap("normalized", [v >> 1 for v in product])
    return [v + b for v, b in zip(normalized, p.bias, strict=True)]


# ------------------------------------------------------------------------------------------ FQ-ViT


@dataclass(frozen=True)
class FqvitLayerNorm:
    """FQ-ViT LayerNorm, its real-valued constants as mantissas of 61 bits: real = m / 2**exp.

    Per channel: `factor` (1, 2, 4, 8) of the input scale, `sign` of gamma, `slope` = |gamma| * C / out_scale,
    `gain` = |gamma| / out_scale, `bias` = beta / out_scale (signed). All (C,).
    IntvitError for an integer outside its range, for vectors of different lengths and for a slope that is not C * gain.
    """

    factor: tuple[int, ...]
    sign: tuple[int, ...]
    slope: tuple[int, ...]
    slope_exp: tuple[int, ...]
    gain: tuple[int, ...]
    gain_exp: tuple[int, ...]
    bias: tuple[int, ...]
    bias_exp: tuple[int, ...]

    def __post_init__(self) -> None:
        where = "layernorm fqvit"
        require_lengths(f"{where}: constants", *vars(self).values())
        require_all(f"{where}: factor", 1, 256, self.factor)
        require_all(f"{where}: sign", -1, 1, self.sign)
        for key in ("slope", "gain", "bias"):
            require_mantissa(f"{where}: {key}", getattr(self, key), getattr(self, f"{key}_exp"))
        for sign, slope, at, gain, exp in zip(
            self.sign, self.slope, self.slope_exp, self.gain, self.gain_exp, strict=True
        ):
            # slope / 2**at = C * gain / 2**exp, but for the rounding of doubles
            low = min(at, exp)
            whole, part = slope << (exp - low), len(self.slope) * gain << (at - low)
            if slope < 0 or gain < 0 or (sign == 0) != (slope == 0) or abs(whole - part) > whole >> 50:
                raise IntvitError(
                    f"{where}: slope must be C times gain, both 0 where sign is and positive elsewhere, not "
                    f"{slope} / 2**{at}, {gain} / 2**{exp}, sign {sign}"
                )


def require_mantissa(where: str, mantissas: tuple[int, ...], exponents: tuple[int, ...]) -> None:
    """IntvitError unless these are doubles as m / 2**exp with 2**60 <= |m| <= 2**61, or m = 0."""
    require_all(f"{where}_exp", -1000, 1200, exponents)
    require_all(where, -(2**61), 2**61, mantissas)
    for m in mantissas:
        if m and abs(m) < 2**60:
            raise IntvitError(f"{where} must be 0 or have 61 bits, not {m}")


GUARD_BITS = 24
OFFSET_MAX = 2**60


def fqvit(row: Sequence[int], p: FqvitLayerNorm) -> list[int]:
    """y = rhe(sign*M*X + B, 2**N): M of 8 bits, N the power of two of A = |gamma|*C/(sqrt(Dv)*out_scale), X = x*factor.

    (C,) in steps of out_scale. Equal values (Dv = 0): the normalised part is 0, y = rhe(bias, 2**bias_exp).
    Source: FQ-ViT (arXiv 2111.13824), integer LayerNorm with power-of-two factors. A and B are real numbers there;
    docs/decisions/0002 says how they became integers.
    """
    scaled = tap("scaled", [x * f for x, f in zip(row, p.factor, strict=True)])
    total = tap("sum", sum(scaled))
    square_sum = tap("square_sum", sum(x * x for x in scaled))
    var = tap("variance", len(scaled) * square_sum - total**2)
    if var == 0:
        _skip("fqvit", len(row))
        return [rhe_shift(b, exp) for b, exp in zip(p.bias, p.bias_exp, strict=True)]
    inverse, exponent = inverse_sqrt(var)
    result = []
    for j, x in enumerate(scaled):
        m, n, offset = fqvit_constants(total, inverse, exponent, j, p)
        product = tap("product", p.sign[j] * m * x)
        result.append(rhe_shift(tap("total", product + offset), n))
    return result


def inverse_sqrt(value: int) -> tuple[int, int]:
    """(J, k) with 1/sqrt(value) = J / 2**k to about 2**-59: a 31-bit reciprocal and one Newton step."""
    shift = 62 - value.bit_length()
    shift -= shift % 2
    aligned = tap("aligned", value * 2**shift)
    root = tap("root", isqrt(aligned))
    fraction = tap("fraction", (aligned - root * root) * 2**30 // (2 * root))
    reciprocal, rest = divmod(2**61, root)
    error = rest * 2**30 - tap("reciprocal", reciprocal) * fraction
    correction = tap("correction", rhe_shift(error * reciprocal, 61))
    return tap("inverse", reciprocal * 2**30 + correction), tap("inverse_exp", 91 - shift // 2)


def fqvit_constants(total: int, inverse: int, exponent: int, j: int, p: FqvitLayerNorm) -> tuple[int, int, int]:
    """M (u8), N (0..31) and B of channel j: the published multiplier, exponent and offset.

    `total` is the row's sum of x*factor, `inverse` / 2**`exponent` the reciprocal of its sqrt(Dv).
    """
    slope = tap("slope", floor_shift(p.slope[j] * inverse, 62))
    slope_exp = p.slope_exp[j] + exponent - 62
    n = tap("shift", clamp(7 - (slope.bit_length() - 1 - slope_exp), 0, 31))  # 31 for a gamma of 0: slope_exp is 61
    m = tap("multiplier", min(floor_shift(slope, slope_exp - n), 255))
    guard = clamp(p.bias_exp[j] - n - 1, 0, GUARD_BITS)
    bias = clamp(rhe_shift(p.bias[j], p.bias_exp[j] - n - guard), -OFFSET_MAX, OFFSET_MAX)
    slant = p.sign[j] * floor_shift(p.gain[j] * inverse, 62)
    u = clamp(rhe_shift(slant * total, p.gain_exp[j] + exponent - 62 - n - guard), -OFFSET_MAX, OFFSET_MAX)
    return m, n, tap("offset", rhe_shift(tap("beta_term", bias) - tap("mean_term", u), guard))


def fqvit_derived(row: Sequence[int], p: FqvitLayerNorm) -> dict[str, list[int]]:
    """The paper's M, N and B of a row, (C,) each: `multiplier`, `shift`, `offset`; y = rhe(sign*M*X + B, 2**N).

    They depend on the row by its sum and its Dv alone. Equal values (Dv = 0): M and N are 0, B is y.
    """
    scaled = [x * f for x, f in zip(row, p.factor, strict=True)]
    total = sum(scaled)
    var = len(scaled) * sum(x * x for x in scaled) - total**2
    if var == 0:
        constants = [(0, 0, rhe_shift(b, exp)) for b, exp in zip(p.bias, p.bias_exp, strict=True)]
    else:
        inverse, exponent = inverse_sqrt(var)
        constants = [fqvit_constants(total, inverse, exponent, j, p) for j in range(len(scaled))]
    m, n, offset = (list(values) for values in zip(*constants, strict=True))
    return {"multiplier": m, "shift": n, "offset": offset}


# ------------------------------------------------------------------- I-ViT, deployed in 32 bits


@dataclass(frozen=True)
class IvitTvmLayerNorm:
    """I-LayerNorm in 32-bit words that wrap: `bias` (C,) as there; its low word counts. IntvitError outside 2**61."""

    bias: tuple[int, ...]

    def __post_init__(self) -> None:
        require_all("layernorm ivit_tvm: bias", -BIAS_MAX, BIAS_MAX, self.bias)


def ivit_tvm(row: Sequence[int], p: IvitTvmLayerNorm) -> list[int]:
    """I-LayerNorm on 32-bit words that wrap; mean and halving truncate toward zero; var is unsigned.

    (C,) s32 in steps of gamma_j * sqrt(C) / 2**30.
    Source: docs/quantization.md, "I-ViT in 32 bits"; informative, no published text defines it.
    """
    total = tap("sum", wrap(sum(row), 32))
    mean = tap("mean", truncated_div(total, len(row)))
    d = tap("delta", [x - mean for x in row])  # whether it wraps makes no difference modulo 2**32
    var = tap("variance", sum(v * v for v in d) % 2**32)
    root = tap("root", newton_sqrt(var))
    factor = tap("factor", (2**31 - 1) // root)
    product = tap("product", [wrap(v * factor, 32) for v in d])
    normalized = tap("normalized", [truncated_div(v, 2) for v in product])
    return [wrap(v + wrap(b, 32), 32) for v, b in zip(normalized, p.bias, strict=True)]
