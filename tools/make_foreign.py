#!/usr/bin/env python3
"""Write golden/foreign: tiny networks of random weights as other people's files, with what their framework computes.

    python tools/make_foreign.py

Needs torch, transformers and onnxscript. Seeded. ONNX graphs by both of torch's exporters, Hugging Face folders, and
for each network an .npz with images `x` and outputs `y`. Exporters' comments are dropped: they name paths.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import transformers as T
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "foreign"
WIDTH, HEADS, SIDE, CLASSES = 24, 3, 16, 5
COMMON = {"image_size": SIDE, "patch_size": 4, "num_labels": CLASSES}
ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, **COMMON}


class Attention(nn.Module):
    """timm's: fused q/k/v, the scale on q or inside scaled_dot_product_attention."""

    def __init__(self, fused_product: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused_product = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused_product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_product:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * (width // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Multihead(nn.Module):
    """torchvision's: nn.MultiheadAttention, tokens first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, attention: nn.Module, gelu: str) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate=gelu), nn.Linear(2 * WIDTH, WIDTH))
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.gamma * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, attention: Any, gelu: str = "none") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, (SIDE // 4) ** 2 + 1, WIDTH))
        self.blocks = nn.Sequential(*[Block(attention(), gelu) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).logits


class Dense(nn.Module):
    """A DINOv2 encoder inside a larger network: a convolution and an upsampling on its patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = T.Dinov2Model(T.Dinov2Config(mlp_ratio=2, **ENCODER))
        self.head, self.up = nn.Conv2d(WIDTH, 7, 3, padding=1), nn.Upsample(scale_factor=4, mode="bilinear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone(x).last_hidden_state[:, 1:]
        batch, _, width = tokens.shape
        rows, cols = x.shape[2] // 4, x.shape[3] // 4
        return self.up(self.head(tokens.transpose(1, 2).reshape(batch, width, rows, cols)))


HUGGINGFACE = {
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(intermediate_size=48, **ENCODER)),
    "deit": lambda: T.DeiTForImageClassification(T.DeiTConfig(intermediate_size=48, **ENCODER)),
    "deit_distilled": lambda: T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(intermediate_size=48, **ENCODER)),
    "swin": lambda: T.SwinForImageClassification(
        T.SwinConfig(**{**COMMON, "patch_size": 2}, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4)
    ),
    "dinov2": lambda: T.Dinov2ForImageClassification(T.Dinov2Config(mlp_ratio=2, **ENCODER)),
}
PLAIN = {
    "dense": Dense,
    "timm_manual": lambda: Vit(lambda: Attention(False)),
    "timm_sdpa": lambda: Vit(lambda: Attention(True), "tanh"),
    "torchvision": lambda: Vit(Multihead),
}
EXPORTS = {
    "vit": ["old13", "new20"],
    "deit_distilled": ["old17"],
    "swin": ["old13", "old17"],
    "dinov2": ["old13", "new20"],
    "dense": ["old13", "new20"],
    "timm_manual": ["old14", "new18"],
    "timm_sdpa": ["old14", "new18", "new24"],
    "torchvision": ["old17", "new24"],
}


def export(net: nn.Module, path: Path, how: str, x: torch.Tensor) -> None:
    """By torch's old exporter (TorchScript) or the new one, at the opset that `how` ends in, with a free batch axis."""
    opset = int(how[3:])
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    if how.startswith("old"):
        axes = {"pixel_values": {0: "batch"}}
        torch.onnx.export(net, (x[:1],), str(path), dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
    else:
        shapes = [{0: torch.export.Dim("batch")}]
        torch.onnx.export(net, (x,), str(path), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                          external_data=False, **names)  # fmt: skip
    model = onnx.load(str(path))
    for part in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    model.ClearField("metadata_props")
    onnx.save(model, str(path))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed, (name, make) in enumerate({**HUGGINGFACE, **PLAIN}.items()):
        torch.manual_seed(seed)
        net = make().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
        if name in HUGGINGFACE:
            net.save_pretrained(FOLDER / name)
            net = Logits(net)
        x = torch.randn(2, 3, SIDE, SIDE)
        with torch.no_grad():
            np.savez(FOLDER / f"{name}.npz", x=x.numpy(), y=net(x).numpy())
        for how in EXPORTS.get(name, []):
            plain = "eager" if how == "old13" else "sdpa"
            for module in net.modules():
                if hasattr(getattr(module, "config", None), "_attn_implementation"):
                    module.config._attn_implementation = plain
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                export(net, FOLDER / f"{name}_{how}.onnx", how, x)
            print(f"wrote {name}_{how}.onnx")


if __name__ == "__main__":
    main()
