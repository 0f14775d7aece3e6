"""Numerics: the datapath of requantizations and accumulators as data, and the scalar steps that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intvit.errors import IntvitError, shortened
from intvit.spec.arith import round_half_even, saturate, wrap

SHIFT_LEAST, SHIFT_MOST = -1100, 1200
"""Of any requantization: e of m / 2**e."""
STORAGE_BITS = 64
"""Where the widest word of a datapath ends."""
WIDEST_PRODUCT = 96
"""A word of 64 bits times a multiplier of 32."""

Rounding = Literal["half_even", "half_up", "half_away", "floor", "toward_zero"]
Overflow = Literal["saturate", "wrap"]
Policy = Literal["prove", "raise", "saturate", "saturate_end", "wrap"]


class Numerics(BaseModel):
    """How a datapath requantizes, and what its accumulators hold. The default is HAWQ-V3's, as wide as is needed.

    A term x * m / 2**e goes through: the product, narrowed to `product_bits`; the shift, by `rounding`; the result,
    narrowed to `rounded_bits`; the residual and then the addend (a zero point), each sum narrowed to `rounded_bits`;
    the output, narrowed to its own width. docs/numerics.md has it as pseudocode.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    multiplier_bits: Annotated[int, Field(ge=4, le=32)] = 32
    """Of m, with its sign if it has one. Only the default may use |m| = 2**31 as well."""
    multiplier_signed: bool = True
    shift_least: Annotated[int, Field(ge=SHIFT_LEAST, le=62)] = SHIFT_LEAST
    shift_most: Annotated[int, Field(ge=0, le=SHIFT_MOST)] = SHIFT_MOST
    """e lies in shift_least..shift_most; a negative e multiplies."""
    rounding: Rounding = "half_even"
    """Ties to even, up (towards +inf), away from zero; or what is cut off: floor (towards -inf), toward zero."""
    double_rounding: bool = False
    """Where e is above p = multiplier_bits - 1 the product is first rounded half up to x * m / 2**p, as an upper word
    (saturated at 64 bits), and then by `rounding` to 2**(e - p); else once, half up."""
    residual: Literal["each", "together"] = "each"
    """each: both terms are rounded and then added. together: their products are added, of one e, before one rounding;
    the sum is narrowed as a product is."""
    product_bits: Annotated[int, Field(ge=8, le=WIDEST_PRODUCT)] = WIDEST_PRODUCT
    product_overflow: Overflow = "saturate"
    rounded_bits: Annotated[int, Field(ge=4, le=STORAGE_BITS)] = STORAGE_BITS
    rounded_overflow: Overflow = "saturate"
    output_overflow: Overflow = "saturate"
    accumulator_bits: Annotated[int, Field(ge=16, le=STORAGE_BITS)] | None = None
    """Of the sums of products; None: 32, or more where the weights prove that more is needed."""
    accumulator: Policy = "prove"
    """What happens where a sum would not fit. prove: such a model is refused; raise: such an image is; saturate: after
    every product, in the order of k, the bias last; saturate_end: once, after the bias; wrap: two's complement."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shift_least > self.shift_most:
            raise ValueError(f"shift_least must not be above shift_most, and is {self.shift_least}")
        if self.precision > 31:
            raise ValueError("multiplier_bits must be 31 at most without a sign, and is 32")
        if self.accumulator_bits is None and self.accumulator != "prove":
            raise ValueError(f"accumulator_bits must be given for the policy {self.accumulator}")
        return self

    @property
    def precision(self) -> int:
        """Bits of |m|."""
        return self.multiplier_bits - self.multiplier_signed

    @property
    def multipliers(self) -> tuple[int, int]:
        """The least and the largest m."""
        if self == self.model_copy(update=_FREE):
            return -(2**31), 2**31
        return -(2**self.precision) if self.multiplier_signed else 0, 2**self.precision - 1

    @property
    def stated(self) -> dict[str, Any]:
        """What is not as usual: what a node or a recipe says."""
        return self.model_dump(exclude_defaults=True)

    @property
    def requantizing(self) -> Numerics:
        """Without what is said of accumulators."""
        return self.model_copy(update={"accumulator_bits": None, "accumulator": "prove"})

    def rule(self) -> str:
        """In a few words."""
        sign = "signed" if self.multiplier_signed else "unsigned"
        twice = "half_up, then " if self.double_rounding else ""
        wide = "as wide as needed" if self.accumulator_bits is None else f"{self.accumulator_bits} bits"
        return (
            f"multiplier {self.multiplier_bits} bits {sign}, rounding {twice}{self.rounding}, output "
            f"{self.output_overflow}; accumulators {wide}, {self.accumulator}"
        )


_FREE = {"multiplier_bits": 32, "multiplier_signed": True}
HAWQ = Numerics()

PRESETS: dict[str, Numerics] = {
    # HAWQ-V3, arXiv 2011.10680: 31 bits of multiplier, ties to even.
    "hawq": HAWQ,
    # TOSA 1.0, apply_scale_32: multiplier below 2**31, shift 2..62; int32 in, int32 out.
    "tosa_single": Numerics(shift_least=2, shift_most=62, rounding="half_up", rounded_bits=32),
    "tosa_double": Numerics(
        shift_least=2, shift_most=62, rounding="half_away", double_rounding=True, rounded_bits=32
    ),
    # TensorFlow Lite, MultiplyByQuantizedMultiplier: shift 31 - (-31..30).
    "tflite_single": Numerics(shift_least=1, shift_most=62, rounding="half_up", rounded_bits=32),
    "tflite_double": Numerics(
        shift_least=1, shift_most=62, rounding="half_away", double_rounding=True, rounded_bits=32
    ),
    # CMSIS-NN, arm_nn_requantize: as TensorFlow Lite's double rounding, its upper word without saturation.
    "cmsis_nn": Numerics(
        shift_least=1, shift_most=62, rounding="half_away", double_rounding=True, rounded_bits=32,
        rounded_overflow="wrap",
    ),
    # Deeploy, RequantShift: int32 arithmetic throughout; the addend and half are added before the shift.
    "deeploy": Numerics(
        shift_least=0, shift_most=31, rounding="half_up", residual="together", product_bits=32,
        product_overflow="wrap", rounded_bits=32, rounded_overflow="wrap",
    ),
    # ITA (pulp-platform/ITA, src/ita_requantizer.sv): 8-bit multiplier and shift, ties up, 8-bit addend in a word
    # of 34 bits.
    "ita": Numerics(
        multiplier_bits=8, multiplier_signed=False, shift_least=0, shift_most=35, rounding="half_up", rounded_bits=34,
        rounded_overflow="wrap", accumulator_bits=26,
    ),
}  # fmt: skip
"""Named datapaths, each checked against its owner's code: docs/numerics.md, tests/test_numerics_presets.py."""


