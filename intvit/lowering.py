"""Lower: float Graph + ranges + recipe -> integer Graph. The last place where a float decides anything.

The result computes, bit for bit, what the published integer networks compute (docs/quantization.md, "Whole models"),
with the quantizers that `graph/widths.py` places. Every constant is derived here, once, and stored as an integer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intvit import registry
from intvit.calibrate import Calibration, at_trained_widths, source_tensor
from intvit.errors import IntvitError, placed
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, LOGITS, Array, Graph, Node, Tensor
from intvit.graph.ranges import accumulator_type, linear_bound, narrowest
from intvit.graph.widths import SELF_QUANTIZING, is_mask, joins_quantizers, quantizer_bits, quantizer_site, readers
from intvit.inttypes import IntType
from intvit.kernels.quantize import quantize_activation, quantize_bias, quantize_weight, symmetric_scale
from intvit.kernels.requantize import dyadic
from intvit.recipe import OPERATORS, Recipe
from intvit.spec import SPEC_VERSION

LOG2_FRACTION_BITS = 15


class Infeasible(IntvitError):
    """A method that is not defined at a site, as at its scale."""

    def __init__(self, site: str, why: str) -> None:
        super().__init__(f"{site}: {why}")
        self.site, self.why = site, why


def lower(graph: Graph, calibration: Calibration, recipe: Recipe) -> Graph:
    """The integer Graph of a float Graph.

    Raises IntvitError for a recipe that names an unknown site or method, or a site without a range, and Infeasible for
    a site at whose scale a method is undefined.
    """
    recipe = at_trained_widths(graph, recipe)
    _check_sites(graph, recipe)
    lowering = _Lowering(graph, calibration, recipe)
    for node in graph.nodes:
        lowering.lower_node(node)
    return lowering.finish()


def _check_sites(graph: Graph, recipe: Recipe) -> None:
    if LOGITS in graph.tensors:
        raise IntvitError(f"{LOGITS}: no tensor of the float model may be called so; import it with `intvit import`")
    sites = {node.name: node.op for node in graph.nodes if node.op in OPERATORS}
    for site in recipe.sites:
        if site not in sites:
            raise IntvitError(f"{site}: recipe must name a Softmax, GELU or LayerNorm site of the model, not this")
    for site, operator in sites.items():
        with placed(site):
            recipe.choice(operator, site).check(operator)


@dataclass
class _Lowering:
    graph: Graph
    calibration: Calibration
    recipe: Recipe
    widths: dict[str, int] = field(init=False)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """Float tensor name -> the integer tensor that stands for it."""
    masks: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.widths = quantizer_bits(self.graph, self.recipe)
        (name,) = self.graph.inputs
        bits = self.widths[name]
        self.define(name, self.graph.tensors[name].shape, IntType(bits), self.range_scale(name, bits))
        self.values[name] = name

    # -- small parts

    def define(self, name: str, shape: tuple[int, ...], dtype: IntType, scale: Any, **values: Any) -> Tensor:
        if name in self.tensors:
            raise IntvitError(f"{name}: must be the name of one tensor, and a quantizer would be called so too")
        values.setdefault("source", name)
        self.tensors[name] = Tensor(name, shape, dtype, np.asarray(scale, np.float64), **values)
        return self.tensors[name]

    def value(self, name: str) -> Tensor:
        return self.tensors[self.values[name]]

    def emit(self, op: str, name: str, inputs: tuple[str, ...], output: str, **values: Any) -> None:
        self.nodes.append(Node(op, name, inputs, output, **values))

    def range_scale(self, name: str, bits: int) -> float:
        ranges = self.calibration.ranges
        low, high = ranges[source_tensor(self.graph, name, ranges)]
        if not (math.isfinite(low) and math.isfinite(high)) or low > high:
            raise IntvitError(f"{name}: range must be finite and ordered, not {(low, high)}")
        return self._insisted(name, symmetric_scale(low, high, bits))

    def _insisted(self, name: str, scale: float) -> float:
        """`scale`, or the larger one that a method which reads the tensor insists on."""
        asked = {}
        for node in readers(self.graph, name):
            if node.op in OPERATORS:
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

    def lower_node(self, node: Node) -> None:
        if node.op in LAYOUT_OPS:
            self._layout(node)
        else:
            _LOWER[node.op](self, node)
        if node.output in self.widths and node.op not in SELF_QUANTIZING:
            self._quantize_raw(node.output)

    def _quantize_raw(self, name: str) -> None:
        """Requantize the accumulator that stands for float tensor `name`."""
        bits = self.widths[name]
        self.requantize(f"{name}.quant", self.value(name), bits, self.range_scale(name, bits), source=name)
        self.values[name] = f"{name}.quant"

    def requantize(self, name: str, raw: Tensor, bits: int, scale: float, residual: Tensor | Array | None = None,
                   residual_scale: Any = None, source: str | None = None) -> None:  # fmt: skip
        """Append `name = saturate(round(raw * m / 2**e) [+ round(residual * m' / 2**e')])`."""
        if raw.encoding != "linear":
            raise IntvitError(f"{name}: log2 codes of {raw.name} must feed a matrix product, nothing else")
        m, e = dyadic(raw.scale, scale)
        arrays, inputs = {"m": m, "e": e}, [raw.name]
        if residual is not None:
            arrays["residual_m"], arrays["residual_e"] = dyadic(residual_scale, scale)
            if isinstance(residual, Tensor):
                inputs.append(residual.name)
            else:
                arrays["residual"] = residual
        self.define(name, raw.shape, IntType(bits), scale, source=source or name)
        self.emit("requantize", name, tuple(inputs), name, attrs={"bits": bits}, arrays=arrays)

    # -- one method per operator of the float graph

    def _layout(self, node: Node) -> None:
        inputs = [self.value(name) for name in node.inputs]
        if joins_quantizers(self.graph, node):
            inputs = self._to_one_scale(node, inputs)
        first = inputs[0]
        if any(
            not np.array_equal(np.asarray(t.scale), np.asarray(first.scale)) or t.encoding != first.encoding
            for t in inputs
        ):
            raise IntvitError(f"{node.name}: {node.op} must join tensors of one scale")
        arrays, bound = {}, max(t.max_abs for t in inputs)
        for key, part in node.arrays.items():
            assert first.scale is not None
            arrays[key] = np.rint(part.astype(np.float64) / first.scale).astype(np.int64)
            bound = max(bound, int(np.abs(arrays[key]).max()))
        assert first.dtype is not None
        dtype = first.dtype if bound <= first.max_abs else narrowest(bound, first.dtype.bits)
        moved = Node(node.op, node.name, tuple(t.name for t in inputs), node.output, node.attrs, arrays)
        self.nodes.append(moved)
        shape = layout.output_shape(moved, [t.shape for t in inputs])
        self.define(node.output, shape, dtype, first.scale, encoding=first.encoding, bound=first.bound and bound)
        self.values[node.output] = node.output

    def _to_one_scale(self, node: Node, inputs: list[Tensor]) -> list[Tensor]:
        """The inputs of a concat, each requantized to the range of what they form."""
        bits = self.widths[node.output]
        scale = self.range_scale(node.output, bits)
        for i, raw in enumerate(inputs):
            self.requantize(f"{node.output}.in{i}", raw, bits, scale, source=node.inputs[i])
        return [self.tensors[f"{node.output}.in{i}"] for i in range(len(inputs))]

    def _scale(self, node: Node) -> None:
        """Fold a constant factor into the scale of the accumulator before it."""
        raw = self.value(node.inputs[0])
        if len(self.graph.consumers[node.inputs[0]]) != 1 or self.nodes[-1].output != raw.name:
            raise IntvitError(f"{node.name}: a constant factor must follow the one operator whose scale takes it")
        assert raw.scale is not None
        producer = self.nodes[-1]
        factor = node.attrs["factor"]
        if producer.op == "matmul":  # float32 files round the attention factor, the published networks do not
            exact = self.tensors[producer.inputs[0]].shape[-1] ** -0.5
            factor = exact if np.float32(exact) == np.float32(factor) else factor
        self.tensors[raw.name] = dataclasses.replace(raw, scale=raw.scale * factor, source=node.output)
        self.values[node.output] = raw.name

    def _linear(self, node: Node) -> None:
        x = self.value(node.inputs[0])
        weight, weight_scale = self._codes(node)
        arrays = {"weight": weight.astype(np.int8)}
        assert x.scale is not None
        if "bias" in node.arrays:
            bias = quantize_bias(node.arrays["bias"], float(x.scale), weight_scale)[0]
            arrays["bias"] = self._trained_bias(node, bias) if self.calibration.trained else bias
        bound = int(linear_bound(arrays["weight"], arrays.get("bias"), x.max_abs).max())
        shape = (*x.shape[:-1], len(weight))
        self.define(node.output, shape, accumulator_type(bound), weight_scale * float(x.scale), bound=bound)
        self.emit("linear", node.name, (x.name,), node.output, arrays=arrays)
        self.values[node.output] = node.output

    def _codes(self, node: Node) -> tuple[Array, Array]:
        """(codes, scale) of the weights: the trained ones if they came along, else rounded here."""
        codes, scale = quantize_weight(node.arrays["weight"], self.recipe.bits)
        trained = node.arrays.get("weight_integer", codes)
        if trained.shape != codes.shape or np.abs(trained.astype(np.int64) - codes).max() > 1:
            raise IntvitError(f"{node.name}: weight_integer must be the weight rounded to {self.recipe.bits} bits")
        given = node.arrays.get("weight_scale", scale).astype(np.float64)
        if given.shape != scale.shape or not np.allclose(given, scale, rtol=1e-6, atol=0):
            raise IntvitError(f"{node.name}: weight_scale must be that of its weight at {self.recipe.bits} bits")
        return trained, given

    def _trained_bias(self, node: Node, bias: Array) -> Array:
        """The bias that came along, in the place of `bias`; float32 had rounded it."""
        trained = node.arrays.get("bias_integer", bias)
        if trained.shape != bias.shape or np.any(np.abs(trained - bias) > 1 + np.abs(bias) * 2.0**-20):
            raise IntvitError(f"{node.name}: bias_integer must be the bias at the scale of its accumulator")
        return trained

    def _matmul(self, node: Node) -> None:
        a, b = (self.value(name) for name in node.inputs)
        assert a.scale is not None
        assert b.scale is not None
        op, scale, bound = "matmul", a.scale * b.scale, a.shape[-1] * a.max_abs * b.max_abs
        if a.encoding == "log2":
            op, scale = "log2_matmul", b.scale * 2.0**-LOG2_FRACTION_BITS
            bound = a.shape[-1] * (b.max_abs << LOG2_FRACTION_BITS)
        self.define(node.output, (*a.shape[:-1], b.shape[-1]), accumulator_type(bound), scale, bound=bound)
        self.emit(op, node.name, (a.name, b.name), node.output)
        self.values[node.output] = node.output

    def _method(self, node: Node, **facts: Any) -> None:
        """Softmax, GELU and LayerNorm: constants from the method's own `lower`, which takes what it needs."""
        x, choice = self.value(node.inputs[0]), self.recipe.choice(node.op, node.name)
        method = registry.get(node.op, choice.method)
        if method.longest_row is not None and x.shape[-1] > method.longest_row:
            raise Infeasible(node.name, f"{method.id} takes rows of at most {method.longest_row}, not {x.shape[-1]}")
        arrays: dict[str, Array] = {}
        if node.inputs[0] in self.masks:
            arrays["mask"] = self.masks[node.inputs[0]]
        try:
            params, scale = method.constants(float(np.asarray(x.scale)), facts, choice.options)
        except IntvitError as error:
            raise Infeasible(node.name, str(error)) from None
        trained = self.graph.metadata.get("trained") or {}
        if method.id == "layernorm.ivit.v1" and "bias_integer" in node.arrays:
            bias = self._trained_bias(node, np.array(params.bias, np.int64))
            params = dataclasses.replace(params, bias=tuple(bias.tolist()))
        if method.id == "gelu.ivit.v1" and "gelu_bits" in trained:
            scale *= 2.0 ** (params.out_bits - trained["gelu_bits"])
            params = dataclasses.replace(params, out_bits=trained["gelu_bits"])
        scalars: dict[str, int] = {}
        for key, value in dataclasses.asdict(params).items():
            if isinstance(value, tuple):
                arrays[key] = np.array(value, np.int64)
            else:
                scalars[key] = value
        bound = method.bound(params, x.max_abs, x.shape[-1]) if method.bound else None
        dtype = IntType(64) if bound is None else narrowest(bound, 8)
        self.define(node.output, x.shape, dtype, scale, encoding=method.out_encoding, bound=bound)
        attrs = {"method": method.name, "version": method.version, "params": scalars}
        self.emit(node.op, node.name, (x.name,), node.output, attrs=attrs, arrays=arrays)
        self.values[node.output] = node.output

    def _softmax(self, node: Node) -> None:
        method = registry.get("softmax", self.recipe.choice("softmax", node.name).method)
        bits = self.recipe.log2_bits if method.out_encoding == "log2" else self.recipe.softmax_bits
        bits = min(max(bits, method.widths[0]), method.widths[1])
        self._method(node, out_bits=bits, exp_range_max=self.calibration.exp_range_max.get(node.name))

    def _gelu(self, node: Node) -> None:
        self._method(node)

    def _layernorm(self, node: Node) -> None:
        site = quantizer_site(self.graph, node)
        self._method(
            node,
            gamma=node.arrays["gamma"],
            beta=node.arrays["beta"],
            shift=self._shift(node),
            out_scale=self.range_scale(site, self.widths[site]),
        )

    def _shift(self, node: Node) -> int:
        """I-BERT's rule: the least shift that brings the largest calibrated row variance below 2^32."""
        if node.name in self.calibration.shifts:
            return self.calibration.shifts[node.name]
        scale = float(np.asarray(self.value(node.inputs[0]).scale))
        variance = self.calibration.variances.get(node.name, 0.0) / scale**2
        return max(0, math.ceil(0.5 * math.log2(variance / 2**32))) if variance >= 2**32 else 0

    def _add(self, node: Node) -> None:
        if is_mask(node):
            shape = self.graph.tensors[node.output].shape
            self.masks[node.output] = np.ascontiguousarray(np.broadcast_to(node.arrays["value"] < 0, shape))
            self.values[node.output] = self.values[node.inputs[0]]
            return
        bits = self.widths[node.output]
        scale = self.range_scale(node.output, bits)
        first = self.value(node.inputs[0])
        if len(node.inputs) == 2:
            second = self.value(node.inputs[1])
            self.requantize(node.output, first, bits, scale, second, second.scale)
        else:
            value = node.arrays["value"].astype(np.float64)
            low, high = self.calibration.ranges.get(f"{node.name}.value", (float(value.min()), float(value.max())))
            constant, constant_scale = quantize_activation(value, bits=bits, min_val=low, max_val=high)[:2]
            self.requantize(node.output, first, bits, scale, constant, constant_scale)
        self.values[node.output] = node.output

    def _identity(self, node: Node) -> None:
        bits = self.widths[node.output]
        self.requantize(node.output, self.value(node.inputs[0]), bits, self.range_scale(node.output, bits))
        self.values[node.output] = node.output

    def _mean(self, node: Node) -> None:
        x = self.value(node.inputs[0])
        assert x.dtype is not None
        shape = self.graph.tensors[node.output].shape
        self.define(node.output, shape, x.dtype, x.scale, bound=x.bound)
        self.emit("mean", node.name, (x.name,), node.output, attrs=node.attrs)
        self.values[node.output] = node.output

    def finish(self) -> Graph:
        """Bring the class accumulators to one scale, the finest that cannot saturate, and close the graph."""
        raw = self.value(self.graph.outputs[0])
        assert raw.scale is not None
        scales = np.broadcast_to(np.abs(raw.scale), raw.shape[-1:])
        common = max(float(scales.min()), float(scales.max()) * raw.max_abs / (2**31 - 1))
        self.requantize(LOGITS, raw, 32, float(np.float32(common)), source=self.graph.outputs[0])
        applied = self.calibration.preprocessing
        metadata = {
            **(self.graph.metadata if applied is None else applied.restate(self.graph.metadata)),
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "spec_version": SPEC_VERSION,
        }
        return Graph(self.graph.inputs, (LOGITS, raw.name), tuple(self.nodes), self.tensors, metadata)


_LOWER: dict[str, Callable[[_Lowering, Node], None]] = {
    "add": _Lowering._add,
    "gelu": _Lowering._gelu,
    "identity": _Lowering._identity,
    "layernorm": _Lowering._layernorm,
    "linear": _Lowering._linear,
    "matmul": _Lowering._matmul,
    "mean": _Lowering._mean,
    "scale": _Lowering._scale,
    "softmax": _Lowering._softmax,
}
