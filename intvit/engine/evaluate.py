"""One integer node, evaluated by either backend: `kernel` (Numba, prepared once) or `spec` (plain Python integers).

The engine runs graphs through this, and golden vectors are checked through it, so that both mean the same thing. Each
kind of operator brings its backends (`operators`).
"""

from __future__ import annotations

from collections.abc import Sequence

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators.kind import Evaluate

BACKENDS = ("kernel", "spec")


def prepare(node: Node, inputs: Sequence[Tensor], output: Tensor, backend: str = "kernel") -> Evaluate:
    """A function that evaluates `node` on batches (B, ...); constants are laid out once, here.

    Its result is stored in the narrowest NumPy integers that hold the type of `output`. What it refuses does not name
    the node: its caller does.
    """
    if backend not in BACKENDS:
        raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    kind, found = storage(output.dtype), operators.get(node.op)
    prepared = found and (found.kernel if backend == "kernel" else found.spec)
    if not prepared:
        raise IntvitError(f"must be an integer operator, not {node.op!r}")
    evaluate = prepared(node, inputs, output)

    def stored(values: Sequence[Array]) -> Array:
        return evaluate(values).astype(kind, copy=False)

    return stored