def preset(name: str, where: str = "numerics") -> Numerics:
    """IntvitError for a name that there is not."""
    if name not in PRESETS:
        raise IntvitError(f"{where}: must be one of {', '.join(PRESETS)}, not {shortened(name)}")
    return PRESETS[name]


def build_numerics(values: str | Mapping[str, Any] | Numerics, where: str = "numerics") -> Numerics:
    """A preset by its name, or fields; `preset` among them names what holds where the others say nothing.

    >>> build_numerics({"preset": "ita", "rounding": "floor"}).rounding
    'floor'
    """
    if isinstance(values, Numerics):
        return values
    if isinstance(values, str):
        return preset(values, where)
    if not isinstance(values, Mapping):
        raise IntvitError(f"{where}: must be the name of a preset or a table, not {shortened(values)}")
    given = dict(values)
    base = given.pop("preset", "hawq")
    if not isinstance(base, str):
        raise IntvitError(f"{where}: preset: must be a name, not {shortened(base)}")
    try:
        return Numerics.model_validate({**preset(base, f"{where}: preset").stated, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f": {part}" for part in first["loc"])
        rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").rstrip(".")
        if first["type"] == "value_error":
            raise IntvitError(f"{where}{key}: {rule}") from None
        if first["type"] == "extra_forbidden":
            near = get_close_matches(str(first["loc"][-1]), Numerics.model_fields, 1)
            rule = f"a known key ({near[0]}?)" if near else "a known key"
        raise IntvitError(f"{where}{key}: must be {rule}, not {shortened(first['input'])}") from None


# ------------------------------------------------------------------------------------------- the steps


def rounded(value: int, shift: int, rounding: Rounding) -> int:
    """`value / 2**shift` to an integer; a negative shift multiplies.

    >>> [rounded(v, 1, "half_away") for v in (-3, -1, 1, 3)], [rounded(v, 1, "half_up") for v in (-3, -1, 1, 3)]
    ([-2, -1, 1, 2], [-1, 0, 1, 2])
    """
    from fractions import Fraction

    if shift <= 0:
        return value * 2**-shift
    exact, half = Fraction(value, 2**shift), Fraction(1, 2)
    match rounding:
        case "half_even":
            return round_half_even(exact)
        case "half_up":
            return (exact + half).__floor__()
        case "half_away":
            return (exact + half).__floor__() if value >= 0 else (exact - half).__ceil__()
        case "floor":
            return exact.__floor__()
        case "toward_zero":
            return exact.__trunc__()


def narrowed(value: int, bits: int, overflow: Overflow, *, signed: bool = True) -> int:
    """A word of `bits` bits."""
    if not signed:
        return value % 2**bits if overflow == "wrap" else max(0, min(2**bits - 1, value))
    return wrap(value, bits) if overflow == "wrap" else saturate(value, bits)


def shifted(product: int, e: int, numerics: Numerics) -> int:
    """A product, or a sum of two, through the shift."""
    first = numerics.multiplier_bits - 1
    if not numerics.double_rounding:
        return rounded(product, e, numerics.rounding)
    if e <= first:
        return rounded(product, e, "half_up")
    return rounded(saturate(rounded(product, first, "half_up"), STORAGE_BITS), e - first, numerics.rounding)


def product(x: int, m: int, numerics: Numerics) -> int:
    return narrowed(x * m, numerics.product_bits, numerics.product_overflow)
