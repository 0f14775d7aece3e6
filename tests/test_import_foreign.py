"""Foreign ONNX graphs: what torch's exporters wrote (tools/make_foreign.py), against what the framework computed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.importers.foreign import import_foreign
from intvit.floats.importers.onnx import float_graph
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording, record
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "foreign"
FILES = sorted(path.name for path in FOLDER.glob("*.onnx") if not path.name.startswith("dense"))
NO_MOMENTUM = {"observer": {"kind": "minmax", "momentum": 0}}


def expected(name):
    arrays = np.load(FOLDER / f"{name.rsplit('_', 1)[0]}.npz")
    return arrays["x"], arrays["y"]


def float_output(model, x):
    (y,) = FloatModel(model, threads=1).run(x).values()
    return y


def agree(a, b):
    return a.shape == b.shape and np.abs(a - b).max() / np.ptp(b) < 1e-4


@pytest.mark.parametrize("name", FILES)
def test_agrees_with_the_framework(name):
    x, y = expected(name)
    model = import_foreign(FOLDER / name)
    assert agree(float_output(model, x), y)
    ops = [node.op for node in float_graph(model).nodes]
    assert {op: ops.count(op) for op in ("softmax", "gelu")} == dict.fromkeys(
        ("softmax", "gelu"), 4 if "swin" in name else 2
    )
    assert ops.count("layernorm") == (11 if "swin" in name else 5)


def integer_run(model, tmp_path, method, x):
    """(float output, integer output, integer graph, float graph) of images x."""
    graph = float_graph(model)
    np.save(tmp_path / "x.npy", x)
    shape = graph.tensors[graph.inputs[0]].shape
    record(FloatModel(model, threads=1), open_images(str(tmp_path / "x.npy"), size=shape[1:], channels=shape[0]),
           tmp_path / "r.h5")  # fmt: skip
    recipe = build_recipe(NO_MOMENTUM).with_method(method)
    with Recording(tmp_path / "r.h5") as recording:
        integer = lower(graph, calibrate(graph, recording, recipe), recipe)
    y = Engine(integer).run(x)["logits"] * integer.tensors["logits"].scale
    return float_output(model, x), y, integer


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
@pytest.mark.parametrize(
    "name", ["swin_old17.onnx", "dinov2_new20.onnx", "torchvision_old17.onnx", "deit_distilled_old17.onnx"]
)
def test_runs_in_integers_in_both_backends(name, method, tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    want, got, integer = integer_run(import_foreign(FOLDER / name), tmp_path, method, x)
    assert 10 * np.log10(np.sum(want**2) / np.sum((want - got) ** 2)) > 10
    fast, slow = Engine(integer).run(x[:1]), Engine(integer, "spec").run(x[:1])
    assert all(np.array_equal(fast[key], slow[key]) for key in fast)


# an encoder inside a larger network


@pytest.mark.parametrize("name", ["dense_old13.onnx", "dense_new20.onnx"])
def test_what_cannot_be_lowered_is_named_and_the_advice_works(name, tmp_path):
    with pytest.raises(IntvitError, match=r"\(Conv\): must have stride = kernel.* not kernel \[3, 3\]") as error:
        import_foreign(FOLDER / name)
    advice = str(error.value).rsplit(" ", 1)[1]
    model = import_foreign(FOLDER / name, until=advice)
    graph = float_graph(model)
    assert graph.tensors[graph.outputs[0]].shape == (24, 4, 4)
    x = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    want, got, _ = integer_run(model, tmp_path, "ivit", x)
    assert 10 * np.log10(np.sum(want**2) / np.sum((want - got) ** 2)) > 25


def dense_parts():
    model = onnx.load(FOLDER / "dense_old13.onnx")
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"]
    add = next(node for node in model.graph.node if node.name.endswith("embeddings/Add"))
    return add.output[0], softmax[0].name


def test_a_piece_between_two_nodes(tmp_path):
    start, until = dense_parts()
    model = import_foreign(FOLDER / "dense_old13.onnx", start=start, until=until)
    graph = float_graph(model)
    assert graph.tensors[graph.inputs[0]].shape == (17, 24)
    assert [node.op for node in graph.nodes if node.op in ("layernorm", "softmax")] == ["layernorm", "softmax"]
    x = np.random.default_rng(0).normal(size=(4, 17, 24)).astype(np.float32)
    want, got, _ = integer_run(model, tmp_path, "ivit", x)
    assert np.abs(want - got).max() < 0.05


def test_our_own_form_passes_as_it_is_and_can_be_cut(vit, tmp_path):
    ours = onnx.load(vit.onnx_path)
    assert import_foreign(vit.onnx_path).SerializeToString() == ours.SerializeToString()
    cut = import_foreign(vit.onnx_path, until="blocks.1.add2")
    graph = float_graph(cut)
    assert graph.tensors[graph.outputs[0]].shape == (50, 96)
    assert graph.metadata["mean"] == float_graph(ours).metadata["mean"]


def test_half_precision_is_widened(tmp_path):
    model = onnx.load(FOLDER / "timm_manual_old14.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    x, y = expected("timm_manual_old14.onnx")
    found = float_output(import_foreign(tmp_path / "half.onnx"), x)
    assert np.abs(found - y).max() / np.ptp(y) < 1e-2  # the weights were rounded to 11 bits


def test_unknown_names(tmp_path):
    with pytest.raises(IntvitError, match="--until: must name a node or tensor of the graph, and 'nowhere' is none"):
        import_foreign(FOLDER / "dense_old13.onnx", until="nowhere")
    with pytest.raises(IntvitError, match="--from: must name"):
        import_foreign(FOLDER / "dense_old13.onnx", start="nowhere")


def test_free_image_size_must_be_given(tmp_path):
    model = onnx.load(FOLDER / "vit_new20.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(
        IntvitError, match=r"pixel_values: size must be known, not \[1, 3, 0, 0\]; give it with --img-size"
    ):
        import_foreign(tmp_path / "free.onnx")
    x, y = expected("vit_new20.onnx")
    assert agree(float_output(import_foreign(tmp_path / "free.onnx", img_size=16), x), y)
    with pytest.raises(IntvitError, match="img_size: must be the 16 that the graph is fixed to, not 32"):
        import_foreign(FOLDER / "vit_new20.onnx", img_size=32)


# small graphs, one rule each


def small(tmp_path, nodes, constants, x_shape=("b", 4, 6), outputs=("y",), opset=17):
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes, "small", [value("x", list(x_shape))], [value(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def reference(path, x):
    """onnxruntime on the file as it is, one image at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in x])


