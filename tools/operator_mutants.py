#!/usr/bin/env python3
"""Operators with one fault each, against directed stimuli and against as many random ones: what `directed` is worth.

    python tools/operator_mutants.py                          # every mutant at its sites
    python tools/operator_mutants.py --only layernorm
    python tools/operator_mutants.py --write                  # puts the table into docs/directed.md
    python tools/operator_mutants.py --model vit_int8.h5      # the mutants of issue 15 at every site of a graph

A mutant is an operator as hardware might get it wrong: a rounding, a width, a clamp, a shift, a constant. It is killed
by stimuli on which its output differs. One that no stimuli can kill at a site is equivalent there, and counted apart
with what shows it: every operand was tried, or the classes on which it differs are proven unreachable.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

from intvit.analysis.battery import constants
from intvit.graph.check import check_operator
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Graph, IntGraph, Node, Tensor
from intvit.graph.operators.accumulators import may_act, numerics_of, stated
from intvit.graph.operators.methods import mask_rows, node_of
from intvit.graph.parameters import method_params, node_method
from intvit.graph.ranges import narrowest
from intvit.graph.store import load
from intvit.kernels import registry
from intvit.spec import softmax
from intvit.spec.accumulators import accumulate
from intvit.spec.numerics import PRESETS, Numerics
from intvit.spec.taps import intermediates
from intvit.vectors.directed import directed, words
from intvit.vectors.directed.coverage import Coverage
from intvit.vectors.directed.place import limits_of, stored
from intvit.vectors.directed.products import ends_of
from intvit.vectors.directed.requantize import site_of
from intvit.vectors.directed.stream import Stream
from intvit.vectors.part import part_of, run

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "directed.md"
BEGIN, END = "<!-- begin: python tools/operator_mutants.py --write -->", "<!-- end -->"
MOST_OPERANDS = 1 << 22
"""Of one group of constants, that are all tried to show that a mutant changes nothing."""
MOST_ELEMENTS = 1 << 25
Stimuli = Mapping[str, Array]
Faulty = Callable[[Stimuli], Array]

# ---------------------------------------------------------------------------------------------- sites


def tensor(name: str, shape: tuple[int, ...], bits: int, bound: int | None = None, **more: Any) -> Tensor:
    return Tensor(name, shape, IntType(bits), np.asarray(0.05), bound=bound, **more)


def part(node: Node, inputs: list[Tensor], output: Tensor) -> IntGraph:
    check_operator(node, inputs, output)
    tensors = {t.name: t for t in (*inputs, output)}
    return Graph(tuple(dict.fromkeys(node.inputs)), (node.output,), (node,), tensors, {})


def requantization(m: list[int], e: list[int], *, x: Tensor, bits: int = 8, how: Numerics | None = None,
                   residual: Any = None, residual_m: list[int] | None = None, residual_e: list[int] | None = None,
                   zero_point: int = 0) -> IntGraph:  # fmt: skip
    arrays = {"m": np.array(m), "e": np.array(e)}
    inputs = [x]
    if zero_point:
        residual, residual_m, residual_e = np.array([zero_point]), [1], [0]
    if residual_m is not None:
        arrays |= {"residual_m": np.array(residual_m), "residual_e": np.array(residual_e)}
        if isinstance(residual, Tensor):
            inputs.append(residual)
        else:
            arrays["residual"] = np.asarray(residual)
    attrs = {"bits": bits, **(stated(how) if how else {})}
    node = Node("requantize", "requantize", tuple(t.name for t in inputs), "y", attrs, arrays)
    return part(node, inputs, tensor("y", x.shape, bits, zero_point=zero_point))


def method_part(operator: str, name: str, shape: tuple[int, ...], scale: float, bits: int = 8, mask: bool = False,
                **changed: Any) -> IntGraph:  # fmt: skip
    method, x = registry.get(operator, name), tensor("x", shape, bits)
    params = dataclasses.replace(constants(method, scale, shape[-1], np.random.default_rng(3)), **changed)
    if name == "fqvit" and operator == "layernorm":
        gamma, beta = (seeded(a, b, shape[-1:]) / 256 for a, b in ((-300, 300), (-200, 200)))
        facts = {"gamma": gamma, "beta": beta, "out_scale": 0.03, "factor": 1 << (np.arange(shape[-1]) % 4)}
        params = method.constants(scale, facts, {})[0]
    arrays = {}
    if mask:
        arrays["mask"] = (np.arange(shape[-2])[:, None] % 4 == 1) & (np.arange(shape[-1])[None] % 3 == 0)
        arrays["mask"] = arrays["mask"].astype(np.int8)
    node, y = node_of(method, params, f"{operator}.{name}", x, "y", 1.0, arrays)
    return part(node, [x], y)


def seeded(low: int, high: int, shape: tuple[int, ...]) -> Array:
    return Stream(5, str(shape)).integers(low, high, int(np.prod(shape))).reshape(shape)


def linear_part(depth: int, outputs: int, how: Numerics | None = None, bias: bool = True) -> IntGraph:
    x = tensor("x", (12, depth), 8)
    arrays = {"weight": seeded(-127, 127, (outputs, depth)).astype(np.int8)}
    if bias:
        arrays["bias"] = seeded(-9000, 9000, (outputs,))
    node = Node("linear", "linear", ("x",), "y", stated(how) if how else {}, arrays)
    bound = int(np.abs(arrays["weight"].astype(np.int64)).sum(axis=1).max() * 128) + 9000
    return part(node, [x], _sums(node, (12, outputs), bound))


def _sums(node: Node, shape: tuple[int, ...], bound: int) -> Tensor:
    if may_act(node, bound):
        return Tensor("y", shape, IntType(numerics_of(node).accumulator_bits or 32), np.asarray(0.01))
    return Tensor("y", shape, narrowest(bound, 32), np.asarray(0.01), bound=bound)


def matmul_part(op: str, bits: int = 8, how: Numerics | None = None) -> IntGraph:
    encoding = "log2" if op == "log2_matmul" else "linear"
    a = tensor("a", (2, 20, 24), bits, 15 if encoding == "log2" else None, encoding=encoding)
    b = tensor("b", (2, 24, 16), 8)
    node = Node(op, op, ("a", "b"), "y", stated(how) if how else {})
    bound = 24 * ((1 << 15) if encoding == "log2" else a.max_abs) * b.max_abs
    return part(node, [a, b], _sums(node, (2, 20, 16), bound))


def mean_part(count: int) -> IntGraph:
    x = tensor("x", (count, 6), 8)
    node = Node("mean", "mean", ("x",), "y", {"axis": 0, "keepdims": False})
    return part(node, [x], Tensor("y", (6,), x.dtype, x.scale, bound=x.bound))


TIES = [j << 25 for j in (33, 37, 41, 45, 49, 53, 57, 63)]
"""Multipliers of 31 bits with whose lowest bit a product of 16 bits reaches a half."""
ODD = [1073741827 + 98765431 * j for j in range(8)]
"""As a lowering gives them."""


@functools.cache
def sites() -> dict[str, IntGraph]:
    """A site for each operator, method and numerics: constants like those of the embedded models, or with ties."""
    wide, narrow = tensor("x", (40, 8), 32, 600_000), tensor("x", (40, 8), 16)
    other = tensor("r", (40, 8), 16)
    half = Numerics(rounding="half_up")
    found = {
        "requantize, ties": requantization(TIES, [36] * 8, x=narrow),
        "requantize, lowered": requantization(ODD, [41] * 8, x=wide),
        "requantize, negative m": requantization([-m for m in TIES], [37] * 8, x=narrow),
        "requantize, residual": requantization(
            [TIES[3]], [31], x=narrow, bits=16, residual=other, residual_m=[TIES[5]], residual_e=[32]
        ),
        "requantize, positions": requantization(
            [TIES[1]],
            [31],
            x=narrow,
            bits=16,
            residual=seeded(-32767, 32767, (40, 8)),
            residual_m=[TIES[2]],
            residual_e=[31],
        ),
        "requantize, zero point": requantization(TIES, [36] * 8, x=narrow, zero_point=-37),
        "requantize, half up": requantization(TIES, [36] * 8, x=narrow, how=half),
        "requantize, half away": requantization(TIES, [36] * 8, x=narrow, how=Numerics(rounding="half_away")),
        "requantize, floor": requantization(TIES, [36] * 8, x=narrow, how=Numerics(rounding="floor")),
        "requantize, toward zero": requantization(TIES, [36] * 8, x=narrow, how=Numerics(rounding="toward_zero")),
        "requantize, tosa_double": requantization(TIES, [37] * 8, x=wide, how=PRESETS["tosa_double"]),
        "requantize, cmsis_nn": requantization(TIES, [36] * 8, x=wide, how=PRESETS["cmsis_nn"]),
        "requantize, ita": requantization(
            [129, 143, 201, 255] * 2, [17] * 8, x=tensor("x", (40, 8), 24), how=PRESETS["ita"].requantizing
        ),
        "requantize, deeploy": requantization(
            [37], [10], x=narrow, residual=other, residual_m=[51], residual_e=[10], how=PRESETS["deeploy"]
        ),
        "requantize, wrap": requantization(TIES, [33] * 8, x=narrow, how=Numerics(output_overflow="wrap")),
        "softmax.ivit": method_part("softmax", "ivit", (3, 30, 50), 0.07),
        "softmax.ivit, masked": method_part("softmax", "ivit", (3, 30, 49), 0.07, mask=True),
        "softmax.ivit, clamped sum": method_part("softmax", "ivit", (2, 20, 50), 0.0005, 12, out_bits=16),
        "softmax.ibert": method_part("softmax", "ibert", (3, 30, 50), 0.07, out_bits=16),
        "softmax.ibert, masked": method_part("softmax", "ibert", (3, 30, 49), 0.07, mask=True),
        "softmax.fqvit": method_part("softmax", "fqvit", (3, 30, 50), 0.07),
        "softmax.ivit_tvm": method_part("softmax", "ivit_tvm", (3, 30, 50), 2.0**-4),
        "gelu.ivit": method_part("gelu", "ivit", (24, 64), 0.05),
        "gelu.ibert": method_part("gelu", "ibert", (24, 64), 0.05),
        "gelu.ivit_tvm": method_part("gelu", "ivit_tvm", (24, 64), 2.0**-4),
        "silu.ivit": method_part("silu", "ivit", (24, 64), 0.05),
        "silu.ibert": method_part("silu", "ibert", (24, 64), 0.05),
        "quick_gelu.ivit": method_part("quick_gelu", "ivit", (24, 64), 0.05),
        "quick_gelu.ibert": method_part("quick_gelu", "ibert", (24, 64), 0.05),
        "layernorm.ivit": method_part("layernorm", "ivit", (40, 96), 0.001, 16),
        "layernorm.ibert": method_part("layernorm", "ibert", (40, 96), 0.001, 16),
        "layernorm.ibert, shift 3": method_part("layernorm", "ibert", (40, 96), 0.001, 16, shift=3),
        "layernorm.fqvit": method_part("layernorm", "fqvit", (30, 32), 0.001, 12),
        "layernorm.ivit_tvm": method_part("layernorm", "ivit_tvm", (40, 96), 0.001, 16),
        "rmsnorm.ivit": method_part("rmsnorm", "ivit", (40, 96), 0.001, 16),
        "rmsnorm.ibert": method_part("rmsnorm", "ibert", (40, 96), 0.001, 16, shift=2),
        "linear": linear_part(40, 12),
        "linear, saturate": linear_part(40, 6, Numerics(accumulator_bits=16, accumulator="saturate")),
        "linear, saturate_end": linear_part(40, 6, Numerics(accumulator_bits=16, accumulator="saturate_end")),
        "linear, wrap": linear_part(40, 6, Numerics(accumulator_bits=16, accumulator="wrap")),
        "matmul": matmul_part("matmul"),
        "matmul, 17 bits": matmul_part("matmul", 17),
        "matmul, saturate": matmul_part("matmul", 8, Numerics(accumulator_bits=16, accumulator="saturate")),
        "log2_matmul": matmul_part("log2_matmul", 8),
        "mean, 4": mean_part(4),
        "mean, 12": mean_part(12),
    }
    return found


# ------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Mutant:
    """`build` gives the faulty operator, None where there is nothing to break. `classes`: if all of these that a site
    has are unreachable the mutant changes nothing there."""

    name: str
    at: str
    build: Callable[[IntGraph, Node], Faulty | None]
    classes: tuple[str, ...] = ()
    issue: str = ""
    """The mutant of issue 15, point 1, that it is."""
    tap: str = ""
    """Of a method: if this intermediate is the same for every element and its row's largest, so is the output."""
    text: Text | None = None


