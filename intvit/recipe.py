"""Recipe: every numeric choice of a lowering as data. Read from TOML or a mapping JSON; unknown keys are refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intvit.errors import IntvitError, reading, shortened
from intvit.files import read_text

OPERATORS = ("softmax", "gelu", "layernorm")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Choice(_Strict):
    """A method for one site. `n` is I-BERT's GELU exponent: 14 is published, 6 suits 8-bit inputs."""

    method: str
    n: Annotated[int, Field(ge=0, le=30)] | None = None


class Observer(_Strict):
    """How a range is taken from a recording.

    minmax: per batch of `batch` images, smoothed as in I-ViT, `range = momentum*range + (1-momentum)*batch range`;
    momentum 0 takes the extremes of everything. percentile: the symmetric `percentile` of |x|. mse: the clip with the
    least mean squared quantization error.
    """

    kind: Literal["minmax", "percentile", "mse"] = "minmax"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch: Annotated[int, Field(ge=1)] = 16
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99


Bits = Annotated[int, Field(ge=4, le=8)]


class Recipe(_Strict):
    """What to lower to. Widths are of signed integers unless a method says otherwise."""

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
    """Choices for single sites; these go before the three above."""
    observer: Observer = Observer()

    def choice(self, operator: str, site: str) -> Choice:
        return self.sites.get(site) or getattr(self, operator)

    def with_method(self, name: str, **changes: Any) -> Recipe:
        """The uniform recipe of one method, without choices for single sites."""
        choices = {operator: _uniform(operator, name) for operator in OPERATORS}
        return self.model_copy(update={**choices, "sites": {}, **changes})

    @property
    def label(self) -> str:
        names = {c.method for c in (self.softmax, self.layernorm, *self.sites.values())}
        return f"{'+'.join(sorted(names))} W{self.bits}A{self.bits}"


UNIFORM_GELU = {"fqvit": "ivit"}
"""FQ-ViT evaluates GELU in float; its uniform integer model borrows this method's."""
IBERT_GELU_N = 6
"""n = 14 is unusable on 8-bit inputs (docs/quantization.md, "GELU")."""


def _uniform(operator: str, name: str) -> Choice:
    if operator == "gelu":
        name = UNIFORM_GELU.get(name, name)
        return Choice(method=name, n=IBERT_GELU_N if name == "ibert" else None)
    return Choice(method=name)


def build_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain data into a Recipe; one line that names the key, the rule and the value otherwise.

    >>> build_recipe({"bits": 3})
    Traceback (most recent call last):
    intvit.errors.IntvitError: recipe: bits: must be greater than or equal to 4, not 3
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        rule = first["msg"].removeprefix("Input should be ").rstrip(".")
        rule = "must be a known key" if first["type"] == "extra_forbidden" else f"must be {rule}"
        raise IntvitError(f"{where}: {key}: {rule}, not {shortened(first['input'])}") from None


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
    return build_recipe(values, str(path))
