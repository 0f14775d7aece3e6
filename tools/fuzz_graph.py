"""Changes of integer graphs that keep their content hash true: what a careless or hostile tool would write."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from fuzz_arrays import other_array
from fuzz_hdf5 import objects
from fuzz_text import change_value

_ARRAYS: dict[str, dict[str, np.ndarray]] = {}
"""Constants of each seed graph, read once."""


def constants(path: Path) -> dict[str, np.ndarray]:
    """Every array of an unchanged seed graph by its place."""
    if path.name not in _ARRAYS:
        with h5py.File(path, "r") as file:
            places = [name for name in objects(file) if name.startswith("arrays/")]
            _ARRAYS[path.name] = {
                name: np.asarray(file[name]) for name in places if isinstance(file[name], h5py.Dataset)
            }
    return _ARRAYS[path.name]


def mutate_graph(rng: Random, path: Path) -> str:
    """Change constants, attributes or types of a seed graph, then write the content hash that fits."""
    arrays = dict(constants(path))
    with h5py.File(path, "r+") as file:
        text = json.loads(file["graph.json"][()])
        changed: dict[str, np.ndarray] = {}
        what = ", ".join(
            _graph_change(rng, {**arrays, **changed}, changed, text) for _ in range(rng.choice([1, 1, 1, 2]))
        )
        for place, array in changed.items():
            if place in file:
                del file[place]
            file.create_dataset(place, data=array)
        del file["graph.json"]
        written = json.dumps(text, sort_keys=True)
        file.create_dataset("graph.json", data=np.bytes_(written))
        file.attrs["text_sha256"] = hashlib.sha256(written.encode()).hexdigest()
        file.attrs["content_hash"] = content_hash(text, {**arrays, **changed})
    return f"graph {what}"


def content_hash(text: Any, arrays: dict[str, np.ndarray]) -> str:
    """The hash that an integer graph of this text and these constants must have, written down once more."""
    hashed = {key: value for key, value in text.items() if key != "sources"} if isinstance(text, dict) else text
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    with contextlib.suppress(TypeError, KeyError):  # what is no graph has no hash
        for node in text["nodes"]:
            for key in sorted(node["arrays"]):
                array = arrays[f"arrays/{node['name']}/{key}"]
                kind = "<i8" if array.dtype.kind in "iub" else "<f8"
                values = hashlib.sha256(
                    f"{kind}{list(array.shape)}".encode() + np.ascontiguousarray(array, kind).tobytes()
                )
                digest.update(f"{node['name']}/{key} {values.hexdigest()}\n".encode())
    return digest.hexdigest()


EDGES = (
    0,
    1,
    -1,
    2,
    30,
    31,
    32,
    62,
    63,
    64,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**61,
    2**62,
    2**63 - 1,
    -(2**31),
    -(2**62),
    -(2**63),
)


def _graph_change(
    rng: Random, arrays: dict[str, np.ndarray], changed: dict[str, np.ndarray], text: dict[str, Any]
) -> str:
    """One change of `text`, or of a constant: that goes to `changed`."""
    nodes, tensors = text["nodes"], text["tensors"]
    node, tensor = rng.choice(nodes), rng.choice(tensors)
    with_arrays = [n for n in nodes if n["arrays"]]
    kind = rng.choice(["constant"] * 8 + ["shape", "type", "dtype", "bound", "scale", "encoding", "tensor shape",
                                          "attrs", "attrs", "attrs",
                       "params", "params", "params", "op", "inputs", "output", "name", "metadata", "outputs", "drop",
                       "order", "extra array", "json"])  # fmt: skip
    if kind in ("constant", "shape", "type") and with_arrays:
        node = rng.choice(with_arrays)
        key = rng.choice(node["arrays"])
        place = f"arrays/{node['name']}/{key}"
        array = arrays[place]
        what = f"{place} {kind}"
        if kind == "constant":
            array = array.astype(np.int64) if array.dtype.kind in "iu" else array
            value = rng.choice(EDGES) if rng.random() < 0.7 else int(array.reshape(-1)[0]) + rng.choice([-1, 1, 2, 100])
            if array.dtype.kind == "i":
                every = rng.random() < 0.3
                array = array.copy()
                array.reshape(-1)[slice(None) if every else rng.randrange(array.size)] = max(
                    min(value, 2**63 - 1), -(2**63)
                )
                what += f" = {value}{' everywhere' if every else ''}"
        else:
            array = other_array(rng, array)
            array = array if array.dtype.kind in "iufb" else np.zeros(3)
            what += f" {array.dtype} {array.shape}"
        changed[place] = array
        return what
    if kind == "dtype":
        tensor["dtype"] = rng.choice(
            ["s2", "s4", "s8", "u8", "s16", "u16", "s32", "s33", "s48", "s64", "u63", "u64", "s1", "s128", None, "u1"]
        )
        return f"{tensor['name']} dtype {tensor['dtype']}"
    if kind == "bound":
        tensor["bound"] = rng.choice(
            [0, 1, 127, 128, 2**15, 2**24, 2**31 - 1, 2**62, 2**63, 2**70, -1, None, 1.5, True]
        )
        return f"{tensor['name']} bound {tensor['bound']}"
    if kind == "scale":
        tensor["scale"] = rng.choice(
            [0.0, -1.0, 1e-320, 1e300, float("nan"), float("inf"), 1, [1.0], [[1.0]], None, "1", [1.0] * 8, 2.0, True]
        )
        return f"{tensor['name']} scale {tensor['scale']}"
    if kind == "encoding":
        tensor["encoding"] = rng.choice(["log2", "linear", "x", None])
        return f"{tensor['name']} encoding {tensor['encoding']}"
    if kind == "tensor shape":
        shape = tensor["shape"]
        tensor["shape"] = rng.choice(
            [
                shape[::-1],
                [*shape, 1],
                [1, *shape],
                [],
                [0],
                [2**40],
                [-1],
                shape[:-1],
                [n * 2 for n in shape],
                "x",
                [1.0],
            ]
        )
        return f"{tensor['name']} shape {tensor['shape']}"
    with_params = [n for n in nodes if "params" in n["attrs"]]
    if kind == "params" and with_params:
        node = rng.choice(with_params)
        params = node["attrs"]["params"]
        if params:
            key = rng.choice(list(params))
            old = params[key]
            near = old + rng.choice([-1, 1]) if isinstance(old, int) else old
            params[key] = rng.choice([rng.choice(EDGES), near, near, None, 1.5, str(old), [old], True, 2**70])
            return f"{node['name']} params.{key} = {params[key]}"
    with_attrs = [n for n in nodes if n["attrs"]]
    if kind == "attrs" and with_attrs:
        node = rng.choice(with_attrs)
        _, what, _ = change_value(rng, node["attrs"])
        return f"{node['name']} attrs {what}"
    if kind == "op":
        node["op"] = rng.choice(
            [
                "softmax",
                "gelu",
                "layernorm",
                "linear",
                "matmul",
                "log2_matmul",
                "requantize",
                "mean",
                "reshape",
                "transpose",
                "take",
                "slice",
                "concat",
            ]
        )
        return f"{node['name']} op {node['op']}"
    if kind == "inputs":
        node["inputs"] = rng.choice(
            [[], node["inputs"] * 2, node["inputs"][::-1], [rng.choice(tensors)["name"]], [node["output"]]]
        )
        return f"{node['name']} inputs {node['inputs']}"
    if kind in ("output", "name"):
        node[kind] = rng.choice([rng.choice(nodes)[kind], rng.choice(tensors)["name"], "x"])
        return f"node {kind} {node[kind]}"
    if kind == "outputs":
        text["outputs"] = rng.choice([[], [rng.choice(tensors)["name"]], text["inputs"], text["outputs"] * 2])
        return f"outputs {text['outputs']}"
    if kind == "drop":
        del rng.choice([nodes, tensors])[rng.randrange(min(len(nodes), len(tensors)))]
        return "one dropped"
    if kind == "order":
        rng.shuffle(rng.choice([nodes, tensors]))
        return "order"
    if kind == "extra array" and with_arrays:
        key = rng.choice(["mask", "bias", "residual", "residual_m", "residual_e", "part0", "m", "x"])
        source = rng.choice(with_arrays)
        place = f"arrays/{node['name']}/{key}"
        if place not in arrays:
            changed[place] = arrays[f"arrays/{source['name']}/{source['arrays'][0]}"]
            node["arrays"] = sorted([*node["arrays"], key])
        return f"{place} extra"
    target = text["metadata"] if kind == "metadata" else text
    _, what, _ = change_value(rng, target)
    return f"{kind} {what}"
