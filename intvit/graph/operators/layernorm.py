"""LayerNorm over the last axis, gamma and beta per channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import methods
from intvit.graph.operators.kind import Operator
from intvit.graph.parameters import method_params, node_method
from intvit.kernels.method import LayerNormForms, Method

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.builder import Builder
    from intvit.floats.importers.onnx import Reader
    from intvit.floats.importers.views import Affine, Value, Writer
    from intvit.lowering.context import Context


def _read(r: Reader, node: Any) -> None:
    r.check_last_axis(node)
    shape, eps = r.shape(node.input[0]), r.attributes(node).get("epsilon", 1e-5)
    if not 0 <= eps < math.inf:
        raise IntvitError(f"{node.name}: LayerNormalization epsilon must be finite and not negative, not {eps}")
    gamma = r.constant(node, 1, "f", shape[-1:])
    beta = r.constant(node, 2, "f", shape[-1:]) if len(node.input) > 2 else np.zeros_like(gamma)
    r.emit("layernorm", node, (node.input[0],), shape, attrs={"eps": eps}, arrays={"gamma": gamma, "beta": beta})


def _write(builder: Builder, name: str, affine: Affine) -> None:
    beta = np.zeros_like(affine.scale) if affine.offset is None else affine.offset
    builder.layernorm(name, affine.source, affine.scale, np.ascontiguousarray(beta), affine.eps)


def _rewrite(w: Writer, node: Any, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return w.norm(_write, inputs, attrs, node.output[0])


def ibert_shift(context: Context, node: Node) -> int:
    """I-BERT's rule: the least shift that brings the largest calibrated row statistic to 2**32 at most."""
    from intvit.kernels.layernorm import variance_shift

    if node.name in context.calibration.shifts:
        return context.calibration.shifts[node.name]
    scale = float(np.asarray(context.value(node.inputs[0]).scale))
    return variance_shift(context.calibration.variances.get(node.name, 0.0) / scale**2)


def _lower(context: Context, node: Node) -> None:
    def adapt(method: Method, params: Any, scale: float) -> tuple[Any, float]:
        """The biases that came with the weights."""
        if method.id != "layernorm.ivit.v1" or "bias_integer" not in node.arrays:
            return params, scale
        bias = context.trained_bias(node, np.array(params.bias, np.int64))
        return dataclasses.replace(params, bias=tuple(bias.tolist())), scale

    facts = {
        "gamma": node.arrays["gamma"],
        "beta": node.arrays["beta"],
        "shift": ibert_shift(context, node),
        "out_scale": context.next_scale(node),
    }
    methods.lower(context, node, facts, adapt=adapt)


def check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    methods.check(node, inputs, output, scalars=False)


def fuse(planner: Planner, node: Node) -> Step | None:
    """Rows as they are stored, without widening them first."""
    forms = node_method(node).fast
    if not (isinstance(forms, LayerNormForms) and forms.any_rows):
        return None
    compiled = node_method(node).kernel(method_params(node))
    kind = storage(planner.tensor(node.output).dtype)

    def run(values: Sequence[Array]) -> Array:
        rows = np.ascontiguousarray(values[0]).reshape(-1, values[0].shape[-1])
        return np.asarray(compiled(rows, None, kind)).reshape(values[0].shape)

    return planner.step_of([node], run)


def _statistic(rows: Array) -> float:
    return float(rows.var(axis=1).max()) * rows.shape[1]


LAYERNORM = Operator(
    "layernorm",
    reads={"LayerNormalization": _read},
    rewrites={"LayerNormalization": _rewrite},
    lower=_lower,
    check=check,
    kernel=methods.kernel,
    spec=methods.spec,
    row_inputs=1,
    fuse=fuse,
    per_channel=True,
    rounded_output=True,
    facts=("gamma", "beta", "shift", "factor", "out_scale"),
    statistic=_statistic,
)
"""gamma, beta: float (C,). shift: I-BERT's, from the calibrated variances. factor: the power-of-two factors of the
input's channels, int (C,) or None. out_scale: that of the quantizer behind it."""
