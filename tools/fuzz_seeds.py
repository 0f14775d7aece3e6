"""Seed files of the fuzzer: networks so small that a whole pipeline takes milliseconds, made by the package itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

FOREIGN = Path(__file__).resolve().parent.parent / "golden" / "foreign"
VIT = {"num_heads": 2, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}
SWIN = {"num_heads": [2, 2], "img_size": 8}
CHANNELS, SIDE, PATCH, DIM, HIDDEN, CLASSES, N_IMAGES = 3, 8, 4, 8, 16, 3, 4
SITES = ("softmax", "gelu", "layernorm", "*.qkv", "*matmul_av", "blocks.0.add1", "logits")
PARTS = {
    "part_embed": ("pos_drop", "blocks.0.attn.qkv", "ibert"),
    "part_attention": ("blocks.0.norm1", "blocks.0.attn.proj", "fqvit"),
    "part_softmax": ("blocks.0.norm1", "blocks.0.attn.context", "ibert"),
    "part_mlp": ("blocks.0.norm2", "blocks.0.mlp.fc2", "ivit"),
    "part_gelu": ("blocks.0.norm2", "blocks.0.mlp.act", "ibert"),
    "part_residual": ("blocks.0.add1", "blocks.0.add2", "ivit"),
}
"""Cut-out pieces of the ViT, quick to load: where they begin and end, and the method."""
RECIPE = """\
bits = 8
residual_bits = 16
softmax_bits = 16
log2_bits = 4
bias_correction = true
slope_correction = true
softmax = {method = "ibert"}
layernorm = {method = "fqvit"}

[gelu]
method = "ibert"
n = 6

[sites."blocks.0.norm2"]
method = "ivit"

[quantizers.softmax]
input_bits = 16

[quantizers."blocks.0.mlp.fc2"]
weight_bits = 6
zero_point = true
weight_clip = true
observer = "mse"
range = 0.75

[quantizers.layernorm]
equalize = 0.5

