"""Runs cases in forked children of one warmed process, watches them, and judges what they leave behind."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pkgutil
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from fuzz_cases import Case, draw_case
from fuzz_oracles import ORACLES, Scene
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHARED_OUTSIDE = Path("/tmp/intvit-fuzz-outside")
"""Where hostile absolute names lead."""
MOST_BYTES = 2 << 30
CEILING = 12 << 30
"""Of the data segment: what asks for more is refused by the system, as on a machine that has no more."""
GOOD = (0, 1, 2)


@dataclass
class Finding:
    """One thing that must not happen. Findings of one `key` are one class."""

    index: int
    kind: str
    key: str
    text: str
    label: str = ""
    arguments: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    real: bool = False


@dataclass(frozen=True)
class Settings:
    seed: int
    work: Path
    seconds: float = 20.0
    real_share: float = 1 / 200
    keep: bool = False

    @property
    def seeds(self) -> Path:
        return self.work / "seeds"


Main = Callable[[list[str]], int]

# ------------------------------------------------------------------------------------ in the child


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below `folder`: mode, size and time of the last change."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                stat = os.lstat(path)
                is_folder = os.path.isdir(path) and not os.path.islink(path)
                found[os.path.relpath(path, folder)] = (stat.st_mode, 0 if is_folder else stat.st_size, 0 if is_folder else stat.st_mtime_ns)
    return found


def differences(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def peak_bytes() -> int:
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) << 10  # type: ignore[index]


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Child:
    """Runs cases one after the other, and says of each what was wrong."""

    def __init__(self, settings: Settings, main: Main, folder: Path) -> None:
        self.settings, self.main, self.folder = settings, main, folder
        self.texts = [os.memfd_create("stdout"), os.memfd_create("stderr")]
        for handle, text in zip((1, 2), self.texts, strict=True):
            os.dup2(text, handle)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def output_text(self) -> list[str]:
        """What was printed since the last call."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        found = []
        for text in self.texts:
            size = os.fstat(text).st_size
            found.append(os.pread(text, min(size, 1 << 20), 0).decode("utf-8", "replace"))
            os.ftruncate(text, 0)
            os.lseek(text, 0, os.SEEK_SET)
        return found

    def prepare(self, index: int) -> Case:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("in", "out", "outside", "tmp"):
            (self.folder / name).mkdir(parents=True)
        for path in (self.settings.work / "secret").iterdir():
            shutil.copy(path, self.folder / "outside" / path.name)
        rng = Random(f"{self.settings.seed}:{index}")
        os.chdir(self.folder / "in")
        return draw_case(rng, self.settings.seeds, self.folder / "in", self.folder / "out", self.settings.real_share)

    def call(self, case: Case) -> tuple[int | str, str, str]:
        """(exit status or what happened instead, stdout, stderr)"""
        os.chdir(self.folder / "out")
        self.output_text()
        if case.real:
            return self.call_real(case)
        status: int | str
        try:
            status = self.main(case.arguments)
        except BaseException as error:
            traceback.print_exception(error)
            status = type(error).__name__
        out, err = self.output_text()
        return status, out, err

    def call_real(self, case: Case) -> tuple[int | str, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **case.environment}
        environment.pop("ORT_DISABLE_TELEMETRY", None)  # as it is on anybody's machine
        words = [word.encode("utf-8", "surrogateescape") for word in case.arguments]
        command: list[str | bytes] = [sys.executable, "-m", "intvit", *words]
        try:
            status = subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL).returncode
        except (OSError, ValueError, UnicodeEncodeError) as error:
            return 2, "", f"intvit: cannot be called so: {error}"
        out, err = self.output_text()
        return status, out, err

    def judge(self, index: int) -> tuple[int | str, list[Finding], str]:
        case = self.prepare(index)
        places = {name: self.folder / name for name in ("in", "out", "outside", "tmp")}
        before = {name: snapshot(path) for name, path in places.items()}
        reset_peak()
        status, out, err = self.call(case)
        peak = max(peak_bytes(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10 if case.real else 0)
        found = list(judge_text(status, out, err, case))
        if peak > MOST_BYTES:
            found.append(("memory", case.label, f"{peak >> 20} MiB"))
        for name in ("in", "outside", "tmp"):
            touched = [p for p in differences(before[name], snapshot(places[name])) if not self.named(case, p)]
            if touched:
                kind = "left" if name == "tmp" else "outside"
                found.append((kind, f"{case.label}: {name}", f"{name}/{touched[0]} changed or made"))
        for path in (SHARED_OUTSIDE, self.folder.parent / "outside"):
            if path.exists() and any(path.iterdir()):
                found.append(("outside", f"{case.label}: {path.name}", f"{sorted(path.iterdir())[0]} was made"))
                shutil.rmtree(path)
                path.mkdir()
        found += self.judge_outputs(status, case, before["out"], snapshot(places["out"]))
        if status == 0 and case.oracle and not case.options_changed and not found:
            found += self.ask(case)
        text = f"{' '.join(case.arguments)!a}\n" + "".join(f"  {c!a}\n" for c in case.changes) + f"exit {status}\n{out}{err}"
        return status, [
            Finding(index, kind, key, line[:400], case.label, case.arguments, case.changes, case.real) for kind, key, line in found
        ], text

    def named(self, case: Case, place: str) -> bool:
        """The command line itself named this file."""
        return case.options_changed and any(word.rstrip("/").endswith(place.split("/")[0]) or "\0" in word for word in case.arguments)

    def judge_outputs(
        self, status: int | str, case: Case, before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]
    ) -> Iterator[tuple[str, str, str]]:
        changed = [name for name in differences(before, after)]
        if status == 0 and not case.options_changed:
            missing = [name for name in case.outputs if name not in after]
            if missing:
                yield "left", f"{case.label}: no output", f"exit 0 without {missing[0]}"
        tops = {name.split("/")[0] for name in changed}
        if status == 0:
            tops -= set(case.outputs)
        if case.options_changed:
            words = [word.strip("/") for word in case.arguments]
            tops = {top for top in tops if status != 0 or not any(word.split("/")[0] == top for word in words)}
        for top in sorted(tops):
            if not (status == 0 and top.endswith(".partial") and top in before):
                yield "left", f"{case.label}: {'.partial' if top.endswith('.partial') else '.lock' if top.endswith('.lock') else 'output'}", (
                    f"{top} was {'made' if top in after and top not in before else 'changed' if top in after else 'removed'}, exit {status}"
                )

    def ask(self, case: Case) -> Iterator[tuple[str, str, str]]:
        scene = Scene(case, self.folder / "in", self.folder / "out", self.folder / "spare", self.settings.seeds, self.main)
        try:
            answer = ORACLES[case.oracle](scene)
        except Exception as error:
            answer = f"cannot be compared: {type(error).__name__}: {error}"
        if answer:
            kind = "differs" if case.oracle in ("backends agree", "same function") else "accepted"
            yield kind, f"{case.label}: {re.sub(r'[0-9.e+-]+', '#', answer)[:60]}", answer
        self.output_text()


