#!/usr/bin/env python3
"""The study: what the ways to choose a mapping are worth on trained models, in one command that can be ended any time.

    python tools/study.py                                   # tools/study.toml; the folder study/ keeps what it measures
    python tools/study.py my.toml --folder study --workers 2
    python tools/study.py tools/study.toml --shard 1/3 --store part1.sqlite   # one of three machines
    python tools/study.py merge study/rows.sqlite part1.sqlite part2.sqlite part3.sqlite
    python tools/study.py tools/study.toml --write          # and its tables into docs/study.md

A cell is a model, a width and a seed, which draws the images to calibrate, map and search on. Every row that was
measured is kept under the digest of what it follows from, so that an ended study goes on where it was and equal
mappings are run once. Results: FOLDER/study.csv, study.json, tables.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from real_weights import MEAN, STD, encoder_file, every_photograph, fashion_mnist, say

import intvit
from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.analysis.diagnosis import measured_losses
from intvit.analysis.emulation import OPERATOR, Emulation, flipped
from intvit.analysis.observers import AUTO, judging, resolved
from intvit.analysis.outputs import OUTCOME, compared, outcomes, summary
from intvit.errors import Infeasible, IntvitError, reading
from intvit.files import read_text
from intvit.floats.images import ImageSource, open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import Calibration, calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import Recipe, build_recipe
from intvit.mapping import rules
from intvit.mapping.candidates import PUBLISHED, Candidate, uniform_model
from intvit.mapping.mapping import in_turn, problem_around
from intvit.mapping.quadratic import Constraints
from intvit.mapping.scores import BASES, ISOLATED, PREFIX, UNIFORM, Key, Task, Variant, score
from intvit.mapping.search import Measured, Problem, rank_correlation
from intvit.mapping.search import run as run_search
from intvit.mapping.space import Config, Space
from intvit.mapping.store import Store, key_of
from intvit.mapping.tables import Table
from intvit.mapping.workers import ONE_THREAD, PART, Shards, cluster
from intvit.report.collect import mean
from intvit.spec import SPEC_VERSION

Array = np.ndarray[Any, Any]
HERE = Path(__file__).resolve().parent
FORMAT, VERSION = "intvit.study", 1
CHUNK = 1000
"""Test images that are measured, and kept, at once."""
BYTES = np.dtype("u1")
QUANTIZERS = "ranges, then slopes, in the best uniform model"
"""What is kept of the observer auto; another name where it chooses in another way."""
DEFAULT = "rule uniform/sqnr_diff"
"""Of `intvit map`."""


# ------------------------------------------------------------------------------------------- the file


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=1)]


class ModelEntry(_Strict):
    """A model and its images. `test` left out: what the calibration and the searches leave of the pool. Counts are of
    images; `rules` left out: those of the study."""

    name: str
    weights: str
    pool: str
    test: str | None = None
    calibration: Annotated[int, Field(ge=2)]
    observed: Count | None = None
    single: Count | None = None
    ceiling: Count | None = None
    rules: list[str] | None = None
    sensitivity: bool = True
    searches: dict[Literal["greedy", "pairwise", "exact", "tpe"], Count] = {}
    quantizers: bool = False
    """Whether the best uniform model of the observer `auto` is measured, too."""
    quantizers_too: list[Literal["greedy", "pairwise", "exact", "tpe"]] = []
    """Searches that are done once more around quantizers of the observer `auto`."""
    budget: Count = 60


class StudyFile(_Strict):
    """`format`, `version`: what the file is."""

    format: Literal["intvit.study"]
    version: Literal[1]
    preset: Literal["accurate", "published"] = "accurate"
    bits: Annotated[list[Annotated[int, Field(ge=4, le=8)]], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    observers: list[Literal["minmax", "percentile", "mse", "kl"]] = []
    rules: list[str] = []
    test_images: Count | None = None
    models: Annotated[list[ModelEntry], Field(min_length=1)]


def read_study(path: Path) -> StudyFile:
    """IntvitError for a file that is none."""
    with reading(path, "a TOML file"):
        values = tomllib.loads(read_text(path))
    if (values.get("format"), values.get("version")) != (FORMAT, VERSION):
        raise IntvitError(
            f"{path}: study must be {FORMAT} {VERSION}, not {values.get('format')} {values.get('version')}"
        )
    try:
        study = StudyFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntvitError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for each in [*study.rules, *(each for entry in study.models for each in entry.rules or ())]:
        basis, _, rule = each.partition("/")
        if basis not in BASES:
            raise IntvitError(f"{path}: rules: must be basis/rule with a basis of {', '.join(BASES)}, not {each!r}")
        rules.rule_of(rule)
    for entry in study.models:
        if more := [kind for kind in entry.quantizers_too if kind not in entry.searches]:
            raise IntvitError(f"{path}: {entry.name}: quantizers_too must be of its searches, and {more[0]} is not")
    return study


def prepare(folder: Path, wanted: set[str]) -> None:
    """Make what a study may name, where it is not there yet, of packages (`real_weights.fetch`)."""
    makers = {
        "train.npz": lambda: fashion_mnist(folder, "train"),
        "t10k.npz": lambda: fashion_mnist(folder, "t10k"),
        "encoder.onnx": lambda: encoder_file(folder),
        "photographs": lambda: all_photographs(folder),
    }
    for name, make in makers.items():
        if name in wanted and not (folder / name).exists():
            make()


def all_photographs(folder: Path) -> None:
    with _appearing(folder / "photographs") as target:
        for name, content in every_photograph(folder):
            (target / name).write_bytes(content)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder that is there once it is full."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    yield part
    part.rename(folder)


def picked(source: ImageSource, at: Sequence[int], name: str) -> ImageSource:
    """Some images of a source, in the order given."""

    def raw(start: int, stop: int) -> Array:
        return np.concatenate([source.raw(i, i + 1) for i in at[start:stop]])

    labels = None if source.labels is None else source.labels[np.asarray(at)]
    return dataclasses.replace(source, name=name, n_images=len(at), raw=raw, labels=labels)


# ------------------------------------------------------------------------------------------- a cell


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model of the study with its images."""

    entry: ModelEntry
    model: FloatModel
    pool: ImageSource
    rest: ImageSource | None

    @staticmethod
    def of(entry: ModelEntry, folder: Path, threads: int | None = None) -> Subject:
        weights = {"embedded:vit": WEIGHTS, "embedded:swin": SWIN_WEIGHTS}.get(entry.weights)
        if entry.weights.startswith("embedded:") and weights is None:
            raise IntvitError(
                f"{entry.name}: weights must be embedded:vit, embedded:swin or a file, not {entry.weights}"
            )
        model = FloatModel(folder / entry.weights if weights is None else import_timm(embedded(weights)), threads)
        graph = float_graph(model.proto)
        shape = graph.tensors[graph.inputs[0]].shape
        options: dict[str, Any] = {"size": shape[1:], "channels": shape[0], "metadata": graph.metadata}

        def images(name: str) -> ImageSource:
            if (folder / name).is_dir():
                return open_images(str(folder / name), **options, mean=MEAN, std=STD, resize=256)
            return open_images(str(folder / name), **options)

        return Subject(entry, model, images(entry.pool), None if entry.test is None else images(entry.test))

    def split(self, seed: int) -> tuple[ImageSource, ImageSource]:
        """Images to calibrate, map and search on, and those to judge on."""
        entry = self.entry
        order = np.random.default_rng(seed).permutation(len(self.pool)).tolist()
        n_seen = max(entry.calibration, *entry.searches.values(), 0)
        seen = picked(self.pool, order[:n_seen], f"{entry.pool}, seed {seed}")
        if self.rest is not None:
            return seen, self.rest
        if not order[n_seen:]:
            raise IntvitError(f"{entry.name}: pool must have more than {n_seen} images, of which some judge")
        return seen, picked(self.pool, order[n_seen:], "the rest")


