"""Write a folder with everything that a simulator needs to replay cases against top modules."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.files import writing
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array
from intvit.vectors.bench.constants import Constant, Memory, Stream, constants, identifier, memories, printable, streams
from intvit.vectors.bench.top import Top
from intvit.vectors.cases import Case
from intvit.vectors.memh import format_memh

DATA = Path(__file__).resolve().parent / "data"
PARTS = ("stream_source.sv", "stream_sink.sv")
COCOTB = ("test_golden.py", "run_cocotb.py")
TIMEOUT = 1_000_000
VERILATOR = ["-sv", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wno-MULTIDRIVEN", "-O1"]
ICARUS = ["-g2012"]
MAKE = "CFG_CXXFLAGS_PCH_I=-include CFG_GCH_IF_CLANG="
"""Of Verilator's build: the package was built by another compiler and knows nothing of ours."""
MANY = 50_000
"""Words from which on a faster simulation is worth the time to compile it."""


@dataclass(frozen=True, eq=False)
class Job:
    """A case and the module that it is replayed against; `word`: a fixed width of all words, or as wide as needed."""

    case: Case
    top: Top
    word: int | None = None


@dataclass(frozen=True, eq=False)
class Written:
    """A job as its templates see it; `ident` is its folder, and the stem of its modules."""

    job: Job
    ident: str

    @property
    def name(self) -> str:
        return printable(self.job.case.name)

    @property
    def top(self) -> Top:
        return self.job.top

    @cached_property
    def constants(self) -> list[Constant]:
        case = self.job.case
        return constants(case.part, len(case.images), self.ident, self.job.word)

    @cached_property
    def stimuli(self) -> list[Stream]:
        case = self.job.case
        return streams(case.part, case.part.inputs, "s", len(case.images), self.ident, self.job.word)

    @cached_property
    def expected(self) -> list[Stream]:
        case = self.job.case
        return streams(case.part, case.part.outputs, "m", len(case.images), self.ident, self.job.word)

    @property
    def streams(self) -> list[Stream]:
        return [*self.stimuli, *self.expected]

    @cached_property
    def memories(self) -> list[Memory]:
        return memories(self.job.case.part, self.job.word)

    @property
    def overrides(self) -> list[str]:
        """Parameters of the top that are constants of the case; IntvitError for one that nothing gives a value."""
        known = {constant.name for constant in self.constants}
        for name, has_default in self.top.parameters.items():
            if name not in known and not has_default:
                said = "have a default or be a constant of the case"
                raise IntvitError(f"{self.top.path}: parameter {name} must {said} {self.name}")
        return [name for name in self.top.parameters if name in known]

    @property
    def notes(self) -> list[str]:
        """Why a top may be that of another operator: constants that it has no parameter for, and the reverse."""
        asked, known = set(self.top.parameters), {constant.name for constant in self.constants}
        numbers = [c.name for c in self.constants if not c.counts and not c.name.endswith(("_MIN", "_MAX"))]
        unasked = [name for name in numbers if name not in asked]
        unknown = [name for name in self.top.parameters if name not in known]
        return [f"{self.top.name} has no parameter {', '.join(unasked)}"] * bool(unasked) + [
            f"{self.top.name} has its own default of {', '.join(unknown)}"
        ] * bool(unknown)


