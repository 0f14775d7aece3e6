"""Recordings: what onnxruntime computes, for every site, whole or not at all, resumable."""

import h5py
import numpy as np
import onnx
import pytest

from intvit.errors import IntvitError
from intvit.files import locked, safe_key
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording, record


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


def stop_after(n_images):
    def progress(done, total):
        if done >= n_images:
            raise KeyboardInterrupt

    return progress


def interrupted(model, images, path, after=4, **options):
    with pytest.raises(KeyboardInterrupt):
        record(model, images, path, batch=2, progress=stop_after(after), **options)
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.h5.partial", "r.h5.partial.journal"]


def finished(model, images, path, limit=8):
    """Record; the images that were computed, and what was told."""
    computed, told = [], []
    record(
        model, images, path, limit=limit, batch=2, progress=lambda done, _: computed.append(done), notice=told.append
    )
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return computed, "".join(told)


@pytest.fixture(scope="module")
def eight(vit, model, tmp_path_factory):
    """Eight images, recorded at once: bytes."""
    path = tmp_path_factory.mktemp("eight") / "r.h5"
    record(model, vit.recorded, path, limit=8, batch=2)
    return path.read_bytes()


def test_an_interrupted_recording_resumes_to_equal_bytes(vit, model, eight, tmp_path):
    path = tmp_path / "r.h5"
    interrupted(model, vit.recorded, path, limit=8)
    assert finished(model, vit.recorded, path) == ([6, 8], f"{path}: resumed after image 4 of 8")
    assert path.read_bytes() == eight


def test_a_resumed_recording_can_be_interrupted_anywhere(vit, model, eight, tmp_path):
    path = tmp_path / "r.h5"
    for after in (2, 6, 8):
        interrupted(model, vit.recorded, path, after=after, limit=8)
    assert finished(model, vit.recorded, path)[0] == []
    assert path.read_bytes() == eight


def cut(data, at):
    del data[at:]


def zero(data, at):
    data[at : at + 500] = bytes(len(data[at : at + 500]))


def garble(data, at):
    data[at] ^= 1


def swap_lines(data, at):
    lines = bytes(data).splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    data[:] = b"".join(lines)


def forget_first_line(data, at):
    data[:] = data[data.index(b"\n") + 1 :]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.99])
@pytest.mark.parametrize(
    ("suffix", "harm"),
    [
        *((".partial", harm) for harm in (cut, zero, garble)),
        *((".partial.journal", harm) for harm in (cut, zero, garble, swap_lines, forget_first_line)),
    ],
)
def test_what_is_damaged_is_recorded_again(vit, model, eight, tmp_path, suffix, harm, where):
    path = tmp_path / "r.h5"
    interrupted(model, vit.recorded, path, limit=8)
    left = tmp_path / f"r.h5{suffix}"
    data = bytearray(left.read_bytes())
    harm(data, int(where * len(data)))
    left.write_bytes(data)
    finished(model, vit.recorded, path)
    assert path.read_bytes() == eight


@pytest.mark.parametrize("gone", [".partial", ".partial.journal"])
def test_one_file_of_the_two_is_nothing(vit, model, eight, tmp_path, gone):
    path = tmp_path / "r.h5"
    interrupted(model, vit.recorded, path, limit=8)
    (tmp_path / f"r.h5{gone}").unlink()
    assert finished(model, vit.recorded, path)[0] == [2, 4, 6, 8]
    assert path.read_bytes() == eight


def test_a_partial_file_that_is_a_link_is_not_followed(vit, model, eight, tmp_path):
    path, other = tmp_path / "out" / "r.h5", tmp_path / "other"
    path.parent.mkdir()
    other.write_text("not ours")
    for suffix in (".partial", ".partial.journal"):
        path.with_name(path.name + suffix).symlink_to(other)
    finished(model, vit.recorded, path)
    assert (path.read_bytes(), other.read_text()) == (eight, "not ours")


def test_another_set_of_images_starts_anew(vit, model, tmp_path):
    path = tmp_path / "r.h5"
    interrupted(model, vit.recorded, path, limit=8)
    computed, told = finished(model, vit.test, path, limit=4)
    assert computed == [2, 4]
    assert "started anew" in told


