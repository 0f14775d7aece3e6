"""Where the methods of this package divide, shift and clamp: what is rounded, by the names of their intermediates.

A method that is not here (of a package of one's own, of another version) has the classes of its intermediates alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intvit.spec.layernorm import GUARD_BITS
from intvit.spec.softmax import SUM_MAX

Row = Sequence[int]
Taps = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Division:
    """`numerator / denominator`, element by element, denominators positive; `even`: a half goes to the even integer."""

    name: str
    numerator: Sequence[int]
    denominator: Sequence[int]
    even: bool = False


@dataclass(frozen=True)
class Clamp:
    """Values on their way into low..high; None where there is no such end."""

    name: str
    value: Sequence[int]
    low: int | None
    high: int | None


Steps = Iterator[Division | Clamp]


def _shift(name: str, values: Sequence[int], bits: int, even: bool = False) -> Division:
    return Division(name, values, [1 << bits] * len(values), even)


def _shift_exp(taps: Taps, x0: int, n: int) -> Steps:
    d = [v for v in taps["delta"] if v is not None]
    yield _shift("delta / 2", d, 1)
    yield _shift("delta / 16", d, 4)
    yield Clamp("argument", [v + (v >> 1) - (v >> 4) for v in d], n * x0, None)
    last = [r for r, q in zip(taps["remainder"], taps["quotient"], strict=True) if q == n]
    yield _shift("exp halved", last, 1)


def _int_exp(taps: Taps, x0: int, n: int) -> Steps:
    yield Clamp("argument", [v for v in taps["delta"] if v is not None], n * x0, None)


def _softmax_ivit(row: Row, taps: Taps, p: Any) -> Steps:
    yield from _shift_exp(taps, p.x0, p.n)
    yield Clamp("sum", taps["sum"], None, SUM_MAX)
    yield Division("factor", [SUM_MAX] * len(taps["sum"]), [min(v, SUM_MAX) for v in taps["sum"]])
    yield _shift("y", taps["product"], 32 - p.out_bits)


def _softmax_ibert(row: Row, taps: Taps, p: Any) -> Steps:
    yield from _int_exp(taps, p.x0, p.n)
    yield from _exp16(taps, p)
    yield Division("factor", [1 << 32] * len(taps["sum"]), [max(v, 1) for v in taps["sum"]])
    yield _shift("y", taps["product"], 32 - p.out_bits)


def _exp16(taps: Taps, p: Any) -> Steps:
    products = [v * p.m for v in taps["exp"]]
    if p.e > 0:
        yield _shift("exp16", products, p.e, even=True)
    rounded = [v << -p.e if p.e <= 0 else (v >> p.e) + ((v >> (p.e - 1)) & 1) for v in products]
    yield Clamp("exp16", rounded, None, (1 << 15) - 1)


def _softmax_fqvit(row: Row, taps: Taps, p: Any) -> Steps:
    yield from _int_exp(taps, p.x0, p.n)
    exp = [v for v in taps["exp"] if v > 0]
    yield Division("ratio", list(taps["sum"]) * len(exp), exp, even=True)
    ratios = [v for v in taps["ratio"] if v is not None]
    yield Division("code", ratios, [1 << (v.bit_length() - 1) for v in ratios])
    floors = [v.bit_length() - 1 for v in ratios]
    codes = [k + (2 * (v - (1 << k)) >= 1 << k) for v, k in zip(ratios, floors, strict=True)]
    yield Clamp("code", codes, None, (1 << p.bits) - 1)


def _tvm(taps: Taps, p: Any) -> Steps:
    d = [v for v in taps["delta"] if v is not None]
    yield _shift("delta / 2", d, 1)
    yield _shift("delta / 16", d, 4)
    yield Clamp("argument", [v + (v >> 1) - (v >> 4) for v in d], p.n * p.x0, None)
    yield _shift("remainder / 2", taps["remainder"], 1)
    positive = [v for v in taps["sum"] if v > 0]
    yield Division("factor", [SUM_MAX] * len(positive), positive)
    yield _shift("product >> 24", taps["product"], 24)


def _gelu_ivit(row: Row, taps: Taps, p: Any) -> Steps:
    yield from _shift_exp(taps, p.x0, p.n)
    yield Clamp("sum", taps["sum"], None, SUM_MAX)
    yield Division("factor", [SUM_MAX] * len(taps["sum"]), [min(v, SUM_MAX) for v in taps["sum"]])
    yield _shift("sigmoid", taps["product"], 32 - p.out_bits)


def _gelu_ibert(row: Row, taps: Taps, p: Any) -> Steps:
    b = p.b if len(p.b) > 1 else p.b * len(row)
    yield Clamp("clipped", [abs(x) + v for x, v in zip(row, b, strict=True)], None, 0)
    signs = [(x > 0) - (x < 0) for x in row]
    yield _shift("erf", [s * v for s, v in zip(signs, taps["polynomial"], strict=True)], p.n)


def _layernorm(row: Row, taps: Taps, p: Any, top: int) -> Steps:
    yield Division("mean", taps["sum"], [len(row)] * len(taps["sum"]), even=True)
    if getattr(p, "shift", 0):
        yield _shift("shifted", taps["delta"], p.shift)
    yield from _normalized(taps, top)


def _normalized(taps: Taps, top: int) -> Steps:
    if "factor" in taps:
        yield Division("factor", [top], list(taps["root"]))
        yield _shift("product >> 1", taps["product"], 1)


def _layernorm_tvm(row: Row, taps: Taps, p: Any) -> Steps:
    yield Division("mean", [abs(v) for v in taps["sum"]], [len(row)] * len(taps["sum"]))
    yield from _normalized(taps, SUM_MAX)


def _rmsnorm(row: Row, taps: Taps, p: Any, top: int) -> Steps:
    if getattr(p, "shift", 0):
        yield _shift("shifted", list(row), p.shift)
    yield from _normalized(taps, top)


def _layernorm_fqvit(row: Row, taps: Taps, p: Any) -> Steps:
    if "root" not in taps:
        return
    (aligned,), (root,), (reciprocal,), (fraction,) = (taps[k] for k in ("aligned", "root", "reciprocal", "fraction"))
    yield Division("fraction", [(aligned - root * root) << 30], [2 * root])
    yield Division("reciprocal", [1 << 61], [root])
    error = ((1 << 61) - root * reciprocal << 30) - reciprocal * fraction
    yield _shift("correction", [error * reciprocal], 61, even=True)
    shifts, slopes = taps["shift"], taps["slope"]
    (exponent,) = taps["inverse_exp"]
    before = [7 - (s.bit_length() - 1 - (at + exponent - 62)) for s, at in zip(slopes, p.slope_exp, strict=True)]
    yield Clamp("shift", before, 0, 31)
    guards = [max(0, min(GUARD_BITS, e - n - 1)) for e, n in zip(p.bias_exp, shifts, strict=True)]
    betas = [(b, e - n - g) for b, e, n, g in zip(p.bias, p.bias_exp, shifts, guards, strict=True) if e - n - g > 0]
    yield Division("beta_term", [v for v, _ in betas], [1 << s for _, s in betas], even=True)
    terms = zip(taps["beta_term"], taps["mean_term"], guards, strict=True)
    offsets = [(b - u, g) for b, u, g in terms if g]
    yield Division("offset", [v for v, _ in offsets], [1 << g for _, g in offsets], even=True)
    totals = [(v, n) for v, n in zip(taps["total"], shifts, strict=True) if n]
    yield Division("y", [v for v, _ in totals], [1 << n for _, n in totals], even=True)


def _mean(row: Row, taps: Taps, p: Any) -> Steps:
    yield Division("y", taps["sum"], [len(row)], even=True)


def _constant_ties(p: Any, low: int, high: int) -> bool:
    """Whether FQ-ViT's beta_term, which rounds a constant, can tie for a shift N of low..high."""
    for bias, exp in zip(p.bias, p.bias_exp, strict=True):
        for n in range(low, high + 1):
            shift = exp - n - max(0, min(GUARD_BITS, exp - n - 1))
            if shift > 0 and bias & ((1 << shift) - 1) == 1 << (shift - 1):
                return True
    return False


