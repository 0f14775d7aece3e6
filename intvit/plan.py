"""Plan: an integer Graph as steps of the fast kernels, each of one node or of several fused ones.

A step writes only the last tensor of the nodes that it covers, so that a plan is made for the tensors that are wanted:
an intermediate that somebody wants is not fused away. Every rule gives the integers of its nodes evaluated one by one
by `evaluate.prepare`, which is also what runs where no rule applies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from intvit.evaluate import Evaluate, mask_rows, prepare, storage
from intvit.graph import layout
from intvit.graph.ir import LAYOUT_OPS, Array, Graph, Node, Tensor
from intvit.graph.parameters import method_params, node_method
from intvit.kernels import gemm, tables
from intvit.kernels.matmul import LOG2_LIFT, log2_weights
from intvit.method import GeluForms, LayerNormForms, SoftmaxForms

UNSIGNED_LIFT = 1 << 15


@dataclass(frozen=True)
class Step:
    """`run` turns batched `inputs` into the batched `output`; it covers `nodes`."""

    inputs: tuple[str, ...]
    output: str
    run: Evaluate
    nodes: tuple[Node, ...]


def make_plan(graph: Graph, wanted: Collection[str], path: str | None = None) -> list[Step]:
    """Steps for `graph` that produce at least the tensors of `wanted` and the graph's outputs."""
    planner = _Planner(graph, frozenset(wanted) | frozenset(graph.outputs), path or gemm.chosen_path())
    return planner.plan()


