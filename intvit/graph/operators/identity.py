"""A second rounding of a value, as the published networks have it before some norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intvit.graph.ir import Node
from intvit.graph.operators.activation import read
from intvit.graph.operators.kind import Operator

if TYPE_CHECKING:
    from intvit.lowering.context import Context


def _lower(context: Context, node: Node) -> None:
    bits = context.widths[node.output]
    context.requantize(node.output, context.value(node.inputs[0]), bits, context.range_scale(node.output, bits))
    context.values[node.output] = node.output


IDENTITY = Operator(
    "identity", reads={"Identity": read("identity")}, lower=_lower, self_quantizing=True, rounded_output=True
)  # fmt: skip
