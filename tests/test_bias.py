"""Bias correction: the mean of what a linear operator reads is that of the float network, whatever a method does."""

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.engine.trace import dequantize
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording
from intvit.lowering.bias import N_ROWS, Rows, sampled
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


def test_the_mean_of_the_sums_is_that_of_the_float_network(vit, pair):
    """One operator at a time: fed with what the float network feeds it."""
    images = vit.recorded.read(0, 16)
    site, act = "blocks.2.mlp.fc2", "blocks.2.mlp.act"
    before = vit.graph.node(act).inputs[0]
    found = FloatModel(vit.onnx_path).run(images, [before, act])
    linear = vit.graph.node(site)
    real = found[act].astype(np.float64) @ linear.arrays["weight"].T + linear.arrays["bias"]
    off = []
    for graph in pair:
        x = graph.tensors[graph.node(act).inputs[0]]
        q = np.clip(np.rint(found[before] / x.scale), x.dtype.min, x.dtype.max).astype(np.int64)
        for node in graph.nodes:
            if node.name == act:
                started = q
            if node.name in (act, f"{act}.quant", site):
                from intvit.graph import operators

                kind = operators.get(node.op)
                inputs = [graph.tensors[name] for name in node.inputs]
                started = kind.kernel(node, inputs, graph.tensors[node.output])([started])
        y = dequantize(started, graph.tensors[site])
        off.append(np.abs((y - real).mean(axis=(0, 1))).mean())
    assert off[0] < off[1] / 4


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
