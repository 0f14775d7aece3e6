"""Bias correction: the mean of what a linear operator reads is that of the float network, whatever a method does.

Slope correction: so is how much its sums vary with it.
"""

import numpy as np
import pytest
from small_models import N, imported, weights

from intvit.engine import Engine, quantize_images
from intvit.engine.trace import dequantize
from intvit.errors import IntvitError
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording
from intvit.graph import operators
from intvit.lowering.bias import N_ROWS, Rows, fit_of, sampled
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe, read_recipe

FC2 = [f"blocks.{i}.mlp.fc2" for i in range(6)]


def lowered(vit, **values):
    recipe = build_recipe({"preset": "accurate", **values})
    with Recording(vit.recording_path) as recording:
        return lower(vit.graph, calibrate(vit.graph, recording, recipe), recipe)


@pytest.fixture(scope="module", params=["ibert", "ivit"])
def pair(vit, request):
    """The same network with and without the correction."""
    gelu = {"gelu": {"method": request.param}}
    return lowered(vit, **gelu), lowered(vit, **gelu, bias_correction=False)


def test_only_biases_differ(pair):
    with_it, without = pair
    assert [node.name for node in with_it.nodes] == [node.name for node in without.nodes]
    for a, b in zip(with_it.nodes, without.nodes, strict=True):
        for key in a.arrays:
            assert np.array_equal(a.arrays[key], b.arrays[key]) or (a.op, key) == ("linear", "bias")
    assert all(not np.array_equal(with_it.node(s).arrays["bias"], without.node(s).arrays["bias"]) for s in FC2)


def sums(vit, graph, act, site):
    """(sums of one operator that is fed what the float network feeds it, those of the float network)."""
    images = vit.recorded.read(0, 16)
    before = vit.graph.node(act).inputs[0]
    found = FloatModel(vit.onnx_path).run(images, [before, act])
    linear = vit.graph.node(site)
    x = graph.tensors[graph.node(act).inputs[0]]
    q = np.clip(np.rint(found[before] / x.scale), x.dtype.min, x.dtype.max).astype(np.int64)
    for name in (act, f"{act}.quant", site):
        node = graph.node(name)
        inputs = [graph.tensors[name] for name in node.inputs]
        q = operators.get(node.op).kernel(node, inputs, graph.tensors[node.output])([q])
    real = found[act].astype(np.float64) @ linear.arrays["weight"].T + linear.arrays["bias"]
    return dequantize(q, graph.tensors[site]), real


def test_the_mean_of_the_sums_is_that_of_the_float_network(vit, pair):
    off = []
    for graph in pair:
        y, real = sums(vit, graph, "blocks.2.mlp.act", "blocks.2.mlp.fc2")
        off.append(np.abs((y - real).mean(axis=(0, 1))).mean())
    assert off[0] < off[1] / 4


@pytest.mark.parametrize(("method", "share"), [("ibert", 1.0), ("ivit", 0.9)])
def test_slopes_leave_less_error_and_the_same_mean(vit, method, share):
    """Errors of sums whose means are right; weights behind anything else stay."""
    gelu = {"gelu": {"method": method}}
    plain, sloped = lowered(vit, **gelu), lowered(vit, **gelu, slope_correction=True)
    changed = {
        a.name for a, b in zip(plain.nodes, sloped.nodes, strict=True)
        for key in a.arrays if not np.array_equal(a.arrays[key], b.arrays[key])
    }  # fmt: skip
    read = {f"blocks.{i}.{name}" for i in range(6) for name in ("attn.qkv", "mlp.fc1", "mlp.fc2")}
    assert set(FC2) <= changed <= read | {f"{name}.quant" for name in read} | {node.name for node in plain.nodes[-3:]}
    errors = []
    for graph in (plain, sloped):
        found = [sums(vit, graph, f"blocks.{i}.mlp.act", f"blocks.{i}.mlp.fc2") for i in range(6)]
        errors.append([np.var(y - real, axis=(0, 1)).sum() for y, real in found])
        for y, real in found:
            assert np.abs((y - real).mean(axis=(0, 1))).mean() < 0.02 * np.std(real)
    assert np.sum(errors[1]) < share * np.sum(errors[0])


