"""What stands beside the weights: JSON files read with care, and options whose types and ranges are checked.

Facts that change the computation come as options of the command, from the safetensors metadata, or from `config.json`.
Each is checked by one schema, whoever states it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from intvit.errors import IntvitError, reading, reason, shortened
from intvit.files import inside, regular

LONGEST_JSON = 64 * 2**20
"""Bytes. The label names of 21,000 classes take two million."""

LONGEST_NAME = 200
TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
"""Of files that need the torch extra."""

Count = Annotated[int, Field(ge=1, le=2**20)]
Numbers = Annotated[list[float], Field(min_length=1, max_length=2**10)]


def _one_or_two(value: int | list[int]) -> int | list[int]:
    if isinstance(value, list) and len(value) != 2:
        raise ValueError("must be one or two positive integers")
    return value


def _above_zero(values: list[float]) -> list[float]:
    if not all(value > 0 for value in values):
        raise ValueError("must be positive")
    return values


Side = Annotated[Count | list[Count], AfterValidator(_one_or_two)]
Epsilon = Annotated[float, Field(gt=1e-30, le=1)]


class Options(BaseModel):
    """What an importer can be told; None is: not told."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    num_heads: Count | Annotated[list[Count], Field(min_length=1)] | None = None
    img_size: Side | None = None
    layer_norm_eps: Epsilon | None = None
    mean: Numbers | None = None
    std: Annotated[Numbers, AfterValidator(_above_zero)] | None = None
    resize: Count | None = None


def options(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are Options and told, checked; `where` goes before a complaint and may be empty."""
    return validated(where, Options, values).model_dump(exclude_none=True)


Schema = TypeVar("Schema", bound=BaseModel)


def validated(where: str, schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """`values` as `schema`; IntvitError names the first key that does not fit."""
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        # of a union's branches, the one that got furthest into the value says most
        first = max(error.errors(), key=lambda e: len(e["loc"]))
        if first["loc"]:
            key = str(first["loc"][0])
            text = f"{key}: {_rule(first)}, not {shortened(given.get(key))}"
        else:  # of the keys themselves
            text = f"{_rule(first)}, not {shortened(list(given))}"
        raise IntvitError(f"{where}: {text}" if where else text) from None


def _rule(error: Mapping[str, Any]) -> str:
    text = reason(ValueError(error["msg"])).removeprefix("Value error, ")
    for theirs, ours in (("Input should be", "must be"), ("List should", "must"), ("Field required", "must be given")):
        text = text.replace(theirs, ours)
    return text.partition(" after validation")[0]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file: UTF-8, finite numbers, each key once."""
    regular(path)
    with reading(path, "a readable JSON object"):
        if path.stat().st_size > LONGEST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        return parse_object(path.read_bytes())


def parse_object(data: bytes | str) -> dict[str, Any]:
    value = json.loads(data, parse_constant=_refuse, object_pairs_hook=_once)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"the number {name}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def member(folder: Path, name: str) -> Path:
    """A file of `folder`, reached without a link out of it; a snapshot in Hugging Face's cache links into its blobs."""
    if Path(name).name != name or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise IntvitError(f"{folder}: must be a file of the folder, not {shortened(name)}")
    path = folder / name
    snapshot = folder.resolve()
    if path.is_symlink() and snapshot.parent.name == "snapshots":
        blobs = snapshot.parent.parent / "blobs"
        if path.resolve().parent == blobs:
            return path
    return inside(folder, path)
