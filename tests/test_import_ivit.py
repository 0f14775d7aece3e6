"""I-ViT checkpoints: the published networks of golden/conformance as their training code would save them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.importers.ivit import audit
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.graph.store import load
from intvit.lowering.calibrate import trained
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

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


def published_tree(meta, arrays, bits=8):
    """All that the state dict of the published modules has: derived buffers, and quantizers that are never called.

    At other widths than 8 the network is what the published code makes of these weights and ranges: operands and
    activations of `bits`, the 16-bit ones as they are. Scales and integers are float32, made in float32.
    """
    tensors = {k: v for k, v in checkpoint(arrays).items() if not k.endswith(("_factor", "_integer"))}
    tensors = {k: v.reshape(1, *v.shape) if k in ("cls_token", "pos_embed") and v.ndim == 2 else v
               for k, v in tensors.items()}  # fmt: skip
    f32 = np.float32
    widths = {entry["name"]: entry.get("bits") for entry in meta["order"]}
    scale = {}
    for name, width in widths.items():
        if f"range/{name}" in arrays:
            top = max(-arrays[f"range/{name}"][0], arrays[f"range/{name}"][1])
            scale[name] = np.array([top / (2 ** ((width if width == 16 else bits) - 1) - 1)], f32)
    for entry in meta["order"]:
        name, kind = entry["name"], entry["type"].split(".")[1]
        if kind == "QuantAct":
            tensors[f"{name}.act_scaling_factor"] = scale[name]
        elif kind == "IntSoftmax":
            tensors[f"{name}.act_scaling_factor"] = np.array([2.0 ** (1 - entry["bits"])], f32)
        elif kind == "IntGELU":
            tensors[f"{name}.act_scaling_factor"] = scale[name.replace(".act", ".qact_gelu")] / f32(128)
        elif kind == "QuantMatMul":
            tensors[f"{name}.act_scaling_factor"] = np.array([1e-4], f32)
        elif kind == "IntLayerNorm":
            gamma, beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            unit = np.sqrt(f32(len(gamma))) / f32(2**30)
            tensors[f"{name}.norm_scaling_factor"] = unit * gamma
            tensors[f"{name}.bias_integer"] = np.floor(beta / gamma / unit)
        else:
            weight = tensors[f"{name}.weight"]
            rows = weight.reshape(len(weight), -1)
            each = np.abs(rows).max(axis=1) / f32(2 ** (bits - 1) - 1)
            tensors[f"{name}.{'conv' if 'Conv' in kind else 'fc'}_scaling_factor"] = each
            codes = np.rint(f32(1) / each[:, None] * rows)
            tensors[f"{name}.weight_integer"] = codes.reshape(weight.shape)
            if f"{name}.bias" in tensors:
                before = each * scale[before_linear(meta["kind"], name)]
                tensors[f"{name}.bias_integer"] = np.rint(f32(1) / before * tensors[f"{name}.bias"])
    for name in ["act_out", *(n.replace("matmul_1", "qact_softmax") for n in widths if n.endswith("matmul_1"))]:
        if meta["kind"] == "vit" or name == "act_out":
            tensors[f"{name}.act_scaling_factor"] = np.zeros(1, f32)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    return tensors


def before_linear(kind, name):
    """The quantizer of a linear operator's input."""
    ends = {"patch_embed.proj": "qact_input", "attn.qkv": "qact1", "mlp.fc1": "qact3", "mlp.fc2": "mlp.qact1",
            "attn.proj": "attn.qact2" if kind == "vit" else "attn.qact3", "downsample.reduction": "downsample.qact1",
            "head": "qact2" if kind == "vit" else "qact3"}  # fmt: skip
    (end,) = (end for end in ends if name.endswith(end))
    return name.removesuffix(end) + ends[end]


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


# the whole tree of the published modules, at the widths that it was trained at


@pytest.fixture(params=[("vit", 8), ("swin", 8), ("vit", 6), ("swin", 6), ("vit", 4)], ids=lambda p: f"{p[0]}{p[1]}")
def tree(request, tmp_path):
    """(file, options, meta, arrays, tensors, bits)"""
    kind, bits = request.param
    meta, arrays = published(kind)
    tensors = published_tree(meta, arrays, bits)
    path = tmp_path / "tree.safetensors"
    save_file(tensors, path)
    return path, {key: meta["config"][key] for key in ("num_heads", "img_size")}, meta, arrays, tensors, bits