def test_slopes_are_those_of_lines_through_samples():
    """A channel twice as large as it should be, one that does not vary, and one that is noise."""
    rng = np.random.default_rng(3)
    integers, noise = rng.normal(size=(4000, 3)) * [4, 0, 4], rng.normal(size=4000) * 4
    floats = np.stack([integers[:, 0] / 1.6 + 3, integers[:, 1], noise], axis=1)
    fit = fit_of(floats, integers)
    assert np.allclose(fit.slopes, [1 / 1.6, 1, 0.5], atol=0.02)  # the last at its limit
    assert np.allclose(fit.floats - fit.integers, floats.mean(axis=0) - integers.mean(axis=0))
    assert np.all(fit_of(np.zeros((5, 2)), np.zeros((5, 2))).slopes == 1)


def test_slopes_go_with_biases():
    rule = "slope_correction: must go with bias_correction, which is off"
    for values in ({}, {"preset": "accurate", "bias_correction": False}):
        with pytest.raises(IntvitError, match=rule):
            build_recipe({**values, "slope_correction": True})
    for values in ({}, {"preset": "accurate"}):
        assert "slope_correction" not in build_recipe(values).model_dump()
    assert build_recipe({"bias_correction": True, "slope_correction": True}).slope_correction


def test_a_file_may_leave_the_preset_to_the_options(vit, tmp_path):
    """Which corrects biases or does not; whoever takes it alone is told where it is lowered."""
    path = tmp_path / "r.toml"
    path.write_text("slope_correction = true")
    recipe = read_recipe(path)
    published = " with the preset published"
    rule = f"slope_correction: must go with bias_correction, which is off{published}"
    with pytest.raises(IntvitError, match=rule), Recording(vit.recording_path) as recording:
        lower(vit.graph, calibrate(vit.graph, recording, recipe), recipe)
    for line in ('preset = "published"', "bias_correction = false"):
        path.write_text(f"slope_correction = true\n{line}")
        with pytest.raises(IntvitError, match=rf"r\.toml: {rule.removesuffix(published)}"):
            read_recipe(path)


def test_the_outputs_are_nearer_to_the_float_network(vit):
    images = vit.test.read(0, 100)
    (real,) = FloatModel(vit.onnx_path).run(images).values()
    pair = [lowered(vit, gelu={"method": "ibert"}, bias_correction=value) for value in (True, False)]
    noise = [np.sum((Engine(g).run(images)["logits"] * g.tensors["logits"].scale - real) ** 2) for g in pair]
    assert noise[0] < noise[1]


def test_both_backends_are_equal(vit, pair):
    graph, names = pair[0], ["blocks.0.add2"]
    images = quantize_images(graph, vit.test.read(0, 1))
    kernel, spec = (Engine(graph, backend).evaluate(images, names)["blocks.0.add2"] for backend in ("kernel", "spec"))
    assert np.array_equal(kernel, spec)


def test_published_networks_and_recipes_without_a_word_are_left_alone(vit):
    for values in ({}, {"bias_correction": None}):
        recipe = build_recipe(values)
        assert "bias_correction" not in recipe.model_dump()
        with Recording(vit.recording_path) as recording:
            assert not calibrate(vit.graph, recording, recipe).samples
    assert build_recipe({"bias_correction": True}).corrects_bias
    assert not build_recipe({"preset": "accurate", "bias_correction": False}).corrects_bias


