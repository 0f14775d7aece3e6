"""SiLU (Swish): x * sigmoid(x). And what it shares with quick GELU: both are x * sigmoid(a x)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.graph.ir import Array
from intvit.graph.operators.activation import activation, read
from intvit.graph.operators.kind import Pointwise

if TYPE_CHECKING:
    from intvit.floats.importers.views import Value, Writer

CLOSE = 1e-3
"""Of two factors that are one."""
FACTORS = {1.0: "Silu", 1.702: "QuickGelu"}


def gated(x: Array, factor: float) -> Array:
    return np.asarray(x / (1 + np.exp(-np.clip(factor * x, -700, 700))))


def rewrite(w: Writer, node: Any, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    """ONNX's Swish and onnxruntime's QuickGelu: x * sigmoid(alpha x)."""
    alpha = attrs.get("alpha", 1.0 if node.op_type == "Swish" else 1.702)
    for factor, op in FACTORS.items():
        if abs(alpha - factor) < CLOSE:
            return w.activation(op, inputs[0], w.site(node.output[0]))
    raise w.refused(f"alpha must be one of {', '.join(map(str, FACTORS))}, not {alpha}")


SILU = activation(
    "silu",
    reads={"Silu": read("silu")},
    function="Silu (x) => (y) { sigmoid = Sigmoid(x) y = Mul(x, sigmoid) }",
    rewrites={"Swish": rewrite},
    pointwise=(Pointwise(lambda x: gated(x, 1.0)),),
    activations={"silu": {}, "swish": {}},
)
