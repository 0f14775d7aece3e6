"""Where a float graph gets its quantizers, and how wide each is.

The rule is read off the published integer ViT and Swin graphs (I-ViT): operands of products, Softmax and GELU are
narrow, the residual stream is wide, and an accumulator is requantized once, as late as layout moves allow. What an
operator asks of its own quantizers stands with its kind, in `operators`.
"""

from __future__ import annotations

from collections.abc import Iterator

from intvit.errors import IntvitError, placed
from intvit.graph import layout, operators
from intvit.graph.ir import LAYOUT_OPS, FloatGraph, Node
from intvit.kernels import registry
from intvit.lowering.recipe import Recipe

WIDEST_OPERAND = 8
"""Of a product."""
UNREAD = 99


def moves_no_bit(node: Node) -> bool:
    kind = operators.get(node.op)
    return kind is not None and kind.still(node)


def is_site(graph: FloatGraph, node: Node) -> bool:
    """True for a node that computes, or rounds what it joins: what a recipe may state quantizers of."""
    return not moves_no_bit(node) or joins_quantizers(graph, node)


def readers(graph: FloatGraph, name: str) -> Iterator[Node]:
    """Sites that read `name`, looked up through layout moves, `scale` and masks, which move no bit."""
    for node in graph.consumers[name]:
        if is_site(graph, node):
            yield node
        else:
            yield from readers(graph, node.output)


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


def asked(graph: FloatGraph, recipe: Recipe) -> dict[str, int]:
    """Tensor -> the least width that an operator which reads it asks for, directly or as a term of a sum.

    Terms are as wide as their sum, and parts as what they form. A tensor that nobody reads has none.
    """
    found: dict[str, int] = {}
    narrow = operators.named("narrow_input")
    for node in reversed(graph.nodes):
        if moves_no_bit(node) or node.op == "add":
            wanted = found.get(node.output, UNREAD)
        else:
            wanted = recipe.bits if node.op in narrow else recipe.residual_bits
        if is_site(graph, node) and node.op != "add":
            wanted = recipe.quantizer(node.op, node.name).input_bits or wanted
        for name in node.inputs if wanted < UNREAD else ():
            found[name] = min(wanted, found.get(name, UNREAD))
    return found


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
    norms = operators.norms()
    least = asked(graph, recipe)
    widths = {name: min(recipe.bits, least.get(name, recipe.bits)) for name in graph.inputs}
    for node in graph.nodes:
        wanted = least.get(node.output, recipe.residual_bits)
        if joins_quantizers(graph, node):
            widths[node.output] = recipe.quantizer(node.op, node.name).output_bits or wanted
        if moves_no_bit(node):
            continue
        consumers = {reader.op for reader in readers(graph, node.output)}
        if not consumers and node.op not in operators.named("rounded_output"):  # the logits: raw accumulators
            continue
        if node.op == "softmax" and consumers <= {"matmul", "concat"}:  # feeds them as it is
            continue
        itself = node.op in operators.named("self_quantizing")
        site = node.output if itself else quantizer_site(graph, node)
        if node.op == "linear" and not norms.isdisjoint(consumers) and not _stated(graph, recipe, node):
            wanted = min(wanted, recipe.bits)  # the norms behind patches and merged patches
        if node.op in norms:
            with placed(node.name):
                method = registry.get(node.op, recipe.choice(node.op, node.name).method)
            if method.widths[1] <= WIDEST_OPERAND:
                wanted = min(wanted, recipe.bits)
        widths[site] = recipe.quantizer(node.op, node.name).output_bits or wanted
    return widths


def has_zero_point(graph: FloatGraph, recipe: Recipe, name: str) -> bool:
    """True if every operator that reads `name` takes a zero point, and the recipe gives it one."""
    found = list(readers(graph, name))
    return bool(found) and all(recipe.quantizer(reader.op, reader.name).zero_point for reader in found)


def check_quantizers(graph: FloatGraph, recipe: Recipe) -> None:
    """IntvitError unless what the recipe states of quantizers is of sites or kinds that can have it."""
    computing = [node for node in graph.nodes if is_site(graph, node)]
    products = operators.named("product")
    for name, stated in recipe.quantizers.items():
        nodes = [node for node in computing if name in (node.op, node.name)]
        if not nodes and operators.get(name) is None:
            raise IntvitError(f"{name}: quantizers must be of a site of the model or of a kind of operator")
        for node in nodes:
            if node.op != "linear" and (stated.weight_bits or stated.zero_point or stated.weight_clip):
                rule = "weight_bits, weight_clip and zero_point must be of linear operators"
                raise IntvitError(f"{name}: {rule}, not of {node.op}")
            if node.op not in operators.norms() and stated.equalize is not None:
                raise IntvitError(f"{name}: equalize must be of norms, not of {node.op}")
            if node.op in products and (stated.input_bits or 0) > WIDEST_OPERAND:
                raise IntvitError(f"{name}: input_bits must be at most {WIDEST_OPERAND} here, not {stated.input_bits}")
    for node in computing:
        bits = recipe.quantizer(node.op, node.name).output_bits or 0
        for reader in readers(graph, node.output) if bits > WIDEST_OPERAND and node.op != "softmax" else ():
            if reader.op in products:
                rule = f"at most {WIDEST_OPERAND}, as {reader.name} multiplies"
                raise IntvitError(f"{node.name}: output_bits must be {rule}, not {bits}")


def _stated(graph: FloatGraph, recipe: Recipe, node: Node) -> bool:
    """True if the recipe says how wide what reads `node` takes it."""
    return any(recipe.quantizer(reader.op, reader.name).input_bits for reader in readers(graph, node.output))
