"""Requantization, dyadic, of one term or of two: what ends every sum of products in an integer graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType, storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import accumulators, checks
from intvit.graph.operators.kind import Evaluate, Operator
from intvit.graph.operators.methods import integers
from intvit.kernels.requantize import Requantize, is_addend, prepare_requantize
from intvit.spec.numerics import HAWQ
from intvit.spec.requantize import requantize as spec


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.count(node, inputs, 1, 2)
    how = accumulators.attributes(node, bits=int)
    if how != how.requantizing:
        raise IntvitError(f"{node.name}: numerics must not be of accumulators, and are {how.stated}")
    if node.attrs["bits"] != output.dtype.bits or not 2 <= output.dtype.bits <= 32 or output.encoding != "linear":
        raise IntvitError(f"{node.name}: bits must lie in 2..32 and be those of {output.dtype}")
    if output.bound is not None:
        raise IntvitError(f"{node.name}: bound must be left to {output.dtype}, not {output.bound}")
    terms, shape = [""], inputs[0].shape
    if len(inputs) == 2 or len(node.arrays) > 2:
        terms = ["", "residual_"]
    constant = {"residual"} if terms[1:] and len(inputs) == 1 else set()
    checks.arrays(node, {f"{term}{key}" for term in terms for key in "me"} | constant)
    checks.shape(node, output, shape)
    for term in terms:
        lengths = ((1,), shape[-1:])
        free = HAWQ if term and addend(node) is not None else how  # a zero point is not multiplied
        checks.values(node, f"{term}m", *free.multipliers, lengths)
        e = checks.values(node, f"{term}e", free.shift_least, free.shift_most, lengths)
        if e.shape != node.arrays[f"{term}m"].shape:
            raise IntvitError(f"{node.name}: {term}m and {term}e must be of one length")
    if output.zero_point and not _adds(node, output.zero_point):
        raise IntvitError(f"{node.name}: residual must be the zero_point {output.zero_point} of the output, times 1")
    if len(inputs) == 2 and inputs[1].shape != shape:
        raise IntvitError(f"{node.name}: residual must be of shape {shape}, not {inputs[1].shape}")
    if constant:
        residual = node.arrays["residual"]
        checks.values(node, "residual", -(2**31), 2**31 - 1, (residual.shape,))
        checks.broadcasts(node, "residual", residual.shape, shape)


def _adds(node: Node, zero_point: int) -> bool:
    """True if the second term is the constant `zero_point`."""
    return addend(node) == zero_point


def addend(node: Node) -> int | None:
    """The second term, if it is one number that nothing multiplies or rounds."""
    if not {"residual", "residual_m", "residual_e"} <= set(node.arrays):
        return None
    residual, m, e = (node.arrays[key] for key in ("residual", "residual_m", "residual_e"))
    return int(residual.reshape(-1)[0]) if is_addend(residual, m, e) else None


def signed(node: Node, key: str) -> Array:
    """Constants as int64: a file may store them in any width that holds them."""
    return np.ascontiguousarray(node.arrays[key], np.int64)


def by_spec(x: Array, m: Array, e: Array, bits: int | None, residual: Array | None = None,
            residual_m: Array | None = None, residual_e: Array | None = None, addend: Array | None = None,
            **datapath: Any) -> Array:  # fmt: skip
    """`kernels.requantize.apply_requantize` by the specification: x (..., C), constants one or C."""
    shape = x.shape or (1,)

    def column(values: Array) -> list[int]:
        return [int(v) for v in np.broadcast_to(values, shape).reshape(-1)]

    given = {"residual": residual, "residual_m": residual_m, "residual_e": residual_e, "addend": addend}
    second: dict[str, Any] = {key: column(values) for key, values in given.items() if values is not None}
    return integers("requantize", spec(column(x), column(m), column(e), bits, **second, **datapath)).reshape(x.shape)


def requantizer(node: Node) -> Requantize:
    """A node, prepared."""
    names = {"residual_m": "residual_m", "residual_e": "residual_e", "residual": "constant"}
    extra: dict[str, Any] = {argument: signed(node, key) for key, argument in names.items() if key in node.arrays}
    bits = node.attrs["bits"]
    return prepare_requantize(
        signed(node, "m"), signed(node, "e"), bits, out_dtype=storage(IntType(bits)),
        numerics=accumulators.numerics_of(node), **extra
    )  # fmt: skip


def _kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    prepared = requantizer(node)
    if "residual_m" in node.arrays and "residual" not in node.arrays:
        return lambda values: prepared.run(values[0], values[1])
    return lambda values: prepared.run(values[0])


def _spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    m, e, bits = signed(node, "m"), signed(node, "e"), node.attrs["bits"]
    second = {key: signed(node, key) for key in ("residual_m", "residual_e") if key in node.arrays}
    how, zero_point = accumulators.numerics_of(node), addend(node)

    def run(values: Sequence[Array]) -> Array:
        x = values[0]
        if zero_point is not None and how != HAWQ:
            return by_spec(x, m, e, bits, addend=np.full(x.shape, zero_point), numerics=how)
        if not second:
            return by_spec(x, m, e, bits, numerics=how)
        residual = signed(node, "residual") if "residual" in node.arrays else values[1]
        return by_spec(x, m, e, bits, residual=np.broadcast_to(residual, x.shape), numerics=how, **second)

    return run


REQUANTIZE = Operator("requantize", check=_check, kernel=_kernel, spec=_spec, row_inputs=2)
