"""A word of hardware that is not what the graph says: fewer bits, or bits that are stuck or flipped.

No model is lowered to one. `intvit whatif` puts them behind an operator, or before one of its inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import checks
from intvit.graph.operators.kind import Evaluate, Operator
from intvit.spec.numerics import STORAGE_BITS

MASKS = ("keep", "force", "flip")
ZERO_CODE = -1
"""Of log2 codes: every negative one stands for 0, and this one alone is defined."""


def output_of(node: Node, x: Tensor, name: str) -> Tensor:
    """What a word of `x` holds: its meaning is that of x, its type is narrower, and forced bits have no bound."""
    dtype = IntType(node.attrs["bits"])
    bound = None if node.arrays or x.bound is None or x.bound > dtype.max else x.bound
    if x.encoding == "log2":
        bound = dtype.max
    return dataclasses.replace(x, name=name, dtype=dtype, bound=bound)


def _check(node: Node, inputs: Sequence[Tensor], output: Tensor) -> None:
    checks.count(node, inputs, 1)
    checks.attributes(node, bits=int, overflow=str)
    checks.arrays(node, set(), frozenset(MASKS))
    x, bits = inputs[0], node.attrs["bits"]
    if not 2 <= bits <= STORAGE_BITS or node.attrs["overflow"] not in ("saturate", "wrap"):
        raise IntvitError(
            f"{node.name}: must have 2..{STORAGE_BITS} bits that saturate or wrap, not {dict(node.attrs)}"
        )
    checks.shape(node, output, x.shape)
    for key in sorted(node.arrays):
        shape = node.arrays[key].shape
        checks.values(node, key, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, (shape,))
        checks.broadcasts(node, key, shape, x.shape)
    expected = output_of(node, x, output.name)
    for field in ("dtype", "bound", "encoding", "zero_point", "factor"):
        wanted, found = getattr(expected, field), getattr(output, field)
        if wanted != found:
            raise IntvitError(f"{node.name}: {field} of the output must be {wanted}, not {found}")


def _masks(node: Node) -> dict[str, Array]:
    return {key: array.astype(np.int64) for key, array in node.arrays.items()}


def _kernel(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.kernels.word import word

    masks, bits, overflow = _masks(node), node.attrs["bits"], node.attrs["overflow"]
    log2 = output.encoding == "log2"

    def run(values: Sequence[Array]) -> Array:
        y = word(values[0], bits, overflow, **masks)
        return np.maximum(y, ZERO_CODE) if log2 else y

    return run


def _spec(node: Node, inputs: Sequence[Tensor], output: Tensor) -> Evaluate:
    from intvit.spec.word import word

    masks, bits, overflow = _masks(node), node.attrs["bits"], node.attrs["overflow"]
    least = ZERO_CODE if output.encoding == "log2" else output.dtype.min

    def run(values: Sequence[Array]) -> Array:
        shape = values[0].shape
        lists = {key: np.broadcast_to(mask, shape).reshape(-1).tolist() for key, mask in masks.items()}
        found = word(values[0].reshape(-1).tolist(), bits, overflow, **lists)
        return np.array([max(least, y) for y in found], np.int64).reshape(shape)

    return run


WORD = Operator(
    "word", check=_check, kernel=_kernel, spec=_spec, log2_inputs=-1, takes=frozenset({"zero_point", "factor"})
)
