"""Building the canonical float ONNX form: batch axis 0, node name = output tensor name = site name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from intvit.errors import IntvitError
from intvit.floats.importers.onnx import DOMAIN, METADATA_KEY, functions
from intvit.graph.ir import Array

OPSET, IR_VERSION = 20, 10
MOST_BYTES = 2**31 - 2**24
"""Of constants: ONNX's limit, less what nodes and names may take."""


@dataclass
class Builder:
    """Appends ONNX nodes; a node's name is its output's name."""

    input: str = "input"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)

    def add(self, op: str, name: str, *inputs: str, **attrs: Any) -> str:
        """A node of ONNX, or of a function that the file will carry."""
        if any(function.name == op for function in functions()):
            attrs["domain"] = DOMAIN
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.initializers[name] = np.asarray(value)
        return name

    def reshape(self, name: str, x: str, *shape: int) -> str:
        """Per-image `shape`; the batch axis stays."""
        return self.add("Reshape", name, x, self.constant(f"{name}.shape", np.array([0, *shape], np.int64)))

    def transpose(self, name: str, x: str, *perm: int) -> str:
        return self.add("Transpose", name, x, perm=perm)

    def take(self, name: str, x: str, axis: int, index: int) -> str:
        return self.add("Gather", name, x, self.constant(f"{name}.index", np.int64(index)), axis=axis)

    def slice(self, name: str, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        parts = {"start": start, "stop": stop, "axis": axis, "step": step}
        return self.add(
            "Slice", name, x, *(self.constant(f"{name}.{k}", np.array([v], np.int64)) for k, v in parts.items())
        )

    def linear(self, site: str, x: str, weight: Array, bias: Array | None) -> str:
        columns = self.constant(f"{site}.weight.T", np.ascontiguousarray(weight.T))
        if bias is None:
            return self.add("MatMul", site, x, columns)
        product = self.add("MatMul", f"{site}.matmul", x, columns)
        return self.add("Add", site, product, self.constant(f"{site}.bias", bias))

    def layernorm(self, site: str, x: str, gamma: Array, beta: Array, eps: float) -> str:
        names = self.constant(f"{site}.weight", gamma), self.constant(f"{site}.bias", beta)
        return self.add("LayerNormalization", site, x, *names, axis=-1, epsilon=eps)

    def over_batch(self, name: str, constant: Array) -> str:
        """A constant (1, ...) once per image: what an ONNX Concat with an activation needs."""
        if "batch_size" not in self.initializers:
            self.initializers["batch_size"] = np.array([0], np.int64)
            shape = self.add("Shape", "input_shape", self.input)
            self.add("Gather", "batch", shape, "batch_size")
        rest = self.constant(f"{name}.rest", np.array(constant.shape[1:], np.int64))
        target = self.add("Concat", f"{name}.shape", "batch", rest, axis=0)
        return self.add("Expand", name, self.constant(f"{name}.constant", constant), target)

    def model(
        self, input_shape: Sequence[int], output: str, output_shape: Sequence[int], metadata: dict[str, Any]
    ) -> onnx.ModelProto:
        """The model with per-image `input_shape` and `output_shape`; the batch axis is free."""
        for name, value in self.initializers.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise IntvitError(f"{name}: weights must stay finite where they are folded, not overflow")
        if sum(value.nbytes for value in self.initializers.values()) > MOST_BYTES:
            raise IntvitError("weights: must fit the 2 GB of an ONNX file, and do not")
        graph = helper.make_graph(
            self.nodes,
            str(metadata["architecture"]),
            [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *output_shape])],
            [numpy_helper.from_array(value, name) for name, value in self.initializers.items()],
        )
        used = [f for f in functions() if any(node.domain == DOMAIN and node.op_type == f.name for node in self.nodes)]
        domains = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(DOMAIN, 1)] if used else [])]
        model = helper.make_model(
            graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="intvit", functions=used
        )
        helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        onnx.checker.check_model(model)
        return model


def needed(nodes: Iterable[onnx.NodeProto], output: str, given: str | None = None) -> list[onnx.NodeProto]:
    """The nodes, in order, that `output` depends on; the tensor `given` is taken as it is, not computed."""
    names, kept = {output} - {given}, []
    for node in reversed(list(nodes)):
        if names.intersection(node.output):
            names.update(name for name in node.input if name != given)
            kept.append(node)
    return kept[::-1]


def evaluate(node: onnx.NodeProto, constants: Sequence[Array], opsets: Any) -> list[Array]:
    """What a node computes from constants, by onnxruntime: one per named input, repeated names repeated."""
    import onnxruntime as ort

    graph = onnx.GraphProto(name="constant", node=[node])
    named = dict(zip([name for name in node.input if name], constants, strict=True))
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in named.items())
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    single = onnx.ModelProto(ir_version=8, graph=graph, opset_import=opsets)
    session = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {}))


def resize_bicubic(grid: Array, rows: int, cols: int, *, antialias: bool = False) -> Array:
    """(N, C, H, W) float32 to (N, C, rows, cols), half pixels, as PyTorch interpolates: cubic with a = -0.75.

    With `antialias`, as PyTorch then does: a = -0.5, in each axis over as many pixels more as it gets smaller.
    """
    if antialias:
        down, across = (_antialiased(old, new) for old, new in zip(grid.shape[2:], (rows, cols), strict=True))
        return np.einsum("ri,nchi->nchr", across, np.einsum("ri,nciw->ncrw", down, grid)).astype(np.float32)
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode="cubic", coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=-0.75,
    )  # fmt: skip
    sizes = np.array([*grid.shape[:2], rows, cols], np.int64)
    return evaluate(node, [grid, sizes], [helper.make_opsetid("", OPSET)])[0]


def _antialiased(old: int, new: int) -> Array:
    """(new, old) weights of a cubic filter (a = -0.5) that is stretched where an axis gets shorter."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    t = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
