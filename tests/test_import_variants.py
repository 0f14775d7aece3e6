"""ViT variants by their tensors, against a forward pass in NumPy; heads from a config.json beside the weights."""

import json
import math

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file
from test_import_foreign import FOLDER, agree, expected, float_output

from intvit.errors import IntvitError
from intvit.floats.importers.foreign import import_foreign
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph, model_metadata
from intvit.floats.importers.timm import import_timm
from intvit.floats.model import FloatModel

WIDTH, HEADS = 128, 2


def tensors(cls_token, norm_pre, fc_norm, layer_scale, registers=0, register_name="reg_token", embedded=None):
    """`embedded`: tokens before the patches that have a position; by default all."""
    rng = np.random.default_rng(5)
    t = {"patch_embed.proj.weight": (WIDTH, 3, 4, 4), "patch_embed.proj.bias": (WIDTH,)}
    t |= {"cls_token": (1, 1, WIDTH)} if cls_token else {}
    t |= {register_name: (1, registers, WIDTH)} if registers else {}
    embedded = cls_token + registers if embedded is None else embedded
    t |= {"pos_embed": (1, 4 + embedded, WIDTH), "head.weight": (7, WIDTH), "head.bias": (7,)}
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


def forward(t, x, eps=1e-6, tanh=False, mean=None, sigmoid=None):
    """The same network in float64."""
    t = {name: value.astype(np.float64) for name, value in t.items()}

    def norm(name, v):
        if f"{name}.weight" not in t:
            return v
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(name, v):
        return v @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    cut = x.astype(np.float64).reshape(len(x), 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 4, 48)
    h = cut @ t["patch_embed.proj.weight"].reshape(WIDTH, 48).T + t["patch_embed.proj.bias"]
    before = [t[name] for name in ("cls_token", "reg_token", "register_tokens") if name in t]
    before = np.concatenate([np.zeros((1, 0, WIDTH)), *before], 1)
    prefix, embedded = before.shape[1], t["pos_embed"].shape[1] - 4
    before[:, :embedded] += t["pos_embed"][:, :embedded]
    h = np.concatenate([np.repeat(before, len(x), 0), h + t["pos_embed"][:, embedded:]], 1)
    h = norm("norm_pre", h)
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
    if sigmoid:
        u = u / (1 + np.exp(-sigmoid * u))
    elif tanh:
        u = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    else:
        u = 0.5 * u * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    h = norm("norm", h + linear("blocks.0.mlp.fc2", u) * t.get("blocks.0.ls2.gamma", 1))
    averaged = "cls_token" not in t or "fc_norm.weight" in t if mean is None else mean
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


def agrees(model, t, **how):
    float_graph(model)
    x = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    (y,) = FloatModel(model, threads=1).run(x).values()
    want = forward(t, x, **how)
    return np.abs(y - want).max() / np.ptp(want) < 1e-5


@pytest.mark.parametrize(
    ("cls_token", "registers", "register_name", "embedded"),
    [
        (1, 0, "", 0),  # DeiT III, FlexiViT
        (1, 4, "reg_token", 0),  # registers in timm, DINOv2 with registers among them
        (0, 4, "reg_token", 0),
        (0, 1, "reg_token", 1),  # so150m: registers have positions
        (1, 4, "reg_token", 5),
        (1, 4, "register_tokens", 1),  # DINOv2 as published: only the class token has one
    ],
)
def test_registers_and_positions_without_the_class_token(cls_token, registers, register_name, embedded, tmp_path):
    t = tensors(cls_token, False, False, False, registers, register_name, embedded)
    save_file(t, tmp_path / "w.safetensors")
    sized = {"img_size": 8} if embedded == 5 else {}
    assert agrees(import_timm(tmp_path / "w.safetensors", num_heads=HEADS, **sized), t)


def test_positions_that_may_count_the_class_token_or_not(tmp_path):
    t = tensors(1, False, False, False, 4, "reg_token", 5)  # 9 positions: 3 x 3, or 2 x 2 behind 5 tokens
    save_file(t, tmp_path / "w.safetensors")
    with pytest.raises(IntvitError, match="img_size: 9 positions may count the class token or not; give --img-size"):
        import_timm(tmp_path / "w.safetensors", num_heads=HEADS)
    (tmp_path / "config.json").write_text(timm_config({"no_embed_class": False}))
    assert agrees(import_timm(tmp_path / "w.safetensors"), t)
    (tmp_path / "config.json").write_text(timm_config({"no_embed_class": True}))
    assert FloatModel(import_timm(tmp_path / "w.safetensors"), threads=1).input_shape == (3, 12, 12)


