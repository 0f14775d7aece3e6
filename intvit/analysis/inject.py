"""Deviations of hardware, put into an integer graph: `SITE:KIND=VALUE[,WORD...][@INDEX]`.

The result is an integer graph as any other. What nodes say of themselves (roundings, multipliers, accumulators,
methods) is changed there; words that are too narrow and bits that are stuck are nodes of their own (`operators.word`).
Types and bounds behind a change are derived anew, so that kernels prove of the changed graph what they rely on, and
both backends compute it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intvit.analysis.injections import Injection
from intvit.errors import IntvitError, placed
from intvit.graph import operators
from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Array, Graph, IntGraph, Node, Tensor
from intvit.graph.operators import accumulators, matmul, methods, word
from intvit.graph.operators.requantize import addend, signed
from intvit.graph.parameters import method_params, node_method
from intvit.graph.ranges import linear_bound, narrowest
from intvit.kernels import registry
from intvit.kernels.method import Method
from intvit.kernels.requantize import dyadic, dyadic_together
from intvit.spec.numerics import PRESETS, Numerics, build_numerics
from intvit.vectors.export import select_nodes

PRODUCTS = frozenset({"linear", "matmul", "log2_matmul"})
REQUANTIZE = frozenset({"requantize"})


def matched(graph: IntGraph, injection: Injection) -> list[Node]:
    """The nodes that an injection changes: those that its pattern names and its kind fits, in execution order.

    IntvitError for a pattern that names no site, and for a kind that fits none of those that it names.
    """
    with placed("--inject"):
        nodes = select_nodes(graph, [injection.pattern])
    fitting = KINDS[injection.kind].operators()
    found = [node for node in nodes if fitting is None or node.op in fitting]
    if not found:
        raise IntvitError(f"--inject: {_misfit(graph, nodes, injection)}")
    return found


def _misfit(graph: IntGraph, nodes: Sequence[Node], injection: Injection) -> str:
    fitting = sorted(KINDS[injection.kind].operators() or ())
    given = " or ".join(dict.fromkeys(node.op for node in nodes))
    text = f"{injection.pattern}: {injection.kind} must be of {', '.join(fitting)}, not of {given}"
    behind = next((n.name for node in nodes for n in _readers(graph, node) if n.op in fitting), None)
    return f"{text} (behind it stands {behind})" if behind else text


def _readers(graph: IntGraph, node: Node) -> Iterable[Node]:
    """Who reads the output of a node, by way of layout too."""
    for reader in graph.consumers[node.output]:
        yield from _readers(graph, reader) if reader.op in LAYOUT_OPS else (reader,)


def inject(graph: IntGraph, injections: Sequence[Injection], only: str | None = None) -> IntGraph:
    """The graph with every change, or with those at the site `only`: in their order, each on what the one before left.

    Raises IntvitError for a pattern, a kind or a value that does not fit, and for a graph that would not hold.
    """
    draft = Draft.of(graph)
    for injection in injections:
        for node in matched(graph, injection):
            if only in (None, node.name):
                with placed(injection.at(node.name)):
                    KINDS[injection.kind].apply(draft, draft.node(node.name), injection)
    changed = draft.settled([injection.text for injection in injections], only)
    check(changed)
    return changed


@dataclass
class Draft:
    """A graph that is being changed."""

    before: IntGraph
    nodes: list[Node]
    tensors: dict[str, Tensor]
    taken: set[str] = field(default_factory=set)

    @staticmethod
    def of(graph: IntGraph) -> Draft:
        names = {*graph.tensors, *(node.name for node in graph.nodes)}
        return Draft(graph, list(graph.nodes), dict(graph.tensors), names)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def inputs(self, node: Node) -> list[Tensor]:
        return [self.tensors[name] for name in node.inputs]

    def put(self, node: Node, **changes: Any) -> Node:
        """Another node in the place of that of the same name."""
        at = next(i for i, each in enumerate(self.nodes) if each.name == node.name)
        self.nodes[at] = dataclasses.replace(node, **changes)
        return self.nodes[at]

    def behind(self, site: str, **values: Any) -> None:
        """A word behind a site: it makes the tensor that the site, or the word before it, made until now."""
        name = self.before.node(site).output
        at = next(i for i, node in enumerate(self.nodes) if node.output == name)
        raw = self.free(f"{name}.raw")
        self.nodes[at] = dataclasses.replace(self.nodes[at], output=raw)
        self.tensors[raw] = dataclasses.replace(self.tensors[name], name=raw)
        self.nodes.insert(at + 1, Node("word", self.free(f"{site}.word"), (raw,), name, **values))
        self.tensors[name] = word.output_of(self.nodes[at + 1], self.tensors[raw], name)

    def before_input(self, node: Node, position: int, **values: Any) -> None:
        """A word that this node alone reads in the place of one of its inputs."""
        source = node.inputs[position]
        name = self.free(f"{node.name}.input{position}")
        made = Node("word", self.free(f"{node.name}.word"), (source,), name, **values)
        self.tensors[name] = word.output_of(made, self.tensors[source], name)
        at = self.nodes.index(node)
        inputs = tuple(name if i == position else each for i, each in enumerate(node.inputs))
        self.nodes[at : at + 1] = [made, dataclasses.replace(node, inputs=inputs)]

    def free(self, name: str) -> str:
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def settled(self, texts: Sequence[str], only: str | None) -> IntGraph:
        """The graph, its types and bounds behind every change derived anew."""
        tensors = {name: self.before.tensors[name] for name in self.before.inputs}
        was, nodes = dict(self.before.tensors), list[Node]()
        for node in self.nodes:
            inputs, old = ([known[name] for name in node.inputs] for known in (tensors, was))
            output = self.tensors[node.output]
            was.setdefault(node.output, old[0] if node.op == "word" else output)
            if self.before.by_name.get(node.name) is not node or any(
                a is not b for a, b in zip(inputs, old, strict=True)
            ):
                with placed(node.name):
                    node, output = derived(node, inputs, output, old)
            nodes.append(node)
            tensors[node.output] = output
        noted = {"injected": [*self.before.metadata.get("injected", []), *texts]}
        if only is not None:
            noted["injected_at"] = [only]
        metadata = {**self.before.metadata, **noted}
        return Graph(self.before.inputs, self.before.outputs, tuple(nodes), tensors, metadata)


# ------------------------------------------------------------------------------------- types behind a change


def derived(node: Node, inputs: Sequence[Tensor], output: Tensor, old: Sequence[Tensor]) -> tuple[Node, Tensor]:
    """(the node, its output) as its inputs are now; `old`: as they were when the node and `output` were made.

    Types and bounds are those that `lower` would give; scales are left as they stand where those of the inputs are.
    """
    x = inputs[0]
    factors = [np.asarray(new.scale / was.scale) for new, was in zip(inputs, old, strict=True)]
    scaled = any(np.any(factor != 1) for factor in factors)
    if node.op == "word":
        return node, word.output_of(node, x, output.name)
    if node.op in LAYOUT_OPS:
        return node, _moved(node, inputs, output, scaled)
    if node.op == "requantize":
        return refitted(node, inputs, accumulators.numerics_of(node), factors) if scaled else node, output
    if node.op == "linear":
        bound = int(linear_bound(node.arrays["weight"], node.arrays.get("bias"), x.max_abs).max())
        return node, _summed(node, output, bound, output.scale * factors[0] if scaled else output.scale)
    if node.op in PRODUCTS:
        op, scale = matmul.form(*inputs)
        kept = output.scale if op == node.op and not scaled else scale
        return dataclasses.replace(node, op=op), _summed(node, output, matmul.sum_bound(op, *inputs), kept)
    if node.op == "mean":
        scale = x.scale if scaled else output.scale
        return node, dataclasses.replace(output, dtype=x.dtype, bound=x.bound, scale=scale)
    if "method" not in node.attrs:
        raise IntvitError(f"must be an operator whose output is known, not {node.op}")
    if scaled:
        raise IntvitError("its input must keep its scale, and a requantization must stand before it")
    method = node_method(node)
    most = method.bound(method_params(node), x.max_abs, x.shape[-1]) if method.bound else None
    dtype = IntType(64) if most is None else narrowest(most, 8)
    return node, dataclasses.replace(output, dtype=dtype, bound=most)


def _moved(node: Node, inputs: Sequence[Tensor], output: Tensor, scaled: bool) -> Tensor:
    first = inputs[0]
    if any(not np.array_equal(t.scale, first.scale) or t.encoding != first.encoding for t in inputs) or (
        scaled and (node.arrays or np.shape(first.scale) != np.shape(output.scale))
    ):
        raise IntvitError(f"{node.op} must join tensors of one scale")
    constants = [int(np.abs(array).max()) for array in node.arrays.values()]
    bound = max([t.max_abs for t in inputs] + constants)
    dtype = max((t.dtype for t in inputs), key=lambda dtype: dtype.bits)
    if bound > max(t.max_abs for t in inputs):
        dtype = narrowest(bound, dtype.bits)
    return dataclasses.replace(
        output,
        dtype=dtype,
        bound=None if any(t.bound is None for t in inputs) else bound,
        scale=first.scale if scaled else output.scale,
        encoding=first.encoding,
    )


def _summed(node: Node, output: Tensor, bound: int, scale: Array) -> Tensor:
    """An accumulator of sums of at most `bound`."""
    dtype, most = accumulators.word_of(accumulators.numerics_of(node), bound)
    return dataclasses.replace(output, dtype=dtype, bound=most, scale=np.asarray(scale, np.float64))


def refitted(node: Node, inputs: Sequence[Tensor], how: Numerics, factors: Sequence[Array] = ()) -> Node:
    """A requantization with numerics `how`, whose multipliers are the nearest that they have to what stood there.

    `factors`: by which the scales of its inputs have grown.
    """
    arrays, free = dict(node.arrays), addend(node) is not None
    terms = ["", "residual_"] if "residual_m" in arrays and not free else [""]
    ratios = []
    for i, term in enumerate(terms):
        ratio = np.ldexp(signed(node, f"{term}m").astype(np.float64), -signed(node, f"{term}e"))
        ratios.append(ratio * factors[i] if i < len(factors) else ratio)
    most = [t.max_abs for t in inputs] + [int(np.abs(a).max()) for k, a in arrays.items() if k == "residual"]
    if len(terms) == 2 and how.residual == "together":
        m, other, e = dyadic_together(ratios[0], ratios[1], 1.0, how, max(most))
        arrays |= {"m": m, "e": e, "residual_m": other, "residual_e": e}
    else:
        for term, ratio, x_max in zip(terms, ratios, most, strict=False):
            arrays[f"{term}m"], arrays[f"{term}e"] = dyadic(ratio, 1.0, how, x_max)
    return dataclasses.replace(node, attrs=_stating(node, how), arrays=arrays)


def _stating(node: Node, how: Numerics) -> dict[str, Any]:
    rest = {key: value for key, value in node.attrs.items() if key != accumulators.NUMERICS}
    return {**rest, **accumulators.stated(how)}


# ------------------------------------------------------------------------------------- kinds


@dataclass(frozen=True)
class Kind:
    """How a kind of `injections.USAGE` is done. `operators`: those that it fits; None: all."""

    apply: Callable[[Draft, Node, Injection], None]
    operators: Callable[[], frozenset[str] | None] = lambda: None


def _numerics(node: Node, given: Mapping[str, Any]) -> Numerics:
    try:
        return build_numerics({**accumulators.numerics_of(node).stated, **given}, "numerics")
    except IntvitError as error:
        raise IntvitError(str(error).removeprefix("numerics: ")) from None


def _rounding(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows()
    draft.put(node, attrs=_stating(node, _numerics(node, {"rounding": injection.value})))


def _overflow(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows()
    how = _numerics(node, {"output_overflow": injection.value})
    draft.put(node, attrs=_stating(node, how))


def _inner_bits(draft: Draft, node: Node, injection: Injection) -> None:
    """product_bits, rounded_bits: the multiplier stays what it is, whatever its products need."""
    injection.knows("saturate", "wrap")
    name = injection.kind.removesuffix("_bits")
    bits = injection.number(*_limits(injection.kind))
    given = {injection.kind: bits, f"{name}_overflow": injection.one_of(("saturate", "wrap"), "saturate")}
    draft.put(node, attrs=_stating(node, _numerics(node, given)))


def _limits(key: str) -> tuple[int, int]:
    (low,) = (m.ge for m in Numerics.model_fields[key].metadata if hasattr(m, "ge"))
    (high,) = (m.le for m in Numerics.model_fields[key].metadata if hasattr(m, "le"))
    return low, high


def _multiplier_bits(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows()
    how = accumulators.numerics_of(node)
    bits = injection.number(_limits("multiplier_bits")[0], how.multiplier_bits, how.multiplier_bits)
    draft.put(refitted(node, draft.inputs(node), _numerics(node, {"multiplier_bits": bits})))


def _preset(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows()
    if injection.value not in PRESETS:
        raise IntvitError(f"numerics: must be one of {', '.join(PRESETS)}, not {injection.value[:40]!r}")
    draft.put(refitted(node, draft.inputs(node), PRESETS[injection.value].requantizing))


POLICIES = ("saturate", "saturate_end", "wrap", "raise", "prove")


def _accumulator_bits(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows(*POLICIES)
    bits = injection.number(16, 64, draft.tensors[node.output].dtype.bits)
    given = {"accumulator_bits": bits, "accumulator": injection.one_of(POLICIES)}
    draft.put(node, attrs=_stating(node, _numerics(node, given)))


def _output_bits(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows("saturate", "wrap", *INPUTS)
    overflow = injection.one_of(("saturate", "wrap"), "saturate")
    now, zero_point = _word_bits(draft, node, injection), _tensor(draft, node, injection).zero_point
    bits = injection.number(2, now - 1, now)
    if not IntType(bits).min <= zero_point <= IntType(bits).max:
        raise IntvitError(f"output_bits: must leave room for the zero point {zero_point}, and {bits} bits do not")
    _place(draft, node, injection, bits, overflow, {})


INPUTS = ("output", "input", "input0", "input1")


def _tensor(draft: Draft, node: Node, injection: Injection) -> Tensor:
    """Whose words are changed: the output, or the input that a word of the injection names."""
    position = _position(node, injection)
    name = draft.before.node(node.name).output if position is None else node.inputs[position]
    return draft.tensors[name]


def _position(node: Node, injection: Injection) -> int | None:
    chosen = injection.one_of(INPUTS, "output")
    if chosen == "output":
        return None
    position = int(chosen.removeprefix("input") or 0)
    if position >= len(node.inputs):
        raise IntvitError(f"{chosen}: must be one of its {len(node.inputs)} inputs")
    return position


def _word_bits(draft: Draft, node: Node, injection: Injection) -> int:
    """Of the word that a tensor is kept in: its type's, or what log2 codes and -1 need."""
    tensor = _tensor(draft, node, injection)
    if tensor.encoding == "log2":
        return narrowest(tensor.max_abs).bits
    return tensor.dtype.bits


