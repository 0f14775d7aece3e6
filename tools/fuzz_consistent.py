"""Changes of recordings, traces and golden bundles that keep all digests true: what another tool might write."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from fuzz_arrays import other_array
from fuzz_text import FLOATS, change_value, number


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------------------- recordings


def mutate_recording(rng: Random, path: Path) -> str:
    """Other activations, or another description, with the digests of all chunks and of the whole made anew."""
    with h5py.File(path, "r+") as file:
        about, digests = json.loads(bytes(file["recording.json"][()])), np.asarray(file["digests"])
        if rng.random() < 0.6:
            what = _activations(rng, file, about, digests)
        else:
            _, what, _ = change_value(rng, about)
            if isinstance(about, dict):
                for key in sorted(set(about) & set(file.attrs)):
                    value = about[key]
                    if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63):
                        file.attrs[key] = value
        text = json.dumps(about, sort_keys=True).encode()
        for name, value in (("recording.json", np.bytes_(text)), ("digests", digests)):
            del file[name]
            file.create_dataset(name, data=value)
        file.attrs["sha256"] = sha256(hashlib.sha256(text).digest() + digests.tobytes())
    return f"recording {what}"


def _activations(rng: Random, file: h5py.File, about: Any, digests: np.ndarray) -> str:
    """Write chunks of other values, or ones that are no chunks."""
    names = sorted(file["activations"])
    key = rng.choice(names)
    data = file["activations"][key]
    k = next(k for k, tensor in enumerate(about["tensors"]) if tensor["name"] == data.attrs["site"])
    kind = rng.choice(["edge", "edge", "all", "constant", "large", "small", "garbage", "bomb", "short"])
    for image in range(len(data)) if rng.random() < 0.5 else [rng.randrange(len(data))]:
        values = np.asarray(data[image]).copy()
        if kind == "edge":
            with np.errstate(all="ignore"):
                values.reshape(-1)[rng.randrange(values.size)] = np.float32(rng.choice(FLOATS))
        elif kind == "all":
            values[:] = np.float32(rng.choice([0.0, 1e-45, 1e30, -1e38, float("nan"), float("inf"), 1.0]))
        elif kind == "constant":
            values[:] = 0.25
        elif kind in ("large", "small"):
            with np.errstate(all="ignore"):
                values *= np.float32(1e20 if kind == "large" else 1e-20)
        planes = values.reshape(-1).view(np.uint8).reshape(-1, 4).T
        raw = np.ascontiguousarray(planes).tobytes()
        if kind == "short":
            raw = raw[:-4]
        chunk = rng.randbytes(50) if kind == "garbage" else zlib.compress(bytes(64 << 20) if kind == "bomb" else raw, 1)
        data.id.write_direct_chunk((image,) + (0,) * (data.ndim - 1), chunk)
        digests[image, k] = np.frombuffer(hashlib.sha256(chunk).digest(), np.uint8)
    return f"{key} {kind}"


# ------------------------------------------------------------------------------------------- traces


def mutate_trace(rng: Random, path: Path) -> str:
    """Another claim about a tensor, or other values, with its digests made anew."""
    with h5py.File(path, "r+") as file:
        key = "blocks.0.mlp.act"
        data = file["tensors"][key]
        what = rng.choice(["site", "op", "dtype", "encoding", "scale", "values", "graph_hash"])
        if what == "scale":
            data.attrs["scale"] = rng.choice([0.0, -1.0, float("nan"), 1e300])
        elif what == "graph_hash":
            file.attrs["graph_hash"] = rng.choice(["", "0" * 64])
        elif what == "values":
            array = other_array(rng, np.asarray(data))
            if array.shape != data.shape or array.dtype.kind not in "iu":
                array = np.zeros_like(data)
            data[...] = array
        else:
            data.attrs[what] = rng.choice(["", "s8", "log2", "x" * 300, "s99"])
        array = np.asarray(data)
        values = f"<i8{list(array.shape)}".encode() + np.ascontiguousarray(array, "<i8").tobytes()
        data.attrs["sha256"] = sha256(values)
        claims: dict[str, Any] = {name: data.attrs[name] for name in ("site", "op", "dtype", "encoding", "sha256")}
        claims |= {"name": key, "graph": file.attrs["graph_hash"], "shape": list(data.shape), "storage": data.dtype.str}
        claims["scale"] = np.asarray(data.attrs["scale"]).tolist()
        data.attrs["digest"] = sha256(json.dumps(claims, sort_keys=True).encode())
    return f"trace {what}"


# ------------------------------------------------------------------------------------------- golden


def mutate_golden(rng: Random, folder: Path) -> str:
    """Change a part, a case or the index, and make every file, name and digest of the bundle fit again."""
    index = json.loads((folder / "index.json").read_bytes())
    listed = rng.choice(index["parts"])
    at = folder / listed["folder"]
    case = at / f"image{rng.choice(listed['cases'])['image']}"
    part, manifest = (json.loads(path.read_bytes()) for path in (at / "part.json", case / "case.json"))
    kind = rng.choice(["values"] * 5 + ["manifest"] * 3 + ["part"] * 3 + ["facts"] * 4 + ["index", "both"])
    if kind == "values":
        what = _golden_values(rng, at, case, part, manifest)
    elif kind == "index":
        _, what, _ = change_value(rng, index)
    elif kind == "both":  # a fact that all cases, parts and the index state
        key = rng.choice(["spec_version", "graph_hash"])
        value = {"spec_version": number(rng, 1), "graph_hash": rng.choice(["0" * 64, "x"])}[key]
        what = f"{key} everywhere"
        for path in [*folder.glob("*/part.json"), *folder.glob("*/*/case.json")]:
            text = json.loads(path.read_bytes())
            text[key] = index[key] = value
            _write(path, text)
        manifest[key] = part[key] = value
    elif kind == "facts":
        found = [*part["parameters"], *part["tensors"].values(), *part["nodes"], *part["stimuli"], *part["expected"]]
        _, what, _ = change_value(rng, rng.choice(found))
    else:
        _, what, _ = change_value(rng, manifest if kind == "manifest" else part)
    _write(case / "case.json", manifest)
    _write(at / "part.json", part)
    parts = index.get("parts", []) if isinstance(index, dict) else []
    for other in parts if isinstance(parts, list) else []:
        place = folder / str(other.get("folder")) if isinstance(other, dict) else folder / "none"
        entries = [(place / "part.json", other)]
        entries += [
            (place / f"image{entry.get('image')}" / "case.json", entry)
            for entry in (other.get("cases") if isinstance(other, dict) else None) or []
            if isinstance(entry, dict)
        ]
        for path, entry in entries:
            if path.is_file():
                entry["sha256"] = sha256(path.read_bytes())
    if isinstance(index, dict):
        index["digest"] = ""
        index["digest"] = sha256(json_bytes(index))
    _write(folder / "index.json", index)
    return f"golden {listed['folder']} {kind} {what}"


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def _write(path: Path, value: Any) -> None:
    path.write_bytes(json_bytes(value))


def _golden_values(rng: Random, at: Path, case: Path, part: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Other integers in one array, of the part or of the case: its archive, its hex file and its digests follow."""
    from intvit.graph.inttypes import IntType
    from intvit.vectors.memh import format_memh
    from intvit.vectors.npz import format_npz

    of_part = bool(part["parameters"]) and rng.random() < 0.4
    place, npz, text = (at, "parameters.npz", part) if of_part else (case, "case.npz", manifest)
    ports = [{"key": port["key"], **part["tensors"][port["tensor"]]} for port in (*part["stimuli"], *part["expected"])]
    signals = part["parameters"] if of_part else ports
    with np.load(place / npz) as file:
        arrays = {name: file[name] for name in file.files}
    signal = rng.choice(signals)
    key, dtype = signal["key"], IntType.parse(signal["dtype"])
    array = arrays[key].astype(np.int64)
    edges = [dtype.min, dtype.max, 0, 1, -1, dtype.max // 2]
    if rng.random() < 0.3:
        array[...] = rng.choice(edges)
    else:
        flat = rng.randrange(array.size)
        array.reshape(-1)[flat] = rng.choice([*edges, int(array.reshape(-1)[flat]) + 1])
    if array.ndim and rng.random() < 0.2:
        array = array[..., ::-1].copy()
    arrays[key] = np.clip(array, dtype.min, dtype.max)
    digest = sha256(f"<i8{list(array.shape)}".encode() + np.ascontiguousarray(arrays[key], "<i8").tobytes())
    if of_part:
        signal["sha256"] = digest
    else:
        manifest["signals"][key] = digest
    types = {s["key"]: (IntType.parse(s["dtype"]), tuple(s["shape"])) for s in signals if s["key"] in arrays}
    if set(types) == set(arrays):
        (place / npz).write_bytes(format_npz(arrays, types))
    if f"{key}.hex" in text["files"]:
        first = (place / f"{key}.hex").read_bytes().partition(b"\n")[0][3:].decode()
        (place / f"{key}.hex").write_bytes(format_memh(arrays[key], dtype, first))
    text["files"] = {name: sha256((place / name).read_bytes()) for name in text["files"]}
    return str(key)