@dataclass(frozen=True)
class Text:
    """`old` of a module of the specification becomes `new`; it must stand there, in `function`."""

    module: str
    function: str
    old: str
    new: str


def node_at(graph: IntGraph) -> Node:
    return graph.nodes[0]


# requantizations: the datapath of `directed.words`, which `directed` holds against the kernel, with one thing changed

Change = Callable[["words.Operands", Numerics, int], tuple["words.Operands", Numerics, int]]
"""Of operands; the largest magnitude of x is at hand as MOST."""
MOST = [0]


def flat(graph: IntGraph, node: Node, stimuli: Stimuli) -> tuple[Any, Array, Array, Array]:
    """(site, x, r, group), flattened."""
    site = site_of(graph, node)
    x = stimuli[node.inputs[0]].astype(np.int64).reshape(-1)
    group = np.broadcast_to(site.group_of, (len(x) // len(site.group_of), len(site.group_of))).reshape(-1)
    r = np.zeros_like(x)
    if len(node.inputs) == 2:
        r = stimuli[node.inputs[1]].astype(np.int64).reshape(-1)
    elif site.constant is not None:
        r = np.resize(site.constant, x.shape)
    return site, x, r, group


Build = Callable[[IntGraph, Node], Faulty | None]


def datapath(
    change: Change, after: Callable[[Array, int], Array] | None = None, wanted: Callable[[Node], bool] = lambda n: True
) -> Build:
    def build(graph: IntGraph, node: Node) -> Faulty | None:
        if not wanted(node) or _same_constants(graph, node, change, after):
            return None

        def faulty(stimuli: Stimuli) -> Array:
            site, x, r, group = flat(graph, node, stimuli)
            MOST[0] = max(-limits_of(graph.tensors[node.inputs[0]])[0] - 1, limits_of(graph.tensors[node.inputs[0]])[1])
            at, how, bits = change(site.operands(x, r, group), site.how, site.bits)
            plain = words.run(at.exact(), how, bits if after is None else 64).y
            y = plain if after is None else after(plain, bits)
            return y.reshape(-1, *graph.tensors[node.output].shape)

        return faulty

    return build


def _same_constants(graph: IntGraph, node: Node, change: Change, after: Any) -> bool:
    """Whether the constants that a change would change are as it makes them: there is nothing to break."""
    if after is not None:
        return False
    site = site_of(graph, node)
    group = np.arange(len(site.groups))
    at = site.operands(np.full(len(group), 5), np.full(len(group), 7), group)
    MOST[0] = 127
    moved, how, bits = change(at, site.how, site.bits)
    same = all(np.array_equal(a, b) for a, b in zip(vars(at).values(), vars(moved).values(), strict=True))
    return same and (how, bits) == (site.how, site.bits) and change not in X_CHANGES


X_CHANGES: list[Change] = []
"""Changes of the operand, which the one that is tried may not show."""


def rounding_is(mode: str) -> Change:
    return lambda at, how, bits: (at, how.model_copy(update={"rounding": mode}), bits)


def operand(**changes: Callable[[Any], Any]) -> Change:
    def change(at: words.Operands, how: Numerics, bits: int) -> tuple[words.Operands, Numerics, int]:
        moved = {key: f(getattr(at, key)) for key, f in changes.items() if getattr(at, key) is not None}
        return dataclasses.replace(at, **moved), how, bits

    return change


def of_x(f: Callable[[Any], Any]) -> Change:
    X_CHANGES.append(operand(x=f))
    return X_CHANGES[-1]


def narrowly(value: Array, bits: int) -> Array:
    """Two's complement of `bits` bits."""
    return ((value + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))


def one_bit_less(values: Array) -> Array:
    most = int(max(abs(int(values.max())), abs(int(values.min()))))
    return narrowly(values, most.bit_length())


def double(at: words.Operands, how: Numerics, bits: int) -> tuple[words.Operands, Numerics, int]:
    """The shift in two steps, each of which rounds half up."""
    half = np.maximum(at.e - 3, 0)
    first = words.rounded(at.x * at.m, half, "half_up")
    return dataclasses.replace(at, x=first, m=np.ones_like(at.m), e=at.e - half), how, bits


def has_residual(node: Node) -> bool:
    return "residual_m" in node.arrays and not (node.arrays.get("residual") is not None
                                                and node.arrays["residual"].size == 1)  # fmt: skip


def each(node: Node) -> bool:
    return has_residual(node) and numerics_of(node).residual == "each"


TIE = ("rounded: tie, ", "residual_rounded: tie, ", "rounded: tie that decides", "residual_rounded: tie that decides",
       "rounded to the upper word: tie")  # fmt: skip


def requantize_mutants() -> Iterator[Mutant]:
    for mode in ("half_even", "half_up", "half_away", "floor", "toward_zero"):

        def other(node: Node, mode: str = mode) -> bool:
            return numerics_of(node).rounding != mode

        classes = TIE if mode.startswith("half") else ()
        yield Mutant(f"rounding {mode}", "requantize*", datapath(rounding_is(mode), wanted=other), classes,
                     "ties half up" if mode == "half_up" else "")  # fmt: skip
    clips = {
        "wrap for saturate": (narrowly, "wrap for saturate"),
        "clamp at -127": (lambda y, bits: np.clip(y, 1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1), "clamp at -127"),
        "clamp at 126": (lambda y, bits: np.clip(y, -(1 << (bits - 1)), (1 << (bits - 1)) - 2), ""),
        "clamp one code late": (lambda y, bits: narrowly(np.clip(y, -(1 << (bits - 1)), 1 << (bits - 1)), bits), ""),
        "clamp below only": (lambda y, bits: narrowly(np.maximum(y, -(1 << (bits - 1))), bits), ""),
        "clamp above only": (lambda y, bits: narrowly(np.minimum(y, (1 << (bits - 1)) - 1), bits), ""),
        "unsigned clamp": (lambda y, bits: narrowly(np.clip(y, 0, (1 << bits) - 1), bits), ""),
    }
    same: Change = lambda at, how, bits: (at, how, bits)  # noqa: E731

    def saturates(node: Node) -> bool:
        return numerics_of(node).output_overflow == "saturate"

    for name, (after, issue) in clips.items():
        yield Mutant(name, "requantize*", datapath(same, after, saturates),
                     ("y above: first past", "y below: first past") if "wrap" in name else (), issue)  # fmt: skip
    yield Mutant("saturate for wrap", "requantize*", datapath(
        lambda at, how, bits: (at, how.model_copy(update={"output_overflow": "saturate"}), bits),
        wanted=lambda node: not saturates(node)), ("y above: first past", "y below: first past"))  # fmt: skip
    near = ("m - 1 gives", "m + 1 gives")
    for name, change, classes in (
        ("m without its lowest bit", operand(m=lambda m: m & ~1), near[:1]),
        ("m one less", operand(m=lambda m: m - 1), near[:1]),
        ("m one more", operand(m=lambda m: m + 1), near[1:]),
        ("m without its lowest 8 bits", operand(m=lambda m: m & ~255), ()),
        ("m one bit less above", operand(m=lambda m: one_bit_less(m)), ()),
        ("m unsigned", operand(m=lambda m: m & 0xFFFFFFFF), ()),
        ("shift one more", operand(e=lambda e: e + 1), ()),
        ("shift one less", operand(e=lambda e: e - 1), ()),
        ("x unsigned", of_x(lambda x: x & ((1 << 32) - 1)), ()),
        ("accumulator one bit less", of_x(lambda x: narrowly(x, MOST[0].bit_length())), ()),
        ("constants of the next channel", operand(m=lambda m: np.roll(m, 1), e=lambda e: np.roll(e, 1)), ()),
        ("constants of the first channel", operand(m=lambda m: m * 0 + m[0], e=lambda e: e * 0 + e[0]), ()),
        ("no second term", operand(residual=lambda r: r * 0), ()),
        ("second term subtracted", operand(residual=lambda r: -r), ()),
        ("second multiplier one less", operand(residual_m=lambda m: m - 1), ("residual_m - 1 gives",)),
        ("second shift one more", operand(residual_e=lambda e: e + 1), ()),
        ("zero point dropped", operand(addend=lambda a: 0), ()),
        ("zero point one off", operand(addend=lambda a: a + 1 if a else 0), ()),
        ("two shifts that both round", double, ()),
    ):

        def wanted(node: Node, name: str = name) -> bool:
            if "second" in name:
                return has_residual(node) and not (name == "second shift one more" and not each(node))
            if "zero point" in name:
                return node.arrays.get("residual") is not None and node.arrays["residual"].size == 1
            if name == "m unsigned":
                return bool((node.arrays["m"] < 0).any())
            if "channel" in name:
                return len(node.arrays["m"]) > 1
            if name == "two shifts that both round":
                return not numerics_of(node).double_rounding and not has_residual(node)
            return True

        yield Mutant(name, "requantize*", datapath(change, wanted=wanted), classes)
    yield Mutant("terms added before one rounding", "requantize*", _together, ())
    yield Mutant("no first rounding", "requantize*", datapath(
        lambda at, how, bits: (at, how.model_copy(update={"double_rounding": False}), bits),
        wanted=lambda node: numerics_of(node).double_rounding))  # fmt: skip
    yield Mutant("first term saturated to the output's width", "requantize*", _early, ())


def _together(graph: IntGraph, node: Node) -> Faulty | None:
    if not each(node):
        return None

    def faulty(stimuli: Stimuli) -> Array:
        site, x, r, group = flat(graph, node, stimuli)
        at = site.operands(x, r, group)
        most = np.maximum(at.e, at.residual_e).astype(object)
        total = (at.x * at.m).astype(object) << (most - at.e)
        total = total + ((at.residual * at.residual_m).astype(object) << (most - at.residual_e))
        y = words.rounded(total, most, site.how.rounding)
        limit = 1 << (site.bits - 1)
        return np.clip(y, -limit, limit - 1).astype(np.int64).reshape(-1, *graph.tensors[node.output].shape)

    return faulty


def _early(graph: IntGraph, node: Node) -> Faulty | None:
    if not each(node):
        return None

    def faulty(stimuli: Stimuli) -> Array:
        site, x, r, group = flat(graph, node, stimuli)
        at = site.operands(x, r, group)
        limit = 1 << (site.bits - 2)
        first = np.clip(words.rounded(at.x * at.m, at.e, site.how.rounding), -limit, limit - 1)
        y = first + words.rounded(at.residual * at.residual_m, at.residual_e, site.how.rounding)
        return np.clip(y, -2 * limit, 2 * limit - 1).reshape(-1, *graph.tensors[node.output].shape)

    return faulty


# methods: the text of the specification with one phrase replaced

PRELUDE = """
from fractions import Fraction as _F
def half_up(a, b): return (2 * a + b) // (2 * b)
def half_away(a, b): return half_up(a, b) if (a < 0) == (b < 0) else -half_up(-a, b)
def low(value, name):
    one = 1 << (WIDTHS[name] - 1)
    return value & (one - 1) if UNSIGNED[name] else ((value + (one >> 1)) & (one - 1)) - (one >> 1)
"""


def rewritten(text: Text, widths: Mapping[str, int], unsigned: Mapping[str, bool]) -> types.ModuleType:
    module = importlib.import_module(f"intvit.spec.{text.module}")
    source, body = inspect.getsource(module), inspect.getsource(getattr(module, text.function))
    at = body.find(text.old, body.index('"""', body.index('"""') + 3) if '"""' in body else 0)
    if at < 0:
        raise ValueError(f"{text.module}.{text.function}: {text.old!r} must stand in it")
    found = types.ModuleType("mutant")
    sys.modules["mutant"] = found
    code = source.replace(body, body[:at] + text.new + body[at + len(text.old) :])
    future = "from __future__ import annotations\n"
    exec(compile(future + PRELUDE + code.replace(future, ""), f"<{text.module}>", "exec"), found.__dict__)
    found.WIDTHS, found.UNSIGNED = widths, unsigned  # type: ignore[attr-defined]
    return found


def method_function(node: Node, text: Text, proven: Mapping[str, tuple[int, int]]) -> Callable[..., list[int]]:
    """The specification of a node's method, one phrase of it replaced."""
    spec = node_method(node).spec
    widths = {name: max(max(high, 0).bit_length(), (~low).bit_length() if low < 0 else 0) + (low < 0)
              for name, (low, high) in proven.items()}  # fmt: skip
    unsigned = {name: low >= 0 for name, (low, _) in proven.items()}
    mutated = rewritten(text, widths, unsigned)
    own = spec.__module__.rpartition(".")[2]
    if own == text.module:
        return mutated.__dict__[spec.__name__]  # type: ignore[no-any-return]
    module = importlib.import_module(spec.__module__)
    mine = types.ModuleType("mutant")
    sys.modules["mutant"] = mine
    exec(compile(inspect.getsource(module), f"<{own}>", "exec"), mine.__dict__)
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == f"intvit.spec.{text.module}" and name in vars(mutated):
            setattr(mine, name, vars(mutated)[name])
    if text.module in vars(mine):
        setattr(mine, text.module, mutated)
    return mine.__dict__[spec.__name__]  # type: ignore[no-any-return]


def by_rows(function: Callable[..., list[int]], graph: IntGraph, node: Node) -> Faulty:
    x, params = graph.tensors[node.inputs[0]], method_params(node)

    def faulty(stimuli: Stimuli) -> Array:
        values = stimuli[x.name].astype(np.int64)
        rows, mask = values.reshape(-1, x.shape[-1]).tolist(), mask_rows(node, values.shape)
        hidden = [()] * len(rows) if mask is None else [(each,) for each in mask.tolist()]
        y = [_or_zero(function, row, params, *h) for row, h in zip(rows, hidden, strict=True)]
        return np.array(y, object).reshape(values.shape)

    return faulty


def _or_zero(function: Callable[..., list[int]], row: list[int], *more: Any) -> list[int]:
    """A row on which the faulty operator divides by zero, or shifts by a negative count, gives what no other gives."""
    try:
        return function(row, *more)
    except (ZeroDivisionError, ValueError, OverflowError, MemoryError):
        return [1 << 200] * len(row)


def text_mutant(name: str, at: str, module: str, function: str, old: str, new: str, **more: Any) -> Mutant:
    def build(graph: IntGraph, node: Node) -> Faulty | None:
        proven = {s.name: s.proven for s in _coverage(graph).signals if s.proven is not None}
        return by_rows(method_function(node, Text(module, function, old, new), proven), graph, node)

    return Mutant(name, at, build, text=Text(module, function, old, new), **more)


@functools.cache
def _signals_of(site: str) -> Coverage:
    return stimuli_of(site)[1]


def _coverage(graph: IntGraph) -> Coverage:
    return next(_signals_of(name) for name, each in sites().items() if each is graph) if any(
        each is graph for each in sites().values()) else directed(graph).coverage  # fmt: skip


def softmax_mutants() -> Iterator[Mutant]:
    for at in ("softmax.ivit", "softmax.ivit, masked", "softmax.ivit, clamped sum", "softmax.ibert",
               "softmax.ibert, masked", "softmax.fqvit", "softmax.ivit_tvm"):  # fmt: skip
        yield text_mutant("no maximum subtracted", at, "softmax", "deltas", "max(seen or row)", "0")
        yield text_mutant("maximum misses the last element", at, "softmax", "deltas", "max(seen or row)",
                          "max((seen or row)[:-1])")  # fmt: skip
        yield text_mutant("maximum unsigned", at, "softmax", "deltas", "max(seen or row)",
                          "max(seen or row, key=lambda v: v % 256)")  # fmt: skip
    for at in ("softmax.ivit, masked", "softmax.ibert, masked"):
        yield text_mutant("maximum of masked elements too", at, "softmax", "deltas", "max(seen or row)", "max(row)")
        yield text_mutant("mask ignored", at, "softmax", "deltas", "[None if h else x - top", "[x - top")
    for at in ("softmax.ivit", "softmax.ivit, clamped sum"):

        def t(name: str, function: str, old: str, new: str, at: str = at, **more: Any) -> Mutant:
            return text_mutant(name, at, "softmax", function, old, new, **more)

        yield t(
            "argument not clamped",
            "shift_exp",
            "max(d + (d >> 1) - (d >> 4), least)",
            "d + (d >> 1) - (d >> 4)",
            tap="argument",
        )
        yield t("argument clamped one late", "shift_exp", "least = n * x0", "least = n * x0 - 1", tap="argument")
        yield t("argument clamped one early", "shift_exp", "least = n * x0", "least = n * x0 + 1", tap="argument")
        yield t("times 1.5", "shift_exp", " - (d >> 4)", "")
        yield t("d >> 1 toward zero", "shift_exp", "(d >> 1)", "-(-d >> 1)")
        yield t("half bit dropped", "shift_exp", "((v - 2 * x0) << (n - k)) >> 1", "((v >> 1) - x0) << (n - k)")
        yield t("shift one off", "shift_exp", "(n - k)", "(n - k + 1)")
        yield t("remainder misses x0", "shift_exp", "v - 2 * x0", "v - 2 * x0 + 1")
        yield t("quotient nearest", "shift_exp", "[v // x0 for v in t]", "[half_up(-v, -x0) for v in t]")
        yield t("no clamp of the sum", "ivit", "min(total, SUM_MAX)", "total", classes=("sum clamp above: first past",),
                issue="no clamp of the sum")  # fmt: skip
        yield t("factor rounded", "ivit", "SUM_MAX // min(total, SUM_MAX)", "half_up(SUM_MAX, min(total, SUM_MAX))")
        yield t("factor of 2**31", "ivit", "SUM_MAX // min", "(SUM_MAX + 1) // min")
        yield t("sum misses the last", "ivit", "sum(e)", "sum(e[:-1])")
        yield t("sum one bit less", "ivit", "sum(e)", "low(sum(e), 'sum')")
        yield t("exp one bit less", "ivit", "shift_exp(deltas(row, mask), p.x0, p.n)",
                "[low(v, 'exp') for v in shift_exp(deltas(row, mask), p.x0, p.n)]")  # fmt: skip
        yield t("product one bit less", "ivit", "[v * factor for v in e]", "[low(v * factor, 'product') for v in e]")
        yield t("last shift rounds", "ivit", "v >> (32 - p.out_bits)", "half_up(v, 1 << (32 - p.out_bits))")
        yield t("last shift one off", "ivit", "(32 - p.out_bits)", "(31 - p.out_bits)")
    for at in ("softmax.ibert", "softmax.fqvit"):

        def u(name: str, old: str, new: str, at: str = at, **more: Any) -> Mutant:
            return text_mutant(name, at, "softmax", "int_exp", old, new, **more)

        yield u("argument not clamped", "max(d, least)", "d", tap="argument")
        yield u("argument clamped one early", "least = n * x0", "least = n * x0 + 1", tap="argument")
        yield u("argument clamped one late", "least = n * x0", "least = n * x0 - 1", tap="argument")
        yield u("b dropped", "v * (v + b) + c", "v * v + c")
        yield u("b one off", "v * (v + b) + c", "v * (v + b + 1) + c")
        yield u("c one off", "v * (v + b) + c", "v * (v + b) + c - 1")
        yield u("shift one off", "(n - k)", "(n - k + 1 if k else n)")
        yield u("quotient one off past the first", "[v // x0 for v in t]", "[(v + (v < x0)) // x0 for v in t]")
        yield u(
            "polynomial one bit less", "[v * (v + b) + c for v in r]", "[low(v * (v + b) + c, 'polynomial') for v in r]"
        )

    def b(name: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "softmax.ibert", "softmax", "ibert", old, new, **more)

    exp16 = "saturate(rhe_shift(v * p.m, p.e), 16)"
    ties = tuple(f"exp16 rounding: tie, {parity} quotient" for parity in ("even", "odd"))
    yield b("exp16 half up", exp16, "saturate(half_up(v * p.m, 1 << p.e), 16)", classes=ties)
    yield b("exp16 floor", exp16, "saturate(v * p.m >> p.e, 16)")
    yield b("exp16 not saturated", exp16, "rhe_shift(v * p.m, p.e)", classes=("exp16 clamp above: first past",))
    yield b("exp16 wraps", exp16, "wrap(rhe_shift(v * p.m, p.e), 16)", classes=("exp16 clamp above: first past",))
    yield b("exp16 of 15 bits", exp16, "saturate(rhe_shift(v * p.m, p.e), 15)")
    yield b("inner m one less", "v * p.m", "v * (p.m - 1)", tap="exp16")
    yield b("inner m without 8 bits", "v * p.m", "v * (p.m & ~0xffff)", tap="exp16")
    yield b("inner shift one off", "p.e)", "p.e + 1)")
    yield b("factor rounded", "2**32 // max(total, 1)", "half_up(2**32, max(total, 1))")
    yield b("factor of 2**32 - 1", "2**32 //", "(2**32 - 1) //")
    yield b("sum one bit less", "sum(h)", "low(sum(h), 'sum')")
    yield b("last shift rounds", "v >> (32 - p.out_bits)", "half_up(v, 1 << (32 - p.out_bits))")
    yield b("output of out_bits bits", "v >> (32 - p.out_bits)",
            "min(v >> (32 - p.out_bits), (1 << p.out_bits) - 1)")  # fmt: skip

    def f(name: str, function: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "softmax.fqvit", "softmax", function, old, new, **more)

    yield f("ratio half up", "fqvit", "rhe(total, v)", "half_up(total, v)")
    yield f("ratio floor", "fqvit", "rhe(total, v)", "total // v")
    yield f("ratio ceiling", "fqvit", "rhe(total, v)", "-(-total // v)")
    yield f("log2 not rounded", "log2_code", ">= 2**k", "> 2**k + 2**60")
    yield f("log2 rounds later", "log2_code", ">= 2**k", "> 2**k")
    yield f("code saturates", "log2_code", "-1 if k >= 2**bits else k", "min(k, 2**bits - 1)")
    yield f("zero one code early", "log2_code", "k >= 2**bits else", "k >= 2**bits - 1 else")
    yield f("zero one code late", "log2_code", "k >= 2**bits else", "k > 2**bits else")
    yield f("sum misses the last", "fqvit", "sum(e)", "sum(e[:-1]) + 1")

    def v(name: str, function: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "softmax.ivit_tvm", "softmax", function, old, new, **more)

    yield v("half bit kept", "shift_exp_tvm", "((v >> 1) - x0) << (n - k)", "((v - 2 * x0) << (n - k)) >> 1")
    yield v("argument not clamped", "shift_exp_tvm", "max(wrap(d + (d >> 1) - (d >> 4), 32), n * x0)",
            "wrap(d + (d >> 1) - (d >> 4), 32)")  # fmt: skip
    yield v("sum does not wrap", "ivit_tvm", "wrap(sum(e), 32)", "sum(e)", classes=("sum wraps",))
    yield v("last shift one off", "ivit_tvm", "v >> 24", "v >> 23")
    yield v("factor rounded", "ivit_tvm", "truncated_div(SUM_MAX, total)", "half_away(SUM_MAX, total)")


def gelu_mutants() -> Iterator[Mutant]:
    for at in ("gelu.ivit", "silu.ivit", "quick_gelu.ivit"):

        def t(name: str, old: str, new: str, module: str = "gelu", function: str = "ivit", at: str = at,
              **more: Any) -> Mutant:  # fmt: skip
            return text_mutant(name, at, module, function, old, new, **more)

        yield t("no maximum subtracted", "max(row)", "0")
        yield t("maximum with 0", "max(row)", "max(*row, 0)")
        yield t("no last exponential", "*e, em = shift_exp(delta, p.x0, p.n)",
                "*e, em = shift_exp(delta, p.x0, p.n); em = 0")  # fmt: skip
        yield t(
            "sum not clamped", "SUM_MAX // min(v, SUM_MAX)", "SUM_MAX // v", classes=("sum clamp above: first past",)
        )
        yield t("factor rounded", "SUM_MAX // min(v, SUM_MAX)", "half_up(SUM_MAX, min(v, SUM_MAX))")
        yield t("sigmoid rounds", "v >> (32 - p.out_bits)", "half_up(v, 1 << (32 - p.out_bits))")
        yield t("sigmoid one off", "(32 - p.out_bits)", "(33 - p.out_bits)")
        yield t("x unsigned", "[x * v for x, v in", "[(x % 256) * v for x, v in")
        yield t("sum one bit less", "v + em for v in e", "low(v + em, 'sum') for v in e")
        yield t(
            "half bit dropped", "((v - 2 * x0) << (n - k)) >> 1", "((v >> 1) - x0) << (n - k)", "softmax", "shift_exp"
        )
        yield t("times 1.5", " - (d >> 4)", "", "softmax", "shift_exp")
        yield t("argument not clamped", "max(d + (d >> 1) - (d >> 4), least)", "d + (d >> 1) - (d >> 4)", "softmax",
                "shift_exp")  # fmt: skip

    def b(name: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "gelu.ibert", "gelu", "ibert", old, new, **more)

    yield b("no clip", "min(abs(x), -bj)", "abs(x)")
    yield b("clip one early", "min(abs(x), -bj)", "min(abs(x), -bj - 1)")
    yield b("clip one late", "min(abs(x), -bj)", "min(abs(x), -bj + 1)")
    yield b("no sign", "(s * v) >> p.n", "v >> p.n")
    yield b("sign of 0 is 1", "(x > 0) - (x < 0)", "(x >= 0) - (x < 0)")
    yield b("shift toward zero", "(s * v) >> p.n", "s * (v >> p.n) if v >= 0 else -s * (-v >> p.n)")
    yield b("shift rounds", "(s * v) >> p.n", "half_up(s * v, 1 << p.n)")
    yield b("shift one off", ">> p.n", ">> (p.n + 1)")
    yield b("c dropped", "** 2 + cj", "** 2")
    yield b("c one off", "** 2 + cj", "** 2 + cj + 1")
    yield b("b one off", "(v + bj)", "(v + bj + 1)")
    yield b("gate without its constant", "[v + w for v, w in zip(erf, shift, strict=True)]", "list(erf)")
    yield b("gate constant one off", "v + w for v, w", "v + w + 1 for v, w")
    yield b("polynomial one bit less", "(v + bj) ** 2 + cj for", "low((v + bj) ** 2 + cj, 'polynomial') for")
    yield b("|x| of 7 bits", "min(abs(x), -bj)", "min(abs(x) & 127, -bj)")
    for at in ("silu.ibert", "quick_gelu.ibert"):
        yield text_mutant("sigmoid of -x", at, "silu", "ibert", "[0] for x", "[1] for x")
        yield text_mutant("sigmoid one bit less", at, "silu", "ibert", "[x * s for", "[x * low(s, 'sigmoid') for")
        yield text_mutant("exp16 floor", at, "softmax", "ibert", "rhe_shift(v * p.m, p.e)", "v * p.m >> p.e")
        yield text_mutant("argument not clamped", at, "softmax", "int_exp", "max(d, least)", "d")
        yield text_mutant("c one off", at, "softmax", "int_exp", "v * (v + b) + c", "v * (v + b) + c - 1")
        yield text_mutant(
            "factor rounded", at, "softmax", "ibert", "2**32 // max(total, 1)", "half_up(2**32, max(total, 1))"
        )

    def v(name: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "gelu.ivit_tvm", "gelu", "ivit_tvm", old, new, **more)

    yield v("sigmoid one off", ">> 24", ">> 25")
    yield v("no last exponential", "wrap(v + em, 32)", "wrap(v, 32)")
    yield v("factor rounded", "truncated_div(SUM_MAX, v)", "half_away(SUM_MAX, v)")
    yield v("product saturates", "wrap(v * f, 32)", "max(-2**31, min(2**31 - 1, v * f))", classes=("product wraps",))


def norm_mutants() -> Iterator[Mutant]:
    even = tuple(f"mean rounding: tie, {parity} quotient" for parity in ("even", "odd"))
    for at in ("layernorm.ivit", "layernorm.ibert", "layernorm.ibert, shift 3"):

        def c(name: str, old: str, new: str, at: str = at, **more: Any) -> Mutant:
            return text_mutant(name, at, "layernorm", "centre", old, new, **more)

        yield c("mean half up", "rhe(total, len(row))", "half_up(total, len(row))", classes=even)
        yield c("mean half away", "rhe(total, len(row))", "half_away(total, len(row))", classes=even)
        yield c("mean floor", "rhe(total, len(row))", "total // len(row)")
        yield c("mean toward zero", "rhe(total, len(row))", "truncated_div(total, len(row))")
        yield c("no mean subtracted", "x - mean for", "x for")
        yield c("sum misses the last", "sum(row)", "sum(row[:-1])")
        yield c("sum one bit less", "sum(row)", "low(sum(row), 'sum')")
        yield c("delta one bit less", "[x - mean for", "[low(x - mean, 'delta') for")
        yield c("x unsigned", "sum(row)", "sum(x % 65536 for x in row)")
    for at, module in (("layernorm.ivit", "layernorm"), ("rmsnorm.ivit", "rmsnorm")):

        def s(name: str, old: str, new: str, at: str = at, **more: Any) -> Mutant:
            return text_mutant(name, at, "layernorm", "newton_sqrt", old, new, **more)

        for steps in (6, 7, 8, 9, 11):
            issue = f"LayerNorm with {steps} steps" if steps < 10 and module == "layernorm" else ""
            yield s(f"{steps} Newton steps", "range(10)", f"range({steps})", issue=issue)
        yield s("start at 2**15", "2**16", "2**15")
        yield s("start at 2**17", "2**16", "2**17")
        yield s("steps round up", "(k + var // k) >> 1", "(k + var // k + 1) >> 1")
        yield text_mutant("exact square root", at, module, "ivit", "newton_sqrt(var)" if module == "layernorm" else
                          "newton_sqrt(total)", "max(isqrt(var), 1)" if module == "layernorm" else
                          "max(__import__('math').isqrt(total), 1)")  # fmt: skip
        yield text_mutant("factor of 2**31", at, module, "ivit", "(2**31 - 1) // root", "2**31 // root")
        yield text_mutant("factor rounded", at, module, "ivit", "(2**31 - 1) // root", "half_up(2**31 - 1, root)")
        yield text_mutant("not halved", at, module, "ivit", "v >> 1 for v", "v for v")
        yield text_mutant("halved toward zero", at, module, "ivit", "v >> 1 for v", "int(v / 2) for v")
        yield text_mutant("product one bit less", at, module, "ivit",
                          "v * factor for v in d" if module == "layernorm" else "x * factor for x in row",
                          "low(v * factor, 'product') for v in d" if module == "layernorm" else
                          "low(x * factor, 'product') for x in row")  # fmt: skip
    for at in ("layernorm.ivit", "layernorm.ibert"):
        name = at.rpartition(".")[2]
        yield text_mutant("bias dropped", at, "layernorm", name, "[v + b for v, b in", "[v for v, b in")
        yield text_mutant("bias one off", at, "layernorm", name, "[v + b for v, b in", "[v + b + 1 for v, b in")
        of = "d" if name == "ivit" else "shifted"
        yield text_mutant("variance misses the last", at, "layernorm", name, f"v * v for v in {of}",
                          f"v * v for v in {of}[:-1]")  # fmt: skip
    for at, name in (("layernorm.ivit", "ivit"), ("layernorm.ibert", "ibert"), ("layernorm.ibert, shift 3", "ibert")):
        yield text_mutant("variance one bit less", at, "layernorm", name, 'tap("variance", sum(',
                          'low(name="variance", value=sum(')  # fmt: skip
    for at in ("layernorm.ibert", "layernorm.ibert, shift 3"):
        yield text_mutant(
            "root rounded up", at, "layernorm", "ibert", "isqrt(var) * ", "(isqrt(var) + (isqrt(var) ** 2 < var)) * "
        )
        yield text_mutant("factor of 2**31 - 1", at, "layernorm", "ibert", "2**31 // root", "(2**31 - 1) // root")
        yield text_mutant(
            "zero root of 1", at, "layernorm", "ibert", "if root == 0:", "root = root or 2**p.shift\n    if root == 0:"
        )
        yield text_mutant("halved toward zero", at, "layernorm", "ibert", "v >> 1 for v", "int(v / 2) for v")
        yield text_mutant(
            "factor one bit less", at, "layernorm", "ibert", "2**31 // root", "low(2**31 // root, 'factor')"
        )
    yield text_mutant(
        "shift toward zero", "layernorm.ibert, shift 3", "layernorm", "ibert", "v >> p.shift", "int(v / 2**p.shift)"
    )
    yield text_mutant(
        "shift not undone", "layernorm.ibert, shift 3", "layernorm", "ibert", "isqrt(var) * 2**p.shift", "isqrt(var)"
    )
    yield text_mutant(
        "shift one off", "layernorm.ibert, shift 3", "layernorm", "ibert", "v >> p.shift", "v >> (p.shift + 1)"
    )

    def r(name: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "rmsnorm.ibert", "rmsnorm", "ibert", old, new, **more)

    yield r("shift toward zero", "x >> p.shift", "int(x / 2**p.shift)")
    yield r("shift not undone", "isqrt(total) * 2**p.shift", "isqrt(total)")
    yield r("zero root of 1", "if root == 0:", "root = root or 2**p.shift\n    if root == 0:")
    yield r("factor of 2**31 - 1", "2**31 // root", "(2**31 - 1) // root")
    yield r("root rounded up", "isqrt(total) *", "(isqrt(total) + (isqrt(total) ** 2 < total)) *")
    yield r("square sum one bit less", "sum(v * v for v in shifted)", "low(sum(v * v for v in shifted), 'square_sum')")

    def q(name: str, function: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "layernorm.fqvit", "layernorm", function, old, new, **more)

    yield q("output half up", "fqvit", "rhe_shift(tap(\"total\", product + offset), n)",
            "half_up(product + offset, 1 << n)")  # fmt: skip
    yield q("output floor", "fqvit", 'rhe_shift(tap("total", product + offset), n)', "(product + offset) >> n")
    yield q("no case for variance 0", "fqvit", "if var == 0:", "var = max(var, 1)\n    if var < 0:")
    yield q("sign dropped", "fqvit", "p.sign[j] * m * x", "m * x")
    yield q("factor dropped", "fqvit", "x * f for x, f", "x for x, f")
    yield q("variance one bit less", "fqvit", "len(scaled) * square_sum - total**2",
            "low(len(scaled) * square_sum - total**2, 'variance')")  # fmt: skip
    yield q("variance misses the mean", "fqvit", " - total**2", "")
    yield q("reciprocal of 31 bits alone", "inverse_sqrt", "reciprocal * 2**30 + correction", "reciprocal * 2**30")
    yield q("fraction dropped", "inverse_sqrt", "(aligned - root * root) * 2**30 // (2 * root)", "0")
    yield q("odd shifts too", "inverse_sqrt", "shift -= shift % 2", "pass")
    yield q("M rounded", "fqvit_constants", "floor_shift(slope, slope_exp - n)", "rhe_shift(slope, slope_exp - n)")
    yield q("M of 7 bits", "fqvit_constants", "clamp(7 -", "clamp(6 -")
    yield q("N not clamped", "fqvit_constants", "0, 31))", "0, 63))", classes=("shift clamp above: first past",))
    yield q("offset floor", "fqvit_constants", "rhe_shift(tap(\"beta_term\", bias) - tap(\"mean_term\", u), guard)",
            "floor_shift(bias - u, guard)")  # fmt: skip
    yield q("beta dropped", "fqvit_constants", 'tap("beta_term", bias) - ', "0 - ")
    yield q("mean added", "fqvit_constants", 'tap("beta_term", bias) - ', 'tap("beta_term", bias) + ')
    yield q("mean without its sign", "fqvit_constants", "p.sign[j] * floor_shift(p.gain", "floor_shift(p.gain")
    yield q("no guard bits", "fqvit_constants", "clamp(p.bias_exp[j] - n - 1, 0, GUARD_BITS)", "0")
    yield q("slope one off", "fqvit_constants", "p.slope[j] * inverse", "(p.slope[j] * 511 // 512) * inverse")

    def t(name: str, old: str, new: str, **more: Any) -> Mutant:
        return text_mutant(name, "layernorm.ivit_tvm", "layernorm", "ivit_tvm", old, new, **more)

    yield t("mean floor", "truncated_div(total, len(row))", "total // len(row)")
    yield t("mean half to even", "truncated_div(total, len(row))", "rhe(total, len(row))")
    yield t("halved by a shift", "truncated_div(v, 2)", "v >> 1")
    yield t("variance does not wrap", "% 2**32", "+ 0", classes=("variance wraps",))
    yield t("bias dropped", "wrap(v + wrap(b, 32), 32)", "v")
    yield t("sum saturates", "wrap(v + wrap(b, 32), 32)", "max(-2**31, min(2**31 - 1, v + b))", classes=("y wraps",))


# sums of products


def product(change: Callable[..., Array], op: str) -> Callable[[IntGraph, Node], Faulty | None]:
    """change(a (..., R, K), b (..., K, C), bias (C,), width): the faulty sums; `width` holds every right one."""

    def build(graph: IntGraph, node: Node) -> Faulty | None:
        ends, _ = ends_of(graph, node)
        width = max(ends.high.bit_length(), (~ends.low).bit_length()) + 1
        output = graph.tensors[node.output].shape

        def faulty(stimuli: Stimuli) -> Array:
            first = stimuli[node.inputs[0]].astype(np.int64)
            if node.op == "linear":
                weight = node.arrays["weight"].astype(np.int64).T
                bias = node.arrays.get("bias", np.zeros(weight.shape[1], np.int64)).astype(np.int64)
                y = change(first.reshape(len(first), -1, first.shape[-1]), weight[None], bias, width)
            else:
                second = stimuli[node.inputs[1]].astype(np.int64)
                y = change(first, second, np.zeros(second.shape[-1], np.int64), width)
            return _policy(node, y).reshape(-1, *output)

        return faulty

    return build


def _policy(node: Node, sums: Array) -> Array:
    how = numerics_of(node)
    if how.accumulator_bits is None or how.accumulator == "prove":
        return sums
    limit = 1 << (how.accumulator_bits - 1)
    return narrowly(sums, how.accumulator_bits) if how.accumulator == "wrap" else np.clip(sums, -limit, limit - 1)


def _without(a: Array, k: int) -> Array:
    a = a.copy()
    a[..., k] = 0
    return a


def _powers(codes: Array, zero: int = 0, mask: int = 255, most: int = 15) -> Array:
    return np.where(codes < 0, zero, 1 << np.maximum(most - (codes & mask), 0))


def product_mutants() -> Iterator[Mutant]:
    def off_by_one(a: Array, b: Array, c: Array, w: int) -> Array:
        b = b.copy()
        b[..., b.shape[-2] // 2, b.shape[-1] // 2] += 1
        return a @ b + c

    def columns(a: Array, b: Array, c: Array, w: int) -> Array:
        return a @ b[..., [1, 0, *range(2, b.shape[-2])], :] + c

    ops: list[tuple[str, Callable[..., Array]]] = [
        ("accumulator one bit less", lambda a, b, c, w: narrowly(a @ b + c, w - 1)),
        (
            "accumulator saturates one bit early",
            lambda a, b, c, w: np.clip(a @ b + c, -(1 << (w - 2)), (1 << (w - 2)) - 1),
        ),
        ("last product missing", lambda a, b, c, w: _without(a, -1) @ b + c),
        ("first product missing", lambda a, b, c, w: _without(a, 0) @ b + c),
        (
            "left operand unsigned",
            lambda a, b, c, w: (a & 255 if a.min() >= -128 and a.max() < 256 else a & 0x1FFFF) @ b + c,
        ),
        ("right operand unsigned", lambda a, b, c, w: a @ (b & 255) + c),
        ("right operand: one element one off", off_by_one),
        ("two inputs exchanged", columns),
        ("left operand one bit less", lambda a, b, c, w: one_bit_less_of(a) @ b + c),
        ("products of one bit less", lambda a, b, c, w: _narrow_products(a, b) + c),
        ("least code read as its successor", lambda a, b, c, w: np.maximum(a, a.min() + 1) @ b + c),
    ]
    for name, change in ops:
        for at in ("linear", "matmul", "matmul, 17 bits"):
            yield Mutant(name, at, product(change, at))
    for name, change in (
        ("bias dropped", lambda a, b, c, w: a @ b),
        ("bias one off", lambda a, b, c, w: a @ b + c + 1),
        ("bias of the next output", lambda a, b, c, w: a @ b + np.roll(c, 1)),
        ("bias of 13 bits", lambda a, b, c, w: a @ b + narrowly(c, 13)),
    ):
        yield Mutant(name, "linear", product(change, "linear"))
    for at in ("linear, saturate", "linear, saturate_end", "linear, wrap", "matmul, saturate"):
        for name, policy, less in (("saturates at the end", "saturate_end", 0), ("wraps", "wrap", 0),
                                   ("saturates at every product", "saturate", 0), ("one bit less", "", 1),
                                   ("bias first", "first", 0)):  # fmt: skip
            if not at.endswith(f", {policy}"):
                yield Mutant(f"accumulator {name}", at, _accumulating(policy, less))
    for name, change in (
        ("code -1 as code 0", lambda a, b, c, w: _powers(a, 1 << 15) @ b),
        ("code -1 as code 15", lambda a, b, c, w: _powers(a, 1) @ b),
        ("codes of 3 bits", lambda a, b, c, w: _powers(a, mask=7) @ b),
        ("14 bits behind the point", lambda a, b, c, w: (_powers(a) >> 1 << 1) @ b),
        ("right shift of the value", lambda a, b, c, w: (_shifted(a, b)) << 0),
        ("accumulator one bit less", lambda a, b, c, w: narrowly(_powers(a) @ b, w - 1)),
        ("right operand unsigned", lambda a, b, c, w: _powers(a) @ (b & 255)),
        ("last product missing", lambda a, b, c, w: _powers(a) @ _zero_row(b)),
    ):
        yield Mutant(name, "log2_matmul", product(change, "log2_matmul"))


def one_bit_less_of(a: Array) -> Array:
    """Narrowed by a bit against the 8 bits, or 17, of its type."""
    return narrowly(a, 7 if a.min() >= -128 and a.max() < 256 else 16)


def _narrow_products(a: Array, b: Array) -> Array:
    left, right = np.broadcast_arrays(a[..., :, :, None], b[..., None, :, :])
    bits = (int(np.abs(b).max()) * (128 if a.min() >= -128 and a.max() < 256 else 1 << 16)).bit_length()
    return narrowly(left * right, bits).sum(axis=-2)


def _shifted(codes: Array, v: Array) -> Array:
    """Each value shifted right first: what is behind the point is lost."""
    c, x = np.broadcast_arrays(codes[..., :, :, None], v[..., None, :, :])
    return np.where(c < 0, 0, (x >> np.maximum(c, 0)) << 15).sum(axis=-2)


def _zero_row(b: Array) -> Array:
    b = b.copy()
    b[..., -1, :] = 0
    return b


def _accumulating(policy: str, less: int) -> Callable[[IntGraph, Node], Faulty | None]:
    def build(graph: IntGraph, node: Node) -> Faulty | None:
        how = numerics_of(node)
        bits, rule = (how.accumulator_bits or 32) - less, policy if policy not in ("", "first") else how.accumulator
        output = graph.tensors[node.output].shape
        if policy == "first" and (node.op != "linear" or how.accumulator != "saturate"):
            return None

        def faulty(stimuli: Stimuli) -> Array:
            first = stimuli[node.inputs[0]].astype(np.int64)
            if node.op == "linear":
                a, b = first.reshape(-1, first.shape[-1])[None], node.arrays["weight"].astype(np.int64).T[None]
                bias = node.arrays["bias"].tolist()
            else:
                second = stimuli[node.inputs[1]].astype(np.int64)
                a, b = first.reshape(-1, *first.shape[-2:]), second.reshape(-1, *second.shape[-2:])
                bias = [0] * second.shape[-1]
            found = []
            for rows, matrix in zip(a.tolist(), b.tolist(), strict=True):
                columns = list(zip(*matrix, strict=True))
                for row in rows:
                    for o, column in enumerate(columns):
                        products = [x * w for x, w in zip(row, column, strict=True)]
                        if policy == "first":
                            found.append(accumulate([bias[o], *products], 0, bits, rule))
                        else:
                            found.append(accumulate(products, bias[o], bits, rule))
            return np.array(found, np.int64).reshape(-1, *output)

        return faulty

    return build


def mean_mutants() -> Iterator[Mutant]:
    def build_of(change: Callable[[Array, int], Array]) -> Callable[[IntGraph, Node], Faulty | None]:
        def build(graph: IntGraph, node: Node) -> Faulty | None:
            def faulty(stimuli: Stimuli) -> Array:
                x = np.moveaxis(stimuli[node.inputs[0]].astype(np.int64), node.attrs["axis"] + 1, -1)
                return change(x, x.shape[-1])

            return faulty

        return build

    def up(s: Array, n: int) -> Array:
        return (2 * s + n) // (2 * n)

    for at in ("mean, 4", "mean, 12"):
        ties = ("y rounding: tie",)
        for name, change, classes in (
            ("half up", lambda x, n: up(x.sum(-1), n), ties),
            ("half away", lambda x, n: np.where(x.sum(-1) < 0, -up(-x.sum(-1), n), up(x.sum(-1), n)), ties),
            ("floor", lambda x, n: x.sum(-1) // n, ()),
            ("toward zero", lambda x, n: np.sign(x.sum(-1)) * (abs(x.sum(-1)) // n), ()),
            ("divided by one less", lambda x, n: up(x.sum(-1), n - 1), ()),
            ("last missing", lambda x, n: up(x[..., :-1].sum(-1), n), ()),
            ("sum one bit less", lambda x, n: up(narrowly(x.sum(-1), (n * 128).bit_length()), n), ()),
            ("x unsigned", lambda x, n: narrowly(up((x & 255).sum(-1), n), 8), ()),
        ):
            yield Mutant(name, at, build_of(change), classes)


@functools.cache
def mutants() -> tuple[Mutant, ...]:
    found = [*requantize_mutants(), *softmax_mutants(), *gelu_mutants(), *norm_mutants(), *product_mutants(),
             *mean_mutants()]  # fmt: skip
    return tuple(found)


# ----------------------------------------------------------------------------------------- verdicts


def random_stimuli(graph: IntGraph, count: int, seed: int = 1) -> dict[str, Array]:
    """Uniform over what type and bound allow."""
    found = {}
    for name in graph.inputs:
        t = graph.tensors[name]
        low, high = limits_of(t)
        values = Stream(seed, "random", name).integers(low, high, count * int(np.prod(t.shape)))
        found[name] = stored(values, t)
    return found


@functools.cache
def stimuli_of(site: str) -> tuple[dict[str, Array], Coverage, dict[str, Array], Array, Array]:
    """Directed stimuli, their coverage, as many random ones, and what is right for either."""
    graph = sites()[site]
    found = directed(graph)
    other = random_stimuli(graph, found.images)
    name = node_at(graph).output
    given = dict(found.stimuli)
    return given, found.coverage, other, run(graph, given)[name], run(graph, other)[name]


@dataclass(frozen=True)
class Verdict:
    mutant: str
    site: str
    directed: bool
    random: bool
    equivalent: str = ""
    issue: str = ""

    @property
    def survives(self) -> bool:
        return not self.directed and not self.equivalent


def judged(mutant: Mutant, site: str) -> Verdict | None:
    """None where the mutant has nothing to break."""
    graph = sites()[site]
    node = node_at(graph)
    faulty = mutant.build(graph, node)
    if faulty is None:
        return None
    given, coverage, other, right, right_of_other = stimuli_of(site)
    killed = _differs(faulty, given, right)
    by_random = _differs(faulty, other, right_of_other)
    equivalent = "" if killed else equivalence(mutant, graph, node, coverage, faulty)
    return Verdict(mutant.name, site, killed, by_random, equivalent, mutant.issue)


def _differs(faulty: Faulty, stimuli: Stimuli, right: Array) -> bool:
    return not np.array_equal(faulty(stimuli), right)


def equivalence(mutant: Mutant, graph: IntGraph, node: Node, coverage: Coverage, faulty: Faulty) -> str:
    """Why the mutant changes nothing at this site, or nothing if that is not shown."""
    if mutant.classes:
        concerned = [c for c in coverage.classes if c.name.startswith(mutant.classes)]
        if concerned and all(c.status == "unreachable" for c in concerned):
            return f"{len(concerned)} classes on which it differs are proven unreachable"
    return _algebra(mutant, node, coverage) or _same_tap(mutant, graph, node) or _tried(graph, node, faulty)


def _algebra(mutant: Mutant, node: Node, coverage: Coverage) -> str:
    """Short proofs."""
    how = numerics_of(node)
    if mutant.name == "x unsigned" and how.product_overflow == "wrap" and how.product_bits <= 32:
        return "the product is a word of 32 bits that wraps, and 2**32 more of x changes nothing in it"
    if mutant.name == "zero root of 1" and "shift" in node.attrs["params"] and not node.attrs["params"]["shift"]:
        return "with a shift of 0 the root is 0 where every deviation is, and so is every product"
    if mutant.name == "output of out_bits bits":
        p = method_params(node)
        h = intermediates(softmax.ibert, [0], p)["exp16"][0]
        if h is not None and h & (h - 1):
            return f"2**out_bits takes a sum that is one power of two, and the largest exponential is {h}"
    return ""


def _same_tap(mutant: Mutant, graph: IntGraph, node: Node) -> str:
    """An intermediate of an element and its row's largest, on which all that follows depends, the same for all."""
    name, text = mutant.tap, mutant.text
    if not name or text is None:
        return ""
    low, high = limits_of(graph.tensors[node.inputs[0]])
    params, spec = method_params(node), node_method(node).spec
    mutated = method_function(node, text, {})
    for x in range(low, high + 1):
        if intermediates(spec, [high, x], params)[name] != intermediates(mutated, [high, x], params)[name]:
            return ""
    return f"{name} of every distance 0..{high - low} from the largest is the same"


def _tried(graph: IntGraph, node: Node, faulty: Faulty) -> str:
    """Every operand of every place, one input with few codes, element by element."""
    if len(graph.inputs) != 1 or node.op not in ("requantize", "gelu", "silu", "quick_gelu"):
        return ""
    t = graph.tensors[graph.inputs[0]]
    low, high = limits_of(t)
    if node.op != "requantize" and node_method(node).id != "gelu.ibert.v1":
        return _pairs_tried(graph, node, faulty, low, high)
    if high - low + 1 > MOST_OPERANDS:
        return ""
    places, channels = int(np.prod(t.shape)), t.shape[-1]
    each = places // channels
    values = np.arange(low, high + 1)
    if "residual" in node.arrays and node.arrays["residual"].size > 1:  # no two places are alike
        if len(values) * places > MOST_ELEMENTS:
            return ""
        images = np.repeat(values, places).reshape(-1, places)
    else:
        images = np.repeat(np.concatenate([values, values[-1:].repeat(-len(values) % each)]), channels)
        images = images.reshape(-1, places)
    step = max(1, (1 << 19) // places)
    for start in range(0, len(images), step):
        stimuli = {t.name: stored(images[start : start + step], t)}
        if _differs(faulty, stimuli, run(graph, stimuli)[node.output]):
            return ""
    return f"every operand of {low}..{high} was tried"


def _pairs_tried(graph: IntGraph, node: Node, faulty: Faulty, low: int, high: int) -> str:
    """ShiftGELU: every element beside every largest of its row."""
    t = graph.tensors[graph.inputs[0]]
    n, rows = t.shape[-1], []
    for top in range(low, high + 1):
        values = list(range(low, top + 1))
        for i in range(0, len(values), n - 1):
            rows.append(([top] + values[i : i + n - 1] + [top] * n)[:n])
    places = int(np.prod(t.shape[:-1]))
    rows += [rows[-1]] * (-len(rows) % places)
    stimuli = {t.name: stored(np.array(rows), t)}
    if _differs(faulty, stimuli, run(graph, stimuli)[node.output]):
        return ""
    return f"every pair of an element and its row's largest in {low}..{high} was tried"


def all_verdicts(only: str = "", progress: Callable[[Verdict], None] | None = None) -> list[Verdict]:
    found = []
    for mutant in mutants():
        for site in sites():
            if fnmatch.fnmatchcase(site, mutant.at) and site.startswith(only):
                verdict = judged(mutant, site)
                if verdict is not None:
                    found.append(verdict)
                    if progress:
                        progress(verdict)
    return found


# -------------------------------------------------------------------------------------------- tables


def table(verdicts: list[Verdict]) -> str:
    """Of every site: images, mutants, equivalent ones, killed by directed, killed by random."""
    lines = ["| site | images | mutants | equivalent | killed by directed | killed by as many random |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    total = np.zeros(4, int)
    for site in dict.fromkeys(v.site for v in verdicts):
        mine = [v for v in verdicts if v.site == site]
        alive = [v for v in mine if not v.equivalent]
        row = len(alive), len(mine) - len(alive), sum(v.directed for v in alive), sum(v.random for v in alive)
        total += row
        lines.append(f"| {site} | {stimuli_of(site)[1].images} | {row[0]} | {row[1]} | {row[2]} | {row[3]} |")
    lines.append(f"| **all** | | **{total[0]}** | **{total[1]}** | **{total[2]}** | **{total[3]}** |")
    return "\n".join(lines)


def of_issue(verdicts: list[Verdict]) -> str:
    """The mutants of issue 15, point 1, over the sites here."""
    lines = [
        "| mutant | sites | equivalent there | killed by directed | killed by as many random |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(v.issue for v in verdicts if v.issue):
        mine = [v for v in verdicts if v.issue == name]
        alive = [v for v in mine if not v.equivalent]
        lines.append(f"| {name} | {len(mine)} | {len(mine) - len(alive)} | {sum(v.directed for v in alive)} | "
                     f"{sum(v.random for v in alive)} |")  # fmt: skip
    return "\n".join(lines)


def of_model(path: str) -> Iterator[tuple[str, int, int, int, int, int]]:
    """(mutant, sites, equivalent, killed by directed, by random, surviving) of those of the issue, over a graph."""
    graph = load(path)
    wanted = [m for m in mutants() if m.issue]
    counts: dict[str, np.ndarray[Any, Any]] = {}
    for node in graph.nodes:
        kinds = [m for m in wanted if _concerns(m, node)]
        if not kinds:
            continue
        one = part_of(graph, [node.name])
        found = directed(one)
        given, other = dict(found.stimuli), random_stimuli(one, found.images)
        right, right_of_other = run(one, given)[node.output], run(one, other)[node.output]
        for mutant in kinds:
            faulty = mutant.build(one, node)
            if faulty is None:
                continue
            killed, by_random = _differs(faulty, given, right), _differs(faulty, other, right_of_other)
            same = "" if killed else equivalence(mutant, one, node, found.coverage, faulty)
            row = np.array([1, bool(same), killed, by_random, not killed and not same])
            counts[mutant.issue] = counts.get(mutant.issue, np.zeros(5, int)) + row
    for name, row in counts.items():
        yield (name, *row.tolist())


def _concerns(mutant: Mutant, node: Node) -> bool:
    """Whether a mutant of a site here can be built at a node of a graph."""
    if node.op == "requantize":
        return mutant.at.startswith("requantize")
    return "method" in node.attrs and mutant.at == f"{node.op}.{node.attrs['method']}"


def document(verdicts: list[Verdict]) -> str:
    return f"{BEGIN}\n\n{table(verdicts)}\n\nThose of issue 15:\n\n{of_issue(verdicts)}\n\n{END}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sites whose name begins so")
    parser.add_argument("--model", default="", help="a stored integer graph")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/directed.md")
    args = parser.parse_args()
    if args.model:
        print("| mutant | sites | equivalent | killed by directed | killed by as many random | survives |")
        print("|---|---|---|---|---|---|")
        for row in of_model(args.model):
            print(f"| {' | '.join(map(str, row))} |")
        return 0
    verdicts = all_verdicts(args.only)
    print(table(verdicts), of_issue(verdicts), sep="\n\n")
    for v in verdicts:
        if v.equivalent:
            print(f"equivalent: {v.site}: {v.mutant}: {v.equivalent}")
    for v in verdicts:
        if v.survives:
            print(f"SURVIVES: {v.site}: {v.mutant}" + (" (random kills it)" if v.random else ""))
    if args.write:
        text = DOCUMENT.read_text()
        start, stop = text.index(BEGIN), text.index(END, text.index(BEGIN)) + len(END)
        DOCUMENT.write_text(text[:start] + document(verdicts) + text[stop:])
    return int(any(v.survives for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
