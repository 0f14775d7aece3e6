"""`case.json`: what one golden case holds, checked on reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from intvit.errors import IntvitError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Signal(_Strict):
    """One integer array of the case: where it is stored, what type it has, and what its values hash to."""

    key: str
    """Name in `case.npz`; `<key>.hex` is the same array for `$readmemh`."""
    role: Literal["stimulus", "parameter", "expected"]
    tensor: str | None = None
    """Name in the graph, for stimuli and expected outputs."""
    shape: list[int]
    dtype: str
    scale: float | list[float] | None = None
    encoding: Literal["linear", "log2"] = "linear"
    bound: int | None = None
    sha256: str


class Manifest(_Strict):
    """One operator, one image. `params` are the scalar integers; arrays stand in `signals`."""

    format: Literal["intvit.golden"] = "intvit.golden"
    version: Literal[1] = 1
    site: str
    op: str
    method: str | None = None
    method_version: int | None = None
    attrs: dict[str, Any] = {}
    image: int
    graph_hash: str
    spec_version: int
    recipe: dict[str, Any] = {}
    signals: list[Signal]


def read_manifest(folder: Path) -> Manifest:
    path = folder / "case.json"
    try:
        return Manifest.model_validate(json.loads(path.read_text()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IntvitError(f"{path}: must be a readable JSON manifest, not: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise IntvitError(f"{path}: {key}: {first['msg'].lower()}, not {first['input']!r}") from None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, sort_keys=True)
    (folder / "case.json").write_text(text + "\n")
