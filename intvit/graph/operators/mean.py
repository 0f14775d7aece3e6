"""The mean over one axis, rounded; its scale is that of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import accumulators, checks
from intvit.graph.operators.kind import Evaluate, Operator

if TYPE_CHECKING:
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context


def _read(r: Reader, node: Any) -> None:
    attrs, shape = r.attributes(node), r.shape(node.input[0])
    axes = r.integers(node, 1) if len(node.input) > 1 and node.input[1] else []
    if len(axes) != 1:
        raise IntvitError(f"{node.name}: ReduceMean must name one axis, not {axes}")
    axis = r.inner_axis(node, axes[0])
    kept = (1,) if attrs.get("keepdims", 1) else ()
    after = (*shape[:axis], *kept, *shape[axis + 1 :])
    r.emit("mean", node, (node.input[0],), after, attrs={"axis": axis, "keepdims": bool(kept)})


def _lower(context: Context, node: Node) -> None:
    x = context.value(node.inputs[0])
    accumulators.proven(context, node, x.shape[node.attrs["axis"]] * x.max_abs)
    output = Tensor(node.output, context.graph.tensors[node.output].shape, x.dtype, x.scale, bound=x.bound)
    context.emit(Node("mean", node.name, (x.name,), node.output, node.attrs), output)


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.count(node, inputs, 1)
    checks.attributes(node, axis=int, keepdims=bool)
    checks.arrays(node, set())
    shape, axis = inputs[0].shape, node.attrs["axis"]
    if not 0 <= axis < len(shape):
        raise IntvitError(f"{node.name}: axis must lie in 0..{len(shape) - 1}, not {axis}")
    checks.shape(node, output, (*shape[:axis], *((1,) if node.attrs["keepdims"] else ()), *shape[axis + 1 :]))
    checks.keeps(node, inputs[0], output)


def _along(node: Node, over_last: Callable[[Array], Array]) -> Evaluate:
    """A backend's mean over the last axis, along the axis of a node."""
    axis, keepdims = node.attrs["axis"] + 1, node.attrs["keepdims"]

    def run(values: Sequence[Array]) -> Array:
        y = over_last(np.moveaxis(values[0], axis, -1))
        return np.expand_dims(y, axis) if keepdims else y

    return run


def _kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.pool import mean

    return _along(node, lambda moved: mean(moved, -1))


def _spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.pool import mean

    def over_last(moved: Array) -> Array:
        rows = moved.reshape(-1, moved.shape[-1]).tolist()
        return np.array([mean(row) for row in rows], np.int64).reshape(moved.shape[:-1])

    return _along(node, over_last)


MEAN = Operator(
    "mean", reads={"ReduceMean": _read}, lower=_lower, check=_check, kernel=_kernel, spec=_spec, narrow_input=True
)  # fmt: skip
