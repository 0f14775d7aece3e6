"""A hand-made integer graph in which every operator occurs, for tests of what is around it."""

from __future__ import annotations

import dataclasses

import numpy as np

from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.graph.ranges import narrowest
from intvit.kernels import registry
from intvit.kernels.requantize import dyadic
from intvit.spec import SPEC_VERSION

ROWS, CHANNELS, SCALE = 3, 4, 0.0625


class _Builder:
    def __init__(self):
        self.nodes, self.tensors = [], {}

    def tensor(self, name, shape, dtype, scale, **values):
        self.tensors[name] = Tensor(name, shape, dtype, np.asarray(scale, np.float64), **values)

    def node(self, op, name, inputs, **values):
        self.nodes.append(Node(op, name, inputs, name, **values))

    def method(self, op, name, method, source, options=None, **facts):
        m, x = registry.get(op, method), self.tensors[source]
        params, scale = m.constants(float(x.scale), facts, options or {})
        values = dataclasses.asdict(params)
        arrays = {key: np.array(v, np.int64) for key, v in values.items() if isinstance(v, tuple)}
        scalars = {key: v for key, v in values.items() if not isinstance(v, tuple)}
        bound = m.bound(params, x.max_abs, x.shape[-1])
        dtype = IntType(64) if bound is None else narrowest(bound, 8)
        self.tensor(name, x.shape, dtype, scale, encoding=m.out_encoding, bound=bound)
        attrs = {"method": method, "version": m.version, "params": scalars}
        self.node(op, name, (source,), attrs=attrs, arrays=arrays)

    def requantize(self, name, source, scale, bits=8, other=None):
        x = self.tensors[source]
        arrays = dict(zip(("m", "e"), dyadic(x.scale, scale), strict=True))
        inputs = (source,)
        if other is not None:
            inputs = (source, other)
            arrays |= zip(("residual_m", "residual_e"), dyadic(self.tensors[other].scale, scale), strict=True)
        self.tensor(name, x.shape, IntType(bits), scale)
        self.node("requantize", name, inputs, attrs={"bits": bits}, arrays=arrays)


def small_graph() -> Graph:
    b, rng = _Builder(), np.random.default_rng(7)
    shape, square = (1, ROWS, CHANNELS), (1, ROWS, ROWS)
    b.tensor("x", shape, IntType(8), SCALE)
    weight, bias = rng.integers(-127, 128, (CHANNELS, CHANNELS)), rng.integers(-500, 500, CHANNELS)
    b.tensor("fc", shape, IntType(32), SCALE * np.array([0.01, 0.02, 0.015, 0.01]), bound=127 * 127 * 4 + 500)
    b.node("linear", "fc", ("x",), arrays={"weight": weight.astype(np.int8), "bias": bias.astype(np.int64)})
    b.requantize("fc.quant", "fc", SCALE)
    b.method("softmax", "codes", "fqvit", "fc.quant", out_bits=4, exp_range_max=None)
    b.tensor("v", (1, CHANNELS, ROWS), IntType(8), SCALE)
    b.node("transpose", "v", ("fc.quant",), attrs={"perm": [0, 2, 1]})
    b.tensor("av", square, IntType(32), SCALE * 2.0**-15, bound=CHANNELS * 128 << 15)
    b.node("log2_matmul", "av", ("codes", "v"))
    b.tensor("qk", square, IntType(32), SCALE * SCALE, bound=CHANNELS * 128 * 128)
    b.node("matmul", "qk", ("fc.quant", "v"))
    b.requantize("sum", "av", SCALE, bits=16, other="qk")
    b.method("softmax", "weights", "ibert", "sum", out_bits=8, exp_range_max=None)
    b.method("gelu", "act", "ibert", "fc.quant", {"n": 6})
    norm = {"gamma": np.array([1.0, 0.5, -0.25, 2.0]), "beta": np.array([0.5, 0, 0.25, -1.0])}
    b.method("layernorm", "norm", "ivit", "fc.quant", shift=0, out_scale=SCALE, **norm)
    b.tensor("pool", (1, CHANNELS), IntType(8), SCALE)
    b.node("mean", "pool", ("fc.quant",), attrs={"axis": 1, "keepdims": False})
    metadata = {"recipe": {"bits": 8, "note": None, "sites": {}}, "spec_version": SPEC_VERSION}
    graph = Graph(("x",), ("pool", "norm"), tuple(b.nodes), b.tensors, metadata)
    check(graph)
    return graph


def graph_of_a_wide_softmax() -> Graph:
    """An FQ-ViT softmax whose sum of exponents is proven for no input: it depends on the values that it meets."""
    b, fine = _Builder(), 2.0**-15
    b.tensor("x", (1, ROWS, 2), IntType(8), 2.0**-3)
    b.requantize("wide", "x", fine, bits=24)
    b.method("softmax", "weights", "fqvit", "wide", out_bits=4, exp_range_max=None)
    metadata = {"recipe": {"bits": 8, "note": None, "sites": {}}, "spec_version": SPEC_VERSION}
    graph = Graph(("x",), ("weights",), tuple(b.nodes), b.tensors, metadata)
    check(graph)
    return graph


def small_images(n=1) -> np.ndarray:
    return np.random.default_rng(8).integers(-128, 128, (n, 1, ROWS, CHANNELS)).astype(np.int8)


def renamed(graph: Graph, names) -> Graph:
    """The same graph, `names[old]` for the sites and tensors that it lists."""
    tensors = {names.get(t.name, t.name): dataclasses.replace(t, name=names.get(t.name, t.name))
               for t in graph.tensors.values()}  # fmt: skip
    nodes = tuple(
        dataclasses.replace(
            node,
            name=names.get(node.name, node.name),
            inputs=tuple(names.get(name, name) for name in node.inputs),
            output=names.get(node.output, node.output),
        )
        for node in graph.nodes
    )
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors, outputs=outputs)
