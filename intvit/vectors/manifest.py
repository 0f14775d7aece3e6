"""`index.json`, `part.json`, `case.json`: what a bundle of golden vectors holds, checked on reading (golden/FORMAT.md).

A text has one form: sorted keys, one value a line, ASCII. One that the writer would not have written is refused, and
with it keys given twice, numbers spelt otherwise, and whatever a lenient parser passes over.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from intvit.errors import IntvitError, reading, reason
from intvit.files import safe_name
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS
from intvit.vectors.npz import Layout, stored_type

FORMAT: Final = "intvit.golden"
VERSION: Final = 3
INDEX, PART, CASE = "index.json", "part.json", "case.json"
PARAMETERS, ARRAYS, COVERAGE = "parameters.npz", "case.npz", "coverage.json"
MOST_INDEX, MOST_MANIFEST = 1 << 24, 1 << 23
"""Bytes of JSON, which takes up to thirty times as many when parsed; pydantic stops at its first error therefore."""
MOST_ELEMENTS = 1 << 28
MOST_AXES = 32

SHA256 = "[0-9a-f]{64}"
Sha256 = Annotated[str, Field(pattern=f"^{SHA256}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=MOST_AXES, fail_fast=True)]
Type = Annotated[str, Field(pattern=r"^[su]([1-9]|[1-5][0-9]|6[0-4])$")]
Files = dict[str, Sha256]
"""File name -> sha256 of its bytes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.keys() <= cls.model_fields.keys():
            raise ValueError(f"key {min(values.keys() - cls.model_fields.keys())!r} must not be there")
        return values


class Signal(_Strict):
    """An array of integers under a key: what is written of it."""

    key: str
    """`safe_name(key)` is its name in the npz, and with `.hex` its `$readmemh` file."""
    shape: Shape
    dtype: Type

    @model_validator(mode="after")
    def _stored(self) -> Signal:
        stored_type(self.type)
        if math.prod(self.shape) > MOST_ELEMENTS:
            raise ValueError(f"shape of {self.key!r} must have at most {MOST_ELEMENTS} elements, not {self.shape}")
        return self

    @property
    def type(self) -> IntType:
        return IntType.parse(self.dtype)

    @property
    def name(self) -> str:
        return safe_name(self.key)


class Parameter(Signal):
    """An integer constant of a site, which docs/quantization.md calls `constant`; a scalar has the shape []."""

    site: str
    constant: str
    sha256: Sha256


class Tap(Signal):
    """A named intermediate of a site's specification. Where `some`, `KEY.known` tells the elements that there are."""

    site: str
    intermediate: str
    some: bool


class Port(_Strict):
    """A stimulus or expected tensor of the part, and the key of its arrays."""

    key: str
    tensor: str


class Facts(_Strict):
    """A tensor: `real = scale * 2**factor * (q - zero_point)`; log2: `real = 2**-q`, 0 for q = -1."""

    shape: Shape
    dtype: Type
    scale: Number | Annotated[list[Number], Field(fail_fast=True)]
    encoding: Literal["linear", "log2"] = "linear"
    bound: Count | None = None
    source: str | None = None
    """The tensor of the float model that it stands for, where that is known."""
    zero_point: int | None = None
    factor: Annotated[list[Count], Field(fail_fast=True)] | None = None
    """Left out where they are 0 and none."""

    @model_validator(mode="after")
    def _consistent(self) -> Facts:
        kind = IntType.parse(self.dtype)
        if isinstance(self.scale, list) and [len(self.scale)] != self.shape[-1:]:
            raise ValueError("scale must be one or as many as the last axis has elements")
        if self.zero_point is not None and not (self.zero_point and kind.min <= self.zero_point <= kind.max):
            raise ValueError(f"zero_point must lie in {self.dtype}, or be left out, not {self.zero_point}")
        if self.factor is not None and [len(self.factor)] != self.shape[-1:]:
            raise ValueError("factor must be as many as the last axis has elements")
        if self.bound is not None and self.bound > max(-kind.min, kind.max):
            raise ValueError(f"bound must lie in {self.dtype}, not be {self.bound}")
        return self


class Operator(_Strict):
    """A node of the part, in the order of execution; its integers are parameters."""

    site: str
    op: str
    attrs: dict[str, Any]
    """What is no constant: `method`, `version`, `numerics`, `axis`, `keepdims`; of layout all that it says."""
    inputs: list[str]
    output: str


class Origin(_Strict):
    """What vectors are made from, in every manifest."""

    format: Literal["intvit.golden"] = FORMAT
    version: Literal[3] = VERSION
    graph_hash: Sha256
    spec_version: int
    layout: Sha256 | None = None
    """Of the layouts of the memory files, if they are not one element a word."""


