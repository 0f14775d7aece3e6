"""Softmax over the last axis; masked positions take no part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import checks, matmul, methods
from intvit.graph.operators.kind import Operator
from intvit.graph.parameters import method_params, node_method
from intvit.kernels import registry
from intvit.kernels.method import SoftmaxForms

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.onnx import Reader
    from intvit.floats.importers.views import Value, Writer
    from intvit.lowering.context import Context


def _read(r: Reader, node: Any) -> None:
    r.check_last_axis(node)
    r.emit("softmax", node, (node.input[0],), r.shape(node.input[0]))


def _rewrite(w: Writer, node: Any, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return w.softmax(inputs[0], w.unique(node.output[0]), attrs.get("axis", -1))


def _lower(context: Context, node: Node) -> None:
    method = registry.get("softmax", context.recipe.choice("softmax", node.name).method)
    usual = context.recipe.log2_bits if method.out_encoding == "log2" else context.recipe.softmax_bits
    bits = context.recipe.quantizer("softmax", node.name).output_bits or usual
    mask = context.masks.get(node.inputs[0])
    facts = {
        "out_bits": min(max(bits, method.widths[0]), method.widths[1]),
        "exp_range_max": context.calibration.exp_range_max.get(node.name),
    }
    methods.lower(context, node, facts, {} if mask is None else {"mask": mask})


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    methods.check(node, inputs, output)
    if "mask" in node.arrays:
        mask = node.arrays["mask"]
        checks.values(node, "mask", 0, 1, (mask.shape,))
        checks.broadcasts(node, "mask", mask.shape, inputs[0].shape)


def _fuse(planner: Planner, node: Node) -> Step | None:
    """8-bit and 16-bit scores by the method's table kernels."""
    return _weighted_product(planner, node) or _by_table(planner, node)


def _by_table(planner: Planner, node: Node) -> Step | None:
    forms, masked, x = node_method(node).fast, "mask" in node.arrays, planner.tensor(node.inputs[0])
    if not isinstance(forms, SoftmaxForms):
        return None
    make = {np.int8: forms.narrow, np.int16: forms.wide}.get(storage(x.dtype))
    compiled = make(method_params(node), x.shape[-1], masked) if make else None
    if compiled is None:
        return None
    run = _by_rows(planner, node, compiled, storage(planner.tensor(node.output).dtype))
    return planner.step_of([node], lambda values: run(values[0]))


def _weighted_product(planner: Planner, node: Node) -> Step | None:
    """Log2 softmax -> log2_matmul [-> layout -> requantize]: the softmax writes the weights, not their codes."""
    forms, masked, after = node_method(node).fast, "mask" in node.arrays, planner.next(node)
    if not isinstance(forms, SoftmaxForms) or forms.narrow_weights is None or not planner.narrow(node.inputs[0]):
        return None
    if after is None or after.op != "log2_matmul":
        return None
    values = after.inputs[1]
    if planner.position.get(values, -1) > planner.position[node.output]:
        return None
    n_channels = planner.tensor(node.inputs[0]).shape[-1]
    compiled = forms.narrow_weights(method_params(node), n_channels, masked)
    if compiled is None:
        return None
    step = matmul.fused(planner, after, _by_rows(planner, node, compiled, np.int16), matmul.LOG2_LIFT)
    return step and planner.step_of([node, *step.nodes], step.run, (*node.inputs, values))


def _by_rows(planner: Planner, node: Node, compiled: Any, kind: Any) -> Callable[[Array], Array]:
    """`compiled` as a function of the batched input of a softmax `node`."""
    x = planner.tensor(node.inputs[0])
    mask = methods.mask_rows(node, x.shape)

    def run(values: Array) -> Array:
        rows = np.ascontiguousarray(values).reshape(-1, x.shape[-1])
        out = np.empty(rows.shape, kind)
        compiled(rows, mask, out)
        return out.reshape(values.shape)

    return run


SOFTMAX = Operator(
    "softmax",
    reads={"Softmax": _read},
    rewrites={"Softmax": _rewrite},
    lower=_lower,
    check=_check,
    kernel=methods.kernel,
    spec=methods.spec,
    row_inputs=1,
    fuse=_fuse,
    narrow_input=True,
    facts=("out_bits", "exp_range_max"),
    masked=True,
)
"""out_bits: width of the output. exp_range_max: the calibrated maximum of I-BERT's exponents, in their own integers;
None without a calibration."""
