"""Method: one published way to compute one operator in integers. A frozen value; `registry` finds it by scanning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Method:
    """`lower` turns real scales into integer constants; `spec` and `kernel` compute with nothing else.

    lower(in_scale, **options) -> (params, out_scale): IEEE double arithmetic, the only floats.
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
    narrow: Callable[[Any, int, bool], Any] | None = None
    """Softmax: narrow(params, n_channels, masked) -> a faster function (rows int8, mask, out) that writes `out`; it may
    give None where its bounds do not hold."""
    narrow_weights: Callable[[Any, int, bool], Any] | None = None
    """Softmax with log2 codes: as `narrow`, but `out` gets the weights less LOG2_LIFT that the codes stand for."""
    depends: str | None = None
    """GELU: "element" if an output depends on its input alone, "row_max" if on the row's maximum too."""
    any_rows: bool = False
    """LayerNorm: the function that `kernel` gives also takes rows of other integer dtypes, and the output's dtype."""
    narrow_output: bool = False
    """LayerNorm: its multipliers are too narrow for the wide residual stream; its output is quantized as an operand."""
    informative: bool = False
    """True for a variant that documents a deployment and is not a normative published semantics."""

    @property
    def id(self) -> str:
        return f"{self.operator}.{self.name}.v{self.version}"
