"""FloatTensor, Tensor, Node, Graph: frozen values, and nothing else.

One graph is the program for one image: shapes carry no batch axis, the engine adds it in front. Float graphs (tensors
have a shape) and integer graphs (they have a type and a scale too) share this form; `operators` says what each
operator is in either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType

Array = np.ndarray[Any, Any]

LOGITS = "logits"
"""The output of an integer graph: the last accumulators at one common scale. No other tensor has this name."""
MOST_ELEMENTS, MOST_AXES = 2**31, 16
"""Of one tensor of one image."""
LAYOUT_OPS = frozenset({"reshape", "transpose", "take", "slice", "concat"})
"""Operators that move elements and compute nothing; the same in float and integer graphs."""


@dataclass(frozen=True, eq=False)
class FloatTensor:
    """A value of a float graph."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of an integer graph. `encoding` linear: `real = scale * 2**factor * (q - zero_point)`; log2: `real =
    2**-q`, 0 for q = -1.

    `scale` is a scalar (shape ()) or per_channel (shape (C,), last axis) float64 array. `bound` is the proven largest
    |q|; None where nothing better than `dtype` is known. `source`: the tensor of the float graph that it stands for. It
    decides no bit and is no part of the content hash. `factor`: one exponent per channel (C,), 0..8, or none; like a
    zero point other than 0 it is only for operators that say that they take it (`operators.Operator.takes`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: IntType
    scale: Array
    encoding: str = "linear"
    bound: int | None = None
    source: str | None = None
    zero_point: int = 0
    factor: tuple[int, ...] | None = None

    @property
    def max_abs(self) -> int:
        return self.bound if self.bound is not None else max(-self.dtype.min, self.dtype.max)


AnyTensor = TypeVar("AnyTensor", FloatTensor, Tensor)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator at one site. `attrs` are JSON values (ints, strings, lists), `arrays` its constants."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph(Generic[AnyTensor]):
    """Nodes in execution order over named tensors. `metadata` is JSON: where the graph came from, and how."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, AnyTensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_output(self) -> dict[str, Node]:
        return {node.output: node for node in self.nodes}

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {name: [] for name in self.tensors}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def node(self, site: str) -> Node:
        if site not in self.by_name:
            raise IntvitError(f"{site}: no such site in this graph")
        return self.by_name[site]

    def up_to(self, outputs: Sequence[str]) -> Graph[AnyTensor]:
        """What computes some tensors, and nothing else."""
        needed, nodes = set(outputs), list[Node]()
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.insert(0, node)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        return Graph(self.inputs, tuple(dict.fromkeys(outputs)), tuple(nodes), tensors, self.metadata)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over structure, scales and constants: equal graphs hash equal on every machine."""
        digest = hashlib.sha256(json.dumps(describe(cast(IntGraph, self)), sort_keys=True).encode())
        for node in self.nodes:
            for key in sorted(node.arrays):
                digest.update(f"{node.name}/{key} {tensor_hash(node.arrays[key])}\n".encode())
        return digest.hexdigest()


IntGraph = Graph[Tensor]
FloatGraph = Graph[FloatTensor]


def tensor_hash(array: Array) -> str:
    """sha256 of values and shape; integers hash by value, whatever width they are stored in.

    >>> tensor_hash(np.array([1, -2], np.int8)) == tensor_hash(np.array([1, -2], np.int64))
    True
    """
    array = np.asarray(array)
    digest = TensorDigest(array.shape, "<i8" if array.dtype.kind in "iub" else "<f8")
    digest.update(array)
    return digest.hexdigest()


class TensorDigest:
    """`tensor_hash` in parts: the shape first, then the values in order along the first axis."""

    def __init__(self, shape: tuple[int, ...], kind: str = "<i8") -> None:
        self.kind = kind
        self._digest = hashlib.sha256(f"{kind}{list(shape)}".encode())

    def update(self, array: Array) -> None:
        self._digest.update(np.ascontiguousarray(array, self.kind).tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def sources(graph: IntGraph) -> dict[str, str]:
    """Integer tensor -> the float tensor that it stands for, where that is known."""
    return {t.name: t.source for t in graph.tensors.values() if t.source is not None}


def describe(graph: IntGraph) -> dict[str, Any]:
    """What the content hash is of: the graph as JSON values, its constant arrays left out."""
    return {
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "metadata": dict(graph.metadata),
        "nodes": [
            {
                "op": n.op,
                "name": n.name,
                "inputs": list(n.inputs),
                "output": n.output,
                "attrs": dict(n.attrs),
                "arrays": sorted(n.arrays),
            }
            for n in graph.nodes
        ],
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": str(t.dtype),
                "scale": np.asarray(t.scale, np.float64).tolist(),
                "encoding": t.encoding,
                "bound": t.bound,
                **({"zero_point": t.zero_point} if t.zero_point else {}),
                **({} if t.factor is None else {"factor": list(t.factor)}),
            }
            for t in graph.tensors.values()
        ],
    }
