"""timm and original-repository weights -> float ONNX. ViT, DeiT and Swin of any size that the weights imply.

The architecture is read off tensor names and shapes; what they cannot tell (heads, activation, epsilon, image size of a
Swin) comes from an option, the safetensors metadata key `intvit`, or a `config.json`; what nothing tells is assumed and
said. Node names are site names: the module paths of the checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intvit.errors import IntvitError
from intvit.floats.importers.architectures import activation_node, refuse_others
from intvit.floats.importers.builder import Builder, resize_bicubic
from intvit.floats.importers.config import options as checked_options
from intvit.floats.importers.timm_config import timm_config
from intvit.floats.importers.weights import Weights, load_weights
from intvit.graph.ir import Array

DEFAULT_EPS = {"vit": 1e-6, "swin": 1e-5}
MOST_PATCHES, MOST_SCORES = 2**18, 2**26
"""Of an image, and of the masks of a stage: beyond lies nothing but a wrong image size."""


# --------------------------------------------------------------------------------- parts of a block


def attention(
    b: Builder, site: str, x: str, weights: Weights, dim: int, heads: int, lead: tuple[int, ...], n_tokens: int,
    scores_to_softmax: Any = None, out_gain: Array | None = None,
) -> str:  # fmt: skip
    """Multi-head attention over (batch, *lead, N, D); `lead` is () in a ViT and (windows,) in a Swin."""
    d = dim // heads
    qkv = b.linear(
        f"{site}.qkv", x, weights.take(f"{site}.qkv.weight", 3 * dim, dim), weights.maybe(f"{site}.qkv.bias", 3 * dim)
    )
    split = b.reshape(f"{site}.split", qkv, *lead, n_tokens, 3, heads, d)
    k = len(lead)
    order = (0, 2 + k, *range(1, 1 + k), 3 + k, 1 + k, 4 + k)
    parts = b.transpose(f"{site}.parts", split, *order)
    q, key, v = (b.take(f"{site}.{name}", parts, 1, i) for i, name in enumerate("qkv"))
    last = 3 + k
    swapped = b.transpose(f"{site}.k_transposed", key, *range(last - 1), last, last - 1)
    product = b.add("MatMul", f"{site}.matmul_qk", q, swapped)
    scores = b.add("Mul", f"{site}.scores", product, b.constant(f"{site}.scale", np.float32(d**-0.5)))
    if scores_to_softmax is not None:
        scores = scores_to_softmax(scores)
    probabilities = b.add("Softmax", f"{site}.softmax", scores, axis=-1)
    mixed = b.add("MatMul", f"{site}.matmul_av", probabilities, v)
    joined = b.transpose(f"{site}.heads_last", mixed, *range(1 + k), 2 + k, 1 + k, 3 + k)
    context = b.reshape(f"{site}.context", joined, *lead, n_tokens, dim)
    weight, bias = weights.take(f"{site}.proj.weight", dim, dim), weights.maybe(f"{site}.proj.bias", dim)
    return b.linear(f"{site}.proj", context, *scaled(weight, bias, out_gain))


def mlp(
    b: Builder, site: str, x: str, weights: Weights, dim: int, act: str | None = None, out_gain: Array | None = None
) -> str:
    """`act`: the activation, as `architectures.activation` knows it; exact GELU where it is not given."""
    hidden = weights.shape(f"{site}.fc1.weight", 2)[0]
    if weights.shape(f"{site}.fc2.weight", 2)[1] * 2 == hidden:
        raise IntvitError(f"{site}.fc1: a gated unit (SwiGLU) cannot be built here")
    weight, bias = weights.take(f"{site}.fc1.weight", hidden, dim), weights.maybe(f"{site}.fc1.bias", hidden)
    op, form = activation_node(act or "gelu")
    act = b.add(op, f"{site}.act", b.linear(f"{site}.fc1", x, weight, bias), **form)
    weight, bias = weights.take(f"{site}.fc2.weight", dim, hidden), weights.maybe(f"{site}.fc2.bias", dim)
    return b.linear(f"{site}.fc2", act, *scaled(weight, bias, out_gain))


def _layernorm(b: Builder, site: str, x: str, w: Weights, dim: int, eps: float) -> str:
    if f"{site}.weight" in w.tensors and f"{site}.bias" not in w.tensors:
        why = "a norm without bias may be an RMSNorm or not; export the model to ONNX and import that"
        raise IntvitError(f"{site}.bias: tensor is missing; it must have shape [{dim}]: {why}")
    return b.layernorm(site, x, w.take(f"{site}.weight", dim), w.take(f"{site}.bias", dim), eps)


def scaled(weight: Array, bias: Array | None, gain: Array | None) -> tuple[Array, Array | None]:
    """LayerScale folded into the linear operator before it."""
    if gain is None:
        return weight, bias
    return weight * gain[:, None], None if bias is None else bias * gain


def head(b: Builder, site: str, x: str, weights: Weights, name: str, dim: int) -> tuple[str, int]:
    n_classes = weights.shape(f"{name}.weight", 2)[0]
    weight, bias = weights.take(f"{name}.weight", n_classes, dim), weights.maybe(f"{name}.bias", n_classes)
    return b.linear(site, x, weight, bias), n_classes


# ----------------------------------------------------------------------------------------------- ViT


def build_vit(tensors: Mapping[str, Array], options: Mapping[str, Any]) -> onnx.ModelProto:
    """timm's VisionTransformer (DeiT too): patch, width, depth, tokens and image size from the weights.

    Without a classifier the output is the normed tokens. Besides the Options of `config`, `options` may hold act
    (the activation), pool ("token" or "avg"), no_embed_class (bool), interpolate ("bicubic" or "antialias").
    """
    tensors = _layer_scale_as_timm(tensors)
    refuse_others(tensors)
    options = {**options, **checked_options("", options)}
    w, b = Weights(tensors), Builder()
    dim, channels, patch_h, patch_w = w.shape("patch_embed.proj.weight", 4)
    depth = w.count("blocks.{}.")
    if depth < 1:
        raise IntvitError("blocks.0.: tensors are missing; there must be at least one block")
    prefix = _prefix_tokens(w, dim)
    positions, embedded, (rows, cols) = _positions(w, options, dim, prefix.shape[1], patch_h, patch_w)
    heads = _heads(options, 1)[0]
    if dim % heads:
        raise IntvitError(f"num_heads: must divide the width {dim}, not {heads}")
    n_tokens = prefix.shape[1] + rows * cols
    eps, act = float(options.get("layer_norm_eps") or DEFAULT_EPS["vit"]), options.get("act")
    x = _patch_embed(b, w, dim, channels, patch_h, patch_w, rows * cols)
    if prefix.shape[1] and embedded == prefix.shape[1]:
        x = b.add("Concat", "tokens", b.over_batch("cls_tokens", prefix), x, axis=1)
        x = b.add("Add", "pos_drop", x, b.constant("pos_embed", positions))
    else:  # the tokens before the patches have no positions, or constant ones
        x = b.add("Add", "pos_drop", x, b.constant("pos_embed", positions[:, embedded:]))
        if prefix.shape[1]:
            prefix[:, :embedded] += positions[:, :embedded]
            x = b.add("Concat", "tokens", b.over_batch("cls_tokens", prefix), x, axis=1)
    if "norm_pre.weight" in tensors:
        x = _layernorm(b, "norm_pre", x, w, dim, eps)
    for i in range(depth):
        site = f"blocks.{i}"
        normed = _layernorm(b, f"{site}.norm1", x, w, dim, eps)
        gain = w.maybe(f"{site}.ls1.gamma", dim)
        update = attention(b, f"{site}.attn", normed, w, dim, heads, (), n_tokens, out_gain=gain)
        x = b.add("Add", f"{site}.add1", x, update)
        gain = w.maybe(f"{site}.ls2.gamma", dim)
        update = mlp(b, f"{site}.mlp", _layernorm(b, f"{site}.norm2", x, w, dim, eps), w, dim, act, gain)
        x = b.add("Add", f"{site}.add2", x, update)
    if "norm.weight" in tensors:
        x = _layernorm(b, "norm", x, w, dim, eps)
    output, shape = _vit_head(b, w, x, dim, prefix.shape[1], n_tokens, eps, options.get("pool"))
    w.check_all_taken()
    metadata = _metadata("vit", options, [rows * patch_h, cols * patch_w], channels, heads, eps)
    return b.model((channels, rows * patch_h, cols * patch_w), output, shape, metadata)


def _layer_scale_as_timm(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The original DeiT III calls its gains gamma_1 and gamma_2."""
    return {re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name): t for name, t in tensors.items()}


