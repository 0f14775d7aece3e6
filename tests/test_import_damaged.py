"""Damaged weights, configurations and options: one line and IntvitError, whatever is wrong; seeded."""

import json
import os
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_import_huggingface import random_vit_folder

from intvit.errors import IntvitError
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph

SHORT = 400
DEEP = "[" * 5000
VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 7, 1.5, -0.0, 1e308, 2**31, 2**63, 10**40, float("nan"), float("inf"), "", "x",
    "3", "gelu", "\ud800", "a\nb", [], [1], [0], [4, 4], [-1, 3], ["x"], [[1]], [None], {}, {"a": 1}, {"height": 4},
    [1] * 50,
]  # fmt: skip
KEYS = [
    "num_heads", "img_size", "layer_norm_eps", "mean", "std", "resize", "architecture", "model_args", "pretrained_cfg",
    "global_pool", "num_classes", "model_type", "hidden_act", "image_size", "patch_size", "num_channels", "qkv_bias",
    "mlp_ratio", "head_dim", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "depths",
    "num_register_tokens", "embed_dim", "window_size", "architectures", "out_features", "weight_map", "size",
    "crop_size", "image_mean", "image_std", "do_rescale", "rescale_factor", "input_size", "crop_pct", "act_layer",
    "norm_layer", "depth", "quantization_config", "use_swiglu_ffn", "no_embed_class", "model_config", "",
    "\u0000", "x" * 5000,
]  # fmt: skip
NAMES = [
    "", "head.weight", "layers.x.downsample.norm.weight", "layers.1.downsample.reduction.weight",
    "blocks.007.norm1.weight", "blocks.1.norm1.weight", "a\nb.weight", "\u202e.weight", "x" * 4000,
    "attn_pool.q", "pos_embed", "reg_token",
    "register_tokens", "fc_norm.weight", "norm_pre.weight", "head_dist.weight", "dist_token", "blocks.0.ls1.gamma",
    "blocks.0.gamma_1", "encoder.layer.0.x", "vit.classifier.weight", "classifier.bias", "relative_position_bias_table",
    "layers.0.blocks.0.attn.relative_position_bias_table", "blocks.0.attn.qact1.act_scaling_factor",
]  # fmt: skip
DTYPES = ["f2", "f4", "f8", "i1", "i8", "u1", "?", "bfloat16", "c8", "U3"]


def vit_tensors(rng, *, prefix=1, embedded=1, registers=0, width=16, hidden=32, classes=3):
    shapes = {"cls_token": (1, 1, width)} if prefix else {}
    shapes |= {"reg_token": (1, registers, width)} if registers else {}
    shapes |= {"pos_embed": (1, 4 + embedded, width), "head.weight": (classes, width), "head.bias": (classes,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}
    b = "blocks.0."
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width)}
    linears |= {"mlp.fc2": (width, hidden)}
    for name, shape in linears.items():
        shapes |= {f"{b}{name}.weight": shape, f"{b}{name}.bias": shape[:1]}
    for name in (f"{b}norm1", f"{b}norm2", "norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def swin_tensors(rng, width=8):
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 2), "patch_embed.proj.bias": (width,)}
    shapes |= {"patch_embed.norm.weight": (width,), "patch_embed.norm.bias": (width,)}
    dim = width
    for stage in range(2):
        for i in range(2):
            b = f"layers.{stage}.blocks.{i}."
            for name in ("norm1", "norm2"):
                shapes |= {f"{b}{name}.weight": (dim,), f"{b}{name}.bias": (dim,)}
            shapes |= {f"{b}attn.relative_position_bias_table": (9, 2)}
            for name, rows, cols in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 2, 1), ("mlp.fc2", 1, 2)):
                shapes |= {f"{b}{name}.weight": (rows * dim, cols * dim), f"{b}{name}.bias": (rows * dim,)}
        if stage == 0:
            d = "layers.0.downsample."
            shapes |= {f"{d}norm.weight": (4 * dim,), f"{d}norm.bias": (4 * dim,)}
            shapes |= {f"{d}reduction.weight": (2 * dim, 4 * dim)}
            dim *= 2
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (3, dim), "head.bias": (3,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def timm_folder(folder, rng, config=None, **shape):
    folder.mkdir(exist_ok=True)
    save_file(vit_tensors(rng, **shape), folder / "model.safetensors")
    stated = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "global_pool": "token"}
    stated |= {"model_args": {"num_heads": 2, "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1}}
    stated |= {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 8, 8], "crop_pct": 0.9}}
    (folder / "config.json").write_text(json.dumps({**stated, **(config or {})}))
    return folder


