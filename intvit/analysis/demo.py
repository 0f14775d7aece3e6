"""The demo: the whole pipeline on the embedded model and data, every stage through the public functions."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from intvit.analysis.outputs import outcomes, summary
from intvit.analysis.report import accuracy_table, mapping_table
from intvit.errors import IntvitError
from intvit.files import writing
from intvit.floats.images import open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording, record
from intvit.graph.store import load, save
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe
from intvit.mapping.candidates import PUBLISHED
from intvit.mapping.mapping import map_methods
from intvit.vectors.check import check
from intvit.vectors.export import export

if TYPE_CHECKING:
    from rich.console import Console

WEIGHTS, SWIN_WEIGHTS = "vit_fashion.safetensors", "swin_fashion.safetensors"
VECTOR_SITES = ("softmax", "gelu", "layernorm", "blocks.0.*", "logits")
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def embedded(name: str) -> Path:
    """Path of a file of the package data."""
    return Path(str(resources.files("intvit.floats") / "data" / name))


def run_demo(
    output: Path, *, n_test: int, n_calibration: int, threads: int | None, out: Console, progress: Progress
) -> None:
    """Run every stage into the folder `output`, which must not exist or be an earlier demo's."""
    marker = output / "demo.json"
    if os.path.exists(output) and not marker.is_file():
        raise IntvitError(f"{output}: must be a new folder or an earlier demo's, and is neither")
    shutil.rmtree(output, ignore_errors=True)
    with writing(output):
        output.mkdir(parents=True)
        marker.write_text("{}\n")
    start = time.monotonic()

    def say(text: str) -> None:
        out.print(f"[{time.monotonic() - start:5.1f} s] {text}", highlight=False, markup=False, soft_wrap=True)

    model_path, recording_path = output / "vit.onnx", output / "recording.h5"
    onnx.save(import_timm(embedded(WEIGHTS)), str(model_path))
    model = FloatModel(model_path, threads=threads)
    graph = float_graph(onnx.load(str(model_path)))
    say(f"import     {WEIGHTS} -> {model_path.name}, {len(graph.nodes)} nodes")
    shape = graph.tensors[graph.inputs[0]].shape
    options: dict[str, Any] = {"size": shape[1:], "channels": shape[0], "metadata": graph.metadata}
    calibration_images = open_images("fashion-mnist:calibration", **options)
    test = open_images("fashion-mnist:test", **options)
    say(f"images     {test.preprocessing}")
    with progress("record") as report:
        record(model, calibration_images, recording_path, limit=n_calibration, progress=report)
    megabytes = recording_path.stat().st_size / 1e6
    say(f"record     {n_calibration} images -> {recording_path.name}, {megabytes:.0f} MB")
    rows: list[list[str]] = []
    mapping, floats = None, dict[int, Any]()
    with Recording(recording_path) as recording:
        for bits in (8, 6):
            recipe = build_recipe({"preset": "accurate", "bits": bits})
            calibration = calibrate(graph, recording, recipe)
            with progress(f"map, {bits} bits") as report:
                found = map_methods(graph, recording, calibration_images, calibration, recipe, PUBLISHED,
                                    threads=threads, progress=report)  # fmt: skip
            found.write(output / f"mapping_{bits}bit.json")
            say(f"map        three uniform {bits}-bit models -> mapping_{bits}bit.json")
            for note in found.notes:
                say(f"           {note}")
            mapping = mapping or found
            recipes = {name: recipe.with_method(name) for name in PUBLISHED} | {"mixed": found.recipe}
            for name, chosen in recipes.items():
                path = output / f"vit_{name}_{bits}bit.h5"
                save(lower(graph, calibration, chosen), path)
                with progress(f"eval {name}") as report:
                    evaluated = outcomes(load(path), test, model, limit=n_test, threads=threads, floats=floats,
                                      progress=report)  # fmt: skip
                result = summary(evaluated)
                top1 = result["float"]
                rows.append([name, str(bits), f"{100 * result['integer']:.1f}", f"{result['sqnr']:.1f}"])
            say(f"lower+eval {len(recipes)} {bits}-bit models on {n_test} test images")
    integer = load(output / "vit_mixed_8bit.h5")
    with progress("golden export") as report:
        export(integer, test.read(0, 1), output / "vectors", sites=VECTOR_SITES, progress=report)
    with progress("golden check") as report:
        checked = check(output / "vectors", progress=report)
    if checked.mismatches:
        raise AssertionError(f"spec and kernel disagree: {checked.mismatches[0]}")
    say(f"golden     {checked.n_cases} cases exported, recomputed by spec and kernel: every bit equal")
    assert mapping is not None
    out.print(mapping_table(mapping))
    out.print(accuracy_table(top1, rows, n_test, f"preset {mapping.recipe.preset}"))
    marker.write_text(
        json.dumps({"float": top1, "integer": rows, "seconds": round(time.monotonic() - start, 1)}) + "\n"
    )
    say(f"done; golden vectors in {output / 'vectors'}")