def write_bench(folder: str | Path, jobs: Sequence[Job], *, timeout: int = TIMEOUT) -> list[Written]:
    """Fill `folder`, which is made, with memories, packages, both benches and bench.json; what was written, by job.

    IntvitError for jobs that do not fit their top, or no jobs at all.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not jobs:
        raise IntvitError("bench: must have a case at least, and has none")
    folder = Path(folder)
    written = _named(jobs)
    environment = Environment(loader=FileSystemLoader(DATA), undefined=StrictUndefined, keep_trailing_newline=True)

    def render(template: str, path: Path, **values: Any) -> None:
        path.write_text(environment.get_template(f"{template}.jinja").render(**values), "ascii")

    _modules_differ(written)
    for each in written:
        _ = each.overrides, each.memories
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for each in written:
            (folder / each.ident).mkdir()
            _write_words(folder, each)
            render("package.sv", folder / each.ident / "package.sv", case=each)
            render("dut.sv", folder / each.ident / "dut.sv", case=each)
        for name in ("bench.sv", "cocotb_top.sv"):
            render(name, folder / name, cases=written, timeout=timeout)
        for name in (*PARTS, *COCOTB):
            shutil.copy(DATA / name, folder / name)
        text = json.dumps(_description(folder, written, timeout), indent=1)
        (folder / "bench.json").write_text(f"{text}\n", "ascii")
    return written


def _named(jobs: Sequence[Job]) -> list[Written]:
    """Every job under an identifier of its own."""
    taken: set[str] = set()
    written = []
    for job in jobs:
        stem = name = identifier(job.case.name)
        count = 1
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        written.append(Written(job, name))
    return written


def _modules_differ(written: Sequence[Written]) -> None:
    """Two tops of one name, and a top that has the name of a module of the bench, cannot be in one simulation."""
    tops: dict[str, Path] = {}
    for each in written:
        other = tops.setdefault(each.top.name, each.top.path)
        if other.resolve() != each.top.path.resolve():
            raise IntvitError(f"{each.top.path}: top must not have the name of another one, {other}")
    own = {"bench", "cocotb_top", "stream_source", "stream_sink"}
    own |= {f"{each.ident}_{suffix}" for each in written for suffix in ("pkg", "dut", "bench")}
    for name in own & set(tops):
        raise IntvitError(f"{tops[name]}: top must not have the name of a module of the bench")


def _write_words(folder: Path, each: Written) -> None:
    """One file for each stream, all images one after another, and one for each array."""
    case = each.job.case
    for stream in each.streams:
        values = case.stimuli if stream.port.startswith("s") else case.expected
        words = np.concatenate([np.asarray(values(image)[stream.tensor]).reshape(-1) for image in case.images])
        shape = list(case.part.tensors[stream.tensor].shape)
        said = f"{each.ident} {stream.port} s{stream.bits} {len(case.images)} x {shape}, row-major"
        _write(folder / stream.file, words, stream.bits, said)
    for memory in each.memories:
        said = f"{each.ident} {memory.name} s{memory.bits} {list(memory.values.shape)}, row-major"
        _write(folder / each.ident / f"{memory.name}.hex", memory.values, memory.bits, said)


def _write(path: Path, words: Array, bits: int, said: str) -> None:
    kind = IntType(bits)
    if words.size == 0 or int(words.min()) < kind.min or int(words.max()) > kind.max:
        raise IntvitError(f"{path.name}: values must be there and fit s{bits}")
    path.write_bytes(format_memh(words, kind, said))


def _description(folder: Path, written: Sequence[Written], timeout: int) -> dict[str, Any]:
    """What run_cocotb.py and test_golden.py read."""
    places = dict.fromkeys(str(each.top.path.resolve().parent) for each in written)
    sources = [*PARTS, *(f"{each.ident}/{name}.sv" for each in written for name in ("package", "dut"))]
    sources += dict.fromkeys(str(each.top.path.resolve()) for each in written)
    many = sum(stream.words for each in written for stream in each.streams) > MANY
    search = [argument for place in places for argument in ("-y", place)]
    return {
        "timeout": timeout,
        "make": MAKE if many else f"{MAKE} OPT_FAST=-O0",
        "sources": sources,
        "arguments": {"verilator": [*VERILATOR, *search, "+libext+.sv+.v"],
                      "icarus": [*ICARUS, *search, "-Y", ".sv", "-Y", ".v"]},
        "cases": [
            {"name": each.name, "ident": each.ident, "top": each.top.name}
            | {kind: [vars(stream) for stream in getattr(each, kind)] for kind in ("stimuli", "expected")}
            for each in written
        ],
    }  # fmt: skip


def linked(folder: Path, copy: Path) -> None:
    """A second folder of the same files, by links, of which single ones can be replaced."""
    for root, _, names in os.walk(folder):
        target = copy / Path(root).relative_to(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name.endswith((".hex", ".json", ".py")):
                os.symlink(Path(root, name).resolve(), target / name)
