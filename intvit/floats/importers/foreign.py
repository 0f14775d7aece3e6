"""ONNX graphs exported by others -> the canonical float ONNX form.

The graph is fixed to one image (batch 1, one size). onnxruntime's optimizer folds constants and fuses decomposed
LayerNorm and GELU; what is left is walked once, node by node, and written anew. At batch 1 every shape is known, so
shape arithmetic is folded on the way, and layout is recognised by what it does to the axes, never by a node's name.

Constant factors are not written where they stand: a scalar travels through layout to the product or linear operator
that takes it (attention scale, SDPA's two square roots), a vector goes into the linear or LayerNorm before it
(LayerScale). A chain of element-wise operators over one activation is a GELU if it computes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from intvit.errors import IntvitError, reading, reason
from intvit.floats.importers.builder import Builder, evaluate
from intvit.floats.importers.fold import ONNX_DOMAINS, check_result, constant_value, fold
from intvit.floats.importers.onnx import attributes, float_graph, load_model, model_metadata
from intvit.floats.importers.rewrites import handlers, pointwise, recognised
from intvit.floats.importers.views import Pointwise, Refused, Unknown, Value, View, Writer

MOST_CAUSES = 4


def import_foreign(
    path: str | Path, *, until: str | None = None, start: str | None = None, **options: Any
) -> onnx.ModelProto:
    """ONNX file -> canonical float ONNX; the same file each time, as nothing may be drawn at random.

    `until`: the node or tensor that becomes the output; `start`: the node or tensor that becomes the input. Option
    img_size fixes free height and width; mean, std and resize go to the metadata.
    """
    for key in options:
        if key not in ("img_size", "mean", "std", "resize", "num_heads", "layer_norm_eps"):
            raise IntvitError(f"import: option must not be {key!r} for an ONNX file")
    model = load_model(path, check=False)  # onnxruntime takes more than the checker
    found = model_metadata(model)
    try:
        if found and not (until or start):  # ours already
            with reading("graph", "a valid ONNX graph"):
                onnx.checker.check_model(model)
            result = model
        else:
            names = {name for node in model.graph.node for name in node.output}
            folded = fold(model, until, start, options.get("img_size"))
            metadata = {k: v for k, v in {**found, **options}.items() if k in ("mean", "std", "resize") and v}
            with reading("graph", "one that has a float form"):
                result = _Walker(folded, names).rewrite(metadata)
        float_graph(result)  # whoever reads it next must not be the first to find out
        return result
    except IntvitError as error:
        raise IntvitError(f"{path}: {error}") from None


@dataclass
class _Walker:
    model: onnx.ModelProto
    names: set[str]
    """Tensors of the graph as it came: what --until and --from can name."""
    values: dict[str, Value] = field(default_factory=dict)

    def rewrite(self, metadata: dict[str, Any]) -> onnx.ModelProto:
        graph = self.model.graph
        self.values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.values[""] = None
        (source,) = graph.input
        shape = tuple(d.dim_value for d in source.type.tensor_type.shape.dim)
        writer = Writer(Builder())
        writer.builder.input = writer.unique(source.name)
        start = View(writer.builder.input, shape, 0 if shape[0] == 1 else None)
        self.values[source.name] = start
        for node in graph.node:
            self.node(writer, node)
        writer.last_name = graph.output[0].name
        result = self.values[graph.output[0].name]
        try:
            result = recognised(writer, result)
        except Refused as reason:
            result = Unknown((f"{writer.last_name}: {reason}",))
        if isinstance(result, Unknown):
            raise IntvitError(self.complaint(result))
        if not isinstance(result, View):
            raise IntvitError(f"{graph.output[0].name}: output must depend on the input, and is constant")
        output = writer.settle(result)
        if not writer.builder.nodes:
            raise IntvitError(f"{graph.output[0].name}: something must be computed between input and output")
        found = {"architecture": "onnx", **metadata}
        if len(shape) == 4:
            found["img_size"] = list(shape[2:])
        writer.prune(output)
        return writer.builder.model(start.per_image, output, result.per_image, found)

    def complaint(self, result: Unknown) -> str:
        more = len(result.causes) - MOST_CAUSES
        text = "; ".join(result.causes[:MOST_CAUSES]) + (f"; and {more} more" if more > 0 else "")
        nodes = [node for node in self.model.graph.node if node.output]
        known = [node.output[0] for node in nodes if isinstance(self.values.get(node.output[0]), View)]
        used = {name for node in nodes for name in node.input if self.blocked(node)}
        border = [name for name in known if name in used and name in self.names]
        hint = f" Cut before it with --until, for example --until {border[-1]}" if border else ""
        return f"{text}.{hint}"

    def blocked(self, node: onnx.NodeProto) -> bool:
        return isinstance(self.values.get(node.output[0]), Unknown)

    def node(self, writer: Writer, node: onnx.NodeProto) -> None:
        """Evaluate `node`: constants fold, views go to the handler, and what fails is remembered with its reason."""
        outputs: list[Value]
        label = f"{node.name or next(iter(node.output), '')} ({node.op_type})"
        try:
            writer.last_name = node.output[0]
            inputs = [self.values[name] for name in node.input]
            unknown = [value for value in inputs if isinstance(value, Unknown)]
            if unknown:
                outputs = [Unknown(tuple(dict.fromkeys(cause for value in unknown for cause in value.causes)))]
                outputs *= len(node.output)
            elif any(isinstance(value, (View, Pointwise)) for value in inputs):
                outputs = self.moved(writer, node, inputs)
            elif node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
                outputs = [constant_value(node)]
                if outputs[0] is None:
                    raise Refused("holds no numbers")
            else:
                constants = [value for value in inputs if value is not None]
                check_result(node, constants, self.model.opset_import)
                outputs = evaluate(node, constants, self.model.opset_import)
                if not all(isinstance(value, np.ndarray) for value in outputs):
                    raise Refused("its result is no tensor")
        except IntvitError:
            raise
        except Exception as error:
            outputs = [Unknown((f"{label}: {reason(error)}",))] * len(node.output)
        more = Unknown((f"{label}: outputs after the first have no integer form",))
        for i, name in enumerate(node.output):
            if name:
                self.values[name] = outputs[i] if i < len(outputs) else more

    def moved(self, writer: Writer, node: onnx.NodeProto, inputs: list[Value]) -> list[Value]:
        """The outputs of a node that reads activations."""
        operator = node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
        function = pointwise(writer, node, inputs) if node.domain in ONNX_DOMAINS else None
        if function is not None:
            return [function]
        inputs = [recognised(writer, value) for value in inputs]
        handler = handlers().get(operator)
        if handler is None:
            raise Refused("this operator has no integer form")
        attrs = attributes(node)
        if node.op_type == "Softmax" and any(
            o.domain in ONNX_DOMAINS and o.version < 13 for o in self.model.opset_import
        ):
            attrs.setdefault("axis", 1)
        result = handler(writer, node, inputs, attrs)
        return result if isinstance(result, list) else [result]
