"""What a command says and leaves behind, judged."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_cases import Case

GOOD = (0, 1, 2)
LONGEST_LINE = 1500
Found = tuple[str, str, str]
"""Kind of a finding, the key of its class, and what was seen."""
Snapshot = dict[str, tuple[int, int, int]]
"""Names below a folder: mode, size and time of the last change."""
FRAME = re.compile(r'File "([^"]*/intvit/[^"]*)", line \d+, in (\S+)')
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
CLICK = re.compile("Usage: |^Error: |^Shell .* not supported")
"""Of options, in words that are not ours."""
WARNING = re.compile(r"\b(\w*Warning)\b")


@dataclass
class Finding:
    """One thing that must not happen. Findings of one kind and key are one class."""

    index: int
    kind: str
    key: str
    text: str
    label: str = ""
    arguments: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    real: bool = False


def judge_text(status: int | str, out: str, err: str, case: Case) -> Iterator[Found]:
    """The exit status and what was printed: no traceback, no warning, and of a refusal one printable line."""
    if "FORCE_COLOR" in case.environment:  # asks for a bar in the way of an answer
        err = "".join(line for line in CONTROL.sub("", err).splitlines(keepends=True) if "\u2501" not in line)
    frames = FRAME.findall(err)
    innermost = f"{frames[-1][0].rpartition('/intvit/')[2]}:{frames[-1][1]}" if frames else ""
    lines = [line for line in err.splitlines() if line.strip()]
    last, warning = lines[-1] if lines else "", WARNING.search(err)
    if status not in GOOD:
        named = re.search(r"please report it: (\w+)", last) or re.match(r"([\w.]+)", last)
        yield "traceback" if "Traceback" in err else "exit", f"{status} {named[1] if named else ''} {innermost}", last
    elif "Traceback" in err:
        yield "traceback", f"printed {innermost}", last
    elif warning and "PYTHONWARNINGS" not in case.environment:
        yield "warning", f"{warning[1]} {lines[0].rpartition('/')[2][:40]}", lines[0]
    elif status == 2 and not CLICK.search(err + out):
        if len(lines) != 1 or not lines[0].startswith("intvit: "):
            yield "message", f"{case.label}: not one line", f"{len(lines)} lines: {lines[:2]}"
        elif not all(c.isprintable() for c in lines[0]):
            yield "message", f"{case.label}: not printable", repr(lines[0])[:200]
        elif len(lines[0]) > LONGEST_LINE:
            yield "message", f"{case.label}: long", f"{len(lines[0])} characters: {lines[0][:100]}"
    elif status == 1 and case.arguments[:1] != ["doctor"] and case.arguments[:2] != ["golden", "check"]:
        yield "exit", f"1 of {case.label}", last


def snapshot(folder: Path) -> Snapshot:
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                stat = os.lstat(path)
                is_folder = os.path.isdir(path) and not os.path.islink(path)
                size_and_time = (0, 0) if is_folder else (stat.st_size, stat.st_mtime_ns)
                found[os.path.relpath(path, folder)] = (stat.st_mode, *size_and_time)
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def judge_place(name: str, case: Case, before: Snapshot, after: Snapshot) -> Iterator[Found]:
    """A folder that is no place to write to, unless the command line named it."""
    words = [word.rstrip("/") for word in case.arguments] if case.options_changed else []
    for path in differences(before, after):
        top = path.split("/")[0]
        if not any(top in word or "\0" in word for word in words):
            kind = "left" if name == "tmp" else "outside"
            yield kind, f"{case.label}: {name}", f"{name}/{path} was changed, made or removed"
            return


def judge_outputs(status: int | str, case: Case, before: Snapshot, after: Snapshot) -> Iterator[Found]:
    """The folder of outputs: all of them where the command says so, else what stood there before."""
    tops = {name.split("/")[0] for name in differences(before, after)}
    if status == 0:
        missing = [name for name in case.outputs if name not in after and not case.options_changed]
        if missing:
            yield "left", f"{case.label}: no output", f"exit 0 without {missing[0]}"
        tops -= set(case.outputs)
    if case.options_changed and status == 0:
        named = {word.strip("/").split("/")[0] for word in case.arguments}
        tops -= named | {part for word in named for part in word.split("=")}
    if case.label == "record again":  # what was left may go, or stay
        tops -= {name.split("/")[0] for name in before}
        ours = any(f"r.h5.{suffix}" in after for suffix in ("partial", "lock", "journal"))
        if status == 0 and "r.h5" in after and ours:
            yield "left", f"{case.label}: after success", f"{sorted(after)}"
    for top in sorted(tops):
        what = "made" if top in after and top not in before else "changed" if top in after else "removed"
        suffix = Path(top).suffix if Path(top).suffix in (".partial", ".lock", ".journal") else "output"
        yield "left", f"{case.label}: {suffix}", f"{top} was {what}, exit {status}"