def test_a_recording_that_fails_leaves_nothing(vit, model, tmp_path, monkeypatch):
    path = tmp_path / "r.h5"
    path.write_text("old")
    run = FloatModel.run
    monkeypatch.setattr(
        FloatModel, "run", lambda self, images, names=None: run(self, images, names) if len(images) < 2 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        record(model, vit.recorded, path, limit=8, batch=2)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.h5", "old")]


def test_one_writer_at_a_time(vit, model, tmp_path):
    with locked(tmp_path / "r.h5"), pytest.raises(IntvitError, match="one writer at a time"):
        record(model, vit.recorded, tmp_path / "r.h5", limit=2)


def change_a_chunk(file):
    data = file["activations/blocks.0.mlp.act"].id
    _, chunk = data.read_direct_chunk((3, 0, 0))
    data.write_direct_chunk((3, 0, 0), chunk[:50] + bytes([chunk[50] ^ 1]) + chunk[51:])


def change_a_value(file):
    file["activations/blocks.0.mlp.act"][3, 0, 0] += 1


def swap_tensors(file):
    for a, b in (("blocks.0.norm1", "x"), ("blocks.0.norm2", "blocks.0.norm1"), ("x", "blocks.0.norm2")):
        file.move(f"activations/{a}", f"activations/{b}")


def swap_images(file):
    data = file["activations/blocks.0.norm1"]
    data[:2] = data[:2][::-1]


def attribute(name, value, dataset="activations/blocks.0.norm1"):
    return lambda file: (file[dataset] if dataset else file).attrs.__setitem__(name, value)


def without(name):
    return lambda file: file.__delitem__(name)


def linked(file):
    del file["activations/blocks.0.norm1"]
    file["activations/blocks.0.norm1"] = h5py.ExternalLink("other.h5", "/x")


def stored_outside(file):
    shape = file["activations/blocks.0.norm1"].shape
    del file["activations/blocks.0.norm1"]
    file.create_dataset("activations/blocks.0.norm1", shape, "<f4", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


CHANGES = {
    "chunk": change_a_chunk, "value": change_a_value, "swapped tensors": swap_tensors, "swapped images": swap_images,
    "site": attribute("site", "blocks.0.norm2"), "op": attribute("op", "Gelu"), "axes": attribute("axes", "[]"),
    "n_images": attribute("n_images", 15, ""), "model": attribute("model_sha256", "0" * 64, ""),
    "images": attribute("images_sha256", "0" * 64, ""), "digest": attribute("sha256", "0" * 64, ""),
    "type": attribute("sha256", 3, ""), "no tensor": without("activations/blocks.0.norm1"),
    "no digests": without("digests"), "no description": without("recording.json"), "external link": linked,
    "external storage": stored_outside,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_recording_that_was_changed_is_refused(vit, tmp_path, change):
    path = tmp_path / "r.h5"
    path.write_bytes(vit.recording_path.read_bytes())
    with h5py.File(path, "a") as file:
        CHANGES[change](file)
    with pytest.raises(IntvitError, match=r"r\.h5: ") as caught:
        contents(path)
    assert "\n" not in str(caught.value)


def test_recordings_of_version_1_are_made_again(vit, tmp_path):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = "intvit.recording", 1
    with pytest.raises(IntvitError, match=r"must be intvit\.recording version 2, not .* version 1; make it again"):
        Recording(path)


def test_names_of_any_kind_are_kept(vit, model, tmp_path):
    """A model whose tensors are called like paths out of the file, and more."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    odd = ["/a/b", "../../x", ".", "A", "a", "index.json", "%2e", " ", "x" * 190, "\u00e4\u4e2d"]
    new = dict(zip([node.output[0] for node in proto.graph.node][-len(odd) - 1 :], odd, strict=False))
    for node in proto.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        node.name = new.get(node.name, node.name)
    path = tmp_path / "r.h5"
    record(FloatModel(proto, threads=1), vit.recorded, path, limit=1)
    with Recording(path) as recording, Recording(vit.recording_path) as plain:
        assert set(new.values()) & set(recording.names)
        for name in plain.names:
            expected = plain.read(name, 0, 1)
            assert np.allclose(recording.read(new.get(name, name), 0, 1), expected, rtol=1e-4, atol=1e-4)
    with h5py.File(path) as file:
        assert set(file["activations"]) == {safe_key(name) for name in recording.names}


def batches_of(monkeypatch, model):
    """Numbers of images that the model is run on from now on."""
    found, run = [], FloatModel.run

    def spy(self, images, outputs=None):
        found.append(len(images))
        return run(self, images, outputs)

    monkeypatch.setattr(FloatModel, "run", spy)
    return found


def allow(monkeypatch, n_bytes):
    monkeypatch.setattr("intvit.files.memory.ACTIVATION_BYTES", n_bytes)
    monkeypatch.setattr("intvit.floats.live.ACTIVATION_BYTES", n_bytes)


@pytest.fixture(scope="module")
def image_bytes(vit):
    with Recording(vit.recording_path) as recording:
        return sum(recording.read(name, 0, 1).nbytes for name in recording.names)


@pytest.mark.parametrize(("images", "expected"), [(0.5, 1), (1, 1), (3.5, 3), (100, 8)])
def test_memory_is_bounded_by_bytes(vit, model, image_bytes, tmp_path, monkeypatch, images, expected):
    allow(monkeypatch, int(images * image_bytes))
    found = batches_of(monkeypatch, model)
    record(model, vit.recorded, tmp_path / "r.h5", limit=8, batch=8)
    assert max(found) == expected


@pytest.mark.parametrize("images", [0.1, 0.5, 1, 3.5, 100])
def test_live_activations_are_bounded_by_bytes(vit, model, image_bytes, monkeypatch, images):
    allow(monkeypatch, int(images * image_bytes))
    found = batches_of(monkeypatch, model)
    live = LiveActivations(model, vit.recorded, 8)
    expected = model.run(vit.recorded.read(0, 8), live.names)
    del found[:]
    for name in [*live.names, *live.names[5::-1]]:
        activation = live.read(name, 0, 8)
        assert np.allclose(activation, expected[name], rtol=1e-4, atol=1e-4), name
        held = sum(tensor.nbytes for tensor in live._tensors.values())
        assert held <= max(images * image_bytes, activation.nbytes)
    assert max(found) == min(8, max(1, int(images)))


def test_wrong_image_size(model):
    with pytest.raises(IntvitError, match="image size must be"):
        model.run(np.zeros((1, 1, 14, 14), np.float32))
