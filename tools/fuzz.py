#!/usr/bin/env python3
"""Feed intvit damaged, hostile and inconsistent files and options, and see that it stays honest.

    python tools/fuzz.py --count 100000 --seed 1 --workers 2
    python tools/fuzz.py --replay 1:4711

Every command gets every kind of file that it reads, made by the package from tiny networks and then changed: at the
level of bytes, of the container, of the structure, and of the meaning with digests made to fit again. A case is drawn
from SEED:INDEX alone. Most run in process, in forked children of one warmed parent; some through the real command.

A finding is: a traceback or an exit status other than 0, 1, 2; a killed process; more than 20 s; more than 2 GiB; what
is left behind after a refusal; a file outside touched; a refusal that is not one line; damaged content accepted; kernel
and specification that differ, or the imported network and onnxruntime. Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import fuzz_environment  # noqa: F401
import numpy as np
from fuzz_child import Main, Settings
from fuzz_graph import constants
from fuzz_judge import Finding
from fuzz_seeds import write_seeds
from fuzz_server import run_cases, warm


def make_seeds(settings: Settings, main: Main) -> None:
    """Write the seed files in a child of its own: onnxruntime's threads must not be there when the others fork."""
    shutil.rmtree(settings.work, ignore_errors=True)
    settings.work.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log = os.open(settings.work / "seeds.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)

            def command(*arguments: str) -> None:
                if main(list(arguments)) != 0:
                    raise AssertionError(f"refused: {arguments}")

            write_seeds(settings.seeds, command)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit((settings.work / "seeds.log").read_text() + "\nthe seed files cannot be made")
    secret = settings.work / "secret"
    secret.mkdir()
    shutil.copy(settings.seeds / "images.h5", secret / "secret.h5")
    for suffix in (".png", ".json", ".npz", ".npy", ".h5", ".onnx", ".safetensors", ".toml"):
        source = next(p for p in sorted(settings.seeds.rglob(f"*{suffix}")) if p.is_file())
        shutil.copy(source, secret / f"copy{suffix}")


def load_kernels(settings: Settings, main: Main) -> None:
    """Run what compiles once in the parent, so that no child does."""
    seeds, quiet = settings.seeds, os.open(os.devnull, os.O_WRONLY)
    kept = [os.dup(1), os.dup(2)]
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        for name in ("ivit.h5", "ibert.h5", "fqvit.h5", "mixed.h5"):
            constants(seeds / name)
            for backend in ("kernel", "spec"):
                main(["run", str(seeds / name), str(seeds / "images.npy"), "-o", str(settings.work / "warm.npz"),
                      "--threads", "1", "--backend", backend])  # fmt: skip
        for path in sorted(seeds.glob("part_*.h5")):
            constants(path)
            if "recording" not in path.name:
                main(
                    [
                        "run",
                        str(path),
                        str(seeds / "tokens.npy"),
                        "-o",
                        str(settings.work / "warm.npz"),
                        "--threads",
                        "1",
                    ]
                )
        main(
            [
                "run",
                str(seeds / "swin.h5"),
                str(seeds / "gray.npy"),
                "-o",
                str(settings.work / "warm.npz"),
                "--threads",
                "1",
            ]
        )
        constants(seeds / "swin.h5")
        main(["golden", "check", str(seeds / "golden")])
        main(["doctor", str(seeds / "ivit.safetensors")])
    finally:
        for handle, copy in zip((1, 2), kept, strict=True):
            sys.stdout.flush()
            os.dup2(copy, handle)


def report(classes: dict[tuple[str, str], list[Finding]], seed: int) -> str:
    """One paragraph a class of findings: the simplest case, and how to see it again."""
    lines = []
    for (kind, key), found in sorted(classes.items(), key=lambda item: (item[0][0], -len(item[1]))):
        first = min(found, key=lambda finding: (finding.real, len(finding.changes), finding.index))
        lines += [f"{kind}: {key}  ({len(found)} times)", f"    {first.text!a}"[:300]]
        lines.append(f"    intvit {' '.join(first.arguments)!a}"[:200])
        lines += [f"    {change!a}"[:160] for change in first.changes[:4]]
        lines.append(f"    python tools/fuzz.py --replay {seed}:{first.index}")
    return "\n".join(lines).encode("ascii", "backslashreplace").decode()


class Tally:
    """What was seen so far."""

    def __init__(self, count: int) -> None:
        self.count, self.begin, self.said = count, time.monotonic(), time.monotonic()
        self.statuses = Counter[str]()
        self.labels: dict[str, Counter[str]] = {}
        self.classes: dict[tuple[str, str], list[Finding]] = {}

    def seen(self, index: int, label: str, status: int | str, findings: list[Finding], text: str) -> None:
        self.statuses[str(status)] += 1
        self.labels.setdefault(label, Counter())[str(status)] += 1
        for finding in findings:
            found = self.classes.setdefault((finding.kind, finding.key), [])
            if not found:
                print(f"new: {finding.kind}: {finding.key} ({index})".encode("ascii", "replace").decode(), flush=True)
            found.append(finding)
        if text:
            print(text)
        if time.monotonic() - self.said > 60:
            self.said = time.monotonic()
            print(self.line(), flush=True)

    def table(self) -> str:
        """Exit statuses of each kind of case: what is always refused tests little."""
        rows = [f"  {label:22} {dict(sorted(found.items()))}" for label, found in sorted(self.labels.items())]
        return "\n".join(rows)

    def line(self) -> str:
        done, seconds = sum(self.statuses.values()), time.monotonic() - self.begin
        n_findings = sum(map(len, self.classes.values()))
        return (
            f"{done} of {self.count} inputs, {seconds:.0f} s, {done / seconds:.0f} a second; exit statuses "
            f"{dict(sorted(self.statuses.items()))}; {n_findings} findings in {len(self.classes)} classes"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    memory = Path("/dev/shm")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replay", help="SEED:INDEX of one case; its files stay in the work folder")
    parser.add_argument("--real", type=float, default=1 / 200, help="share that goes through the real command")
    parser.add_argument("--work", type=Path, default=(memory if memory.is_dir() else Path("/tmp")) / "intvit-fuzz")
    parser.add_argument("--seconds", type=float, default=20.0, help="more than this is a hang")
    parser.add_argument("--report", type=Path, help="write the classes of findings here too")
    args = parser.parse_args()
    np.seterr(all="warn")
    seed, start, count = args.seed, args.start, args.count
    if args.replay:
        seed, start = (int(part) for part in args.replay.split(":"))
        count = 1
    work = args.work.resolve() / f"seed{seed}-{start}"
    settings = Settings(seed, work, args.seconds, args.real, bool(args.replay))
    command = warm()
    make_seeds(settings, command)
    load_kernels(settings, command)
    gc.collect()
    gc.freeze()  # what the parent holds is never looked at again, nor copied for it
    tally = Tally(count)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_cases(settings, command, start, start + count, tally.seen, workers=args.workers)
    except KeyboardInterrupt:
        print("interrupted")
    text = report(tally.classes, seed)
    print(tally.table())
    if text:
        print(text)
    if args.report:
        args.report.write_text(text + "\n")
    print(f"seed {seed}: {tally.line()}")
    if args.replay:
        print(f"files: {settings.work / 'slot0'}")
    else:
        shutil.rmtree(settings.work, ignore_errors=True)
    return 1 if tally.classes or sum(tally.statuses.values()) < count else 0


if __name__ == "__main__":
    sys.exit(main())
