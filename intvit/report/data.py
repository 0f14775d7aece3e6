"""What report.json holds, and what is read of a mapping file: values, checked when they are read.

Numbers that are not finite (an error of 0 has an SQNR of inf) are None.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from intvit.errors import IntvitError, shortened
from intvit.files import read_text

FORMAT: Final = "intvit.report"
VERSION: Final = 1
JSON, PAGE = "report.json", "report.html"
FLOAT, MIXED, SEARCHED = "float", "mixed", "searched"
Number = float | None
Kind = Literal["float", "uniform", "mapping"]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Known(BaseModel):
    """A part of a file, which may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Estimate(_Value):
    """A statistic over images and its 95 % interval, by resamples of the images."""

    value: Number
    low: Number
    high: Number


class Agreement(_Value):
    """Predicted against measured losses of `n` mappings: share of the variance explained, rank correlation."""

    n: int
    r2: Number
    rank: Number


class Bound(_Value):
    """Of the optimum of a quadratic model, in the unit of the objective."""

    predicted: Number
    least: Number
    proven: bool


# -- what is read of a mapping file


class ScoreOf(_Known):
    method: str


class DecisionOf(_Known):
    """What the rule chose on the images of the mapping."""

    site: str
    operator: str
    method: str
    ties: list[str]


class MeasuredOf(_Known):
    """A mapping by what differs from the base of its search."""

    changes: dict[str, str]
    loss: Number
    cost: Number = None


class LossesOf(_Known):
    base: Number
    chosen: Number


class RefusedOf(_Known):
    """A mapping with a lesser loss that was not surely better."""

    changes: dict[str, str]
    loss: Number


class SearchOf(_Known):
    kind: str
    objective: str
    chosen: dict[str, str]
    loss: LossesOf
    spent: bool
    bound: Bound | None
    independent: Agreement | None
    quadratic: Agreement | None
    measured: list[MeasuredOf]
    not_surely_better: RefusedOf | None = None


class MappingFile(_Known):
    """A mapping file but for its recipe, which `read_recipe` reads."""

    format: Literal["intvit.mapping"]
    version: Literal[1]
    model_sha256: str
    rule: str
    basis: str
    scores: list[ScoreOf]
    decisions: list[DecisionOf]
    outputs_sqnr: dict[str, Number]
    gain_over_uniform: dict[str, str | Estimate]
    fallback: str | None
    search: SearchOf | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The candidates that it was chosen from."""
        return tuple(dict.fromkeys(score.method for score in self.scores))

    def gain(self, name: str) -> Estimate | None:
        """SQNR of the outputs of `mixed` or `searched` less that of the best uniform model, dB, on its images."""
        found = self.gain_over_uniform.get(name)
        return found if isinstance(found, Estimate) else None


# -- what report.json holds


class Source(_Value):
    """A file or set of images that a report was made from; `images`: how many of these."""

    role: str
    name: str
    sha256: str
    images: int | None = None


class Model(_Value):
    """A model on the test images; None for what cannot be said of it. Shares in 0..1, SQNR in dB (10 log10), KL in
    nats. The gains are over the best uniform model, in pairs."""

    name: str
    kind: Kind
    top1: Estimate | None = None
    top1_gain: Estimate | None = None
    agreement: Number = None
    sqnr: Number = None
    sqnr_gain: Estimate | None = None
    kl: Number = None
    cosine: Number = None


class Score(_Value):
    """`rules.Score` of a method at a site, dB as in the paper (20 log10); `sqnr_diff` is out less in."""

    method: str
    asqnr_in: Number
    asqnr_out: Number
    sqnr_diff: Number
    low: Number
    high: Number
    mean: Number
    max: Number
    saturated: Number


class Site(_Value):
    """`chosen`: what the mapping holds. `rule`, `ties`: the rule's choice on the images of the mapping and what was not
    surely worse; `here`, `ties_here`: on the test images. `undefined`: method -> why it is none here."""

    site: str
    operator: str
    chosen: str
    rule: str | None
    ties: list[str]
    here: str | None
    ties_here: list[str]
    scores: list[Score]
    undefined: dict[str, str]

    def score(self, method: str) -> Score | None:
        return next((score for score in self.scores if score.method == method), None)


class Histogram(_Value):
    """Counts of a site's output values in equal bins of `low`..`high`, real units; what lies outside is in the bins at
    the ends. `counts`: `float`, and the uniform models by method."""

    site: str
    operator: str
    images: int
    low: float
    high: float
    counts: dict[str, list[int]]


class Interaction(_Value):
    """Loss of two changes together less those of each alone, over the base loss: 0 where they are independent."""

    sites: tuple[str, str]
    methods: tuple[str, str]
    value: float


class Point(_Value):
    """A measured mapping."""

    loss: float
    cost: float
    changes: int
    role: Literal["base", "chosen", ""] = ""


class Search(_Value):
    """What a search of the mapping found on the mapping's images; losses in the unit of the objective."""

    kind: str
    objective: str
    measured: int
    spent: bool
    base_loss: Number
    chosen_loss: Number
    changes: dict[str, str]
    bound: Bound | None
    independent: Agreement | None
    quadratic: Agreement | None
    interactions: list[Interaction]
    points: list[Point]
    """Empty where no method has a cost."""


class Report(_Value):
    """Everything that a page says. `outputs`: ASQNR of each integer model's outputs, dB as in the paper (20 log10)."""

    format: Literal["intvit.report"] = FORMAT
    version: Literal[1] = VERSION
    name: str
    bits: int
    residual_bits: int
    preset: str
    rule: str
    basis: str
    fallback: str | None
    methods: list[str]
    best: str
    images: int
    labelled: bool
    confidence: float
    resamples: int
    seed: int
    warnings: list[str]
    models: list[Model]
    sites: list[Site]
    outputs: dict[str, Number]
    histograms: list[Histogram]
    search: Search | None
    sources: list[Source]
    versions: dict[str, str]
    command: str

    def model(self, name: str) -> Model:
        return next(model for model in self.models if model.name == name)


def finite(value: float) -> Number:
    """
    >>> finite(1.5), finite(math.inf)
    (1.5, None)
    """
    return float(value) if math.isfinite(value) else None


Read = TypeVar("Read", MappingFile, Report)


def _read(path: Path, what: type[Read]) -> Read:
    """IntvitError with the first key that is not as it must be."""
    text = read_text(path)
    try:
        return what.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    rule = first["msg"].removeprefix("Input should be ").rstrip(".")
    if first["type"] == "json_invalid":
        raise IntvitError(f"{path}: must be whole JSON, not: {rule.removeprefix('Invalid JSON: ')}")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        raise IntvitError(f"{path}: {key}: must be there, and is not")
    where = f"{path}: {key}" if key else str(path)
    known = first["type"] != "extra_forbidden"
    raise IntvitError(f"{where}: must be {rule if known else 'a known key'}, not {shortened(first['input'])}")


def read_mapping(path: Path) -> MappingFile:
    """What `intvit map` wrote, without the recipe."""
    return _read(path, MappingFile)


def read_report(path: Path) -> Report:
    """Of a report's folder, or its report.json."""
    return _read(path / JSON if os.path.isdir(path) else path, Report)
