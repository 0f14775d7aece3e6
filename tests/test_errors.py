"""Bad input: one clear line that names the place, the rule and the value; exit 2; nothing half-written."""

import json

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intvit.analysis.demo import WEIGHTS, embedded

METADATA = {"intvit": json.dumps({"num_heads": 3})}


@pytest.fixture
def weights():
    return load_file(embedded(WEIGHTS))


@pytest.fixture
def refused(cli, tmp_path):
    """Run, expect exit 2 and one line with every given part, and no new file in tmp_path/out."""
    out = tmp_path / "out"
    out.mkdir()

    def run(arguments, *parts):
        status, _, err = cli(*arguments)
        assert status == 2, err
        assert err.startswith("intvit: "), err
        assert err.count("\n") == 1, err
        for part in parts:
            assert part in err
        assert not list(out.iterdir())

    return run


def truncate(path, keep=0.7):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def save_weights(path, tensors, metadata=METADATA):
    save_file(tensors, path, metadata=metadata)
    return path


def test_nan_weight(refused, weights, tmp_path):
    weights["blocks.3.mlp.fc1.weight"][5, 5] = np.nan
    path = save_weights(tmp_path / "w.safetensors", weights)
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "blocks.3.mlp.fc1.weight", "finite")


def test_missing_tensor(refused, weights, tmp_path):
    del weights["blocks.2.norm2.bias"]
    path = save_weights(tmp_path / "w.safetensors", weights)
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "blocks.2.norm2.bias", "missing", "[96]")


def test_wrong_shape(refused, weights, tmp_path):
    weights["blocks.0.attn.proj.weight"] = weights["blocks.0.attn.proj.weight"][:, :90].copy()
    path = save_weights(tmp_path / "w.safetensors", weights)
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "blocks.0.attn.proj.weight", "[96, 96]", "[96, 90]")


def test_leftover_tensor(refused, weights, tmp_path):
    weights["blocks.0.surprise"] = np.zeros(3, np.float32)
    path = save_weights(tmp_path / "w.safetensors", weights)
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "blocks.0.surprise", "no site uses it")


def test_heads_unknown(refused, weights, tmp_path):
    path = save_weights(tmp_path / "w.safetensors", weights, {})
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "--num-heads")


def test_truncated_safetensors(refused, weights, tmp_path):
    path = save_weights(tmp_path / "w.safetensors", weights)
    truncate(path)
    refused(["import", path, "-o", tmp_path / "out/m.onnx"], "whole safetensors")


def test_pickled_npz_is_never_unpickled(refused, tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{"x": 1}], dtype=object))
    refused(["import", tmp_path / "w.npz", "-o", tmp_path / "out/m.onnx"], "plain arrays")


@pytest.mark.parametrize("name", ["nothere.onnx", "garbage.onnx"])
def test_bad_onnx(refused, tmp_path, name):
    if name == "garbage.onnx":
        (tmp_path / name).write_bytes(b"not protobuf at all" * 10)
    refused(["record", tmp_path / name, "fashion-mnist:test", "-o", tmp_path / "out/r.h5"], name)


def test_truncated_recording(refused, vit, tmp_path):
    path = tmp_path / "r.h5"
    path.write_bytes(vit.recording_path.read_bytes())
    truncate(path)
    refused(["lower", vit.onnx_path, "--recording", path, "-o", tmp_path / "out/g.h5"], "r.h5", "HDF5")


def test_recording_of_another_model(refused, vit, weights, tmp_path, cli):
    weights["head.bias"] = weights["head.bias"] + 1
    path = save_weights(tmp_path / "w.safetensors", weights)
    assert cli("import", path, "-o", tmp_path / "m.onnx")[0] == 0
    arguments = ["lower", tmp_path / "m.onnx", "--recording", vit.recording_path, "-o", tmp_path / "out/g.h5"]
    refused(arguments, "recording: must be of model")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--method", "magic"], ["norm: layernorm method", "magic", "fqvit, ibert, ivit"]),
        (["--bits", "3"], ["bits", "3", "greater than or equal to 4"]),
        (["--bits", "9"], ["bits", "9", "less than or equal to 8"]),
        (["--observer", "guess"], ["observer", "guess"]),
        (["--mapping", "nothere.json"], ["nothere.json"]),
    ],
)
def test_bad_recipes(refused, vit, tmp_path, options, parts):
    arguments = ["lower", vit.onnx_path, "--recording", vit.recording_path, "-o", tmp_path / "out/g.h5", *options]
    refused(arguments, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bits = 3", ["recipe.toml", "bits", "3"]),
        ("bitz = 8", ["recipe.toml", "bitz", "known key"]),
        ('[sites."blocks.9.norm1"]\nmethod = "ivit"', ["blocks.9.norm1"]),
        ("bits = ", ["recipe.toml"]),
        (".".join("a" * 500) + " = 1", ["recipe.toml", "known key"]),
    ],
)
def test_bad_recipe_files(refused, vit, tmp_path, text, parts):
    (tmp_path / "recipe.toml").write_text(text)
    arguments = ["lower", vit.onnx_path, "--recording", vit.recording_path, "-o", tmp_path / "out/g.h5"]
    refused([*arguments, "--recipe", tmp_path / "recipe.toml"], *parts)


