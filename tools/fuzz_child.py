"""A forked child of the fuzzer: prepares cases, runs them, and says of each what was wrong."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz_cases import Case, draw_case
from fuzz_environment import ROOT
from fuzz_judge import Finding, Found, judge_outputs, judge_place, judge_text, snapshot
from fuzz_oracles import ORACLES, Scene

SHARED_OUTSIDE = Path("/tmp/intvit-fuzz-outside")
"""Where hostile absolute names lead."""
MOST_BYTES = 2 << 30
CEILING = 12 << 30
"""Of the data segment: what asks for more is refused by the system, as on a machine that has no more."""
PLACES = ("in", "out", "outside", "tmp")
Main = Callable[[list[str]], int]


@dataclass(frozen=True)
class Settings:
    """Of a campaign. `work` holds the seeds and the folders of the children."""

    seed: int
    work: Path
    seconds: float = 20.0
    real_share: float = 1 / 200
    keep: bool = False

    @property
    def seeds(self) -> Path:
        return self.work / "seeds"


def peak_bytes() -> int:
    """The most resident memory since `reset_peak`."""
    with open("/proc/self/status") as file:
        found = re.search(r"VmHWM:\s+(\d+)", file.read())
    return int(found[1]) << 10 if found else 0


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Child:
    """Runs cases one after the other in `folder`; its standard streams are its own from now on."""

    def __init__(self, settings: Settings, main: Main, folder: Path) -> None:
        self.settings, self.main, self.folder = settings, main, folder
        self.texts = [os.memfd_create("stdout"), os.memfd_create("stderr")]
        for handle, text in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *self.texts), strict=True):
            os.dup2(text, handle)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
        os.fsync = lambda handle: None  # nothing here is about power failures

    def printed(self) -> list[str]:
        """What was printed to standard output and standard error since the last call."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        found = []
        for text in self.texts:
            found.append(os.pread(text, min(os.fstat(text).st_size, 1 << 20), 0).decode("utf-8", "replace"))
            os.ftruncate(text, 0)
            os.lseek(text, 0, os.SEEK_SET)
        return found

    def prepare(self, index: int) -> Case:
        """Draw the case of this index and write its files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in PLACES:
            (self.folder / name).mkdir(parents=True)
        for path in (self.settings.work / "secret").iterdir():
            shutil.copy(path, self.folder / "outside" / path.name)
        os.chdir(self.folder / "in")
        rng = Random(f"{self.settings.seed}:{index}")
        return draw_case(rng, self.settings.seeds, self.folder / "in", self.folder / "out", self.settings.real_share)

    def call(self, case: Case) -> tuple[int | str, str, str]:
        """(exit status or what happened instead, stdout, stderr)"""
        os.chdir(self.folder / "out")
        self.printed()
        status: int | str
        try:
            status = self.real(case) if case.real else self.main(case.arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            traceback.print_exception(error)
            status = type(error).__name__
        out, err = self.printed()
        return status, out, err

    def real(self, case: Case) -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **case.environment}
        environment.pop("ORT_DISABLE_TELEMETRY", None)  # as it is on anybody's machine
        words = [word.encode("utf-8", "surrogateescape") for word in case.arguments]
        command: list[str | bytes] = [sys.executable, "-m", "intvit", *words]
        return subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL).returncode

    def judge(self, index: int) -> tuple[str, int | str, list[Finding], str]:
        """Run one case: (label, exit status, findings, everything that one may want to read)."""
        case = self.prepare(index)
        before = {name: snapshot(self.folder / name) for name in PLACES}
        reset_peak()
        status, out, err = self.call(case)
        peak = peak_bytes()
        if case.real:
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        found = list(judge_text(status, out, err, case))
        if peak > MOST_BYTES:
            found.append(("memory", case.label, f"{peak >> 20} MiB"))
        for name in ("in", "outside", "tmp"):
            found += judge_place(name, case, before[name], snapshot(self.folder / name))
        found += self.judge_outside(case)
        found += judge_outputs(status, case, before["out"], snapshot(self.folder / "out"))
        if status == 0 and case.oracle and not case.options_changed and not found:
            found += self.ask(case)
        changes = "".join(f"  {change!a}\n" for change in case.changes)
        text = f"{' '.join(case.arguments)!a}\n{changes}exit {status}\n{out}{err}"
        about = (case.label, case.arguments, case.changes, case.real)
        return case.label, status, [Finding(index, kind, key, line[:400], *about) for kind, key, line in found], text

    def judge_outside(self, case: Case) -> Iterator[Found]:
        """Where names with `..` or absolute ones lead."""
        for path in (SHARED_OUTSIDE, self.folder.parent / "outside"):
            if path.exists() and (made := sorted(path.iterdir())):
                yield "outside", f"{case.label}: {path.name}", f"{made[0]} was made"
                shutil.rmtree(path)
                path.mkdir()

    def ask(self, case: Case) -> Iterator[Found]:
        """The oracle of an accepted case."""
        scene = Scene(case, self.folder, self.settings.seeds, self.main)
        try:
            answer = ORACLES[case.oracle](scene)
        except Exception as error:
            answer = f"cannot be compared: {type(error).__name__}: {error}"
        self.printed()
        if answer:
            kind = "differs" if case.oracle in ("backends agree", "same function") else "accepted"
            key = re.sub(r"\b[\w./ -]*/", "", answer.split(",")[0])
            yield kind, f"{case.label}: {re.sub(r'[0-9.e+-]*[0-9][0-9.e+-]*', '#', key)[:60]}", answer
