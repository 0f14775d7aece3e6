"""The operators as datapaths: the same integers as engine and specification, each step open to one fault.

A function of `MODELS` takes the rows of a node and its constants by name. Every register, rounding, division and clamp
goes through a `Path`, which is where one `Fault` sits; names are those of `intvit.spec.taps`, where the spec has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intvit.graph.ir import Array
from intvit.spec.numerics import HAWQ, Numerics
from intvit.vectors.diagnosis import arith
from intvit.vectors.diagnosis.arith import bit_length, divided, isqrt, magnitude, objects, roomy, shifted

SUM_MAX = 2**31 - 1
MOST_CODE_BITS = 32
BOTH = " and "
"""Between the names of two steps that have the same fault, as they are one circuit."""
Values = Mapping[str, Array]


@dataclass(frozen=True)
class Fault:
    """What one step does instead: `kind` of the alternative, the step's name, and a number or word."""

    kind: str
    at: str
    value: Any = None


@dataclass
class Note:
    """What was seen of a step: its kind, the range of its values and what it does by right."""

    kind: str
    low: int
    high: int
    usual: Any = None


@dataclass
class Path:
    """Steps of a datapath; one may be faulty. `notes`: what steps there are, in order, with the ranges seen."""

    fault: Fault | None = None
    notes: dict[str, Note] = field(default_factory=dict)
    noting: bool = False

    def _has(self, kind: str, name: str) -> bool:
        return self.fault is not None and self.fault.kind == kind and name in self.fault.at.split(BOTH)

    def _note(self, kind: str, name: str, v: Array, usual: Any = None) -> None:
        if self.noting and v.size:
            low, high = int(v.min()), int(v.max())
            old = self.notes.get(name)
            self.notes[name] = Note(
                kind, min(low, old.low) if old else low, max(high, old.high) if old else high, usual
            )

    def word(self, name: str, v: Array, bits: int = 96, overflow: str = "saturate") -> Array:
        """An intermediate register; `bits` if the numerics name a width."""
        if bits < 96:
            v = arith.narrowed(v, bits, overflow)
        self._note("word", name, v)
        f = self.fault
        if f is None or f.at != name:
            return v
        match f.kind:
            case "wrap" | "saturate":
                return arith.narrowed(v, f.value[0], f.kind, f.value[1])
            case "drop":
                return (v >> f.value) << f.value
            case "zero":
                return v * 0
            case "negate":
                return -v
            case "absolute":
                return abs(v)
            case "double":
                return v * 2
            case "half":
                return v >> 1
            case "add":
                return v + f.value
        return v

    def shift(self, name: str, v: Array, e: Array | int, mode: str = "floor", first: int | None = None) -> Array:
        """A rounding shift; `first`: of a double rounding, where the first one cuts."""
        self._note("shift", name, np.asarray(e), mode if first is None else f"double {mode}")
        if self._has("rounding", name):
            assert self.fault is not None
            first, mode = None, self.fault.value
            if mode.startswith("double "):
                first, mode = 31, mode.removeprefix("double ")
        if self._has("shift", name):
            assert self.fault is not None
            e = np.asarray(e) + self.fault.value
        if first is None:
            return shifted(v, e, mode)
        once = shifted(v, e, "half_up")
        upper = arith.narrowed(shifted(v, first, "half_up"), 64, "saturate")
        return np.where(np.asarray(e) > first, shifted(upper, np.maximum(np.asarray(e) - first, 0), mode), once)

    def divide(self, name: str, a: Array, b: Array | int, mode: str = "floor") -> Array:
        self._note("divide", name, np.asarray(b), mode)
        if self._has("rounding", name):
            assert self.fault is not None
            mode = self.fault.value
        return divided(a, b, mode)

    def clamp(self, name: str, v: Array, bits: int, overflow: str = "saturate") -> Array:
        """The narrowing of an output."""
        self._note("clamp", name, v, (overflow, bits))
        if self.fault is not None and self.fault.kind == "clamp" and self.fault.at == name:
            match self.fault.value:
                case "symmetric":
                    return np.maximum(arith.narrowed(v, bits, overflow), 1 - (1 << (bits - 1)))
                case "unsigned":
                    return np.maximum(arith.narrowed(v, bits, overflow), 0)
                case ("wrap" | "saturate") as other, more:
                    return arith.narrowed(arith.narrowed(v, bits + more, other), bits, overflow)
        return arith.narrowed(v, bits, overflow)

    def limit(self, name: str, v: Array, least: int | None = None, most: int | None = None) -> Array:
        """A clamp inside a method, which may be missing."""
        self._note("limit", name, v, (least, most))
        if self._has("unlimited", name):
            return v
        v = v if least is None else np.maximum(v, least)
        return v if most is None else np.minimum(v, most)

    def count(self, name: str, usual: int) -> int:
        """How often a step is repeated."""
        self._note("count", name, np.asarray(usual), usual)
        return self.fault.value if self.fault is not None and self._has("count", name) else usual

    def choice(self, name: str, usual: str, *others: str) -> str:
        """An alternative structure."""
        self._note("choice", name, np.zeros(1, np.int64), (usual, *others))
        return self.fault.value if self.fault is not None and self._has("choice", name) else usual