@dataclasses.dataclass
class Cell:
    """A model, a width and a seed: everything that is chosen there, and measured on the test images."""

    study: StudyFile
    subject: Subject
    bits: int
    seed: int
    store: Store
    shards: Shards | None
    threads: int | None = None
    observer: str | None = None
    """For all quantizers; None: that of the preset."""

    def __post_init__(self) -> None:
        self.graph = float_graph(self.subject.model.proto)
        self.seen, self.test = self.subject.split(self.seed)
        self.n_test = min(self.study.test_images or len(self.test), len(self.test))
        self._floats: dict[int, Array] = {}
        self._tables: dict[str, Table[Key]] = {}
        self._calibrations: dict[str, Calibration] = {}

    @property
    def name(self) -> str:
        return f"{self.subject.entry.name}, {self.bits} bits, seed {self.seed}"

    def key(self, kind: str, *facts: Any) -> str:
        """Of what follows from the cell's models and images."""
        entry, study = self.subject.entry, self.study
        by = [intvit.__version__, SPEC_VERSION, VERSION, study.preset, self.bits, entry.calibration]
        chosen: list[Any] = []  # quantizers that something else follows from
        if self.observer is not None:
            chosen = [self.observer] if kind == QUANTIZERS else [self.recipe.model_dump_json(exclude_none=True)]
        return key_of(kind, [*by, self.subject.model.sha256, self._images, *chosen, *facts])

    @cached_property
    def _images(self) -> list[str]:
        return [self.seen.sha256(), self.test.sha256(self.n_test)]

    def kept(self, kind: str, facts: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` makes, which is JSON, or what it once made."""
        key = self.key(kind, *facts)
        found = self.store.get(key, BYTES)
        if found is None:
            start = time.monotonic()
            text = json.dumps(make()).encode()
            say_over("")
            say(f"  {kind} {', '.join(str(f) for f in facts if isinstance(f, (str, int)))}: "
                f"{time.monotonic() - start:.0f} s")  # fmt: skip
            self.store.put({key: np.frombuffer(text, BYTES)}, kind)
            found = np.frombuffer(text, BYTES)
        return json.loads(found.tobytes())

    # -- models

    @cached_property
    def live(self) -> LiveActivations:
        return LiveActivations(self.subject.model, self.seen, self.subject.entry.calibration)

    @cached_property
    def recipe(self) -> Recipe:
        recipe = build_recipe({"preset": self.study.preset, "bits": self.bits})
        if self.observer is None:
            return recipe
        recipe = recipe.model_copy(update={"observer": recipe.observer.model_copy(update={"kind": self.observer})})
        if self.observer != AUTO:
            return recipe

        def make() -> Any:
            n_judged = max(self.subject.entry.searches.values(), default=0)
            many = LiveActivations(self.subject.model, self.seen, max(n_judged, self.subject.entry.calibration))
            found = resolved(
                self.graph, self.subject.model, many, recipe, limit=self.subject.entry.calibration,
                judged=many.n_images, methods=PUBLISHED,
                progress=lambda done, total: say_over(f"  observer auto: {done} of {total}"),
            )  # fmt: skip
            return found.recipe.model_dump(mode="json", exclude_none=True)

        return build_recipe(self.kept(QUANTIZERS, [AUTO], make))

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.graph, self.live, self.recipe)

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        return {name: uniform_model(self.graph, self.calibration, self.recipe, name, PUBLISHED) for name in PUBLISHED}

    @cached_property
    def sites(self) -> tuple[str, ...]:
        scored = {site for candidate in self.candidates.values() for site in candidate.sites}
        return tuple(node.name for node in self.graph.nodes if node.name in scored)

    @cached_property
    def problem(self) -> Problem:
        """Around the best uniform model on the images that were seen."""
        best = self.kept("best", [], self._best)
        return problem_around(
            self.graph, self.calibration, self.recipe, self.candidates, self.sites, best, Constraints()
        )

    def _best(self) -> str:
        return _least_noise(self._scored(UNIFORM))

    @property
    def rules(self) -> list[str]:
        return self.study.rules if self.subject.entry.rules is None else self.subject.entry.rules

    @property
    def space(self) -> Space:
        return self.problem.space

    def uniform(self, name: str) -> Config:
        choices = self.candidates[name].choices
        options = self.space.options
        return tuple(m if (m := choices[s].method) in options[s] else next(iter(options[s])) for s in self.sites)

    # -- choices

    def _scored(self, basis: str) -> Table[Key]:
        if basis not in self._tables:
            outputs = basis != ISOLATED
            variants = [Variant(name, c.recipe, c.sites, outputs) for name, c in self.candidates.items()]
            self._tables[basis] = self._rows(basis, variants)
        return self._tables[basis]

    def _rows(self, basis: str, variants: Sequence[Variant]) -> Table[Key]:
        task, n = Task(self.graph, self.calibration, basis, tuple(variants)), self.subject.entry.calibration
        if self.shards is not None:
            return self.shards.score(task, self.seen, n)
        return score(task, self.live, self.seen, (0, n), threads=self.threads)

    def values(self, basis: str) -> Any:
        """rule -> site -> method -> its value, of one basis in which all candidates are scored at once."""
        return {name: rules.values(self._scored(basis), rule, PUBLISHED) for name, rule in rules.RULES.items()}

    def ruled(self, each: str) -> Config:
        """What a rule chooses."""
        basis, _, rule = each.partition("/")
        if basis == PREFIX:
            chosen = self.kept("prefix", [rule], lambda: self._in_turn(rule))
        else:
            values = self.kept("values", [basis], lambda: self.values(basis))[rule]
            chosen = {site: rules.least(of) for site, of in values.items()}
        return tuple(chosen[site] for site in self.sites)

    def _in_turn(self, rule: str) -> dict[str, str]:
        found, _ = in_turn(self.candidates, self.recipe, self.sites, {}, rules.rule_of(rule), 0, self._rows)
        return {site: decision.method for site, decision in found.items()}

    def searched(self, kind: str, n_images: int) -> tuple[Config, dict[str, Any]]:
        """What a search chooses, and what it says."""
        chosen, facts = self.kept(
            "search", [kind, n_images, self.subject.entry.budget], lambda: self._search(kind, n_images)
        )
        return tuple(chosen), facts

    def _search(self, kind: str, n_images: int) -> Any:
        live = LiveActivations(self.subject.model, self.seen, n_images)
        problem = self.problem
        if kind == "exact":
            problem = dataclasses.replace(problem, constraints=Constraints(at_most=1))
        budget = self.subject.entry.budget if kind == "tpe" else None

        def progress(done: int, total: int) -> None:
            say_over(f"  {kind}: {done} of {total} mappings")

        measured = Measured(problem.space, live, self.seen, n_images, store=self.store, budget=budget,
                            threads=self.threads, shards=self.shards, progress=progress)  # fmt: skip
        found = run_search(kind, problem, measured, self.seed)
        problem.space.verify(found.config)
        said = found.as_json()
        facts = {
            key: said[key] for key in ("independent", "quadratic", "bound", "mappings", "not_surely_better", "loss")
        }
        return [found.config, facts]

    # -- measured

    def floats(self, start: int, stop: int) -> Array:
        """The float outputs of test images start..stop, of the chunk that begins there."""
        if start not in self._floats:
            shape, end = self.graph.tensors[self.graph.outputs[0]].shape, min(start + CHUNK, self.n_test)
            key = self.key("floats", start, end)
            found = self.store.get(key, np.dtype("<f4"))
            if found is None:
                parts = [
                    next(iter(self.subject.model.run(self.test.read(at, min(at + 50, end))).values()))
                    for at in range(start, end, 50)
                ]
                found = np.concatenate(parts).astype("<f4").reshape(-1)
                self.store.put({key: found}, "floats")
            self._floats[start] = found.reshape(-1, *shape)
        return self._floats[start][: stop - start]

    def labels(self, start: int, stop: int) -> Array | None:
        return None if self.test.labels is None else self.test.labels[start:stop]

    def measured(self, configs: Mapping[str, Config], n_images: int | None = None) -> dict[str, Array]:
        """OUTCOME of every named mapping; equal models are run once."""
        n_images = min(n_images or self.n_test, self.n_test)
        hashes = {config: self.space.lowered(config).content_hash for config in dict.fromkeys(configs.values())}
        parts: dict[str, list[Array]] = {name: [] for name in configs}
        for start in range(0, n_images, CHUNK):
            stop = min(start + CHUNK, n_images)
            keys = {config: self.key("outcome", digest, start, stop) for config, digest in hashes.items()}
            rows = {config: self.store.get(key, OUTCOME) for config, key in keys.items()}
            wanted = {hashes[config]: config for config, found in rows.items() if found is None}
            if wanted:
                began = time.monotonic()
                say_over(f"  {len(wanted)} mappings on test images {start}..{stop}")
                asked, images, real = list(wanted.values()), self.test.read(start, stop), self.floats(start, stop)
                if not self.subject.entry.searches:  # so few that a space of them would cost more than it saves
                    made = {config: self._alone(config, start, stop) for config in asked}
                elif self.shards is not None:
                    made = self.shards.measure(self.space, asked, images, real, self.labels(start, stop))
                else:
                    labels = self.labels(start, stop)
                    made = self.space.measure(asked, images, real, labels=labels, threads=self.threads)
                self.store.put({keys[config]: found for config, found in made.items()}, "outcome")
                say(f"  {len(wanted)} mappings on test images {start}..{stop}: {time.monotonic() - began:.0f} s")
                by_hash = {hashes[config]: found for config, found in made.items()}
                rows = {c: by_hash[hashes[c]] if found is None else found for c, found in rows.items()}
            for name, config in configs.items():
                found = rows[config]
                assert found is not None
                parts[name].append(found)
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _alone(self, config: Config, start: int, stop: int) -> Array:
        part = picked(self.test, range(start, stop), self.test.name)
        integer, floats = self.space.lowered(config), dict(enumerate(self.floats(start, stop)))
        found = outcomes(integer, part, self.subject.model, threads=self.threads, floats=floats)
        found["image"] += start
        return found

    def observed(self, observer: str, config: Config, n_images: int) -> Array:
        """OUTCOME of a mapping whose quantizers another observer calibrated."""
        recipe = self.recipe.model_copy(update={"observer": self.recipe.observer.model_copy(update={"kind": observer})})
        integer = lower(self.graph, self._calibrated(observer, recipe), self._recipe(recipe, config))
        key = self.key("outcome", integer.content_hash, 0, n_images)
        found = self.store.get(key, OUTCOME)
        if found is None:
            say_over(f"  {observer} on {n_images} test images")
            known = self._known(n_images)
            found = outcomes(integer, self.test, self.subject.model, limit=n_images, batch=50, threads=self.threads,
                             floats=known)  # fmt: skip
            self.store.put({key: found}, "outcome")
        return found

    def _known(self, n_images: int) -> dict[int, Array]:
        spans = [(at, min(at + CHUNK, self.n_test)) for at in range(0, n_images, CHUNK)]
        return {start + i: row for start, stop in spans for i, row in enumerate(self.floats(start, stop))}

    def _recipe(self, recipe: Recipe, config: Config) -> Recipe:
        chosen = self.space.recipe_of(config).sites
        return recipe.model_copy(update={"sites": chosen})

    def _calibrated(self, observer: str, recipe: Recipe) -> Calibration:
        if observer not in self._calibrations:
            self._calibrations[observer] = calibrate(self.graph, self.live, recipe)
        return self._calibrations[observer]

    def _emulation(self, config: Config) -> Emulation:
        samples = self.calibration.samples if self.recipe.corrects_bias else {}
        return Emulation(
            self.graph, self.space.lowered(config), self.subject.model, self.live.images.read(0, 32), samples
        )

    def ceiling(self, config: Config, n_images: int) -> Array:
        """OUTCOME of the integer products with float non-linear operators."""
        key = self.key("ceiling", self.space.lowered(config).content_hash, n_images)
        found = self.store.get(key, OUTCOME)
        if found is None:
            emulation = self._emulation(config)
            operators = [part for part in emulation.parts.values() if part.what == OPERATOR]
            known, parts = self._known(n_images), []
            for start in range(0, n_images, 50):
                say_over(f"  ceiling on test images {start}..{n_images}")
                stop = min(start + 50, n_images)
                y = emulation.outputs(self.test.read(start, stop), flipped(True, operators))
                real = np.stack([known[i] for i in range(start, stop)])
                parts.append(compared(start, y, real, self.labels(start, stop)))
            found = np.concatenate(parts)
            self.store.put({key: found}, "ceiling")
        return found

    def sensitivity(self, config: Config) -> Any:
        """What all parts of a kind cost (`diagnosis.measured_losses`), on images that were seen."""

        def make() -> Any:
            images = self.live.images.read(0, judging(self.graph, self.live.n_images))
            _, losses = measured_losses(self._emulation(config), images, lambda done, total: say_over(
                f"  sensitivity: {done} of {total} runs"))  # fmt: skip
            return [dataclasses.asdict(loss) for loss in losses]

        return self.kept("sensitivity", [self.space.lowered(config).content_hash], make)

    # -- all of it

    def results(self) -> Any:
        """Records of the cell (JSON): named models with what they are worth, correlations, sensitivities."""
        return self.kept("cell", [QUANTIZERS, self.study.model_dump(exclude={"models", "seeds", "bits"}),
                                  self.subject.entry.model_dump()], self._results)  # fmt: skip

    def _results(self) -> Any:
        entry, study = self.subject.entry, self.study
        say(self.name)
        configs = {f"uniform {name}": self.uniform(name) for name in PUBLISHED}
        said: dict[str, Any] = {}
        for each in self.rules:
            configs[f"rule {each}"] = self.ruled(each)
        for kind, n_images in entry.searches.items():
            configs[f"search {kind}"], said[kind] = self.searched(kind, n_images)
        best = f"uniform {self.kept('best', [], self._best)}"
        # what `map` hands out by default: the rule's model, or the best uniform one where its own images show it worse
        if DEFAULT in configs:
            configs["default of map"] = configs[self.kept("own", [best], lambda: self._own(configs, best))]
        found = self.measured(configs)
        records = [self._record(name, rows, found[best], configs.get(name)) for name, rows in found.items()]
        if entry.quantizers or entry.quantizers_too:
            records += self._with_quantizers(found[best], said)
        if entry.ceiling:
            n = min(entry.ceiling, self.n_test)
            records.append(self._record("ceiling", self.ceiling(configs[best], n), found[best][:n]))
        if entry.observed:
            n = min(entry.observed, self.n_test)
            for observer in study.observers:
                for name in sorted({best, DEFAULT} & configs.keys()):
                    try:
                        rows = self.observed(observer, configs[name], n)
                    except Infeasible as error:
                        say(f"  {observer}: {name}: {error}")
                        continue
                    records.append(self._record(f"observer {observer}: {name}", rows, found[best][:n]))
        return {
            "model": entry.name,
            "bits": self.bits,
            "seed": self.seed,
            "images": {"seen": len(self.seen), "test": self.n_test},
            "sites": self.sites,
            "best": best,
            "records": records,
            "searches": said,
            "correlations": self._correlations(configs[best]) if entry.single else {},
            "sensitivity": self.sensitivity(configs[best]) if entry.sensitivity else [],
        }

    def _with_quantizers(self, base: Array, said: dict[str, Any]) -> list[dict[str, Any]]:
        """Records of searches around the best uniform model of quantizers that are chosen too; what they say."""
        other = dataclasses.replace(self, observer=AUTO)
        configs = {f"uniform of observer {AUTO}": other.space.base}
        for kind in self.subject.entry.quantizers_too:
            configs[f"search quantizers+{kind}"], said[f"quantizers+{kind}"] = other.searched(
                kind, self.subject.entry.searches[kind]
            )
        return [other._record(name, rows, base, configs[name]) for name, rows in other.measured(configs).items()]

    def _own(self, configs: Mapping[str, Config], best: str) -> str:
        """The better of what the rule of `map` chose and the best uniform model, on the images that it saw."""
        variants = [Variant(name, self.space.recipe_of(configs[name]), ()) for name in (DEFAULT, best)]
        return _least_noise(self._rows(UNIFORM, variants))

    def _record(self, name: str, rows: Array, best: Array, config: Config | None = None) -> dict[str, Any]:
        """SQNR in dB, top-1 in percent, both less those of the best uniform model with 95 % intervals in pairs."""
        gain, said = rules.difference(rows["noise"], best["noise"]), summary(rows)
        found: dict[str, Any] = {
            "name": name, "images": len(rows), "sqnr": said["sqnr"], "sqnr_gain": [gain.value, gain.low, gain.high],
        }  # fmt: skip
        if self.test.labels is not None:
            hits, base, real = ((r == o["label"]) * 100.0 for r, o in (
                (rows["integer_class"], rows), (best["integer_class"], best), (rows["float_class"], rows)))  # fmt: skip
            found |= {"top1": 100 * said["integer"], "float_top1": 100 * said["float"],
                      "top1_gain": _interval(hits - base), "top1_less_float": _interval(hits - real)}  # fmt: skip
        if config is not None:
            found["model"] = self.space.lowered(config).content_hash
            found["changed"] = sum(a != b for a, b in zip(config, self.space.base, strict=True))
            found["methods"] = {m: config.count(m) for m in sorted(set(config))}
        return found

    def _correlations(self, base: Config) -> dict[str, float]:
        """Rank correlation of what scores say of single changes with what these do to the outputs of test images."""
        n = min(self.subject.entry.single or 0, self.n_test)
        singles = {f"{i}": config for i, config in enumerate(self.space.singles(base)) if self.space.defined(config)}
        rows = self.measured({**singles, "base": base}, n)
        start = float(np.sum(rows["base"]["noise"]))
        effect = np.array([float(np.sum(rows[name]["noise"])) - start for name in singles])
        changed = [
            next((s, m) for s, m, usual in zip(self.sites, config, base, strict=True) if m != usual)
            for config in singles.values()
        ]
        usual = dict(zip(self.sites, base, strict=True))
        found = {}
        for basis in dict.fromkeys(each.partition("/")[0] for each in self.rules):
            if basis == PREFIX:
                continue
            for rule, values in self.kept("values", [basis], lambda basis=basis: self.values(basis)).items():
                said = [values[site][method] - values[site].get(usual[site], math.nan) for site, method in changed]
                known = np.isfinite(said)
                found[f"{basis}/{rule}"] = rank_correlation(np.array(said)[known], effect[known])
        return found


def _least_noise(table: Table[Key]) -> str:
    """The model with the least noise at the outputs."""
    return rules.least({name: float(np.sum(noise)) for name, (_, noise) in rules.output_powers(table).items()})


def _interval(values: Array) -> list[float | None]:
    """Mean, and its 95 % interval over images."""
    found = mean(values)
    return [found.value, found.low, found.high]


# ------------------------------------------------------------------------------------------- the whole


def say_over(text: str) -> None:
    """Progress, on a terminal in one line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def cells(study: StudyFile) -> Iterator[tuple[ModelEntry, int, int]]:
    """In the order in which they are worked on: all of a seed before the next one."""
    for seed in study.seeds:
        for entry in study.models:
            for bits in study.bits:
                yield entry, bits, seed


def shard_of(text: str, n_cells: int) -> tuple[int, int]:
    """`i/n`: the part i of n, counted from 1."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) <= n_cells):
        raise IntvitError(f"--shard: must be i/n with 1 <= i <= n <= {n_cells}, the cells, not {text!r}")
    return int(i), int(n)


def work(study: StudyFile, subjects: Mapping[str, Subject], args: argparse.Namespace, store: Store) -> list[Any]:
    """Every cell of the shard, as it is there or is made."""
    every = list(cells(study))
    number, of = (1, 1) if args.shard is None else shard_of(args.shard, len(every))
    found = []
    with ExitStack() as stack:
        workers = None
        if args.workers or args.scheduler:
            workers = stack.enter_context(cluster(args.scheduler, args.workers))
        for entry, bits, seed in every[number - 1 :: of]:
            shards = None if workers is None else Shards(workers, subjects[entry.name].model, args.part)
            start = time.monotonic()
            cell = Cell(study, subjects[entry.name], bits, seed, store, shards, args.threads)
            found.append(cell.results())
            say_over("")
            say(f"{cell.name}: {time.monotonic() - start:.0f} s")
    return found


def spread(args: argparse.Namespace, jobs: int) -> None:
    """Fill the store with the cells of the study, `jobs` at once; what fails is left to `work`, which says it."""
    command = [sys.executable, __file__, args.study, "--folder", args.folder, "--data", args.data]
    command += ["--store", args.store, "--threads", 1, "--parent", os.getpid()]
    running = [
        subprocess.Popen([*map(str, command), "--shard", f"{i + 1}/{jobs}"], env={**os.environ, **ONE_THREAD})
        for i in range(jobs)
    ]
    try:
        for i, process in enumerate(running):
            status = process.wait()
            if status < 0:
                say(f"job {i + 1} of {jobs} was ended by {signal.Signals(-status).name}, as one that lacks memory is; "
                    "what it left is made here, one cell at a time")  # fmt: skip
    finally:
        for process in running:
            process.kill()


def follow(parent: int) -> None:
    """End with the process that started this one, however that ends."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(130)


def merge(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="study.py merge", description="Put the rows of stores into one.")
    parser.add_argument("into", type=Path)
    parser.add_argument("stores", type=Path, nargs="+")
    args = parser.parse_args(words)
    for path in args.stores:
        if not path.exists():
            raise IntvitError(f"{path}: no such file")
    with Store(args.into) as store:
        for path in args.stores:
            say(f"{path}: {store.merge(path)} new rows")
    return 0


def main(words: Sequence[str]) -> int:
    if words[:1] == ["merge"]:
        return merge(words[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=HERE / "study.toml")
    parser.add_argument("--folder", type=Path, default=Path("study"), help="for results")
    parser.add_argument("--data", type=Path, default=Path("real-weights"), help="for what is fetched and made")
    parser.add_argument("--store", type=Path, help="what was measured (SQLite); default FOLDER/rows.sqlite")
    parser.add_argument("--shard", metavar="I/N", help="only every N-th cell, from the I-th on; no tables then")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at once, each a process of one thread; "
                        "default: one per core")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of this process; with one job")
    parser.add_argument("--workers", type=int, help="with one job: processes of one thread for a cell's parts (Dask)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="with one job: of a Dask cluster")
    parser.add_argument("--part", type=int, default=PART, help="images that a worker is sent at once")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="the tables into docs/study.md")
    args = parser.parse_args(words)
    if args.parent:
        threading.Thread(target=follow, args=(args.parent,), daemon=True).start()
    study = read_study(args.study)
    if args.shard is not None:
        shard_of(args.shard, len(list(cells(study))))
    for folder in (args.folder, args.data):
        with reading(folder, "a folder that can be made"):
            folder.mkdir(parents=True, exist_ok=True)
    prepare(args.data, {
        name for entry in study.models for name in (entry.weights, entry.pool, entry.test) if name
    })  # fmt: skip
    subjects = {entry.name: Subject.of(entry, args.data, args.threads) for entry in study.models}
    for subject in subjects.values():  # what is wrong at once is said before anything is made
        subject.split(study.seeds[0])
    args.store = args.store or args.folder / "rows.sqlite"
    if args.shard is None and not (args.workers or args.scheduler or args.threads):
        jobs = min(args.jobs or 1, len(list(cells(study))))
        if jobs > 1:
            spread(args, jobs)
    with Store(args.store) as store:
        found = work(study, subjects, args, store)
    if args.shard is None:
        from study_tables import write_results

        write_results(found, args.folder, write=args.write)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except IntvitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ended; the same command goes on", file=sys.stderr)
        sys.exit(130)
