"""Strict runs: behind the input's quantizer there is no float, and every integer fits what the graph declares.

Products that no integer kernel of this machine takes ride in floats elsewhere, exactly (`kernels/matmul.py`). Here they
are added in 64-bit integers, and every tensor is looked at when it is made. Slow, and the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from intvit.engine.plan import Step
from intvit.errors import IntvitError
from intvit.graph.ir import Array, IntGraph, Node, Tensor
from intvit.graph.operators.kind import Evaluate
from intvit.spec.matmul import LOG2_FRACTION_BITS


def step(graph: IntGraph, planned: Step) -> Step:
    """A step of a plan that checks what it gets and makes; products that stand alone are done in integers."""
    run, output = planned.run, graph.tensors[planned.output]
    if len(planned.nodes) == 1 and (product := _product(planned.nodes[0], graph)) is not None:
        run = product

    def checked(values: Sequence[Array]) -> Array:
        for name, value in zip(planned.inputs, values, strict=True):
            _check(graph.tensors[name], value)
        found = run(values)
        _check(output, found)
        return found

    return dataclasses.replace(planned, run=checked)


def _check(tensor: Tensor, value: Array) -> None:
    if value.dtype.kind != "i":
        raise IntvitError(f"{tensor.name}: must hold signed integers, and holds {value.dtype}")
    low, high = max(tensor.dtype.min, -tensor.max_abs), min(tensor.dtype.max, tensor.max_abs)
    if value.size and (int(value.min()) < low or int(value.max()) > high):
        raise IntvitError(
            f"{tensor.name}: must lie in {low}..{high} as {tensor.dtype} does, and reaches {int(value.min())}.."
            f"{int(value.max())}"
        )


def _product(node: Node, graph: IntGraph) -> Evaluate | None:
    """Sums of products in 64-bit integers, of a node whose accumulator is as wide as its sums; None of others."""
    output = graph.tensors[node.output]
    if node.op not in ("linear", "matmul", "log2_matmul") or output.bound is None or output.bound >= 2**62:
        return None
    kind = np.int32 if output.dtype.bits <= 32 else np.int64
    weight, bias = node.arrays.get("weight"), node.arrays.get("bias")

    def run(values: Sequence[Array]) -> Array:
        a = values[0].astype(np.int64)
        if node.op == "log2_matmul":
            a = np.where(a < 0, 0, np.int64(1) << np.maximum(LOG2_FRACTION_BITS - a, 0))
        b = values[1].astype(np.int64) if weight is None else weight.astype(np.int64).T
        y = np.matmul(a, b)  # of integers NumPy multiplies by loops of its own, not by BLAS
        return np.asarray(y if bias is None else y + bias.astype(np.int64)).astype(kind)

    return run
