"""Hands indices to forked children of one warmed process, watches their time and memory, and gathers what they find."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pkgutil
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_child import MOST_BYTES, SHARED_OUTSIDE, Child, Main, Settings
from fuzz_judge import Finding
from PIL import Image

Seen = Callable[[int, str, int | str, list[Finding], str], None]
"""(index, label, exit status, findings, text to read) of one case."""


def warm() -> Main:
    """Import everything and build the command tree once; returns the command line, with a command that reads traces."""
    import typer.main

    import intvit
    from intvit import cli
    from intvit.engine import trace
    from intvit.errors import IntvitError

    typer.main.get_command = functools.cache(typer.main.get_command)
    for module in pkgutil.walk_packages(intvit.__path__, "intvit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("onnxruntime")
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")

    def main(arguments: list[str]) -> int:
        if arguments[:1] != ["@trace"]:
            return cli.main(arguments)
        try:
            trace.read_tensor(arguments[1], arguments[2])
        except IntvitError as error:
            return cli._say(str(error), 2)
        return 0

    return main


class Slot:
    """A child at work on a range of indices."""

    def __init__(self, settings: Settings, main: Main, indices: range, number: int) -> None:
        self.indices, self.at, self.since = indices, indices.start, time.monotonic()
        self.buffer = b""
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 3
            try:
                os.setsid()
                serve(settings, main, indices, settings.work / f"slot{number}", writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        """What the child wrote since the last call, and whether that was all."""
        data = os.read(self.reader, 1 << 20)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines], not data

    def memory(self) -> int:
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0

    def stop(self) -> int:
        """End the child and what it started; its wait status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.reader)
        return os.waitpid(self.pid, 0)[1]


def serve(settings: Settings, main: Main, indices: range, folder: Path, writer: int) -> None:
    """In the child: run the cases, and say of each when it begins and what came of it."""
    child = Child(settings, main, folder)
    for index in indices:
        os.write(writer, json.dumps({"start": index}).encode() + b"\n")
        try:
            label, status, findings, text = child.judge(index)
        except Exception as error:  # the fuzzer's own fault
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} {Path(where.filename).name}:{where.lineno}"
            label, status, findings = "not drawn", "not run", [Finding(index, "fuzzer", text, str(error))]
        line = {"done": index, "label": label, "status": status, "findings": [asdict(finding) for finding in findings]}
        os.write(writer, json.dumps(line | {"text": text if settings.keep else ""}).encode() + b"\n")
    os.chdir("/")
    if not settings.keep:
        shutil.rmtree(folder, ignore_errors=True)


def run_cases(settings: Settings, main: Main, start: int, stop: int, seen: Seen, *, workers: int = 1,
              batch: int = 80) -> None:  # fmt: skip
    """Run the cases from `start` to before `stop` in `workers` children at a time; `seen` after each, in any order."""
    SHARED_OUTSIDE.mkdir(exist_ok=True)
    todo = [range(i, min(i + batch, stop)) for i in range(start, stop, batch)][::-1]
    slots: dict[int, Slot] = {}
    slow: set[int] = set()
    try:
        while todo or slots:
            for number in range(workers):
                while todo and not todo[-1]:
                    todo.pop()
                if todo and number not in slots:
                    slots[number] = Slot(settings, main, todo.pop(), number)
            if not slots:
                break
            ready, _, _ = select.select([slot.reader for slot in slots.values()], [], [], 0.05)
            for number, slot in list(slots.items()):
                reason, ended = "", False
                if slot.reader in ready:
                    messages, ended = slot.messages()
                    for message in messages:
                        slot.since = time.monotonic()
                        slot.at = message["start"] if "start" in message else message["done"] + 1
                        if "done" in message:
                            findings = [Finding(**found) for found in message["findings"]]
                            seen(message["done"], message["label"], message["status"], findings, message["text"])
                elif time.monotonic() - slot.since > settings.seconds:
                    reason = "hang"
                elif slot.memory() > MOST_BYTES:
                    reason = "memory"
                if reason == "hang" and slot.at not in slow:  # the machine may be busy: once more, alone
                    slow.add(slot.at)
                    slots.pop(number).stop()
                    todo += [range(slot.at + 1, slot.indices.stop), range(slot.at, slot.at + 1)]
                elif ended or reason:
                    todo += after_death(settings, slots.pop(number), reason, seen)
    finally:
        for slot in slots.values():
            slot.stop()


def after_death(settings: Settings, slot: Slot, reason: str, seen: Seen) -> list[range]:
    """Bury a child; what it did not get to do is returned, what it died of is a finding."""
    status = slot.stop()
    if slot.at >= slot.indices.stop:
        return []
    if not reason:
        reason = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died"
    finding = described(settings, slot.at, reason)
    seen(slot.at, finding.label, reason, [finding], "")
    return [range(slot.at + 1, slot.indices.stop)]


def described(settings: Settings, index: int, reason: str) -> Finding:
    """A finding about a child that could not speak for itself: its case is drawn again, to tell what it was."""
    folder, answer = settings.work / "drawn", settings.work / "drawn.json"
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            case = Child(settings, lambda arguments: 0, folder).prepare(index)
            answer.write_text(json.dumps([case.label, case.arguments, case.changes, case.real]))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    drawn = json.loads(answer.read_text()) if answer.exists() else ("not drawn", [], [], False)
    answer.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return Finding(index, reason, drawn[0], f"{reason}: {drawn[2]}"[:400], *drawn)
