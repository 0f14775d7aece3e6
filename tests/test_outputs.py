"""`eval`: what the outputs of an integer graph lose against the float model's, with labels and without."""

import csv
import json
import math

import numpy as np
import pytest

from intvit.analysis.outputs import OUTCOME, _cosine, _divergence, outcomes, summary
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.model import FloatModel

N = 20


@pytest.fixture(scope="module")
def both(vit, mixed):
    """(float logits, dequantized integer logits, labels) of the first test images."""
    images = vit.test.read(0, N)
    (real,) = FloatModel(vit.onnx_path).run(images).values()
    y = Engine(mixed).run(images)["logits"] * mixed.tensors["logits"].scale
    return real.astype(np.float64), y, vit.test.labels[:N]


@pytest.mark.parametrize(("batch", "threads"), [(8, 2), (3, 1), (7, 2)])
def test_every_number_is_that_of_the_outputs(vit, mixed, both, batch, threads):
    real, y, labels = both
    found = outcomes(mixed, vit.test, FloatModel(vit.onnx_path), limit=N, batch=batch, threads=threads)
    assert found["image"].tolist() == list(range(N))
    assert found["label"].tolist() == labels.tolist()
    assert found["integer_class"].tolist() == y.argmax(1).tolist()
    assert found["float_class"].tolist() == real.argmax(1).tolist()
    result = summary(found)
    assert result["integer"] == (y.argmax(1) == labels).mean()
    assert result["float"] == (real.argmax(1) == labels).mean()
    assert result["agreement"] == (y.argmax(1) == real.argmax(1)).mean()
    assert result["sqnr"] == pytest.approx(10 * np.log10((real**2).sum() / ((real - y) ** 2).sum()), abs=1e-4)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (real, y))
    assert result["kl"] == pytest.approx(np.mean(np.sum(p * np.log(p / q), 1)), rel=1e-4)
    lengths = np.linalg.norm(real, axis=1) * np.linalg.norm(y, axis=1)
    assert result["cosine"] == pytest.approx(np.mean(np.sum(real * y, 1) / lengths), abs=1e-6)


def test_divergence_and_cosine_by_hand():
    two = np.array([[0.0, math.log(3)]])  # probabilities 1/4 and 3/4
    assert _divergence(two, np.zeros((1, 2))) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert _divergence(two, two + 7) == pytest.approx(0, abs=1e-12)
    assert _divergence(np.array([[1e4, 0.0]]), np.array([[1e4, 5.0]])) == pytest.approx(0, abs=1e-12)
    assert _cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])) == pytest.approx(24 / 25)
    features = np.array([[[1.0, 0.0], [0.0, 2.0]]])
    assert _cosine(features, np.array([[[0.0, 5.0], [0.0, 1.0]]])) == pytest.approx(0.5)
    assert _cosine(features, np.zeros((1, 2, 2))) == 0


def test_equal_outputs_have_no_noise():
    found = np.array([(0, -1, 1, 1, 4.0, 0.0, 0.0, 1.0)], OUTCOME)
    assert summary(found) == {"images": 1, "agreement": 1.0, "kl": 0.0, "cosine": 1.0, "sqnr": math.inf}


def test_without_labels_the_float_model_is_what_remains(cli, vit, mixed, mixed_path, tmp_path, both):
    images = tmp_path / "x.npy"
    np.save(images, vit.test.read(0, 6))
    status, out, err = cli("eval", mixed_path, images, "--json")
    assert (status, out) == (2, "")
    assert "must carry labels (HDF5 and npz name them `labels`), or --float a model to compare" in err
    table = tmp_path / "rows.csv"
    status, out, _ = cli("eval", mixed_path, images, "--float", vit.onnx_path, "--json", "--csv", table)
    assert status == 0
    result = json.loads(out)
    assert set(result) == {"images", "agreement", "sqnr", "kl", "cosine"}
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    assert {row["label"] for row in rows} == {""}
    signal, noise = (math.fsum(float(row[key]) for row in rows) for key in ("signal", "noise"))
    assert result["sqnr"] == pytest.approx(10 * math.log10(signal / noise))
    status, out, _ = cli("eval", mixed_path, images, "--float", vit.onnx_path)
    assert status == 0
    assert f"{result['sqnr']:.1f} dB" in out
    assert "top-1" not in out


def test_features_are_compared_without_classes(vit, cli, tmp_path):
    """A backbone: an output of tokens and channels; labels that came with the images play no part."""
    cut = tmp_path / "features.onnx"
    assert cli("import", vit.onnx_path, "--until", "blocks.1.add2", "-o", cut)[0] == 0
    np.savez(tmp_path / "x.npz", images=vit.test.read(0, 5), labels=np.arange(5))
    source = ["--images", tmp_path / "x.npz"]
    assert cli("lower", cut, *source, "--method", "ibert", "-o", tmp_path / "g.h5")[0] == 0
    status, out, err = cli("eval", tmp_path / "g.h5", tmp_path / "x.npz", "--float", cut, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert set(result) == {"images", "sqnr", "cosine"}
    assert result["sqnr"] > 25
    assert result["cosine"] > 0.99


def test_another_model_is_refused(cli, vit, mixed, mixed_path, tmp_path):
    cut = tmp_path / "features.onnx"
    assert cli("import", vit.onnx_path, "--until", "blocks.1.add2", "-o", cut)[0] == 0
    status, out, err = cli("eval", mixed_path, "fashion-mnist:test", "--float", cut)
    assert (status, out) == (2, "")
    assert f"must be the model {mixed.metadata['model_sha256'][:12]} that was lowered to this graph, not" in err


def test_a_float_output_of_another_shape_is_refused(vit, mixed):
    class Other:
        sha256, where = mixed.metadata["model_sha256"], "other"

        def run(self, images):
            return {"y": np.zeros((len(images), 3))}

    source = open_images("fashion-mnist:test", mean=[0.5], std=[0.5], size=(28, 28), channels=1)
    with pytest.raises(IntvitError, match=r"output must have the shape \(10,\) of the graph's, not \(3,\)"):
        outcomes(mixed, source, Other(), limit=2)
