"""Changes of npy and npz (zip) files: headers, values, member lists and sizes that lie."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

import numpy as np
from fuzz_text import NUMBERS, STRINGS, Changed, mutate_bytes

DESCR = (
    "|O", "<i1", "<i4", "<i8", ">i4", "<u8", "|b1", "<f2", "<f4", ">f4", "<f8", "<f16", "<c8", "<c16", "|S5", "|S0",
    "<U4", "<U0",
    "<M8[ns]", "<m8[D]", "|V4", "|V0", "x", "", "<i3", "<f4,<i4", "S2147483647", "<U999999999", "object", "|u1", "=f4",
    "<f4\0",
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
            ["[('a', '<f4')]", "[('a', '<f4', (2, 2)), ('a', '<i4')]", "None", "[]", "('<f4', (3,))", "[('a', '|O')]",
             "3", "{'a': 1}",
             "[('', '<f4')]", "[('a', [('b', '<f4')])]", "('V8', 'a')"])  # fmt: skip
    elif name == "shape":
        shape = shape_text(rng, array.shape)
    elif name == "order":
        order = rng.choice(["True", "1", "None", "'F'", "[]"])
    elif name == "version":
        version = rng.choice([(2, 0), (3, 0), (4, 0), (0, 0), (1, 1), (255, 255)])
    elif name == "keys":
        text = rng.choice(["{'descr': %s, 'fortran_order': %s}",
                           "{'descr': %s, 'fortran_order': %s, 'shape': %s, 'x': 1}", "{}", "[]",
                           "(%s, %s, %s)", "{'descr': %s, 'fortran_order': %s, 'shape': %s", ""])  # fmt: skip
    elif name == "text":
        text = rng.choice(["(" * 3000, "__import__('os').mkdir('../outside/evaluated')", "{**{}}", "-" * 100_000,
                           "[" * 100_000, "\\", "{'a': 1e9999}",
                           "{'descr': %s, 'fortran_order': %s, 'shape': %s, }" + " " * 20_000, "{\n'descr': %s}",
                           "'" + "\\x00" * 50, "{1: 2, }"])  # fmt: skip
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
        kinds = [np.float16, np.float32, np.float64, np.longdouble, np.complex64, np.int8, np.uint8, np.int16,
                 np.uint16, np.int32,
                 np.uint32, np.int64, np.uint64, np.bool_, ">f4", ">i2"]  # fmt: skip
        with np.errstate(all="ignore"):
            changed = np.ascontiguousarray(array.astype(rng.choice(kinds)))
        if changed.dtype == np.longdouble and changed.ndim:  # ten bytes of value, the others are whatever was there
            changed[..., None].view(np.uint8)[..., 10:] = 0
        return changed
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
            (rng.choice([300, 600]), *array.shape[1:]), array.dtype if array.dtype.kind in "iuf" else np.uint8
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
    name, _ = members[which]
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
        (b"PK\3\4", {"version": (4, 2), "flags": (6, 2), "method": (8, 2), "crc": (14, 4), "packed": (18, 4),
                     "size": (22, 4), "name": (26, 2), "extra": (28, 2)}),
        (b"PK\1\2", {"flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4),
                     "name": (28, 2), "extra": (30, 2), "comment": (32, 2), "offset": (42, 4)}),
        (b"PK\5\6", {"disk": (4, 2), "entries": (8, 2), "total": (10, 2), "length": (12, 4), "offset": (16, 4),
                     "comment": (20, 2)}),
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
    name = rng.choice(["bytes", "patch", "patch", "drop", "double", "rename", "member", "member", "member", "add",
                       "method", "lead", "order",
                       "nested", "comment", "bomb", "swap"])  # fmt: skip
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(info.file_size for info in file.infolist()) > 1 << 28:  # a bomb of an earlier change
                return mutate_bytes(rng, data)
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
