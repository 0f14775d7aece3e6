"""Quick GELU, CLIP's: x * sigmoid(1.702 x)."""

from __future__ import annotations

from intvit.graph.operators import activation, methods
from intvit.graph.operators.kind import Operator, Pointwise
from intvit.graph.operators.silu import gated, rewrite

QUICK_GELU = Operator(
    "quick_gelu",
    reads={"QuickGelu": activation.read("quick_gelu")},
    function="""QuickGelu (x) => (y) {
        factor = Constant <value_float: float = 1.702> ()
        scaled = Mul(x, factor)
        sigmoid = Sigmoid(scaled)
        y = Mul(x, sigmoid)
    }""",
    rewrites={"com.microsoft.QuickGelu": rewrite},
    pointwise=(Pointwise(lambda x: gated(x, 1.702)),),
    activations={"quick_gelu": {}},
    lower=activation.lower,
    check=methods.check,
    kernel=methods.kernel,
    spec=methods.spec,
    fuse=activation.fuse,
    narrow_input=True,
    facts=(),
)
