"""Preprocessing: stated once, by whom it should be; carried by recordings and graphs; shown by whoever applies it."""

import json

import numpy as np
import pytest

from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.floats.preprocessing import Preprocessing, read, resolve, stated, write
from intvit.floats.recording import Recording, record
from intvit.graph.store import load
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

MODEL = {"mean": [0.5, 0.5], "std": [0.25], "resize": 40}
RECORDED = Preprocessing((0.1,), (0.2,), 30)
AS_RECORDED = (0.1,), (0.2,), 30, False


def rule(found):
    return found.mean, found.std, found.resize, found.normalize_floats


@pytest.mark.parametrize(
    ("given", "others", "expected"),
    [
        ({}, {}, ((0.0,), (1.0,), None, False)),
        ({}, {"metadata": MODEL}, ((0.5,), (0.25,), 40, False)),
        ({}, {"file": {"mean": [0.1, 0.2]}}, ((0.1, 0.2), (1.0,), None, False)),
        ({}, {"metadata": MODEL, "file": {"mean": [0.5], "std": [0.25]}}, ((0.5,), (0.25,), 40, False)),
        ({}, {"metadata": MODEL, "file": {"mean": [0.3]}, "calibrated": True}, ((0.5,), (0.25,), 40, False)),
        ({"mean": [0.3]}, {"metadata": MODEL, "file": {"mean": [0.2]}}, ((0.3,), (0.25,), 40, False)),
        ({"resize": 50}, {"metadata": MODEL}, ((0.5,), (0.25,), 50, False)),
        ({"mean": [0.3]}, {"metadata": MODEL, "dtype": "float32"}, ((0.3,), (0.25,), 40, True)),
        ({"mean": [0], "std": [1]}, {"metadata": MODEL, "dtype": "float32"}, ((0.5,), (0.25,), 40, False)),
        ({"mean": [0], "std": [1]}, {"metadata": MODEL}, ((0.0,), (1.0,), 40, False)),
        ({}, {"metadata": MODEL | {"normalize_floats": True}, "dtype": "float64"}, ((0.5,), (0.25,), 40, True)),
        ({}, {"recorded": RECORDED, "metadata": MODEL, "file": {"mean": [0.9]}}, AS_RECORDED),
        ({"mean": [0.1, 0.1], "resize": 30}, {"recorded": RECORDED}, AS_RECORDED),
        ({"mean": [0], "std": [1]}, {"recorded": Preprocessing((0.1,), (0.2,), 30, dtype="float32")}, AS_RECORDED),
    ],
)
def test_who_states_it(given, others, expected):
    assert rule(resolve(given, **others)) == expected


@pytest.mark.parametrize(
    ("given", "others", "message"),
    [
        (
            {},
            {"metadata": MODEL, "file": {"mean": [0.3]}},
            "mean must be known, and is 0.5 by the model, 0.3 by the file",
        ),
        ({"mean": [0.3]}, {"metadata": MODEL, "file": {"std": [0.3]}}, "std must be known"),
        ({}, {"file": {"mean": [0.3]}, "dtype": "float32"}, "float images may be done or to be done"),
        ({"mean": [0.3]}, {"recorded": RECORDED}, "--mean: must be what the recording was made with, 0.1, not 0.3"),
        ({"resize": 31}, {"recorded": RECORDED}, "--resize: must be .* 30, not 31"),
        ({"mean": [float("nan")]}, {}, "--mean: must be one finite number"),
        ({"std": [0]}, {}, "--std: must be positive"),
        ({"std": [1e-50]}, {}, "--std: must be positive"),
        ({"std": [-1]}, {}, "--std: must be positive"),
        ({}, {"metadata": {"mean": "0.5"}}, "the model: mean: must be one finite number"),
        ({}, {"metadata": {"mean": [[0.5]]}}, "the model: mean"),
        ({}, {"metadata": {"mean": [0.5, [1]]}}, "the model: mean"),
        ({}, {"metadata": {"mean": []}}, "the model: mean"),
        ({}, {"metadata": {"mean": {}}}, "the model: mean"),
        ({}, {"metadata": {"std": [1e40]}}, "the model: std"),
        ({}, {"metadata": {"resize": 2.5}}, "the model: resize: must be a length"),
        ({}, {"metadata": {"resize": True}, "calibrated": True}, "the graph: resize: must be a length"),
        ({}, {"metadata": {"normalize_floats": 1}}, "normalize_floats: must be true or false"),
        ({}, {"file": {"std": [0.0]}}, "attribute std: must be positive"),
    ],
)
def test_what_contradicts_itself_or_means_nothing(given, others, message):
    with pytest.raises(IntvitError, match=message):
        resolve(given, **others)


