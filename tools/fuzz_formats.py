"""Changes of safetensors and PNG files: headers, chunks and sizes that lie."""

from __future__ import annotations

import json
import struct
import zlib
from random import Random

import numpy as np
from fuzz_arrays import other_array
from fuzz_text import STRINGS, Changed, mutate_bytes, mutate_json

# -------------------------------------------------------------------------------------- safetensors


def mutate_safetensors(rng: Random, data: bytes) -> Changed:
    """The JSON header and its length; offsets, shapes, types and names in it; the metadata; the values."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header, body = data[8 : 8 + length], data[8 + length :]
        table = json.loads(header)
    except Exception:
        return mutate_bytes(rng, data)
    name = rng.choice(
        [
            "bytes",
            "json",
            "json",
            "length",
            "metadata",
            "offsets",
            "values",
            "values",
            "tensor",
            "tensor",
            "dtype",
            "shape",
        ]
    )
    keys = [key for key in table if key != "__metadata__"]
    what = ""
    if name == "bytes" or not keys:
        return mutate_bytes(rng, data)
    key = rng.choice(keys)
    if name == "json":
        header, what = mutate_json(rng, header)
    elif name == "length":
        length = rng.choice([0, 1, length - 1, length + 1, len(data), 2**63, 2**64 - 1, 100_000_000, 99_999_999])
        return struct.pack("<Q", length) + header + body, f"safetensors length {length}"
    elif name == "metadata":
        old = table.get("__metadata__", {}).get("intvit", '{"num_heads": 2}').encode()
        new, what = mutate_json(rng, old)
        table["__metadata__"] = rng.choice(
            [{"intvit": new.decode("utf-8", "replace")}] * 8 + [{}, {"intvit": ""}, {"format": "pt"}, {"intvit": 3}, []]
        )
    elif name == "offsets":
        table[key]["data_offsets"] = rng.choice(
            [[0, 0], [0, len(body) + 1], [4, 0], [0, 2**64], table[rng.choice(keys)]["data_offsets"], [0], "x"]
        )
    elif name == "dtype":
        table[key]["dtype"] = rng.choice(
            ["F16", "BF16", "F64", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "X", "C64"]
        )
    elif name == "shape":
        shape = table[key]["shape"]
        table[key]["shape"] = rng.choice(
            [shape[::-1], [*shape, 1], [int(np.prod(shape))], [-1], [2**32, 2**32], [0], [], [1.0], shape[:-1]]
        )
    elif name in ("values", "tensor"):
        return rewritten(rng, data, key)
    if name != "json":
        header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body, f"safetensors {name} {key[:40]} {what}"


def rewritten(rng: Random, data: bytes, key: str) -> Changed:
    """A well-formed file with one tensor of other values, shape, type or name, or with one more or less."""
    from safetensors.numpy import load, save

    try:
        tensors = dict(sorted(load(data).items()))  # it gives them in no order
    except Exception:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    name = rng.choice(["array", "array", "array", "drop", "rename", "swap", "extra", "cast"])
    other = rng.choice(sorted(tensors))
    if name == "array":
        tensors[key] = other_array(rng, tensors[key])
    elif name == "drop":
        del tensors[key]
    elif name == "rename":
        names = [
            *STRINGS,
            key.replace("0", "1"),
            f"module.{key}",
            f"model.{key}",
            key + ".",
            f"blocks.999999999.{key}",
            other + "_x",
        ]
        tensors[rng.choice(names)] = tensors.pop(key)
    elif name == "swap":
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif name == "extra":
        names = ["reg_token", "head_dist.weight", "norm_pre.weight", "fc_norm.weight", "blocks.0.ls1.gamma",
                 "blocks.0.attn.q_norm.weight", "dist_token",
                 "blocks.1.norm1.weight", "layers.0.blocks.0.attn.attn_mask",
                 "blocks.0.attn.relative_position_bias_table", "logit_scale", "extra",
                 "qact_input.act_scaling_factor", "blocks.0.mlp.fc1_g.weight", "pos_embed.weight"]  # fmt: skip
        tensors[rng.choice(names)] = other_array(rng, tensors[key]) if rng.random() < 0.5 else tensors[other].copy()
    elif name == "cast":
        kind = rng.choice([np.float16, np.float64, np.int64, np.uint8])
        with np.errstate(all="ignore"):
            tensors = {k: v.astype(kind) for k, v in tensors.items()}
    try:
        tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        return save(tensors, metadata=metadata), f"safetensors {name} {key}"
    except Exception:
        return mutate_bytes(rng, data)


# ------------------------------------------------------------------------------------------- images


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_bytes(parts: list[tuple[bytes, bytes]], bad: int | None = None) -> bytes:
    body = b"\x89PNG\r\n\x1a\n"
    for i, (kind, content) in enumerate(parts):
        crc = zlib.crc32(kind + content) ^ (1 if i == bad else 0)
        body += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
    return body


def mutate_png(rng: Random, data: bytes) -> Changed:
    """Chunks: sizes that lie, other kinds and depths, doubled, dropped, bombs in text and profile chunks."""
    if not data.startswith(b"\x89PNG"):
        return mutate_bytes(rng, data)
    parts = chunks_of(data)
    name = rng.choice(
        ["bytes", "size", "size", "kind", "crc", "drop", "double", "order", "text", "extra", "body", "thin"]
    )
    if name == "bytes" or not parts or len(parts[0][1]) != 13:
        return mutate_bytes(rng, data)
    header = bytearray(parts[0][1])
    if name in ("size", "thin"):
        sides = [0, 1, 2, 7, 8, 9, 100, 60_000, 65_535, 10**6, 2**31 - 1, 2**32 - 1]
        width, height = (
            rng.choice([(60_000, 1), (1, 60_000), (30_000, 2)])
            if name == "thin"
            else (rng.choice(sides), rng.choice(sides))
        )
        header[:8] = struct.pack(">II", width, height)
        if name == "thin":
            header[8:10] = b"\x08\x00"
            parts = [(b"IHDR", bytes(header)), (b"IDAT", zlib.compress(bytes((width + 1) * height))), (b"IEND", b"")]
    elif name == "kind":
        header[8:13] = bytes(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255]) for _ in range(5))
    parts[0] = (parts[0][0], bytes(header))
    which, bad = rng.randrange(len(parts)), None
    if name == "crc":
        bad = which
    elif name == "drop":
        del parts[which]
    elif name == "double":
        parts.insert(which, parts[which])
    elif name == "order":
        rng.shuffle(parts)
    elif name == "text":
        zeros = zlib.compress(bytes(rng.choice([1 << 10, 80 << 20])))
        parts.insert(
            1,
            rng.choice(
                [
                    (b"zTXt", b"key\0\0" + zeros),
                    (b"iCCP", b"name\0\0" + zeros),
                    (b"iTXt", b"key\0\1\0\0\0" + zeros),
                    (b"tEXt", b"x" * 1000),
                ]
            ),
        )
    elif name == "extra":
        parts.insert(
            which,
            (
                rng.choice(
                    [
                        b"PLTE",
                        b"tRNS",
                        b"gAMA",
                        b"acTL",
                        b"fcTL",
                        b"fdAT",
                        b"eXIf",
                        b"pHYs",
                        b"\0\0\0\0",
                        b"IEND",
                        b"IHDR",
                    ]
                ),
                rng.randbytes(rng.choice([0, 1, 3, 9, 26])),
            ),
        )
    elif name == "body":
        parts[which] = (parts[which][0], mutate_bytes(rng, parts[which][1])[0])
    return png_bytes(parts, bad), f"png {name}"
