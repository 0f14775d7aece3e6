"""Lower: float Graph + ranges + recipe -> integer Graph. The last place where a float decides anything.

The result computes, bit for bit, what the published integer networks compute (docs/quantization.md, "Whole models"),
with the quantizers that `graph/widths.py` places. Every constant is derived here, once, and stored as an integer. What
becomes of one operator stands with its kind, in `operators`: a function of a node and the `Context`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intvit.errors import Infeasible, IntvitError, placed
from intvit.graph import operators
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, LOGITS, Array, FloatGraph, Graph, IntGraph, Node, Tensor
from intvit.graph.operators import accumulators
from intvit.kernels import registry
from intvit.kernels.quantize import affine_scale, symmetric_scale
from intvit.kernels.requantize import dyadic, dyadic_together
from intvit.lowering import bias, widths
from intvit.lowering.calibrate import Calibration, at_trained_widths, source_tensor, stated
from intvit.lowering.observers import clipped
from intvit.lowering.recipe import Choice, Recipe
from intvit.spec import SPEC_VERSION
from intvit.spec.numerics import HAWQ, Numerics

__all__ = ["Context", "Infeasible", "lower", "lower_feasible"]


def lower(graph: FloatGraph, calibration: Calibration, recipe: Recipe) -> IntGraph:
    """The integer Graph of a float Graph.

    Raises IntvitError for a recipe that names an unknown site or method, or a site without a range, and Infeasible for
    a site at whose scale a method is undefined.
    """
    recipe.check_corrections("recipe")
    recipe = at_trained_widths(graph, recipe).of_kinds({node.op for node in graph.nodes})
    _check_sites(graph, recipe)
    widths.check_quantizers(graph, recipe)
    _check_datapaths(graph, recipe)
    context = Context(graph, calibration, recipe)
    for node in graph.nodes:
        context.lower(node)
    return context.finish()


def lower_feasible(
    graph: FloatGraph, calibration: Calibration, recipe: Recipe, stand_in: Callable[[list[Infeasible]], Choice]
) -> tuple[IntGraph, Recipe, dict[str, list[Infeasible]]]:
    """`lower`, with another method wherever one is undefined; the recipe of that, and what was refused by site.

    stand_in(refusals of a site, the newest last): what is tried there next, or it raises.
    """
    refused: dict[str, list[Infeasible]] = {}
    while True:
        try:
            return lower(graph, calibration, recipe), recipe, refused
        except Infeasible as error:
            refused.setdefault(error.site, []).append(error)
            choice = stand_in(refused[error.site])
            recipe = recipe.model_copy(update={"sites": {**recipe.sites, error.site: choice}})


def _check_sites(graph: FloatGraph, recipe: Recipe) -> None:
    if LOGITS in graph.tensors:
        raise IntvitError(f"{LOGITS}: no tensor of the float model may be called so; import it with `intvit import`")
    sites = {node.name: node.op for node in graph.nodes if node.op in operators.with_methods()}
    for site in recipe.sites:
        if site not in sites:
            raise IntvitError(f"{site}: recipe must name a Softmax, GELU or LayerNorm site of the model, not this")
    for site, operator in sites.items():
        with placed(site):
            recipe.choice(operator, site).check(operator)


def _check_datapaths(graph: FloatGraph, recipe: Recipe) -> None:
    known = {name for node in graph.nodes for name in (node.op, node.name)} | set(operators.with_methods())
    for name in recipe.datapaths.keys() - known:
        raise IntvitError(f"{name}: datapaths must name a site or a kind of operator of the model, not this")


@dataclass(frozen=True)
class Quantizer:
    """Signed codes of `bits` bits: `real = scale * (q - zero_point)`; the scale () or per channel (C,), float64."""

    bits: int
    scale: Array
    zero_point: int


@dataclass
class Context:
    """The integer graph as far as it is made, and what the lowering of a node may ask for."""

    graph: FloatGraph
    calibration: Calibration
    recipe: Recipe
    widths: dict[str, int] = field(init=False)
    """Width of every quantizer, by the float tensor that it rounds."""
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """Float tensor name -> the integer tensor that stands for it."""
    masks: dict[str, Array] = field(default_factory=dict)
    """Float tensor name -> where its scores are masked."""
    _producers: dict[str, Node] = field(default_factory=dict)
    _fits: dict[str, bias.Fit | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.widths = widths.quantizer_bits(self.graph, self.recipe)
        (name,) = self.graph.inputs
        bits = self.widths[name]
        self._define(
            Tensor(name, self.graph.tensors[name].shape, IntType(bits), np.asarray(self.range_scale(name, bits)))
        )
        self.values[name] = name

    def lower(self, node: Node) -> None:
        kind = operators.get(node.op)
        if kind is None or kind.lower is None:
            raise IntvitError(f"{node.name}: {node.op} has no integer form")
        kind.lower(self, node)
        if node.output in self.widths and not kind.self_quantizing:
            self._quantize_raw(node.output)

    # -- what there is

    def value(self, name: str) -> Tensor:
        """The integer tensor that stands for float tensor `name`."""
        return self.tensors[self.values[name]]

    def producer(self, name: str) -> Node | None:
        """The integer node that computes integer tensor `name`; None for the input."""
        return self._producers.get(name)

    def _computed_by(self, name: str) -> Node | None:
        """As `producer`, behind whatever only moves elements."""
        found = self.producer(name)
        while found is not None and found.op in LAYOUT_OPS:
            found = self.producer(found.inputs[0])
        return found

    def must_be_linear(self, tensor: Tensor, where: str) -> None:
        """Infeasible, of the site whose method makes them, for log2 codes that `where` would read as integers."""
        if tensor.encoding != "linear":
            maker = self._computed_by(tensor.name)
            rule = f"{tensor.encoding} codes must be the left operand of a matrix product"
            raise Infeasible(tensor.name if maker is None else maker.name, f"{rule}, and {where} reads them")

    def softmax_behind(self, name: str) -> str | None:
        """The site of the softmax whose output, maybe rounded, an integer tensor is."""
        found = self._computed_by(name)
        if found is not None and found.op == "requantize":
            found = self._computed_by(found.inputs[0])
        return found.name if found is not None and found.op == "softmax" else None

    def joins_quantizers(self, node: Node) -> bool:
        return widths.joins_quantizers(self.graph, node)

    def range_scale(self, name: str, bits: int) -> float:
        """The scale of `bits` bits for the calibrated range of float tensor `name`, taken as symmetric."""
        return self._insisted(name, symmetric_scale(*self._range(name, bits), bits))

    def _range(self, name: str, bits: int) -> tuple[float, float]:
        ranges, observers = self.calibration.ranges, self.calibration.observers
        source = source_tensor(self.graph, name, ranges)
        low, high = observers[source].range(bits) if source in observers else ranges[source]
        if not (math.isfinite(low) and math.isfinite(high)) or low > high:
            raise IntvitError(f"{name}: range must be finite and ordered, not {(low, high)}")
        share = stated(self.graph, self.recipe, name, "range")
        if share is None:
            return low, high
        return clipped(low, high, share * max(-low, high))

    def quantizer(self, name: str) -> Quantizer:
        """What rounds float tensor `name`."""
        bits = self.widths[name]
        if widths.has_zero_point(self.graph, self.recipe, name):
            scale, zero_point = affine_scale(*self._range(name, bits), bits)
        else:
            scale, zero_point = self.range_scale(name, bits), 0
        factors = self.calibration.factors.get(name)
        if factors is None:
            return Quantizer(bits, np.asarray(scale), zero_point)
        return Quantizer(bits, (scale * factors).astype(np.float32).astype(np.float64), zero_point)

    def next_scale(self, node: Node) -> Array:
        """The scale, one number or one per channel, at which the quantizer behind a float node takes it as it is."""
        site = widths.quantizer_site(self.graph, node)
        scale, at = self.quantizer(site).scale, site
        while at != node.output:  # only moves, and constant factors, lie between
            move = self.graph.by_output[at]
            scale = scale / move.attrs["factor"] if move.op == "scale" else scale
            at = move.inputs[0]
        return scale

    def _insisted(self, name: str, scale: float) -> float:
        """`scale`, or the larger one that a method which reads the tensor insists on."""
        asked = {}
        for node in widths.readers(self.graph, name):
            if node.op in operators.with_methods():
                method = registry.get(node.op, self.recipe.choice(node.op, node.name).method)
                if method.input_scale is not None:
                    asked[float(method.input_scale(scale))] = f"{node.name} ({method.id})"
        if not asked:
            return scale
        (wanted, who), *others = asked.items()
        if others or not (math.isfinite(wanted) and wanted >= scale):
            site = who.split(" ")[0]
            raise Infeasible(site, f"input scale must be one of at least {scale:.6g} for all readers, not {asked}")
        return wanted

    def fit(self, name: str) -> bias.Fit | None:
        """How integers differ from the float network at float tensor `name`, where this is to be corrected."""
        if not self.recipe.corrects_bias:
            return None
        found = self.values[name]
        if found not in self._fits:
            parts = Graph(self.graph.inputs, (), tuple(self.nodes), self.tensors)
            self._fits[found] = bias.fitted(parts, found, self.calibration.samples)
        return self._fits[found]

    def trained_bias(self, node: Node, rounded: Array) -> Array:
        """The bias that came along with a float node, in the place of `rounded`; float32 had rounded it."""
        trained = node.arrays.get("bias_integer", rounded)
        if trained.shape != rounded.shape or np.any(np.abs(trained - rounded) > 1 + np.abs(rounded) * 2.0**-20):
            raise IntvitError(f"{node.name}: bias_integer must be the bias at the scale of its accumulator")
        return trained

    # -- what is added

    def emit(self, node: Node, output: Tensor) -> None:
        """Append a node; its output stands for the float tensor of the same name."""
        self._append(node, output)
        self.values[output.name] = output.name

    def requantize(self, name: str, raw: Tensor, bits: int, scale: Any, residual: Tensor | Array | None = None,
                   residual_scale: Any = None, source: str | None = None, zero_point: int = 0,
                   numerics: Numerics | None = None) -> None:  # fmt: skip
        """Append `name = saturate(round(raw * m / 2**e) [+ round(residual * m' / 2**e')])`.

        A zero point is such a residual: a constant, times 1. `numerics`: others than the recipe's.
        """
        if numerics is None:
            maker = self._computed_by(raw.name)
            numerics = self.recipe.numerics if maker is None else self.recipe.numerics_at(maker.op, maker.name)
        numerics = numerics.requantizing
        self.must_be_linear(raw, name)
        arrays, inputs = self._factors(raw, scale, residual, residual_scale, numerics), [raw.name]
        if residual is not None:
            if isinstance(residual, Tensor):
                self.must_be_linear(residual, name)
                inputs.append(residual.name)
            else:
                arrays["residual"] = residual
        elif zero_point:
            arrays["residual"], (arrays["residual_m"], arrays["residual_e"]) = np.array([zero_point]), dyadic(1.0, 1.0)
        output = Tensor(name, raw.shape, IntType(bits), np.asarray(scale), source=source, zero_point=zero_point)
        attrs = {"bits": bits, **accumulators.stated(numerics)}
        self._append(Node("requantize", name, tuple(inputs), name, attrs, arrays), output)

    def _factors(
        self, raw: Tensor, scale: Any, residual: Tensor | Array | None, residual_scale: Any, numerics: Numerics
    ) -> dict[str, Array]:
        """m and e, and those of a residual; Infeasible where the numerics have none for these scales."""
        maker = self._computed_by(raw.name)
        try:
            if residual is None:
                m, e = dyadic(raw.scale, scale, numerics, raw.max_abs)
                return {"m": m, "e": e}
            most = residual.max_abs if isinstance(residual, Tensor) else int(np.abs(residual).max())
            if numerics.residual == "together":
                m, other, e = dyadic_together(raw.scale, residual_scale, scale, numerics, max(raw.max_abs, most))
                return {"m": m, "e": e, "residual_m": other, "residual_e": e}
            m, e = dyadic(raw.scale, scale, numerics, raw.max_abs)
            other, f = dyadic(residual_scale, scale, numerics, most)
            return {"m": m, "e": e, "residual_m": other, "residual_e": f}
        except IntvitError as error:
            raise Infeasible(raw.name if maker is None else maker.name, str(error)) from None

    def even_out(self, name: str, raw: Tensor, source: str) -> Tensor:
        """Append `name`: an accumulator at one scale for all channels, the finest that cannot saturate 32 bits.

        That is for whoever compares outputs, and no part of a datapath: its numerics are as usual.
        """
        scales = np.broadcast_to(np.abs(raw.scale), raw.shape[-1:])
        common = max(float(scales.min()), float(scales.max()) * raw.max_abs / (2**31 - 1))
        self.requantize(name, raw, 32, float(np.float32(common)), source=source, numerics=HAWQ)
        return self.tensors[name]

    def _quantize_raw(self, name: str) -> None:
        """Requantize the accumulator that stands for float tensor `name`."""
        to = self.quantizer(name)
        self.requantize(f"{name}.quant", self.value(name), to.bits, to.scale, source=name, zero_point=to.zero_point)
        self.values[name] = f"{name}.quant"

    def _append(self, node: Node, output: Tensor) -> None:
        self._define(output)
        self.nodes.append(node)
        self._producers[output.name] = node

    def _define(self, tensor: Tensor) -> None:
        if tensor.name in self.tensors:
            raise IntvitError(f"{tensor.name}: must be the name of one tensor, and a quantizer would be called so too")
        stated = dataclasses.replace(
            tensor, scale=np.asarray(tensor.scale, np.float64), source=tensor.source or tensor.name
        )
        self.tensors[tensor.name] = stated

    def finish(self) -> IntGraph:
        """Bring the class accumulators to one scale, the finest that cannot saturate, and close the graph."""
        raw = self.value(self.graph.outputs[0])
        self.even_out(LOGITS, raw, source=self.graph.outputs[0])
        applied = self.calibration.preprocessing
        metadata = {
            **(self.graph.metadata if applied is None else applied.restate(self.graph.metadata)),
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "spec_version": SPEC_VERSION,
        }
        return Graph(self.graph.inputs, (LOGITS, raw.name), tuple(self.nodes), self.tensors, metadata)