def test_an_intact_checkpoint_has_no_findings(tree, cli):
    path, *_, tensors, bits = tree
    assert audit(path, tensors) == []
    status, out, _ = cli("doctor", path)
    assert status == 0
    assert "nothing found" in out
    status, _, err = cli("doctor", path, "--bits", 7)
    assert status == 2
    assert f"bits must be the {bits} of weight_integer, not 7" in err


def test_widths_and_integers_are_those_of_the_checkpoint(tree):
    path, options, meta, arrays, tensors, bits = tree
    graph = float_graph(import_timm(path, **options))
    integer = lower(graph, trained(graph), build_recipe({}))
    recipe = integer.metadata["recipe"]
    softmax_bits = 16 if meta["kind"] == "vit" else 8
    assert (recipe["bits"], recipe["residual_bits"], recipe["softmax_bits"]) == (bits, 16, softmax_bits)
    for node in integer.nodes:
        if node.op == "linear":
            assert np.array_equal(node.arrays["weight"].ravel(), tensors[f"{node.name}.weight_integer"].ravel())
            assert integer.tensors[node.output].dtype.bits >= 32
        if node.op in ("linear", "layernorm") and "bias" in node.arrays:
            assert np.array_equal(node.arrays["bias"], tensors[f"{node.name}.bias_integer"]), node.name
    widths = {entry["name"]: entry.get("bits") for entry in meta["order"]}
    scales = {(t.dtype.bits, float(t.scale)) for t in integer.tensors.values() if t.scale.ndim == 0}
    for name, width in widths.items():
        if f"range/{name}" in arrays and not name.endswith(("qact_pos", "qact_table")):
            width = width if width == 16 else bits
            assert (width, float(tensors[f"{name}.act_scaling_factor"][0])) in scales, name


def test_the_same_bits_as_lowering_at_that_width_from_the_ranges(tree):
    """Without the scales of weights, which float32 has rounded, every constant is the published network's."""
    from conformance_models import integer_graph

    path, options, meta, arrays, tensors, bits = tree
    save_file({k: v for k, v in tensors.items() if not k.endswith(("fc_scaling_factor", "conv_scaling_factor",
                                                                   "bias_integer"))}, path)  # fmt: skip
    graph = float_graph(import_timm(path, **options))
    found = lower(graph, trained(graph), build_recipe({}))
    _, expected = integer_graph(meta, arrays, bits=bits)
    for node, same in zip(found.nodes, expected.nodes, strict=True):
        assert (node.name, node.attrs) == (same.name, same.attrs)
        for key, array in node.arrays.items():
            off = array.astype(np.int64) - same.arrays[key].astype(np.int64)
            if key == "weight":  # a tie of the published float32 division
                assert np.abs(off).max() <= 1
                assert np.count_nonzero(off) <= off.size / 1000
            elif key == "residual_m":  # the scale of a constant: float32 in a checkpoint, double in a range
                assert np.abs(off).max() <= 2**7
            else:
                assert not off.any(), (node.name, key)


def test_weight_integer_is_taken_not_rounded_again(saved):
    """Codes at a tie of the published float32 division: one step off ours, and the checkpoint's all the same."""
    path, options, _, arrays = saved
    tensors = checkpoint(arrays)
    site = "patch_embed.proj"
    codes = tensors[f"{site}.weight_integer"]
    codes.reshape(-1)[5] += 1 if codes.reshape(-1)[5] < 0 else -1
    save_file(tensors, path)
    graph = float_graph(import_timm(path, **options))
    integer = lower(graph, trained(graph), build_recipe({}))
    assert np.array_equal(integer.node(site).arrays["weight"].ravel(), codes.ravel())


def test_a_gelu_of_6_bits_is_lowered_so(tmp_path):
    meta, arrays = published("vit")
    tensors = published_tree(meta, arrays, 6)
    for i in range(2):
        tensors[f"blocks.{i}.mlp.act.act_scaling_factor"] *= 4
    save_file(tensors, tmp_path / "c.safetensors")
    graph = float_graph(import_timm(tmp_path / "c.safetensors", num_heads=3))
    integer = lower(graph, trained(graph), build_recipe({}))
    node = integer.node("blocks.0.mlp.act")
    assert node.attrs["params"]["out_bits"] == 6
    assert integer.tensors[node.output].scale == tensors["blocks.0.mlp.act.act_scaling_factor"][0]
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    fast, slow = (Engine(integer, backend).run(x) for backend in ("kernel", "spec"))
    assert all(np.array_equal(fast[key], slow[key]) for key in fast)