def inputs(folder):
    """Intact inputs of every kind, by the path that is imported."""
    rng = np.random.default_rng(1)
    found = [timm_folder(folder / "timm", rng), timm_folder(folder / "reg", rng, embedded=0, registers=2)]
    for shards in (1, 3):
        (folder / f"hf{shards}").mkdir()
        found.append(random_vit_folder(folder / f"hf{shards}", shards))
        preprocessing = {"image_mean": [0.5], "image_std": [0.25], "size": {"shortest_edge": 10}, "crop_size": 8}
        (found[-1] / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    for name, tensors in (("vit", vit_tensors(rng)), ("swin", swin_tensors(rng))):
        heads = {"num_heads": 2 if name == "vit" else [2, 2], "img_size": 8, "mean": [0.5]}
        (folder / name).mkdir()
        save_file(tensors, folder / name / "w.safetensors", metadata={"intvit": json.dumps(heads)})
        np.savez(folder / name / "w.npz", **tensors)
        (folder / name / "config.json").write_text(json.dumps(heads))
        found += [folder / name / "w.safetensors", folder / name / "w.npz"]
    try:
        import torch
    except ImportError:
        return found
    torch.save({"model": {n: torch.from_numpy(t) for n, t in vit_tensors(rng).items()}}, folder / "vit" / "w.pth")
    return [*found, folder / "vit" / "w.pth"]


def damage_json(choose, file):
    value = json.loads(file.read_text())
    spots = []

    def walk(at):
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            spots.append((at, key))
            if isinstance(at[key], (dict, list)):
                walk(at[key])

    walk(value)
    for _ in range(choose.choice([1, 1, 2])):
        at, key = choose.choice(spots)
        action = choose.randrange(5)
        if action == 0 and key in (at if isinstance(at, dict) else range(len(at))):
            del at[key]
        elif action == 1 and isinstance(at, dict):
            at[choose.choice(KEYS)] = choose.choice(VALUES)
        elif isinstance(at, dict) or key < len(at):
            at[key] = choose.choice(VALUES)
    text = json.dumps(value)
    text = choose.choice(
        [text] * 6 + [text[:-3], DEEP, f'{{"a": {DEEP}', text.replace(":", ": NaN,", 1), "[]", "null", ""]
    )
    file.write_text(text)


def damage_bytes(choose, file):
    data = bytearray(file.read_bytes())
    for _ in range(choose.choice([1, 1, 3, 20])):
        at = choose.randrange(min(len(data), choose.choice([16, 400, len(data)])))
        data[at] = choose.choice([0, 255, data[at] ^ 1 << choose.randrange(8)])
    file.write_bytes(
        data[: choose.choice([len(data)] * 3 + [choose.randrange(len(data)), 8])] + choose.choice([b"", b"x"])
    )


def damage_tensors(choose, file):
    tensors = load_file(file) if file.suffix == ".safetensors" else dict(np.load(file))
    for _ in range(choose.choice([1, 1, 2, 4])):
        name = choose.choice(list(tensors))
        tensor = tensors[name]
        action = choose.randrange(6)
        if action == 0:
            del tensors[name]
        elif action == 1:
            shapes = [
                (0,),
                (),
                tensor.shape[:-1],
                (*tensor.shape, 1),
                tensor.shape[::-1],
                (1,) * 5,
                (0, *tensor.shape[1:]),
            ]
            shapes += [(*tensor.shape[:axis], length, *tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)
                       for length in (1, 2, 3, 5, tensor.shape[axis] * 2)]  # fmt: skip
            tensors[name] = np.zeros(choose.choice(shapes), np.float32)
        elif action == 2 and tensor.dtype == np.float32:
            dtype = choose.choice(DTYPES)
            with np.errstate(all="ignore"):
                tensors[name] = tensor.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        elif action == 3:
            tensors[name] = np.full(
                tensor.shape, choose.choice([0, 1, -1, 3e38, -3e38, 1e-40, np.nan, np.inf]), np.float32
            )
        elif action == 4:
            tensors[choose.choice(NAMES)] = tensor
        else:
            tensors[choose.choice(NAMES)] = tensors.pop(name)
        if not tensors:
            break
    if file.suffix == ".safetensors":
        kept = {n: t for n, t in tensors.items() if t.dtype.kind not in "cU"}
        metadata = {
            "intvit": choose.choice(['{"num_heads": 2, "img_size": 8}', "[", "[1]", "{}", '{"num_heads": "x"}'])
        }
        save_file(kept, file, metadata=metadata)
    else:
        with zipfile.ZipFile(file, "w", choose.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for name, tensor in tensors.items():
                with archive.open(f"{name}.npy", "w") as stream:
                    np.lib.format.write_array(stream, np.asarray(tensor))


def damage_tree(choose, file):
    file.unlink()
    action = choose.randrange(6)
    if action == 0:
        file.mkdir()
    elif action == 1:
        os.mkfifo(file)
    elif action == 2:
        file.symlink_to(file)
    elif action == 3:
        file.symlink_to("/etc/passwd")
    elif action == 4:
        file.write_bytes(b"")


def options_of(choose):
    if choose.random() < 0.8:
        return {}
    keys = ["num_heads", "img_size", "layer_norm_eps", "mean", "std"]
    return {key: choose.choice(VALUES) for key in choose.sample(keys, choose.choice([1, 2]))}


def damaged(choose, intact, folder):
    """A damaged copy of one of `intact`: (its path, options)."""
    source = choose.choice(intact)
    whole = source if source.is_dir() else source.parent
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    goal = folder if source.is_dir() else folder / source.name
    files = sorted(folder.iterdir()) if source.is_dir() else [goal, folder / "config.json"]
    file = choose.choice(files)
    ways = [damage_bytes, damage_tree]
    ways += [damage_json] * 6 if file.suffix == ".json" else []
    ways += [damage_tensors] * 6 if file.suffix in (".safetensors", ".npz") else []
    choose.choice(ways)(choose, file)
    return goal, options_of(choose)


def complaint(path, options):
    """What is wrong with how the import of `path` ends; '' if nothing is."""
    try:
        float_graph(import_model(path, **options))
    except IntvitError as error:
        text = str(error)
        return "" if text.isprintable() and 0 < len(text) < 2000 else f"not one bearable line: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_damaged_inputs(tmp_path):
    intact = inputs(tmp_path)
    for path in intact:
        assert complaint(path, {}) == ""
        import_model(path)
    choose = random.Random(10)
    found = {}
    for i in range(SHORT):
        path, options = damaged(choose, intact, tmp_path / str(i))
        wrong = complaint(path, options)
        if wrong:
            found[i] = wrong
    assert found == {}


def refusal(path):
    with pytest.raises(IntvitError) as error:
        import_model(path, num_heads=2)
    assert str(error.value).isprintable()
    return str(error.value).replace(str(path), path.name)


def test_archives_that_grow_are_refused_before_they_are_read(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (75 * 2**20,)}
    with (
        zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.weight.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(300):
            stream.write(bytes(2**20))
    assert "must be a whole npz file of plain arrays, not: 314572928 bytes in" in refusal(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda torch: torch.zeros(1).expand(2**20, 2**20), "less than 2 GiB of weights"),
        (lambda torch: torch.empty(3, 16, device="meta"), "plain tensors, not: can't convert meta"),
        (lambda torch: torch.zeros(3, 16).to_sparse(), "plain tensors, not: torch.sparse_coo"),
        (lambda torch: torch.zeros(16).expand(3, 16), "a tensor of shape [3, 16] that repeats its values"),
        (lambda torch: torch.zeros(3, 16, dtype=torch.complex64), "not complex64"),
        (lambda torch: torch.zeros(3, 16, dtype=torch.int8), "not int8"),
        (lambda torch: torch.zeros(3, 16).to(torch.float8_e4m3fn), "not: torch.float8_e4m3fn"),
        (lambda torch: torch.full((3, 16), 1e300, dtype=torch.float64), "must be finite float32"),
    ],
)
def test_tensors_of_pytorch_that_are_no_plain_floats(change, message, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(t) for name, t in vit_tensors(np.random.default_rng(1)).items()}
    torch.save(tensors, tmp_path / "w.pth")
    import_model(tmp_path / "w.pth", num_heads=2)
    torch.save({**tensors, "head.weight": change(torch)}, tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth")


def test_weights_that_overflow_where_they_are_folded(tmp_path):
    tensors = vit_tensors(np.random.default_rng(1))
    tensors |= {"blocks.0.ls1.gamma": np.full(16, 1e38, np.float32)}
    tensors["blocks.0.attn.proj.weight"][:] = 1e3
    save_file(tensors, tmp_path / "w.safetensors")
    assert "blocks.0.attn.proj.weight.T: weights must stay finite" in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_intact_inputs_of_the_campaign_agree_in_both_formats(kind, tmp_path):
    inputs(tmp_path)
    a, b = (import_model(tmp_path / kind / f"w.{suffix}") for suffix in ("npz", "safetensors"))
    assert a.graph.SerializeToString(deterministic=True) == b.graph.SerializeToString(deterministic=True)


def test_a_key_that_is_no_text(tmp_path):
    save_file(vit_tensors(np.random.default_rng(1)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'{"architecture": "vit_tiny_patch4_8", "\\ud800": 1}')
    assert "config.json: " in refusal(tmp_path / "model.safetensors")