def test_rows_are_taken_evenly_and_in_pairs():
    rows, x = Rows(), np.arange(4 * 500 * 3, dtype=np.float32).reshape(4, 500, 3)
    for start in (0, 2):
        rows.add(x[start : start + 2], -x[start : start + 2], 4)
    taken, mates = np.concatenate(rows.inputs), np.concatenate(rows.outputs)
    assert np.array_equal(taken, -mates)
    assert len(taken) == N_ROWS
    images = taken[:, 0] // 1500
    assert [np.sum(images == i) for i in range(4)] == [N_ROWS // 4] * 4
    assert {0, 499} <= set((taken[images == 1, 0] - 1500) / 3)
    few = Rows()
    few.add(x[:1, :5], x[:1, :5], 1)
    assert np.array_equal(np.concatenate(few.inputs), x[0, :5])


def test_what_is_sampled_is_recorded_at_both_ends_and_read_by_linear_operators(vit):
    with Recording(vit.recording_path) as recording:
        known = frozenset(recording.names)
    found = {node.name for node in sampled(vit.graph, known)}
    assert found == {f"blocks.{i}.{name}" for i in range(6) for name in ("norm1", "norm2", "mlp.act")} | {"norm"}
    assert "blocks.0.mlp.act" not in {n.name for n in sampled(vit.graph, known - {"blocks.0.mlp.act"})}


BEFORE = [N("MatMul", ["x0", "w1"], ["a"])]
BEHIND = {
    "a factor": [N("Gelu", ["a"], ["g"]), N("Mul", ["g", "f"], ["h"])],
    "a factor behind a reshape": [
        N("Gelu", ["a"], ["g"]),
        N("Reshape", ["g", "r4"], ["s"]),
        N("Mul", ["s", "f"], ["h"]),
    ],
    "channels become tokens": [N("Gelu", ["a"], ["g"]), N("Transpose", ["g"], ["h"], perm=[0, 2, 1])],
}


@pytest.mark.parametrize("nodes", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("values", [{}, {"slope_correction": True}])
def test_what_stands_for_other_values_is_left_alone(tmp_path, nodes, values):
    """Integers behind a constant factor stand for more than the operator gave; a channel must stay one."""
    constants = {"w1": weights(8, 8), "w2": weights(8, 8, seed=9), "f": np.float32(0.25)}
    constants["r4"] = np.array([0, 2, 4, 8])
    images = np.random.default_rng(1).normal(size=(16, 1, 8, 8)).astype(np.float32)
    graph, activations = imported(tmp_path, [*BEFORE, *nodes, N("MatMul", ["h", "w2"], ["y"])], constants, images)
    found = []
    for each in (values, {"bias_correction": False}):
        recipe = build_recipe({"preset": "accurate", **each}).with_method("ibert")
        found.append(lower(graph, calibrate(graph, activations, recipe), recipe))
    for a, b in zip(found[0].nodes, found[1].nodes, strict=True):
        assert all(np.array_equal(a.arrays[key], b.arrays[key]) for key in a.arrays), a.name


@pytest.mark.parametrize(
    "nodes", [[N("Gelu", ["a"], ["h"])], [N("Gelu", ["a"], ["g"]), N("Reshape", ["g", "r4"], ["h"])]]
)
def test_moves_that_keep_channels_keep_corrections(tmp_path, nodes):
    constants = {"w1": weights(8, 8), "w2": weights(8, 8, seed=9), "r4": np.array([0, 2, 4, 8])}
    images = np.random.default_rng(1).normal(size=(16, 1, 8, 8)).astype(np.float32)
    graph, activations = imported(tmp_path, [*BEFORE, *nodes, N("MatMul", ["h", "w2"], ["y"])], constants, images)
    biases = []
    for on in (True, False):
        recipe = build_recipe({"preset": "accurate", "bias_correction": on}).with_method("ibert")
        integer = lower(graph, calibrate(graph, activations, recipe), recipe)
        biases.append([node for node in integer.nodes if node.op == "linear"][-1].arrays["bias"])
    assert not np.array_equal(*biases)