def _prefix_tokens(w: Weights, dim: int) -> Array:
    """(1, n, dim): class token, DeiT's distillation token, registers, as far as there are any."""
    parts = [w.take(name, 1, 1, dim) for name in ("cls_token", "dist_token") if name in w.tensors]
    for name in ("reg_token", "register_tokens"):
        if name in w.tensors:
            parts.append(w.take(name, 1, w.shape(name, 3)[1], dim))
    return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0, dim), np.float32)


def _positions(
    w: Weights, options: Mapping[str, Any], dim: int, n_prefix: int, patch_h: int, patch_w: int
) -> tuple[Array, int, tuple[int, int]]:
    """Position embeddings, how many of them belong to tokens before the patches, and the grid of the others.

    That is all of these tokens (ViT), the class token alone (DINOv2's `register_tokens`), or none (DeiT III, FlexiViT,
    registers in timm): what the image size or a square grid allows.
    """
    if "pos_embed" not in w.tensors:
        raise IntvitError("pos_embed: tensor is missing; a ViT without learned positions cannot be built here")
    n_positions = w.shape("pos_embed", 3)[1]
    positions = w.take("pos_embed", 1, n_positions, dim)
    told = options.get("no_embed_class")
    if "register_tokens" in w.tensors:
        choices = [int("cls_token" in w.tensors)]
    else:
        choices = sorted({n_prefix, 0} if told is None else {0 if told else n_prefix}, reverse=True)
    size = _side(options)
    if size is not None and (size[0] % patch_h or size[1] % patch_w):
        raise IntvitError(f"img_size: must be a multiple of the patch {[patch_h, patch_w]}, not {list(size)}")
    if size is not None and size[0] // patch_h * (size[1] // patch_w) > MOST_PATCHES:
        raise IntvitError(f"img_size: must give at most {MOST_PATCHES} patches, not {list(size)}")
    squares = [n for n in choices if n_positions > n and math.isqrt(n_positions - n) ** 2 == n_positions - n]
    if size is None or options.get("interpolate"):
        if len(squares) > 1:
            raise IntvitError(f"img_size: {n_positions} positions may count the class token or not; give --img-size")
        if not squares:
            counts = " or ".join(str(n_positions - n) for n in choices)
            raise IntvitError(
                f"img_size: of {n_positions} positions {counts} are of patches, no square; give it with --img-size"
            )
        side = math.isqrt(n_positions - squares[0])
        if size is None:
            return positions, squares[0], (side, side)
    grid = size[0] // patch_h, size[1] // patch_w
    if options.get("interpolate"):
        if grid != (side, side):
            positions = _interpolated(positions, squares[0], *grid, antialias=options["interpolate"] == "antialias")
        return positions, squares[0], grid
    fitting = [n for n in choices if n_positions - n == grid[0] * grid[1]]
    if not fitting:
        n_patches = n_positions - (squares or choices)[0]
        raise IntvitError(f"img_size: must give the {n_patches} patches of pos_embed, not {list(size)}")
    return positions, fitting[0], grid


