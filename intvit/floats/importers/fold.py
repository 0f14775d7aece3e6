"""A foreign ONNX graph fixed to one image: cut, constants folded, LayerNorm and GELU fused by onnxruntime.

What onnxruntime gets to see is a graph of functions of their inputs, of bounded size: nothing is drawn at random, and
no constant is made that the file does not account for.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, inliner, numpy_helper, shape_inference

from intvit.errors import IntvitError, reading, reason
from intvit.floats.importers.builder import needed
from intvit.floats.importers.onnx import attributes
from intvit.floats.importers.rewrites import handlers
from intvit.graph.ir import Array

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
LEAST_OPSET = 7
"""Of onnxruntime; older operators also broadcast and drop out in other ways."""
ONNX_DOMAINS = ("", "ai.onnx")
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
MOST_NODES = 200_000
MOST_ELEMENTS = 2**28
"""Of one activation of one image."""
FREE_ELEMENTS, FOLDED_PER_ELEMENT = 2**26, 4
"""Of the constants that folding may make: so many, or so many for each that the file holds."""
SMALL = 1024
"""Elements up to which a constant may be a shape."""
NOT_FUSED = [
    "AttentionFusion", "BiasGeluFusion", "BiasSoftmaxFusion", "ConvAddFusion", "ConvMulFusion", "ConvActivationFusion",
    "GemmActivationFusion", "MatMulActivationFusion", "MatMulAddFusion", "MatMulScaleFusion", "MatmulTransposeFusion",
    "NchwcTransformer", "SkipLayerNormFusion", "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "QuickGeluFusion",
]  # fmt: skip
"""Fusions of onnxruntime that would hide what is to be seen."""


def fold(model: onnx.ModelProto, until: str | None, start: str | None, img_size: Any) -> onnx.ModelProto:
    """The part of `model` from `start` to `until` at one image, constants folded and LayerNorm and GELU fused."""
    opsets = [entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS]
    if len(opsets) != 1 or opsets[0] < LEAST_OPSET:
        raise IntvitError(f"opset: must be {LEAST_OPSET} or newer, not {opsets}; export the model anew")
    _check_functions(model)
    with reading("functions", "such that they can be inlined"):
        model = inliner.inline_local_functions(model)
    _to_float32(model.graph)
    graph = model.graph
    output = _tensor(model, "--until", until) if until else _only_output(model)
    source = _tensor(model, "--from", start) if start else None
    _check_deterministic(graph, depended_on(graph, [output], source), opsets[0])
    kept = depended_on(graph, [output, source or output])
    _check_order(kept)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    del graph.output[:]
    _fix_input(model, img_size)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys([output, source or output]))
    _check_size(model)
    folded = _optimize(model)
    if source is not None:
        _cut_before(folded, source, {name for node in graph.node for name in node.output})
    del folded.graph.output[1:]
    kept = needed(folded.graph.node, folded.graph.output[0].name, source)
    del folded.graph.node[:]
    folded.graph.node.extend(kept)
    return folded


# ------------------------------------------------------------------------------- what a graph may hold


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: branches, loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those inside them."""
    for node in nodes:
        yield node
        for body in _bodies(node):
            yield from _nodes(body.node)


def depended_on(graph: onnx.GraphProto, outputs: Sequence[str], given: str | None = None) -> list[onnx.NodeProto]:
    """The nodes, in file order, that `outputs` depend on; the tensor `given` is taken as it is, not computed."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    seen: set[int] = set()
    todo = [name for name in outputs if name != given]
    while todo:
        at = producers.get(todo.pop())
        if at is None or at in seen:
            continue
        seen.add(at)
        todo += [name for node in _nodes([graph.node[at]]) for name in node.input if name != given]
        todo += [value.name for inner in _nodes([graph.node[at]]) for g in _bodies(inner) for value in g.output]
    return [node for i, node in enumerate(graph.node) if i in seen]


def _check_order(nodes: Sequence[onnx.NodeProto]) -> None:
    """What ONNX asks for, and onnxruntime does not."""
    later = {name for node in nodes for name in node.output if name}
    for node in nodes:
        for name in node.input:
            if name in later:
                raise IntvitError(f"{node.name or name} ({node.op_type}): reads {name} before it is computed")
        later.difference_update(node.output)


def _check_functions(model: onnx.ModelProto) -> None:
    """The model's own functions must be finite once they are written out."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], inside: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in _nodes(nodes):
            key = (node.domain, node.op_type)
            if key in inside:
                raise IntvitError(f"{node.op_type}: a function must not call itself")
            if key in bodies and key not in sizes:
                sizes[key] = size(bodies[key].node, (*inside, key))
            total = min(total + sizes.get(key, 1), 2 * MOST_NODES)
        return total

    n_nodes = size(model.graph.node, ())
    if n_nodes > MOST_NODES:
        raise IntvitError(f"nodes: must be {MOST_NODES} at most, functions written out, and are more")