[observer]
kind = "percentile"
momentum = 0.5
batch = 2
percentile = 99.9
"""
FORMATS = {
    "a.png": "RGB", "b.jpg": "RGB", "c.bmp": "RGB", "d.gif": "P", "e.tif": "RGB", "f.ppm": "RGB", "g.webp": "RGB",
    "h.pgm": "L", "i.tiff": "L", "j.jpeg": "CMYK", "k.PNG": "RGBA",
}  # fmt: skip


def vit_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """timm's ViT: one block."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, (SIDE // PATCH) ** 2 + 1, DIM),
        "patch_embed.proj.weight": (DIM, CHANNELS, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
        "head.weight": (CLASSES, DIM),
        "head.bias": (CLASSES,),
    }
    for name, n_out, n_in in (("attn.qkv", 3 * DIM, DIM), ("attn.proj", DIM, DIM), ("mlp.fc1", HIDDEN, DIM),
                              ("mlp.fc2", DIM, HIDDEN)):  # fmt: skip
        shapes |= {f"blocks.0.{name}.weight": (n_out, n_in), f"blocks.0.{name}.bias": (n_out,)}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        shapes |= {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def swin_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Swin: two stages, windows of 2 x 2, the second block of the first stage shifted."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (DIM, 1, 2, 2),
        "patch_embed.proj.bias": (DIM,),
        "patch_embed.norm.weight": (DIM,),
        "patch_embed.norm.bias": (DIM,),
        "layers.0.downsample.norm.weight": (4 * DIM,),
        "layers.0.downsample.norm.bias": (4 * DIM,),
        "layers.0.downsample.reduction.weight": (2 * DIM, 4 * DIM),
        "norm.weight": (2 * DIM,),
        "norm.bias": (2 * DIM,),
        "head.weight": (CLASSES, 2 * DIM),
        "head.bias": (CLASSES,),
    }
    for site, d in (("layers.0.blocks.0", DIM), ("layers.0.blocks.1", DIM), ("layers.1.blocks.0", 2 * DIM)):
        shapes[f"{site}.attn.relative_position_bias_table"] = (9, 2)
        for name, n_out, n_in in (("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", 2 * d, d),
                                  ("mlp.fc2", d, 2 * d)):  # fmt: skip
            shapes |= {f"{site}.{name}.weight": (n_out, n_in), f"{site}.{name}.bias": (n_out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{site}.{name}.weight": (d,), f"{site}.{name}.bias": (d,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def ivit_checkpoint(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ViT as I-ViT's training code saves it: a scale for each quantizer, integer weights."""
    from intvit.floats.importers.ivit import BLOCK_RANGES, MODEL_RANGES

    found = dict(weights)
    modules = [*MODEL_RANGES["vit"], *(f"blocks.0.{name}" for name in BLOCK_RANGES["vit"])]
    for i, module in enumerate(modules):
        scale = float(np.abs(weights["pos_embed"]).max()) / 32767 if module == "qact_pos" else 0.02 + 0.001 * i
        found[f"{module}.act_scaling_factor"] = np.array([scale], np.float32)
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.ndim in (2, 4):
            flat = weight.reshape(len(weight), -1)
            scale = np.abs(flat).max(1, keepdims=True) / np.float32(127)
            codes = np.clip(np.rint(flat / scale), -128, 127).astype(np.float32)
            found[name.removesuffix(".weight") + ".weight_integer"] = codes.reshape(weight.shape)
    return found


def write_images(folder: Path, rng: np.random.Generator) -> None:
    """The same four images in every container, and a folder of image files in every format."""
    images = rng.integers(0, 256, (N_IMAGES, CHANNELS, SIDE, SIDE), np.uint8)
    labels = np.arange(N_IMAGES) % CLASSES
    with h5py.File(folder / "images.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(1, CHANNELS, SIDE, SIDE), compression="gzip")
        file["labels"] = labels
        file.attrs["mean"], file.attrs["std"] = VIT["mean"], VIT["std"]
        file["test/images"], file["test/labels"] = images, labels
    np.save(folder / "images.npy", images)
    np.save(folder / "floats.npy", rng.normal(size=images.shape).astype(np.float32))
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.savez_compressed(folder / "only.npz", x=images)
    np.save(folder / "gray.npy", rng.normal(size=(2, 1, SIDE, SIDE)).astype(np.float32))
    pixels = np.asarray(Image.fromarray(images[0].transpose(1, 2, 0)).resize((12, 10)))
    flat, classes = folder / "pictures", folder / "classes"
    flat.mkdir()
    for name, mode in FORMATS.items():
        Image.fromarray(pixels).convert("RGB").convert(mode).save(flat / name)
    for i, name in enumerate(("cat", "dog")):
        (classes / name).mkdir(parents=True)
        Image.fromarray(pixels[:, :: 1 - 2 * i]).save(classes / name / f"{i}.png")


def copy_foreign(folder: Path) -> None:
    """Other people's files, and one Hugging Face folder in shards."""
    for path in sorted(FOREIGN.iterdir()):
        if path.suffix == ".onnx" and "swin" not in path.name:
            shutil.copy(path, folder / path.name)
        elif path.is_dir():
            shutil.copytree(path, folder / f"hf_{path.name}")
    from safetensors.numpy import load_file

    source, shards = folder / "hf_vit", folder / "hf_shards"
    shards.mkdir()
    config = json.loads((source / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    preprocessor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True,
                    "size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": True}  # fmt: skip
    (shards / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": {}}
    for i, part in enumerate((names[::2], names[1::2])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, shards / name)
        index["weight_map"] |= dict.fromkeys(part, name)
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))


def write_weights(folder: Path, rng: np.random.Generator) -> None:
    vit, swin = vit_weights(rng), swin_weights(rng)
    save_file(vit, folder / "vit.safetensors", metadata={"intvit": json.dumps(VIT)})
    save_file(swin, folder / "swin.safetensors", metadata={"intvit": json.dumps(SWIN)})
    np.savez(folder / "vit.npz", **vit)
    checkpoint = ivit_checkpoint(vit)
    save_file(checkpoint, folder / "ivit.safetensors")
    np.savez_compressed(folder / "ivit.npz", **checkpoint)
    timm = folder / "timm_vit"
    timm.mkdir()
    save_file(vit, timm / "model.safetensors")
    config = {"architecture": "vit_tiny_patch4_8", "num_classes": CLASSES, "num_features": DIM, "num_heads": 2,
              "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, SIDE, SIDE],
                                 "interpolation": "bicubic", "crop_pct": 0.9, "num_classes": CLASSES}}  # fmt: skip
    (timm / "config.json").write_text(json.dumps(config))
    try:
        import torch
    except ImportError:
        return
    torch.save({"model": {key: torch.from_numpy(value) for key, value in checkpoint.items()}, "epoch": 3},
               folder / "ivit.pth")  # fmt: skip
    torch.save({key: torch.from_numpy(value) for key, value in vit.items()}, folder / "vit.bin")


def interrupted(folder: Path, command: Callable[..., None], *arguments: str) -> None:
    """What a recording leaves in `folder` when its process dies after two images."""
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        from intvit.floats.model import FloatModel

        calls, run = iter(range(3)), FloatModel.run

        def dying(*values: Any) -> Any:
            if next(calls, None) is None:
                os._exit(0)
            return run(*values)

        FloatModel.run = dying  # type: ignore[method-assign]
        command("record", *arguments, "-o", str(folder / "r.h5"), "--batch", "1", "--threads", "1")
        os._exit(1)
    if os.waitpid(pid, 0)[1] or not any(folder.iterdir()):
        raise AssertionError("the recording ended before it could be interrupted")


def write_seeds(folder: Path, command: Callable[..., None]) -> None:
    """Fill `folder`; `command` runs the command line and raises where it fails."""
    rng = np.random.default_rng(10)
    folder.mkdir()
    write_weights(folder, rng)
    write_images(folder, rng)
    copy_foreign(folder)
    (folder / "recipe.toml").write_text(RECIPE)

    def at(name: str) -> str:
        return str(folder / name)

    command("import", at("vit.safetensors"), "-o", at("vit.onnx"))
    command("import", at("swin.safetensors"), "-o", at("swin.onnx"))
    command("import", at("ivit.safetensors"), "--num-heads", "2", "-o", at("ivit.onnx"))
    interrupted(folder / "interrupted", command, at("vit.onnx"), at("images.npy"))
    command("record", at("vit.onnx"), at("images.npy"), "-o", at("recording.h5"), "--threads", "1")
    command("record", at("swin.onnx"), at("gray.npy"), "-o", at("swin_recording.h5"), "--threads", "1")
    command("map", at("vit.onnx"), "--recording", at("recording.h5"), "--images", at("images.npy"), "-o",
            at("mapping.json"))  # fmt: skip
    for method in ("ibert", "fqvit", "ivit"):
        command("lower", at("vit.onnx"), "--recording", at("recording.h5"), "--method", method, "-o",
                at(f"{method}.h5"))  # fmt: skip
    command("lower", at("vit.onnx"), "--recording", at("recording.h5"), "--recipe", at("recipe.toml"), "-o",
            at("mixed.h5"))  # fmt: skip
    command("lower", at("swin.onnx"), "--recording", at("swin_recording.h5"), "-o", at("swin.h5"))
    np.save(folder / "tokens.npy", rng.normal(size=(2, (SIDE // PATCH) ** 2 + 1, DIM)).astype(np.float32))
    command("import", at("vit.onnx"), "--until", "blocks.0.norm1", "-o", at("head.onnx"))
    command("lower", at("head.onnx"), "--images", at("images.npy"), "-o", at("head.h5"))
    for name, (start, until, method) in PARTS.items():
        command("import", at("vit.onnx"), "--from", start, "--until", until, "--mean", "0", "--std", "1", "-o",
                at(f"{name}.onnx"))  # fmt: skip
        command("lower", at(f"{name}.onnx"), "--images", at("tokens.npy"), "--method", method, "-o", at(f"{name}.h5"))
    command("record", at("part_mlp.onnx"), at("tokens.npy"), "-o", at("part_recording.h5"), "--threads", "1")
    command("map", at("part_mlp.onnx"), "--recording", at("part_recording.h5"), "--images", at("tokens.npy"),
            "--methods", "ibert,ivit", "-o", at("part_mapping.json"))  # fmt: skip
    command("run", at("part_mlp.h5"), at("tokens.npy"), "-o", at("logits.npz"), "--trace", at("trace.h5"))
    sites = [part for site in SITES for part in ("--site", site)]
    command("golden", "export", at("mixed.h5"), at("images.npy"), "-o", at("golden"), *sites)
    command("golden", "export", at("fqvit.h5"), at("images.npy"), "-o", at("golden_small"), "--site", "blocks.0.attn.*",
            "--no-hex")  # fmt: skip
    command("golden", "export", at("part_mlp.h5"), at("tokens.npy"), "-o", at("golden_part"), "--site", "gelu",
            "--site",
            "*.fc2")  # fmt: skip
