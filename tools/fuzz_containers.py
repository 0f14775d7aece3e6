"""Changes of npy, npz (zip), safetensors and PNG files: headers, member lists and sizes that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

import numpy as np
from fuzz_text import NUMBERS, STRINGS, Changed, mutate_bytes, mutate_json

DESCR = (
    "|O", "<i1", "<i4", "<i8", ">i4", "<u8", "|b1", "<f2", "<f4", ">f4", "<f8", "<f16", "<c8", "<c16", "|S5", "|S0", "<U4", "<U0",
    "<M8[ns]", "<m8[D]", "|V4", "|V0", "x", "", "<i3", "<f4,<i4", "S2147483647", "<U999999999", "object", "|u1", "=f4", "<f4\0",
)  # fmt: skip


class Canary:
    """Unpickled, it makes a folder: nothing that reads foreign files may do so."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def canary() -> bytes:
    return pickle.dumps(Canary("../outside/unpickled"), protocol=2)


# ---------------------------------------------------------------------------------------------- npy


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def header_bytes(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    body = text.encode("latin-1" if version < (3, 0) else "utf-8", "replace")
    body += b" " * (-(len(body) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(body) % (65536 if version == (1, 0) else 1 << 32))
    return b"\x93NUMPY" + bytes(version) + size + body


def shape_text(rng: Random, shape: tuple[int, ...]) -> str:
    lengths = list(shape)
    if lengths and rng.random() < 0.6:
        lengths[rng.randrange(len(lengths))] = rng.choice([*NUMBERS, 0, 10**9, 10**6, 5 * 10**8])
    else:
        lengths = rng.choice(
            [[], [0], lengths[::-1], [*lengths, 1], lengths[:-1], [1] * 64, [1] * 65, [2**31, 2**31, 4], [10**9]]
        )
    text = repr(tuple(lengths)) if len(lengths) != 1 else f"({lengths[0]},)"
    return rng.choice(
        [text] * 6 + [f"[{text[1:-1]}]", f"({text},)", "(1.5,)", "(True,)", "('3',)", "None", "3", "(-1,)"]
    )


def mutate_npy(rng: Random, data: bytes) -> Changed:
    """The header's text, version, length or type; the values; or the bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return mutate_bytes(rng, data)
    name = rng.choice(
        ["descr", "shape", "order", "version", "keys", "text", "length", "pickle", "array", "array", "body"]
    )
    descr, shape, order = repr(array.dtype.str), repr(array.shape), "False"
    body, version = array.tobytes(), (1, 0)
    text = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }"
    if name == "descr":
        descr = repr(rng.choice(DESCR)) if rng.random() < 0.7 else rng.choice(
            ["[('a', '<f4')]", "[('a', '<f4', (2, 2)), ('a', '<i4')]", "None", "[]", "('<f4', (3,))", "[('a', '|O')]", "3", "{'a': 1}",
             "[('', '<f4')]", "[('a', [('b', '<f4')])]", "('V8', 'a')"])  # fmt: skip
    elif name == "shape":
        shape = shape_text(rng, array.shape)
    elif name == "order":
        order = rng.choice(["True", "1", "None", "'F'", "[]"])
    elif name == "version":
        version = rng.choice([(2, 0), (3, 0), (4, 0), (0, 0), (1, 1), (255, 255)])
    elif name == "keys":
        text = rng.choice(["{'descr': %s, 'fortran_order': %s}", "{'descr': %s, 'fortran_order': %s, 'shape': %s, 'x': 1}", "{}", "[]",
                           "(%s, %s, %s)", "{'descr': %s, 'fortran_order': %s, 'shape': %s", ""])  # fmt: skip
    elif name == "text":
        text = rng.choice(["(" * 3000, "__import__('os').mkdir('../outside/evaluated')", "{**{}}", "-" * 100_000, "[" * 100_000, "\\", "{'a': 1e9999}",
                           "{'descr': %s, 'fortran_order': %s, 'shape': %s, }" + " " * 20_000, "{\n'descr': %s}", "'" + "\\x00" * 50, "{1: 2, }"])  # fmt: skip
    elif name == "pickle":
        return header_bytes(f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}") + canary(), "npy pickle"
    elif name == "array":
        changed = other_array(rng, array)
        try:
            return npy_bytes(changed), f"npy array {changed.dtype} {changed.shape}"
        except ValueError:
            return mutate_bytes(rng, data)
    elif name == "body":
        body = rng.choice([body[:-1], body + b"x", b"", body[: len(body) // 2], body * 3])
    n_fields = text.count("%s")
    header = header_bytes(text % (descr, order, shape)[:n_fields] if n_fields else text, version)
    if name == "length":
        at = rng.choice([0, 1, 10, 117, 119, 65535])
        header = header[:8] + struct.pack("<H", at) + header[10:]
    return header + body, f"npy {name}"


def other_array(rng: Random, array: np.ndarray) -> np.ndarray:
    """Other values, types or shapes of an array."""
    name = rng.choice(
        ["value", "value", "values", "dtype", "shape", "nan", "empty", "scalar", "string", "record", "axes", "huge"]
    )
    seeded = np.random.default_rng(rng.randrange(2**32))
    if name in ("value", "nan") and array.size and array.dtype.kind in "iufb":
        changed = array.copy()
        at = rng.randrange(array.size)
        if array.dtype.kind == "f":
            edges = (
                [np.nan, np.inf, -np.inf] if name == "nan" else [0, -0.0, 1e-45, 1e-30, 3e38, -3e38, 1e10, 1.0, 1e300]
            )
        else:
            edges = list(NUMBERS)
        with np.errstate(all="ignore"):
            value = rng.choice(edges)
            changed.reshape(-1)[at] = (
                value if array.dtype.kind == "f" else np.array(value % 2**64, np.uint64).astype(array.dtype)
            )
        return changed
    if name == "values":
        scale = rng.choice([0, 1e-20, 1, 1e6, 1e20, 1e38])
        with np.errstate(all="ignore"):
            return (seeded.normal(size=array.shape) * scale).astype(
                array.dtype if array.dtype.kind in "iuf" else np.float32
            )
    if name == "dtype" and array.dtype.kind in "iufb":
        kinds = [np.float16, np.float32, np.float64, np.longdouble, np.complex64, np.int8, np.uint8, np.int16, np.uint16, np.int32,
                 np.uint32, np.int64, np.uint64, np.bool_, ">f4", ">i2"]  # fmt: skip
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(kinds))
    if name == "shape":
        axes = list(array.shape)
        choice = rng.randrange(6)
        if choice == 0:
            return array.reshape(-1)
        if choice == 1:
            return array[None]
        if choice == 2 and axes:
            return array[: max(0, axes[0] - 1)]
        if choice == 3 and axes:
            return np.concatenate([array, array])
        return array[..., None] if choice == 4 else array.reshape(1, *axes, 1)
    if name == "axes" and array.ndim > 1:
        return np.ascontiguousarray(array.T)
    if name == "empty":
        return np.zeros(rng.choice([(0,), (0, *array.shape[1:]), (*array.shape[:-1], 0)]), array.dtype)
    if name == "scalar":
        return np.array(rng.choice([0, 1.5, -1]))
    if name == "string":
        return np.array(rng.choice([list(STRINGS[:5]), "x"]))
    if name == "record":
        return np.zeros(3, [("a", "<f4"), ("b", "<i8")])
    if name == "huge" and rng.random() < 0.2:
        return np.zeros(
            (rng.choice([300, 3000]), *array.shape[1:]), array.dtype if array.dtype.kind in "iuf" else np.uint8
        )
    return array[::-1].copy() if array.ndim else array


# ---------------------------------------------------------------------------------------------- zip


def bomb(n_bytes: int) -> bytes:
    """A deflated stream of `n_bytes` zeros (rounded up), small and quickly made."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * -(-n_bytes >> 20) + packer.flush()


def zip_bytes(members: list[tuple[str, bytes]], compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file.writestr(info, content)
    return stream.getvalue()


def bomb_member(members: list[tuple[str, bytes]], which: int, n_bytes: int) -> bytes:
    """The archive with one member blown up to `n_bytes` zeros behind an honest npy header."""
    name, content = members[which]
    header = header_bytes(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n_bytes >> 6}, 1, 8, 8), }}")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH) + bomb(n_bytes)
    plain = zip_bytes([*members[:which], (name, b""), *members[which + 1 :]], zipfile.ZIP_DEFLATED)
    local, central = plain.find(b"PK\3\4"), plain.rfind(b"PK\1\2")
    # rebuilt by hand: only this member
    encoded = name.encode()
    sizes = struct.pack("<III", 0, len(stream), (n_bytes + len(header)) & 0xFFFFFFFF)
    first = plain[local : local + 14] + sizes + struct.pack("<HH", len(encoded), 0) + encoded + stream
    entry = plain[central : central + 16] + sizes + struct.pack("<HHHHHII", len(encoded), 0, 0, 0, 0, 0, 0) + encoded
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(first), 0)
    return first + entry + end


