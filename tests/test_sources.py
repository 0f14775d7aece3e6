"""Every integer tensor names the float tensor that it stands for, and stands for it."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.engine import Engine
from intvit.engine.trace import dequantize
from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.importers.foreign import import_foreign
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.graph.store import load, save
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe
from intvit.mapping.values import float_values

FOREIGN = Path(__file__).resolve().parent.parent / "golden" / "foreign"
MODELS = {
    "vit": lambda: import_timm(embedded(WEIGHTS)),
    "swin": lambda: import_timm(embedded(SWIN_WEIGHTS)),
    "dinov2": lambda: import_foreign(FOREIGN / "dinov2_new20.onnx"),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def lowered(request, tmp_path_factory):
    """(float graph, integer graph, live activations, images)"""
    model = FloatModel(MODELS[request.param](), threads=1)
    graph = float_graph(model.proto)
    channels, *size = graph.tensors[graph.inputs[0]].shape
    options = {"size": tuple(size), "channels": channels}
    if request.param == "dinov2":
        path = tmp_path_factory.mktemp("images") / "x.npy"
        np.save(path, np.random.default_rng(0).normal(size=(4, channels, *size)).astype(np.float32))
        images = open_images(str(path), **options)
    else:
        options |= {"mean": graph.metadata["mean"], "std": graph.metadata["std"]}
        images = open_images("fashion-mnist:calibration", **options)
    live = LiveActivations(model, images, 4)
    recipe = build_recipe({"softmax_bits": 8})
    return graph, lower(graph, calibrate(graph, live, recipe), recipe), live, images


def test_every_tensor_stands_for_its_source(lowered):
    graph, integer, live, images = lowered
    found = Engine(integer).run(images.read(0, 2), wanted=list(integer.tensors))
    for name, tensor in integer.tensors.items():
        assert tensor.source in graph.tensors, name
        assert tensor.shape == graph.tensors[tensor.source].shape, name
        real = float_values(graph, tensor.source, set(live.names), partial(live.read, start=0, stop=2))
        noise = real - dequantize(found[name], tensor)
        assert np.sum(noise**2) < 0.5 * np.sum(real**2), (name, tensor.source)


def test_sources_are_stored_and_are_no_part_of_the_hash(lowered, tmp_path):
    _, integer, _, _ = lowered
    save(integer, tmp_path / "g.h5")
    again = load(tmp_path / "g.h5")
    assert {t.name: t.source for t in again.tensors.values()} == {t.name: t.source for t in integer.tensors.values()}
    bare = {name: dataclasses.replace(tensor, source=None) for name, tensor in integer.tensors.items()}
    assert dataclasses.replace(integer, tensors=bare).content_hash == integer.content_hash


def test_a_changed_source_is_noticed_and_older_files_load(lowered, tmp_path):
    _, integer, _, _ = lowered
    save(integer, tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "r+") as file:
        text = json.loads(file["graph.json"][()])
        text["sources"]["logits"] = "another"
        del file["graph.json"]
        file["graph.json"] = np.bytes_(json.dumps(text, sort_keys=True))
    with pytest.raises(IntvitError, match=r"graph\.json must hash to its text_sha256"):
        load(tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "r+") as file:  # as version 2 wrote it
        del text["sources"], file["graph.json"], file.attrs["text_sha256"]
        file["graph.json"] = np.bytes_(json.dumps(text, sort_keys=True))
        file.attrs["version"] = 2
    assert load(tmp_path / "g.h5").content_hash == integer.content_hash


def test_traces_say_it(lowered, cli, tmp_path):
    graph, integer, _, images = lowered
    save(integer, tmp_path / "g.h5")
    np.save(tmp_path / "x.npy", images.read(0, 1))
    assert (
        cli("run", tmp_path / "g.h5", tmp_path / "x.npy", "-o", tmp_path / "l.npz", "--trace", tmp_path / "t.h5")[0]
        == 0
    )
    with h5py.File(tmp_path / "t.h5") as file:
        for data in file["tensors"].values():
            assert data.attrs["site"] in graph.tensors