@dataclass(frozen=True)
class Site:
    """What a model has to know of its node beside rows and constants."""

    numerics: Numerics = HAWQ
    bits: int = 64
    may_act: bool = False
    """Whether the sums of a product may leave a stated accumulator."""
    addend: bool = False
    """A requantization whose second term is a zero point."""


Model = Callable[[Path, Site, Values, "list[Array]"], Array]


# ------------------------------------------------------------------------------- requantization, products, mean


def requantize(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    how, m, e = site.numerics, p["m"], p["e"]
    residual = rows[1] if len(rows) > 1 else None
    first = how.multiplier_bits - 1 if how.double_rounding else None

    def multiplied(name: str, v: Array, factor: Array) -> Array:
        v, factor = roomy(magnitude(v) + magnitude(factor), v, factor)
        return w.word(name, v * factor, how.product_bits, how.product_overflow)

    def rounded(name: str, v: Array, by: Array) -> Array:
        return w.word(f"{name}.word", w.shift(name, v, by, how.rounding, first), how.rounded_bits, how.rounded_overflow)

    x = multiplied("product", rows[0], m)
    if residual is None:
        return w.clamp("y", rounded("rounded", x, e), site.bits, how.output_overflow)
    usual = "each" if site.addend else how.residual
    order = w.choice("residual", usual, "together" if usual == "each" else "each", "clamped first")
    z = multiplied("residual_product", residual, p["residual_m"])
    other = p["residual_e"]
    if order == "together":
        high = np.maximum(e, other)
        x, z = roomy(max(magnitude(x), magnitude(z)) + int((high - np.minimum(e, other)).max()), x, z)
        total = w.word("total", (x << (high - e)) + (z << (high - other)), how.product_bits, how.product_overflow)
        return w.clamp("y", rounded("rounded", total, high), site.bits, how.output_overflow)
    y = rounded("rounded", x, e)
    if order == "clamped first":
        y = arith.narrowed(y, site.bits, how.output_overflow)
    z = rounded("residual_rounded", z, other)
    y, z = roomy(max(magnitude(y), magnitude(z)) + 1, y, z)
    total = w.word("total", y + z, how.rounded_bits, how.rounded_overflow)
    return w.clamp("y", total, site.bits, how.output_overflow)


def _summed(w: Path, site: Site, a: Array, b: Array, bias: Array | int) -> Array:
    how = site.numerics
    if w.fault is not None and w.fault.kind == "saturate each" and w.fault.at == "sum":
        return arith.accumulated(a, b, bias, w.fault.value)
    if site.may_act and how.accumulator == "saturate":
        assert how.accumulator_bits is not None
        return arith.accumulated(a, b, bias, how.accumulator_bits)
    total = w.word("sum", arith.product(a, b))
    total = w.word("accumulator", total + bias)
    if site.may_act and how.accumulator_bits is not None and how.accumulator in ("wrap", "saturate_end"):
        total = arith.narrowed(total, how.accumulator_bits, how.accumulator.removesuffix("_end"))
    return total


def linear(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    return _summed(w, site, rows[0], p["weight"].T, p.get("bias", 0))


def matmul(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    return _summed(w, site, rows[0], rows[1], 0)


def log2_matmul(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    codes, v = rows
    zero = {"0": 0, "2**15": 1 << 15, "2**16": 1 << 16}[w.choice("weight of code -1", "0", "2**15", "2**16")]
    weight = np.where(codes < 0, zero, 1 << np.clip(15 - codes, 0, 40))
    bits = w.count("fraction bits", 15)
    if bits < 15:  # each product keeps so many of the fraction's bits
        lost = 15 - bits
        parts = (weight[..., :, :, None] * v[..., None, :, :]) >> lost << lost
        return w.word("sum", parts.sum(axis=-2))
    return _summed(w, site, weight, v, 0)


def mean(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    """(R, N) -> (R,)."""
    return w.divide("y", w.word("sum", rows[0].sum(axis=-1)), rows[0].shape[-1], "half_even")


# ----------------------------------------------------------------------------------------------- softmax


def _deltas(w: Path, x: Array, hidden: Array | None) -> Array:
    """x - x_max, hidden positions as they come; 'previous': the maximum of the row before."""
    x = w.word("x", x)
    how = w.choice("row maximum", "row", "none", "all rows", "masked too")
    seen = x if hidden is None or how == "masked too" else np.where(hidden, np.iinfo(np.int64).min, x)
    top = seen.max(axis=-1, keepdims=True)
    if hidden is not None:
        top = np.where(hidden.all(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True), top)
    if how == "none":
        top = top * 0
    elif how == "all rows":
        top = np.broadcast_to(top.max(), top.shape)
    return w.word("delta", x - w.word("x_max", top))


def _parts(w: Path, d: Array, x0: int, n: int, hidden: Array | None) -> tuple[Array, Array]:
    t = w.limit("argument", d, n * x0)
    if hidden is not None and w.choice("mask", "masked", "not masked") == "masked":
        t = np.where(hidden, n * x0, t)
    q = w.word("quotient", w.divide("argument / x0", t, x0))
    return q, w.word("remainder", t - x0 * q)


def _shift_exp(w: Path, d: Array, x0: int, n: int, hidden: Array | None) -> Array:
    half, sixteenth = w.shift("delta >> 1", d, 1), w.shift("delta >> 4", d, 4)
    how = w.choice("1.4375", "d + d/2 - d/16", "d", "d + d/2", "d - d/16", "d + d/2 + d/16")
    d = d + (half if "+ d/2" in how else 0) - (sixteenth if "- d/16" in how else 0)
    d = d + (sixteenth if "+ d/16" in how else 0)
    q, r = _parts(w, d, x0, n, hidden)
    kept = w.choice("half bit", "kept", "dropped")
    if kept == "dropped":
        return w.word("exp", ((r >> 1) - x0) << np.clip(n - q, 0, 31))
    return w.word("exp", w.shift("exp >> 1", (r - 2 * x0) << np.clip(n - q, 0, 31), 1))


def _int_exp(w: Path, d: Array, p: Values, hidden: Array | None) -> Array:
    n = int(p["n"])
    q, r = _parts(w, d, int(p["x0"]), n, hidden)
    polynomial = w.word("polynomial", r * (r + p["b"]) + p["c"])
    how = w.choice("shift", "left by n - q", "right by q")
    by = np.clip(n - q, 0, 62)
    polynomial, by = roomy(magnitude(polynomial) + int(by.max()), polynomial, by)
    exp = ((polynomial >> np.maximum(q, 0)) << n) if how == "right by q" else polynomial << by
    return w.word("exp", w.limit("exp >= 0", exp, 0))


def _hidden(p: Values) -> Array | None:
    mask = p.get("mask")
    return None if mask is None else mask.astype(bool)


def softmax_ivit(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    hidden = _hidden(p)
    e = _shift_exp(w, _deltas(w, rows[0], hidden), int(p["x0"]), int(p["n"]), hidden)
    total = w.limit("sum clamp", w.word("sum", e.sum(axis=-1, keepdims=True)), None, SUM_MAX)
    factor = w.word("factor", w.divide("1 / sum", np.full_like(total, SUM_MAX), np.where(total == 0, 1, total)))
    return w.word("y", w.shift("product >>", w.word("product", e * factor), 32 - int(p["out_bits"])))


def softmax_ibert(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    hidden = _hidden(p)
    e = _int_exp(w, _deltas(w, rows[0], hidden), p, hidden)
    e, m = roomy(magnitude(e) + magnitude(p["m"]), e, p["m"])
    h = w.clamp("exp16", w.shift("exp * m", w.word("exp product", e * m), int(p["e"]), "half_even"), 16)
    h = arith.compact(h)
    total = w.word("sum", h.sum(axis=-1, keepdims=True))
    factor = w.word("factor", w.divide("1 / sum", np.full_like(total, 2**32), np.maximum(total, 1)))
    return w.word("y", w.shift("product >>", w.word("product", h * factor), 32 - int(p["out_bits"])))


def softmax_fqvit(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    hidden = _hidden(p)
    e = _int_exp(w, _deltas(w, rows[0], hidden), p, hidden)
    total = w.word("sum", e.sum(axis=-1, keepdims=True))
    total, e = roomy(magnitude(total) + 1, np.broadcast_to(total, e.shape), e)
    ratio = w.word("ratio", w.divide("sum / exp", total, np.where(e == 0, 1, e), "half_even"))
    k = bit_length(np.maximum(ratio, 0)) - 1
    below = np.maximum(k, 0)
    power = objects(1) << objects(below) if ratio.dtype == object else np.int64(1) << below
    match w.choice("log2", "rounded", "floor", "ceiling"):
        case "rounded":
            k = k + (2 * (ratio - power) >= power)
        case "ceiling":
            k = k + (ratio > power)
    if int(p["bits"]) > MOST_CODE_BITS:  # a constant in the place of another
        raise OverflowError(f"codes of {int(p['bits'])} bits")
    limit = 1 << int(p["bits"])
    beyond = limit - 1 if w.choice("beyond", "zero", "clamped") == "clamped" else -1
    return w.word("y", np.where(e == 0, -1, np.where(k >= limit, beyond, k)).astype(np.int64))


# -------------------------------------------------------------------------------------------------- gelu


def gelu_ivit(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    x = w.word("x", rows[0])
    how = w.choice("row maximum", "row", "none", "all rows")
    top = x.max(axis=-1, keepdims=True)
    top = top * 0 if how == "none" else np.broadcast_to(top.max(), top.shape) if how == "all rows" else top
    top = w.word("x_max", top)
    d = w.word("delta", np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1) - top)
    every = _shift_exp(w, d, int(p["x0"]), int(p["n"]), None)
    e, em = every[..., :-1], every[..., -1:]
    total = w.limit("sum clamp", w.word("sum", e + em), None, SUM_MAX)
    factor = w.word("factor", w.divide("1 / sum", np.full_like(total, SUM_MAX), np.where(total == 0, 1, total)))
    sigmoid = w.shift("product >>", w.word("product", e * factor), 32 - int(p["out_bits"]))
    return w.word("y", x * w.word("sigmoid", sigmoid))


def gelu_ibert(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    x = w.word("x", rows[0])
    sign = np.sign(x)
    magnitudes = w.word("magnitude", abs(x))
    clipped = magnitudes if w._has("unlimited", "clipped") else np.minimum(magnitudes, -p["b"])
    w._note("limit", "clipped", magnitudes, None)
    polynomial = w.word("polynomial", (clipped + p["b"]) ** 2 + p["c"])
    match w.choice("sign", "before the shift", "after the shift", "none"):
        case "before the shift":
            erf = w.shift("erf", sign * polynomial, int(p["n"]))
        case "after the shift":
            erf = sign * w.shift("erf", polynomial, int(p["n"]))
        case _:
            erf = w.shift("erf", polynomial, int(p["n"]))
    return w.word("y", x * w.word("gate", w.word("erf.word", erf) + p["shift"]))


# --------------------------------------------------------------------------------------------- layernorm


def _centred(w: Path, x: Array) -> Array:
    x = w.word("x", x)
    total = w.word("sum", x.sum(axis=-1, keepdims=True))
    mean = w.word("mean", w.divide("sum / C", total, x.shape[-1], "half_even"))
    return w.word("delta", x - mean)


def _newton(w: Path, v: Array, usual: int = 10) -> Array:
    k = np.full_like(v, 1 << w.count("root starts at 2**", 16))
    for _ in range(w.count("steps", usual)):
        k = (k + v // np.maximum(k, 1)) >> 1
    return w.word("root", k)


def _rooted(w: Path, v: Array, d: Array, most: int) -> Array:
    factor = np.full_like(v, most) // np.where(v == 0, 1, v) if not w._has("rounding", "1 / root") else None
    w._note("divide", "1 / root", v, "floor")
    if factor is None:
        factor = w.divide("1 / root", np.full_like(v, most), np.where(v == 0, 1, v))
    factor = w.word("factor", factor)
    return w.word("normalized", w.shift("product >> 1", w.word("product", d * factor), 1))


def layernorm_ivit(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    d = _centred(w, rows[0])
    var = w.word("variance", (d * d).sum(axis=-1, keepdims=True))
    match w.choice("square root", "newton", "floor", "nearest"):
        case "newton":
            root = _newton(w, var)
        case "floor":
            root = isqrt(var)
        case _:
            root = (isqrt(4 * var) + 1) >> 1
    return w.word("y", _rooted(w, root, d, 2**31 - 1) + p["bias"])


def layernorm_ibert(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    d = _centred(w, rows[0])
    shift = int(p["shift"])
    small = w.word("shifted", w.shift("delta >> shift", d, shift))
    var = w.word("variance", (small * small).sum(axis=-1, keepdims=True))
    steps = w.count("steps", 0)
    match w.choice("square root", "floor", "nearest", "newton"):
        case "floor" if not steps:
            root = isqrt(var)
        case "floor":  # Algorithm 4, its loop ended early
            k = np.int64(1) << ((bit_length(var) + 1) // 2)
            for _ in range(steps):
                k = np.minimum(k, (k + var // np.maximum(k, 1)) >> 1)
            root = np.where(var == 0, 0, k)
        case "nearest":
            root = (isqrt(4 * var) + 1) >> 1
        case _:
            root = _newton(w, var)
    root = w.word("root", root << shift)
    return w.word("y", np.where(root == 0, 0, _rooted(w, root, d, 2**31)) + p["bias"])


def _clipped(v: Array, low: Any, high: Any) -> Array:
    return np.minimum(np.maximum(v, low), high)


def layernorm_fqvit(w: Path, site: Site, p: Values, rows: list[Array]) -> Array:
    """Python integers throughout: mantissas of 61 bits times inverses of 61."""
    x = w.word("x", rows[0])
    scaled = w.word("scaled", x * p["factor"])
    total = w.word("sum", scaled.sum(axis=-1, keepdims=True))
    squares = w.word("square_sum", (scaled * scaled).sum(axis=-1, keepdims=True))
    var = w.word("variance", objects(squares) * scaled.shape[-1] - objects(total) ** 2)
    flat = np.asarray(var <= 0)
    constants = {key: objects(p[key]) for key in ("slope", "slope_exp", "gain", "gain_exp", "bias", "bias_exp", "sign")}
    inverse, exponent = _inverse_root(w, np.where(flat, 1, var))
    slope = w.word("slope", (constants["slope"] * inverse) >> 62)
    at = constants["slope_exp"] + exponent - 62
    n = w.word("shift", _clipped(7 - (objects(bit_length(slope)) - 1 - at), 0, 31))
    m = w.word("multiplier", np.minimum(_floor_shift(w, "multiplier >>", slope, at - n), 255))
    guard = _clipped(constants["bias_exp"] - n - 1, 0, w.count("guard bits", 24))
    most = 2**60
    bias = _clipped(shifted(constants["bias"], constants["bias_exp"] - n - guard, "half_even"), -most, most)
    slant = constants["sign"] * ((constants["gain"] * inverse) >> 62)
    u = shifted(slant * objects(total), constants["gain_exp"] + exponent - 62 - n - guard, "half_even")
    bias, u = w.word("beta_term", bias), w.word("mean_term", _clipped(u, -most, most))
    offset = w.word("offset", w.shift("offset >>", bias - u, guard, "half_even"))
    product = w.word("product", constants["sign"] * m * objects(scaled))
    y = w.shift("total >> N", w.word("total", product + offset), n, "half_even")
    if flat.any():
        plain = shifted(constants["bias"], constants["bias_exp"], "half_even")
        y = np.where(flat, plain, y)
    return w.word("y", arith.compact(objects(y)))


def _floor_shift(w: Path, name: str, v: Array, e: Array) -> Array:
    return w.shift(name, v, e, "floor")


def _inverse_root(w: Path, var: Array) -> tuple[Array, Array]:
    """(J, k), 1/sqrt(var) = J / 2**k, (R, 1) of Python integers."""
    shift = 62 - bit_length(objects(var))
    shift = objects(shift - shift % 2)
    aligned = objects(shifted(objects(var), -shift, "floor"))
    root = objects(w.word("root", isqrt(aligned)))
    fraction = w.word("fraction", ((aligned - root * root) << 30) // (2 * root))
    reciprocal = (objects(0 * root) + 2**61) // root
    rest = 2**61 - reciprocal * root
    error = (rest << 30) - w.word("reciprocal", reciprocal) * fraction
    correction = w.word("correction", w.shift("correction >>", error * reciprocal, 61, "half_even"))
    if w.count("newton steps", 1) == 0:
        correction = correction * 0
    return w.word("inverse", (reciprocal << 30) + correction), 91 - shift // 2


MODELS: dict[str, Model] = {
    "requantize": requantize,
    "linear": linear,
    "matmul": matmul,
    "log2_matmul": log2_matmul,
    "mean": mean,
    "softmax.ivit.v1": softmax_ivit,
    "softmax.ibert.v1": softmax_ibert,
    "softmax.fqvit.v1": softmax_fqvit,
    "gelu.ivit.v1": gelu_ivit,
    "gelu.ibert.v1": gelu_ibert,
    "layernorm.ivit.v1": layernorm_ivit,
    "layernorm.ibert.v1": layernorm_ibert,
    "layernorm.fqvit.v1": layernorm_fqvit,
}
"""By operator, or by the id of a method. What is not here is run by its kernel, with whole inputs and constants."""
