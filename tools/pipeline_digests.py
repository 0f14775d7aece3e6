#!/usr/bin/env python3
"""One digest per uniform model over all its integer constants and all its tensors: what a change of structure keeps.

    python tools/pipeline_digests.py                 compare with golden/pipeline; exit 1 if one differs
    python tools/pipeline_digests.py --write         write them, with the ranges that the models are lowered with

The stored ones were made by commit b2db6e3. The ranges are stored too, since float activations differ in their last
bits between machines: what follows from them does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.engine import Engine
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.model import FloatModel
from intvit.graph.ir import Graph, tensor_hash
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "pipeline"
MODELS = {"vit": WEIGHTS, "swin": SWIN_WEIGHTS}
METHODS = ("ibert", "fqvit", "ivit")


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 1, 28, 28)).astype(np.float32)


def ranges_of(model: FloatModel, graph: Graph) -> dict[str, object]:
    """Extremes of every tensor and the largest variances of LayerNorm rows, on 16 seeded images."""
    tensors = model.run(images(16, 1), [model.input, *model.sites()])
    variances = {}
    for node in graph.nodes:
        if node.op == "layernorm" and node.inputs[0] in tensors:
            rows = tensors[node.inputs[0]].astype(np.float64).reshape(-1, graph.tensors[node.inputs[0]].shape[-1])
            variances[node.name] = float(rows.var(axis=1).max()) * rows.shape[1]
    return {"ranges": {k: [float(v.min()), float(v.max())] for k, v in tensors.items()}, "variances": variances}


def digest(graph: Graph) -> str:
    """sha256 over the names and hashes of all constants, and of all tensors of two images."""
    found = hashlib.sha256()
    for node in graph.nodes:
        found.update(f"{node.name} {node.op} {json.dumps(dict(node.attrs), sort_keys=True)}\n".encode())
        for key in sorted(node.arrays):
            found.update(f"{key} {tensor_hash(node.arrays[key])}\n".encode())
    tensors = Engine(graph).run(images(2, 2), wanted=list(graph.tensors))
    for name in sorted(tensors):
        found.update(f"{name} {tensor_hash(tensors[name])}\n".encode())
    return found.hexdigest()


def digests(stored: dict[str, dict[str, object]]) -> dict[str, str]:
    """Model, method and width -> digest, lowered with the stored ranges."""
    found = {}
    for name, weights in MODELS.items():
        graph = float_graph(import_timm(embedded(weights)))
        told = stored[name]
        known = {key: tuple(pair) for key, pair in told["ranges"].items()}
        for method in METHODS:
            for bits in (8, 6):
                recipe = build_recipe({"bits": bits}).with_method(method)
                integer = lower(graph, Calibration(known, told["variances"]), recipe)
                found[f"{name} {method} {bits}"] = digest(integer)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.write:
        stored = {}
        for name, weights in MODELS.items():
            model = FloatModel(import_timm(embedded(weights)), threads=1)
            stored[name] = ranges_of(model, float_graph(model.proto))
        args.folder.mkdir(parents=True, exist_ok=True)
        (args.folder / "ranges.json").write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
        (args.folder / "digests.json").write_text(json.dumps(digests(stored), indent=1, sort_keys=True) + "\n")
        return 0
    expected = json.loads((args.folder / "digests.json").read_text())
    found = digests(json.loads((args.folder / "ranges.json").read_text()))
    for key in sorted(expected):
        print(f"{key}: {'equal' if found.get(key) == expected[key] else f'differs: {found.get(key)}'}")
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main())
