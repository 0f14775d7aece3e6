"""An integer graph in real numbers, in which every rounding and every operator can be left float.

The walk is that of the integer graph, but a tensor is what its integers stand for. A requantization that is on rounds
to its grid, weights that are on are those of the integer graph, an operator that is on computes in its own integers
(and rounds its input to them first). What is off is the float network's. With everything on every node gives what the
integers give but for ties that float32 decides otherwise; it serves analysis and never makes a golden value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from intvit.engine import Engine
from intvit.engine.trace import dequantize
from intvit.floats.model import FloatModel
from intvit.graph import layout, operators
from intvit.graph.inttypes import storage
from intvit.graph.ir import LAYOUT_OPS, Array, FloatGraph, Graph, IntGraph, Node, Tensor
from intvit.kernels.border import border
from intvit.kernels.cache import compiled
from intvit.lowering.bias import Rows, corrected_by, fitted

ROUNDING, WEIGHTS, OPERATOR = "rounding", "weights", "operator"
HIDDEN = -1e9
"""A masked score, for a float softmax."""


@dataclass(frozen=True)
class Part:
    """What can be left float. `site`: the float tensor that is rounded, else the site of the operator.

    `kind`: of the operator; of a rounding, of those that read it. `detail`: its width, or the method.
    """

    what: str
    site: str
    kind: str
    detail: str


On = Callable[[Part], bool]
State = dict[str, Array]
"""Integer tensor -> the real values (B, ...) float32 that it stands for."""


def dequantized(q: Array, tensor: Tensor) -> Array:
    """What integers (B, ...) stand for, float32."""
    return dequantize(q, tensor).astype(np.float32)


@border(x="float32 R C", scale="float64 L=C|1", out="float32|float64 R C")
@compiled
def _codes(x, scale, zero_point, low, high, back, out):
    """Nearest integers of low..high, or if `back` what they stand for; `scale` one or per channel."""
    for i in range(x.shape[0]):
        if len(scale) == 1:
            s, r = scale[0], 1 / scale[0]
            for j in range(x.shape[1]):
                code = min(max(np.rint(x[i, j] * r) + zero_point, low), high)
                out[i, j] = (code - zero_point) * s if back else code
        else:
            for j in range(x.shape[1]):
                code = min(max(np.rint(x[i, j] * (1 / scale[j])) + zero_point, low), high)
                out[i, j] = (code - zero_point) * scale[j] if back else code


def quantized(x: Array, tensor: Tensor) -> Array:
    """Nearest integers of a linear tensor, saturated."""
    return _rounded(x, tensor, back=False).astype(storage(tensor.dtype))


def _rounded(x: Array, tensor: Tensor, *, back: bool = True) -> Array:
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    out = np.empty(rows.shape, np.float32 if back or tensor.dtype.bits <= 24 else np.float64)
    limits = float(tensor.zero_point), float(tensor.dtype.min), float(tensor.dtype.max)
    _codes(rows, np.ascontiguousarray(tensor.scale, np.float64).reshape(-1), *limits, back, out)
    return out.reshape(x.shape)


@dataclass(frozen=True)
class Emulation:
    """`integer` must be lowered from `graph`, which `model` computes."""

    graph: FloatGraph
    integer: IntGraph
    model: FloatModel
    probe: Array
    """Images (B, C, H, W) of which means are taken."""
    samples: Mapping[str, Rows]
    """Of operators whose errors were corrected behind them (`lowering.bias`)."""
    _engines: dict[str, Engine] = field(default_factory=dict, init=False, repr=False, compare=False)
    _weights: dict[tuple[str, bool, bool], Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Integer node -> its part; the graph's input tensor -> its rounding. In order of execution."""
        found = {name: self._rounding(name) for name in self.integer.inputs}
        for node in self.integer.nodes:
            if node.op == "requantize" and node.output not in self.integer.outputs:
                found[node.name] = self._rounding(node.output)
            elif node.op == "linear":
                found[node.name] = Part(WEIGHTS, node.name, node.op, f"{_weight_bits(node)} bits")
            elif node.op not in (*LAYOUT_OPS, "requantize", "matmul", "log2_matmul"):
                found[node.name] = Part(OPERATOR, node.name, node.op, str(node.attrs.get("method", "integers")))
        return found

    def _rounding(self, name: str) -> Part:
        tensor = self.integer.tensors[name]
        kinds = dict.fromkeys(_computing(self.integer, name))
        return Part(ROUNDING, tensor.source or name, "+".join(kinds) or "output", f"{tensor.dtype.bits} bits")

    @cached_property
    def _dead(self) -> list[list[str]]:
        """Per node the tensors that nothing after it reads."""
        last = {name: i for i, node in enumerate(self.integer.nodes) for name in node.inputs}
        dead: list[list[str]] = [[] for _ in self.integer.nodes]
        for name, i in last.items():
            dead[i].append(name)
        return dead

    def outputs(self, images: Array, on: On) -> Array:
        """Images (B, C, H, W) to the outputs (B, ...) float32."""
        return self.finish(self.start(images, on), 0, on)

    def start(self, images: Array, on: On) -> State:
        (name,) = self.integer.inputs
        x = images.astype(np.float32)
        return {name: _rounded(x, self.integer.tensors[name]) if on(self.parts[name]) else x}

    def finish(self, state: State, at: int, on: On) -> Array:
        """The outputs, from the state before node number `at` on; the state is left as it is."""
        state = dict(state)
        for i in range(at, len(self.integer.nodes)):
            self.step(state, i, on)
        return state[self.integer.outputs[0]]

    def step(self, state: State, at: int, on: On) -> None:
        """Evaluate node number `at` and forget what nothing after it reads."""
        node = self.integer.nodes[at]
        values = [state[name] for name in node.inputs]
        state[node.output] = self.evaluate(node, values, on)
        for name in self._dead[at]:
            if name not in self.integer.outputs:
                del state[name]

    def walk(self, images: Array, on: On) -> Iterator[tuple[int, Node, State]]:
        """(number, node, the state before it) of every node, from images on."""
        state = self.start(images, on)
        for i, node in enumerate(self.integer.nodes):
            yield i, node, state
            self.step(state, i, on)

    def evaluate(self, node: Node, values: list[Array], on: On) -> Array:
        """The output of a node, inputs and output in real numbers."""
        factor = self._factor(node.output)
        if node.op == "requantize":
            return _times(self._requantize(node, values, factor, on), factor)
        if node.op in LAYOUT_OPS:
            arrays = {key: self._constant(node, key) for key in node.arrays}
            return _times(layout.apply(replace(node, arrays=arrays), values), factor)
        if node.op == "linear":
            return self._linear(node, values[0], factor, on)
        if node.name in self.parts and on(self.parts[node.name]):
            return self._operated(node, values)
        mate = self.graph.node(node.name)
        if "mask" in node.arrays:
            values = [np.where(node.arrays["mask"] != 0, np.float32(HIDDEN), values[0]), *values[1:]]
        return _times(self.model.between(mate.inputs, mate.output)(values), factor)

    def _operated(self, node: Node, values: list[Array]) -> Array:
        """By the engine, which has fast forms; it takes one input."""
        tensor, inputs = self.integer.tensors[node.output], [self.integer.tensors[name] for name in node.inputs]
        codes = [quantized(x, of) for x, of in zip(values, inputs, strict=True)]
        if len(inputs) == 1:
            if node.name not in self._engines:
                alone = Graph(node.inputs, (node.output,), (node,), {t.name: t for t in (*inputs, tensor)})
                self._engines[node.name] = Engine(alone)
            return dequantized(self._engines[node.name].evaluate(codes[0], [node.output])[node.output], tensor)
        kind = operators.get(node.op)
        assert kind is not None
        assert kind.kernel is not None
        return dequantized(kind.kernel(node, inputs, tensor)(codes), tensor)

    def _requantize(self, node: Node, values: list[Array], factor: float, on: On) -> Array:
        """Each term is rounded on its own, as the integers are; before the constant `factor`, which the scale holds."""
        tensor, total = self.integer.tensors[node.output], values[0]
        tensor = replace(tensor, scale=tensor.scale / factor)
        rounds = node.name in self.parts and on(self.parts[node.name])
        if len(values) == 2:
            second = values[1]
        elif "residual" in node.arrays and not tensor.zero_point:
            second = self.graph.node(node.name).arrays["value"]
            if rounds:
                ratio = np.ldexp(node.arrays["residual_m"].astype(np.float64), -node.arrays["residual_e"].astype(int))
                second = node.arrays["residual"] * ratio * tensor.scale
        else:
            return _rounded(total, tensor) if rounds else total
        if not rounds:
            return np.asarray(total + second, np.float32)
        return _rounded((total + np.rint(second / tensor.scale) * tensor.scale).astype(np.float32), tensor)

    def _constant(self, node: Node, key: str) -> Array:
        return dequantized(node.arrays[key], self.integer.tensors[node.output])

    def _linear(self, node: Node, x: Array, factor: float, on: On) -> Array:
        weight = self._weight(node, factor, on(self.parts[node.name]), self._sloped(node, on))
        bias = np.multiply(self.graph.node(node.name).arrays.get("bias", 0.0), factor)
        if node.name in self.corrections:
            bias = bias + self._correction(node, factor, bias, on)
        y = x.reshape(-1, x.shape[-1]) @ weight.T
        y += np.asarray(bias, np.float32)
        return y.reshape(*x.shape[:-1], -1)

    def _sloped(self, node: Node, on: On) -> bool:
        """Whether anything is on of what slopes correct."""
        return node.name in self._slopes and any(on(part) for part in self.corrections[node.name][0])

    def _weight(self, node: Node, factor: float, on: bool, sloped: bool) -> Array:
        """(O, C) float32."""
        key = node.name, on, sloped
        if key not in self._weights:
            weight, slopes = self.graph.node(node.name).arrays["weight"] * factor, self._slopes.get(node.name, 1.0)
            if on:
                of, scale = self.integer.tensors[node.inputs[0]], self.integer.tensors[node.output].scale
                weight = node.arrays["weight"] * np.reshape(scale, (-1, 1)) / of.scale / slopes
            self._weights[key] = (weight * slopes if sloped else weight).astype(np.float32)
        return self._weights[key]

    @cached_property
    def _slopes(self) -> dict[str, Array]:
        """Linear node -> by what its weights were multiplied (C,)."""
        if not self.integer.metadata.get("recipe", {}).get("slope_correction"):
            return {}
        reads = {name: self.integer.node(name).inputs[0] for name in self.corrections}
        fits = {name: fitted(self.integer, tensor, self.samples) for name, tensor in reads.items()}
        return {name: fit.slopes for name, fit in fits.items() if fit is not None}

    def _correction(self, node: Node, factor: float, bias: Array, on: On) -> Array:
        """What the bias is corrected by (O,): for what the operator before it and its rounding get wrong as they are.

        What the integers hold, and the change of the mean error from all on to what is on.
        """
        chain, means = self.corrections[node.name]
        state, weights = tuple(on(part) for part in chain), on(self.parts[node.name])
        if not any(state) and not weights:
            return np.zeros(len(node.arrays["weight"]))
        of, scale = self.integer.tensors[node.inputs[0]], self.integer.tensors[node.output].scale
        sums = node.arrays["weight"].sum(axis=1, dtype=np.int64)
        held = scale * (node.arrays["bias"] + of.zero_point * sums) - bias
        if all(state) and weights:
            return np.asarray(held)
        now = self._weight(node, factor, weights, self._sloped(node, on)) @ means[state]
        return np.asarray(held + self._weight(node, factor, True, node.name in self._slopes) @ means[True, True] - now)

    @cached_property
    def corrections(self) -> dict[str, tuple[tuple[Part, Part], dict[tuple[bool, ...], Array]]]:
        """Linear node -> (operator and rounding before it, their mean output (C,) by which of them are on).

        Every operator is fed the float network's input, as in `lowering.bias`; none where nothing is corrected.
        """
        found: dict[str, tuple[tuple[Part, Part], dict[tuple[bool, ...], Array]]] = {}
        chains = {
            node.name: chain
            for node in self.integer.nodes
            if node.op == "linear" and "bias" in node.arrays
            and (chain := corrected_by(self.integer, node.inputs[0], self.samples))
        }  # fmt: skip
        if not chains:
            return found
        heads = {head.name: self.graph.node(head.name).inputs[0] for head, _ in chains.values()}
        floats = self.model.run(self.probe, list(dict.fromkeys(heads.values())))
        for name, chain in chains.items():
            parts = self.parts[chain[0].name], self.parts[chain[1].name]
            means: dict[tuple[bool, ...], Array] = {}
            for state in itertools.product((True, False), repeat=2):
                on = dict(zip(parts, state, strict=True)).__getitem__
                values = floats[heads[chain[0].name]]
                for step in chain:
                    values = self.evaluate(step, [values], on)
                means[state] = values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64)
            found[name] = parts, means
        return found

    def _factor(self, name: str) -> float:
        """Of constant factors between the operator that makes an integer tensor and the float tensor that it is."""
        source, factor = self.integer.tensors[name].source or name, 1.0
        while source != name and source in self.graph.by_output:
            node = self.graph.by_output[source]
            if node.op != "scale":
                break
            factor, source = factor * node.attrs["factor"], node.inputs[0]
        return factor if source == name else 1.0  # a quantizer behind them reads what has them


def _times(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * np.float32(factor)


def _weight_bits(node: Node) -> int:
    weight = node.arrays["weight"]
    return max(int(weight.max()), -int(weight.min())).bit_length() + 1


def _computing(graph: IntGraph, name: str) -> Iterator[str]:
    """Kinds of the operators that read a tensor, looked up through layout moves."""
    for node in graph.consumers[name]:
        if node.op in LAYOUT_OPS:
            yield from _computing(graph, node.output)
        else:
            yield {"requantize": "add", "log2_matmul": "matmul"}.get(node.op, node.op)


def flipped(base: bool, parts: Collection[Part]) -> On:
    """Everything as `base`, `parts` the other way."""
    return lambda part: (part in parts) != base
