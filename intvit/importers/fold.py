"""A foreign ONNX graph fixed to one image: cut, constants folded, LayerNorm and GELU fused by onnxruntime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from intvit.errors import IntvitError
from intvit.importers.builder import needed

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
NOT_FUSED = [
    "AttentionFusion", "BiasGeluFusion", "BiasSoftmaxFusion", "ConvAddFusion", "ConvMulFusion", "ConvActivationFusion",
    "GemmActivationFusion", "MatMulActivationFusion", "MatMulAddFusion", "MatMulScaleFusion", "MatmulTransposeFusion",
    "NchwcTransformer", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "QuickGeluFusion",
]  # fmt: skip
"""Fusions of onnxruntime that would hide what is to be seen."""


def fold(model: onnx.ModelProto, until: str | None, start: str | None, img_size: Any) -> onnx.ModelProto:
    """The part of `model` from `start` to `until` at one image, constants folded and LayerNorm and GELU fused."""
    model = inliner.inline_local_functions(model)
    _to_float32(model.graph)
    graph = model.graph
    output = _tensor(model, "--until", until) if until else _only_output(model)
    source = _tensor(model, "--from", start) if start else None
    _fix_input(model, img_size)
    del graph.value_info[:]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys([output, source or output]))
    folded = _optimize(model)
    if source is not None and source != folded.graph.input[0].name:
        kinds = {value.name: value for value in folded.graph.output}
        del folded.graph.input[:]
        folded.graph.input.append(kinds[source])
    del folded.graph.output[1:]
    kept = needed(folded.graph.node, folded.graph.output[0].name, source)
    del folded.graph.node[:]
    folded.graph.node.extend(kept)
    return folded


def _to_float32(graph: onnx.GraphProto) -> None:
    """Half-precision graphs in float32: weights, inputs, casts."""

    def widened(tensor: onnx.TensorProto) -> None:
        if tensor.data_type in HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    for tensor in graph.initializer:
        widened(tensor)
    for value in graph.input:
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widened(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT


def _tensor(model: onnx.ModelProto, option: str, name: str) -> str:
    """The tensor called `name`, or the first output of the node called so."""
    for node in model.graph.node:
        if name in node.output:
            return name
        if name == node.name:
            return str(node.output[0])
    if any(name == value.name for value in model.graph.input):
        return name
    raise IntvitError(f"{option}: must name a node or tensor of the graph, and {name!r} is none")


def _only_output(model: onnx.ModelProto) -> str:
    names = [value.name for value in model.graph.output]
    if len(names) != 1:
        raise IntvitError(f"outputs: the graph has {len(names)}, {', '.join(names)}; choose one with --until")
    return names[0]


def _fix_input(model: onnx.ModelProto, img_size: Any) -> None:
    constants = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise IntvitError(f"inputs: the graph must have one, not {[value.name for value in inputs]}")
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) < 2:
        raise IntvitError(f"{inputs[0].name}: must be images (batch, C, H, W) or tokens, not {len(dims)} axes")
    if dims[0].dim_value > 1:
        raise IntvitError(f"{inputs[0].name}: batch must be free or 1, not fixed to {dims[0].dim_value}; export it so")
    sides = [int(v) for v in (img_size if isinstance(img_size, (list, tuple)) else [img_size, img_size]) if v]
    fixed = [1, *(dim.dim_value for dim in dims[1:])]
    if len(dims) == 4 and sides:
        for axis, side in zip((2, 3), sides, strict=True):
            if fixed[axis] not in (0, side):
                raise IntvitError(f"img_size: must be the {fixed[axis]} that the graph is fixed to, not {side}")
            fixed[axis] = side
    if len(dims) == 4 and fixed[1] == 0:
        fixed[1] = _channels(model, inputs[0].name)
    if min(fixed) < 1:
        raise IntvitError(f"{inputs[0].name}: size must be known, not {fixed}; give it with --img-size")
    for dim, value in zip(dims, fixed, strict=True):
        dim.Clear()
        dim.dim_value = value


def _channels(model: onnx.ModelProto, name: str) -> int:
    """Channels that the convolution over the input wants."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in shapes:
            return int(shapes[node.input[1]][1])
    return 0


def _optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=NOT_FUSED
            )
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntvitError(f"onnxruntime must be able to load the graph, and says: {line}") from None
        return onnx.load(str(target))
