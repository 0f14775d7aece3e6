"""Plan: an integer Graph as steps of the fast kernels, each of one node or of several fused ones.

A step writes only the last tensor of the nodes that it covers, so that a plan is made for the tensors that are wanted:
an intermediate that somebody wants is not fused away. Every rule (`operators`, `fuse`) gives the integers of its nodes
evaluated one by one by `evaluate.prepare`, which is also what runs where no rule applies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from intvit.engine.evaluate import prepare_in
from intvit.errors import placed
from intvit.graph import layout, operators
from intvit.graph.inttypes import storage
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node, Tensor
from intvit.graph.operators.kind import Evaluate
from intvit.graph.operators.requantize import requantizer
from intvit.kernels import gemm


@dataclass(frozen=True)
class Step:
    """`run` turns batched `inputs` into the batched `output`; it covers `nodes`."""

    inputs: tuple[str, ...]
    output: str
    run: Evaluate
    nodes: tuple[Node, ...]

    @cached_property
    def sites(self) -> str:
        """What it covers, for messages."""
        return ", ".join(node.name for node in self.nodes)


def make_plan(graph: IntGraph, wanted: Collection[str], path: str | None = None) -> list[Step]:
    """Steps for `graph` that produce at least the tensors of `wanted` and the graph's outputs."""
    planner = Planner(graph, frozenset(wanted) | frozenset(graph.outputs), path or gemm.chosen_path())
    return planner.plan()


@dataclass(frozen=True)
class Planner:
    """What a rule may ask: of the nodes after its own, of what is wanted, of the product path of this machine."""

    graph: IntGraph
    wanted: frozenset[str]
    path: str

    @cached_property
    def position(self) -> dict[str, int]:
        """Tensor -> the index of the node that makes it."""
        return {node.output: i for i, node in enumerate(self.graph.nodes)}

    def plan(self) -> list[Step]:
        steps: list[Step] = []
        covered: set[str] = set()
        for node in self.graph.nodes:
            if node.output in covered:
                continue
            with placed(node.name):
                step = self.step(node)
            covered.update(n.output for n in step.nodes)
            steps.append(step)
        return steps

    def step(self, node: Node) -> Step:
        kind = operators.get(node.op)
        found = kind.fuse(self, node) if kind and kind.fuse else None
        if found is not None:
            return found
        return self.step_of([node], self.prepare(node))

    def prepare(self, node: Node) -> Evaluate:
        """What evaluates a node by itself."""
        return prepare_in(self.graph, node)

    def step_of(self, nodes: Sequence[Node], run: Evaluate, inputs: tuple[str, ...] | None = None) -> Step:
        """A step that covers `nodes`; it reads what the first of them reads, if not other `inputs`."""
        return Step(nodes[0].inputs if inputs is None else inputs, nodes[-1].output, run, tuple(nodes))

    def tensor(self, name: str) -> Tensor:
        return self.graph.tensors[name]

    def narrow(self, name: str) -> bool:
        """True if tensor `name` is stored in 8 bits."""
        return storage(self.tensor(name).dtype) is np.int8

    def next(self, node: Node) -> Node | None:
        """The one node that reads the output of `node`, if nobody else wants it."""
        consumers = self.graph.consumers[node.output]
        return consumers[0] if len(consumers) == 1 and node.output not in self.wanted else None

    def requantize_after(self, node: Node) -> Node | None:
        """The requantization of one term, maybe to a zero point, that alone reads the output of `node`."""
        after = self.next(node)
        if after is None or after.op != "requantize":
            return None
        return after if "residual_m" not in after.arrays or self.tensor(after.output).zero_point else None

    def epilogue(self, node: Node | None, columns: int) -> gemm.Epilogue | None:
        if node is None:
            return gemm.Epilogue.raw()
        plus = self.tensor(node.output).zero_point
        prepared = requantizer(node)
        if not prepared.is_plain(4):
            return None
        rounding, m, e = prepared.term.rounding, node.arrays["m"], node.arrays["e"]
        return gemm.Epilogue.dyadic(m, e, node.attrs["bits"], columns, rounding, plus=plus)

    def moves_to_requantize(self, node: Node) -> tuple[list[Node], Node | None]:
        """Layout between `node` and the requantization of its output, if that can be done before it."""
        moves: list[Node] = []
        at = node
        while (after := self.next(at)) is not None and after.op in LAYOUT_OPS and len(after.inputs) == 1:
            moves.append(after)
            at = after
        last = self.requantize_after(at)
        if last is None:
            return [], None
        one = len(last.arrays["m"]) == 1 and len(last.arrays["e"]) == 1
        if any(m.arrays for m in moves) or not (one or self._channels_return(moves, self.tensor(node.output).shape)):
            return [], None
        return moves, last

    def _channels_return(self, moves: Sequence[Node], shape: tuple[int, ...]) -> bool:
        """True if the last axis before the moves is, element for element, the last after them: tried on indices."""
        channels = np.arange(shape[-1])
        index = self.moved(np.broadcast_to(channels, (1, *shape)), moves)
        return index.shape[-1] == shape[-1] and bool(np.all(index == channels))

    def moved(self, array: Array, moves: Sequence[Node]) -> Array:
        for move in moves:
            array = layout.apply(move, [array])
        return array
