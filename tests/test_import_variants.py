"""ViT variants by their tensors, against a forward pass in NumPy; heads from a config.json beside the weights."""

import json
import math

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file
from test_import_foreign import FOLDER, agree, expected, float_output

from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.importers.foreign import import_foreign
from intvit.importers.onnx import float_graph, model_metadata
from intvit.importers.timm import import_timm

WIDTH, HEADS = 128, 2


def tensors(cls_token, norm_pre, fc_norm, layer_scale):
    rng = np.random.default_rng(5)
    t = {"patch_embed.proj.weight": (WIDTH, 3, 4, 4), "patch_embed.proj.bias": (WIDTH,)}
    t |= {"cls_token": (1, 1, WIDTH)} if cls_token else {}
    t |= {"pos_embed": (1, 4 + cls_token, WIDTH), "head.weight": (7, WIDTH), "head.bias": (7,)}
    b = "blocks.0."
    t |= {
        f"{b}attn.qkv.weight": (3 * WIDTH, WIDTH),
        f"{b}attn.proj.weight": (WIDTH, WIDTH),
        f"{b}attn.proj.bias": (WIDTH,),
    }
    t |= {f"{b}mlp.fc1.weight": (64, WIDTH), f"{b}mlp.fc1.bias": (64,), f"{b}mlp.fc2.weight": (WIDTH, 64)}
    t |= {f"{b}ls1.gamma": (WIDTH,), f"{b}ls2.gamma": (WIDTH,)} if layer_scale else {}
    norms = [f"{b}norm1", f"{b}norm2", "fc_norm" if fc_norm else "norm", *(["norm_pre"] if norm_pre else [])]
    for name in norms:
        t |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in t.items()}


def forward(t, x):
    """The same network in float64."""
    t = {name: value.astype(np.float64) for name, value in t.items()}

    def norm(name, v):
        if f"{name}.weight" not in t:
            return v
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(name, v):
        return v @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    cut = x.astype(np.float64).reshape(len(x), 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 4, 48)
    h = cut @ t["patch_embed.proj.weight"].reshape(WIDTH, 48).T + t["patch_embed.proj.bias"]
    prefix = int("cls_token" in t)
    if prefix:
        h = np.concatenate([np.repeat(t["cls_token"], len(x), 0), h], 1)
    h = norm("norm_pre", h + t["pos_embed"])
    q, k, v = (
        linear("blocks.0.attn.qkv", norm("blocks.0.norm1", h))
        .reshape(len(x), -1, 3, HEADS, 64)
        .transpose(2, 0, 3, 1, 4)
    )
    s = q @ k.swapaxes(-1, -2) / 8
    p = np.exp(s - s.max(-1, keepdims=True))
    y = (p / p.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(h.shape)
    h = h + linear("blocks.0.attn.proj", y) * t.get("blocks.0.ls1.gamma", 1)
    u = linear("blocks.0.mlp.fc1", norm("blocks.0.norm2", h))
    u = 0.5 * u * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    h = norm("norm", h + linear("blocks.0.mlp.fc2", u) * t.get("blocks.0.ls2.gamma", 1))
    averaged = not prefix or "fc_norm.weight" in t
    return linear("head", norm("fc_norm", h[:, prefix:].mean(1) if averaged else h[:, 0]))


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("norm_pre", [False, True])
@pytest.mark.parametrize("cls_token", [0, 1])
def test_agrees_with_numpy(cls_token, norm_pre, fc_norm, layer_scale, tmp_path):
    t = tensors(cls_token, norm_pre, fc_norm, layer_scale)
    save_file(t, tmp_path / "w.safetensors")
    x = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    model = import_timm(tmp_path / "w.safetensors", num_heads=HEADS)
    float_graph(model)
    (y,) = FloatModel(model, threads=1).run(x).values()
    want = forward(t, x)
    assert np.abs(y - want).max() / np.ptp(want) < 1e-5


def test_heads_come_from_the_config_beside_the_weights_or_are_asked_for(tmp_path):
    save_file(tensors(1, False, False, False), tmp_path / "w.safetensors")
    with pytest.raises(IntvitError, match="num_heads: cannot be read off the weights; give it with --num-heads"):
        import_timm(tmp_path / "w.safetensors")
    config = {"architecture": "vit_tiny_patch4_8", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    metadata = model_metadata(import_timm(tmp_path / "w.safetensors"))
    assert (metadata["num_heads"], metadata["mean"], metadata["std"]) == (2, [0.5] * 3, [0.25] * 3)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4}))
    assert model_metadata(import_timm(tmp_path / "w.safetensors"))["num_heads"] == 4
    assert model_metadata(import_timm(tmp_path / "w.safetensors", num_heads=8))["num_heads"] == 8
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(IntvitError, match=r"config\.json: must be a readable JSON object"):
        import_timm(tmp_path / "w.safetensors")


def test_the_newest_opset_that_onnxruntime_loads(tmp_path):
    """Nothing in these graphs changed its meaning since opset 24."""
    model = onnx.load(FOLDER / "timm_sdpa_new24.onnx")
    found = []
    for opset in range(24, onnx.defs.onnx_opset_version() + 1):
        model.opset_import[0].version = opset
        onnx.save(model, tmp_path / "m.onnx")
        x, y = expected("timm_sdpa_new24.onnx")
        try:
            found.append(agree(float_output(import_foreign(tmp_path / "m.onnx"), x), y))
        except IntvitError as error:
            assert "onnxruntime must be able to load the graph" in str(error)  # noqa: PT017
    assert found[0]
    assert all(found)
