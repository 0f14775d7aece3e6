"""Hugging Face folders: agreement with transformers where it is installed; names, shards and preprocessing always."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intvit.errors import IntvitError
from intvit.floats.importers.huggingface import HARMLESS, REFUSED, Config, import_huggingface, translate
from intvit.floats.importers.onnx import float_graph, model_metadata
from intvit.floats.model import FloatModel

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "foreign"
KINDS = ["vit", "deit", "deit_distilled", "swin", "dinov2"]
"""Folders that transformers saved and ran (tools/make_foreign.py)."""


def logits(model, x):
    (y,) = FloatModel(model, threads=1).run(x).values()
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_transformers(kind):
    arrays = np.load(FOLDER / f"{kind}.npz")
    y = logits(import_huggingface(FOLDER / kind), arrays["x"])
    assert np.abs(y - arrays["y"]).max() / np.ptp(arrays["y"]) < 1e-4


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("side", [16, 24])
@pytest.mark.parametrize("with_head", [True, False])
def test_dinov2_at_other_image_sizes(side, with_head, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, mlp_ratio=2, image_size=24, patch_size=4
    )
    net = (transformers.Dinov2ForImageClassification if with_head else transformers.Dinov2Model)(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(tmp_path)
    x = np.random.default_rng(2).normal(size=(2, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        want = net(torch.from_numpy(x))[0].numpy()
    y = logits(import_huggingface(tmp_path, img_size=side), x)
    assert y.shape == want.shape
    assert np.abs(y - want).max() / np.ptp(want) < 1e-4


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", [(24, 24), (16, 16), (40, 40), (16, 36), (12, 48)])
@pytest.mark.parametrize("with_head", [True, False])
def test_dinov2_with_registers(size, with_head, tmp_path):
    """12 x 48 has as many patches as 24 x 24: positions are resized all the same, with antialiasing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, mlp_ratio=2, image_size=24, patch_size=4,
        num_register_tokens=3,
    )  # fmt: skip
    kind = "Dinov2WithRegistersForImageClassification" if with_head else "Dinov2WithRegistersModel"
    assert saved_agrees(getattr(transformers, kind)(config), tmp_path, size)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["vit", "swin", "dinov2"])
@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "gelu_new"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "silu"},
        {"hidden_act": "gelu_pytorch_tanh", "qkv_bias": False},
        {"layer_norm_eps": 0.1},
    ],
)
def test_fields_that_change_the_computation_are_used(kind, fields, tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 8, "patch_size": 2}
    net = {
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**encoder, **fields)),
        "dinov2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**encoder, **fields)),
        "swin": lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(image_size=8, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 3],
                                    window_size=2, **fields)
        ),
    }[kind]()  # fmt: skip
    assert saved_agrees(net, tmp_path, (8, 8))