class Part(Origin):
    """`part.json`: a part of the graph, what it is computed from and its constants, for all cases of it."""

    part: str
    numerics: Sha256
    """Of the numerics of all its nodes."""
    nodes: Annotated[list[Operator], Field(min_length=1, fail_fast=True)]
    tensors: dict[str, Facts]
    stimuli: Annotated[list[Port], Field(min_length=1, fail_fast=True)]
    expected: Annotated[list[Port], Field(min_length=1, fail_fast=True)]
    taps: Annotated[list[Tap], Field(fail_fast=True)]
    parameters: Annotated[list[Parameter], Field(fail_fast=True)]
    files: Files

    @model_validator(mode="after")
    def _consistent(self) -> Part:
        sites = [node.site for node in self.nodes]
        if len(set(sites)) != len(sites):
            raise ValueError("nodes must have a site each")
        alone = [node.site for node in self.nodes if node.op not in LAYOUT_OPS]
        if (len(alone) == 1) != (self.part in alone):
            raise ValueError(f"part must have the name of its one site, or one of its own, not {self.part!r}")
        named = {name for node in self.nodes for name in (*node.inputs, node.output)}
        if set(self.tensors) != named:
            raise ValueError(f"tensors must be those of the nodes, not {_few(self.tensors)}")
        made = [node.output for node in self.nodes]
        read = dict.fromkeys(name for node in self.nodes for name in node.inputs if name not in made)
        if len(set(made)) != len(made) or [p.tensor for p in self.stimuli] != list(read):
            raise ValueError("stimuli must be what the nodes read and do not make, in that order, each made once")
        expected = {port.tensor for port in self.expected}
        if [p.tensor for p in self.expected] != [name for name in made if name in expected] or len(expected) < len(
            self.expected
        ):
            raise ValueError("expected must be what the nodes make, in their order, each once")
        for ports, word in ((self.stimuli, "input"), (self.expected, "output")):
            if [port.key for port in ports] != port_keys(word, len(ports)):
                raise ValueError(f"keys must be {word} and a number, not {_few(p.key for p in ports)}")
        for known, items in (("constant", self.parameters), ("intermediate", self.taps)):
            names = [(item.site, getattr(item, known)) for item in items]
            order = [sites.index(site) for site, _ in names if site in sites]
            if len(order) != len(names) or names != [n for _, n in sorted(zip(order, names, strict=True))]:
                raise ValueError(f"{known}s must be of the sites, in order and sorted, not {_few(map(str, names))}")
            keys = [key_of(len(alone), *name) for name in names]
            keys = [f"tap.{key}" for key in keys] if known == "intermediate" else keys
            if [item.key for item in items] != keys or len(set(names)) != len(names):
                raise ValueError(f"keys of {known}s must follow from them, not be {_few(item.key for item in items)}")
        for node in self.nodes:
            if "params" in node.attrs or "bits" in node.attrs:
                raise ValueError(f"attrs of {node.site!r} must have no integer constants")
        hex_files = {hex_name(signal) for signal in self.parameters}
        plain = set(self.files) - {COVERAGE}
        npz = {PARAMETERS} if self.parameters else set()
        if self.layout is None and plain not in (npz, npz | hex_files):
            rule = f"{PARAMETERS}, if there are parameters, and a .hex for every one or none"
            raise ValueError(f"files must be {rule}, not {_few(self.files)}")
        return self

    def of(self, port: Port) -> Signal:
        facts = self.tensors[port.tensor]
        return Signal(key=port.key, shape=facts.shape, dtype=facts.dtype)

    @property
    def signals(self) -> list[Signal]:
        """The arrays of a case, in order."""
        return [*(self.of(port) for port in (*self.stimuli, *self.expected)), *self.tap_signals]

    @property
    def tap_signals(self) -> list[Signal]:
        found: list[Signal] = []
        for tap in self.taps:
            found.append(tap)
            if tap.some:
                found.append(Signal(key=f"{tap.key}.known", shape=tap.shape, dtype="u1"))
        return found

    @property
    def folder(self) -> str:
        return safe_name(self.part)

    @property
    def made_from(self) -> str:
        """What every memory file says it belongs to."""
        origin = f"graph {self.graph_hash[:16]} spec {self.spec_version} numerics {self.numerics[:16]}"
        return f"{origin} layout {(self.layout or 'plain')[:16]}"

    def header(self, signal: Signal) -> str:
        """First line of a hex file, without the slashes."""
        return f"{self.folder} {signal.name} {signal.dtype} shape {signal.shape}, row-major; {self.made_from}"


