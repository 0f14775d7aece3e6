"""`index.json` and `case.json`: what a folder of golden vectors holds, checked on reading (golden/FORMAT.md).

A text has one form: sorted keys, one value a line, ASCII. One that the writer would not have written is refused, and
with it keys given twice, numbers spelt otherwise, and whatever a lenient parser passes over.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intvit.errors import IntvitError, reading, reason
from intvit.files import safe_name
from intvit.graph.inttypes import IntType
from intvit.vectors.memh import size_memh
from intvit.vectors.npz import Layout, size_npz, stored_type

FORMAT: Final = "intvit.golden"
VERSION: Final = 2
INDEX, MANIFEST, ARRAYS = "index.json", "case.json", "case.npz"
MOST_INDEX, MOST_MANIFEST = 1 << 24, 1 << 23
"""Bytes of JSON, which takes up to thirty times as many when parsed; pydantic stops at its first error therefore."""
MOST_ELEMENTS = 1 << 28
MOST_AXES = 32

SHA256 = "[0-9a-f]{64}"
Sha256 = Annotated[str, Field(pattern=f"^{SHA256}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


MEANING = ("tensor", "scale", "bound", "source", "zero_point", "factor")
"""What tells what a signal stands for."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.keys() <= cls.model_fields.keys():
            raise ValueError(f"key {min(values.keys() - cls.model_fields.keys())!r} must not be there")
        return values


class Signal(_Strict):
    """One integer array of the case: what it stands for, what type it has, and what its values hash to."""

    key: str
    """`safe_name(key)` is its name in `case.npz`, and with `.hex` its `$readmemh` file."""
    role: Literal["stimulus", "parameter", "expected"]
    tensor: str | None = None
    """Name in the graph; a parameter has none, nor any fact between `dtype` and `sha256`."""
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=MOST_AXES, fail_fast=True)]
    dtype: Annotated[str, Field(pattern=r"^[su]([1-9]|[1-5][0-9]|6[0-4])$")]
    scale: Number | Annotated[list[Number], Field(fail_fast=True)] | None = None
    encoding: Literal["linear", "log2"] = "linear"
    bound: Count | None = None
    source: str | None = None
    """The tensor of the float model that it stands for, where that is known."""
    zero_point: int | None = None
    factor: Annotated[list[Count], Field(fail_fast=True)] | None = None
    """`real = scale * 2**factor * (q - zero_point)`; left out where they are 0 and none."""
    sha256: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> Signal:
        stored_type(self.type)
        if math.prod(self.shape) > MOST_ELEMENTS:
            raise ValueError(f"shape of {self.key!r} must have at most {MOST_ELEMENTS} elements, not {self.shape}")
        if self.role == "parameter":
            if self.encoding != "linear" or any(getattr(self, key) is not None for key in MEANING):
                raise ValueError(f"parameter {self.key!r} must have none of encoding, {', '.join(MEANING)}")
            return self
        if self.tensor is None or self.scale is None:
            raise ValueError(f"{self.role} {self.key!r} must have a tensor and a scale")
        if isinstance(self.scale, list) and [len(self.scale)] != self.shape[-1:]:
            raise ValueError(f"scale of {self.key!r} must be one or as many as the last axis has elements")
        if self.zero_point is not None and not (self.zero_point and self.type.min <= self.zero_point <= self.type.max):
            raise ValueError(
                f"zero_point of {self.key!r} must lie in {self.dtype}, or be left out, not {self.zero_point}"
            )
        if self.factor is not None and [len(self.factor)] != self.shape[-1:]:
            raise ValueError(f"factor of {self.key!r} must be as many as the last axis has elements")
        if self.bound is not None and self.bound > max(-self.type.min, self.type.max):
            raise ValueError(f"bound of {self.key!r} must lie in {self.dtype}, not be {self.bound}")
        return self

    @property
    def type(self) -> IntType:
        return IntType.parse(self.dtype)

    @property
    def name(self) -> str:
        return safe_name(self.key)

    @property
    def hex_name(self) -> str:
        return f"{self.name}.hex"


