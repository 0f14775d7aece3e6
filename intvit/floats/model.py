"""The float model in onnxruntime, with every intermediate tensor within reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
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
        self._functions: dict[tuple[str, ...], Any] = {}

    def sites(self) -> dict[str, onnx.NodeProto]:
        """Every tensor that a compute node reads or writes or that joins others, with its node, in graph order."""
        graph = self.proto.graph
        constants = {t.name for t in graph.initializer}
        compute = {op for kind in operators.operators().values() for op in kind.reads}
        read = {name for node in graph.node if node.op_type in compute for name in node.input}
        return {
            node.output[0]: node
            for node in graph.node
            if (node.op_type in compute or node.output[0] in read or _joins(node))
            and node.op_type not in ("Expand", "Shape", "Constant")
            and node.output[0] not in constants
        }

    def run(self, images: Array, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Images float32 (B, C, H, W) to the named tensors, each (B, ...) float32; default: the logits.

        The same values for an image in any batch: onnxruntime sums a single one in another order, so it is run twice.
        """
        if images.shape[1:] != self.input_shape:
            raise IntvitError(f"{self.input}: image size must be {self.input_shape}, not {images.shape[1:]}")
        names = tuple(outputs or (self.output,))
        session = self._session(names)
        wanted = [name for name in names if name != self.input]
        batch = images.astype(np.float32)
        if len(batch) == 1:
            batch = np.repeat(batch, 2, axis=0)
        with reading(self.where, "a model that onnxruntime runs on these images"):
            found = dict(zip(wanted, session.run(wanted, {self.input: batch}), strict=True))
        return {name: images if name == self.input else found[name][: len(images)] for name in names}

    def between(self, inputs: Sequence[str], output: str) -> Callable[[Sequence[Array]], Array]:
        """The nodes between tensors as a function: values (B, ...) float32 of `inputs` to those of `output`.

        A tensor that is given twice has the same values.
        """
        key = (*dict.fromkeys(inputs), output)
        if key not in self._functions:
            proto = self.proto.graph
            nodes = [proto.node[i] for i in sorted(self._ancestors(output, frozenset(inputs)))]
            read = {name for node in nodes for name in node.input}
            constants = [t for t in proto.initializer if t.name in read]
            free = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in key]
            graph = onnx.helper.make_graph(nodes, "between", free[:-1], free[-1:], constants)
            part = onnx.helper.make_model(graph, functions=self.proto.functions, opset_imports=self.proto.opset_import)
            part.ir_version = self.proto.ir_version
            self._functions[key] = self._loaded(part, spinning=False)
        session = self._functions[key]

        def run(values: Sequence[Array]) -> Array:
            given = dict(zip(inputs, values, strict=True))
            assert all(given[name] is value for name, value in zip(inputs, values, strict=True)), inputs
            found = session.run([output], given)[0]
            return np.asarray(found)

        return run

    def _ancestors(self, name: str, known: frozenset[str]) -> set[int]:
        """Numbers of the nodes that make a tensor of those that are known."""
        found: set[int] = set()
        open_ = [name]
        while open_:
            name = open_.pop()
            at = self._makers.get(name)
            if at is not None and at not in found and name not in known:
                found.add(at)
                open_ += self.proto.graph.node[at].input
        return found

    @cached_property
    def _makers(self) -> dict[str, int]:
        return {name: i for i, node in enumerate(self.proto.graph.node) for name in node.output}

    def _session(self, names: tuple[str, ...]) -> Any:
        if names not in self._sessions:
            proto = onnx.ModelProto()
            proto.CopyFrom(self.proto)
            known = {output.name for output in proto.graph.output} | {self.input}
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
            self._sessions[names] = self._loaded(proto)
        return self._sessions[names]

    def _loaded(self, proto: onnx.ModelProto, *, spinning: bool = True) -> Any:
        """`spinning`: idle threads wait in a loop, beside which NumPy's matrix products take 50 times as long."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.use_env_allocators", "1")
        _share_memory()
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with reading(self.where, "a model that onnxruntime loads"):
            return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _joins(node: onnx.NodeProto) -> bool:
    """Of activations, which are never joined along the batch, as the parts of a shape are."""
    return node.op_type == "Concat" and all(each.i > 0 for each in node.attribute if each.name == "axis")


@cache
def _share_memory() -> None:
    """One arena for all sessions of the process: each would keep the most that it ever took."""
    import onnxruntime as ort

    of = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(of, None)