def saved_agrees(net, folder, size):
    torch = pytest.importorskip("torch")
    for parameter in net.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(folder)
    x = np.random.default_rng(2).normal(size=(2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        want = net(torch.from_numpy(x))[0].numpy()
    y = logits(import_huggingface(folder, img_size=list(size)), x)
    return y.shape == want.shape and np.abs(y - want).max() / np.ptp(want) < 1e-4


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["ViT", "DeiT", "Swin", "Dinov2", "Dinov2WithRegisters"])
def test_every_field_of_the_configuration_class_is_known(name):
    transformers = pytest.importorskip("transformers")
    fields = set(getattr(transformers, f"{name}Config")().to_dict())
    assert fields - HARMLESS - set(REFUSED) - set(Config.model_fields) == set()


def test_dinov2_is_cropped_as_its_preprocessing_says(tmp_path):
    for file in (FOLDER / "dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    crop = {"do_center_crop": True, "crop_size": {"height": 12, "width": 20}, "size": {"shortest_edge": 24}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(crop))
    model = import_huggingface(tmp_path)
    assert FloatModel(model, threads=1).input_shape == (3, 12, 20)
    assert model_metadata(model)["resize"] == 24


def random_vit_folder(folder, shards=1):
    rng = np.random.default_rng(3)
    dim, names = 16, {}
    names |= {"vit.embeddings.cls_token": (1, 1, dim), "vit.embeddings.position_embeddings": (1, 5, dim)}
    names |= {"vit.embeddings.patch_embeddings.projection.weight": (dim, 1, 4, 4)}
    names |= {"vit.embeddings.patch_embeddings.projection.bias": (dim,)}
    site = "vit.encoder.layer.0"
    for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
        names |= {f"{site}.{part}.weight": (dim, dim), f"{site}.{part}.bias": (dim,)}
    names |= {f"{site}.attention.output.dense.weight": (dim, dim), f"{site}.attention.output.dense.bias": (dim,)}
    names |= {f"{site}.intermediate.dense.weight": (32, dim), f"{site}.intermediate.dense.bias": (32,)}
    names |= {f"{site}.output.dense.weight": (dim, 32), f"{site}.output.dense.bias": (dim,)}
    for part in (f"{site}.layernorm_before", f"{site}.layernorm_after", "vit.layernorm"):
        names |= {f"{part}.weight": (dim,), f"{part}.bias": (dim,)}
    names |= {"classifier.weight": (3, dim), "classifier.bias": (3,)}
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in names.items()}
    config = {"model_type": "vit", "hidden_act": "gelu", "image_size": 8, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
        for shard in set(weight_map.values()):
            save_file({n: t for n, t in tensors.items() if weight_map[n] == shard}, folder / shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_and_one_file_give_the_same_model(tmp_path):
    folders = []
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        folder.mkdir()
        folders.append(random_vit_folder(folder, shards))
    models = [import_huggingface(f).graph.SerializeToString(deterministic=True) for f in folders]
    assert models[0] == models[1]


def test_preprocessing_and_epsilon_are_read(tmp_path):
    folder = random_vit_folder(tmp_path)
    preprocessing = {"image_mean": [0.5], "image_std": [0.25], "size": {"shortest_edge": 10}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    metadata = model_metadata(import_huggingface(folder))
    assert (metadata["mean"], metadata["std"], metadata["resize"]) == ([0.5], [0.25], 10)
    assert metadata["layer_norm_eps"] == 1e-12


def test_qkv_is_query_key_value_in_this_order(tmp_path):
    tensors = load_file(random_vit_folder(tmp_path) / "model.safetensors")
    joined = translate(tensors, "vit")["blocks.0.attn.qkv.weight"]
    assert np.array_equal(joined[16:32], tensors["vit.encoder.layer.0.attention.attention.key.weight"])


def test_a_folder_on_the_command_line(cli, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    random_vit_folder(folder)
    assert cli("import", folder, "-o", tmp_path / "m.onnx")[0] == 0
    assert float_graph(import_huggingface(folder)).tensors["head"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "resnet"}, "model_type must be one of vit, .*, dinov2_with_registers, not 'resnet'"),
        ({"model_type": ["vit"]}, "model_type must be one of"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu"),
        ({"hidden_act": "relu"}, "hidden_act must be one of gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act: must be a valid string"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: must be greater than"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps: must be a valid number, not '1e-6'"),
        ({"num_attention_heads": 0}, "num_attention_heads: must be greater than or equal to 1, not 0"),
        ({"num_attention_heads": True}, "num_attention_heads: must be a valid integer, not True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2}, "num_hidden_layers: must be 1, as the weights say, not 2"),
        ({"hidden_size": 32}, "hidden_size: must be 16, as the weights say, not 32"),
        ({"intermediate_size": 64}, "intermediate_size: must be 32, as the weights say, not 64"),
        ({"qkv_bias": False}, "qkv_bias: must be True, as the weights say, not False"),
        ({"patch_size": 2}, r"patch_size: must be \[4, 4\], as the weights say, not 2"),
        ({"num_channels": 3}, "num_channels: must be 1, as the weights say, not 3"),
        ({"image_size": 12}, "img_size: must give the 4 patches of pos_embed"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn must be false, not True: a gated unit"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"per_layer_config": {"0": {"hidden_act": "relu"}}}, "per_layer_config"),
        ({"architectures": ["ViTBackbone"], "out_features": ["stem"]}, "out_features"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
    folder = random_vit_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(IntvitError, match=message):
        import_huggingface(folder)


def changed(folder, name, **change):
    file = folder / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **change}))


def test_a_field_that_no_vit_has_changes_nothing_and_is_said(tmp_path, cli):
    folder = random_vit_folder(tmp_path)
    plain = import_huggingface(folder)
    changed(folder, "config.json", use_mean_pooling=True, num_heads=4)
    model = import_huggingface(folder)
    assert model.graph.SerializeToString(deterministic=True) == plain.graph.SerializeToString(deterministic=True)
    assert len(model_metadata(model)["assumed"]) == 1
    status, _, err = cli("import", folder, "-o", tmp_path / "m.onnx")
    assert status == 0
    assert "ignored: 'use_mean_pooling' of config.json, which is no field of a vit of transformers" in err


def test_where_the_config_is_silent_transformers_default_holds(tmp_path):
    folder = random_vit_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": None}))
    assert model_metadata(import_huggingface(folder))["layer_norm_eps"] == 1e-12


def test_pixels_on_another_scale_are_refused(tmp_path):
    folder = random_vit_folder(tmp_path)
    changed(folder, "preprocessor_config.json", rescale_factor=1 / 127.5)
    with pytest.raises(IntvitError, match="rescale_factor must be 1/255"):
        import_huggingface(folder)


@pytest.mark.parametrize("shard", ["../model-0.safetensors", "/model-0.safetensors", "", "..", "a\nb", "x" * 300])
def test_shards_lie_in_their_folder(shard, tmp_path):
    folder = random_vit_folder(tmp_path, 2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    changed(folder, "model.safetensors.index.json", weight_map={**index, next(iter(index)): shard})
    with pytest.raises(IntvitError, match=r"must be a file of the folder|must lie in") as error:
        import_huggingface(folder)
    assert str(error.value).isprintable()


def test_links_out_of_the_folder_are_refused_but_for_the_hubs_cache(tmp_path):
    cache = tmp_path / "models--a--b" / "snapshots" / "1"
    cache.mkdir(parents=True)
    plain = import_huggingface(random_vit_folder(cache))
    for name, goal in (("blobs", True), ("elsewhere", False)):
        blob = cache.parent.parent / name / "abc"
        blob.parent.mkdir()
        (cache / "model.safetensors").rename(blob)
        (cache / "model.safetensors").symlink_to(blob)
        if goal:
            assert import_huggingface(cache).SerializeToString() == plain.SerializeToString()
            (cache / "model.safetensors").unlink()
            blob.rename(cache / "model.safetensors")
        else:
            with pytest.raises(IntvitError, match="without links out of it"):
                import_huggingface(cache)


def test_two_names_for_one_tensor(tmp_path):
    folder = random_vit_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "cls_classifier.weight": 2 * tensors["classifier.weight"]}, folder / "model.safetensors")
    with pytest.raises(IntvitError, match=r"classifier\.weight: tensor must be there once; head\.weight is another"):
        import_huggingface(folder)


def test_missing_key_and_shard(tmp_path):
    folder = random_vit_folder(tmp_path, 2)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(IntvitError, match=r"model-1\.safetensors"):
        import_huggingface(folder)