class Manifest(_Strict):
    """`case.json`: one operator, one image."""

    format: Literal["intvit.golden"] = FORMAT
    version: Literal[2] = VERSION
    site: str
    op: str
    method: str | None = None
    method_version: int | None = None
    attrs: dict[str, Any]
    image: Count
    graph_hash: Sha256
    spec_version: int
    recipe: dict[str, Any]
    signals: Annotated[list[Signal], Field(fail_fast=True)]
    files: dict[str, Any]
    """File name -> sha256 of its bytes, `case.json` left out."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        roles = [s.role for s in self.signals]
        inputs = [s.key for s in self.signals if s.role == "stimulus"]
        parameters = [s.key for s in self.signals if s.role == "parameter"]
        wanted = ["stimulus"] * len(inputs) + ["parameter"] * len(parameters) + ["expected"]
        if not inputs or roles != wanted or self.signals[-1].key != "output":
            raise ValueError("signals must be stimuli, parameters and 'output' in this order")
        if inputs != [f"input{i}" for i in range(len(inputs))]:
            raise ValueError(f"stimuli must be input0, input1 and so on, not {_few(inputs)}")
        if parameters != sorted(set(parameters) - {*inputs, "output"}):
            raise ValueError(f"parameters must be sorted, each once and no stimulus or output, not {_few(parameters)}")
        hex_files = {s.hex_name for s in self.signals}
        if set(self.files) not in ({ARRAYS}, {ARRAYS, *hex_files}):
            raise ValueError(f"files must be {ARRAYS}, and a .hex for every array or none, not {_few(self.files)}")
        if not all(isinstance(value, str) and re.fullmatch(SHA256, value) for value in self.files.values()):
            raise ValueError("files must have a sha256 each")
        if (self.method, self.method_version) != (self.attrs.get("method"), self.attrs.get("version")):
            raise ValueError("method and method_version must be those of attrs")
        return self

    @property
    def folder(self) -> str:
        return case_folder(self.site, self.image)

    @property
    def sizes(self) -> dict[str, int]:
        """File name -> its length in bytes, which types and shapes decide."""
        sizes = {ARRAYS: size_npz(layout(self.signals))}
        for s in self.signals:
            sizes[s.hex_name] = size_memh(s.type, tuple(s.shape), header(self.site, s))
        return {name: sizes[name] for name in self.files}


def layout(signals: Sequence[Signal]) -> Layout:
    """Of `case.npz`."""
    return {s.name: (s.type, tuple(s.shape)) for s in signals}


def header(site: str, signal: Signal) -> str:
    """First line of a hex file, without the slashes."""
    return f"{safe_name(site)} {signal.name} {signal.dtype} shape {signal.shape}, row-major"


class Entry(_Strict):
    """A case as the index lists it; `sha256` is that of the bytes of its `case.json`."""

    folder: str
    site: str
    image: Count
    sha256: Sha256


def case_folder(site: str, image: int) -> str:
    """Path of a case below the index."""
    return f"{safe_name(site)}/image{image}"


class Index(_Strict):
    """`index.json`: every case, by image and then in the order in which the graph computes."""

    format: Literal["intvit.golden"] = FORMAT
    version: Literal[2] = VERSION
    graph_hash: Sha256
    spec_version: int
    recipe: dict[str, Any]
    cases: Annotated[list[Entry], Field(min_length=1, fail_fast=True)]
    digest: Sha256 | Literal[""] = ""
    """sha256 of this text with nothing between these two quotes: of the whole bundle, as each text holds the next's."""

    @model_validator(mode="after")
    def _consistent(self) -> Index:
        for case in self.cases:
            if case.folder != case_folder(case.site, case.image):
                raise ValueError(f"folder must be {case_folder(case.site, case.image)!r}, not {case.folder!r}")
        sites = list(dict.fromkeys(case.site for case in self.cases))
        first = self.cases[0].image
        images = range(first, first + -(-len(self.cases) // len(sites)))
        if [(c.image, c.site) for c in self.cases] != [(image, site) for image in images for site in sites]:
            raise ValueError("cases must be the same sites, each once and in one order, for each of successive images")
        return self

    @property
    def content_digest(self) -> str:
        """What `digest` must be."""
        return sha256(format_text(self.model_copy(update={"digest": ""})))


def _few(names: Iterable[str]) -> str:
    return reprlib.repr(sorted(names))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def json_text(value: Any) -> str:
    """The one form of a JSON value; ValueError for NaN and infinities."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def format_text(model: BaseModel) -> bytes:
    """The one text of `model`."""
    return json_text(model.model_dump(exclude_none=True)).encode("ascii")


Model = TypeVar("Model", Signal, Manifest, Index)


def build(kind: type[Model], values: Any, where: object) -> Model:
    """Check plain data; one line that names the key, the rule and the value otherwise."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        rule = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            rule = f"{rule[:1].lower()}{rule[1:]}, not {reprlib.repr(first['input'])}"
        text = reason(ValueError(f"{key}: {rule}" if key else rule))
        raise IntvitError(f"{where}: {text}") from None


def written(model: Model, where: object) -> bytes:
    """`format_text` of facts that come from outside."""
    with reading(where, "plain JSON values"):
        text = format_text(model)
        most = MOST_INDEX if isinstance(model, Index) else MOST_MANIFEST
        if len(text) > most:
            raise IntvitError(f"{where}: must not pass {most} bytes of JSON, and has {len(text)}")
    return text


def parse_text(kind: type[Model], data: bytes, where: object) -> Model:
    """The model whose `format_text` is `data`; IntvitError if there is none."""
    with reading(where, "JSON as `golden export` writes it"):
        values = json.loads(data.decode("ascii"))
        if not isinstance(values, dict):
            raise IntvitError(f"{where}: must be a JSON object, not {type(values).__name__}")
        known = values.get("format", FORMAT), values.get("version", 1)
        if known != (FORMAT, VERSION):
            actual = reason(ValueError(f"{known[0]} version {known[1]}"))
            raise IntvitError(f"{where}: must be {FORMAT} version {VERSION}, not {actual}; export the vectors again")
        model = build(kind, values, where)
        text = written(model, where)
    if text != data:
        pairs = zip(text.split(b"\n"), data.split(b"\n"), strict=False)
        line = next((i for i, (a, b) in enumerate(pairs) if a != b), 0) + 1
        raise IntvitError(f"{where}: line {line} must be written as `golden export` writes it, and differs")
    return model