FRAME = re.compile(r'File "([^"]*/intvit/[^"]*)", line \d+, in (\S+)')
WARNING = re.compile(r"\b(\w*Warning)\b")


def judge_text(status: int | str, out: str, err: str, case: Case) -> Iterator[tuple[str, str, str]]:
    """Findings in the exit status and in what was printed."""
    frames = FRAME.findall(err)
    innermost = f"{frames[-1][0].rpartition('/intvit/')[2]}:{frames[-1][1]}" if frames else ""
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if status not in GOOD:
        named = re.search(r"please report it: (\w+)", last) or re.match(r"([\w.]+)", last)
        yield "traceback" if "Traceback" in err else "exit", f"{status} {named[1] if named else ''} {innermost}", last
    elif "Traceback" in err:
        yield "traceback", f"printed {innermost}", last
    elif WARNING.search(err) and not case.environment.get("PYTHONWARNINGS"):
        yield "warning", f"{WARNING.search(err)[1]} {lines[0].rpartition('/')[2][:40]}", lines[0]  # type: ignore[index]
    elif status == 2 and "Usage: " not in err + out:
        if len(lines) != 1 or not lines[0].startswith("intvit: "):
            yield "message", f"{case.label}: not one line", f"{len(lines)} lines: {lines[:2]}"
        elif not all(c.isprintable() for c in lines[0]):
            yield "message", f"{case.label}: not printable", repr(lines[0])[:200]
        elif len(lines[0]) > 1500:
            yield "message", f"{case.label}: long", f"{len(lines[0])} characters: {lines[0][:100]}"
    elif status == 1 and not (case.arguments[:1] == ["doctor"] or case.arguments[:2] == ["golden", "check"]):
        yield "exit", f"1 of {case.label}", last


# ----------------------------------------------------------------------------------- in the parent


