"""The JSON of an integer graph's file: its schema, and the way there and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Graph, IntGraph, Node, Tensor, describe, sources


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NodeText(_Strict):
    """One node; `arrays` are the keys of its constants, which stand beside the JSON."""

    op: str
    name: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any]
    arrays: list[str]


class TensorText(_Strict):
    name: str
    shape: list[int]
    dtype: str
    scale: float | list[float]
    encoding: str
    bound: int | None
    zero_point: int = 0
    factor: list[int] | None = None


class GraphText(_Strict):
    """A graph without its constants."""

    inputs: list[str]
    outputs: list[str]
    metadata: dict[str, Any]
    nodes: list[NodeText]
    tensors: list[TensorText]
    sources: dict[str, str] = {}
    """Integer tensor -> the float tensor that it stands for."""


def format_graph(graph: IntGraph) -> str:
    """The JSON of a graph without its constants."""
    return json.dumps({**describe(graph), "sources": sources(graph)}, sort_keys=True)


def rebuild(text: GraphText, arrays: Mapping[str, Mapping[str, Array]]) -> IntGraph:
    """The Graph of `text`, `arrays[node name][key]` its constants; IntvitError where names are not unique."""
    for names in ([t.name for t in text.tensors], [n.name for n in text.nodes], *(n.arrays for n in text.nodes)):
        if len(set(names)) < len(names):
            raise IntvitError("graph: names of tensors, nodes and arrays must be unique")
    for name in text.sources.keys() - {t.name for t in text.tensors}:
        raise IntvitError(f"graph: sources must be of its tensors, and {name!r:.80} is none")
    return Graph(
        inputs=tuple(text.inputs),
        outputs=tuple(text.outputs),
        nodes=tuple(
            Node(n.op, n.name, tuple(n.inputs), n.output, n.attrs, {key: arrays[n.name][key] for key in n.arrays})
            for n in text.nodes
        ),
        tensors={
            t.name: Tensor(
                t.name,
                tuple(t.shape),
                IntType.parse(t.dtype),
                np.array(t.scale, np.float64),
                t.encoding,
                t.bound,
                text.sources.get(t.name),
                t.zero_point,
                None if t.factor is None else tuple(t.factor),
            )
            for t in text.tensors
        },
        metadata=text.metadata,
    )
