"""Products of two activations (..., R, K) and (..., K, C); with log2 codes on the left, of powers of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import accumulators, checks
from intvit.graph.operators.kind import Evaluate, Operator
from intvit.graph.operators.methods import integers
from intvit.kernels.matmul import INT32_MAX, LOG2_LIFT, log2_matmul_codes, log2_weights, matmul
from intvit.spec.matmul import LOG2_FRACTION_BITS
from intvit.spec.matmul import log2_matmul as spec_log2_matmul
from intvit.spec.matmul import matmul as spec_matmul

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context

UNSIGNED_LIFT = 1 << 15


def _read(r: Reader, node: Any) -> None:
    a, b = node.input
    left = r.shape(a)
    if b in r.constants:
        weight = r.constant(node, 1, "f", (left[-1], None)).T
        r.emit("linear", node, (a,), (*left[:-1], len(weight)), arrays={"weight": weight})
        return
    right = r.shape(b)
    if len(left) < 2 or len(left) != len(right) or left[-1] != right[-2] or left[:-2] != right[:-2]:
        raise IntvitError(f"{node.name}: MatMul shapes must agree, not {left} and {right}")
    r.emit("matmul", node, (a, b), (*left[:-1], right[-1]))


def _lower(context: Context, node: Node) -> None:
    a, b = (context.value(name) for name in node.inputs)
    context.must_be_linear(b, node.name)
    op, scale = form(a, b)
    attrs, dtype, most = accumulators.lowered(context, node, sum_bound(op, a, b))
    output = Tensor(node.output, (*a.shape[:-1], b.shape[-1]), dtype, scale, bound=most)
    context.emit(Node(op, node.name, (a.name, b.name), node.output, attrs), output)


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.count(node, inputs, 2)
    checks.arrays(node, set())
    a, b = inputs
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise IntvitError(f"{node.name}: operands must be (..., R, K) and (..., K, C), not {a.shape} and {b.shape}")
    checks.shape(node, output, (*a.shape[:-1], b.shape[-1]))
    if node.op == "log2_matmul" and a.max_abs > LOG2_FRACTION_BITS:
        raise IntvitError(f"{node.name}: codes must be at most {LOG2_FRACTION_BITS}, not {a.max_abs}")
    accumulators.check(node, output, sum_bound(node.op, a, b))


def form(a: Tensor, b: Tensor) -> tuple[str, Array]:
    """(operator, scale of its output) of a product of two tensors."""
    if a.encoding == "log2":
        return "log2_matmul", b.scale * 2.0**-LOG2_FRACTION_BITS
    return "matmul", a.scale * b.scale


def sum_bound(op: str, a: Tensor, b: Tensor) -> int:
    """The largest sum of products of two tensors."""
    return a.shape[-1] * (1 << LOG2_FRACTION_BITS if op == "log2_matmul" else a.max_abs) * b.max_abs


def _kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    a_max, b_max = inputs[0].max_abs, inputs[1].max_abs

    def exact(values: Sequence[Array]) -> Array:
        return matmul(values[0], values[1], a_max=a_max, b_max=b_max)

    if accumulators.may_act(node, sum_bound(node.op, *inputs)):
        return accumulators.by_kernel(node, exact, tuple)
    return exact


def _spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    if accumulators.may_act(node, sum_bound(node.op, *inputs)):
        return cast(Evaluate, accumulators.by_spec(node, tuple))
    return lambda values: _nested("matmul", spec_matmul, *values)


def _weights(values: Sequence[Array]) -> tuple[Array, Array]:
    """Codes as the powers of two that they stand for."""
    codes = values[0].astype(np.int64)
    return np.where(codes < 0, 0, 1 << np.maximum(LOG2_FRACTION_BITS - codes, 0)), values[1]


def _log2_kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    def exact(values: Sequence[Array]) -> Array:
        return log2_product(values[0], values[1], "kernel")

    if accumulators.may_act(node, sum_bound(node.op, *inputs)):
        return accumulators.by_kernel(node, exact, _weights)
    return exact


def _log2_spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    if accumulators.may_act(node, sum_bound(node.op, *inputs)):
        return cast(Evaluate, accumulators.by_spec(node, _weights))
    return lambda values: log2_product(values[0], values[1], "spec")


def log2_product(codes: Array, values: Array, backend: str) -> Array:
    """Codes (..., R, K) and values (..., K, C) of equal leading axes -> (..., R, C), by either backend."""
    if backend == "kernel":
        return log2_matmul_codes(codes, values)
    return _nested("log2_matmul", spec_log2_matmul, codes, values)


def _nested(where: str, function: Callable[..., list[Any]], *arrays: Array) -> Array:
    """`function` on lists of rows for every leading index; the result as int64."""
    lead = arrays[0].shape[:-2]
    flat = [a.reshape(-1, *a.shape[-2:]).tolist() for a in arrays]
    result = integers(where, [function(*parts) for parts in zip(*flat, strict=True)])
    return result.reshape(*lead, *result.shape[1:])


def _fuse(planner: Planner, node: Node) -> Step | None:
    """matmul or log2_matmul [-> layout] -> requantize."""
    convert, lift = _left_operand(planner, node.op, planner.tensor(node.inputs[0]))
    return fused(planner, node, convert, lift) if convert else None


def fused(planner: Planner, node: Node, convert: Callable[[Array], Array], lift: int) -> Step | None:
    """The step of a product whose left operand less `lift` is what `convert` makes of the first input."""
    from intvit.kernels import gemm

    if accumulators.may_act(node, sum_bound(node.op, *(planner.tensor(name) for name in node.inputs))):
        return _narrow(planner, node, convert, lift)
    moves, after = planner.moves_to_requantize(node)
    b = planner.tensor(node.inputs[1])
    if planner.path == "blas" or planner.tensor(node.output).dtype.bits > 32 or not planner.narrow(b.name):
        return None
    if after is not None and len(after.arrays["m"]) > 1:
        return None
    epilogue = planner.epilogue(after, b.shape[-1])
    if epilogue is None:  # another datapath behind it: the sums alone
        moves, after, epilogue = [], None, gemm.Epilogue.raw()
    nodes = [node, *moves, after] if after else [node]
    kind = storage(planner.tensor(nodes[-1].output).dtype)
    if after is None and kind is not np.int32:
        return None
    prepared = gemm.Product(planner.path, epilogue, lift)
    order = _order(moves[0] if moves else planner.next(node))

    def run(values: Sequence[Array]) -> Array:
        return planner.moved(prepared.run(convert(values[0]), values[1], kind, order), moves)

    return planner.step_of(nodes, run)


def _narrow(planner: Planner, node: Node, convert: Callable[[Array], Array], lift: int) -> Step | None:
    """A product whose accumulator may be too narrow."""
    from intvit.kernels import gemm

    a, b = (planner.tensor(name) for name in node.inputs)
    if planner.path == "blas" or not planner.narrow(b.name) or sum_bound(node.op, a, b) > INT32_MAX:
        return None
    exact = gemm.Product(planner.path, gemm.Epilogue.raw(), lift)

    def sums(values: Sequence[Array]) -> Array:
        return exact.run(convert(values[0]), values[1], np.int32)

    def factors(values: Sequence[Array]) -> tuple[Array, int, Array]:
        return convert(values[0]), lift, values[1]

    return planner.step_of([node], accumulators.fused(node, sums, factors, planner.tensor(node.output)))


def _left_operand(planner: Planner, op: str, a: Tensor) -> tuple[Callable[[Array], Array] | None, int]:
    """(how the left operand becomes int8 or int16, what is to be added to it)."""
    if op == "log2_matmul":
        return (log2_weights if planner.narrow(a.name) else None), LOG2_LIFT
    if storage(a.dtype) in (np.int8, np.int16):
        return (lambda x: x), 0
    maker = planner.graph.by_output.get(a.name)
    positive = maker is not None and maker.op == "softmax" and a.encoding == "linear"
    if positive and a.bound is not None and a.bound < 2 * UNSIGNED_LIFT:
        return (lambda x: (x - UNSIGNED_LIFT).astype(np.int16)), UNSIGNED_LIFT
    return None, 0


def _order(reader: Node | None) -> tuple[int, ...] | None:
    """The permutation of its axes in which the reader of a product wants it to lie."""
    if reader is None or reader.op != "transpose":
        return None
    return (0, *(axis + 1 for axis in reader.attrs["perm"]))


MATMUL = Operator(
    "matmul", reads={"MatMul": _read}, lower=_lower, check=_check, kernel=_kernel, spec=_spec, fuse=_fuse,
    product=True, narrow_input=True, row_inputs=1,
)  # fmt: skip
LOG2_MATMUL = Operator(
    "log2_matmul", check=_check, kernel=_log2_kernel, spec=_log2_spec, fuse=_fuse, log2_inputs=1, row_inputs=1
)  # fmt: skip
