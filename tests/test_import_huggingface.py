"""Hugging Face folders: agreement with transformers where it is installed; names, shards and preprocessing always."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.importers.huggingface import import_huggingface, translate
from intvit.importers.onnx import float_graph, model_metadata

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
        ({"model_type": "resnet"}, "model_type must be one of vit, deit, swin, dinov2, not 'resnet'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act must be gelu"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
    folder = random_vit_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(IntvitError, match=message):
        import_huggingface(folder)


def test_missing_key_and_shard(tmp_path):
    folder = random_vit_folder(tmp_path, 2)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(IntvitError, match=r"model-1\.safetensors"):
        import_huggingface(folder)
