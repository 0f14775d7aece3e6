"""The preset accurate from one end to the other: files, traces and golden vectors of what it adds."""

import json

import h5py
import numpy as np
import pytest

from intvit.engine import Engine, quantize_images, trace
from intvit.engine.trace import dequantize, read_tensor
from intvit.files import safe_key
from intvit.floats.model import FloatModel
from intvit.graph.store import load, save
from intvit.lowering.recipe import build_recipe
from intvit.vectors.check import check
from intvit.vectors.export import export


@pytest.fixture(scope="module")
def graph(vit, tmp_path_factory):
    """Lowered by the command's defaults, I-BERT, and read from its file."""
    from intvit.cli import main

    path = tmp_path_factory.mktemp("accurate") / "g.h5"
    arguments = ["lower", vit.onnx_path, "--recording", vit.recording_path, "--method", "ibert", "-o", path]
    assert main([str(a) for a in arguments]) == 0
    return load(path)


def test_it_is_the_default_of_the_command_and_not_of_python(graph):
    assert graph.metadata["recipe"]["preset"] == "accurate"
    assert build_recipe({}).preset == "published"


def test_golden_vectors_of_scales_per_channel_and_zero_points(graph, vit, tmp_path):
    sites = ["blocks.0.norm1*", "blocks.0.attn.qkv", "blocks.0.attn.softmax", "blocks.0.mlp.*"]
    export(graph, vit.test.read(0, 1), tmp_path / "v", sites=sites, hex_files=False)
    found = check(tmp_path / "v")
    assert found.n_cases >= 7
    assert not found.mismatches
    index = json.loads((tmp_path / "v" / "index.json").read_text())
    assert len(index["parts"]) == found.n_cases
    texts = [path.read_text() for path in sorted((tmp_path / "v").rglob("part.json"))]
    tensors = [item for text in texts for item in json.loads(text)["tensors"].items()]
    assert any(tensor.get("zero_point") for _, tensor in tensors)
    assert any(isinstance(tensor["scale"], list) and name.endswith(".quant") for name, tensor in tensors)


def test_a_trace_reads_back_with_zero_points_and_scales_per_channel(graph, vit, tmp_path):
    images = vit.test.read(0, 2)
    names = ["blocks.0.norm1.quant", "blocks.0.mlp.act.quant"]
    values = Engine(graph).evaluate(quantize_images(graph, images), names)
    with trace.writer(tmp_path / "t.h5", graph, names, 2) as sink:
        sink(0, values)
    (real,) = FloatModel(vit.onnx_path).run(images, ["blocks.0.norm1"]).values()
    for name in names:
        assert np.array_equal(read_tensor(tmp_path / "t.h5", name), values[name])
    tensor = graph.tensors[names[0]]
    near = np.abs(dequantize(values[names[0]], tensor) - real) <= 1.5 * tensor.scale
    assert near.mean() > 0.99
    with h5py.File(tmp_path / "t.h5") as file:
        assert file[f"tensors/{safe_key(names[1])}"].attrs["zero_point"] == graph.tensors[names[1]].zero_point != 0
        assert file[f"tensors/{safe_key(names[0])}"].attrs["scale"].shape == tensor.shape[-1:]


def test_a_mapping_of_it_lowers_with_it(cli, vit, tmp_path):
    """The mapping says the preset; one of `published` says so too, by leaving it out."""
    common = ["--recording", vit.recording_path]
    images = ["--images", "fashion-mnist:calibration", "--limit", "4"]
    for preset in ("accurate", "published"):
        options = [] if preset == "accurate" else ["--preset", preset]
        mapping, path = tmp_path / f"{preset}.json", tmp_path / f"{preset}.h5"
        assert cli("map", vit.onnx_path, *common, *images, *options, "-o", mapping)[0] == 0
        assert cli("lower", vit.onnx_path, *common, "--mapping", mapping, "-o", path)[0] == 0
        assert load(path).metadata["recipe"].get("preset", "published") == preset
    recipe = tmp_path / "r.toml"
    recipe.write_text("bits = 6\n")
    arguments = ["lower", vit.onnx_path, *common, "--recipe", recipe, "--mapping", tmp_path / "published.json"]
    assert cli(*arguments, "-o", tmp_path / "both.h5")[0] == 0
    found = load(tmp_path / "both.h5").metadata["recipe"]
    assert (found.get("preset", "published"), found["bits"]) == ("published", 6)
    mapped = json.loads((tmp_path / "published.json").read_text())["recipe"]["sites"]
    assert {site: choice["method"] for site, choice in found["sites"].items()} == {
        site: choice["method"] for site, choice in mapped.items()
    }
    arguments[arguments.index("--mapping") :] = ["-o", tmp_path / "alone.h5"]
    assert cli(*arguments)[0] == 0
    assert load(tmp_path / "alone.h5").metadata["recipe"]["preset"] == "accurate"


def test_the_file_holds_what_was_lowered(graph, tmp_path):
    save(graph, tmp_path / "again.h5")
    assert load(tmp_path / "again.h5").content_hash == graph.content_hash
