"""I-ViT checkpoints: the published networks of golden/conformance as their training code would save them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from intvit.calibrate import trained
from intvit.errors import IntvitError
from intvit.graph.store import load
from intvit.importers.ivit import audit
from intvit.importers.onnx import float_graph
from intvit.importers.timm import import_timm
from intvit.lowering import lower

MODELS = Path(__file__).resolve().parent.parent / "golden" / "conformance" / "models"


def published(kind):
    """(meta, arrays) of a published network with I-ViT's operators everywhere."""
    with np.load(MODELS / f"{kind}_ivit.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays["meta"])), arrays


def checkpoint(arrays):
    """The tensors that I-ViT's training code saves: parameters, a scale per quantizer, integer weights."""
    tensors = {}
    for key, value in arrays.items():
        section, _, module = key.partition("/")
        if section == "param":
            tensors[module] = value.astype(np.float32)
        elif section == "scale" and module.rpartition(".")[2].startswith("qact"):
            tensors[f"{module}.act_scaling_factor"] = value.reshape(1).astype(np.float32)
        elif section == "weight_int":
            tensors[f"{module}.weight_integer"] = value.astype(np.float32)
    return tensors


@pytest.fixture(params=["vit", "swin"])
def saved(request, tmp_path):
    """(file, options, meta, arrays)"""
    meta, arrays = published(request.param)
    path = tmp_path / "checkpoint.safetensors"
    save_file(checkpoint(arrays), path)
    return path, {key: meta["config"][key] for key in ("num_heads", "img_size")}, meta, arrays


def test_runs_as_it_was_trained_without_recalibration(saved):
    from conformance_models import integer_graph, recipe_of

    path, options, meta, arrays = saved
    graph = float_graph(import_timm(path, **options))
    found = lower(graph, trained(graph), recipe_of(meta["kind"], meta, graph))
    _, expected = integer_graph(meta, arrays)
    assert [node.name for node in found.nodes] == [node.name for node in expected.nodes]
    for node, same in zip(found.nodes, expected.nodes, strict=True):
        assert node.attrs == same.attrs
        for key, array in node.arrays.items():
            assert np.array_equal(array, same.arrays[key]), (node.name, key)


def test_command_line(saved, cli, tmp_path):
    path, options, _, _ = saved
    heads = options["num_heads"]
    text = ",".join(map(str, heads)) if isinstance(heads, list) else str(heads)
    options = ["--num-heads", text, "--img-size", options["img_size"]]
    assert cli("import", path, *options, "-o", tmp_path / "m.onnx")[0] == 0
    assert cli("lower", tmp_path / "m.onnx", "--method", "ivit", "-o", tmp_path / "m.h5")[0] == 0
    assert load(tmp_path / "m.h5").outputs[0] == "logits"
    status, out, _ = cli("doctor", path)
    assert status == 0
    assert "nothing found" in out


def test_a_pytorch_checkpoint_with_its_command_line(saved, tmp_path):
    torch = pytest.importorskip("torch")
    path, options, _, arrays = saved
    state = {f"module.{key}": torch.from_numpy(value) for key, value in checkpoint(arrays).items()}
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, file)
    assert import_timm(file, **options).SerializeToString() == import_timm(path, **options).SerializeToString()


def test_a_pytorch_file_is_never_unpickled(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": Path("x")}, tmp_path / "x.pth")  # any object that is no tensor
    with pytest.raises(IntvitError, match="must be a PyTorch file of plain tensors"):
        import_timm(tmp_path / "x.pth")


def test_pytorch_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(IntvitError, match=r"needs PyTorch: pip install 'intvit\[torch\]'"):
        import_timm(tmp_path / "x.pth")


def test_a_lost_range_stops_the_import(saved):
    path, options, _, arrays = saved
    tensors = checkpoint(arrays)
    name = next(key for key in tensors if key.endswith("attn.qact1.act_scaling_factor"))
    tensors[name] = np.array([2.0**-23], np.float32)
    save_file(tensors, path)
    with pytest.raises(IntvitError, match=r"attn\.qact1: act_scaling_factor must be above 1\.19e-07"):
        import_timm(path, **options)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(IntvitError, match=r"attn\.qkv.*: its quantizer's act_scaling_factor is missing"):
        import_timm(path, **options)


def lost(tensors):
    tensors["blocks.0.qact2.act_scaling_factor"][:] = 2.0**-23


def never_ran(tensors):
    tensors["blocks.0.qact2.act_scaling_factor"][:] = 0


def without_integers(tensors):
    del tensors["blocks.1.mlp.fc1.weight_integer"]


def stale(tensors):
    tensors["blocks.1.mlp.fc1.weight"][:] *= np.linspace(0.5, 1.5, tensors["blocks.1.mlp.fc1.weight"].shape[1])


def not_a_number(tensors):
    tensors["head.bias"][0] = np.nan


def other_shape(tensors):
    tensors["head.weight_integer"] = tensors["head.weight_integer"][1:]


@pytest.mark.parametrize(
    ("damage", "site", "found"),
    [
        (lost, "blocks.0.qact2", "the range was lost on reload"),
        (never_ran, "blocks.0.qact2", "the site never ran"),
        (without_integers, "blocks.1.mlp.fc1", "missing"),
        (stale, "blocks.1.mlp.fc1", "codes are stale"),
        (not_a_number, "head", "NaN"),
        (other_shape, "head", "[9, 48]"),
    ],
)
def test_doctor_names_the_site(damage, site, found, cli, tmp_path):
    tensors = checkpoint(published("vit")[1])
    damage(tensors)
    (finding,) = audit("x", tensors)
    assert finding.site == site
    assert found in finding.found
    if damage is not not_a_number:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, tmp_path / "c.safetensors")
        status, out, _ = cli("doctor", tmp_path / "c.safetensors", "--json")
        assert status == 1
        assert json.loads(out)[0]["site"] == site


def test_doctor_wants_an_ivit_checkpoint(cli, tmp_path):
    save_file({"head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "c.safetensors")
    status, _, err = cli("doctor", tmp_path / "c.safetensors")
    assert status == 2
    assert "must be an I-ViT checkpoint" in err