def _interpolated(positions: Array, n_prefix: int, rows: int, cols: int, *, antialias: bool) -> Array:
    """Position embeddings of a square grid resized bicubically, as Hugging Face's DINOv2 does for other image sizes."""
    side, dim = math.isqrt(positions.shape[1] - n_prefix), positions.shape[2]
    grid = positions[:, n_prefix:].reshape(1, side, side, dim).transpose(0, 3, 1, 2)
    resized = resize_bicubic(np.ascontiguousarray(grid), rows, cols, antialias=antialias)
    patches = resized.transpose(0, 2, 3, 1).reshape(1, rows * cols, dim)
    return np.concatenate([positions[:, :n_prefix], patches], axis=1)


def _vit_head(
    b: Builder, w: Weights, x: str, dim: int, n_prefix: int, n_tokens: int, eps: float, pool: str | None
) -> tuple[str, tuple[int, ...]]:
    """(output, its shape): the classifier, on what its width and the other tensors say; or the tokens themselves.

    Two heads (distilled) are averaged as one linear operator on both tokens. DINOv2's reads class token and mean patch.
    `pool`: what is known of the pooling; without it, the mean where there is a norm behind it or no class token.
    """
    has_class = "cls_token" in w.tensors
    if pool == "token" and not has_class:
        raise IntvitError("global_pool: must not be 'token' without a cls_token")
    if "head.weight" not in w.tensors and "fc_norm.weight" not in w.tensors:
        return x, (n_tokens, dim)
    if "head_dist.weight" in w.tensors:
        n_classes = w.shape("head.weight", 2)[0]
        halves = [w.take(f"{name}.weight", n_classes, dim) / 2 for name in ("head", "head_dist")]
        bias = (w.take("head.bias", n_classes) + w.take("head_dist.bias", n_classes)) / 2
        if not has_class or "dist_token" not in w.tensors:
            raise IntvitError("head_dist: must have a cls_token and a dist_token to read")
        pooled = b.reshape("pool", b.slice("pool.tokens", x, 1, 0, 2), 2 * dim)
        return b.linear("head", pooled, np.concatenate(halves, axis=1), bias), (n_classes,)
    width = w.shape("head.weight", 2)[1] if "head.weight" in w.tensors else dim
    if width != dim and not (width == 2 * dim and has_class):
        raise IntvitError(f"head.weight: must read {dim} channels (or {2 * dim} of class token and mean), not {width}")
    averaged = width == 2 * dim or (pool == "avg" if pool else "fc_norm.weight" in w.tensors or not has_class)
    parts = []
    if width == 2 * dim or not averaged:
        parts.append(b.take("pool", x, 1, 0))
    if averaged:
        patches = b.slice("pool.patches", x, 1, n_prefix, n_tokens) if n_prefix else x
        parts.append(b.add("ReduceMean", "avgpool", patches, b.constant("avgpool.axes", np.array([1])), keepdims=0))
    pooled = parts[0] if len(parts) == 1 else b.add("Concat", "pooled", *parts, axis=1)
    if "fc_norm.weight" in w.tensors:
        pooled = _layernorm(b, "fc_norm", pooled, w, width, eps)
    if "head.weight" not in w.tensors:
        return pooled, (width,)
    output, n_classes = head(b, "head", pooled, w, "head", width)
    return output, (n_classes,)


