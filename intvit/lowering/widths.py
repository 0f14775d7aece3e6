"""Where a float graph gets its quantizers, and how wide each is.

The rule is read off the published integer ViT and Swin graphs (I-ViT): operands of products, Softmax and GELU are
narrow, the residual stream is wide, and an accumulator is requantized once, as late as layout moves allow. What an
operator asks of its own quantizers stands with its kind, in `operators`.
"""

from __future__ import annotations

from collections.abc import Iterator

from intvit.errors import placed
from intvit.graph import layout, operators
from intvit.graph.ir import LAYOUT_OPS, FloatGraph, Node
from intvit.kernels import registry
from intvit.lowering.recipe import Recipe

WIDEST_OPERAND = 8
"""Of a product."""


def moves_no_bit(node: Node) -> bool:
    kind = operators.get(node.op)
    return kind is not None and kind.still(node)


def readers(graph: FloatGraph, name: str) -> Iterator[Node]:
    """Nodes that compute with `name`, looked up through layout moves, `scale` and masks, which move no bit."""
    for node in graph.consumers[name]:
        if moves_no_bit(node):
            yield from readers(graph, node.output)
        else:
            yield node


def quantizer_site(graph: FloatGraph, node: Node) -> str:
    """The tensor at which the output of `node` is requantized: the last one before it is used or branches."""
    name, per_channel = node.output, node.op in operators.named("per_channel")
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


def feeds_narrow(graph: FloatGraph, name: str) -> bool:
    """True if a narrow operator reads `name`, directly or as a term of a sum: terms are as wide as their sum."""
    for node in graph.consumers[name]:
        if node.op in operators.named("narrow_input"):
            return True
        if (moves_no_bit(node) or node.op == "add") and feeds_narrow(graph, node.output):
            return True
    return False


def joins_quantizers(graph: FloatGraph, node: Node) -> bool:
    """True for a concat whose inputs are rounded at different sites: it needs a range of its own for all of them."""
    return node.op == "concat" and len({_origin(graph, name) for name in node.inputs}) > 1


def _origin(graph: FloatGraph, name: str) -> str:
    """The tensor that single-input layout moves made `name` of."""
    node = graph.by_output.get(name)
    while node is not None and node.op in LAYOUT_OPS and (len(node.inputs) == 1 or not joins_quantizers(graph, node)):
        name = node.inputs[0]
        node = graph.by_output.get(name)
    return name


def quantizer_bits(graph: FloatGraph, recipe: Recipe) -> dict[str, int]:
    """Width of every activation quantizer, by the name of the float tensor that it rounds."""
    norms = operators.named("per_channel").intersection(operators.with_methods())
    widths: dict[str, int] = dict.fromkeys(graph.inputs, recipe.bits)
    for node in graph.nodes:
        if joins_quantizers(graph, node):
            widths[node.output] = recipe.bits if feeds_narrow(graph, node.output) else recipe.residual_bits
        if moves_no_bit(node):
            continue
        consumers = {reader.op for reader in readers(graph, node.output)}
        if not consumers and node.op not in operators.named("rounded_output"):  # the logits: raw accumulators
            continue
        if node.op == "softmax" and consumers == {"matmul"}:  # feeds the product as it is
            continue
        itself = node.op in operators.named("self_quantizing")
        site = node.output if itself else quantizer_site(graph, node)
        narrow = feeds_narrow(graph, node.output) or (node.op == "linear" and not norms.isdisjoint(consumers))
        if node.op in norms:
            with placed(node.name):
                method = registry.get(node.op, recipe.choice(node.op, node.name).method)
            narrow = narrow or method.widths[1] <= WIDEST_OPERAND
        widths[site] = recipe.bits if narrow else recipe.residual_bits
    return widths
