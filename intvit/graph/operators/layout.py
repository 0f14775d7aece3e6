"""Layout: reshape, transpose, take, slice, concat. The same moves in float and integer graphs; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.graph import layout
from intvit.graph.ir import MOST_ELEMENTS, Node, Tensor
from intvit.graph.operators import checks
from intvit.graph.operators.kind import Evaluate, Operator
from intvit.graph.ranges import narrowest

if TYPE_CHECKING:
    from intvit.lowering.context import Context

_ATTRIBUTES: dict[str, dict[str, type]] = {
    "reshape": {"shape": list},
    "transpose": {"perm": list},
    "take": {"axis": int, "index": int},
    "slice": {"axis": int, "start": int, "stop": int, "step": int},
    "concat": {"axis": int, "order": list},
}


def _lower(context: Context, node: Node) -> None:
    inputs = [context.value(name) for name in node.inputs]
    for tensor in inputs if node.arrays else ():
        context.must_be_linear(tensor, node.name)
    if context.joins_quantizers(node):
        inputs = _to_one_scale(context, node, inputs)
    elif any(np.size(t.scale) > 1 for t in inputs) and not _keeps_channels(node, inputs):
        inputs = [
            context.even_out(f"{node.output}.in{i}", raw, source=name)
            for i, (name, raw) in enumerate(zip(node.inputs, inputs, strict=True))
        ]
    first = inputs[0]
    if any(not np.array_equal(t.scale, first.scale) or t.encoding != first.encoding for t in inputs) or (
        len({t.zero_point for t in inputs}) > 1
    ):
        raise IntvitError(f"{node.name}: {node.op} must join tensors of one scale")
    arrays, bound = {}, max(t.max_abs for t in inputs)
    for key, part in node.arrays.items():
        arrays[key] = np.rint(part.astype(np.float64) / first.scale).astype(np.int64) + first.zero_point
        bound = max(bound, int(np.abs(arrays[key]).max()))
    dtype = first.dtype if bound <= first.max_abs else narrowest(bound, first.dtype.bits)
    moved = Node(node.op, node.name, tuple(t.name for t in inputs), node.output, node.attrs, arrays)
    shape = layout.output_shape(moved, [t.shape for t in inputs])
    context.emit(
        moved,
        Tensor(node.output, shape, dtype, first.scale, first.encoding, first.bound and bound,
               zero_point=first.zero_point),
    )  # fmt: skip


def _keeps_channels(node: Node, inputs: list[Tensor]) -> bool:
    shapes = [tensor.shape for tensor in inputs]
    return layout.keeps_channels(node, shapes[0], layout.output_shape(node, shapes))


def _to_one_scale(context: Context, node: Node, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs of a concat, each requantized to the range of what they form."""
    to = context.quantizer(node.output)
    for i, raw in enumerate(inputs):
        context.requantize(
            f"{node.output}.in{i}", raw, to.bits, to.scale, source=node.inputs[i], zero_point=to.zero_point
        )
    return [context.tensors[f"{node.output}.in{i}"] for i in range(len(inputs))]


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.attributes(node, **_ATTRIBUTES[node.op])
    checks.arrays(node, {key for key in node.attrs.get("order", []) if isinstance(key, str)})
    order = node.attrs.get("order", [0])
    if sorted(item for item in order if not isinstance(item, str)) != list(range(len(inputs))) or (
        any(type(item) not in (int, str) for item in order) or len(set(order)) < len(order)
    ):
        raise IntvitError(f"{node.name}: {node.op} must take each of its {len(inputs)} inputs once")
    numbers = [v for value in node.attrs.values() for v in (value if isinstance(value, list) else [value])]
    if node.op != "concat" and any(type(v) is not int or abs(v) >= MOST_ELEMENTS for v in numbers):
        raise IntvitError(f"{node.name}: {node.op} must have integer attributes, not {dict(node.attrs)!r:.80}")
    rank, axis = len(inputs[0].shape), node.attrs.get("axis", 0)
    if not 0 <= axis < max(rank, 1) or min(node.attrs.get("perm", [0]), default=0) < 0:
        raise IntvitError(f"{node.name}: {node.op} must name axes in 0..{rank - 1}, not {dict(node.attrs)!r:.80}")
    if min(node.attrs.get("shape", [1]), default=1) < 1 or node.attrs.get("index", 0) < 0:
        raise IntvitError(f"{node.name}: {node.op} must have positive sizes, not {dict(node.attrs)!r:.80}")
    try:
        found = layout.output_shape(node, [t.shape for t in inputs])
    except (ValueError, IndexError, TypeError) as error:
        raise IntvitError(f"{node.name}: {node.op} must fit its input shapes: {reason(error)}") from None
    checks.shape(node, output, found)
    for tensor in inputs:
        if tensor.encoding != output.encoding:
            raise IntvitError(f"{node.name}: encoding must stay {tensor.encoding}, not {output.encoding}")
        if tensor.zero_point != output.zero_point:
            raise IntvitError(f"{node.name}: zero_point must stay {tensor.zero_point}, not {output.zero_point}")
        checks.keeps(node, tensor, output)
    for key, array in node.arrays.items():
        checks.values(node, key, -output.max_abs, min(output.max_abs, output.dtype.max), (array.shape,))


def _prepare(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    return lambda values: layout.apply(node, values)


def _move(name: str, **values: Any) -> Operator:
    return Operator(
        name,
        lower=_lower,
        check=_check,
        kernel=_prepare,
        spec=_prepare,
        still=lambda node: True,
        log2_inputs=-1,
        takes=frozenset({"zero_point"}),
        **values,
    )


RESHAPE, TRANSPOSE, TAKE, SLICE = (_move(name) for name in ("reshape", "transpose", "take", "slice"))
CONCAT = _move("concat", self_quantizing=True)
