"""The embedded model, lowered once per test session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from hypothesis import settings

from intvit.analysis.demo import WEIGHTS, embedded
from intvit.engine import Engine, quantize_images
from intvit.floats.images import ImageSource, open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording, record
from intvit.graph.ir import Array, Graph
from intvit.graph.store import save
from intvit.lowering.calibrate import Calibration, calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import Recipe, build_recipe

settings.register_profile("intvit", deadline=None)  # a first call compiles; no test asserts on time
settings.load_profile("intvit")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

N_RECORDED = 16


@dataclass(frozen=True)
class Embedded:
    """Files and values of the embedded ViT, calibrated on 16 images."""

    folder: Path
    onnx_path: Path
    recording_path: Path
    graph: Graph
    calibration: Calibration
    test: ImageSource
    recorded: ImageSource

    def lower(self, recipe: Recipe) -> Graph:
        return lower(self.graph, self.calibration, recipe)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    folder = tmp_path_factory.mktemp("embedded")
    path, recording_path = folder / "vit.onnx", folder / "recording.h5"
    onnx.save(import_timm(embedded(WEIGHTS)), str(path))
    graph = float_graph(onnx.load(str(path)))
    options = {"mean": graph.metadata["mean"], "std": graph.metadata["std"], "size": (28, 28), "channels": 1}
    recorded = open_images("fashion-mnist:calibration", **options)
    test = open_images("fashion-mnist:test", **options)
    record(FloatModel(path, threads=1), recorded, recording_path, limit=N_RECORDED)
    with Recording(recording_path) as recording:
        calibration = calibrate(graph, recording, build_recipe({}))
    return Embedded(folder, path, recording_path, graph, calibration, test, recorded)


@pytest.fixture(scope="session")
def mixed(vit: Embedded) -> Graph:
    """An integer graph in which every method of every operator occurs."""
    sites = {}
    for i, (softmax, gelu, norm) in enumerate(
        [("ivit", "ibert", "fqvit"), ("ibert", "ivit", "ivit"), ("fqvit", "ivit", "ibert")] * 2
    ):
        sites[f"blocks.{i}.attn.softmax"] = {"method": softmax}
        sites[f"blocks.{i}.mlp.act"] = {"method": gelu, "n": 6} if gelu == "ibert" else {"method": gelu}
        sites[f"blocks.{i}.norm1"] = {"method": norm}
    return vit.lower(build_recipe({"sites": sites}))


@pytest.fixture(scope="session")
def mixed_by_spec(vit: Embedded, mixed: Graph) -> dict[str, Array]:
    """Every tensor of `mixed` on the first two test images, by the specification (half a minute)."""
    return Engine(mixed, "spec").evaluate(quantize_images(mixed, vit.test.read(0, 2)), list(mixed.tensors))


@pytest.fixture(scope="session")
def mixed_path(vit: Embedded, mixed: Graph) -> Path:
    path = vit.folder / "mixed.h5"
    save(mixed, path)
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line: (exit status, stdout, stderr)."""
    from intvit.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
