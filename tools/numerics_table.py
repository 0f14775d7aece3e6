#!/usr/bin/env python3
"""What a datapath costs: the embedded models under every preset of numerics, on all 10,000 test images.

    python tools/numerics_table.py             # the table, on stdout; what is fetched goes to real-weights/
    python tools/numerics_table.py --write     # and into docs/numerics.md

Preset `accurate`, 8 bits, I-ViT's methods everywhere. What a datapath asks of the rest of a recipe (docs/numerics.md)
is asked for `hawq` beside it as well, so that only the numerics differ between the two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np
from real_weights import fashion_mnist, say, table, write_between

from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.analysis.sqnr import decibel
from intvit.engine import Engine
from intvit.floats.images import ImageSource, open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe
from intvit.spec.numerics import PRESETS

Array = np.ndarray[Any, Any]
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "numerics.md"
MARKS = "<!-- begin: python tools/numerics_table.py --write -->", "<!-- end -->"
MODELS = {"ViT": WEIGHTS, "Swin": SWIN_WEIGHTS}
ASKED: dict[str, dict[str, Any]] = {
    "deeploy": {"datapaths": {"layernorm": "hawq"}},
    "ita": {"softmax_bits": 8},
}
"""Of the rest of a recipe, by preset."""
N_CALIBRATION, BATCH = 64, 100


def logits(model: FloatModel, source: ImageSource, recipe: Any, test: ImageSource, n_images: int) -> Array:
    """(N, classes) of the integer model, as real numbers."""
    graph = float_graph(model.proto)
    integer = lower(graph, calibrate(graph, LiveActivations(model, source, N_CALIBRATION), recipe), recipe)
    engine, name = Engine(integer), integer.outputs[0]
    parts = [engine.run(test.read(at, min(at + BATCH, n_images)))[name] for at in range(0, n_images, BATCH)]
    return np.concatenate(parts) * integer.tensors[name].scale


def rows(folder: Path, n_images: int) -> list[list[str]]:
    found = []
    for title, weights in MODELS.items():
        model = FloatModel(import_timm(embedded(weights)))
        graph = float_graph(model.proto)
        shape = graph.tensors[graph.inputs[0]].shape
        options: dict[str, Any] = {"size": shape[1:], "channels": shape[0], "metadata": graph.metadata}
        source = open_images("fashion-mnist:calibration", **options)
        test = open_images(str(folder / "t10k.npz"), **options)
        n, labels = min(n_images, len(test)), test.labels
        assert labels is not None
        real = np.concatenate(
            [model.run(test.read(at, min(at + BATCH, n)))[graph.outputs[0]] for at in range(0, n, BATCH)]
        )
        usual: dict[str, Array] = {}
        for name in PRESETS:
            asked = ASKED.get(name, {})
            values = {"preset": "accurate", "bits": 8, **asked}
            if str(asked) not in usual:
                usual[str(asked)] = logits(model, source, build_recipe(values).with_method("ivit"), test, n)
            base = usual[str(asked)]
            recipe = build_recipe({**values, "numerics": name}).with_method("ivit")
            y = base if name == "hawq" else logits(model, source, recipe, test, n)
            sqnr = [decibel(float(np.sum(real**2)), float(np.sum((each - real) ** 2))) for each in (y, base)]
            hit = [100 * float(np.mean(each.argmax(axis=1) == labels[:n])) for each in (y, base)]
            changed = 100 * float(np.mean(y != base))
            other = 100 * float(np.mean(y.argmax(axis=1) != base.argmax(axis=1)))
            found.append([title, name, f"{hit[0]:.2f}", f"{hit[0] - hit[1]:+.2f}", f"{sqnr[0]:.2f}",
                          f"{sqnr[0] - sqnr[1]:+.2f}", f"{changed:.2f}", f"{other:.2f}"])  # fmt: skip
            say("  ".join(found[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("real-weights"), help="for what is fetched")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--write", action="store_true", help="into docs/numerics.md")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "t10k.npz").exists():
        fashion_mnist(args.folder, "t10k")
    headers = ["model", "numerics", "top-1 %", "less hawq", "SQNR, dB", "less hawq", "logits changed, %",
               "classes changed, %"]  # fmt: skip
    text = table(headers, rows(args.folder, args.images))
    if args.write:
        write_between(DOCUMENT, MARKS, text)
    print(text)


if __name__ == "__main__":
    main()
