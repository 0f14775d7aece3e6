"""Full-size networks of random weights at 224 x 224: import, calibration without a recording, lowering, integer run."""

import numpy as np
import pytest
from bench import MODELS, Weights, random_images, random_weights
from safetensors.numpy import save_file

from intvit.engine import Engine
from intvit.floats.images import open_images
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

pytestmark = pytest.mark.slow
NAMES = ["deit_tiny", "deit_tiny distilled", "deit_small", "vit_base", "swin_tiny", "swin_small"]


def weights_of(name):
    architecture = MODELS[name.split()[0]]
    tensors = random_weights(architecture)
    if "distilled" in name:
        more = Weights(7)
        more.normal("dist_token", 1, 1, architecture.width)
        more.linear("head_dist", architecture.n_classes, architecture.width)
        tensors |= more.tensors
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = np.concatenate([positions[:, :1], positions], axis=1)
    return architecture, tensors


@pytest.mark.parametrize("name", NAMES)
def test_imports_lowers_and_runs(name, tmp_path):
    architecture, tensors = weights_of(name)
    save_file(tensors, tmp_path / "w.safetensors")
    heads = list(architecture.heads) if architecture.family == "swin" else architecture.heads[0]
    model = FloatModel(import_model(tmp_path / "w.safetensors", num_heads=heads, img_size=224))
    graph = float_graph(model.proto)
    x = random_images(architecture, 2)
    np.save(tmp_path / "x.npy", x)
    recipe = build_recipe({"observer": {"kind": "minmax", "momentum": 0, "batch": 1}}).with_method("ivit")
    images = open_images(str(tmp_path / "x.npy"), size=(224, 224), channels=3)
    integer = lower(graph, calibrate(graph, LiveActivations(model, images), recipe), recipe)
    (want,) = model.run(x).values()
    engine = Engine(integer)
    logits = engine.run(x, threads=2)["logits"]
    noise = want - logits * integer.tensors["logits"].scale
    assert 10 * np.log10(np.mean(np.sum(want**2, 1) / np.sum(noise**2, 1))) > 15
    assert np.array_equal(logits, engine.run(x, batch=1, threads=1)["logits"])
