"""What a recipe says of quantizers: widths by kind and site, zero points; the integers stay exact."""

import dataclasses

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.engine.trace import dequantize
from intvit.errors import IntvitError
from intvit.floats.model import FloatModel
from intvit.kernels import registry
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

WIDE = {
    "gelu": {"method": "ibert", "n": "least"},
    "quantizers": {
        "softmax": {"input_bits": 16},
        "gelu": {"input_bits": 12},
        "linear": {"zero_point": True},
        "blocks.0.mlp.fc1": {"weight_bits": 6, "zero_point": False},
        "blocks.1.attn.softmax": {"input_bits": 9, "output_bits": 10},
    },
}


@pytest.fixture(scope="module")
def wide(vit):
    return vit.lower(build_recipe(WIDE))


def input_of(graph, site):
    return graph.tensors[graph.node(site).inputs[0]]


def test_every_width_is_that_of_the_recipe(wide):
    assert str(input_of(wide, "blocks.0.attn.softmax").dtype) == "s16"
    assert str(input_of(wide, "blocks.1.attn.softmax").dtype) == "s9"
    assert wide.tensors["blocks.1.attn.softmax"].bound < 2**10
    assert {str(input_of(wide, f"blocks.{i}.mlp.act").dtype) for i in range(6)} == {"s12"}
    assert {str(input_of(wide, f"blocks.{i}.mlp.fc2").dtype) for i in range(6)} == {"s8"}
    assert np.abs(wide.node("blocks.0.mlp.fc1").arrays["weight"]).max() == 31
    assert np.abs(wide.node("blocks.1.mlp.fc1").arrays["weight"]).max() == 127


def test_zero_points_stand_before_linear_operators_and_nowhere_else(wide):
    having = {node.op for node in wide.nodes for name in node.inputs if wide.tensors[name].zero_point}
    assert having <= {"linear", "reshape", "transpose", "slice", "take"}
    assert "linear" in having
    assert input_of(wide, "blocks.0.mlp.fc1").zero_point == 0
    assert input_of(wide, "blocks.0.mlp.fc2").zero_point < -100  # GELU: little below 0


@pytest.mark.slow
def test_both_backends_are_equal(wide, vit):
    images = quantize_images(wide, vit.test.read(0, 1))
    last = [node.output for node in wide.nodes].index("blocks.0.add2")  # what comes after is like it
    names = [node.output for node in wide.nodes[: last + 1]]
    kernel, spec = (Engine(wide, backend).evaluate(images, names) for backend in ("kernel", "spec"))
    assert all(np.array_equal(kernel[name], spec[name]) for name in names)
    streamed = Engine(wide).run(vit.test.read(0, 1), wanted=["blocks.0.add2"])
    assert np.array_equal(streamed["blocks.0.add2"], spec["blocks.0.add2"])


def test_a_zero_point_stands_for_zero_and_uses_the_whole_range(wide, vit):
    tensor = input_of(wide, "blocks.0.mlp.fc2")
    codes = Engine(wide).evaluate(quantize_images(wide, vit.recorded.read(0, 16)), [tensor.name])[tensor.name]
    assert codes.min() < -100
    assert codes.max() > 110
    low, high = vit.calibration.ranges["blocks.0.mlp.act"]
    assert dequantize(np.array([tensor.zero_point]), tensor) == 0
    assert dequantize(np.array([-128, 127]), tensor) == pytest.approx([low, high], abs=float(tensor.scale))


def test_wide_inputs_pay(vit):
    images = vit.test.read(0, 16)
    (real,) = FloatModel(str(vit.onnx_path)).run(images).values()

    def noise(graph):
        name = graph.outputs[0]
        return np.sum((Engine(graph).run(images)[name] * graph.tensors[name].scale - real) ** 2)

    usual = {"softmax": {"method": "ibert"}, "gelu": WIDE["gelu"]}
    quantizers = {key: WIDE["quantizers"][key] for key in ("softmax", "gelu", "linear")}
    wide, narrow = (vit.lower(build_recipe({**usual, **more})) for more in ({"quantizers": quantizers}, {}))
    assert 2 * noise(wide) < noise(narrow)


def test_a_recipe_without_quantizers_is_written_as_before():
    assert "quantizers" not in build_recipe({}).model_dump()
    assert "quantizers" in build_recipe(WIDE).model_dump()


