"""The embedded Swin: trained weights through import, live calibration and integer runs."""

import numpy as np
import pytest

from intvit.analysis.demo import SWIN_WEIGHTS, embedded
from intvit.engine import Engine
from intvit.floats.images import open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe


@pytest.fixture(scope="module")
def swin():
    """(float graph, calibration, test images, float logits of 300 of them, float model)"""
    model = FloatModel(import_timm(embedded(SWIN_WEIGHTS)), threads=1)
    graph = float_graph(model.proto)
    options = {"mean": graph.metadata["mean"], "std": graph.metadata["std"], "size": (28, 28), "channels": 1}
    live = LiveActivations(model, open_images("fashion-mnist:calibration", **options), 64)
    test = open_images("fashion-mnist:test", **options)
    (logits,) = model.run(test.read(0, 300)).values()
    return graph, calibrate(graph, live, build_recipe({})), test, logits, model


def test_float_accuracy(swin):
    _, _, test, logits, _ = swin
    assert (logits.argmax(1) == test.labels[:300]).mean() >= 0.90


def test_the_float_model_gives_an_image_the_same_values_in_every_batch(swin):
    *_, test, _, model = swin
    images, names = test.read(0, 12), [model.input, *model.sites()]
    whole = model.run(images, names)
    for size in (1, 2, 3, 5, 11):
        for start in range(0, 12, size):
            part = model.run(images[start : start + size], names)
            assert all(np.array_equal(part[name], whole[name][start : start + size]) for name in names), (size, start)


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_integer_accuracy_and_noise(swin, method):
    graph, calibration, test, logits, _ = swin
    integer = lower(graph, calibration, build_recipe({}).with_method(method))
    found = Engine(integer).run(test.read(0, 300))["logits"]
    hits, float_hits = ((y.argmax(1) == test.labels[:300]).sum() for y in (found, logits))
    assert abs(int(hits) - int(float_hits)) <= 6, (hits, float_hits)
    noise = logits - found * integer.tensors["logits"].scale
    decibel = 10 * np.log10(np.mean(np.sum(logits**2, 1) / np.sum(noise**2, 1)))
    assert decibel > 20


@pytest.mark.slow
def test_backends_agree_at_every_site(swin):
    graph, calibration, test, *_ = swin
    sites = {"layers.0.blocks.0.norm1": {"method": "fqvit"}, "layers.0.blocks.1.attn.softmax": {"method": "fqvit"},
             "layers.1.blocks.1.attn.softmax": {"method": "ibert"}, "norm": {"method": "ibert"}}  # fmt: skip
    integer = lower(graph, calibration, build_recipe({"sites": sites}))
    images = test.read(0, 1)
    fast = Engine(integer).run(images, wanted=list(integer.tensors))
    slow = Engine(integer, "spec").run(images, wanted=list(integer.tensors))
    assert all(np.array_equal(fast[name], slow[name]) for name in fast)
    assert np.array_equal(Engine(integer).run(images)["logits"], slow["logits"])
