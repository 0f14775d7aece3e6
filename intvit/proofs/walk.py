"""`prove`: the rules of every operator, node by node, on the proven intervals of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, IntGraph, Node, Tensor
from intvit.graph.operators.accumulators import NUMERICS, numerics_of
from intvit.graph.operators.methods import mask_rows
from intvit.graph.operators.requantize import signed
from intvit.graph.parameters import method_params, node_method
from intvit.proofs import activations, datapath, norms, products, rounding, softmax
from intvit.proofs.claims import DECLARED, OPEN, Claim, Clamp, Facts, Note, NotProven, Proof, Tie
from intvit.proofs.intervals import Box, Interval, box, hull

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Known:
    """What is proven of a tensor: its box, and of codes or weights of a softmax a bound of the sum of a row."""

    box: Box
    row_sum: int | None = None


@dataclass(frozen=True)
class Site:
    """What the rules of a method see."""

    params: Any
    x: Box
    n: int
    hidden: frozenset[int]
    spec: Callable[..., list[int]]


Rules = Mapping[str, Callable[[Site], Facts]]
"""Method id -> its rule."""
RULES: Rules = {
    "softmax.ivit.v1": lambda s: softmax.ivit(s.params, s.x.hull, s.n, s.hidden),
    "softmax.ibert.v1": lambda s: softmax.ibert(s.params, s.x.hull, s.n, s.hidden),
    "softmax.fqvit.v1": lambda s: softmax.fqvit(s.params, s.x.hull, s.n, s.hidden),
    "softmax.ivit_tvm.v1": lambda s: softmax.ivit_tvm(s.params, s.x.hull, s.n, s.hidden),
    "gelu.ivit.v1": lambda s: activations.ivit(s.params, s.x.hull, s.spec),
    "silu.ivit.v1": lambda s: activations.ivit(s.params, s.x.hull, s.spec),
    "quick_gelu.ivit.v1": lambda s: activations.ivit(s.params, s.x.hull, s.spec),
    "gelu.ibert.v1": lambda s: activations.ibert(s.params, s.x.hull),
    "silu.ibert.v1": lambda s: activations.sigmoid_ibert(s.params, s.x.hull, s.spec),
    "quick_gelu.ibert.v1": lambda s: activations.sigmoid_ibert(s.params, s.x.hull, s.spec),
    "gelu.ivit_tvm.v1": lambda s: activations.ivit_tvm(s.params, s.x.hull),
    "layernorm.ivit.v1": lambda s: norms.ivit(s.params, s.x, s.n),
    "layernorm.ibert.v1": lambda s: norms.ibert(s.params, s.x, s.n),
    "layernorm.fqvit.v1": lambda s: norms.fqvit(s.params, s.x, s.n),
    "layernorm.ivit_tvm.v1": lambda s: norms.ivit_tvm(s.params, s.x, s.n),
    "rmsnorm.ivit.v1": lambda s: norms.rms_ivit(s.params, s.x, s.n),
    "rmsnorm.ibert.v1": lambda s: norms.rms_ibert(s.params, s.x, s.n),
}
"""Of the methods of this package, pinned to their versions: another version, or a method of others, has no rule."""


def declared(tensor: Tensor) -> Box:
    """What type and bound of a tensor allow."""
    low, high = tensor.dtype.min, tensor.dtype.max
    if tensor.bound is not None:
        low, high = max(low, -tensor.bound), min(high, tensor.bound)
    return Box((low,), (high,))


def prove(
    graph: IntGraph, *, rules: Rules | None = None, datapaths: bool = True, progress: Progress | None = None
) -> Proof:
    """Intervals, ties, clamps and notes of every node of a checked graph, of methods by `rules`, or else by `RULES`.

    The output of a method without a rule is taken as the graph declares it, and without `datapaths` that of a
    requantization with numerics of its own.
    """
    known = {name: Known(declared(graph.tensors[name])) for name in graph.inputs}
    claims, ties, clamps, notes = list[Claim](), list[Tie](), list[Clamp](), list[Note]()
    unproven: dict[str, str] = {}
    for i, node in enumerate(graph.nodes):
        inputs, output = [known[name] for name in node.inputs], graph.tensors[node.output]
        tensors = [graph.tensors[name] for name in node.inputs]
        if node.op in LAYOUT_OPS:
            known[node.output] = moved(node, inputs, tensors, output)
        else:
            operator = operator_of(node)
            every = RULES if rules is None else rules
            facts = facts_of(node, inputs, tensors, output, every, unproven, datapaths=datapaths)
            how = facts.y_how
            if facts.y is None:
                facts.y, how = declared(output), DECLARED
            else:
                facts.y = within(node, facts.y, declared(output))
            known[node.output] = Known(facts.y, facts.row_sum)
            claims += _claims(node.name, operator, facts, how, output)
            ties += [Tie(node.name, operator, *values) for values in facts.ties]
            clamps += [Clamp(node.name, operator, *values) for values in facts.clamps]
            notes += [Note(node.name, operator, text) for text in dict.fromkeys(facts.notes)]
        if progress:
            progress(i + 1, len(graph.nodes))
    boxes = {name: each.box for name, each in known.items()}
    return Proof(graph.content_hash, tuple(claims), tuple(ties), tuple(clamps), tuple(notes), unproven, boxes)


def within(node: Node, y: Box, word: Box) -> Box:
    """What is proven here and, by `graph.check`, of the declared bound; what passes s64 an engine refuses."""
    limits = word.hull
    if y.hull in limits:
        return y
    if any(y[c].low > limits.high or y[c].high < limits.low for c in range(len(y))):
        raise AssertionError(f"{node.name}: the proven {y.hull} must meet the declared {limits}")
    return box(y[c] & limits for c in range(len(y)))


def operator_of(node: Node) -> str:
    """`linear`, or the id of a method."""
    return node_method(node).id if "method" in node.attrs else node.op


def _claims(site: str, operator: str, facts: Facts, how: str, output: Tensor) -> list[Claim]:
    assert facts.y is not None
    whole = facts.y.hull
    found = [
        Claim(site, operator, name, interval, kind, None, facts.witnesses.get(name))
        for name, (interval, kind) in facts.signals.items()
    ]
    return [*found, Claim(site, operator, "y", whole, how, output.dtype.bits, facts.witnesses.get("y"))]


def moved(node: Node, inputs: list[Known], tensors: list[Tensor], output: Tensor) -> Known:
    """Of a layout operator: channels stay channels, or one interval holds them all."""
    constants = [node.arrays[key] for key in sorted(node.arrays)]
    if not layout.keeps_channels(node, tensors[0].shape, output.shape):
        parts = [each.box.hull for each in inputs]
        parts += [Interval(int(array.min()), int(array.max())) for array in constants]
        whole = hull(parts)
        return Known(Box((whole.low,), (whole.high,)))
    boxes = [each.box for each in inputs]
    for array in constants:
        flat = array.reshape(-1, array.shape[-1]).astype(object)
        boxes.append(Box(tuple(flat.min(axis=0).tolist()), tuple(flat.max(axis=0).tolist())))
    sums = [each.row_sum for each in inputs]
    known_sums = [each for each in sums if each is not None]
    row_sum = max(known_sums) if len(known_sums) == len(sums) and not constants else None
    if len(boxes) == 1:
        return Known(boxes[0], row_sum)
    channels = max(map(len, boxes))
    ends = [box.over(channels) for box in boxes]
    low = tuple(min(each) for each in zip(*(low for low, _ in ends), strict=True))
    high = tuple(max(each) for each in zip(*(high for _, high in ends), strict=True))
    return Known(Box(low, high), row_sum)


def facts_of(node: Node, inputs: list[Known], tensors: list[Tensor], output: Tensor, rules: Rules,
             unproven: dict[str, str], *, datapaths: bool = True) -> Facts:  # fmt: skip
    x = inputs[0].box
    if node.op == "linear":
        return accumulated(node, products.linear(x, node.arrays["weight"], node.arrays.get("bias")), output)
    if node.op in ("matmul", "log2_matmul"):
        product = products.matmul if node.op == "matmul" else products.log2_matmul
        facts = product(x.hull, inputs[1].box.hull, tensors[0].shape[-1], inputs[0].row_sum)
        return accumulated(node, facts, output)
    if node.op == "mean":
        axis, shape = node.attrs["axis"], tensors[0].shape
        return products.mean(x, shape[axis], axis == len(shape) - 1)
    if node.op == "requantize" and (datapaths or NUMERICS not in node.attrs):
        extra = {key: signed(node, key) for key in ("residual_m", "residual_e") if key in node.arrays}
        residual = signed(node, "residual") if "residual" in node.arrays else inputs[1].box if extra else None
        m, e, bits = signed(node, "m"), signed(node, "e"), node.attrs["bits"]
        if NUMERICS in node.attrs:
            return datapath.requantize(x, m, e, bits, numerics_of(node), residual, **extra)
        return rounding.requantize(x, m, e, bits, residual, **extra)
    if "method" in node.attrs:
        return method_facts(node, x, tensors[0], rules, unproven)
    unproven[node.name] = f"no rule for {node.op} with {dict(node.attrs)!r:.120} is known"
    return Facts()


def accumulated(node: Node, facts: Facts, output: Tensor) -> Facts:
    """The output is the sum itself, unless the node says what its accumulator does and its words may be too narrow."""
    if NUMERICS in node.attrs and output.bound is None:
        word = declared(output).hull
        assert facts.y is not None
        facts.clamps.append(("accumulator", facts.y.hull, word, OPEN, ""))
        facts.y, facts.y_how = declared(output), DECLARED
        facts.witnesses.pop("y", None)
    return facts


def method_facts(node: Node, x: Box, tensor: Tensor, rules: Rules, unproven: dict[str, str]) -> Facts:
    """By the rule of a method; nothing where there is none."""
    method = node_method(node)
    rule = rules.get(method.id)
    if rule is None:
        unproven[node.name] = f"no rule for {method.id} is known"
        return Facts()
    mask = mask_rows(node, (1, *tensor.shape))
    hidden = frozenset({0} if mask is None else np.unique(mask.sum(axis=1)).tolist())
    try:
        return rule(Site(method_params(node), x, tensor.shape[-1], hidden, method.spec))
    except NotProven as error:
        unproven[node.name] = str(error)
        return Facts()