def warm(work: Path) -> Main:
    """Import everything, compile or load every kernel, build the command tree once; returns the command line."""
    import intvit
    import typer.main
    from intvit import cli, trace
    from intvit.errors import IntvitError

    typer.main.get_command = functools.cache(typer.main.get_command)
    for module in pkgutil.walk_packages(intvit.__path__, "intvit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("onnxruntime")
    Image.init()
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401

    def main(arguments: list[str]) -> int:
        if arguments[:1] != ["@trace"]:
            return cli.main(arguments)
        try:
            trace.read_tensor(arguments[1], arguments[2])
        except IntvitError as error:
            print(f"intvit: {error}", file=sys.stderr)
            return 2
        return 0

    return main


class Slot:
    """A child at work on a range of indices."""

    def __init__(self, settings: Settings, main: Main, indices: range, number: int) -> None:
        self.indices, self.at, self.since = indices, indices.start, time.monotonic()
        self.buffer = b""
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            code = 3
            try:
                os.setsid()
                serve(settings, main, indices, settings.work / f"slot{number}", writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self.reader = reader

    def memory(self) -> int:
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0

    def stop(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.reader)
        return os.waitpid(self.pid, 0)[1]


def serve(settings: Settings, main: Main, indices: range, folder: Path, writer: int) -> None:
    child = Child(settings, main, folder)
    os.environ["TMPDIR"] = str(folder / "tmp")
    import tempfile

    tempfile.tempdir = None
    os.fsync = lambda handle: None  # nothing here is about power failures
    for index in indices:
        os.write(writer, json.dumps({"start": index}).encode() + b"\n")
        try:
            status, findings, text = child.judge(index)
        except Exception as error:  # the fuzzer's own fault
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} {Path(where.filename).name}:{where.lineno}"
            status, findings, text = "not run", [Finding(index, "fuzzer", key, str(error))], key
        line = {"done": index, "status": status, "findings": [asdict(finding) for finding in findings]}
        if settings.keep:
            line["text"] = text
        os.write(writer, json.dumps(line).encode() + b"\n")
    if not settings.keep:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


def run_cases(
    settings: Settings, main: Main, start: int, stop: int, *, workers: int = 1, batch: int = 40,
    seen: Callable[[int, int | str, list[Finding], str], None],
) -> None:  # fmt: skip
    """Run the cases `start` to `stop`; `seen(index, status, findings, text)` after each, in any order."""
    SHARED_OUTSIDE.mkdir(exist_ok=True)
    todo = [range(i, min(i + batch, stop)) for i in range(start, stop, batch)][::-1]
    slots: dict[int, Slot] = {}
    free = list(range(workers))
    while todo or slots:
        while todo and free:
            number = free.pop()
            slot = Slot(settings, main, todo.pop(), number)
            slots[number] = slot
        ready, _, _ = select.select([slot.reader for slot in slots.values()], [], [], 0.05)
        for number, slot in list(slots.items()):
            ended, reason = False, ""
            if slot.reader in ready:
                data = os.read(slot.reader, 1 << 20)
                slot.buffer += data
                *lines, slot.buffer = slot.buffer.split(b"\n")
                for line in map(json.loads, lines):
                    slot.since = time.monotonic()
                    if "start" in line:
                        slot.at = line["start"]
                    else:
                        slot.at = line["done"] + 1
                        seen(line["done"], line["status"], [Finding(**f) for f in line["findings"]], line.get("text", ""))
                ended = not data
            elif time.monotonic() - slot.since > settings.seconds:
                ended, reason = True, "hang"
            elif slot.memory() > MOST_BYTES:
                ended, reason = True, "memory"
            if ended:
                del slots[number]
                free.append(number)
                status = slot.stop()
                if slot.at < slot.indices.stop:
                    if not reason and os.WIFSIGNALED(status):
                        reason = f"killed by signal {os.WTERMSIG(status)}"
                    seen(slot.at, reason or "died", [described(settings, slot.at, reason or "died")], "")
                    if slot.at + 1 < slot.indices.stop:
                        todo.append(range(slot.at + 1, slot.indices.stop))


def described(settings: Settings, index: int, reason: str) -> Finding:
    """A finding about a child that could not speak for itself; the case is drawn again to tell what it was."""
    folder = settings.work / "drawn"
    pid = os.fork()
    if pid == 0:
        try:
            child = Child(settings, lambda arguments: 0, folder)
            case = child.prepare(index)
            text = json.dumps([case.label, case.arguments, case.changes, case.real])
            (folder / "case.json").write_text(text)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    try:
        label, arguments, changes, real = json.loads((folder / "case.json").read_text())
    except (OSError, ValueError):
        label, arguments, changes, real = "not drawn", [], [], False
    shutil.rmtree(folder, ignore_errors=True)
    return Finding(index, reason, label, f"{reason}: {changes}"[:400], label, arguments, changes, real)
