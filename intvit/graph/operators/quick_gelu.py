"""Quick GELU, CLIP's: x * sigmoid(1.702 x)."""

from __future__ import annotations

from intvit.graph.operators.activation import activation, read
from intvit.graph.operators.kind import Pointwise
from intvit.graph.operators.silu import gated, rewrite

QUICK_GELU = activation(
    "quick_gelu",
    reads={"QuickGelu": read("quick_gelu")},
    function="""QuickGelu (x) => (y) {
        factor = Constant <value_float: float = 1.702> ()
        scaled = Mul(x, factor)
        sigmoid = Sigmoid(scaled)
        y = Mul(x, sigmoid)
    }""",
    rewrites={"com.microsoft.QuickGelu": rewrite},
    pointwise=(Pointwise(lambda x: gated(x, 1.702)),),
    activations={"quick_gelu": {}},
)
