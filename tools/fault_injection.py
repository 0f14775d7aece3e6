#!/usr/bin/env python3
"""Faults injected into sites of the embedded ViT, and whether `golden compare` names them.

    python tools/fault_injection.py --count 500 --seed 1            # the table by kind, on stdout
    python tools/fault_injection.py --count 500 --write             # and into docs/compare.md

A fault is made here, by other code than what looks for it: the specification with a line of its source replaced, or a
few lines of NumPy. One that changes no value of the site is drawn again. *Named*: a cause that means this fault is
among those that explain every element. *First*: it is the first of them. *Alternatives*: how many there are, median.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.files import safe_name
from intvit.graph.ir import LAYOUT_OPS, Graph, IntGraph, Node
from intvit.graph.parameters import method_params, node_method
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe
from intvit.spec import gelu, layernorm, softmax
from intvit.vectors.cases import cases_from
from intvit.vectors.diagnosis.compare import EQUAL, compare
from intvit.vectors.diagnosis.dump import Archive
from intvit.vectors.diagnosis.kinds import Cause

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "compare.md"
MARKS = "<!-- begin: python tools/fault_injection.py --write -->", "<!-- end -->"
N_IMAGES = 2
RECIPES: dict[str, dict[str, Any]] = {
    "ibert": {"bits": 8, "preset": "accurate", "softmax": "ibert", "gelu": "ibert", "layernorm": "ibert"},
    "ivit": {"bits": 8, "softmax": "ivit", "gelu": "ivit", "layernorm": "ivit"},
    "fqvit": {"bits": 8, "preset": "accurate", "softmax": "fqvit", "gelu": "ivit", "layernorm": "fqvit"},
    "ita": {"bits": 8, "softmax": "ivit", "gelu": "ivit", "layernorm": "ivit", "softmax_bits": 8, "numerics": "ita"},
    "wrapping": {
        "bits": 8, "softmax": "ivit", "gelu": "ivit", "layernorm": "ivit",
        "numerics": {"accumulator_bits": 16, "accumulator": "wrap"},
    },
}  # fmt: skip
"""Of the graphs, by a name."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A site on some images: a node, what it reads and gives, (B, *shape) each."""

    model: str
    graph: IntGraph
    node: Node
    own: list[Array]
    right: Array
    tensors: Mapping[str, Array] = field(repr=False, default_factory=dict)

    @property
    def bits(self) -> int:
        return self.graph.tensors[self.node.output].dtype.bits

    @property
    def x(self) -> Array:
        return self.own[0]

    def array(self, key: str) -> Array:
        return self.node.arrays[key].astype(np.int64)

    def rows(self, function: Callable[..., list[int]], *more: Any) -> Array:
        """A function of one row, on all rows of the first input."""
        rows = self.x.reshape(-1, self.x.shape[-1]).tolist()
        return np.array([function(row, *more) for row in rows], dtype=object).reshape(self.right.shape)


Truth = Callable[[Cause], bool]
Injected = tuple[Array, Truth]
"""What the device gave, and whether a cause means what was done to it."""
Injection = Callable[[Subject, random.Random], "Injected | None"]


@dataclass(frozen=True)
class Kind:
    name: str
    where: Callable[[Subject], bool]
    inject: Injection
    unnamed: bool = False
    """No single fault: that no cause is named is right."""


KINDS: list[Kind] = []


def kind(name: str, where: Callable[[Subject], bool], unnamed: bool = False) -> Callable[[Injection], Injection]:
    def add(inject: Injection) -> Injection:
        KINDS.append(Kind(name, where, inject, unnamed))
        return inject

    return add


def op(*names: str) -> Callable[[Subject], bool]:
    """Sites of operators, or of one of their methods."""
    return lambda s: s.node.op in names or f"{s.node.op}.{s.node.attrs.get('method')}" in names


def having(key: str, *names: str) -> Callable[[Subject], bool]:
    return lambda s: key in s.node.arrays and op(*names)(s)


def means(*kinds: str, step: str = "", text: str = "") -> Truth:
    return lambda cause: cause.kind in kinds and step in cause.step and text in cause.text


def either(*truths: Truth) -> Truth:
    return lambda cause: any(truth(cause) for truth in truths)


# ------------------------------------------------------------------------------------------- arithmetic of its own


FASTER: dict[str, Callable[..., Any]] = {
    "tap": lambda name, value: value,
    "rhe": lambda a, b: (q := a // b) + (2 * (a - q * b) > b or (2 * (a - q * b) == b and q % 2 == 1)),
    "rhe_shift": lambda v, e: rounding(v, e, "half_even"),
}
"""In place of the specification's fractions, which take most of the time."""


@cache
def changed(module: types.ModuleType, name: str, *replaced: tuple[str, str]) -> Callable[..., list[int]]:
    """A function of the specification, of whose module's source some text is replaced; each must stand in it."""
    text = inspect.getsource(module)
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new)
    made = types.ModuleType(f"{module.__name__}_faulty")
    sys.modules[made.__name__] = made  # dataclasses look their module up
    exec(compile(text, made.__name__, "exec"), made.__dict__)  # our own source, one line changed
    made.__dict__.update({key: fast for key, fast in FASTER.items() if key in made.__dict__})
    return made.__dict__[name]  # type: ignore[no-any-return]


def parameters_in(module: Any, subject: Subject) -> Any:
    """The site's parameters."""
    return method_params(subject.node)