TIES: Mapping[tuple[str, str], tuple[str, Callable[[Any, int, int], bool]]] = {
    ("layernorm.fqvit.v1", "beta_term"): ("shift", _constant_ties),
}
"""Method id and a rounding of its constants -> the intermediate on whose interval it depends; whether it can tie."""
STEPS: Mapping[str, Callable[[Row, Taps, Any], Steps]] = {
    "mean": _mean,
    "softmax.ivit.v1": _softmax_ivit,
    "softmax.ibert.v1": _softmax_ibert,
    "softmax.fqvit.v1": _softmax_fqvit,
    "softmax.ivit_tvm.v1": lambda row, taps, p: _tvm(taps, p),
    "gelu.ivit.v1": _gelu_ivit,
    "silu.ivit.v1": _gelu_ivit,
    "quick_gelu.ivit.v1": _gelu_ivit,
    "gelu.ibert.v1": _gelu_ibert,
    "silu.ibert.v1": _softmax_ibert,
    "quick_gelu.ibert.v1": _softmax_ibert,
    "gelu.ivit_tvm.v1": lambda row, taps, p: _tvm(taps, p),
    "layernorm.ivit.v1": lambda row, taps, p: _layernorm(row, taps, p, SUM_MAX),
    "layernorm.ibert.v1": lambda row, taps, p: _layernorm(row, taps, p, SUM_MAX + 1),
    "layernorm.fqvit.v1": _layernorm_fqvit,
    "layernorm.ivit_tvm.v1": _layernorm_tvm,
    "rmsnorm.ivit.v1": lambda row, taps, p: _rmsnorm(row, taps, p, SUM_MAX),
    "rmsnorm.ibert.v1": lambda row, taps, p: _rmsnorm(row, taps, p, SUM_MAX + 1),
}
"""Method id, or operator -> its steps on one row. Pinned to versions, as the rules of `proofs.walk` are."""