@pytest.mark.parametrize(
    ("given", "others", "text"),
    [
        ({}, {}, "uint8 / 255, no mean or std stated"),
        ({}, {"metadata": MODEL}, "uint8 / 255, mean 0.5, std 0.25 (from the model)"),
        (
            {"std": [0.5]},
            {"metadata": MODEL, "crop": (32, 32)},
            "uint8 / 255, mean 0.5 (from the model), std 0.5 (--std, not the 0.25 of the model), "
            "resize 40 (from the model), crop 32 x 32",
        ),
        (
            {},
            {"metadata": MODEL, "calibrated": True, "file": {"mean": [0.3]}},
            "uint8 / 255, mean 0.5 (from the graph, not the 0.3 of the file), std 0.25 (from the graph)",
        ),
        ({}, {"dtype": "float32"}, "float32, as they are"),
        (
            {},
            {"dtype": "float32", "metadata": MODEL},
            "float32, as they are; not applied to floats: mean 0.5, std 0.25 (from the model)",
        ),
        ({"mean": [1, 2]}, {"dtype": "float64"}, "float64, mean 1.0 2.0 (--mean)"),
    ],
)
def test_says_what_is_done(given, others, text):
    assert str(resolve(given, **others)) == text


def test_a_recording_keeps_all_of_it():
    found = resolve({"mean": [0.1, 0.2, 0.3]}, metadata=MODEL, dtype="float16", crop=(4, 5))
    again = read("r.h5", write(found))
    assert again == found
    assert (again.dtype, again.crop) == ("float16", (4, 5))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dtype": "x", "crop": null}', '{"dtype": "uint8", "crop": 5}'])
def test_a_recording_that_says_nonsense(text):
    with pytest.raises(IntvitError, match="must be as `intvit record` states it"):
        read("r.h5", text)


@pytest.mark.parametrize("metadata", [{}, MODEL, {"mean": [0.5, 0.5, 0.5], "std": 2}])
def test_metadata_that_state_it_already_stay_as_they_are(metadata):
    assert stated(metadata).restate(metadata) == metadata