def patch_zip(rng: Random, data: bytes) -> Changed:
    """One field of a local header, of the central directory or of the end record."""
    signature, fields = rng.choice([
        (b"PK\3\4", {"version": (4, 2), "flags": (6, 2), "method": (8, 2), "crc": (14, 4), "packed": (18, 4), "size": (22, 4), "name": (26, 2), "extra": (28, 2)}),
        (b"PK\1\2", {"flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4), "name": (28, 2), "extra": (30, 2), "comment": (32, 2), "offset": (42, 4)}),
        (b"PK\5\6", {"disk": (4, 2), "entries": (8, 2), "total": (10, 2), "length": (12, 4), "offset": (16, 4), "comment": (20, 2)}),
    ])  # fmt: skip
    starts = [i for i in range(len(data) - 3) if data[i : i + 4] == signature]
    if not starts:
        return mutate_bytes(rng, data)
    name = rng.choice(list(fields))
    offset, width = fields[name]
    values = [0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, len(data), 8, 9, 12, 14, 93, 99, 0x0801, 0x41]
    body = bytearray(data)
    for start in starts if rng.random() < 0.5 else [rng.choice(starts)]:
        value = rng.choice(values) % (1 << 8 * width)
        body[start + offset : start + offset + width] = value.to_bytes(width, "little")
    return bytes(body), f"zip {name} of {signature!r}"


def mutate_npz(rng: Random, data: bytes) -> Changed:
    """Members added, dropped, doubled, renamed, changed; other methods; fields that lie; bombs."""
    name = rng.choice(["bytes", "patch", "patch", "drop", "double", "rename", "member", "member", "member", "add", "method", "lead", "order",
                       "nested", "comment", "bomb", "swap"])  # fmt: skip
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()]
    except Exception:
        return mutate_bytes(rng, data)
    if name == "bytes" or not members:
        return mutate_bytes(rng, data)
    if name == "patch":
        return patch_zip(rng, data)
    which = rng.randrange(len(members))
    key, content = members[which]
    what, compression = key[:40], rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    if name == "drop":
        del members[which]
    elif name == "double":
        members.insert(
            rng.randrange(len(members) + 1), (key, mutate_npy(rng, content)[0] if rng.random() < 0.7 else content)
        )
    elif name == "rename":
        others = [*STRINGS, key.removesuffix(".npy"), key.upper(), key + ".npy", f"a/{key}", "../" + key]
        members[which] = (
            rng.choice(others).replace("\0", "0").encode("utf-8", "replace").decode()[:60000] or "e",
            content,
        )
    elif name == "member":
        content, what = mutate_npy(rng, content)
        members[which] = (key, content)
    elif name == "add":
        extra = rng.choice(
            [b"", canary(), npy_bytes(np.zeros((2, 2), np.float32)), npy_bytes(np.array(["a"])), b"\x80\x04."]
        )
        members.insert(
            rng.randrange(len(members) + 1),
            (rng.choice(["extra.npy", "extra", "labels.npy", "file.npy", "images.npy"]), extra),
        )
    elif name == "method":
        compression = rng.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    elif name == "order":
        rng.shuffle(members)
    elif name == "swap":
        other = rng.randrange(len(members))
        members[which], members[other] = (key, members[other][1]), (members[other][0], content)
    elif name == "bomb" and rng.random() < 0.1:
        return bomb_member(members, which, rng.choice([3 << 30, 400 << 20])), f"zip bomb in {key}"
    changed = zip_bytes(members, compression)
    if name == "lead":
        changed = rng.choice(
            [b"x" * 10 + changed, changed + b"y" * 10, changed + changed, changed[:-1], b"\x93NUMPY" + changed]
        )
    elif name == "nested":
        changed = zip_bytes([("a.npz", changed)], compression)
    elif name == "comment":
        changed = changed[:-2] + struct.pack("<H", 5) + b"PK\5\6."
    return changed, f"zip {name} {what}"


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
        tensors = load(data)
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
        names = ["reg_token", "head_dist.weight", "norm_pre.weight", "fc_norm.weight", "blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "dist_token",
                 "blocks.1.norm1.weight", "layers.0.blocks.0.attn.attn_mask", "blocks.0.attn.relative_position_bias_table", "logit_scale", "extra",
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