class Case(Origin):
    """`case.json`: one set of stimuli of a part, and what must come of it."""

    part: str
    image: Count
    signals: dict[str, Sha256]
    """Key -> sha256 of the values."""
    files: Files

    def matches(self, part: Part) -> None:
        """ValueError unless its arrays and files are those of the part."""
        keys = {signal.key for signal in part.signals}
        if set(self.signals) != keys:
            raise ValueError(f"signals must be {_few(keys)}, not {_few(self.signals)}")
        hexes = {hex_name(signal) for signal in part.signals}
        if self.layout is None and set(self.files) not in ({ARRAYS}, {ARRAYS, *hexes}):
            raise ValueError(f"files must be {ARRAYS}, and a .hex for every array or none, not {_few(self.files)}")

    @property
    def folder(self) -> str:
        return case_folder(self.part, self.image)


class Entry(_Strict):
    """A case as the index lists it; `sha256` is that of the bytes of its `case.json`."""

    image: Count
    sha256: Sha256


class Listed(_Strict):
    """A part as the index lists it; `sha256` is that of the bytes of its `part.json`."""

    part: str
    folder: str
    sha256: Sha256
    cases: Annotated[list[Entry], Field(min_length=1, fail_fast=True)]


class Section(_Strict):
    """What a layout says of the signals that a pattern matches."""

    pattern: str
    layout: dict[str, Any]


class StoredLayouts(_Strict):
    """Layouts of memory files, as their TOML file has them; of the patterns the first that matches counts."""

    common: dict[str, Any]
    signals: list[Section]

    @property
    def values(self) -> dict[str, Any]:
        return {**self.common, "signals": {each.pattern: each.layout for each in self.signals}}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StoredLayouts:
        common = {key: value for key, value in values.items() if key != "signals"}
        return cls(
            common=common, signals=[Section(pattern=p, layout=keys) for p, keys in values.get("signals", {}).items()]
        )


class Index(Origin):
    """`index.json`: every part, in the order in which the graph computes them, and its cases."""

    recipe: dict[str, Any]
    layouts: StoredLayouts | None = None
    """Of the memory files, where these are not one element a word."""
    stimuli: Literal["images", "directed"] = "images"
    """images: the same for every part, so that a tensor has the same values in all. directed: each part has its own."""
    parts: Annotated[list[Listed], Field(min_length=1, fail_fast=True)]
    digest: Sha256 | Literal[""] = ""
    """sha256 of this text with nothing between these two quotes: of the whole bundle, as each text holds the next's."""

    @model_validator(mode="after")
    def _consistent(self) -> Index:
        names = [part.part for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError("parts must have a name each")
        for part in self.parts:
            if part.folder != safe_name(part.part):
                raise ValueError(f"folder must be {safe_name(part.part)!r}, not {part.folder!r}")
            first = part.cases[0].image
            if [case.image for case in part.cases] != list(range(first, first + len(part.cases))):
                raise ValueError(f"cases of {part.part!r} must be of successive images, each once")
        images = {tuple(case.image for case in part.cases) for part in self.parts}
        if self.stimuli == "images" and len(images) > 1:
            raise ValueError("cases must be of the same images for every part")
        return self

    @property
    def content_digest(self) -> str:
        """What `digest` must be."""
        return sha256(format_text(self.model_copy(update={"digest": ""})))

    @property
    def n_cases(self) -> int:
        return sum(len(part.cases) for part in self.parts)


def key_of(n_sites: int, site: str, name: str) -> str:
    """The key of a constant or an intermediate: its name, with that of the site where a part has several."""
    return name if n_sites <= 1 else f"{site}.{name}"


def port_keys(word: str, count: int) -> list[str]:
    """input0, input1, ...; output, or output0, output1, ... where there are several."""
    return ["output"] if (word, count) == ("output", 1) else [f"{word}{i}" for i in range(count)]


def hex_name(signal: Signal) -> str:
    return f"{signal.name}.hex"


def layout(signals: Sequence[Signal]) -> Layout:
    """Of an npz."""
    return {s.name: (s.type, tuple(s.shape)) for s in signals}


def case_folder(part: str, image: int) -> str:
    """Path of a case below the index."""
    return f"{safe_name(part)}/image{image}"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the three manifests, under `$defs`; rules between fields stand in golden/FORMAT.md."""
    _, found = models_json_schema([(Index, "validation"), (Part, "validation"), (Case, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{FORMAT} {VERSION}",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in ("Index", "Part", "Case")],
        **found,
    }


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


Model = TypeVar("Model", bound=_Strict)


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
