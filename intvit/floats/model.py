"""The float model in onnxruntime, with every intermediate tensor within reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intvit.errors import IntvitError, reading
from intvit.floats.importers.onnx import float_graph, load_model, model_metadata
from intvit.graph import operators
from intvit.graph.ir import Array


class FloatModel:
    """A float32 onnxruntime session over a model whose activations are all graph outputs."""

    def __init__(self, model: str | Path | onnx.ModelProto, threads: int | None = None) -> None:
        self.where = "float model" if isinstance(model, onnx.ModelProto) else str(model)
        self.proto = model if isinstance(model, onnx.ModelProto) else load_model(model)
        graph = float_graph(self.proto)  # of the canonical form, or refused
        self.sha256 = str(graph.metadata["model_sha256"])
        self.metadata = model_metadata(self.proto)
        self.threads = threads or 0
        self.input, self.output = graph.inputs[0], graph.outputs[0]
        self.input_shape = graph.tensors[self.input].shape
        self._sessions: dict[tuple[str, ...], Any] = {}

    def sites(self) -> dict[str, onnx.NodeProto]:
        """Every tensor that a compute node reads or writes, with the node that makes it, in graph order."""
        graph = self.proto.graph
        constants = {t.name for t in graph.initializer}
        compute = {op for kind in operators.operators().values() for op in kind.reads}
        read = {name for node in graph.node if node.op_type in compute for name in node.input}
        return {
            node.output[0]: node
            for node in graph.node
            if (node.op_type in compute or node.output[0] in read)
            and node.op_type not in ("Expand", "Shape", "Constant")
            and node.output[0] not in constants
        }

    def run(self, images: Array, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Images float32 (B, C, H, W) to the named tensors, each (B, ...) float32; default: the logits."""
        if images.shape[1:] != self.input_shape:
            raise IntvitError(f"{self.input}: image size must be {self.input_shape}, not {images.shape[1:]}")
        names = tuple(outputs or (self.output,))
        session = self._session(names)
        wanted = [name for name in names if name != self.input]
        with reading(self.where, "a model that onnxruntime runs on these images"):
            found = dict(zip(wanted, session.run(wanted, {self.input: images.astype(np.float32)}), strict=True))
        return {name: images if name == self.input else found[name] for name in names}

    def _session(self, names: tuple[str, ...]) -> Any:
        if names not in self._sessions:
            import onnxruntime as ort

            proto = onnx.ModelProto()
            proto.CopyFrom(self.proto)
            known = {output.name for output in proto.graph.output} | {self.input}
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.log_severity_level = 3
            with reading(self.where, "a model that onnxruntime loads"):
                self._sessions[names] = ort.InferenceSession(
                    proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
        return self._sessions[names]