def _heads(options: Mapping[str, Any], n_stages: int) -> list[int]:
    heads = options.get("num_heads")
    if heads is None:
        raise IntvitError("num_heads: cannot be read off the weights; give it with --num-heads")
    found = [int(h) for h in (heads if isinstance(heads, (list, tuple)) else [heads])]
    if len(found) != n_stages:
        raise IntvitError(f"num_heads: must be {n_stages} positive integers, not {found}")
    return found


def _side(options: Mapping[str, Any]) -> tuple[int, int] | None:
    size = options.get("img_size")
    if size is None:
        return None
    return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)


def _patch_embed(b: Builder, w: Weights, dim: int, channels: int, patch_h: int, patch_w: int, n_patches: int) -> str:
    site = "patch_embed.proj"
    inputs = ["input", b.constant(f"{site}.weight", w.take(f"{site}.weight", dim, channels, patch_h, patch_w))]
    bias = w.maybe(f"{site}.bias", dim)
    if bias is not None:
        inputs.append(b.constant(f"{site}.bias", bias))
    kernel = [patch_h, patch_w]
    patches = b.add("Conv", site, *inputs, kernel_shape=kernel, strides=kernel)
    return b.transpose("patch_embed.tokens", b.reshape("patch_embed.flatten", patches, dim, n_patches), 0, 2, 1)


def _metadata(
    architecture: str, options: Mapping[str, Any], size: list[int], channels: int, heads: Any, eps: float, **more: Any
) -> dict[str, Any]:
    found = {"architecture": architecture, "img_size": size, "num_heads": heads, "layer_norm_eps": eps, **more}
    for key in ("mean", "std"):
        if options.get(key) is not None:
            found[key] = [float(v) for v in options[key]]
            if len(found[key]) not in (1, channels):
                raise IntvitError(f"{key}: must be one number or {channels}, not {len(found[key])}")
    if options.get("resize") is not None:
        found["resize"] = int(options["resize"])
    if options.get("assumed"):
        found["assumed"] = list(options["assumed"])
    return found


