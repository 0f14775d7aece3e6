#!/usr/bin/env python3
"""Train the embedded models on Fashion-MNIST and write the package data.

    apt-get install dataset-fashion-mnist
    pip install -e '.[torch]'
    python tools/train_fashion.py vit            # weights -> intvit/floats/data/vit_fashion.safetensors
    python tools/train_fashion.py swin           # weights -> intvit/floats/data/swin_fashion.safetensors
    python tools/train_fashion.py images         # intvit/floats/data/fashion_mnist.h5

Seeded: the same torch version and thread count give the same weights. Other machines train to a
slightly different model of the same accuracy, because float sums are taken in another order.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from pathlib import Path

import numpy as np

DATASET = Path("/usr/share/datasets/fashion-mnist")
PACKAGE_DATA = Path(__file__).resolve().parent.parent / "intvit" / "floats" / "data"
MEAN, STD = 0.2860, 0.3530
N_CALIBRATION, N_TEST = 512, 1000


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes (the format of the MNIST files)."""
    raw = gzip.decompress(path.read_bytes())
    n_axes = raw[3]
    shape = np.frombuffer(raw, ">u4", n_axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def read_split(dataset: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(dataset / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(dataset / f"{prefix}-labels-idx1-ubyte.gz")
    return images, labels


def normalize(images: np.ndarray) -> np.ndarray:
    """uint8 (B, 28, 28) -> float32 (B, 1, 28, 28), zero mean and unit deviation."""
    return ((images.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD))[:, None]


# ---------------------------------------------------------------------------------------- networks


def build_vit(torch):  # type: ignore[no-untyped-def]
    """timm's VisionTransformer, by name and arithmetic: patch 4, dim 96, depth 6, 3 heads."""
    nn = torch.nn
    dim, depth, n_heads, patch, size, n_classes = 96, 6, 3, 4, 28, 10

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(dim, 3 * dim)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x):  # type: ignore[no-untyped-def]
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, n_heads, dim // n_heads).permute(2, 0, 3, 1, 4)
            x = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(x.transpose(1, 2).reshape(b, n, dim))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(dim, 4 * dim)
            self.fc2 = nn.Linear(4 * dim, dim)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(dim, eps=1e-6)
            self.attn = Attention()
            self.norm2 = nn.LayerNorm(dim, eps=1e-6)
            self.mlp = Mlp()

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class PatchEmbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(1, dim, patch, patch)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.proj(x).flatten(2).transpose(1, 2)

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
            self.patch_embed = PatchEmbed()
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm = nn.LayerNorm(dim, eps=1e-6)
            self.head = nn.Linear(dim, n_classes)
            self.keep = 1.0

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = self.patch_embed(x) + self.pos_embed[:, 1:]
            if self.keep < 1:  # patch dropout: faster early epochs, and it regularizes
                pick = torch.rand(x.shape[:2]).argsort(1)[:, : int(x.shape[1] * self.keep)]
                x = x.gather(1, pick[:, :, None].expand(-1, -1, dim))
            token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            return self.head(self.norm(self.blocks(torch.cat([token, x], 1)))[:, 0])

    metadata = {
        "architecture": "vit",
        "num_heads": n_heads,
        "img_size": size,
        "layer_norm_eps": 1e-6,
        "mean": [MEAN],
        "std": [STD],
    }
    return VisionTransformer(), metadata


def build_swin(torch):  # type: ignore[no-untyped-def]
    """The original repository's Swin: 28x28, patch 2, window 7, embed 48, depths 2,4, heads 3,6."""
    nn = torch.nn
    size, patch, window, embed, depths, heads, n_classes = 28, 2, 7, 48, (2, 4), (3, 6), 10

    def partition(x):  # type: ignore[no-untyped-def]
        b, h, w, c = x.shape
        x = x.view(b, h // window, window, w // window, window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)

    class WindowAttention(nn.Module):
        def __init__(self, dim: int, n_heads: int) -> None:
            super().__init__()
            self.n_heads = n_heads
            table = torch.zeros((2 * window - 1) ** 2, n_heads)
            self.relative_position_bias_table = nn.Parameter(table)
            grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
            delta = grid[:, :, None] - grid[:, None, :] + window - 1
            self.register_buffer("relative_position_index", delta[0] * (2 * window - 1) + delta[1])
            self.qkv = nn.Linear(dim, 3 * dim)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x, mask):  # type: ignore[no-untyped-def]
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
            if mask is not None:
                bias = bias + mask.repeat(b // len(mask), 1, 1)[:, None]
            x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(b, -1, -1, -1))
            return self.proj(x.transpose(1, 2).reshape(b, n, c))

    class Mlp(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.fc1 = nn.Linear(dim, 4 * dim)
            self.fc2 = nn.Linear(4 * dim, dim)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self, dim: int, n_heads: int, side: int, shift: int) -> None:
            super().__init__()
            self.side, self.shift = side, shift if side > window else 0
            self.norm1 = nn.LayerNorm(dim)
            self.attn = WindowAttention(dim, n_heads)
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim)
            mask = None
            if self.shift:
                region = torch.bucketize(
                    torch.arange(side), torch.tensor([side - window, side - self.shift]), right=True
                )
                group = partition((3 * region[:, None] + region[None, :])[None, :, :, None])[..., 0]
                mask = torch.where(group[:, :, None] == group[:, None, :], 0.0, -100.0)
            self.register_buffer("attn_mask", mask)

        def forward(self, x):  # type: ignore[no-untyped-def]
            b, n, c = x.shape
            h = self.norm1(x).view(b, self.side, self.side, c)
            h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
            h = self.attn(partition(h), self.attn_mask)
            k = self.side // window
            h = h.view(b, k, k, window, window, c).permute(0, 1, 3, 2, 4, 5).reshape(b, self.side, self.side, c)
            h = torch.roll(h, (self.shift, self.shift), (1, 2)).reshape(b, n, c)
            x = x + h
            return x + self.mlp(self.norm2(x))

    class PatchMerging(nn.Module):
        def __init__(self, dim: int, side: int) -> None:
            super().__init__()
            self.side = side
            self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
            self.norm = nn.LayerNorm(4 * dim)

        def forward(self, x):  # type: ignore[no-untyped-def]
            b, _, c = x.shape
            x = x.view(b, self.side, self.side, c)
            parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            return self.reduction(self.norm(torch.cat(parts, -1).reshape(b, -1, 4 * c)))

    class BasicLayer(nn.Module):
        def __init__(self, dim: int, depth: int, n_heads: int, side: int, merge: bool) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(dim, n_heads, side, i % 2 * (window // 2)) for i in range(depth)])
            self.downsample = PatchMerging(dim, side) if merge else None

        def forward(self, x):  # type: ignore[no-untyped-def]
            for block in self.blocks:
                x = block(x)
            return x if self.downsample is None else self.downsample(x)

    class PatchEmbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(1, embed, patch, patch)
            self.norm = nn.LayerNorm(embed)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.norm(self.proj(x).flatten(2).transpose(1, 2))

    class SwinTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = PatchEmbed()
            side, n = size // patch, len(depths)
            self.layers = nn.ModuleList(
                [BasicLayer(embed << i, depths[i], heads[i], side >> i, i < n - 1) for i in range(n)]
            )
            self.norm = nn.LayerNorm(embed << (n - 1))
            self.head = nn.Linear(embed << (n - 1), n_classes)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = self.patch_embed(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x).mean(1))

    metadata = {
        "architecture": "swin",
        "num_heads": list(heads),
        "img_size": size,
        "window_size": window,
        "layer_norm_eps": 1e-5,
        "mean": [MEAN],
        "std": [STD],
    }
    return SwinTransformer(), metadata


BUILDERS = {"vit": build_vit, "swin": build_swin}

# ---------------------------------------------------------------------------------------- training


def augment(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random horizontal flip and a shift of up to one pixel, uint8 (B, 28, 28)."""
    flip = rng.random(len(batch)) < 0.5
    batch = np.where(flip[:, None, None], batch[:, :, ::-1], batch)
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1)))
    rows = rng.integers(0, 3, len(batch))[:, None] + np.arange(28)
    cols = rng.integers(0, 3, len(batch))[:, None] + np.arange(28)
    return padded[np.arange(len(batch))[:, None, None], rows[:, :, None], cols[:, None, :]]


def train(kind: str, args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    images, labels = read_split(args.dataset, "train")
    test_images, test_labels = read_split(args.dataset, "t10k")
    net, metadata = BUILDERS[kind](torch)
    for name, p in net.named_parameters():
        if p.ndim >= 2 or name in ("cls_token", "pos_embed"):
            is_table = p.ndim == 3 or name.endswith("table")
            torch.nn.init.trunc_normal_(p, std=0.02 if is_table else 0.7 / math.sqrt(p[0].numel()))
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
    decay = [p for p in net.parameters() if p.ndim == 2]
    plain = [p for p in net.parameters() if p.ndim != 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    n_steps = args.epochs * (len(images) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, n_steps, pct_start=0.15)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def accuracy() -> float:
        net.eval()
        net.keep = 1.0
        with torch.no_grad():
            hits = [
                (
                    net(torch.from_numpy(normalize(test_images[i : i + 500]))).argmax(1).numpy()
                    == test_labels[i : i + 500]
                )
                for i in range(0, len(test_images), 500)
            ]
        net.train()
        return float(np.concatenate(hits).mean())

    start = time.time()
    for epoch in range(args.epochs):
        order = rng.permutation(len(images))
        net.keep = args.keep if epoch < 0.6 * args.epochs else 1.0
        for i in range(0, len(order) - args.batch + 1, args.batch):
            pick = order[i : i + args.batch]
            x = torch.from_numpy(normalize(augment(images[pick], rng)))
            loss = loss_of(net(x), torch.from_numpy(labels[pick].astype(np.int64)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1:3d}  loss {loss.item():.4f}  top-1 {accuracy():.4f}  {time.time() - start:.0f} s",
            flush=True,
        )
    path = args.output or PACKAGE_DATA / f"{kind}_fashion.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {name: p.detach().contiguous() for name, p in net.named_parameters()}
    metadata["top1_10000"] = accuracy()
    save_file(tensors, partial, metadata={"intvit": json.dumps(metadata, sort_keys=True)})
    os.replace(partial, path)
    print(f"wrote {path}")


def write_images(args: argparse.Namespace) -> None:
    """Write 512 training images (calibration) and 1,000 test images with labels, as stored bytes."""
    import h5py

    rng = np.random.default_rng(args.seed)
    path = args.output or PACKAGE_DATA / "fashion_mnist.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as f:
        for group, prefix, count in (("calibration", "train", N_CALIBRATION), ("test", "t10k", N_TEST)):
            images, labels = read_split(args.dataset, prefix)
            pick = np.sort(rng.choice(len(images), count, replace=False))
            g = f.create_group(group)
            g.create_dataset(
                "images", data=images[pick][:, None], chunks=(64, 1, 28, 28), compression="gzip", shuffle=True
            )
            g.create_dataset("labels", data=labels[pick])
            g.create_dataset("index", data=pick.astype(np.int32))
            g.attrs["source"] = f"Fashion-MNIST {prefix}-images-idx3-ubyte, rows in `index`"
        f.attrs["mean"], f.attrs["std"] = [MEAN], [STD]
        f.attrs["classes"] = [
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ]  # fmt: skip
    os.replace(partial, path)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BUILDERS, "images"])
    parser.add_argument("--dataset", type=Path, default=DATASET)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--keep", type=float, default=0.5, help="share of patches kept in the first 60 %% of epochs")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.what == "images":
        write_images(args)
    else:
        train(args.what, args)


if __name__ == "__main__":
    main()