def _check_deterministic(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], opset: int) -> None:
    """Every node must be a function of its inputs: an import must give the same weights whenever it is run."""
    constants = _constants(graph)  # operators of other domains are not known to be functions of their inputs
    for node in _nodes(nodes):
        name = node.name or next(iter(node.output), "")
        if node.domain not in ONNX_DOMAINS and f"{node.domain}.{node.op_type}" not in handlers():
            raise IntvitError(f"{name} ({node.domain}.{node.op_type}): this operator has no integer form")
        if node.op_type in RANDOM:
            raise IntvitError(f"{name} ({node.op_type}): must be a function of its inputs, and draws at random; "
                              "export the model in evaluation mode")  # fmt: skip
        mode = attributes(node).get("training_mode", 0) if node.op_type == "BatchNormalization" else 0
        if node.op_type == "BatchNormalization" and opset < 14:
            mode = len([output for output in node.output if output]) > 1
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            given = constants.get(node.input[2])
            mode = given is None or bool(np.any(given))
        if mode:
            raise IntvitError(f"{name} ({node.op_type}): must not be in training mode; export the model in evaluation "
                              "mode")  # fmt: skip


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Small constants by name, also those inside other nodes and behind Identity and Cast; no name that has two."""
    found: dict[str, list[Array]] = {}
    for tensor in [*graph.initializer, *(t for n in _nodes(graph.node) for g in _bodies(n) for t in g.initializer)]:
        if math.prod(tensor.dims) <= SMALL:
            found.setdefault(tensor.name, []).append(numpy_helper.to_array(tensor))
    for node in _nodes(graph.node):
        if node.op_type == "Constant" and node.output:
            value = constant_value(node)
            found.setdefault(node.output[0], []).extend([] if value is None or value.size > SMALL else [value])
        elif node.op_type in ("Identity", "Cast") and node.input and node.output:
            found.setdefault(node.output[0], []).extend(found.get(node.input[0], []))
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def constant_value(node: onnx.NodeProto) -> Array | None:
    """What a Constant node holds; None for strings and the like."""
    kinds = {AttributeProto.FLOAT: np.float32, AttributeProto.FLOATS: np.float32, AttributeProto.INT: np.int64,
             AttributeProto.INTS: np.int64}  # fmt: skip
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            return numpy_helper.to_array(value)
        if attribute.type in kinds:
            return np.asarray(value, kinds[attribute.type])
    return None


# --------------------------------------------------------------------------------- how large it may get


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` for shape inference: its large constants are inputs."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.graph.name = "skeleton"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _inferred(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """(element type, shape) of every tensor whose shape follows; not an error if none does."""
    try:
        graph = shape_inference.infer_shapes(_skeleton(model), data_prop=True).graph
    except Exception:  # onnxruntime, which knows more operators, judges the graph
        return {}
    return _stated(graph)


def _stated(graph: onnx.GraphProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    kinds = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.output, *graph.input]}
    return {
        name: (kind.elem_type, tuple(d.dim_value for d in kind.shape.dim))
        for name, kind in kinds.items()
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
    }


def _check_size(model: onnx.ModelProto) -> None:
    """Refuse what would take more memory than the file accounts for, before anything is computed."""
    elements = {name: math.prod(shape) for name, (_, shape) in _inferred(model).items()}
    held = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    constants = {tensor.name for tensor in model.graph.initializer}
    active = {value.name for value in model.graph.input} - constants
    most = max(FREE_ELEMENTS, FOLDED_PER_ELEMENT * held)
    made = 0
    for name in active:
        if elements.get(name, 0) > MOST_ELEMENTS:
            raise IntvitError(f"{name}: must have {MOST_ELEMENTS} elements at most, not {elements[name]}")
    for node in model.graph.node:
        moves = any(name in active for name in node.input) and node.op_type not in ("Shape", "Size")
        for name in node.output:
            count = elements.get(name, 0)
            if moves:
                active.add(name)
            else:
                made += count
            if count > MOST_ELEMENTS or made > most:
                raise IntvitError(f"{node.name or name} ({node.op_type}): output must not have {count} elements, "
                                  f"as the file holds {held}")  # fmt: skip


def check_result(node: onnx.NodeProto, constants: Sequence[Array], opsets: Any) -> None:
    """ValueError if a node of constants makes more of them than they account for, or does not tell how many."""
    names = [name for name in node.input if name]
    graph = onnx.GraphProto(name="constant", node=[node])
    for name, value in dict(zip(names, constants, strict=True)).items():
        if value.size <= SMALL:
            graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    single = onnx.ModelProto(ir_version=8, graph=graph, opset_import=opsets)
    elements = {name: math.prod(shape) for name, (_, shape) in _inferred(single).items()}
    held = sum(value.size for value in constants)
    if any(True for _ in _bodies(node)):
        raise ValueError("a constant must not be computed by a loop or a branch")
    for name in node.output:
        if name and elements.get(name, held if node.op_type in FILTERS else None) is None:
            raise ValueError("how large its result gets must follow from its inputs")
        if name and elements.get(name, 0) > max(FREE_ELEMENTS, FOLDED_PER_ELEMENT * held):
            raise ValueError(f"its result must not have {elements[name]} elements")


FILTERS = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose result is no larger than what they read, to a factor of the rank."""


