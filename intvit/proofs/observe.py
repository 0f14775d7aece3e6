"""What data shows of what is proven: every tensor of a run, and every signal of some rows, by the specification.

A value outside its proven interval is a bug of a rule, and is said as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from intvit.engine import Engine
from intvit.graph import operators
from intvit.graph.ir import Array, IntGraph, Node
from intvit.graph.operators.methods import mask_rows
from intvit.graph.parameters import method_params, node_method
from intvit.proofs.claims import Claim, Proof
from intvit.proofs.intervals import Interval
from intvit.proofs.walk import Progress
from intvit.spec.taps import Taps, listening

ROWS = 4
"""Of a method in an image, evenly spaced, that the specification computes."""
Ends = dict[tuple[str, str], Interval]
"""Site and signal -> what was seen."""


def observe(proof: Proof, graph: IntGraph, batches: Iterator[tuple[int, Array]], count: int, *,
            threads: int | None = None, progress: Progress | None = None) -> Proof:  # fmt: skip
    """The proof with what `count` images showed; AssertionError if a value lies outside its interval."""
    ends: Ends = {}
    engine, names = Engine(graph), list(graph.tensors)

    def sink(start: int, tensors: dict[str, Array]) -> None:
        for node in graph.nodes:
            _note(ends, (node.name, "y"), [int(tensors[node.output].min()), int(tensors[node.output].max())])
            _taps(ends, node, [tensors[name] for name in node.inputs], tensors[node.output])
        if progress:
            progress(start + len(tensors[names[0]]), count)

    engine.stream(batches, names, sink, threads=threads)
    claims = tuple(dataclasses.replace(c, observed=ends.get((c.site, c.name))) for c in proof.claims)
    for claim in claims:
        contradiction(claim)
    return dataclasses.replace(proof, claims=claims)


def contradiction(claim: Claim) -> None:
    if claim.observed is not None and claim.observed not in claim.interval:
        raise AssertionError(
            f"{claim.site} {claim.name}: {claim.observed.low}..{claim.observed.high} was seen outside the proven "
            f"{claim.interval.low}..{claim.interval.high}"
        )


def _note(ends: Ends, key: tuple[str, str], values: Sequence[int]) -> None:
    seen = Interval(min(values), max(values))
    ends[key] = ends[key] | seen if key in ends else seen


def _taps(ends: Ends, node: Node, inputs: list[Array], output: Array) -> None:
    if node.op == "linear":
        bias = node.arrays.get("bias")
        sums = output if bias is None else output.astype(np.int64) - bias
        if "numerics" not in node.attrs:
            _note(ends, (node.name, "sum"), [int(sums.min()), int(sums.max())])
    elif "method" in node.attrs:
        _note_all(ends, node, _method_taps(node, inputs[0]))
    elif node.op == "requantize" and "residual" not in node.arrays:
        kind = operators.get(node.op)
        assert kind is not None
        assert kind.spec is not None
        with listening() as taps:
            kind.spec(node, [], None)([_some(values) for values in inputs])  # type: ignore[arg-type]
        _note_all(ends, node, taps)


def _some(values: Array) -> Array:
    """Some rows, evenly spaced."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[:: max(len(rows) // ROWS, 1)]


def _method_taps(node: Node, values: Array) -> Taps:
    method, params, mask = node_method(node), method_params(node), mask_rows(node, values.shape)
    rows = values.reshape(-1, values.shape[-1])
    with listening() as taps:
        for i in range(0, len(rows), max(len(rows) // ROWS, 1)):
            row: list[Any] = rows[i].tolist()
            method.spec(row, params) if mask is None else method.spec(row, params, mask[i].tolist())
    return taps


def _note_all(ends: Ends, node: Node, taps: Taps) -> None:
    for name, values in taps.items():
        known = [v for v in values if v is not None]
        if known:
            _note(ends, (node.name, name), known)