def weights(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def linear(x, y, width=6):
    return helper.make_node("MatMul", [x, "w"], [y], y)


N = helper.make_node
GRAPHS = {
    "bias first": ([linear("x", "a"), N("Add", ["bias", "a"], ["y"])], {"w": weights(6, 6), "bias": weights(6)}),
    "bias twice": (
        [linear("x", "a"), N("Add", ["a", "bias"], ["b"]), N("Add", ["b", "bias"], ["y"])],
        {"w": weights(6, 6), "bias": weights(6)},
    ),
    "negative factor": ([linear("x", "a"), N("Mul", ["a", "f"], ["y"])], {"w": weights(6, 6), "f": np.float32(-2)}),
    "divided": ([linear("x", "a"), N("Div", ["a", "f"], ["y"])], {"w": weights(6, 6), "f": np.float32(3)}),
    "subtracted": ([linear("x", "a"), N("Sub", ["a", "f"], ["y"])], {"w": weights(6, 6), "f": weights(6)}),
    "layer scale after layout": (
        [linear("x", "a"), N("Reshape", ["a", "s"], ["b"]), N("Mul", ["b", "f"], ["y"])],
        {"w": weights(6, 6), "f": weights(6), "s": np.array([-1, 2, 2, 6])},
    ),
    "shared linear": (
        [linear("x", "a"), N("Mul", ["a", "f"], ["b"]), N("Add", ["a", "b"], ["y"])],
        {"w": weights(6, 6), "f": weights(6)},
    ),
    "factor through layout to a product": (
        [
            N("Mul", ["x", "f"], ["a"]), N("Transpose", ["a"], ["t"], perm=[0, 2, 1]), N("Mul", ["t", "f"], ["u"]),
            N("MatMul", ["a", "u"], ["y"]),
        ],
        {"f": np.float32(0.7)},
    ),
    "batch axis moved": (
        [
            N("Reshape", ["x", "s"], ["a"]), N("Transpose", ["a"], ["t"], perm=[2, 0, 3, 1, 4]),
            N("Gather", ["t", "i"], ["g"], axis=0), linear("g", "y"),
        ],
        {"s": np.array([0, 4, 3, 1, 2]), "i": np.array(1), "w": weights(2, 6)},
    ),
    "folded batch": (
        [N("Reshape", ["x", "s"], ["a"]), linear("a", "b"), N("Reshape", ["b", "r"], ["y"])],
        {"s": np.array([-1, 6]), "w": weights(6, 6), "r": np.array([-1, 4, 6])},
    ),
    "split and joined": (
        [
            N("Split", ["x"], ["a", "b", "c"], axis=2), N("Concat", ["c", "a", "b"], ["d"], axis=2), linear("d", "y"),
        ],
        {"w": weights(6, 6)},
    ),
    "picked rows": (
        [N("Gather", ["x", "i"], ["a"], axis=1), linear("a", "y")], {"i": np.array([0, 2, 1, 3]), "w": weights(6, 6)},
    ),
    "strided": (
        [N("Slice", ["x", "s", "e", "a", "t"], ["b"]), linear("b", "y")],
        {"s": np.array([1]), "e": np.array([9]), "a": np.array([1]), "t": np.array([2]), "w": weights(6, 6)},
    ),
    "mean over neighbouring axes": (
        [N("Reshape", ["x", "s"], ["a"]), N("ReduceMean", ["a"], ["m"], axes=[1, 2], keepdims=0), linear("m", "y")],
        {"s": np.array([0, 2, 2, 6]), "w": weights(6, 6)},
    ),
    "constant token": (
        [
            N("Shape", ["x"], ["n"]), N("Gather", ["n", "zero"], ["b"]), N("Unsqueeze", ["b", "zero1"], ["b1"]),
            N("Concat", ["b1", "rest"], ["to"], axis=0), N("Expand", ["token", "to"], ["tokens"]),
            N("Concat", ["tokens", "x"], ["a"], axis=1), linear("a", "y"),
        ],
        {
            "zero": np.array(0), "zero1": np.array([0]), "rest": np.array([1, 6]), "token": weights(1, 1, 6),
            "w": weights(6, 6),
        },
    ),
    "gemm": (
        [N("Flatten", ["x"], ["a"]), N("Gemm", ["a", "w", "c"], ["y"], alpha=0.5, beta=2.0, transB=1)],
        {"w": weights(5, 24), "c": weights(5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_rule(case, tmp_path):
    path = small(tmp_path, *GRAPHS[case])
    x = np.random.default_rng(1).normal(size=(3, 4, 6)).astype(np.float32)
    model = import_foreign(path)
    float_graph(model)
    y = reference(path, x)
    assert np.allclose(float_output(model, x).reshape(y.shape), y, rtol=1e-5, atol=1e-5)


REFUSED = {
    "gated unit": ([N("Mul", ["x", "x"], ["xx"]), linear("xx", "y")], "must be gelu, quick_gelu or silu"),
    "mish": (
        [N("Sigmoid", ["x"], ["sx"]), N("Tanh", ["sx"], ["tx"]), N("Mul", ["x", "tx"], ["y"])],
        "must be gelu, quick_gelu",
    ),
    "softmax over tokens": ([N("Softmax", ["x"], ["y"], axis=1)], "axis must be the last, not 1"),
    "no integer form": ([N("CumSum", ["x", "axis"], ["y"])], r"y \(CumSum\): this operator has no integer form"),
    "vector factor after nothing": ([N("Mul", ["x", "v"], ["y"])], "one positive number, or one per channel after"),
    "backward slice": ([N("Slice", ["x", "s", "e", "a", "t"], ["y"])], "step must be positive, not -1"),
    "padding": ([N("Pad", ["x", "p"], ["y"])], "must not be padded"),
}  # fmt: skip
CONSTANTS = {
    "w": weights(6, 6), "axis": np.array(1), "v": weights(6), "s": np.array([3]), "e": np.array([-9]),
    "a": np.array([1]), "t": np.array([-1]), "p": np.array([0, 0, 0, 0, 1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    nodes, message = REFUSED[case]
    used = {name for node in nodes for name in node.input}
    path = small(tmp_path, nodes, {k: v for k, v in CONSTANTS.items() if k in used})
    with pytest.raises(IntvitError, match=message):
        import_foreign(path)


def test_several_outputs_are_a_question(tmp_path):
    path = small(tmp_path, [linear("x", "y"), linear("x", "z")], {"w": weights(6, 6)}, outputs=("y", "z"))
    with pytest.raises(IntvitError, match="outputs: the graph has 2, y, z; choose one with --until"):
        import_foreign(path)
    import_foreign(path, until="z")


def test_fixed_batch_is_refused(tmp_path):
    path = small(tmp_path, [linear("x", "y")], {"w": weights(6, 6)}, x_shape=(8, 4, 6))
    with pytest.raises(IntvitError, match="x: batch must be free or 1, not fixed to 8"):
        import_foreign(path)


def test_command_line(tmp_path, cli):
    status, _, err = cli("import", FOLDER / "dense_new20.onnx", "-o", tmp_path / "m.onnx")
    assert status == 2
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert cli("import", FOLDER / "vit_old13.onnx", "-o", tmp_path / "m.onnx")[0] == 0
    status, _, err = cli("import", FOLDER / "vit", "--until", "x", "-o", tmp_path / "n.onnx")
    assert status == 2
    assert "--until and --from cut ONNX graphs" in err
    (tmp_path / "notes.txt").write_text("x")
    status, _, err = cli("import", tmp_path / "notes.txt", "-o", tmp_path / "n.onnx")
    assert status == 2
    assert "must be one of" in err


# what is no function of its inputs


def body(nodes, *outputs):
    """A subgraph without inputs."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "body", [], values)


def yes():
    return N("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))


RANDOM = {
    "weights drawn": [N("RandomNormal", [], ["r"], shape=[6, 6], seed=1.0), N("MatMul", ["x", "r"], ["y"])],
    "like": [N("RandomUniformLike", ["w"], ["r"]), N("MatMul", ["x", "r"], ["y"])],
    "of an activation's shape": [N("RandomNormalLike", ["x"], ["r"]), N("Add", ["x", "r"], ["y"])],
    "stochastic depth": [
        N("Constant", [], ["p"], value_float=0.9), N("Bernoulli", ["half"], ["keep"]), N("Mul", ["keep", "v"], ["s"]),
        linear("x", "a"), N("Mul", ["a", "s"], ["y"]),
    ],
    "drawn classes": [N("Multinomial", ["half2"], ["c"]), N("Gather", ["x", "c"], ["y"], axis=1)],
    "dropout": [yes(), N("Dropout", ["w", "", "yes"], ["r"]), N("MatMul", ["x", "r"], ["y"])],
    "dropout of an activation": [
        yes(), N("Identity", ["yes"], ["t"]), linear("x", "a"), N("Dropout", ["a", "", "t"], ["y"]),
    ],
    "dropout in a mode that is computed": [
        N("ReduceSum", ["x"], ["s"], keepdims=0), N("Cast", ["s"], ["t"], to=TensorProto.BOOL), linear("x", "a"),
        N("Dropout", ["a", "", "t"], ["y"]),
    ],
    "batch norm": [
        N("BatchNormalization", ["x", "four", "four", "four", "four"], ["y", "m", "s"], training_mode=1),
    ],
    "in a branch": [
        yes(),
        N("If", ["yes"], ["r"], then_branch=body([N("RandomUniform", [], ["t"], shape=[6])], "t"),
          else_branch=body([N("RandomUniform", [], ["e"], shape=[6])], "e")),
        N("Add", ["x", "r"], ["y"]),
    ],
    "of onnxruntime's own": [
        yes(), N("BiasDropout", ["x", "v", "", "", "yes"], ["y"], domain="com.microsoft"),
    ],
}  # fmt: skip
DRAWN = {"w": weights(6, 6), "v": weights(6), "half": np.full(6, 0.5, np.float32),
         "half2": np.full((1, 4), 0.5, np.float32), "four": np.ones(4, np.float32)}  # fmt: skip


def random_graph(case, tmp_path):
    nodes = RANDOM[case]
    used = {name for node in nodes for name in node.input}
    path = small(tmp_path, nodes, {k: v for k, v in DRAWN.items() if k in used})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("case", RANDOM)
def test_what_is_drawn_is_refused(case, tmp_path):
    message = r"draws at random|must not be in training mode|no integer form"
    with pytest.raises(IntvitError, match=message) as error:
        import_foreign(random_graph(case, tmp_path))
    assert "\n" not in str(error.value)


def test_in_a_function_of_the_model(tmp_path):
    path = small(tmp_path, [N("Noise", [], ["r"], domain="mine"), N("Add", ["x", "r"], ["y"])], {})
    model = onnx.load(path)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    noise = N("RandomUniform", [], ["z"], shape=[6])
    model.functions.append(helper.make_function("mine", "Noise", [], ["z"], [noise], opsets))
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.save(model, path)
    with pytest.raises(IntvitError, match=r"\(RandomUniform\): must be a function of its inputs, and draws at random"):
        import_foreign(path)


def test_functions_that_would_never_end_are_refused(tmp_path):
    path = small(tmp_path, [N("f0", ["x"], ["y"], domain="mine")], {})
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]

    def function(name, inner):
        nodes = [N(inner, ["a"], ["b"], domain="mine"), N(inner, ["b"], ["c"], domain="mine")]
        return helper.make_function("mine", name, ["a"], ["c"], nodes, opsets)

    model = onnx.load(path)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for functions, message in (
        ([function(f"f{i}", f"f{i + 1}") for i in range(60)], "nodes: must be 200000 at most"),
        ([function("f0", "f1"), function("f1", "f0")], "f0: a function must not call itself"),
    ):
        del model.functions[:]
        model.functions.extend(functions)
        onnx.save(model, path)
        with pytest.raises(IntvitError, match=message):
            import_foreign(path)


def test_what_the_cut_leaves_out_may_be_random(tmp_path):
    nodes = [linear("x", "a"), N("RandomNormalLike", ["a"], ["r"], dtype=1), N("Add", ["a", "r"], ["c"]),
             N("Reshape", ["c", "s"], ["b"]), linear("b", "y")]  # fmt: skip
    path = small(tmp_path, nodes, {"w": weights(6, 6), "s": np.array([1, 4, 6])})
    with pytest.raises(IntvitError, match="draws at random"):
        import_foreign(path)
    import_foreign(path, until="a")
    import_foreign(path, start="b")
    with pytest.raises(IntvitError, match="draws at random"):
        import_foreign(path, start="a")


@pytest.mark.parametrize("mode", [None, False])
def test_dropout_in_evaluation_mode_passes(mode, tmp_path):
    constants = {"w": weights(6, 6), "off": np.array(False)}
    inputs = ["a"] if mode is None else ["a", "", "off"]
    path = small(tmp_path, [linear("x", "a"), N("Dropout", inputs, ["y"])], constants)
    assert import_foreign(path).SerializeToString() == import_foreign(path).SerializeToString()


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_every_time(name):
    first, second = (import_foreign(FOLDER / name).SerializeToString() for _ in range(2))
    assert first == second


# cuts


def test_a_cut_inside_a_residual_block_is_told_with_the_place_to_cut(tmp_path):
    model = onnx.load(FOLDER / "dense_old13.onnx")
    fc1 = next(node for node in model.graph.node if node.name.endswith("layer.0/mlp/fc1/Add"))
    start, until = fc1.output[0], dense_parts()[1]
    softmax = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    with pytest.raises(
        IntvitError, match=r"what follows must depend on it alone, and .* also reads .*; --from"
    ) as error:
        import_foreign(FOLDER / "dense_old13.onnx", start=start, until=softmax[1])
    advice = str(error.value).split("--from ")[-1].split(" ")[0]
    import_foreign(FOLDER / "dense_old13.onnx", start=advice, until=softmax[1])
    with pytest.raises(IntvitError, match=r"the output .* must depend on it"):
        import_foreign(FOLDER / "dense_old13.onnx", start=start, until=until)


# broadcasts that only look like a vector per channel, and other traps of shapes


TRAPS = {
    "one factor per token": [linear("x", "a"), N("Mul", ["a", "column"], ["y"])],
    "one term per token": [linear("x", "a"), N("Add", ["a", "column"], ["y"])],
    "gamma per token": [N("LayerNormalization", ["x", "column", "v6"], ["y"])],
    "bias per row of a Gemm": [N("Reshape", ["x", "s"], ["a"]), N("Gemm", ["a", "w", "column"], ["y"])],
    "index beyond": [linear("x", "a"), N("Gather", ["a", "seven"], ["y"], axis=1)],
    "other outputs": [N("LayerNormalization", ["x", "v6", "v6"], ["n", "mean"]), N("Mul", ["n", "mean"], ["y"])],
}
TRAP_VALUES = {"column": weights(6, 1), "v6": weights(6), "w": weights(6, 6), "s": np.array([6, 6]),
               "seven": np.array(7)}  # fmt: skip


@pytest.mark.parametrize("case", TRAPS)
def test_what_is_accepted_computes_the_same(case, tmp_path):
    """Square activations, where an axis is easily taken for another: the right numbers, or a refusal."""
    nodes = TRAPS[case]
    used = {name for node in nodes for name in node.input}
    path = small(tmp_path, nodes, {k: v for k, v in TRAP_VALUES.items() if k in used}, x_shape=(1, 6, 6))
    x = np.random.default_rng(1).normal(size=(1, 6, 6)).astype(np.float32)
    try:
        model = import_foreign(path)
    except IntvitError:
        return
    y = reference(path, x)
    assert np.allclose(float_output(model, x).reshape(y.shape), y, rtol=1e-5, atol=1e-5)


def test_softmax_of_old_opsets_has_another_default_axis(tmp_path):
    path = small(tmp_path, [linear("x", "a"), N("Softmax", ["a"], ["y"])], {"w": weights(6, 6)}, opset=11)
    with pytest.raises(IntvitError, match="axis must be the last, not 1"):
        import_foreign(path)


# hostile sizes, names and depths


BOMBS = {
    "filled": ([N("ConstantOfShape", ["huge"], ["c"]), N("Add", ["x", "c"], ["y"])], 
               {"huge": np.array([2**20, 2**20])}),
    "expanded": ([N("Expand", ["v", "huge"], ["c"]), N("Add", ["x", "c"], ["y"])],
                 {"huge": np.array([2**40, 1, 6]), "v": weights(6)}),
    "tiled": ([N("Tile", ["v", "huge"], ["c"]), N("ReduceSum", ["c"], ["d"], keepdims=0),
               N("Add", ["x", "d"], ["y"])],
              {"huge": np.array([2**33]), "v": weights(6)}),
    "by arithmetic": ([N("Pow", ["ten", "ten"], ["n"]), N("ConstantOfShape", ["n"], ["c"]),
                       N("Add", ["x", "c"], ["y"])],
                      {"ten": np.array([10])}),
    "a range": ([N("Range", ["zero", "much", "one"], ["c"]), N("ReduceSum", ["c"], ["d"], keepdims=0),
                 N("Add", ["x", "d"], ["y"])],
                {"zero": np.float32(0), "much": np.float32(1e12), "one": np.float32(1)}),
    "an activation": ([N("Reshape", ["x", "s"], ["a"]), N("Expand", ["a", "huge"], ["b"]), N("Add", ["b", "b"], ["y"])],
                      {"s": np.array([4, 6, 1]), "huge": np.array([4, 6, 2**31])}),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_memory_is_bounded_by_what_the_file_holds(case, tmp_path):
    resource = pytest.importorskip("resource")
    path = small(tmp_path, *BOMBS[case])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntvitError) as error:
        import_foreign(path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_a_function_that_doubles_is_not_computed(tmp_path):
    """60 sums of a value with itself: 2**60 steps, written out."""
    nodes = [N("Tanh", ["x"], ["t0"]), *(N("Add", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(60)),
             N("Identity", ["t60"], ["y"])]  # fmt: skip
    with pytest.raises(IntvitError, match="is far longer"):
        import_foreign(small(tmp_path, nodes, {}))


NAMES = [
    "",
    "../../x",
    "/etc/x",
    "a\0b",
    "x" * 10_000,
    "y" * 900,
    "\u2603" * 100,
    "logits",
    "batch",
    "..",
    "index.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_becomes_a_safe_one(name, tmp_path):
    from intvit.files import safe_name

    middle = name or "a"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], [middle], name),
        helper.make_node("Add", [middle, "x"], ["y"], f"{name}2"),
    ]
    path = small(tmp_path, nodes, {"w": weights(6, 6)})
    try:
        model = import_foreign(path)
    except IntvitError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for node in float_graph(model).nodes:
        assert node.name.isprintable()
        assert len(safe_name(node.name)) < 200
        assert node.name not in ("", "logits")
    x = np.random.default_rng(1).normal(size=(1, 4, 6)).astype(np.float32)
    assert np.allclose(float_output(model, x), x @ weights(6, 6) + x, atol=1e-5)
