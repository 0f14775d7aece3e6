"""Where a float graph gets its quantizers, and how wide each is.

The rule is read off the published integer ViT and Swin graphs (I-ViT): operands of products, Softmax and GELU are
narrow, the residual stream is wide, and an accumulator is requantized once, as late as layout moves allow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intvit import registry
from intvit.errors import placed
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, Graph, Node
from intvit.recipe import Recipe

WIDEST_OPERAND = 8
"""Of a product."""
_NARROW_CONSUMERS = frozenset({"linear", "matmul", "softmax", "gelu", "mean"})
_PER_CHANNEL = frozenset({"linear", "layernorm"})
SELF_QUANTIZING = frozenset({"add", "concat", "identity"})
"""These requantize their operands on the way in, so that their output is already narrow."""


_ROUNDED_OUTPUTS = frozenset({"add", "identity", "layernorm"})
"""Operators that need a quantizer even as the last of a graph."""
_MASKED = -50.0


def is_mask(node: Node) -> bool:
    """True for an added constant of zeros and values that no softmax outlives (Swin's -100): a mask, not a number."""
    value = node.arrays.get("value")
    return node.op == "add" and value is not None and bool(np.all((value == 0) | (value < _MASKED)) and np.any(value))


def moves_no_bit(node: Node) -> bool:
    return node.op in LAYOUT_OPS or node.op == "scale" or is_mask(node)


def readers(graph: Graph, name: str) -> Iterator[Node]:
    """Nodes that compute with `name`, looked up through layout moves, `scale` and masks, which move no bit."""
    for node in graph.consumers[name]:
        if moves_no_bit(node):
            yield from readers(graph, node.output)
        else:
            yield node


def quantizer_site(graph: Graph, node: Node) -> str:
    """The tensor at which the output of `node` is requantized: the last one before it is used or branches."""
    name, per_channel = node.output, node.op in _PER_CHANNEL
    while len(graph.consumers[name]) == 1:
        (after,) = graph.consumers[name]
        if after.op == "scale":
            name = after.output
            continue
        if after.op not in LAYOUT_OPS or len(after.inputs) != 1 or after.arrays:
            break
        before_shape, after_shape = graph.tensors[name].shape, graph.tensors[after.output].shape
        if per_channel and not layout.keeps_channels(after, before_shape, after_shape):
            break
        name = after.output
    return name


def feeds_narrow(graph: Graph, name: str) -> bool:
    """True if a narrow operator reads `name`, directly or as a term of a sum: terms are as wide as their sum."""
    for node in graph.consumers[name]:
        if node.op in _NARROW_CONSUMERS:
            return True
        if (moves_no_bit(node) or node.op == "add") and feeds_narrow(graph, node.output):
            return True
    return False


def joins_quantizers(graph: Graph, node: Node) -> bool:
    """True for a concat whose inputs are rounded at different sites: it needs a range of its own for all of them."""
    return node.op == "concat" and len({_origin(graph, name) for name in node.inputs}) > 1


def _origin(graph: Graph, name: str) -> str:
    """The tensor that single-input layout moves made `name` of."""
    node = graph.by_output.get(name)
    while node is not None and node.op in LAYOUT_OPS and (len(node.inputs) == 1 or not joins_quantizers(graph, node)):
        name = node.inputs[0]
        node = graph.by_output.get(name)
    return name


def quantizer_bits(graph: Graph, recipe: Recipe) -> dict[str, int]:
    """Width of every activation quantizer, by the name of the float tensor that it rounds."""
    widths: dict[str, int] = dict.fromkeys(graph.inputs, recipe.bits)
    for node in graph.nodes:
        if joins_quantizers(graph, node):
            widths[node.output] = recipe.bits if feeds_narrow(graph, node.output) else recipe.residual_bits
        if moves_no_bit(node):
            continue
        consumers = {reader.op for reader in readers(graph, node.output)}
        if not consumers and node.op not in _ROUNDED_OUTPUTS:  # the logits: raw accumulators
            continue
        if node.op == "softmax" and consumers == {"matmul"}:  # feeds the product as it is
            continue
        site = node.output if node.op in SELF_QUANTIZING else quantizer_site(graph, node)
        narrow = feeds_narrow(graph, node.output) or (node.op == "linear" and "layernorm" in consumers)
        if node.op == "layernorm":
            with placed(node.name):
                method = registry.get(node.op, recipe.choice(node.op, node.name).method)
            narrow = narrow or method.widths[1] <= WIDEST_OPERAND
        widths[site] = recipe.bits if narrow else recipe.residual_bits
    return widths
