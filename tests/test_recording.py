"""Recordings: what onnxruntime computes, for every site, whole or not at all, resumable."""

import h5py
import numpy as np
import pytest

from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.recording import Recording, record


@pytest.fixture(scope="module")
def model(vit):
    return FloatModel(vit.onnx_path, threads=1)


def test_holds_every_site_and_what_onnxruntime_gives(vit, model):
    with Recording(vit.recording_path) as recording:
        expected = model.run(vit.recorded.read(0, 16), recording.names)
        for node in vit.graph.nodes:
            if node.op in ("softmax", "gelu", "layernorm"):
                assert {node.inputs[0], node.output} <= set(recording.names)
        for name in recording.names:
            assert np.allclose(recording.read(name, 0, 16), expected[name], rtol=1e-4, atol=1e-4), name


def test_attributes_name_model_site_and_axes(vit, model):
    with h5py.File(vit.recording_path) as file:
        assert file.attrs["model_sha256"] == model.sha256
        data = file["activations/blocks.0.attn.softmax"]
        assert data.attrs["site"] == "blocks.0.attn.softmax"
        assert data.attrs["op"] == "Softmax"
        assert data.attrs["inputs"] == '["blocks.0.attn.scores"]'
        assert data.chunks == (1, 3, 50, 50)
        assert data.compression == "gzip"
        assert "axes" in data.attrs


def contents(path):
    with Recording(path) as recording:
        return {name: recording.read(name, 0, recording.n_images) for name in recording.names}


def test_an_interrupted_recording_resumes(vit, model, tmp_path):
    path, whole = tmp_path / "r.h5", tmp_path / "whole.h5"

    def interrupt(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, vit.recorded, path, limit=8, batch=2, progress=interrupt)
    assert not path.exists()
    calls = []
    record(model, vit.recorded, path, limit=8, batch=2, progress=lambda done, total: calls.append(done))
    assert calls == [6, 8]
    record(model, vit.recorded, whole, limit=8, batch=2)
    a, b = contents(path), contents(whole)
    assert all(np.array_equal(a[name], b[name]) for name in b)


def test_another_set_of_images_starts_anew(vit, model, tmp_path):
    path = tmp_path / "r.h5"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, vit.recorded, path, limit=4, batch=2, progress=interrupt)
    calls = []
    record(model, vit.test, path, limit=4, batch=2, progress=lambda done, total: calls.append(done))
    assert calls == [2, 4]


def test_unfinished_recordings_are_refused(vit, tmp_path):
    path = tmp_path / "r.h5"
    path.write_bytes(vit.recording_path.read_bytes())
    with h5py.File(path, "a") as file:
        file.attrs["n_done"] = 3
    with pytest.raises(IntvitError, match="holds 3 of 16"):
        Recording(path)


def test_wrong_image_size(model):
    with pytest.raises(IntvitError, match="image size must be"):
        model.run(np.zeros((1, 1, 14, 14), np.float32))