@dataclass(frozen=True)
class _Planner:
    graph: Graph
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
            step = self.step(node)
            covered.update(n.output for n in step.nodes)
            steps.append(step)
        return steps

    def step(self, node: Node) -> Step:
        rule = _RULES.get(node.op)
        found = rule(self, node) if rule else None
        if found is not None:
            return found
        inputs = [self.tensor(name) for name in node.inputs]
        return Step(node.inputs, node.output, prepare(node, inputs, self.tensor(node.output)), (node,))

    def tensor(self, name: str) -> Tensor:
        return self.graph.tensors[name]

    def narrow(self, name: str) -> bool:
        """True if tensor `name` is stored in 8 bits."""
        dtype = self.tensor(name).dtype
        return dtype is not None and storage(dtype) is np.int8

    def next(self, node: Node) -> Node | None:
        """The one node that reads the output of `node`, if nobody else wants it."""
        consumers = self.graph.consumers[node.output]
        return consumers[0] if len(consumers) == 1 and node.output not in self.wanted else None

    def requantize_after(self, node: Node) -> Node | None:
        after = self.next(node)
        plain = after is not None and after.op == "requantize" and "residual_m" not in after.arrays
        return after if plain else None

    def epilogue(self, node: Node | None, columns: int) -> gemm.Epilogue | None:
        if node is None:
            return gemm.Epilogue.raw()
        return gemm.Epilogue.dyadic(node.arrays["m"], node.arrays["e"], node.attrs["bits"], columns)

    def kind(self, node: Node) -> Any:
        dtype = self.tensor(node.output).dtype
        assert dtype is not None
        return storage(dtype)

    # -- rules

    def linear(self, node: Node) -> Step | None:
        """linear [-> layout that keeps the channels] -> requantize, in one pass over the accumulators."""
        moves, after = self.moves_to_requantize(node)
        nodes = (node, *moves, after) if after else (node,)
        x = self.tensor(node.inputs[0])
        assert x.dtype is not None
        epilogue = self.epilogue(after, len(node.arrays["weight"]))
        if epilogue is None:
            return None
        bias = node.arrays.get("bias")
        weight = node.arrays["weight"]
        prepared = gemm.prepare_linear(weight, bias, x.max_abs, storage(x.dtype), epilogue, self.path)
        if prepared is None:
            return None
        kind = self.kind(nodes[-1])
        if after is None and kind is not np.int32:
            return None

        def run(values: Sequence[Array]) -> Array:
            return _moved(prepared.run(values[0], kind), moves)

        return Step(node.inputs, nodes[-1].output, run, nodes)

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
        if any(m.arrays for m in moves) or not (one or self.channels_return(moves, self.tensor(node.output).shape)):
            return [], None
        return moves, last

    def channels_return(self, moves: Sequence[Node], shape: tuple[int, ...]) -> bool:
        """True if the last axis before the moves is, element for element, the last after them: tried on indices."""
        channels = np.arange(shape[-1])
        index = _moved(np.broadcast_to(channels, (1, *shape)), moves)
        return index.shape[-1] == shape[-1] and bool(np.all(index == channels))

    def product(self, node: Node) -> Step | None:
        """matmul or log2_matmul [-> layout] -> requantize."""
        convert, lift = self.left_operand(node.op, self.tensor(node.inputs[0]))
        return self.product_of(node, convert, lift) if convert else None

    def product_of(self, node: Node, convert: Callable[[Array], Array], lift: int) -> Step | None:
        """The step of a product whose left operand less `lift` is what `convert` makes of the first input."""
        moves, after = self.moves_to_requantize(node)
        a, b = (self.tensor(name) for name in node.inputs)
        out = self.tensor(node.output)
        assert a.dtype is not None
        assert out.dtype is not None
        if self.path == "blas" or out.dtype.bits > 32 or not self.narrow(b.name):
            return None
        if after is not None and len(after.arrays["m"]) > 1:
            return None
        epilogue = self.epilogue(after, b.shape[-1])
        nodes = (node, *moves, after) if after else (node,)
        kind = self.kind(nodes[-1])
        if epilogue is None or (after is None and kind is not np.int32):
            return None
        prepared = gemm.Product(self.path, epilogue, lift)
        order = self.order(moves[0] if moves else self.next(node))

        def run(values: Sequence[Array]) -> Array:
            return _moved(prepared.run(convert(values[0]), values[1], kind, order), moves)

        return Step(node.inputs, nodes[-1].output, run, nodes)

    def left_operand(self, op: str, a: Tensor) -> tuple[Callable[[Array], Array] | None, int]:
        """(how the left operand becomes int8 or int16, what is to be added to it)."""
        assert a.dtype is not None
        if op == "log2_matmul":
            return (log2_weights if self.narrow(a.name) else None), LOG2_LIFT
        if storage(a.dtype) in (np.int8, np.int16):
            return (lambda x: x), 0
        maker = self.graph.by_output.get(a.name)
        positive = maker is not None and maker.op == "softmax" and a.encoding == "linear"
        if positive and a.bound is not None and a.bound < 2 * UNSIGNED_LIFT:
            return (lambda x: (x - UNSIGNED_LIFT).astype(np.int16)), UNSIGNED_LIFT
        return None, 0

    def order(self, reader: Node | None) -> tuple[int, ...] | None:
        """The permutation of its axes in which the reader of a product wants it to lie."""
        if reader is None or reader.op != "transpose":
            return None
        return (0, *(axis + 1 for axis in reader.attrs["perm"]))

    def lookup(self, node: Node) -> Step | None:
        """An 8-bit GELU [-> requantize] as a table."""
        forms = node_method(node).fast
        x = self.tensor(node.inputs[0])
        if not isinstance(forms, GeluForms) or not self.narrow(x.name) or x.dtype is None:
            return None
        if any(array.size > 1 for array in node.arrays.values()):
            return None
        after = self.requantize_after(node)
        if after is not None and len(after.arrays["m"]) > 1:
            after = None
        nodes = (node, after) if after else (node,)
        chain = [prepare(n, [self.tensor(name) for name in n.inputs], self.tensor(n.output)) for n in nodes]

        def evaluate(rows: Array) -> Array:
            for step in chain:
                rows = step([rows])
            return rows

        prepared = tables.prepare(forms.depends, evaluate, x.dtype.min, x.dtype.max)
        return Step(node.inputs, nodes[-1].output, lambda values: prepared(values[0]), nodes)

    def softmax(self, node: Node) -> Step | None:
        """Softmax of 8-bit scores by its method's table kernel."""
        return self.weighted_product(node) or self.narrow_softmax(node)

    def narrow_softmax(self, node: Node) -> Step | None:
        forms, masked = node_method(node).fast, "mask" in node.arrays
        if not isinstance(forms, SoftmaxForms) or forms.narrow is None:
            return None
        n_channels = self.tensor(node.inputs[0]).shape[-1]
        run = self.by_rows(node, forms.narrow(method_params(node), n_channels, masked), self.kind(node))
        return Step(node.inputs, node.output, lambda values: run(values[0]), (node,)) if run else None

    def weighted_product(self, node: Node) -> Step | None:
        """Log2 softmax -> log2_matmul [-> layout -> requantize]: the softmax writes the weights, not their codes."""
        forms, masked, after = node_method(node).fast, "mask" in node.arrays, self.next(node)
        if not isinstance(forms, SoftmaxForms) or forms.narrow_weights is None:
            return None
        if after is None or after.op != "log2_matmul":
            return None
        values = after.inputs[1]
        if self.position.get(values, -1) > self.position[node.output]:
            return None
        n_channels = self.tensor(node.inputs[0]).shape[-1]
        convert = self.by_rows(node, forms.narrow_weights(method_params(node), n_channels, masked), np.int16)
        step = self.product_of(after, convert, LOG2_LIFT) if convert else None
        return step and Step((*node.inputs, values), step.output, step.run, (node, *step.nodes))

    def by_rows(self, node: Node, compiled: Any, kind: Any) -> Callable[[Array], Array] | None:
        """`compiled` as a function of the batched input of a softmax `node`, if that has 8 bits."""
        x = self.tensor(node.inputs[0])
        if compiled is None or not self.narrow(x.name):
            return None
        mask = mask_rows(node, x.shape)

        def run(values: Array) -> Array:
            rows = np.ascontiguousarray(values).reshape(-1, x.shape[-1])
            out = np.empty(rows.shape, kind)
            compiled(rows, mask, out)
            return out.reshape(values.shape)

        return run

    def layernorm(self, node: Node) -> Step | None:
        """LayerNorm on rows as they are stored, without widening them first."""
        forms = node_method(node).fast
        if not (isinstance(forms, LayerNormForms) and forms.any_rows):
            return None
        compiled = node_method(node).kernel(method_params(node))
        kind = self.kind(node)

        def run(values: Sequence[Array]) -> Array:
            rows = np.ascontiguousarray(values[0]).reshape(-1, values[0].shape[-1])
            return np.asarray(compiled(rows, None, kind)).reshape(values[0].shape)

        return Step(node.inputs, node.output, run, (node,))


def _moved(array: Array, moves: Sequence[Node]) -> Array:
    for move in moves:
        array = layout.apply(move, [array])
    return array


_RULES: dict[str, Callable[[_Planner, Node], Step | None]] = {
    "gelu": _Planner.lookup,
    "layernorm": _Planner.layernorm,
    "linear": _Planner.linear,
    "log2_matmul": _Planner.product,
    "matmul": _Planner.product,
    "softmax": _Planner.softmax,
}
