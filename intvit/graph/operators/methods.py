"""What all kinds share whose integer forms are methods of the registry: rows in, rows of the same shape out.

`evaluator` is the one dispatch of methods and backends: `ops`, the engine and golden vectors run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import Infeasible, IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import checks
from intvit.graph.operators.kind import Evaluate
from intvit.graph.parameters import method_params, node_method, stated_params
from intvit.graph.ranges import narrowest
from intvit.kernels import registry
from intvit.kernels.method import Method

if TYPE_CHECKING:
    from intvit.lowering.context import Context

Rows = Callable[[Array, Array | None], Array]


def evaluator(method: Method, params: Any, backend: str) -> Rows:
    """A function of int64 rows (R, C) and a bool mask (R, C) or None: int64 (R, C), of the kernel or of the `spec`."""
    if backend == "kernel":
        run = method.kernel(params)
        return lambda rows, hidden: run(rows) if hidden is None else run(rows, hidden)

    def spec(rows: Array, hidden: Array | None) -> Array:
        lists = rows.tolist()
        if hidden is None:
            return integers(method.id, [method.spec(row, params) for row in lists]).reshape(rows.shape)
        pairs = zip(lists, hidden.tolist(), strict=True)
        return integers(method.id, [method.spec(row, params, out) for row, out in pairs]).reshape(rows.shape)

    return spec


def integers(where: str, result: list[Any]) -> Array:
    """What a specification computed, as int64."""
    try:
        return np.array(result, np.int64)
    except OverflowError:
        raise IntvitError(f"{where}: output must fit int64, and does not") from None


def mask_rows(node: Node, shape: tuple[int, ...]) -> Array | None:
    """The mask of a node as contiguous rows of inputs of `shape`, batch included."""
    mask = node.arrays.get("mask")
    if mask is None:
        return None
    return np.ascontiguousarray(np.broadcast_to(mask.astype(np.bool_), shape).reshape(-1, shape[-1]))


def _prepare(node: Node, backend: str) -> Evaluate:
    run = evaluator(node_method(node), method_params(node), backend)

    def evaluate(values: Sequence[Array]) -> Array:
        x = values[0]
        rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.int64)
        return run(rows, mask_rows(node, x.shape)).reshape(x.shape)

    return evaluate


def kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    return _prepare(node, "kernel")


def spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    return _prepare(node, "spec")


def check(node: Node, inputs: Sequence[Tensor], output: Tensor, *, scalars: bool = True) -> None:
    """One input, an output of its shape that holds the method's bound, constants per channel or, if `scalars`, one."""
    checks.count(node, inputs, 1)
    checks.attributes(node, method=str, version=int, params=dict)
    shape = inputs[0].shape
    if not shape:
        raise IntvitError(f"{node.name}: input must have channels")
    method, params = node_method(node), method_params(node)
    for key, array in node.arrays.items():
        if key != "mask" and array.shape not in ((shape[-1],), (1,))[: 1 + scalars]:
            raise IntvitError(f"{node.name}: {key} must be of {shape[-1]} channels, not of shape {array.shape}")
    checks.shape(node, output, shape)
    if output.encoding != method.out_encoding:
        raise IntvitError(f"{node.name}: encoding must be {method.out_encoding}, not {output.encoding}")
    checks.holds(node, output, method.bound(params, inputs[0].max_abs, shape[-1]) if method.bound else None)


def lower(context: Context, node: Node, facts: dict[str, Any], arrays: dict[str, Array] | None = None,
          adapt: Callable[[Method, Any, float], tuple[Any, float]] | None = None) -> None:  # fmt: skip
    """Append `node` with the constants of its method's own `lower`, which takes what it needs of `facts`.

    `arrays`: constants beside those of the method. `adapt` may replace the parameters and the output's scale.
    """
    x, choice = context.value(node.inputs[0]), context.recipe.choice(node.op, node.name)
    method = registry.get(node.op, choice.method)
    if method.longest_row is not None and x.shape[-1] > method.longest_row:
        raise Infeasible(node.name, f"{method.id} takes rows of at most {method.longest_row}, not {x.shape[-1]}")
    try:
        options = context.recipe.options(node.op, node.name)
        params, scale = method.constants(float(np.asarray(x.scale)), facts, options)
    except IntvitError as error:
        raise Infeasible(node.name, str(error)) from None
    if adapt is not None:
        params, scale = adapt(method, params, scale)
    context.emit(*node_of(method, params, node.name, x, node.output, scale, arrays))


def node_of(method: Method, params: Any, name: str, x: Tensor, output: str, scale: Any,
            arrays: dict[str, Array] | None = None) -> tuple[Node, Tensor]:  # fmt: skip
    """The node `name` that applies a method to `x`, and its output: of the narrowest type that its bound allows."""
    scalars, constants = stated_params(params)
    bound = method.bound(params, x.max_abs, x.shape[-1]) if method.bound else None
    dtype = IntType(64) if bound is None else narrowest(bound, 8)
    attrs = {"method": method.name, "version": method.version, "params": scalars}
    node = Node(method.operator, name, (x.name,), output, attrs, {**(arrays or {}), **constants})
    return node, Tensor(output, x.shape, dtype, np.asarray(scale, np.float64), method.out_encoding, bound)
