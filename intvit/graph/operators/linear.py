"""Linear: weights and bias known, one row at a time; also a patch convolution and the product with constant weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import Infeasible, IntvitError
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import accumulators, checks
from intvit.graph.operators.kind import Evaluate, Operator
from intvit.graph.ranges import linear_bound
from intvit.kernels.matmul import INT32_MAX

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.onnx import Reader
    from intvit.lowering.context import Context

PART, PARTS = 64, 16
"""Of the depth of a product, whose partial sums are looked at in parts: about so many elements, so many parts."""
MOST_BIAS = 2**29
"""Codes of a bias that is beyond twice as many at the scale of its weights; what is left is room for products."""


def _read_conv(r: Reader, node: Any) -> None:
    """Kernel = stride, no padding: cut into patches, then a linear operator; output (O, H/p, W/p)."""
    attrs, name, shape = r.attributes(node), node.output[0], r.shape(node.input[0])
    if len(shape) != 3:
        raise IntvitError(f"{name}: convolution must read images (C, H, W), not {shape}")
    channels, height, width = shape
    weight = r.constant(node, 1, "f", (None, channels, None, None))
    n_out, _, p, q = weight.shape
    plain = (
        list(attrs.get("strides", [1, 1])) == list(attrs.get("kernel_shape", [p, q])) == [p, q]
        and not any(attrs.get("pads", []))
        and all(d == 1 for d in attrs.get("dilations", []))
        and attrs.get("group", 1) == 1
        and attrs.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )
    if not plain:
        raise IntvitError(f"{name}: convolution must have stride = kernel {[p, q]}, no padding, one group; not {attrs}")
    if height % p or width % q:
        raise IntvitError(f"{name}: image size {(height, width)} must be a multiple of the patch size {(p, q)}")
    h, w = height // p, width // q
    r.move("reshape", f"{name}.cut", node.input[0], f"{name}.cut", shape=[channels, h, p, w, q])
    r.move("transpose", f"{name}.order", f"{name}.cut", f"{name}.order", perm=[1, 3, 0, 2, 4])
    r.move("reshape", f"{name}.patches", f"{name}.order", f"{name}.patches", shape=[h, w, channels * p * q])
    arrays = {"weight": weight.reshape(n_out, -1)}
    if len(node.input) > 2:
        arrays["bias"] = r.constant(node, 2, "f", (n_out,))
    r.append(Node("linear", name, (f"{name}.patches",), f"{name}.linear", {}, arrays), (h, w, n_out))
    r.move("transpose", f"{name}.chw", f"{name}.linear", name, perm=[2, 0, 1])


def _lower(context: Context, node: Node) -> None:
    from intvit.kernels.quantize import quantize_bias

    x = context.value(node.inputs[0])
    scale = float(np.max(x.scale))
    factors = x.scale / scale
    fit = context.fit(node.inputs[0])
    slopes = fit.slopes if fit is not None and context.recipe.slope_correction else 1.0
    real = node.arrays.get("bias")
    least = np.zeros(len(node.arrays["weight"]))
    while True:
        weight, weight_scale = _codes(context, node, factors * slopes, least)
        if fit is not None:
            of_floats = node.arrays["weight"] @ fit.floats
            of_integers = (weight * weight_scale[:, None] / factors) @ fit.integers
            real = of_floats - of_integers + node.arrays.get("bias", 0.0)
        if real is None or "weight_scale" in node.arrays:
            break
        beyond = np.abs(real) > 2 * MOST_BIAS * scale * weight_scale
        if not beyond.any():
            break
        least[beyond] = np.abs(real[beyond]) / (MOST_BIAS * scale)
    arrays = {"weight": weight.astype(np.int8)}
    if real is not None:
        bias = quantize_bias(real, scale, weight_scale)[0]
        arrays["bias"] = context.trained_bias(node, bias) if context.calibration.trained else bias
    if x.zero_point:
        sums = weight.astype(np.int64).sum(axis=1)
        arrays["bias"] = arrays.get("bias", np.zeros_like(sums)) - x.zero_point * sums
        if np.abs(arrays["bias"]).max() >= 2**31:
            raise Infeasible(node.name, f"bias with the zero point {x.zero_point} must fit 32 bits, and does not")
    bound = int(linear_bound(arrays["weight"], arrays.get("bias"), x.max_abs).max())
    attrs, dtype, most = accumulators.lowered(context, node, bound)
    output = Tensor(node.output, (*x.shape[:-1], len(weight)), dtype, weight_scale * scale, bound=most)
    context.emit(Node("linear", node.name, (x.name,), node.output, attrs, arrays), output)


def _codes(context: Context, node: Node, factors: Array, least: Array) -> tuple[Array, Array]:
    """(codes, scale) of the weights times the `factors` of the input's channels: the trained ones, or rounded here.

    `least` (O,): scales at which the bias fits, however small the weights of its channel are.
    """
    from intvit.kernels.quantize import quantize_weight

    asked = context.recipe.quantizer(node.op, node.name)
    bits = asked.weight_bits or context.recipe.bits
    codes, scale = quantize_weight(node.arrays["weight"] * factors, bits, clip=bool(asked.weight_clip), least=least)
    trained = node.arrays.get("weight_integer", codes)
    if trained.shape != codes.shape or np.abs(trained.astype(np.int64) - codes).max() > 1:
        raise IntvitError(f"{node.name}: weight_integer must be the weight rounded to {bits} bits")
    given = node.arrays.get("weight_scale", scale).astype(np.float64)
    if given.shape != scale.shape or not np.allclose(given, scale, rtol=1e-6, atol=0):
        raise IntvitError(f"{node.name}: weight_scale must be that of its weight at {bits} bits")
    return trained, given


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.count(node, inputs, 1)
    checks.arrays(node, {"weight"}, frozenset({"bias"}))
    shape, weight = inputs[0].shape, node.arrays["weight"]
    if weight.ndim != 2 or not shape or weight.shape[1] != shape[-1]:
        raise IntvitError(f"{node.name}: weight must be of shape (outputs, {shape[-1:]}), not {weight.shape}")
    checks.values(node, "weight", -128, 127, (weight.shape,))
    bias = checks.values(node, "bias", -(2**31), 2**31 - 1, (weight.shape[:1],)) if "bias" in node.arrays else None
    checks.shape(node, output, (*shape[:-1], len(weight)))
    accumulators.check(node, output, int(linear_bound(weight, bias, inputs[0].max_abs).max()))


def _may_act(node: Node, x: Tensor) -> bool:
    bound = linear_bound(node.arrays["weight"], node.arrays.get("bias"), x.max_abs).max()
    return accumulators.may_act(node, int(bound))


def _factors(node: Node) -> Callable[[Sequence[Array]], tuple[Array, Array]]:
    """x as rows (B, R, K), and the weights (1, K, O)."""
    weight = node.arrays["weight"].astype(np.int64).T[None]
    return lambda values: (values[0].reshape(1, -1, values[0].shape[-1]), weight)


def _kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.matmul import prepare_linear

    run = prepare_linear(node.arrays["weight"], node.arrays.get("bias"), inputs[0].max_abs)
    if _may_act(node, inputs[0]):
        summed = accumulators.by_kernel(node, lambda values: run(values[0]), _factors(node), node.arrays.get("bias"))
        return lambda values: summed(values).reshape(*values[0].shape[:-1], -1)
    return lambda values: run(values[0])


def _spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.matmul import linear

    if _may_act(node, inputs[0]):
        summed = accumulators.by_spec(node, _factors(node), node.arrays.get("bias"))
        return lambda values: summed(values).reshape(*values[0].shape[:-1], -1)
    weight = node.arrays["weight"].tolist()
    bias = node.arrays["bias"].tolist() if "bias" in node.arrays else None

    def run(values: Sequence[Array]) -> Array:
        x = values[0]
        rows = x.reshape(-1, x.shape[-1]).tolist()
        return np.array(linear(rows, weight, bias), np.int64).reshape(*x.shape[:-1], len(weight))

    return run


def _fuse(planner: Planner, node: Node) -> Step | None:
    """linear [-> layout that keeps the channels] -> requantize, in one pass over the accumulators."""
    from intvit.kernels import gemm

    if _may_act(node, planner.tensor(node.inputs[0])):
        return _narrow(planner, node)
    moves, after = planner.moves_to_requantize(node)
    nodes = [node, *moves, after] if after else [node]
    x = planner.tensor(node.inputs[0])
    epilogue = planner.epilogue(after, len(node.arrays["weight"]))
    if epilogue is None:  # another datapath behind it: the sums alone
        nodes, moves, after, epilogue = [node], [], None, gemm.Epilogue.raw()
    weight, bias = node.arrays["weight"], node.arrays.get("bias")
    prepared = gemm.prepare_linear(weight, bias, x.max_abs, storage(x.dtype), epilogue, planner.path)
    kind = storage(planner.tensor(nodes[-1].output).dtype)
    if prepared is None or (after is None and kind is not np.int32):
        return None
    return planner.step_of(nodes, lambda values: planner.moved(prepared.run(values[0], kind), moves))


def _narrow(planner: Planner, node: Node) -> Step | None:
    """linear, where the accumulator may be too narrow."""
    from intvit.kernels import gemm
    from intvit.kernels.gemm.lengths import longest_column

    x, weight, bias = planner.tensor(node.inputs[0]), node.arrays["weight"], node.arrays.get("bias")
    whole = gemm.prepare_linear(weight, None, x.max_abs, storage(x.dtype), gemm.Epilogue.raw(), planner.path)
    if whole is None or linear_bound(weight, bias, x.max_abs).max() > INT32_MAX:
        return None
    at_once, in_parts = (gemm.in_parts(whole, weight, bias, n) for n in (1, min(PARTS, -(-x.shape[-1] // PART))))
    bits, turned = planner.tensor(node.output).dtype.bits, np.ascontiguousarray(weight.T, np.int8)

    def bounded(values: Sequence[Array], reach: int, out: Array) -> Array:
        """A partial sum of a row and a column that are not alike stays below half of the product of their lengths."""
        return (at_once if reach < 1 << bits else in_parts).run(values[0], bits, out)

    def exact(values: Sequence[Array]) -> Array:
        return whole.run(values[0], np.int32)

    def factors(values: Sequence[Array]) -> tuple[Array, int, Array]:
        return values[0], 0, turned

    run = accumulators.fused(node, exact, factors, planner.tensor(node.output), longest_column(turned), bounded)
    return planner.step_of([node], run)


LINEAR = Operator(
    "linear",
    reads={"Conv": _read_conv},
    lower=_lower,
    check=_check,
    kernel=_kernel,
    spec=_spec,
    fuse=_fuse,
    product=True,
    takes=frozenset({"zero_point"}),
    narrow_input=True,
    per_channel=True,
    row_inputs=1,
)
