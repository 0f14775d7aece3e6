"""Kinds of operators as values: SiLU, quick GELU and RMSNorm from foreign ONNX to mapping and golden vectors."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from intvit import ops
from intvit.analysis.battery import findings
from intvit.engine import Engine, load
from intvit.errors import IntvitError
from intvit.floats.importers.foreign import import_foreign
from intvit.floats.importers.onnx import float_graph, functions
from intvit.graph import operators
from intvit.graph.check import check
from intvit.graph.text import GraphText, format_graph, rebuild
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe

TOKENS, DIM, HIDDEN = 7, 16, 32
NEW = ("quick_gelu", "rmsnorm", "silu")


class Model:
    """norm -> fc1 -> activation -> fc2 -> residual -> norm -> head, in one exporter's arithmetic."""

    def __init__(self, activation, norm, opset=17):
        self.rng, self.opset = np.random.default_rng(5), opset
        self.nodes, self.constants = [], []
        last = self.norm(norm, "x", "n1")
        last = self.add("MatMul", last, self.constant("fc1", self.rng.normal(0, 0.3, (DIM, HIDDEN))))
        last = self.add("Add", last, self.constant("b1", self.rng.normal(0, 0.1, HIDDEN)))
        last = self.activation(activation, last)
        last = self.add("MatMul", last, self.constant("fc2", self.rng.normal(0, 0.3, (HIDDEN, DIM))))
        last = self.norm(norm, self.add("Add", "x", last), "n2")
        last = self.add("MatMul", last, self.constant("head", self.rng.normal(0, 0.3, (DIM, 5))))
        kinds = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, TOKENS, d]) for n, d in (("x", DIM), (last, 5))
        ]
        graph = helper.make_graph(self.nodes, "g", kinds[:1], kinds[1:], self.constants)
        domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        self.proto = helper.make_model(graph, opset_imports=domains, ir_version=10)

    def constant(self, name, value):
        array = np.asarray(value)
        self.constants.append(
            numpy_helper.from_array(array.astype(np.float32 if array.dtype.kind == "f" else int), name)
        )
        return name

    def add(self, op, *inputs, **attrs):
        self.nodes.append(helper.make_node(op, list(inputs), [f"t{len(self.nodes)}"], **attrs))
        return self.nodes[-1].output[0]

    def activation(self, how, x):
        if how == "sigmoid":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if how == "scaled sigmoid":
            return self.add("Mul", x, self.add("Sigmoid", self.add("Mul", x, self.constant("f", 1.702))))
        domain = {"QuickGelu": "com.microsoft"}.get(how, "")
        return self.add(how, x, domain=domain, **({"alpha": 1.702} if domain else {}))

    def norm(self, how, x, name):
        gamma = self.constant(name, self.rng.uniform(0.5, 1.5, DIM))
        if how == "LayerNormalization":
            return self.add(how, x, gamma, self.constant(f"{name}.beta", self.rng.normal(0, 0.1, DIM)))
        if how == "RMSNormalization":
            return self.add(how, x, gamma, epsilon=1e-6)
        square = self.add("Pow", x, self.constant(f"{name}.two", 2.0))
        axes = {"axes": [-1]} if self.opset < 18 else {}
        more = [] if axes else [self.constant(f"{name}.axes", [-1])]
        mean = self.add("ReduceMean", square, *more, keepdims=1, **axes)
        root = self.add("Sqrt", self.add("Add", mean, self.constant(f"{name}.eps", 1e-6)))
        if how == "reciprocal":
            inverse = self.add("Div", self.constant(f"{name}.one", 1.0), root)
            return self.add("Mul", gamma, self.add("Mul", x, inverse))
        return self.add("Mul", self.add("Div", x, root), gamma)


FORMS = [
    ("sigmoid", "divided", 17, "silu", "rmsnorm"),
    ("sigmoid", "divided", 18, "silu", "rmsnorm"),
    ("scaled sigmoid", "reciprocal", 17, "quick_gelu", "rmsnorm"),
    ("QuickGelu", "RMSNormalization", 23, "quick_gelu", "rmsnorm"),
    ("Swish", "RMSNormalization", 24, "silu", "rmsnorm"),
    ("sigmoid", "LayerNormalization", 17, "silu", "layernorm"),
]


@pytest.fixture(scope="module")
def canonical(tmp_path_factory):
    """A model of SiLU and RMSNorm in the canonical form, and 24 recorded inputs."""
    folder = tmp_path_factory.mktemp("silu")
    onnx.save(Model("sigmoid", "divided").proto, folder / "foreign.onnx")
    onnx.save(import_foreign(folder / "foreign.onnx"), folder / "m.onnx")
    np.save(folder / "x.npy", np.random.default_rng(1).normal(0, 1, (24, TOKENS, DIM)).astype(np.float32))
    return folder