def _cut_before(folded: onnx.ModelProto, source: str, names: set[str]) -> None:
    """Make tensor `source` the input of a folded graph; IntvitError if the output needs more than it."""
    graph = folded.graph
    output = graph.output[0].name
    if not any(source in node.input for node in needed(graph.node, output)):
        raise IntvitError(f"--from {source}: the output {output} must depend on it")
    kept = needed(graph.node, output, source)
    known = {tensor.name for tensor in graph.initializer} | {"", source}
    for node in kept:
        lacking = [name for name in node.input if name not in known]
        if lacking:
            hint = "".join(f"; --from {name} carries everything" for name in _separator(graph, source, names))
            reader = f"{node.name or node.output[0]} ({node.op_type})"
            raise IntvitError(
                f"--from {source}: what follows must depend on it alone, and {reader} also reads {lacking[0]}{hint}"
            )
        known.update(node.output)
    kind, shape = {**_inferred(folded), **_stated(graph)}.get(source, (0, ()))
    if kind not in FLOATS or min(shape, default=0) < 1:
        raise IntvitError(f"--from {source}: must be an activation of known size")
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(source, kind, shape))


def _separator(graph: onnx.GraphProto, source: str, names: set[str]) -> list[str]:
    """The tensor nearest before `source`, else after it, that every way from input to output passes; or none."""
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last[graph.output[0].name] = len(graph.node)
    live, seen = {value.name for value in graph.input}, False
    before: list[str] = []
    after: list[str] = []
    for i, node in enumerate(graph.node):
        if live.intersection(node.input):
            live.update(name for name in node.output if name in last)
        live = {name for name in live if last.get(name, -1) > i}
        seen = seen or source in node.output
        if len(live) == 1 and live <= names.intersection(node.output) and graph.output[0].name not in live:
            (after if seen else before).extend(live)
    return before[-1:] or after[:1]


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
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in FLOATS:
        raise IntvitError(f"{inputs[0].name}: must be of a float type, not of ONNX type {kind}")
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) < 2:
        raise IntvitError(f"{inputs[0].name}: must be images (batch, C, H, W) or tokens, not {len(dims)} axes")
    if dims[0].dim_value > 1:
        raise IntvitError(f"{inputs[0].name}: batch must be free or 1, not fixed to {dims[0].dim_value}; export it so")
    sides = [int(v) for v in (img_size if isinstance(img_size, (list, tuple)) else [img_size] * 2) if v is not None]
    if len(sides) not in (0, 2) or min(sides, default=1) < 1:
        raise IntvitError(f"img_size: must be one or two positive integers, not {img_size}")
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
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(4 * MOST_ELEMENTS))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=NOT_FUSED
            )
            folded = onnx.load(str(target))
        except Exception as error:
            raise IntvitError(f"onnxruntime must be able to load the graph, and says: {reason(error)}") from None
    constants = {tensor.name for tensor in folded.graph.initializer}
    inputs = [value for value in folded.graph.input if value.name not in constants]
    del folded.graph.input[:]
    folded.graph.input.extend(inputs)
    return folded
