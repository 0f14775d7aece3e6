"""Swin end to end on random weights: import, record, lower with a mixture of methods, both backends equal."""

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.floats.images import ImageSource
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import build_swin
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording, record
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe


def random_swin(rng, *, dim, depths, heads, window, patch, channels, classes):
    w = {"patch_embed.proj.weight": (dim, channels, patch, patch), "patch_embed.proj.bias": (dim,)}
    w |= {"patch_embed.norm.weight": (dim,), "patch_embed.norm.bias": (dim,)}
    for s, depth in enumerate(depths):
        d = dim << s
        for i in range(depth):
            for name, shape in {
                "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
                "attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads[s]), "attn.proj.weight": (d, d),
                "attn.proj.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,), "mlp.fc1.weight": (4 * d, d),
                "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
            }.items():  # fmt: skip
                w[f"layers.{s}.blocks.{i}.{name}"] = shape
        if s < len(depths) - 1:
            w[f"layers.{s}.downsample.norm.weight"] = w[f"layers.{s}.downsample.norm.bias"] = (4 * d,)
            w[f"layers.{s}.downsample.reduction.weight"] = (2 * d, 4 * d)
    last = dim << (len(depths) - 1)
    w |= {"norm.weight": (last,), "norm.bias": (last,), "head.weight": (classes, last), "head.bias": (classes,)}
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in w.items()}


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    rng = np.random.default_rng(9)
    weights = random_swin(rng, dim=12, depths=(2, 2), heads=(2, 3), window=3, patch=2, channels=1, classes=5)
    model = build_swin(weights, {"num_heads": [2, 3], "img_size": 24})
    images = rng.normal(size=(6, 1, 24, 24)).astype(np.float32)
    zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    source = ImageSource("random", 6, lambda a, b: images[a:b], (1, 24, 24), zero, one)
    path = tmp_path_factory.mktemp("swin") / "r.h5"
    record(FloatModel(model, threads=1), source, path)
    graph = float_graph(model)
    with Recording(path) as recording:
        return graph, calibrate(graph, recording, build_recipe({})), images, model


@pytest.mark.parametrize("method", ["ibert", "fqvit", "ivit"])
def test_spec_and_kernel_agree_at_every_site(swin, method):
    graph, calibration, images, _ = swin
    integer = lower(graph, calibration, build_recipe({"softmax_bits": 8}).with_method(method))
    q = quantize_images(integer, images[:1])
    fast = Engine(integer, "kernel").evaluate(q, list(integer.tensors))
    slow = Engine(integer, "spec").evaluate(q, list(integer.tensors))
    for name in fast:
        assert np.array_equal(fast[name], slow[name]), name


def test_integer_logits_follow_the_float_ones(swin):
    graph, calibration, images, model = swin
    integer = lower(graph, calibration, build_recipe({}))
    real = Engine(integer).run(images)["logits"] * integer.tensors["logits"].scale
    (logits,) = FloatModel(model, threads=1).run(images).values()
    assert 10 * np.log10(np.mean(logits**2) / np.mean((logits - real) ** 2)) > 20


def test_newer_timm_names_of_patch_merging_give_the_same_model(swin):
    rng = np.random.default_rng(9)
    weights = random_swin(rng, dim=12, depths=(2, 2), heads=(2, 3), window=3, patch=2, channels=1, classes=5)
    moved = {k.replace("layers.0.downsample", "layers.1.downsample"): v for k, v in weights.items()}
    moved |= {f"head.fc.{k[5:]}": moved.pop(k) for k in ("head.weight", "head.bias")}
    model = build_swin(moved, {"num_heads": [2, 3], "img_size": 24})
    (a,) = FloatModel(model, threads=1).run(swin[2]).values()
    (b,) = FloatModel(swin[3], threads=1).run(swin[2]).values()
    assert np.array_equal(a, b)


def test_a_stage_smaller_than_the_window_has_windows_and_tables_of_its_own():
    rng = np.random.default_rng(9)
    weights = random_swin(rng, dim=12, depths=(2, 2), heads=(2, 3), window=4, patch=2, channels=1, classes=5)
    for i in range(2):
        weights[f"layers.1.blocks.{i}.attn.relative_position_bias_table"] = np.zeros((3 * 3, 3), np.float32)
    graph = float_graph(build_swin(weights, {"num_heads": [2, 3], "img_size": 8}))
    assert graph.tensors["layers.1.blocks.1.attn.softmax"].shape == (1, 3, 4, 4)
    assert "layers.1.blocks.1.attn.masked" not in graph.tensors