# ---------------------------------------------------------------------------------------------- Swin


def build_swin(tensors: Mapping[str, Array], options: Mapping[str, Any]) -> onnx.ModelProto:
    """Swin Transformer (v1): stages of window attention with cyclic shifts, patch merging, average pooling.

    Reads the original repository's names (downsample at a stage's end) and timm's newer ones (at the next one's start).
    Besides the Options of `config`, `options` may hold act (the activation), merging_eps (of the norms of patches and
    of merging, where it is another), one_shift (refuse grids that only one version of timm shifts).
    """
    refuse_others(tensors)
    options = {**options, **checked_options("", options)}
    w, b = Weights(_merging_at_stage_end(tensors)), Builder()
    dim, channels, patch_h, patch_w = w.shape("patch_embed.proj.weight", 4)
    n_stages = w.count("layers.{}.")
    heads = _heads(options, n_stages)
    size = _side(options)
    if size is None:
        raise IntvitError("img_size: cannot be read off a Swin's weights; give it with --img-size")
    if size[0] % patch_h or size[1] % patch_w:
        raise IntvitError(f"img_size: must be a multiple of the patch {[patch_h, patch_w]}, not {list(size)}")
    windows: list[int] = []
    eps, act = float(options.get("layer_norm_eps") or DEFAULT_EPS["swin"]), options.get("act")
    merging_eps, one_shift = float(options.get("merging_eps") or eps), bool(options.get("one_shift"))
    rows, cols = size[0] // patch_h, size[1] // patch_w
    if rows * cols > MOST_PATCHES:
        raise IntvitError(f"img_size: must give at most {MOST_PATCHES} patches, not {list(size)}")
    x = _patch_embed(b, w, dim, channels, patch_h, patch_w, rows * cols)
    if "patch_embed.norm.weight" in tensors:
        x = _layernorm(b, "patch_embed.norm", x, w, dim, merging_eps)
    x = b.add("Identity", "pos_drop", x)
    for stage in range(n_stages):
        for i in range(w.count(f"layers.{stage}.blocks.{{}}.")):
            site = f"layers.{stage}.blocks.{i}"
            windows.append(_window(w, f"{site}.attn.relative_position_bias_table"))
            grid = rows, cols
            x = _swin_block(b, w, site, x, dim, heads[stage], grid, windows[-1], i % 2, eps, act, one_shift)
        if any(name.startswith(f"layers.{stage}.downsample.") for name in w.tensors):
            x = _patch_merging(b, w, f"layers.{stage}.downsample", x, dim, (rows, cols), merging_eps)
            rows, cols, dim = rows // 2, cols // 2, 2 * dim
    if not windows:
        raise IntvitError("layers.0.blocks.0.: tensors are missing; there must be at least one block")
    x = _layernorm(b, "norm", x, w, dim, eps)
    pooled = b.add("ReduceMean", "avgpool", x, b.constant("avgpool.axes", np.array([1], np.int64)), keepdims=0)
    name = "head.fc" if "head.fc.weight" in tensors else "head"
    output, n_classes = head(b, "head", pooled, w, name, dim)
    w.check_all_taken()
    metadata = _metadata("swin", options, list(size), channels, heads, eps, window_size=max(windows))
    return b.model((channels, *size), output, (n_classes,), metadata)