@pytest.mark.parametrize(
    ("quantizers", "rule"),
    [
        ({"sofmax": {"input_bits": 16}}, "sofmax: quantizers must be of a site of the model or of a kind of operator"),
        ({"linear": {"input_bits": 9}}, "linear: input_bits must be at most 8 here, not 9"),
        ({"blocks.0.attn.matmul_qk": {"input_bits": 16}}, "blocks.0.attn.matmul_qk: input_bits must be at most 8"),
        (
            {"softmax": {"zero_point": True}},
            "softmax: weight_bits, weight_clip and zero_point must be of linear operators",
        ),
        ({"gelu": {"output_bits": 16}}, "mlp.act: output_bits must be at most 8, as blocks.0.mlp.fc2 multiplies"),
        ({"softmax": {"input_bits": 17}}, "quantizers.softmax.input_bits: must be less than or equal to 16, not 17"),
        ({"softmax": {"inputs": 8}}, "quantizers.softmax.inputs: must be a known key"),
    ],
)
def test_what_cannot_be_is_refused(vit, quantizers, rule):
    with pytest.raises(IntvitError, match=rule):
        vit.lower(build_recipe({"quantizers": quantizers}))


def test_a_zero_point_that_is_none_is_refused(wide):
    """In the file of a graph: what the requantization adds must be what the tensor says."""
    from intvit.graph.check import check

    name = input_of(wide, "blocks.0.mlp.fc2").name
    changed = {**wide.tensors, name: dataclasses.replace(wide.tensors[name], zero_point=5)}
    with pytest.raises(IntvitError, match="residual must be the zero_point 5 of the output, times 1"):
        check(dataclasses.replace(wide, tensors=changed))


def test_the_accurate_preset_gives_each_method_what_it_can_use(vit):
    for method, score_bits, n_wide in (("ibert", "s16", 6), ("ivit", "s8", 0), ("fqvit", "s8", 0)):
        graph = vit.lower(build_recipe({"preset": "accurate"}).with_method(method))
        assert {str(input_of(graph, f"blocks.{i}.attn.softmax").dtype) for i in range(6)} == {score_bits}
        wide = [i for i in range(6) if input_of(graph, f"blocks.{i}.mlp.act").dtype.bits == 12]
        assert len(wide) == n_wide
        assert all(input_of(graph, f"blocks.{i}.mlp.fc2").zero_point for i in range(6))
        assert graph.metadata["recipe"]["preset"] == "accurate"


def test_what_the_recipe_says_goes_before_the_preset(vit):
    values = {"preset": "accurate", "softmax": {"method": "ibert"}, "gelu": {"method": "ibert", "n": 6}}
    quantizers = {"softmax": {"input_bits": 10}, "blocks.0.mlp.fc2": {"zero_point": False}}
    graph = vit.lower(build_recipe({**values, "quantizers": quantizers}))
    assert str(input_of(graph, "blocks.0.attn.softmax").dtype) == "s10"
    assert [input_of(graph, f"blocks.{i}.mlp.fc2").zero_point != 0 for i in range(6)] == [False] + [True] * 5
    assert graph.node("blocks.0.mlp.act").attrs["params"]["n"] == 6


@pytest.mark.parametrize("scale", [0.5, 0.03, 0.0004])
@pytest.mark.parametrize("x_max", [127, 2047, 32767])
def test_the_least_n_is_the_least_whose_output_fits_32_bits(scale, x_max):
    gelu = registry.get("gelu", "ibert")
    found, _ = gelu.constants(scale, {"x_max": x_max}, {"n": "least"})
    assert gelu.bound(found, x_max, 1) < 2**31
    if found.n:
        before, _ = gelu.constants(scale, {"x_max": x_max}, {"n": found.n - 1})
        assert gelu.bound(before, x_max, 1) >= 2**31


def test_the_least_n_needs_a_largest_input():
    with pytest.raises(IntvitError, match="n may be 'least' where a graph is lowered, and nowhere else"):
        registry.get("gelu", "ibert").constants(0.1, {}, {"n": "least"})


def test_a_preset_that_there_is_not(cli, vit, tmp_path):
    options = ["--recording", str(vit.recording_path), "-o", str(tmp_path / "g.h5")]
    status, _, err = cli("lower", vit.onnx_path, "--preset", "best", *options)
    assert status == 2
    assert "preset: must be 'published' or 'accurate', not 'best'" in err
    assert not (tmp_path / "g.h5").exists()


def test_weights_that_were_trained_in_integers_keep_their_quantizers(vit):
    trained = dataclasses.replace(vit.graph, metadata={**vit.graph.metadata, "trained": {"bits": 8}})
    with pytest.raises(IntvitError, match="preset: must be published, as the weights were trained with its quantizers"):
        lower(trained, vit.calibration, build_recipe({"preset": "accurate"}))
    corrected = build_recipe({"bias_correction": True, "slope_correction": True})
    with pytest.raises(IntvitError, match="bias_correction: must be left out, as the weights were trained in integers"):
        lower(trained, vit.calibration, corrected)