def test_metadata_are_restated_where_they_differ():
    assert Preprocessing((0.1,), (0.25,), None, True).restate({**MODEL, "a": 1}) == {
        "mean": [0.1], "std": [0.25], "normalize_floats": True, "a": 1,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- through the stages


OTHER = ["--mean", "0.5", "--std", "0.5"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Stored images of every kind, and the same as the model takes them."""
    folder = tmp_path_factory.mktemp("images")
    stored = open_images("fashion-mnist:calibration", size=(28, 28), channels=1)
    pixels = stored.raw(0, 6)
    np.save(folder / "u8.npy", pixels)
    np.save(folder / "float.npy", stored.read(0, 6))
    np.save(folder / "unit.npy", pixels.astype(np.float32) / np.float32(255))
    np.savez(folder / "labelled.npz", images=pixels, labels=stored.labels[:6])
    return folder


def fed(graph, source):
    """What an integer graph file would be fed of a source, no options given."""
    return open_images(str(source), size=(28, 28), channels=1, metadata=load(graph).metadata, calibrated=True).read(
        0, 6
    )


def test_a_mean_that_was_recorded_with_holds_ever_after(cli, vit, files, tmp_path):
    r, g, m = tmp_path / "r.h5", tmp_path / "g.h5", tmp_path / "m.json"
    status, _, err = cli("record", vit.onnx_path, files / "u8.npy", "-o", r, "--limit", "6", *OTHER)
    assert status == 0
    assert "images: uint8 / 255, mean 0.5 (--mean, not the 0.286 of the model)" in err
    said = "images: uint8 / 255, mean 0.5, std 0.5 (from the "
    lowering = ["lower", vit.onnx_path, "--recording", r, "--method", "ivit", "-o", g]
    for command, where in (
        (
            ["map", vit.onnx_path, "--recording", r, "--images", files / "u8.npy", "-o", m, "--methods", "ivit"],
            "recording",
        ),
        (lowering, "recording"),
        ([*lowering, *OTHER], "recording"),
        (["run", g, files / "u8.npy", "-o", tmp_path / "l.npz"], "graph"),
        (["eval", g, files / "labelled.npz"], "graph"),
        (["golden", "export", g, files / "u8.npy", "-o", tmp_path / "v", "--site", "softmax"], "graph"),
    ):
        status, _, err = cli(*command)
        assert status == 0, err
        assert f"{said}{where})" in err
    expected = (np.load(files / "unit.npy") - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(fed(g, files / "u8.npy"), expected)
    assert load(g).metadata["mean"] == [0.5]
    refused = tmp_path / "refused.h5"
    status, _, err = cli(*lowering[:-1], refused, "--mean", "0.286")
    assert (status, err) == (2, "intvit: --mean: must be what the recording was made with, 0.5, not 0.286\n")
    assert not refused.exists()


def test_lower_and_map_take_the_same_options_without_a_recording(cli, vit, files, tmp_path):
    g, m = tmp_path / "g.h5", tmp_path / "m.json"
    images = ["--images", files / "u8.npy", "--limit", "4", *OTHER]
    for command in (["lower", vit.onnx_path, *images, "-o", g], ["map", vit.onnx_path, *images, "-o", m]):
        status, _, err = cli(*command)
        assert status == 0, err
        assert "mean 0.5 (--mean, not the 0.286 of the model)" in err
    assert (load(g).metadata["mean"], load(g).metadata["std"]) == ([0.5], [0.5])


def test_floats_are_fed_as_they_are(cli, vit, files, tmp_path):
    r, g = tmp_path / "r.h5", tmp_path / "g.h5"
    status, _, err = cli("record", vit.onnx_path, files / "float.npy", "-o", r)
    assert status == 0
    assert "images: float32, as they are; not applied to floats: mean 0.286, std 0.353 (from the model)" in err
    with Recording(r) as recording:
        assert np.array_equal(recording.read(vit.graph.inputs[0], 0, 6), np.load(files / "float.npy"))
    assert cli("lower", vit.onnx_path, "--recording", r, "--preset", "published", "-o", g)[0] == 0
    assert np.array_equal(fed(g, files / "u8.npy"), np.load(files / "float.npy"))
    assert load(g).metadata == lower(vit.graph, vit.calibration, build_recipe({})).metadata


def test_floats_that_were_recorded_with_a_mean_get_it_ever_after(cli, vit, files, tmp_path):
    r, g = tmp_path / "r.h5", tmp_path / "g.h5"
    status, _, err = cli("record", vit.onnx_path, files / "unit.npy", "-o", r, "--mean", "0.286", "--std", "0.353")
    assert status == 0
    assert "images: float32, mean 0.286 (--mean), std 0.353 (--std)" in err
    assert cli("map", vit.onnx_path, "--recording", r, "--images", files / "unit.npy", "--methods", "ivit", "-o",
               tmp_path / "m.json")[0] == 0  # fmt: skip
    assert cli("lower", vit.onnx_path, "--recording", r, "-o", g)[0] == 0
    assert np.array_equal(fed(g, files / "unit.npy"), np.load(files / "float.npy"))
    assert np.array_equal(fed(g, files / "u8.npy"), np.load(files / "float.npy"))


def test_the_models_own_preprocessing_leaves_the_graph_as_it_is(vit):
    assert vit.calibration.preprocessing is not None
    stated_nowhere = {key: value for key, value in vit.calibration.__dict__.items() if key != "preprocessing"}
    recipe = build_recipe({})
    found = lower(vit.graph, vit.calibration, recipe)
    assert found.content_hash == lower(vit.graph, type(vit.calibration)(**stated_nowhere), recipe).content_hash


def test_another_preprocessing_is_another_recording(vit, tmp_path):
    """Equal images under another rule do not resume: the graph would state the rule of the first."""
    model, path = FloatModel(vit.onnx_path, threads=1), tmp_path / "r.h5"

    def interrupt(done, total):
        raise KeyboardInterrupt

    np.save(tmp_path / "x.npy", vit.recorded.read(0, 3))
    open_x = lambda **options: open_images(str(tmp_path / "x.npy"), size=(28, 28), channels=1, **options)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        record(model, open_x(), path, batch=1, progress=interrupt)
    record(model, open_x(metadata={"mean": [0.5]}), path, batch=1)
    with Recording(path) as recording:
        assert recording.preprocessing.mean == (0.5,)
        assert calibrate(vit.graph, recording, build_recipe({})).preprocessing == recording.preprocessing


def test_live_activations_state_it(vit):
    live = LiveActivations(FloatModel(vit.onnx_path, threads=1), vit.recorded, 1)
    assert live.preprocessing == vit.recorded.preprocessing


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--mean", "0.5"], "must go with --images or --recording"),
        (["--images", "x.npy", "--recording", "r.h5"], "only one of them"),
    ],
)
def test_lower_refuses_what_it_would_not_use(cli, vit, tmp_path, arguments, part):
    status, _, err = cli("lower", vit.onnx_path, *arguments, "-o", tmp_path / "g.h5")
    assert status == 2
    assert part in err


def test_every_command_that_reads_images_has_the_options(cli):
    for command in (["record"], ["lower"], ["map"], ["run"], ["eval"], ["golden", "export"]):
        text = cli(*command, "--help")[1]
        assert all(option in text for option in ("--mean", "--std", "--resize")), command


def test_eval_says_it_beside_json(cli, vit, mixed_path, files):
    status, out, err = cli("eval", mixed_path, files / "labelled.npz", "--json", "--mean", "0.4")
    assert status == 0
    assert set(json.loads(out)) == {"integer", "images"}
    assert err.splitlines() == [
        "images: uint8 / 255, mean 0.4 (--mean, not the 0.286 of the graph), std 0.353 (from the graph)"
    ]
