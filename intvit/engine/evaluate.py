"""One integer node, evaluated by either backend: `kernel` (Numba, prepared once) or `spec` (plain Python integers).

The engine runs graphs through this, and golden vectors are checked through it, so that both mean the same thing. Each
kind of operator brings its backends (`operators`).
"""

from __future__ import annotations

from collections.abc import Sequence

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, IntGraph, Node, Tensor
from intvit.graph.operators.kind import Evaluate, checked_backend


def prepare(node: Node, inputs: Sequence[Tensor], output: Tensor, backend: str = "kernel") -> Evaluate:
    """A function that evaluates `node` on batches (B, ...); constants are laid out once, here.

    Its result is stored in the narrowest NumPy integers that hold the type of `output`. What it refuses does not name
    the node: its caller does.
    """
    kind, found = storage(output.dtype), operators.get(node.op)
    prepared = found and (found.kernel if checked_backend(backend) == "kernel" else found.spec)
    if not prepared:
        raise IntvitError(f"must be an integer operator, not {node.op!r}")
    evaluate = prepared(node, inputs, output)

    def stored(values: Sequence[Array]) -> Array:
        return evaluate(values).astype(kind, copy=False)

    return stored


def prepare_in(graph: IntGraph, node: Node, backend: str = "kernel") -> Evaluate:
    """`prepare` for a node of `graph`."""
    return prepare(node, [graph.tensors[name] for name in node.inputs], graph.tensors[node.output], backend)
