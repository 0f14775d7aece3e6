"""timm weights -> ONNX -> float Graph: agreement with independent float networks, sizes that the weights imply."""

import json

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from intvit.analysis.demo import WEIGHTS, embedded
from intvit.errors import IntvitError
from intvit.floats.importers.architectures import facts
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import build_swin, build_vit, import_timm, shift_mask
from intvit.floats.model import FloatModel


def erf(x):
    from math import erf as scalar

    return np.vectorize(scalar)(x)


def numpy_vit(w, x, heads, patch, eps=1e-6):
    """A second text of the float network, in double: the paper's formulas, nothing of the importer's."""
    w = {k: v.astype(np.float64) for k, v in w.items()}
    dim = w["cls_token"].shape[-1]

    def norm(v, name):
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt(v.var(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(v, name):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    b, c, h, _ = x.shape
    n = h // patch
    cut = x.reshape(b, c, n, patch, n, patch).transpose(0, 2, 4, 1, 3, 5).reshape(b, n * n, -1)
    tokens = cut @ w["patch_embed.proj.weight"].reshape(dim, -1).T + w["patch_embed.proj.bias"]
    z = np.concatenate([np.broadcast_to(w["cls_token"], (b, 1, dim)), tokens], 1) + w["pos_embed"]
    depth = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
    for i in range(depth):
        p = f"blocks.{i}"
        qkv = linear(norm(z, f"{p}.norm1"), f"{p}.attn.qkv").reshape(b, -1, 3, heads, dim // heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(dim // heads)
        e = np.exp(s - s.max(-1, keepdims=True))
        mixed = (e / e.sum(-1, keepdims=True)) @ v
        z = z + linear(mixed.transpose(0, 2, 1, 3).reshape(b, -1, dim), f"{p}.attn.proj")
        hidden = linear(norm(z, f"{p}.norm2"), f"{p}.mlp.fc1")
        z = z + linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), f"{p}.mlp.fc2")
    return linear(norm(z, "norm")[:, 0], "head")


def relative_error(a, b):
    return np.abs(a - b).max() / (b.max() - b.min())


def random_vit(rng, *, dim, depth, patch, side, channels, hidden, classes):
    w = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, (side // patch) ** 2 + 1, dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "patch_embed.proj.weight": (dim, channels, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    linears = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    for i in range(depth):
        block = {f"{name}.{part}": (dim,) for name in ("norm1", "norm2") for part in ("weight", "bias")}
        for name, shape in linears.items():
            block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name, shape in block.items():
            w[f"blocks.{i}.{name}"] = shape
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in w.items()}


def test_embedded_vit_agrees_with_numpy(vit):
    images = vit.test.read(0, 8)
    (logits,) = FloatModel(vit.onnx_path, threads=1).run(images).values()
    assert relative_error(logits, numpy_vit(load_file(embedded(WEIGHTS)), images, 3, 4)) < 1e-4


@pytest.mark.parametrize(
    ("heads", "shape"),
    [
        (2, {"dim": 16, "depth": 1, "patch": 8, "side": 32, "channels": 3, "hidden": 40, "classes": 7}),
        (3, {"dim": 24, "depth": 3, "patch": 2, "side": 10, "channels": 1, "hidden": 24, "classes": 2}),
    ],
)
def test_any_size_agrees_with_numpy(heads, shape):
    rng = np.random.default_rng(1)
    w = random_vit(rng, **shape)
    model = build_vit(w, {"num_heads": heads})
    x = rng.normal(size=(3, shape["channels"], shape["side"], shape["side"])).astype(np.float32)
    (logits,) = FloatModel(model, threads=1).run(x).values()
    assert relative_error(logits, numpy_vit(w, x.astype(np.float64), heads, shape["patch"])) < 1e-4
    assert float_graph(model).tensors["head"].shape == (shape["classes"],)


def test_layer_scale_is_folded():
    rng = np.random.default_rng(2)
    w = random_vit(rng, dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    gain = rng.normal(size=16).astype(np.float32)
    scaled = {**w, "blocks.0.ls1.gamma": gain}
    folded = dict(w)
    folded["blocks.0.attn.proj.weight"] = w["blocks.0.attn.proj.weight"] * gain[:, None]
    folded["blocks.0.attn.proj.bias"] = w["blocks.0.attn.proj.bias"] * gain
    x = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
    (a,) = FloatModel(build_vit(scaled, {"num_heads": 2}), threads=1).run(x).values()
    (b,) = FloatModel(build_vit(folded, {"num_heads": 2}), threads=1).run(x).values()
    assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_agrees_with_the_torch_networks_of_the_training_tool(kind):
    torch = pytest.importorskip("torch")
    import train_fashion

    torch.manual_seed(3)
    net, metadata = train_fashion.BUILDERS[kind](torch)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    model = (build_vit if kind == "vit" else build_swin)(weights, metadata)
    x = np.random.default_rng(4).normal(size=(3, 1, 28, 28)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    (logits,) = FloatModel(model, threads=1).run(x).values()
    assert relative_error(logits, expected) < 1e-4


def test_npz_and_safetensors_give_the_same_model(tmp_path):
    w = random_vit(np.random.default_rng(5), dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    np.savez(tmp_path / "w.npz", **w)
    save_file(w, tmp_path / "w.safetensors", metadata={"intvit": json.dumps({"num_heads": 2})})
    a, b = import_timm(tmp_path / "w.npz", num_heads=2), import_timm(tmp_path / "w.safetensors")
    assert a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--num-heads"),
        ({"num_heads": 5}, "must divide the width 16, not 5"),
        ({"num_heads": 2, "img_size": 12}, r"must give the 4 patches of pos_embed, not \[12, 12\]"),
    ],
)
def test_options_that_do_not_fit(options, message):
    w = random_vit(np.random.default_rng(5), dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    with pytest.raises(IntvitError, match=message):
        build_vit(w, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads: must be greater than or equal to 1, not 0"),
        ({"num_heads": -2}, "num_heads: .*not -2"),
        ({"num_heads": [2, 2]}, r"num_heads: must be 1 positive integers, not \[2, 2\]"),
        ({"num_heads": 2, "img_size": [8, 8, 8]}, r"img_size: must be one or two positive integers, not \[8, 8, 8\]"),
        ({"num_heads": 2, "img_size": 0}, "img_size: .*not 0"),
        ({"num_heads": 2, "img_size": 10}, r"img_size: must be a multiple of the patch \[4, 4\], not \[10, 10\]"),
        ({"num_heads": 2, "img_size": 2**20}, "img_size: must give at most 262144 patches"),
        ({"num_heads": 2, "layer_norm_eps": float("nan")}, "layer_norm_eps: .*not nan"),
        ({"num_heads": 2, "layer_norm_eps": -1e-6}, "layer_norm_eps: .*not -1e-06"),
        ({"num_heads": 2, "layer_norm_eps": 0.0}, "layer_norm_eps: .*not 0.0"),
        ({"num_heads": 2, "mean": [float("nan")]}, r"mean: .*not \[nan\]"),
        ({"num_heads": 2, "mean": [0.5, 0.5]}, "mean: must be one number or 1, not 2"),
        ({"num_heads": 2, "std": [0.0]}, "std: must be positive"),
    ],
)
def test_options_out_of_range(options, message, tmp_path):
    w = random_vit(np.random.default_rng(5), dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    save_file(w, tmp_path / "w.safetensors")
    with pytest.raises(IntvitError, match=message):
        import_timm(tmp_path / "w.safetensors", **options)


@pytest.mark.parametrize(
    ("name", "width", "heads", "act", "eps"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 192, 3, "gelu", 1e-6),
        ("vit_huge_patch14_224", 1280, 16, "gelu", 1e-6),
        ("vit_giant_patch14_clip_224", 1408, 16, "gelu", 1e-5),
        ("vit_base_patch16_gap_224", 768, 16, "gelu", 1e-6),
        ("vit_base_patch16_siglip_gap_224", 768, 12, "gelu", 1e-6),
        ("vit_base_patch32_siglip_gap_256", 768, 12, "gelu_tanh", 1e-6),
        ("vit_so400m_patch14_siglip_gap_384", 1152, 16, "gelu", 1e-6),
        ("vit_so400m_patch16_siglip_gap_384", 1152, 16, "gelu_tanh", 1e-6),
        ("vit_large_patch16_siglip_gap_384", 1024, 16, "gelu", 1e-6),
        ("vit_large_patch16_siglip_gap_512", 1024, 16, "gelu_tanh", 1e-6),
        ("vit_so150m2_patch16_reg1_gap_256", 832, 13, "gelu", 1e-6),
        ("vit_base_patch16_plus_clip_240", 896, 14, "gelu", 1e-5),
        ("vit_base_patch32_224_clip_laion2b", 768, 12, "gelu", 1e-5),
        ("timm/deit3_small_patch16_224.fb_in1k", 384, 6, "gelu", 1e-6),
        ("deit_base_distilled_patch16_384", 768, 12, "gelu", 1e-6),
        ("vit_base_patch32_clip_quickgelu_224", 768, 12, "quick_gelu", 1e-5),
        ("flexivit_large", 1024, 16, "gelu", 1e-6),
        ("eva_large_patch14_196", 1024, 16, "gelu", 1e-6),
        ("swin_base_patch4_window12_384", 128, 4, "gelu", 1e-5),
        ("swin_s3_base_224", 96, 3, "gelu", 1e-5),
    ],
)
def test_what_names_of_timm_imply(name, width, heads, act, eps):
    """As timm 1.0.31 builds them; all 180 names that can be built were compared."""
    found = facts(name)
    assert (found.width, found.heads, found.act, found.layer_norm_eps) == (width, heads, act, eps)


def test_oblong_images():
    w = random_vit(np.random.default_rng(6), dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    w["pos_embed"] = np.zeros((1, 9, 16), np.float32)
    graph = float_graph(build_vit(w, {"num_heads": 2, "img_size": [8, 16]}))
    assert graph.tensors["input"].shape == (1, 8, 16)


def test_shift_mask_separates_what_the_roll_brought_together():
    mask = shift_mask((4, 4), 2, 1)
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    assert (mask[3] == np.where(np.eye(4), 0, -100)).all()


def test_unknown_onnx_operator_is_named(vit):
    model = onnx.load(str(vit.onnx_path))
    next(n for n in model.graph.node if n.op_type == "Gelu").op_type = "Tanh"
    with pytest.raises(IntvitError, match=r"blocks\.0\.mlp\.act: ONNX operator Tanh has no integer form"):
        float_graph(model)


def test_bfloat16_and_float16_weights_are_read(tmp_path):
    from ml_dtypes import bfloat16

    w = random_vit(np.random.default_rng(5), dim=16, depth=1, patch=4, side=8, channels=1, hidden=32, classes=3)
    half = {k: v.astype(bfloat16 if "blocks" in k else np.float16) for k, v in w.items()}
    save_file(half, tmp_path / "w.safetensors")
    expected = build_vit({k: v.astype(np.float32) for k, v in half.items()}, {"num_heads": 2})
    found = import_timm(tmp_path / "w.safetensors", num_heads=2)
    assert found.graph.SerializeToString(deterministic=True) == expected.graph.SerializeToString(deterministic=True)


def test_unknown_import_option():
    with pytest.raises(IntvitError, match="window"):
        import_timm(embedded(WEIGHTS), window=7)