def outputs(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize(("activation", "norm", "opset", "act", "normed"), FORMS)
def test_foreign_forms(tmp_path, activation, norm, opset, act, normed):
    """Every exporter's arithmetic becomes one node of its kind, and the file runs in onnxruntime as it did."""
    onnx.save(Model(activation, norm, opset).proto, tmp_path / "in.onnx")
    model = import_foreign(tmp_path / "in.onnx")
    onnx.save(model, tmp_path / "out.onnx")
    found = [node.op for node in float_graph(model).nodes if node.op in operators.with_methods()]
    assert found == [normed, act, normed]
    x = np.random.default_rng(2).normal(0, 2, (1, TOKENS, DIM)).astype(np.float32)
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", x), outputs(tmp_path / "in.onnx", x), atol=1e-5)
    onnx.checker.check_model(model, full_check=True)
    again = import_foreign(tmp_path / "out.onnx")
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_another_factor_is_refused(tmp_path):
    model = Model("QuickGelu", "RMSNormalization", 23).proto
    node = next(node for node in model.graph.node if node.op_type == "QuickGelu")
    node.attribute[0].f = 2.0
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(IntvitError, match=r"alpha must be one of 1\.0, 1\.702, not 2\.0"):
        import_foreign(tmp_path / "in.onnx")


def test_a_function_of_ours_is_ours(canonical, tmp_path):
    """A file whose Silu computes something else must not be taken for SiLU."""
    model = onnx.load(canonical / "m.onnx")
    function = next(f for f in model.functions if f.name == "Silu")
    function.node[0].op_type = "Tanh"
    with pytest.raises(IntvitError, match=r"intvit\.Silu: must be a function as `intvit import` writes it"):
        float_graph(model)
    del model.functions[:]
    onnx.save(model, tmp_path / "without.onnx")
    with pytest.raises(IntvitError):
        import_foreign(tmp_path / "without.onnx")


def test_from_recording_to_golden_vectors(canonical, cli, tmp_path):
    """The command line, from recording to vectors and mapping; both backends give the same integers."""
    model, x, recording = canonical / "m.onnx", canonical / "x.npy", tmp_path / "r.h5"
    assert cli("record", model, x, "-o", recording)[0] == 0
    for method in ("ivit", "ibert"):
        graph = tmp_path / f"{method}.h5"
        assert cli("lower", model, "--recording", recording, "--method", method, "-o", graph)[0] == 0
        results = [Engine(load(graph).graph, backend).run(np.load(x)) for backend in ("kernel", "spec")]
        for name in results[0]:
            np.testing.assert_array_equal(results[0][name], results[1][name])
        used = {f"{n.op}.{n.attrs['method']}" for n in load(graph).graph.nodes if "method" in n.attrs}
        assert used == {f"silu.{method}", f"rmsnorm.{method}"}
    vectors = tmp_path / "vectors"
    assert (
        cli("golden", "export", tmp_path / "ibert.h5", x, "-o", vectors, "--site", "silu", "--site", "rmsnorm")[0] == 0
    )
    assert cli("golden", "check", vectors)[0] == 0
    mapping = tmp_path / "map.json"
    status, _, text = cli("map", model, "--recording", recording, "--images", x, "-o", mapping)
    assert status == 0, text
    sites = json.loads(mapping.read_text())["recipe"]["sites"]
    assert len(sites) == 3
    assert {choice["method"] for choice in sites.values()} <= {"ivit", "ibert"}


def test_recipes_name_them(canonical, tmp_path):
    recipe = build_recipe({"silu": {"method": "ibert"}})
    assert recipe.choice("silu", "any").method == "ibert"
    assert recipe.choice("rmsnorm", "any").method == "ivit"
    for wrong in (
        {"sillu": {"method": "ibert"}},
        {"rmsnorm": {"method": "fqvit"}},
        {"silu": {"method": "ivit", "n": 6}},
    ):
        with pytest.raises(
            IntvitError, match=r"sillu: must be a known key|rmsnorm method must be|n: must be an option"
        ):
            build_recipe(wrong).of_kind("rmsnorm").check("rmsnorm")


@pytest.mark.parametrize("operator", NEW)
def test_the_battery(operator):
    for method in registry.methods(operator):
        assert findings(method) == []


def test_apply_names_what_is_wrong():
    x = np.ones((1, 4), int)
    for operator, extra, rule in (("relu", {}, "must be one of softmax"), ("silu", {"mask": x > 0}, "mask must not"),
                                  ("rmsnorm", {"facts": {"gama": 1}}, "facts must be of gamma")):  # fmt: skip
        with pytest.raises(IntvitError, match=rule):
            ops.apply(operator, x, 0.1, method="ivit", **extra)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"zero_point": 3}, "must have no zero point"),
        ({"zero_point": 2**40}, "zero_point must be"),
        ({"factor": "all 1"}, "no factor"),
        ({"factor": (9,)}, "factor must"),
    ],
)
def test_most_operators_take_no_zero_point_and_none_a_factor(mixed, change, rule):
    name = mixed.node("blocks.0.attn.softmax").output
    tensor = mixed.tensors[name]
    if change.get("factor") == "all 1":
        change = {"factor": (1,) * tensor.shape[-1]}
    with pytest.raises(IntvitError, match=rule):
        check(replace(mixed, tensors={**mixed.tensors, name: replace(tensor, **change)}))


def test_zero_points_and_factors_are_stored(mixed, tmp_path):
    """They are part of the content hash where they are not the default, and a file keeps them."""
    plain, name = mixed, mixed.outputs[0]
    changed = replace(plain, tensors={**plain.tensors, name: replace(plain.tensors[name], zero_point=3)})
    text = GraphText.model_validate_json(format_graph(changed))
    again = rebuild(text, {node.name: node.arrays for node in changed.nodes})
    assert again.tensors[name].zero_point == 3
    assert again.content_hash == changed.content_hash != plain.content_hash


def test_functions_are_those_of_the_kinds():
    assert {f.name for f in functions()} == {"Silu", "QuickGelu", "RmsNorm"}
    for name, kind in operators.operators().items():
        assert kind.lower is not None or kind.kernel is not None, name
        assert (kind.kernel is None) == (kind.spec is None) == (kind.check is None), name
