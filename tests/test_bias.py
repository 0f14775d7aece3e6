"""Bias correction: the mean of what a linear operator reads is that of the float network, whatever a method does.

Slope correction: so is how much its sums vary with it.
"""

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.engine.trace import dequantize
from intvit.errors import IntvitError
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording
from intvit.graph import operators
from intvit.lowering.bias import N_ROWS, Rows, fit_of, sampled
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

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