def test_truncated_graph(refused, mixed_path, tmp_path):
    path = tmp_path / "g.h5"
    path.write_bytes(mixed_path.read_bytes())
    truncate(path)
    refused(["run", path, "fashion-mnist:test", "-o", tmp_path / "out/l.npz"], "g.h5")


def test_foreign_hdf5(refused, vit, tmp_path):
    refused(["run", vit.recording_path, "fashion-mnist:test", "-o", tmp_path / "out/l.npz"], "intvit.graph version 4")


def test_one_changed_weight_in_a_graph_file(refused, mixed_path, tmp_path):
    path = tmp_path / "g.h5"
    path.write_bytes(mixed_path.read_bytes())
    with h5py.File(path, "a") as file:
        file["arrays/blocks.0.attn.qkv/weight"][0, 0] ^= 1
    refused(["run", path, "fashion-mnist:test", "-o", tmp_path / "out/l.npz"], "content hash")


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros((2, 1, 32, 32), np.float32), ["(1, 28, 28)", "(1, 32, 32)"]),
        (np.zeros((2, 3, 28, 28), np.float32), ["(1, 28, 28)", "(3, 28, 28)"]),
        (np.full((2, 1, 28, 28), np.nan, np.float32), ["image 0", "finite"]),
        (np.zeros((2, 28, 28), np.float32), ["(1, 28, 28)", "not (28, 28)"]),
        (np.zeros((2, 28), np.float32), ["(N, C, H, W)"]),
        (np.zeros((2, 1, 28, 28), np.int32), ["uint8 or float", "int32"]),
    ],
)
def test_bad_images(refused, mixed_path, tmp_path, array, parts):
    np.save(tmp_path / "i.npy", array)
    refused(["run", mixed_path, tmp_path / "i.npy", "-o", tmp_path / "out/l.npz"], *parts)


def test_eval_needs_labels(refused, mixed_path, tmp_path):
    np.save(tmp_path / "i.npy", np.zeros((2, 1, 28, 28), np.uint8))
    refused(["eval", mixed_path, tmp_path / "i.npy"], "labels")


def test_unknown_backend(refused, mixed_path, tmp_path):
    arguments = ["run", mixed_path, "fashion-mnist:test", "-o", tmp_path / "out/l.npz", "--limit", "1"]
    refused([*arguments, "--backend", "gpu"], "kernel, spec", "gpu")


def test_unknown_option_exits_2(cli):
    assert cli("lower", "--nope")[0] == 2


def test_map_refuses_other_images_than_the_recorded_ones(refused, vit, tmp_path):
    common = ["map", vit.onnx_path, "--recording", vit.recording_path, "-o", tmp_path / "out/m.json"]
    refused([*common, "--images", "fashion-mnist:test"], "must be the 16 images that were recorded")


def test_unknown_rule_and_methods(refused, vit, tmp_path):
    common = ["map", vit.onnx_path, "--recording", vit.recording_path, "-o", tmp_path / "out/m.json"]
    refused([*common, "--images", "fashion-mnist:calibration", "--rule", "best"], "rule", "sqnr_output", "best")
    refused([*common, "--images", "fashion-mnist:calibration", "--methods", "magic"], "magic", "ivit")


@pytest.mark.parametrize(
    "words",
    ["import {} -o m.onnx", "lower {} --images i -o g.h5", "record {} i -o r.h5", "run {} i -o l.npz", "doctor {}",
     "eval {} i", "golden check {}", "golden export {} i -o v", "demo -o {}", "run g.h5 {} -o l.npz --backend {}",
     "import {}.npz -o m.onnx", "import {}.safetensors -o m.onnx", "import {}.onnx -o m.onnx",
     "lower {} --recording {} -o g.h5"],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_one_bearable_line(cli, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = cli(*(word.replace("{}", "x" * 5000) for word in words.split()))
    assert status == 2
    assert err.startswith("intvit: ")
    assert err.count("\n") == 1
    assert len(err) < 1500
    assert not list(tmp_path.iterdir())


def test_completion_for_a_shell_that_nobody_knows_is_a_mistake_of_usage(cli, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert cli("--show-completion", "nosuchshell")[0] == 2


def test_a_deviation_below_all_floats_warns_of_nothing(refused, mixed_path, tmp_path):
    arguments = ["run", mixed_path, "fashion-mnist:test", "-o", tmp_path / "l.npz"]
    refused([*arguments, "--std", "1e-320"], "--std", "positive")
