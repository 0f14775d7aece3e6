"""Method: one published way to compute one operator in integers. A frozen value; `registry` finds it by scanning.

A method owns its facts: the options that it has, the widths that it can give, the input scale that it insists on, the
rows that it can take, what stands in for operators that its family lacks, and its fast forms. No list elsewhere names
a method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from intvit.errors import IntvitError, shortened

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Options(BaseModel):
    """Options of a method's own; a subclass declares each as a field with a default and its range."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class SoftmaxForms:
    """Faster functions (rows, mask, out), which write `out`; None where bounds do not hold.

    narrow(params, n_channels, masked) gives the codes of int8 scores, wide those of int16 ones, narrow_weights the
    weights less LOG2_LIFT that log2 codes of int8 scores stand for.
    """

    narrow: Callable[[Any, int, bool], Any] | None = None
    narrow_weights: Callable[[Any, int, bool], Any] | None = None
    wide: Callable[[Any, int, bool], Any] | None = None


@dataclass(frozen=True)
class GeluForms:
    """`depends`: "element" if an output depends on its input alone, "row_max" if on the row's maximum too.

    Either lets a table stand for an 8-bit GELU and the requantization after it.
    """

    depends: str


@dataclass(frozen=True)
class LayerNormForms:
    """`any_rows`: what `kernel` gives also takes rows of other integer dtypes, and the output's dtype."""

    any_rows: bool = False


@dataclass(frozen=True)
class Accurate:
    """What the preset `accurate` gives a method, where the recipe says nothing: options, and the width of its input."""

    options: Mapping[str, Any] = field(default_factory=dict)
    input_bits: int | None = None


@dataclass(frozen=True)
class Method:
    """`lower` turns real scales into integer constants; `spec` and `kernel` compute with nothing else.

    lower(in_scale, **facts, **options) -> (params, out_scale): IEEE double arithmetic, the only floats. It names the
        facts of its operator (`operators.Operator.facts`) that it needs, and its own options.
    spec(row, params[, mask row]) -> list of ints: unbounded integers, standard library.
    kernel(params) -> function of int64 rows (R, C) [and a bool mask (R, C)] -> int64 (R, C).
    bound(params, x_max, n_channels) -> largest |output| that |x| <= x_max can give, or None if none is proven.
    """

    operator: str
    name: str
    version: int
    params: type
    lower: Callable[..., tuple[Any, Any]]
    spec: Callable[..., list[int]]
    kernel: Callable[[Any], Callable[..., Rows]]
    summary: str
    source: str
    bound: Callable[[Any, int, int], int | None] | None = None
    out_encoding: str = "linear"
    options: type[Options] = Options
    uniform: Mapping[str, Any] = field(default_factory=dict)
    """Options that a uniform recipe of the preset `published` gives it, where those that suit narrow activations differ
    from the published."""
    accurate: Accurate = Accurate()
    widths: tuple[int, int] = (2, 64)
    """Least and largest width of the output: of the codes of a softmax, of the quantizer behind another operator."""
    input_scale: Callable[[float], float] | None = None
    """The input scale that it insists on, at least the one that the calibrated range gives: the next power of two, for
    example. The quantizer before it takes it."""
    longest_row: int | None = None
    """Most elements of a row."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Operator -> the method that stands in for it in a uniform model, where a method of this name is missing."""
    fast: SoftmaxForms | GeluForms | LayerNormForms | None = None
    outside: Callable[[Any, Mapping[str, Sequence[int | None]]], str | None] | None = None
    """(params, the intermediates of a row, by the names of its specification) -> the rule that the row breaks, if it is
    one for which the method was not made: its result is defined, and bad."""
    derived: Callable[[list[int], Any], Mapping[str, list[int]]] | None = None
    """(row, params) -> the numbers of a row by which its paper writes the method, and hardware computes it, where the
    parameters are others: name -> (C,)."""
    informative: bool = False
    """True for a variant that documents a deployment and is not a normative published semantics."""

    @property
    def id(self) -> str:
        return f"{self.operator}.{self.name}.v{self.version}"

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those given and defaults; IntvitError names the first that is unknown or out of range."""
        try:
            return self.options.model_validate(dict(options)).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            key = first["loc"][0]  # what follows is pydantic's way into a union
            known = ", ".join(self.options.model_fields) or "none"
            rule = first["msg"].removeprefix("Input should be ").rstrip(".")
            rule = f"be an option of {self.id} ({known})" if first["type"] == "extra_forbidden" else f"be {rule}"
            raise IntvitError(f"{key}: must {rule}, not {shortened(first['input'])}") from None

    def constants(self, in_scale: Any, facts: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, Any]:
        """(params, out_scale) at a site: `lower` gets those of the `facts` that it names, and the checked options.

        Raises IntvitError for an option that is none of its, and for a scale or fact for which it is undefined.
        """
        named = inspect.signature(self.lower).parameters
        taken = {key: value for key, value in facts.items() if key in named}
        return self.lower(in_scale, **taken, **self.checked(options))
