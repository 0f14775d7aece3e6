"""RMSNorm over the last axis: x / sqrt(mean x**2 + eps) times gamma."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node
from intvit.graph.operators import layernorm, methods
from intvit.graph.operators.kind import Operator

if TYPE_CHECKING:
    from intvit.floats.importers.builder import Builder
    from intvit.floats.importers.onnx import Reader
    from intvit.floats.importers.views import Affine, Value, Writer
    from intvit.lowering.context import Context


def _read(r: Reader, node: Any) -> None:
    shape = r.shape(node.input[0])
    gamma, eps = r.constant(node, 1, "f", shape[-1:]), float(r.constant(node, 2, "f", ()))
    if not 0 <= eps < math.inf:
        raise IntvitError(f"{node.name}: RmsNorm epsilon must be finite and not negative, not {eps}")
    r.emit("rmsnorm", node, (node.input[0],), shape, attrs={"eps": eps}, arrays={"gamma": gamma})


def _write(builder: Builder, name: str, affine: Affine) -> None:
    gamma = builder.constant(f"{name}.weight", affine.scale)
    builder.add("RmsNorm", name, affine.source, gamma, builder.constant(f"{name}.eps", np.float32(affine.eps)))


def _rewrite(w: Writer, node: Any, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    return w.norm(_write, inputs[:2], attrs, node.output[0], takes_offset=False)


def _lower(context: Context, node: Node) -> None:
    facts = {"gamma": node.arrays["gamma"], "shift": layernorm.ibert_shift(context, node)}
    methods.lower(context, node, facts)


def _statistic(rows: Array) -> float:
    return float(np.square(rows).sum(axis=1).max())


RMSNORM = Operator(
    "rmsnorm",
    reads={"RmsNorm": _read},
    function="""RmsNorm (x, gamma, eps) => (y) {
        square = Mul(x, x)
        last = Constant <value_ints: ints = [-1]> ()
        mean = ReduceMean <keepdims: int = 1> (square, last)
        sum = Add(mean, eps)
        root = Sqrt(sum)
        normed = Div(x, root)
        y = Mul(normed, gamma)
    }""",
    rewrites={"RMSNormalization": _rewrite, "SimplifiedLayerNormalization": _rewrite},
    lower=_lower,
    check=layernorm.check,
    kernel=methods.kernel,
    spec=methods.spec,
    row_inputs=1,
    fuse=layernorm.fuse,
    per_channel=True,
    rounded_output=True,
    facts=("gamma", "shift"),
    statistic=_statistic,
)
"""gamma: float (C,). shift: I-BERT's, from the calibrated square sums."""