def _bit(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows("stuck0", "stuck1", "flip", *INPUTS)
    how, bits = injection.one_of(("stuck0", "stuck1", "flip")), _word_bits(draft, node, injection)
    k = injection.number(0, bits - 1)
    one = -(1 << k) if k == bits - 1 else 1 << k
    key, mask = {"stuck0": ("keep", ~one), "stuck1": ("force", one), "flip": ("flip", one)}[how]
    _place(draft, node, injection, bits, "wrap", {key: mask})


def _drop_lsb(draft: Draft, node: Node, injection: Injection) -> None:
    injection.knows(*INPUTS)
    bits = _word_bits(draft, node, injection)
    _place(draft, node, injection, bits, "wrap", {"keep": -(1 << injection.number(1, bits - 1))})


def _place(draft: Draft, node: Node, injection: Injection, bits: int, overflow: str, masks: dict[str, int]) -> None:
    """A word at the tensor that an injection names; with an index, masks that touch one element of it."""
    shape, arrays = _tensor(draft, node, injection).shape, dict[str, Array]()
    for key, mask in masks.items():
        if injection.index is None:
            arrays[key] = np.array([mask], np.int64)
        else:
            idle = -1 if key == "keep" else 0
            arrays[key] = np.full(shape or (1,), idle, np.int64)
            arrays[key][_element(injection.index, shape)] = mask
    values: dict[str, Any] = {"attrs": {"bits": bits, "overflow": overflow}, "arrays": arrays}
    position = _position(node, injection)
    if position is None:
        draft.behind(node.name, **values)
    else:
        draft.before_input(node, position, **values)


def _element(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(index) == 1 and len(shape) != 1 and index[0] < math.prod(shape):
        return tuple(map(int, np.unravel_index(index[0], shape)))
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise IntvitError(f"@: must name an element of the shape {_axes(shape)}, as 0,3,17, not {_axes(index)}")
    return index


def _axes(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "()"


def _method(draft: Draft, node: Node, injection: Injection) -> None:
    """Of a norm the bias is kept, as its float weights are not in the graph; of others all constants are made anew."""
    injection.knows(options=True)
    options = _options(injection)
    method = registry.get(node.op, injection.value)
    x, output = draft.inputs(node)[0], draft.tensors[node.output]
    if node.op in operators.norms():
        params, scale = _norm(node, method, output, options)
    else:
        facts = {"out_bits": _softmax_bits(node, method, options), "x_max": x.max_abs, "exp_range_max": None}
        if method.input_scale is not None and float(method.input_scale(float(x.scale))) != float(x.scale):
            raise IntvitError(f"{method.id} must read a scale of {method.input_scale(float(x.scale))}, not {x.scale}")
        if method.longest_row is not None and x.shape[-1] > method.longest_row:
            raise IntvitError(f"{method.id} takes rows of at most {method.longest_row}, not {x.shape[-1]}")
        params, scale = method.constants(float(np.asarray(x.scale)), facts, options)
    mask = {key: array for key, array in node.arrays.items() if key == "mask"}
    made, y = methods.node_of(method, params, node.name, x, node.output, scale, mask)
    draft.put(made)
    shape = np.shape(output.scale)
    if np.shape(y.scale) != shape:
        y = dataclasses.replace(y, scale=np.broadcast_to(y.scale, shape).copy())
    draft.tensors[node.output] = dataclasses.replace(y, source=output.source)


LOG2_BITS, SOFTMAX_BITS = 4, 16
"""Of the output of a softmax whose method had the other encoding."""


def _softmax_bits(node: Node, method: Method, options: dict[str, Any]) -> Any:
    """The width that is asked for, else that of the method that was there, if that is one of this method."""
    if node.op == "softmax" and "out_bits" in options:
        return options.pop("out_bits")
    before, usual = node_method(node), LOG2_BITS if method.out_encoding == "log2" else SOFTMAX_BITS
    params = node.attrs["params"]
    bits = params.get("out_bits", params.get("bits", usual)) if before.out_encoding == method.out_encoding else usual
    return min(max(bits, method.widths[0]), method.widths[1])


def _options(injection: Injection) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in injection.words:
        key, _, value = text.partition("=")
        number = value.removeprefix("-")
        found[key.strip()] = int(value) if number.isascii() and number.isdecimal() and len(number) < 20 else value
    return found


def _norm(node: Node, method: Method, output: Tensor, options: dict[str, Any]) -> tuple[Any, Array]:
    """(constants, scale) of another method of a norm: those that are there, and numbers that the options say."""
    before, wanted = node_method(node), dataclasses.fields(method.params)
    given = {key: getattr(method_params(node), key) for key in _fields(before)} | options
    for key in options.keys() - set(_fields(method)):
        raise IntvitError(f"{key}: must be a constant of {method.id} ({', '.join(_fields(method)) or 'it has none'})")
    if not _alike(before, method):
        raise IntvitError(f"{method.id} has constants of another kind than {before.id}: lower the model with it")
    for key in _fields(method):
        if key not in given:
            raise IntvitError(f"{method.id} needs a {key}, which {before.id} has not: must be followed by {key}=N")
    return method.params(**{each.name: given[each.name] for each in wanted}), output.scale


def _fields(method: Method) -> list[str]:
    return [each.name for each in dataclasses.fields(method.params)]


def _alike(one: Method, two: Method) -> bool:
    """Whether two methods of a norm make the same vectors and scales of the same weights: tried on some."""
    facts = {"gamma": np.array([0.5, -1.75, 3.0]), "beta": np.array([0.25, -1.0, 2.0]), "shift": 0, "factor": None,
             "out_scale": np.float64(0.125)}  # fmt: skip
    made = []
    for method in (one, two):
        params, scale = method.constants(0.0625, facts, {})
        vectors = {key: value for key in _fields(method) if isinstance(value := getattr(params, key), tuple)}
        made.append((vectors, np.asarray(scale).tolist()))
    return made[0] == made[1]


def _of_requantize() -> frozenset[str]:
    return REQUANTIZE


KINDS = {
    "rounding": Kind(_rounding, _of_requantize),
    "overflow": Kind(_overflow, _of_requantize),
    "multiplier_bits": Kind(_multiplier_bits, _of_requantize),
    "product_bits": Kind(_inner_bits, _of_requantize),
    "rounded_bits": Kind(_inner_bits, _of_requantize),
    "numerics": Kind(_preset, _of_requantize),
    "accumulator_bits": Kind(_accumulator_bits, lambda: PRODUCTS),
    "output_bits": Kind(_output_bits),
    "bit": Kind(_bit),
    "drop_lsb": Kind(_drop_lsb),
    "method": Kind(_method, lambda: frozenset(operators.with_methods())),
}
"""By name, as in `injections.USAGE`."""
