"""Recipe: every numeric choice of a lowering as data. Read from TOML or a mapping JSON; unknown keys are refused."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from intvit.errors import IntvitError, placed, reading, shortened
from intvit.files import read_text
from intvit.graph import operators
from intvit.kernels import registry
from intvit.spec.numerics import HAWQ, Numerics, build_numerics


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Choice(BaseModel):
    """A method for one site: its name (`ivit`: the newest version, `ivit.v1`: that one) and options of its own.

    The options stand beside the name, as in `{ method = "ibert", n = 6 }`; the method itself says which there are.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    method: str

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """None is an option that is not given."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def check(self, operator: str) -> None:
        """IntvitError if `operator` has no such method, or the method no such option."""
        registry.get(operator, self.method).checked(self.options)


RangeKind = Literal["minmax", "percentile", "mse", "kl"]
OBSERVERS: tuple[str, ...] = get_args(RangeKind)


class Observer(_Strict):
    """How a range is taken from a recording.

    minmax: per batch of `batch` images, smoothed as in I-ViT, `range = momentum*range + (1-momentum)*batch range`;
    momentum 0 takes the extremes of everything. percentile: the symmetric `percentile` of |x|. mse: the clip with the
    least mean squared quantization error. kl: the clip with the least KL divergence of |x| from its codes. auto: the
    best of these for each quantizer of 8 bits or less, by the outputs (`analysis.observers`), which writes them down as
    `Quantizers.observer`.
    """

    kind: RangeKind | Literal["auto"] = "minmax"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch: Annotated[int, Field(ge=1)] = 16
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99


Bits = Annotated[int, Field(ge=4, le=8)]


class Quantizers(_Strict):
    """The quantizers around one operator, or around all of a kind; what is left out follows from the rest of a recipe.

    input_bits: of its inputs; operands of products have 8 at most. output_bits: behind it, for a softmax of its own
    output. weight_bits: of its weights. zero_point: its input's range need not be symmetric; for linear operators.
    equalize: how far the quantizer behind a norm evens out the channels that linear operators read, 0 not at all.
    observer: of its inputs. range: the share of the observed range of its inputs that codes span; what lies beyond is
    clipped. weight_clip: whether the range of each row of weights is the one with the least mean
    squared rounding error, instead of that of its largest weight.
    """

    input_bits: Annotated[int, Field(ge=4, le=16)] | None = None
    output_bits: Annotated[int, Field(ge=4, le=16)] | None = None
    weight_bits: Bits | None = None
    zero_point: bool | None = None
    equalize: Annotated[float, Field(ge=0, le=1)] | None = None
    observer: RangeKind | None = None
    range: Annotated[float, Field(gt=0, le=1)] | None = None
    weight_clip: bool | None = None


USUAL = Quantizers()
EQUALIZE = 0.7
"""Of the preset `accurate`; measured: docs/decisions/0008-accurate.md."""


class Recipe(BaseModel):
    """What to lower to. Widths are of signed integers unless a method says otherwise."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Choice]
    """Choices for the other kinds of operators that have methods (`silu`, `rmsnorm`); left out: `ivit`."""

    preset: Literal["published", "accurate"] = "published"
    """What holds where the rest says nothing. published: the quantizers of the official I-ViT graphs. accurate: inputs
    as wide as a method can use, zero points before linear operators, and options that lose no bits."""
    bits: Bits = 8
    """Operands of every matrix product and non-linear operator: weights and activations."""
    residual_bits: Annotated[int, Field(ge=8, le=16)] = 16
    softmax_bits: Annotated[int, Field(ge=4, le=16)] = 16
    """Output width of I-ViT's and I-BERT's softmax."""
    log2_bits: Annotated[int, Field(ge=2, le=4)] = 4
    """Width of FQ-ViT's log2 codes; log2_matmul keeps 15 fraction bits, so 4 is the most."""
    softmax: Choice = Choice(method="ivit")
    gelu: Choice = Choice(method="ivit")
    layernorm: Choice = Choice(method="ivit")
    sites: dict[str, Choice] = {}
    """Choices for single sites; these go before those of their kind."""
    quantizers: dict[str, Quantizers] = {}
    """By site or by kind of operator; those of a site go before those of its kind."""
    observer: Observer = Observer()
    bias_correction: bool | None = None
    """Whether mean errors before linear operators go into their biases; left out: with the preset `accurate`."""
    slope_correction: bool | None = None
    """Whether errors there that grow with a channel's values go into its weights, too; left out: not, but observer
    `auto` tries."""
    numerics: Numerics = HAWQ
    """The datapath: a preset's name, or fields (`spec.numerics.Numerics`)."""
    datapaths: dict[str, Numerics] = {}
    """Those behind single operators, by site or by kind; those of a site go before those of its kind."""

    @property
    def corrects_bias(self) -> bool:
        return self.preset == "accurate" if self.bias_correction is None else self.bias_correction

    def check_corrections(self, where: str) -> None:
        """IntvitError for slopes without biases."""
        if self.slope_correction and not self.corrects_bias:
            off = "off with the preset published" if self.bias_correction is None else "off"
            raise IntvitError(f"{where}: slope_correction: must go with bias_correction, which is {off}")

    @model_serializer(mode="wrap")
    def _stated(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is empty: recipes of before there were such, and graphs made with them, keep their hashes."""
        found: dict[str, Any] = plain(self)
        if not self.quantizers:
            found.pop("quantizers", None)
        if self.preset == "published":
            found.pop("preset", None)
        for key in ("bias_correction", "slope_correction"):
            if getattr(self, key) is None:
                found.pop(key, None)
        for key in ("numerics", "datapaths"):
            found.pop(key, None)
        if self.numerics != HAWQ:
            found["numerics"] = self.numerics.stated
        if self.datapaths:
            found["datapaths"] = {name: each.stated for name, each in self.datapaths.items()}
        return found

    def numerics_at(self, operator: str, site: str) -> Numerics:
        """The datapath behind an operator."""
        return self.datapaths.get(site) or self.datapaths.get(operator) or self.numerics

    def choice(self, operator: str, site: str) -> Choice:
        return self.sites.get(site) or self.of_kind(operator)

    def quantizer(self, operator: str, site: str) -> Quantizers:
        """What is asked for at a site: for itself, for its kind or by the preset."""
        stated = (self._preset(operator, site), self.quantizers.get(operator, USUAL), self.quantizers.get(site, USUAL))
        return Quantizers(**{key: value for each in stated for key, value in each if value is not None})

    def _preset(self, operator: str, site: str) -> Quantizers:
        if self.preset == "published":
            return USUAL
        if operator == "linear":
            return Quantizers(zero_point=True)
        if operator not in operators.with_methods():
            return USUAL
        with placed(site):
            input_bits = registry.get(operator, self.choice(operator, site).method).accurate.input_bits
        return Quantizers(input_bits=input_bits, equalize=EQUALIZE if operator in operators.norms() else None)

    def options(self, operator: str, site: str) -> dict[str, Any]:
        """The options of the method at a site: those given, else those of the preset."""
        choice = self.choice(operator, site)
        accurate = registry.get(operator, choice.method).accurate.options if self.preset == "accurate" else {}
        return {**accurate, **choice.options}

    def of_kind(self, operator: str) -> Choice:
        """The choice for all sites of a kind that have none of their own."""
        found = getattr(self, operator, None)
        return found if isinstance(found, Choice) else Choice(method=STAND_IN)

    def of_kinds(self, kinds: Collection[str]) -> Recipe:
        """This recipe without choices for kinds, beside those that every recipe names, which are not of `kinds`."""
        found = self.model_copy()
        for operator in set(found.model_extra or {}) - set(kinds):
            del (found.model_extra or {})[operator]
        return found

    def with_method(self, name: str, **changes: Any) -> Recipe:
        """The uniform recipe of one method, without choices for single sites."""
        plain = self.preset == "accurate"
        choices = {operator: uniform_choice(operator, name, plain=plain) for operator in operators.with_methods()}
        return self.model_copy(update={**choices, "sites": {}, **changes})

    @property
    def label(self) -> str:
        names = {c.method for c in (self.softmax, self.layernorm, *self.sites.values())}
        return f"{'+'.join(sorted(names))} W{self.bits}A{self.bits}"


STAND_IN = "ivit"
"""For what neither a method of the name nor its family's `stand_ins` give: its methods are defined at every scale."""


def uniform_choice(operator: str, name: str, *, plain: bool = False) -> Choice:
    """The method `name` of `operator`, or what stands in; unless `plain`, with the options for a uniform model."""
    family = [m for m in registry.methods() if m.name == name or f"{m.name}.v{m.version}" == name]
    if family and not any(m.operator == operator for m in family):
        name = next((m.stand_ins[operator] for m in family if operator in m.stand_ins), STAND_IN)
    try:
        return Choice(method=name, **({} if plain else registry.get(operator, name).uniform))
    except IntvitError:  # the lowering names a site where it is missing
        return Choice(method=name)


def build_recipe(values: dict[str, Any], where: str = "recipe", *, whole: bool = True) -> Recipe:
    """Check plain data into a Recipe; one line that names the key, the rule and the value otherwise.

    `whole`: not a file, beside which options may say more.

    >>> build_recipe({"bits": 3})
    Traceback (most recent call last):
    intvit.errors.IntvitError: recipe: bits: must be greater than or equal to 4, not 3
    """
    known = {*Recipe.model_fields, *operators.with_methods()}
    for name in sorted(values.keys() - known) if isinstance(values, dict) else ():
        near = difflib.get_close_matches(str(name), sorted(known), 1)
        known_key = f"a known key ({near[0]}?)" if near else "a known key"
        raise IntvitError(f"{where}: {name}: must be {known_key}, and is given {shortened(values[name])}")
    if isinstance(values, dict) and "numerics" in values:
        values = {**values, "numerics": build_numerics(values["numerics"], f"{where}: numerics")}
    if isinstance(values, dict) and isinstance(values.get("datapaths"), dict):
        given = values["datapaths"].items()
        values = {**values, "datapaths": {k: build_numerics(v, f"{where}: datapaths: {k}") for k, v in given}}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        rule = first["msg"].removeprefix("Input should be ").rstrip(".")
        rule = "must be a known key" if first["type"] == "extra_forbidden" else f"must be {rule}"
        raise IntvitError(f"{where}: {key}: {rule}, not {shortened(first['input'])}") from None
    if whole or recipe.model_fields_set & {"preset", "bias_correction"}:
        recipe.check_corrections(where)
    for operator in operators.with_methods():
        choice = recipe.of_kind(operator)
        if choice.options:
            with placed(f"{where}: {operator}"):
                choice.check(operator)
    return recipe


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe: `.toml`, or the JSON mapping that `intvit map` writes."""
    path = Path(path)
    text = read_text(path)
    with reading(path, "a TOML recipe or a JSON mapping"):
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    if isinstance(values, dict) and "recipe" in values:
        values = values["recipe"]
    if not isinstance(values, dict):
        raise IntvitError(f"{path}: must hold a table of recipe keys, not {type(values).__name__}")
    return build_recipe(values, str(path), whole=False)


def read_numerics(text: str) -> Numerics:
    """A preset by its name, or a TOML file of fields."""
    path = Path(text)
    if path.suffix != ".toml":
        return build_numerics(text)
    with reading(path, "a TOML file of numerics"):
        values = tomllib.loads(read_text(path))
    return build_numerics(values, str(path))