def test_the_original_names_of_deit3(tmp_path):
    t = tensors(1, False, False, True, embedded=0)
    original = {name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v for name, v in t.items()}
    assert set(original) != set(t)
    save_file(original, tmp_path / "w.safetensors")
    assert agrees(import_timm(tmp_path / "w.safetensors", num_heads=HEADS), t)


def timm_config(arguments=None, architecture="vit_tiny_patch4_8", **more):
    arguments = {"num_heads": HEADS, "embed_dim": WIDTH, **(arguments or {})}
    return json.dumps({"architecture": architecture, "model_args": arguments, **more})


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (timm_config(), {}),
        (timm_config({"act_layer": "gelu_tanh"}), {"tanh": True}),
        (timm_config({"act_layer": "silu"}), {"sigmoid": 1.0}),
        (timm_config({"act_layer": "quick_gelu"}), {"sigmoid": 1.702}),
        (json.dumps({"num_heads": HEADS, "act_layer": "swish"}), {"sigmoid": 1.0}),
        (timm_config(architecture="vit_base_patch16_clip_224.laion2b"), {"eps": 1e-5}),
        (timm_config({"norm_layer": "LayerNorm"}, "vit_base_patch16_clip_224"), {"eps": 1e-6}),
        (timm_config({"global_pool": "avg", "fc_norm": False}), {"mean": True}),
        (timm_config(global_pool="avg"), {"mean": True}),
        (timm_config(global_pool="token"), {"mean": False}),
        (json.dumps({"num_heads": HEADS, "layer_norm_eps": 0.01}), {"eps": 0.01}),
        (json.dumps({"num_heads": HEADS, "act_layer": "gelu_tanh"}), {"tanh": True}),
    ],
)
def test_facts_of_the_config_are_used(config, how, tmp_path):
    t = tensors(1, True, False, True)
    for name in t:  # small rows, so that epsilon matters, and wide inputs of GELU
        small = name.startswith(("patch_embed", "cls_token", "pos_embed"))
        t[name] = t[name] * np.float32(0.05 if small else 5 if "fc1" in name else 1)
    save_file(t, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    model = import_model(tmp_path) if "architecture" in config else import_timm(tmp_path / "model.safetensors")
    assert agrees(model, t, **how)
    act = {"sigmoid": 1.3} if how.get("sigmoid") else {"tanh": not how.get("tanh", False)}
    others = [{**how, "eps": 1e-4}, {**how, **act}, {**how, "mean": not how.get("mean")}]
    assert not any(agrees(model, t, **other) for other in others)
    assert ("assumed" in model_metadata(model)) == ("architecture" not in config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (timm_config({"act_layer": "relu"}), "act_layer must be one of gelu, .*, silu, swish, not 'relu'"),
        (timm_config({"norm_layer": "rmsnorm"}), "norm_layer: must be layernorm of a ViT, not 'rmsnorm'"),
        (timm_config({"qk_norm": True}), "'qk_norm': must be left out or as published, not True"),
        (timm_config({"pool_include_prefix": True}), "pool_include_prefix"),
        (timm_config({"mlp_layer": "SwiGLU"}), "'mlp_layer': must be an argument that is known here, not 'SwiGLU'"),
        (timm_config({"depth": 2}), "depth: must be 1, as the weights say, not 2"),
        (timm_config({"qkv_bias": True}), "qkv_bias: must be False, as the weights say, not True"),
        (timm_config({"class_token": False}), "class_token: must be True"),
        (timm_config({"mlp_ratio": 4.0}), "mlp_ratio: must give the 64 channels of the weights, not 4.0"),
        (timm_config({"no_embed_class": True}), "of 5 positions 5 are of patches, no square"),
        (timm_config(num_classes=0), "num_classes: must be 7, as the weights say, not 0"),
        (timm_config(global_pool="max"), "global_pool: must be the class token or the mean, not 'max'"),
        (timm_config(architecture="vit_base_patch16_rpn_224"), "has LayerNorm behind attention and MLP"),
        (timm_config(architecture="vit_small_patch16_rope_224"), "has rotary positions"),
        (timm_config(architecture="vit_small_patch16_new_224"), "architecture: must be .* in all its parts, not 'new'"),
        (timm_config(architecture="resnet50"), "not 'resnet50'"),
        (json.dumps({"num_heads": HEADS, "hidden_act": "relu"}), "hidden_act must be one of gelu"),
        (json.dumps({"num_heads": HEADS, "act_layer": "mish"}), "act_layer must be one of gelu"),
    ],
)
def test_facts_that_cannot_be_built_are_refused(config, message, tmp_path):
    save_file(tensors(1, False, False, False), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(IntvitError, match=rf"config\.json: .*{message}|{message}"):
        import_timm(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("attn_pool.q.weight", "attention pooling"),
        ("blocks_token_only.0.norm1.weight", "class attention"),
        ("blocks.0.attn.proj_l.weight", "talking heads"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.0.mlp.w12.weight", "gated unit"),
        ("blocks.0.mlp.norm.weight", "norms inside attention or MLP"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
        ("blocks.0.attns.0.qkv.weight", "side by side"),
        ("vit.encoder.layer.0.output.dense.weight", "Hugging Face's naming; import the folder"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_cause_and_nothing_is_asked_for(name, cause, tmp_path):
    """Neither heads nor an image size would help."""
    save_file({**tensors(1, False, False, False), name: np.zeros((4, 4), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(IntvitError, match=rf"{name}: .*{cause}"):
        import_timm(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"blocks.0.norm1.bias": None}, r"norm1\.bias: tensor is missing; .*: a norm without bias may be an RMSNorm"),
        ({"blocks.0.mlp.fc2.weight": (WIDTH, 32)}, "blocks.0.mlp.fc1: a gated unit .SwiGLU. cannot be built"),
        ({"pos_embed": None}, "pos_embed: tensor is missing; a ViT without learned positions cannot be built"),
        ({"head.weight": (7, 100)}, "head.weight: must read 128 channels .or 256 of class token and mean., not 100"),
        ({"pos_embed": (1, 9, WIDTH)}, "9 positions 8 or 9|img_size"),
        ({"blocks.0.attn.qkv.weight": (0, WIDTH)}, r"shape must be \[384, 128\], not \[0, 128\]"),
    ],
)
def test_tensors_of_other_networks(change, cause, tmp_path):
    t = tensors(1, False, False, False)
    for name, shape in change.items():
        t.pop(name)
        t |= {} if shape is None else {name: np.zeros(shape, np.float32)}
    save_file(t, tmp_path / "w.safetensors")
    with pytest.raises(IntvitError, match=cause):
        import_timm(tmp_path / "w.safetensors", num_heads=HEADS, img_size=8)


def test_a_folder_of_timms_hub(tmp_path, cli):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(timm_config(num_classes=7, pretrained_cfg={"mean": [0.5], "std": [0.25]}))
    assert cli("import", folder, "-o", tmp_path / "m.onnx")[0] == 2
    t = tensors(1, False, False, False, embedded=0)
    save_file(t, folder / "model.safetensors")
    status, _, err = cli("import", folder, "-o", tmp_path / "m.onnx")
    assert (status, "assumed" in err) == (0, False)
    assert agrees(onnx.load(tmp_path / "m.onnx"), t)
    (folder / "model.safetensors").unlink()
    torch = pytest.importorskip("torch")
    torch.save({name: torch.nn.Parameter(torch.from_numpy(v)) for name, v in t.items()}, folder / "pytorch_model.bin")
    assert agrees(import_model(folder), t)


def test_what_nothing_tells_is_said_and_stored(tmp_path, cli):
    save_file(tensors(1, False, False, False), tmp_path / "w.safetensors")
    said = [
        "assumed: GELU in its exact form (erf); the weights do not tell",
        "assumed: the classifier reads the class token; the weights do not tell",
        "assumed: LayerNorm epsilon 1e-06; the weights do not tell (--layer-norm-eps)",
    ]
    status, _, err = cli("import", tmp_path / "w.safetensors", "-o", tmp_path / "m.onnx", "--num-heads", HEADS)
    assert (status, err.splitlines()[:-1]) == (0, said)
    assert model_metadata(onnx.load(tmp_path / "m.onnx"))["assumed"] == said
    told = import_timm(tmp_path / "w.safetensors", num_heads=HEADS, layer_norm_eps=1e-5)
    assert model_metadata(told)["assumed"] == said[:2]


def test_heads_of_another_width_than_the_name_has_are_said(tmp_path):
    save_file(tensors(1, False, False, False), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch4_8"}))
    assert model_metadata(import_timm(tmp_path / "w.safetensors"))["assumed"] == [
        "assumed: heads of width 64; the architecture's width is 192, not 128 (--num-heads)"
    ]


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
    for opset in range(24, max(24, onnx.defs.onnx_opset_version()) + 1):
        model.opset_import[0].version = opset
        onnx.save(model, tmp_path / "m.onnx")
        x, y = expected("timm_sdpa_new24.onnx")
        try:
            found.append(agree(float_output(import_foreign(tmp_path / "m.onnx"), x), y))
        except IntvitError as error:
            assert "onnxruntime must be able to load the graph" in str(error)  # noqa: PT017
    assert found[0]
    assert all(found)
