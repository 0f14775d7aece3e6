"""Foreign ONNX graphs: what torch's exporters wrote (tools/make_foreign.py), against what the framework computed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intvit.calibrate import calibrate
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.images import open_images
from intvit.importers.foreign import import_foreign
from intvit.importers.onnx import float_graph
from intvit.lowering import lower
from intvit.recipe import build_recipe
from intvit.recording import Recording, record

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
    "gated unit": ([N("Mul", ["x", "x"], ["xx"]), linear("xx", "y")], "must be GELU"),
    "swish": ([N("Sigmoid", ["x"], ["sx"]), N("Mul", ["x", "sx"], ["y"])], "must be GELU"),
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
