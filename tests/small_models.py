"""Float models of a few nodes, imported from ONNX, with images of their own."""

import numpy as np
from onnx import helper
from test_import_foreign import small

from intvit.floats.images import open_images
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel

N = helper.make_node


def weights(*shape, seed=5):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def imported(tmp_path, nodes, constants, images):
    """(graph, activations) of nodes from x (B, 1, 8, 8), reshaped to (B, 8, 8) first, to y."""
    first = N("Reshape", ["x", "r"], ["x0"])
    path = small(tmp_path, [first, *nodes], {"r": np.array([0, 8, 8]), **constants}, ("b", 1, 8, 8), opset=20)
    model = FloatModel(import_model(path))
    graph = float_graph(model.proto)
    np.save(tmp_path / "images.npy", images)
    source = open_images(str(tmp_path / "images.npy"), size=(8, 8), channels=1, metadata=graph.metadata)
    return graph, LiveActivations(model, source)