def _merging_at_stage_end(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """timm >= 0.9 keeps `downsample` at the start of the next stage: move it to the end of the one before."""
    if not any(name.startswith("layers.1.downsample.") for name in tensors) or any(
        name.startswith("layers.0.downsample.") for name in tensors
    ):
        return dict(tensors)
    moved = {}
    for name, tensor in tensors.items():
        at = re.match(r"layers\.([1-9]\d*)(\.downsample\..*)", name)
        moved[f"layers.{int(at[1]) - 1}{at[2]}" if at else name] = tensor
    return moved


def _window(w: Weights, table: str) -> int:
    """The window side of one block: a stage smaller than the model's window has tables of its own size."""
    rows = w.shape(table, 2)[0]
    window = (math.isqrt(rows) + 1) // 2
    if (2 * window - 1) ** 2 != rows:
        raise IntvitError(f"{table}: must have (2w-1)^2 rows, not {rows}")
    return window


def _swin_block(
    b: Builder, w: Weights, site: str, x: str, dim: int, heads: int, grid: tuple[int, int], window: int, odd: int,
    eps: float, act: str | None, one_shift: bool,
) -> str:  # fmt: skip
    rows, cols = grid
    if dim % heads:
        raise IntvitError(f"num_heads: must divide the width {dim} of {site}, not {heads}")
    shift = window // 2 if odd and min(rows, cols) > window else 0
    if one_shift and odd and min(rows, cols) <= window < max(rows, cols):
        raise IntvitError(f"{site}: grid {grid} must be above the window {window} on both sides or none: shifts differ")
    if rows % window or cols % window:
        raise IntvitError(f"{site}: stage grid {grid} must be a multiple of the window {window}")
    n_rows, n_cols, area = rows // window, cols // window, window * window
    if rows * cols * area > MOST_SCORES:
        raise IntvitError(f"{site}: grid {grid} in windows of {window} must be smaller to be masked")
    n_windows = n_rows * n_cols
    h = b.reshape(f"{site}.grid", _layernorm(b, f"{site}.norm1", x, w, dim, eps), rows, cols, dim)
    h = _roll(b, f"{site}.roll", h, grid, shift)
    h = b.reshape(f"{site}.cut", h, n_rows, window, n_cols, window, dim)
    h = b.transpose(f"{site}.tiles", h, 0, 1, 3, 2, 4, 5)
    h = b.reshape(f"{site}.attn.windows", h, n_windows, area, dim)
    name = f"{site}.attn.relative_position_bias_table"
    table = w.take(name, (2 * window - 1) ** 2, heads)
    bias = table[relative_position_index(window)].transpose(2, 0, 1)[None]

    def bias_and_mask(scores: str) -> str:
        scores = b.add("Add", f"{site}.attn.bias", scores, b.constant(name, np.ascontiguousarray(bias[None])))
        if shift:
            mask = shift_mask(grid, window, shift)
            scores = b.add("Add", f"{site}.attn.masked", scores, b.constant(f"{site}.attn_mask", mask[None, :, None]))
        return scores

    h = attention(b, f"{site}.attn", h, w, dim, heads, (n_windows,), area, bias_and_mask)
    h = b.reshape(f"{site}.untile", h, n_rows, n_cols, window, window, dim)
    h = b.reshape(f"{site}.uncut", b.transpose(f"{site}.rows", h, 0, 1, 3, 2, 4, 5), rows, cols, dim)
    h = b.reshape(f"{site}.tokens", _roll(b, f"{site}.unroll", h, grid, -shift), rows * cols, dim)
    x = b.add("Add", f"{site}.add1", x, h)
    return b.add(
        "Add", f"{site}.add2", x, mlp(b, f"{site}.mlp", _layernorm(b, f"{site}.norm2", x, w, dim, eps), w, dim, act)
    )


def _roll(b: Builder, name: str, x: str, grid: tuple[int, int], shift: int) -> str:
    """torch.roll by -shift along both axes, as slices and concatenations."""
    if shift == 0:
        return x
    for axis, length in ((1, grid[0]), (2, grid[1])):
        cut = shift % length
        head_part = b.slice(f"{name}.head{axis}", x, axis, cut, length)
        tail_part = b.slice(f"{name}.tail{axis}", x, axis, 0, cut)
        x = b.add("Concat", f"{name}.axis{axis}", head_part, tail_part, axis=axis)
    return x


def _patch_merging(b: Builder, w: Weights, site: str, x: str, dim: int, grid: tuple[int, int], eps: float) -> str:
    rows, cols = grid
    if rows % 2 or cols % 2:
        raise IntvitError(f"{site}: grid {grid} must be even to be merged")
    h = b.reshape(f"{site}.grid", x, rows, cols, dim)
    parts = []
    for row, col in ((0, 0), (1, 0), (0, 1), (1, 1)):
        part = b.slice(f"{site}.row{row}{col}", h, 1, row, rows, 2)
        parts.append(b.slice(f"{site}.part{row}{col}", part, 2, col, cols, 2))
    h = b.add("Concat", f"{site}.joined", *parts, axis=3)
    h = b.reshape(f"{site}.tokens", h, rows * cols // 4, 4 * dim)
    h = _layernorm(b, f"{site}.norm", h, w, 4 * dim, eps)
    return b.linear(f"{site}.reduction", h, w.take(f"{site}.reduction.weight", 2 * dim, 4 * dim), None)


def relative_position_index(window: int) -> Array:
    """(w*w, w*w) rows of the bias table: (delta row + w - 1) * (2w - 1) + delta column + w - 1."""
    at = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    delta = at[:, :, None] - at[:, None, :] + window - 1
    return delta[0] * (2 * window - 1) + delta[1]


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> Array:
    """(windows, w*w, w*w) float32: -100 between tokens that the roll brought together from apart, else 0."""
    bands = [np.searchsorted([n - window, n - shift], np.arange(n), side="right") for n in grid]
    region = 3 * bands[0][:, None] + bands[1][None, :]
    rows, cols = grid
    tiles = region.reshape(rows // window, window, cols // window, window).transpose(0, 2, 1, 3)
    group = tiles.reshape(-1, window * window)
    return np.where(group[:, :, None] == group[:, None, :], 0.0, -100.0).astype(np.float32)


# ------------------------------------------------------------------------------------------- import

BUILDERS = {"vit": build_vit, "swin": build_swin}
OPTIONS = frozenset({"num_heads", "img_size", "layer_norm_eps", "mean", "std", "resize"})
HUGGING_FACE = re.compile(r"((vit|deit|swin|dinov2\w*)\.)?(embeddings|encoder\.layers?)\..*")
WRAPPER = "timm_model."
"""What transformers puts before the names of timm's tensors."""


def import_timm(path: str | Path, **options: Any) -> onnx.ModelProto:
    """Weights file -> float ONNX.

    Options (num_heads, img_size, layer_norm_eps, mean, std) go before the file's metadata, that before a `config.json`
    beside the file. What nothing tells is assumed; the model's metadata says so under `assumed`.
    """
    for key in options:
        if key not in OPTIONS:
            raise IntvitError(f"import: option must be one of {', '.join(sorted(OPTIONS))}, not {key!r}")
    path = Path(path)
    options = checked_options("", options)
    tensors, metadata = load_weights(path)
    if any(name.startswith(WRAPPER) for name in tensors):
        tensors = {name[len(WRAPPER) :]: tensor for name, tensor in tensors.items() if name.startswith(WRAPPER)}
    if not tensors:
        raise IntvitError(f"{path}: must hold float tensors, and holds none")
    from intvit.floats.importers import ivit  # it builds on this module

    config = path.with_name("config.json")
    found = timm_config(config, tensors) if config.is_file() else {}
    try:
        if ivit.is_ivit(tensors):
            return ivit.build_ivit(tensors, {**found, **metadata, **options})
        for name in tensors:
            if HUGGING_FACE.fullmatch(name):
                raise IntvitError(f"{name}: this is Hugging Face's naming; import the folder, with its config.json")
        kind = ivit.architecture(tensors)
        told = {**found, **metadata, **options}
        assumed = [*found.get("assumed", []), *_assumed(kind, told, tensors)]
        with np.errstate(all="ignore"):  # the Builder refuses what overflows
            return BUILDERS[kind](tensors, {**told, "one_shift": True, "assumed": assumed})
    except IntvitError as error:
        raise IntvitError(f"{path}: {error}") from None


def _assumed(kind: str, told: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[str]:
    """What decides the result and nothing tells: neither an option, nor metadata of our own, nor a config.json."""
    lines = []
    if "act" not in told and "architecture" not in told:
        lines.append("assumed: GELU in its exact form (erf); the weights do not tell")
        if {"cls_token", "head.weight"}.issubset(tensors) and not {"fc_norm.weight", "head_dist.weight"} & set(tensors):
            lines.append("assumed: the classifier reads the class token; the weights do not tell")
    if "layer_norm_eps" not in told:
        lines.append(f"assumed: LayerNorm epsilon {DEFAULT_EPS[kind]:g}; the weights do not tell (--layer-norm-eps)")
    if kind == "vit" and not {"head.weight", "fc_norm.weight"} & set(tensors):
        lines.append("assumed: the output is the normed tokens, for there is no classifier")
    return lines
