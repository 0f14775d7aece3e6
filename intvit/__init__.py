"""intvit: a bit-exact, integer-only reference simulator for Vision Transformers.

    model = intvit.load("vit_int8.h5")
    logits = model.run(images)["logits"]

Public names are loaded when they are first used, so that light parts stay light.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or else onnxruntime writes to the temporary folder, to report

if TYPE_CHECKING:
    from intvit.engine import Engine, load
    from intvit.errors import IntvitError
    from intvit.graph.inttypes import IntType
    from intvit.graph.ir import Graph
    from intvit.kernels.method import Method
    from intvit.lowering.calibrate import Calibration
    from intvit.lowering.context import lower
    from intvit.lowering.recipe import Recipe, read_recipe

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "lowering.calibrate",
    "Engine": "engine",
    "Graph": "graph.ir",
    "IntType": "graph.inttypes",
    "IntvitError": "errors",
    "Method": "kernels.method",
    "Recipe": "lowering.recipe",
    "load": "engine",
    "lower": "lowering.context",
    "read_recipe": "lowering.recipe",
}
__all__ = [
    "Calibration",
    "Engine",
    "Graph",
    "IntType",
    "IntvitError",
    "Method",
    "Recipe",
    "load",
    "lower",
    "read_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"intvit.{_HOMES[name]}"), name)