def test_integers_may_be_stored_as_integers(saved):
    path, options, _, arrays = saved
    tensors = checkpoint(arrays)
    plain = import_timm(path, **options).SerializeToString()
    save_file({k: v.astype(np.int8) if k.endswith("_integer") else v for k, v in tensors.items()}, path)
    assert import_timm(path, **options).SerializeToString() == plain


@pytest.mark.parametrize("option", [["--bits", "8"], ["--recipe", "r.toml"], ["--mapping", "m.json"]])
def test_other_widths_than_the_checkpoints_are_refused(option, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta, arrays = published("vit")
    save_file(published_tree(meta, arrays, 6), "c.safetensors")
    assert cli("import", "c.safetensors", "--num-heads", 3, "-o", "m.onnx")[0] == 0
    Path("r.toml").write_text("bits = 7\n")
    Path("m.json").write_text(json.dumps({"recipe": {"bits": 5}}))
    status, _, err = cli("lower", "m.onnx", *option, "-o", "g.h5")
    assert status == 2
    assert "bits: must be the 6 that the weights were trained at, not" in err
    assert not Path("g.h5").exists()
    assert cli("lower", "m.onnx", "--bits", 6, "-o", "a.h5")[0] == 0
    assert cli("lower", "m.onnx", "-o", "b.h5")[0] == 0
    assert load("a.h5").content_hash == load("b.h5").content_hash


def mixed_widths(tensors):
    published_tree_8 = published_tree(*published("swin"), 8)
    for key in ("weight_integer", "fc_scaling_factor"):
        tensors[f"head.{key}"] = published_tree_8[f"head.{key}"]


def beyond(tensors):
    tensors["head.weight_integer"][0, 0] = 77


def activations_of_8_bits(tensors):
    tensors["layers.0.blocks.0.attn.qact_table.act_scaling_factor"] /= np.float32(127 / 31)


def gelu_of_two_widths(tensors):
    tensors["layers.0.blocks.1.mlp.act.act_scaling_factor"] *= 4


def gelu_of_9_bits(tensors):
    tensors["layers.0.blocks.0.mlp.act.act_scaling_factor"] /= 2


def softmax_of_two_widths(tensors):
    tensors["layers.0.blocks.1.attn.log_int_softmax.act_scaling_factor"] /= 256


def stale_scale(tensors):
    tensors["head.fc_scaling_factor"][2] *= 1.01


def no_integers(tensors):
    for name in [name for name in tensors if name.endswith("weight_integer")]:
        del tensors[name]


def fractions(tensors):
    tensors["head.weight_integer"][0, 0] += 0.25


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (mixed_widths, "head: weight_integer must have 6 bits as in most layers, not 8 bits"),
        (beyond, "head: weight_integer must have 6 bits as in most layers, not 8 bits"),
        (activations_of_8_bits, r"qact_table: act_scaling_factor must be that of 6 bits, not of 8"),
        (gelu_of_two_widths, r"mlp\.act: act_scaling_factor must be that of 8 bits, not of 6"),
        (gelu_of_9_bits, r"mlp\.act: act_scaling_factor must be that of 8 bits, not of 9"),
        (softmax_of_two_widths, r"log_int_softmax: act_scaling_factor must be that of 8 bits, not of 16"),
        (stale_scale, "head: fc_scaling_factor must be the largest weight / 31"),
        (no_integers, "weight_integer must tell the width"),
        (fractions, "head: weight_integer must be the rounded weight"),
    ],
)
def test_contradictions_are_refused_by_import_and_found_by_doctor(damage, message, tmp_path):
    meta, arrays = published("swin")
    tensors = published_tree(meta, arrays, 6)
    damage(tensors)
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(IntvitError, match=message):
        import_timm(tmp_path / "c.safetensors", **{key: meta["config"][key] for key in ("num_heads", "img_size")})
    assert audit("c", tensors)


def test_a_stale_bias_is_refused_by_lower(tmp_path):
    meta, arrays = published("vit")
    tensors = published_tree(meta, arrays, 6)
    tensors["head.bias_integer"][3] += 9
    save_file(tensors, tmp_path / "c.safetensors")
    graph = float_graph(import_timm(tmp_path / "c.safetensors", num_heads=3))
    with pytest.raises(IntvitError, match="head: bias_integer must be the bias at the scale of its accumulator"):
        lower(graph, trained(graph), build_recipe({}))


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