def by_spec(s: Subject, *replaced: tuple[str, str]) -> Array:
    """The method of a site with its text changed."""
    module = {"softmax": softmax, "gelu": gelu, "layernorm": layernorm}[s.node.op]
    return s.rows(changed(module, s.node.attrs["method"], *replaced), method_params(s.node))


def signed(v: Any, bits: int) -> Any:
    half = 1 << (bits - 1)
    return (v + half) % (1 << bits) - half


def cut(v: Any, bits: int) -> Any:
    return np.minimum(np.maximum(v, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


def rounding(v: Any, e: int, how: str) -> int:
    """One product through one shift."""
    if e <= 0:
        return int(v) << -e
    q, rest = divmod(int(v), 1 << e)
    twice, whole = 2 * rest, 1 << e
    if how == "half_even":
        return q + (twice > whole or (twice == whole and q % 2 == 1))
    if how == "half_up":
        return q + (twice >= whole)
    if how == "half_away":
        return q + (twice > whole or (twice == whole and v >= 0))
    if how == "toward_zero":
        return q + (v < 0 and rest > 0)
    assert how == "floor"
    return q


def requantized(s: Subject, how: str | None = None, m: Any = None, e: Any = None, residual: Any = "as it is",
                narrow: Callable[[Any, int], Any] = cut, residual_m: Any = None, residual_e: Any = None,
                x: Any = None) -> Array:  # fmt: skip
    """A requantization, written once more: a dictionary of products instead of arrays of words."""
    usual = s.node.attrs.get("numerics", {}).get("rounding", "half_even")
    how = how or usual
    x = s.x if x is None else x

    def term(values: Array, m: Array, e: Array) -> Array:
        values, m, e = (np.broadcast_to(a, values.shape).astype(object) for a in (values, m, e))
        known: dict[tuple[int, int, int], int] = {}
        flat = []
        for key in zip(values.reshape(-1).tolist(), m.reshape(-1).tolist(), e.reshape(-1).tolist(), strict=True):
            if key not in known:
                known[key] = rounding(key[0] * key[1], key[2], how)
            flat.append(known[key])
        return np.array(flat, dtype=object).reshape(values.shape)

    total = term(x, s.array("m") if m is None else m, s.array("e") if e is None else e)
    if "residual_m" in s.node.arrays and residual is not None:
        if isinstance(residual, str):
            residual = s.node.arrays["residual"] if "residual" in s.node.arrays else s.own[1]
        rm = s.array("residual_m") if residual_m is None else residual_m
        re = s.array("residual_e") if residual_e is None else residual_e
        total = total + term(np.broadcast_to(residual, s.x.shape), rm, re)
    return narrow(total, s.node.attrs["bits"])


def product(s: Subject, x: Any = None, w: Any = None, bias: Any = "as it is") -> Array:
    """The sums of a linear operator or of a matrix product."""
    x = s.x if x is None else x
    if s.node.op == "matmul":
        return x.astype(np.int64) @ (s.own[1] if w is None else w).astype(np.int64)
    w = s.array("weight") if w is None else w
    sums = np.einsum("...k,ok->...o", x.astype(np.float64), w.astype(np.float64), optimize=True).astype(np.int64)
    if isinstance(bias, str):
        bias = s.array("bias") if "bias" in s.node.arrays else 0
    return accumulator(s, sums + bias)


def accumulator(s: Subject, sums: Array) -> Array:
    how = s.node.attrs.get("numerics", {})
    return signed(sums, how["accumulator_bits"]) if how.get("accumulator") == "wrap" else sums


def needs(v: Array) -> int:
    """Bits of a signed word that holds all of these."""
    return max(int(v.max()).bit_length(), (~int(v.min())).bit_length()) + 1


PRODUCTS = op("linear", "matmul")
REQUANTIZE = op("requantize")
ANY = op("requantize", "linear", "matmul", "softmax", "gelu", "layernorm", "mean", "log2_matmul")


@kind("requantization rounds by another rule", REQUANTIZE)
def _(s: Subject, rng: random.Random) -> Injected:
    how = rng.choice(["half_even", "half_up", "half_away", "floor", "toward_zero"])
    return requantized(s, how), means("rounding", text=f"{how} instead")


@kind("wrap for saturate", REQUANTIZE)
def _(s: Subject, rng: random.Random) -> Injected:
    return requantized(s, narrow=signed), means("overflow", text="wrap for saturate")


@kind("clamp at -127", op("requantize", "log2_matmul"))
def _(s: Subject, rng: random.Random) -> Injected | None:
    low = 1 - (1 << (s.bits - 1))
    return np.maximum(s.right, low), means("clamp", text=f"at {low}")


@kind("saturates at fewer bits", REQUANTIZE)
def _(s: Subject, rng: random.Random) -> Injected:
    k = rng.choice([1, 2])
    return cut(s.right, s.bits - k), means("clamp", text=f"at {s.bits - k} bits")


@kind("m with fewer bits", REQUANTIZE)
def _(s: Subject, rng: random.Random) -> Injected:
    k = rng.randint(1, max(int(abs(s.array("m")).max()).bit_length() - 3, 1))
    how = rng.choice(["floor", "half_even"])
    m = np.array([rounding(v, k, how) << k for v in s.array("m").tolist()])
    said = f"{k} bit{'s' if k > 1 else ''} less, {how}"
    return requantized(s, m=m), means("multiplier_bits", step="m", text=said)


@kind("m of the next channel", lambda s: REQUANTIZE(s) and s.node.arrays["m"].size > 1)
def _(s: Subject, rng: random.Random) -> Injected:
    both = rng.random() < 0.5
    by = rng.choice([-1, 1])
    return (
        requantized(s, m=np.roll(s.array("m"), by), e=np.roll(s.array("e"), by) if both else None),
        means("neighbour", step="m", text=f"channel c {'+' if by < 0 else '-'} 1"),
    )


@kind("one constant for all channels", lambda s: REQUANTIZE(s) and s.node.arrays["m"].size > 1)
def _(s: Subject, rng: random.Random) -> Injected:
    return requantized(s, m=s.array("m")[:1], e=s.array("e")[:1]), means("neighbour", text="first channel")


@kind("shift by one more or less", REQUANTIZE)
def _(s: Subject, rng: random.Random) -> Injected:
    by = rng.choice([-1, 1])
    further = "by 1 more" if by > 0 else "by 1 less"
    named = either(means("shift", step="e", text=f"{by:+d}"), means("shift", step="rounded", text=further))
    return requantized(s, e=s.array("e") + by), named


@kind(
    "zero point missing or doubled",
    lambda s: having("residual", "requantize")(s) and s.node.arrays["residual"].size == 1,
)
def _(s: Subject, rng: random.Random) -> Injected:
    if rng.random() < 0.5:
        return requantized(s, residual=None), means("missing", step="residual")
    return requantized(s, residual=2 * s.array("residual")), means("doubled", step="residual")


RESIDUAL = lambda s: REQUANTIZE(s) and len(s.own) == 2  # noqa: E731


@kind(
    "residual missing", lambda s: RESIDUAL(s) or (REQUANTIZE(s) and s.node.arrays.get("residual", np.zeros(1)).size > 1)
)
def _(s: Subject, rng: random.Random) -> Injected:
    return requantized(s, residual=None), means("missing", step="input1" if len(s.own) == 2 else "residual")


@kind("scales of the residual exchanged", RESIDUAL)
def _(s: Subject, rng: random.Random) -> Injected:
    given = {"m": s.array("residual_m"), "e": s.array("residual_e")}
    other = {"residual_m": s.array("m"), "residual_e": s.array("e")}
    return requantized(s, **given, **other), means("exchanged")


@kind("residual subtracted", RESIDUAL)
def _(s: Subject, rng: random.Random) -> Injected:
    return requantized(s, residual=-s.own[1].astype(np.int64)), means("sign")


@kind("residual in too narrow a word", RESIDUAL)
def _(s: Subject, rng: random.Random) -> Injected:
    how = s.node.attrs.get("numerics", {}).get("rounding", "half_even")

    def term(i: int, prefix: str) -> Array:
        values = s.own[i].reshape(-1).tolist()
        m, e = int(s.array(f"{prefix}m")[0]), int(s.array(f"{prefix}e")[0])
        return np.array([rounding(v * m, e, how) for v in values], object).reshape(s.x.shape)

    second = term(1, "residual_")
    bits = needs(second) - rng.choice([1, 2])
    verb, narrow = rng.choice([("wraps", signed), ("saturates", cut)])
    made = cut(term(0, "") + narrow(second, bits), s.bits)
    return made, means("width", step="residual_rounded.word", text=f"{verb} at s{bits}")


# --------------------------------------------------------------------------------------------------- products


@kind("accumulator narrower, wraps", PRODUCTS)
def _(s: Subject, rng: random.Random) -> Injected:
    bits = needs(s.right) - rng.choice([1, 1, 2, 3])
    return signed(product(s), bits), either(
        means("width", text=f"wraps at s{bits}"), means("overflow", text=f"wrapped at {bits} bits")
    )


@kind("accumulator narrower, saturates", PRODUCTS)
def _(s: Subject, rng: random.Random) -> Injected:
    bits = needs(s.right) - rng.choice([1, 1, 2, 3])
    return cut(product(s), bits), either(
        means("width", text=f"saturates at s{bits}"), means("clamp", text=f"saturated at {bits} bits")
    )


@kind("accumulator saturates after every addition", op("linear"))
def _(s: Subject, rng: random.Random) -> Injected:
    sums = product(s, bias=0)
    bits = needs(sums) - rng.choice([0, 1, 1])
    total = np.zeros(s.right.shape, np.int64)
    w = s.array("weight")
    for k in range(w.shape[1]):
        total = cut(total + s.x[..., k : k + 1].astype(np.int64) * w[:, k], bits)
    return cut(total + (s.array("bias") if "bias" in s.node.arrays else 0), bits), means(
        "width", text=f"at s{bits} after every"
    )


@kind("saturate for wrap in the accumulator", lambda s: op("linear")(s) and "numerics" in s.node.attrs
      and s.node.attrs["numerics"].get("accumulator") == "wrap")  # fmt: skip
def _(s: Subject, rng: random.Random) -> Injected:
    sums = s.x.astype(np.int64).reshape(-1, s.x.shape[-1]) @ s.array("weight").T + s.array("bias")
    return cut(sums, 16).reshape(s.right.shape), means("overflow", "width", text="saturate")


@kind("operand taken without a sign", lambda s: PRODUCTS(s) and s.graph.tensors[s.node.inputs[0]].dtype.bits == 8)
def _(s: Subject, rng: random.Random) -> Injected:
    if s.node.op == "matmul" and rng.random() < 0.5:
        return product(s, w=s.own[1].astype(np.int64) & 0xFF), means("unsigned", step="input1")
    return product(s, x=s.x.astype(np.int64) & 0xFF), means("unsigned", step="input0")


@kind("weights taken without a sign", op("linear"))
def _(s: Subject, rng: random.Random) -> Injected:
    return product(s, w=s.array("weight") & 0xFF), means("unsigned", step="weight")


@kind("bias missing", having("bias", "linear", "layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    if s.node.op == "linear":
        return product(s, bias=0), means("missing", step="bias")
    return s.right.astype(np.int64) - s.array("bias"), means("missing", step="bias")


@kind("bias of the next channel", having("bias", "linear", "layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    by = rng.choice([-1, 1])
    other = np.roll(s.array("bias"), by)
    if s.node.op == "linear":
        return product(s, bias=other), means("neighbour", step="bias", text=f"channel c {'+' if by < 0 else '-'} 1")
    return s.right.astype(np.int64) - s.array("bias") + other, means(
        "neighbour", step="bias", text=f"channel c {'+' if by < 0 else '-'} 1"
    )


@kind("weights transposed or a channel late", op("linear"))
def _(s: Subject, rng: random.Random) -> Injected:
    w = s.array("weight")
    if rng.random() < 0.5 and w.shape[0] == w.shape[1]:
        return product(s, w=w.T), means("axes", step="weight")
    return product(s, w=np.roll(w, 1, axis=1)), either(means("late", step="weight"), means("late", step="input0"))


@kind("lanes of an operand exchanged", PRODUCTS)
def _(s: Subject, rng: random.Random) -> Injected | None:
    word = rng.choice([2, 4, 8, 16])
    x = s.x
    if x.shape[-1] % word:
        return None
    turned = x.reshape(-1, word)[:, ::-1].reshape(x.shape)
    return product(s, x=turned), means("lanes", text=f"words of {word} ")


@kind("operand of another image", PRODUCTS)
def _(s: Subject, rng: random.Random) -> Injected:
    return product(s, x=np.stack([s.x[0]] * len(s.x))), means("stale", step="input0", text="of image 0,")


@kind("second operand with its axes as in memory", op("matmul"))
def _(s: Subject, rng: random.Random) -> Injected:
    b = s.own[1]
    w = np.ascontiguousarray(np.swapaxes(b, -1, -2)).reshape(b.shape)
    return product(s, w=w), means("axes", step="input1")


# ---------------------------------------------------------------------------------------------------- methods


@kind("softmax without the row maximum", op("softmax"))
def _(s: Subject, rng: random.Random) -> Injected:
    if s.node.attrs["method"] == "ivit":
        return by_spec(
            s, ("x - top for x, h", "x - 0 for x, h"), ("<< (n - k)) >> 1", "<< min(n - k, 31)) >> 1")
        ), means("max")
    return by_spec(s, ("x - top for x, h", "x - 0 for x, h"), ("v << (n - k)", "v << max(n - k, 0)")), means("max")


@kind("softmax by another method", op("softmax"))
def _(s: Subject, rng: random.Random) -> Injected:
    others = [m for m in registry.methods("softmax") if m.name not in (s.node.attrs["method"], "ivit_tvm")]
    method = rng.choice(others)
    scale = float(s.graph.tensors[s.node.inputs[0]].scale)
    bits = s.node.attrs["params"].get("out_bits", 4)
    facts = {"out_bits": bits if method.name != "fqvit" else min(bits, 8)}
    if method.name == "ibert":
        facts["exp_range_max"] = None
    params, _ = method.lower(scale, **facts)
    return s.rows(method.spec, params), means("method", text=method.name)


@kind("LayerNorm by another method", op("layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    bias = tuple(s.array("bias").tolist())
    if s.node.attrs["method"] == "ivit":
        shift = rng.randint(0, 3)
        return s.rows(layernorm.ibert, layernorm.IbertLayerNorm(bias, shift)), either(
            means("method", text="ibert"), means("option", "rounding", "steps")
        )
    return s.rows(layernorm.ivit, layernorm.IvitLayerNorm(bias)), either(means("method", text="ivit"), means("option"))


@kind("a parameter of the method by one", op("softmax", "gelu.ivit"))
def _(s: Subject, rng: random.Random) -> Injected:
    params = method_params(s.node)
    key = rng.choice([key for key in s.node.attrs["params"] if key not in ("m", "e")])
    by = rng.choice([-1, 1])
    other = type(params)(**{**vars(params), key: getattr(params, key) + by})
    return s.rows(node_method(s.node).spec, other), means(
        "option", step=key, text=f"{getattr(params, key) + by} instead"
    )


@kind("constants of another site (wrong table)", op("softmax", "gelu", "layernorm"))
def _(s: Subject, rng: random.Random) -> Injected:
    alike = [n for n in s.graph.nodes if n.op == s.node.op and n.attrs.get("method") == s.node.attrs.get("method")]
    other = rng.choice([n for n in alike if n is not s.node])
    if list(map(np.shape, other.arrays.values())) != list(map(np.shape, s.node.arrays.values())):
        return None
    return s.rows(node_method(s.node).spec, method_params(other)), means(
        "other_constants", step="constants", text=f"of {other.name}"
    )


@kind("gain and bias exchanged", op("layernorm.fqvit"))
def _(s: Subject, rng: random.Random) -> Injected:
    p = vars(method_params(s.node))
    other = types.SimpleNamespace(**{**p, "gain": p["bias"], "bias": p["gain"]})
    return s.rows(layernorm.fqvit, other), means("exchanged", step="gain")


@kind("mean of LayerNorm rounds down", op("layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    how, text = rng.choice([("floor", "total // len(row)"), ("toward_zero", "truncated_div(total, len(row))")])
    return by_spec(s, ("rhe(total, len(row))", text)), means("rounding", step="sum / C", text=how)


@kind("fewer steps of the square root", op("layernorm.ivit"))
def _(s: Subject, rng: random.Random) -> Injected:
    steps = rng.randint(3, 9)
    return by_spec(s, ("range(10)", f"range({steps})")), means("steps", step="steps", text=f"{steps} instead")


@kind("square root rounds up", op("layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    return by_spec(s, ("isqrt(var) * 2**p.shift", "((isqrt(4 * var) + 1) // 2) * 2**p.shift")), means(
        "option", step="root", text="nearest"
    )


@kind("no Newton step behind the reciprocal", op("layernorm.fqvit"))
def _(s: Subject, rng: random.Random) -> Injected:
    text = ("reciprocal * 2**30 + correction)", "reciprocal * 2**30 + 0 * correction)")
    return by_spec(s, text), either(means("steps"), means("missing", step="correction"))


@kind("last shift of LayerNorm rounds down", op("layernorm.fqvit"))
def _(s: Subject, rng: random.Random) -> Injected:
    how, text = rng.choice([
        ("floor", "floor_shift(tap(\"total\", product + offset), n)"),
        ("half_up", "floor_shift(tap(\"total\", product + offset) + (2**n >> 1), n)"),
    ])  # fmt: skip
    return by_spec(s, ('rhe_shift(tap("total", product + offset), n)', text)), means("rounding", step="total", text=how)


@kind("multiplier of LayerNorm with 7 bits", op("layernorm.fqvit"))
def _(s: Subject, rng: random.Random) -> Injected:
    old = "min(floor_shift(slope, slope_exp - n), 255)"
    return by_spec(s, (old, f"{old} // 2 * 2")), means("width", step="multiplier")


@kind("halving of LayerNorm rounds", op("layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    text = rng.choice(["truncated_div(v, 2)", "(v + 1) >> 1"])
    return by_spec(s, ("[v >> 1 for v in product]", f"[{text} for v in product]")), means(
        "rounding", step="product >> 1"
    )


@kind("variance in too narrow a word", op("layernorm.ivit", "layernorm.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    seen = needs(np.array(by_taps(s, "variance"), dtype=object))
    bits = seen - 1 - rng.choice([1, 2])
    old = "sum(v * v for v in d))" if s.node.attrs["method"] == "ivit" else "sum(v * v for v in shifted))"
    verb, new = rng.choice([("wraps", f"{old[:-1]} % 2**{bits})"), ("saturates", f"min({old[:-1]}, 2**{bits} - 1))")])
    given = (f'tap("variance", {old}', f'tap("variance", {new}')
    root = ("(2**31 - 1) // root", "(2**31 - 1) // max(root, 1)")
    return by_spec(s, given, root), means("width", step="variance", text=verb)


def by_taps(s: Subject, name: str) -> list[int]:
    """An intermediate of the specification, on all rows."""
    from intvit.spec.taps import listening

    with listening() as taps:
        s.rows(node_method(s.node).spec, method_params(s.node))
    return [v for v in taps[name] if v is not None]


@kind("sum of exponentials in too narrow a word", op("softmax.ivit", "softmax.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    bits = needs(np.array(by_taps(s, "sum"), dtype=object)) - 1 - rng.choice([1, 2])
    given = [('tap("sum", sum(e))', f'tap("sum", max(sum(e) % 2**{bits}, 1))')]
    if s.node.attrs["method"] == "ibert":
        given = [('tap("sum", sum(h))', f'tap("sum", sum(h) % 2**{bits})')]
    return by_spec(s, *given), means("width", step="sum", text=f"wraps at u{bits}")


@kind("reciprocal rounds to the nearest", op("softmax.ivit", "softmax.ibert", "gelu.ivit"))
def _(s: Subject, rng: random.Random) -> Injected:
    if s.node.op == "gelu":
        given = ("SUM_MAX // min(v, SUM_MAX)", "(2 * SUM_MAX + min(v, SUM_MAX)) // (2 * min(v, SUM_MAX))")
    elif s.node.attrs["method"] == "ivit":
        given = ("SUM_MAX // min(total, SUM_MAX)", "(2 * SUM_MAX + min(total, SUM_MAX)) // (2 * min(total, SUM_MAX))")
    else:
        given = ("2**32 // max(total, 1)", "(2**33 + max(total, 1)) // (2 * max(total, 1))")
    return by_spec(s, given), means("rounding", step="1 / sum")


@kind("last shift of softmax rounds", op("softmax.ivit", "softmax.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    old = "[v >> (32 - p.out_bits) for v in product]"
    return by_spec(s, (old, "[(v + (2**(32 - p.out_bits) >> 1)) >> (32 - p.out_bits) for v in product]")), means(
        "rounding", step="product >>", text="half_up"
    )


@kind("log2 of softmax rounds down", op("softmax.fqvit"))
def _(s: Subject, rng: random.Random) -> Injected:
    return by_spec(s, ("        k += 1", "        k += 0")), either(means("option", step="log2"), means("rounding"))


@kind("exponent shift rounds", op("softmax.ivit", "gelu.ivit"))
def _(s: Subject, rng: random.Random) -> Injected:
    module = softmax
    given = ("(d >> 4)", "((d + 8) >> 4)")
    if s.node.op == "softmax":
        return by_spec(s, given), means("rounding", step="delta >> 4", text="half_up")
    function = changed(module, "shift_exp", given)
    original = gelu.shift_exp
    gelu.shift_exp = function  # type: ignore[assignment]
    try:
        return s.rows(gelu.ivit, method_params(s.node)), means("rounding", step="delta >> 4", text="half_up")
    finally:
        gelu.shift_exp = original


@kind("GELU shifts before it takes the sign", op("gelu.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    return by_spec(s, ("(s * v) >> p.n", "s * (v >> p.n)")), either(
        means("option", step="sign"), means("rounding", step="erf")
    )


@kind("GELU without its clip", op("gelu.ibert"))
def _(s: Subject, rng: random.Random) -> Injected:
    return by_spec(s, ("min(abs(x), -bj)", "abs(x)")), means("clamp", step="clipped")


@kind("mean rounds by another rule", op("mean"))
def _(s: Subject, rng: random.Random) -> Injected:
    total, n = s.x.astype(np.int64).sum(axis=1), s.x.shape[1]
    how = rng.choice(["floor", "toward_zero", "half_up"])
    made = {
        "floor": total // n,
        "toward_zero": np.sign(total) * (abs(total) // n),
        "half_up": (2 * total + n) // (2 * n),
    }
    return made[how], means("rounding", step="y", text=how)


@kind("sum of a mean in too narrow a word", op("mean"))
def _(s: Subject, rng: random.Random) -> Injected | None:
    bits = needs(s.x.astype(np.int64).sum(axis=1)) - 1
    total = signed(s.x.astype(np.int64).sum(axis=1), bits).reshape(-1).tolist()
    n = s.x.shape[1]
    made = [(2 * v + n) // (2 * n) if (2 * v + n) % (2 * n) else 2 * round(v / n / 2) for v in total]
    return np.array(made).reshape(s.right.shape), means("width", step="sum", text=f"wraps at s{bits}")


@kind("code for zero taken as one", op("log2_matmul"))
def _(s: Subject, rng: random.Random) -> Injected:
    codes = s.x.astype(np.int64)
    weight = 2 ** (15 - np.maximum(codes, 0))
    return weight @ s.own[1].astype(np.int64), means("option", step="code -1")


# --------------------------------------------------------------------------------------- whatever the operator


@kind("stale image", ANY)
def _(s: Subject, rng: random.Random) -> Injected:
    return np.stack([s.right[0]] * len(s.right)), means("stale", step="output", text="of image 0,")


@kind("negated", ANY)
def _(s: Subject, rng: random.Random) -> Injected | None:
    made = -s.right.astype(np.int64)
    return (made if needs(made) <= s.bits else np.minimum(made, (1 << (s.bits - 1)) - 1)), means("sign")


@kind("axes transposed in memory", ANY)
def _(s: Subject, rng: random.Random) -> Injected | None:
    if s.right.ndim < 3:
        return None
    return np.ascontiguousarray(np.swapaxes(s.right, -1, -2)).reshape(s.right.shape), means("axes")


@kind("heads and tokens exchanged", lambda s: s.right.ndim == 3 and s.right.shape[-1] == 96)
def _(s: Subject, rng: random.Random) -> Injected:
    b, n, c = s.right.shape
    heads = s.right.reshape(b, n, 3, c // 3).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(heads).reshape(b, n, c), means("axes")


@kind("lanes of a word in reverse or exchanged", ANY)
def _(s: Subject, rng: random.Random) -> Injected | None:
    word = rng.choice([2, 4, 8, 16])
    n = s.right[0].size
    full = n - n % word
    made = []
    for image in s.right.reshape(len(s.right), -1):
        words = image[:full].reshape(-1, word)
        words = words[:, ::-1] if rng is None or word == 2 or made_of(s, word) else np.roll(words, word // 2, axis=1)
        made.append(np.concatenate([words.reshape(-1), image[full:]]))
    return np.stack(made).reshape(s.right.shape), means("lanes", step="output", text=f"words of {word} ")


def made_of(s: Subject, word: int) -> bool:
    """Half of the sites this way, half that."""
    return len(s.node.name) % 2 == word % 4 // 2


@kind("bytes of an element reversed", lambda s: s.bits in (16, 32))
def _(s: Subject, rng: random.Random) -> Injected:
    kind = np.dtype(f"<i{s.bits // 8}")
    return s.right.astype(kind).byteswap().astype(np.int64), means("bytes")


@kind("bits of an element reversed", lambda s: s.bits in (8, 16, 32) and ANY(s))
def _(s: Subject, rng: random.Random) -> Injected:
    words = s.right.astype(np.int64).reshape(-1).tolist()
    turned = [int(f"{v % 2**s.bits:0{s.bits}b}"[::-1], 2) for v in words]
    return signed(np.array(turned), s.bits).reshape(s.right.shape), means("bits_reversed")


@kind("stuck at a constant", ANY)
def _(s: Subject, rng: random.Random) -> Injected:
    value = rng.choice([0, -1, 5])
    return np.full(s.right.shape, value), means("constant", text=f"stuck at {value}")


@kind("stuck bit", lambda s: ANY(s) and s.bits <= 62)
def _(s: Subject, rng: random.Random) -> Injected:
    bit = rng.randrange(s.bits)
    low = s.right.astype(np.int64) % 2**s.bits
    to = rng.choice([0, 1])
    made = low | (1 << bit) if to else low & ~(1 << bit)
    return signed(made, s.bits), means("stuck_bit", text=f"bit {bit} stuck at {to}")


@kind("stuck bit in one lane", lambda s: ANY(s) and s.bits <= 62)
def _(s: Subject, rng: random.Random) -> Injected:
    bit, word = rng.randrange(s.bits - 1), rng.choice([2, 4, 8, 16])
    lane = rng.randrange(word)
    low = s.right.reshape(len(s.right), -1).astype(np.int64) % 2**s.bits
    low[:, lane::word] |= 1 << bit
    return signed(low, s.bits).reshape(s.right.shape), means("region", text=f"bit {bit} stuck at 1")


@kind("elements late", ANY)
def _(s: Subject, rng: random.Random) -> Injected:
    by = rng.choice([1, 2, 4, 8, s.right.shape[-1]])
    flat = s.right.reshape(len(s.right), -1)
    made = np.roll(flat, by, axis=1)
    how = rng.choice(["around", "zero", "held"])
    if how != "around":
        made[:, :by] = 0 if how == "zero" else flat[:, :1]
    said = f"all elements {by} element{'s' if by > 1 else ''} late"
    return made.reshape(s.right.shape), means("late", step="output", text=said)


@kind("a beat twice or left out", ANY)
def _(s: Subject, rng: random.Random) -> Injected:
    beat = rng.choice([1, 4, 8, 16])
    flat = s.right.reshape(len(s.right), -1).copy()
    n = flat.shape[1]
    at = rng.randrange(beat, max(n - 2 * beat, beat + 1))
    twice = rng.random() < 0.5
    if twice:
        flat[:, at:] = flat[:, at - beat : n - beat].copy()
    else:
        flat[:, at : n - beat] = flat[:, at + beat :].copy()
        flat[:, n - beat :] = 0
    of = "an element" if beat == 1 else f"a beat of {beat} elements"
    return flat.reshape(s.right.shape), means("beat", text=f"{of} {'given twice' if twice else 'left out'}")


@kind("operator left out", lambda s: s.own[0].shape == s.right.shape and op("gelu", "requantize")(s))
def _(s: Subject, rng: random.Random) -> Injected | None:
    return cut(s.x.astype(np.int64), s.bits), means("bypass", text="left out")


@kind("output of another site", op("requantize", "layernorm"))
def _(s: Subject, rng: random.Random) -> Injected | None:
    names = [n.output for n in s.graph.nodes]
    at = names.index(s.node.output)
    near = [n for n in names[max(0, at - 10) : at] if s.tensors[n].shape == s.right.shape and n not in s.node.inputs]
    near = [
        n for n in near if needs(s.tensors[n].astype(object)) <= s.bits and s.graph.by_output[n].op not in LAYOUT_OPS
    ]
    return (s.tensors[near[-1]].astype(np.int64), means("bypass")) if near else None


@kind("an offset on every element", op("requantize"))
def _(s: Subject, rng: random.Random) -> Injected:
    d = rng.choice([-3, -1, 1, 2])
    return cut(s.right.astype(np.int64) + d, s.bits), means("offset", step="output", text=f"{d:+d} on every element")


@kind("random words (no single fault)", ANY, unnamed=True)
def _(s: Subject, rng: random.Random) -> Injected:
    made = s.right.astype(np.int64).reshape(-1).copy()
    for i in rng.sample(range(made.size), min(7, made.size)):
        made[i] = rng.randrange(-(1 << (s.bits - 1)), 1 << (s.bits - 1))
    return made.reshape(s.right.shape), lambda cause: False


# ---------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Outcome:
    kind: str
    model: str
    site: str
    status: str
    named: bool
    first: bool
    causes: tuple[Cause, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Bench:
    """The graphs, and every tensor of them on some images."""

    graphs: Mapping[str, IntGraph]
    tensors: Mapping[str, Mapping[str, Array]]

    def subjects(self) -> list[Subject]:
        found = []
        for name, graph in self.graphs.items():
            values = self.tensors[name]
            for node in graph.nodes:
                if node.op not in LAYOUT_OPS:
                    own = [values[i] for i in node.inputs]
                    found.append(Subject(name, graph, node, own, values[node.output], values))
        return found


def bench(lower: Callable[[Any], IntGraph], images: Array) -> Bench:
    """`lower` makes a graph of a recipe; images as `ImageSource.read` gives them."""
    graphs, tensors = {}, {}
    for name, values in RECIPES.items():
        recipe = {key: value for key, value in values.items() if key not in ("softmax", "gelu", "layernorm")}
        methods = {key: values[key] for key in ("softmax", "gelu", "layernorm")}
        graph = with_mean(lower(build_recipe({**recipe, **{k: {"method": v} for k, v in methods.items()}})))
        graphs[name] = graph
        tensors[name] = Engine(graph).evaluate(quantize_images(graph, images), list(graph.tensors))
    return Bench(graphs, tensors)


def with_mean(graph: IntGraph) -> IntGraph:
    """The graph with a mean over the tokens of its last residual sum, which the ViT itself has not."""
    import dataclasses

    last = [n for n in graph.nodes if n.op == "requantize" and len(n.inputs) == 2][-1]
    x = graph.tensors[last.output]
    y = dataclasses.replace(x, name="tokens.mean", shape=x.shape[1:], source=None)
    node = Node("mean", "tokens.mean", (x.name,), "tokens.mean", {"axis": 0, "keepdims": False})
    return Graph(graph.inputs, (*graph.outputs, "tokens.mean"), (*graph.nodes, node), {**graph.tensors, y.name: y},
                 graph.metadata)  # fmt: skip


def draw(
    subjects: Sequence[Subject], wanted: Kind, rng: random.Random, tries: int = 60
) -> tuple[Subject, Array, Truth] | None:
    """A fault of a kind that changes a value, if some tries find one."""
    able = [s for s in subjects if wanted.where(s)]
    for _ in range(tries if able else 0):
        subject = rng.choice(able)
        try:
            made = wanted.inject(subject, rng)
        except IntvitError:  # a parameter out of its range
            continue
        if made is None:
            continue
        got, truth = made
        low, high = -(1 << (subject.bits - 1)), (1 << (subject.bits - 1)) - 1
        if (got < low).any() or (got > high).any():
            got = cut(got, subject.bits) if subject.bits >= 32 else signed(got, subject.bits)
            continue
        got = got.astype(np.int64)
        if not np.array_equal(got, subject.right):
            return subject, got, truth
    return None


def judge(subject: Subject, got: Array, wanted: Kind, truth: Truth, cases: Mapping[str, Sequence[Any]]) -> Outcome:
    """Compare one site, beside the others of its operator and those around it, with a dump of this site alone."""
    name = subject.node.name
    arrays = {(safe_name(name), i, "output"): got[i] for i in range(len(got))}
    started = time.perf_counter()
    report = compare(near(subject, cases[subject.model]), Archive(Path("dump"), arrays))
    seconds = time.perf_counter() - started
    result = next(r for r in report.results if r.site == name)
    causes = result.explained.causes if result.explained else ()
    if wanted.unnamed:
        right = first = not causes
    else:
        right = any(truth(cause) and cause.site == name for cause in causes)
        first = bool(causes) and truth(causes[0]) and causes[0].site == name
    return Outcome(wanted.name, subject.model, name, result.status, right, first, causes, seconds)


def near(subject: Subject, cases: Sequence[Any]) -> list[Any]:
    """The cases around a site, and others of its operator: what a bundle of a part of the model holds."""
    at = next(i for i, case in enumerate(cases) if case.name == subject.node.name)
    alike = [i for i, case in enumerate(cases) if case.part.nodes[0].op == subject.node.op]
    return [cases[i] for i in sorted({*alike[:16], *range(max(0, at - 6), min(len(cases), at + 7))})]


def outcomes(made: Bench, count: int, seed: int) -> Iterator[Outcome]:
    """`count` faults, the kinds in turn, each at a site that the seed draws."""
    rng = random.Random(seed)
    subjects = made.subjects()
    cases = {name: cases_from(graph, made.tensors[name]) for name, graph in made.graphs.items()}
    done, barren = 0, set[str]()
    while done < count:
        before = done
        for wanted in KINDS:
            if done == count or wanted.name in barren:
                continue
            found = draw(subjects, wanted, rng)
            if found is None:
                barren.add(wanted.name)
                continue
            subject, got, truth = found
            yield judge(subject, got, wanted, truth, cases)
            done += 1
        if done == before:
            return


def table(found: Sequence[Outcome]) -> list[list[str]]:
    rows = []
    for wanted in KINDS:
        mine = [o for o in found if o.kind == wanted.name]
        if mine:
            n = len(mine)
            alternatives = statistics.median(len(o.causes) for o in mine)
            rows.append([wanted.name, str(n), f"{100 * sum(o.named for o in mine) / n:.0f}",
                         f"{100 * sum(o.first for o in mine) / n:.0f}", f"{alternatives:g}"])  # fmt: skip
    n = len(found)
    rows.append(["**all**", str(n), f"**{100 * sum(o.named for o in found) / n:.1f}**",
                 f"{100 * sum(o.first for o in found) / n:.1f}",
                 f"{statistics.median(len(o.causes) for o in found):g}"])  # fmt: skip
    return rows


def embedded_bench() -> Bench:
    """The embedded ViT, calibrated on 16 images."""
    from intvit.analysis.demo import WEIGHTS, embedded
    from intvit.floats.images import open_images
    from intvit.floats.importers.onnx import float_graph
    from intvit.floats.importers.timm import import_timm
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.lowering.calibrate import calibrate
    from intvit.lowering.context import lower

    model = FloatModel(import_timm(embedded(WEIGHTS)))
    graph = float_graph(model.proto)
    options = {"mean": graph.metadata["mean"], "std": graph.metadata["std"], "size": (28, 28), "channels": 1}
    source = open_images("fashion-mnist:calibration", **options)
    calibration = calibrate(graph, LiveActivations(model, source, 16), build_recipe({}))
    images = open_images("fashion-mnist:test", **options).read(0, N_IMAGES)
    return bench(lambda recipe: lower(graph, calibration, recipe), images)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/compare.md")
    parser.add_argument("--misses", action="store_true", help="print what was not named")
    options = parser.parse_args()
    made = embedded_bench()
    started = time.perf_counter()
    found = []
    for outcome in outcomes(made, options.count, options.seed):
        found.append(outcome)
        if options.misses and not outcome.named:
            said = "; ".join(f"{c.kind}: {c}" for c in outcome.causes[:4]) or "no cause"
            print(f"{outcome.kind} | {outcome.model} {outcome.site} | {outcome.status} | {said}", file=sys.stderr)
    headers = ["fault", "injected", "named, %", "first, %", "alternatives"]
    lines = [f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *table(found))]
    text = "\n".join(lines)
    print(text)
    seconds = time.perf_counter() - started
    print(f"{len(found)} faults of {len({o.kind for o in found})} kinds, {seconds:.0f} s, of which comparing "
          f"{sum(o.seconds for o in found):.0f} s", file=sys.stderr)  # fmt: skip
    if options.write:
        from numerics_table import write_between  # type: ignore[attr-defined]

        write_between(DOCUMENT, MARKS, text)
    return int(any(o.status == EQUAL for o in found))


if __name__ == "__main__":
    sys.exit(main())
