"""The command line: help with examples everywhere, the stages end to end, traces that other tools can open."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from intvit.cli import app
from intvit.engine import Engine, quantize_images
from intvit.engine.trace import read_tensor
from intvit.graph.store import load

ROOT = Path(__file__).resolve().parent.parent


def names(app, *before):
    """Every command, as words."""
    for command in app.registered_commands:
        yield [*before, command.name or command.callback.__name__]
    for group in app.registered_groups:
        yield from names(group.typer_instance, *before, group.name)


COMMANDS = list(names(app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(cli, command):
    status, out, _ = cli(*command, "--help")
    assert status == 0
    assert f"Example: intvit {' '.join(command)}" in " ".join(out.split())


def test_version(cli):
    from intvit import __version__

    assert cli("--version")[:2] == (0, f"{__version__}\n")


def test_methods_lists_every_method(cli):
    status, out, _ = cli("methods", "--json")
    assert status == 0
    published = {
        f"{op}.{name}.v1"
        for op in ("softmax", "gelu", "layernorm")
        for name in ("ibert", "ivit", "ivit_tvm", "fqvit")
        if (op, name) != ("gelu", "fqvit")
    }
    more = {f"{op}.{name}.v1" for op in ("quick_gelu", "rmsnorm", "silu") for name in ("ibert", "ivit")}
    assert {m["id"] for m in json.loads(out)} == published | more


def test_run_with_trace(cli, vit, mixed, mixed_path, tmp_path):
    trace, logits = tmp_path / "t.h5", tmp_path / "l.npz"
    arguments = [
        "run",
        mixed_path,
        "fashion-mnist:test",
        "-o",
        logits,
        "--trace",
        trace,
        "--limit",
        "5",
        "--batch",
        "2",
    ]
    assert cli(*arguments)[0] == 0
    graph = load(mixed_path)
    q = quantize_images(graph, vit.test.read(0, 5))
    expected = Engine(graph).evaluate(q, list(graph.tensors))
    with np.load(logits) as file:
        assert np.array_equal(file["logits"], expected["logits"])
        assert np.array_equal(file["head"], expected["head"])
        assert file["head_scale"].shape == (10,)
    with h5py.File(trace) as file:
        assert file.attrs["graph_hash"] == graph.content_hash
        assert set(file["tensors"]) == set(graph.tensors)
        assert file["tensors/blocks.0.norm1.quant"].attrs["site"] == "blocks.0.norm1"
    for name in graph.tensors:
        assert np.array_equal(read_tensor(trace, name), expected[name]), name


def test_spec_backend_on_the_command_line(cli, tmp_path):
    images, model, graph = (tmp_path / name for name in ("x.npy", "m.onnx", "g.h5"))
    np.save(images, np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32))
    assert cli("import", ROOT / "golden" / "foreign" / "vit_old13.onnx", "-o", model)[0] == 0
    assert cli("lower", model, "--images", images, "--method", "fqvit", "-o", graph)[0] == 0
    paths = [tmp_path / f"{backend}.npz" for backend in ("spec", "kernel")]
    for path in paths:
        assert cli("run", graph, images, "-o", path, "--backend", path.stem)[0] == 0
    with np.load(paths[0]) as a, np.load(paths[1]) as b:
        assert all(np.array_equal(a[key], b[key]) for key in a.files)


def test_eval_prints_the_float_model_beside(cli, vit, mixed_path):
    arguments = ["eval", mixed_path, "fashion-mnist:test", "--float", vit.onnx_path, "--limit", "50", "--json"]
    status, out, _ = cli(*arguments)
    assert status == 0
    answer = json.loads(out)
    assert {"float", "integer", "images"} < set(answer)
    assert answer["images"] == 50


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_every_observer_lowers_to_a_model_that_works(cli, vit, tmp_path, observer):
    graph = tmp_path / "g.h5"
    common = ["lower", vit.onnx_path, "--recording", vit.recording_path, "-o", graph, "--observer", observer]
    assert cli(*common)[0] == 0
    status, out, _ = cli("eval", graph, "fashion-mnist:test", "--limit", "100", "--json")
    assert status == 0
    assert json.loads(out)["integer"] > 0.8


def test_demo_runs_whole(cli, tmp_path):
    status, out, err = cli("demo", "-o", tmp_path / "d", "--images", "32", "--calibration", "8")
    assert status == 0, err
    assert "every bit equal" in out
    assert "Top-1 on 32 test images" in out
    assert cli("golden", "check", tmp_path / "d" / "vectors")[0] == 0
    assert cli("demo", "-o", tmp_path)[0] == 2
