"""GELU, exact (erf) or by tanh: the integer methods do not tell them apart."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node
from intvit.graph.operators import methods
from intvit.graph.operators.activation import activation, facts
from intvit.graph.operators.kind import Pointwise
from intvit.kernels.method import Method

if TYPE_CHECKING:
    from intvit.floats.importers.onnx import Reader
    from intvit.floats.importers.views import Value, Writer
    from intvit.lowering.context import Context

ERF, TANH = {"approximate": "none"}, {"approximate": "tanh"}


def _erf(x: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + erf))


def _tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _read(r: Reader, node: Any) -> None:
    if r.attributes(node).get("approximate", b"none") not in (b"none", b"tanh"):
        raise IntvitError(f"{node.name}: Gelu approximate must be none or tanh")
    r.emit("gelu", node, (node.input[0],), r.shape(node.input[0]))


def _rewrite(w: Writer, node: Any, inputs: list[Value], attrs: dict[str, Any]) -> Value:
    x = inputs[0]
    if len(inputs) > 1 and inputs[1] is not None:  # BiasGelu, FastGelu
        x = w.plus_constant(x, inputs[1], node.output[0])
    tanh = node.op_type == "FastGelu" or attrs.get("approximate", b"none") == b"tanh"
    return w.activation("Gelu", x, w.site(node.output[0]), **(TANH if tanh else ERF))


def _lower(context: Context, node: Node) -> None:
    trained = context.graph.metadata.get("trained") or {}

    def adapt(method: Method, params: Any, scale: float) -> tuple[Any, float]:
        """The width that the weights were trained with."""
        if method.id != "gelu.ivit.v1" or "gelu_bits" not in trained:
            return params, scale
        bits = trained["gelu_bits"]
        return dataclasses.replace(params, out_bits=bits), scale * 2.0 ** (params.out_bits - bits)

    methods.lower(context, node, facts(context, node), adapt=adapt)


GELU = activation(
    "gelu",
    reads={"Gelu": _read},
    rewrites={
        "Gelu": _rewrite,
        "com.microsoft.Gelu": _rewrite,
        "com.microsoft.BiasGelu": _rewrite,
        "com.microsoft.FastGelu": _rewrite,
    },
    pointwise=(Pointwise(_erf, ERF), Pointwise(_tanh, TANH)),
    activations={
        "gelu": {},
        "gelu_python": {},
        **dict.fromkeys(
            ("gelu_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), TANH
        ),
    },
    lower=_lower,
)
