"""Break every write of every command that writes, one at a time, and see what is left.

    python tools/write_faults.py                        every write of every command, killed; a minute or more
    python tools/write_faults.py --fault full --sample 20 --only record

A C library is preloaded (write_faults.c, needs gcc) that counts the writes below the output folder: data, names, sizes,
fsync. Faults at the n-th of them, for every n:

    kill    the process is killed in the middle of the write. Run again, it must give equal bytes, or refuse in one line
            because the whole output is there already; nothing else may be left. For `record` also with what was left
            damaged (cut, zeroed, garbled, as a torn page cache or a bad disk would).
    full    no write succeeds from there on (ENOSPC): exit 2, one line, old output as it was, nothing else left.
    fail    one call fails (EIO): the same; or the whole new output, where only a last fsync failed.
    short   every write takes half of what it is given: nothing may change.

Commands run in forks of one process that is warmed up, on a tiny model. Prints one line per command and fault; exits
with 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_suffix(".c")
FAULTS = {"kill": 1, "full": 2, "fail": 3, "short": 4}
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
SECONDS = 120
OLD = b"what an earlier run wrote"
Files = dict[str, bytes]


def tiny_vit(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One block, 8 channels, four patches, under timm's names."""
    width, hidden = 8, 16
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 5, width), "norm.weight": (width,), "norm.bias": (width,),
        "patch_embed.proj.weight": (width, 1, 4, 4), "patch_embed.proj.bias": (width,),
        "head.weight": (4, width), "head.bias": (4,),
    }  # fmt: skip
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width),
               "mlp.fc2": (width, hidden)}  # fmt: skip
    for name, shape in linears.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    shapes |= {f"blocks.0.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def commands(world: Path, out: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Arguments of each command, and the files it replaces."""
    model, recording, graph, images = (str(world / name) for name in ("vit.onnx", "recording.h5", "graph.h5", "i.npy"))
    return {
        "record": (
            ["record", model, images, "-o", f"{out}/r.h5", "--batch", "2", "--threads", "1"], ["r.h5"]),
        "lower": (
            ["lower", model, "--recording", recording, "--method", "ivit", "-o", f"{out}/g.h5"], ["g.h5"]),
        "run": (
            ["run", graph, images, "-o", f"{out}/l.npz", "--trace", f"{out}/t.h5", "--batch", "2", "--threads", "1"],
            ["l.npz", "t.h5"]),
        "map": (
            ["map", model, "--recording", recording, "--images", images, "-o", f"{out}/m.json", "--methods", "ivit",
             "--threads", "1"], ["m.json"]),
        "export": (
            ["golden", "export", graph, images, "-o", f"{out}/v", "--site", "*softmax*", "--site", "*norm1*"], []),
    }  # fmt: skip


class Faults:
    """The preloaded library."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._folder = ctypes.CDLL(str(library)), str(folder).encode()
        self._library.faults_count.restype = ctypes.c_long

    def arm(self, n: int, fault: int) -> None:
        self._library.faults_arm(self._folder, ctypes.c_long(n), fault)

    def count(self) -> int:
        return int(self._library.faults_count())


def forked(faults: Faults, arguments: list[str], n: int, fault: int) -> tuple[int, str, int]:
    """Run a command in a fork: exit status (negative: killed by that signal), what it said, its number of writes."""
    from intvit.cli import main

    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            status = 99
            try:
                faults.arm(n, fault)
                status = main(arguments)
                written = faults.count()
                faults.arm(0, 0)
                os.write(1, f"\n{written}".encode())
            finally:
                os._exit(status)
        limit = time.monotonic() + SECONDS
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGQUIT)
                done = os.waitpid(pid, 0)
                break
            time.sleep(0.001)
        status = os.waitstatus_to_exitcode(done[1])
        said.seek(0)
        text, _, written = said.read().decode(errors="replace").rpartition("\n")
        return status, text.strip(), int(written) if written.isdigit() else 0


def snapshot(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def damage(out: Path, rng: random.Random) -> None:
    """Cut, zero or garble a stretch of one of the files that a killed `record` left."""
    left = sorted(p for p in out.iterdir() if ".partial" in p.name and p.stat().st_size)
    if not left:
        return
    path = rng.choice(left)
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = rng.choice([len(data), min(len(data), start + rng.randrange(1, 200))])
    kind = rng.randrange(4)
    if kind == 0:
        del data[start:]
    elif kind == 1:
        data[start:stop] = bytes(stop - start)
    elif kind == 2:
        data[start:stop] = rng.randbytes(stop - start)
    else:
        del data[start:stop]
    path.write_bytes(data)


class Bench:
    """One output folder in which a command is broken again and again."""

    def __init__(self, faults: Faults, out: Path, name: str, arguments: list[str], replaced: list[str]) -> None:
        self.faults, self.out, self.name, self.arguments = faults, out, name, arguments
        self.old: Files = dict.fromkeys(replaced, OLD)
        self.clear()
        status, text, self.n_writes = forked(faults, arguments, 0, 0)
        if status != 0:
            raise SystemExit(f"{name}: {text}")
        self.whole = snapshot(out)

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for name, data in self.old.items():
            (self.out / name).write_bytes(data)

    def _whole_or_old(self) -> str | None:
        """What is wrong with the files that a command replaces."""
        found = snapshot(self.out)
        for name in self.old:
            if found.get(name) not in (OLD, self.whole[name]):
                return f"{name} is neither the old nor the new one"
        return None

    def kill(self, n: int, damaged: bool = False) -> str | None:
        status, text, _ = forked(self.faults, self.arguments, n, FAULTS["kill"])
        if status != -signal.SIGKILL:
            return f"not killed but {status}: {text}"
        if wrong := self._whole_or_old():
            return wrong
        if damaged:
            damage(self.out, random.Random(n))
        status, text, _ = forked(self.faults, self.arguments, 0, 0)
        refused = status == 2 and text.count("\n") == 0 and "must not exist yet" in text
        if status != 0 and not refused:
            return f"run again: {status}: {text}"
        return self._left(self.whole, f"run again ({status})")

    def damaged(self, n: int) -> str | None:
        return self.kill(n, damaged=True)

    def full(self, n: int) -> str | None:
        return self._refused(n, "full")

    def fail(self, n: int) -> str | None:
        return self._refused(n, "fail")

    def _refused(self, n: int, fault: str) -> str | None:
        status, text, _ = forked(self.faults, self.arguments, n, FAULTS[fault])
        if status == 0:  # what was left to do needed no room, or was no loss
            return self._left(self.whole, "exit 0")
        if status != 2 or text.count("\n") or not text.startswith("intvit: "):
            return f"{status}: {text}"
        if wrong := self._whole_or_old():
            return wrong
        if fault == "fail":  # only what it is called: a last fsync may fail after a rename
            extra = set(snapshot(self.out)) - set(self.whole)
            return f"left {sorted(extra)}" if extra else None
        return self._left(self.old, "refused")

    def short(self, n: int) -> str | None:
        status, text, _ = forked(self.faults, self.arguments, n, FAULTS["short"])
        return f"{status}: {text}" if status else self._left(self.whole, "short writes")

    def _left(self, wanted: Files, when: str) -> str | None:
        found = snapshot(self.out)
        if set(found) != set(wanted):
            return f"{when}: left {sorted(set(found) ^ set(wanted))}"
        differ = [name for name in wanted if found[name] != wanted[name]]
        return f"{when}: {differ} differ" if differ else None

    def run(self, fault: str, sample: int | None) -> tuple[int, list[str]]:
        """Number of points tried, and the findings."""
        break_at: Callable[[int], str | None] = getattr(self, fault)
        points = [1] if fault == "short" else list(range(1, self.n_writes + 1))
        if sample and sample < len(points):
            points = sorted({points[round(i * (len(points) - 1) / (sample - 1))] for i in range(sample)})
        findings = []
        for n in points:
            self.clear()
            if (finding := break_at(n)) is not None:
                findings.append(f"{self.name}: {fault} at write {n} of {self.n_writes}: {finding}")
        return len(points), findings


def inside(args: argparse.Namespace, library: Path, folder: Path) -> int:
    """Everything below runs with the library preloaded."""
    from intvit.cli import main

    world, out = folder / "world", folder / "out"
    world.mkdir()
    rng = np.random.default_rng(0)
    np.savez(world / "vit.npz", **tiny_vit(rng))
    np.save(world / "i.npy", rng.integers(0, 256, (5, 1, 8, 8), np.uint8))
    faults = Faults(library, out)
    model, images = str(world / "vit.onnx"), str(world / "i.npy")
    for arguments in (
        ["import", str(world / "vit.npz"), "--num-heads", "2", "--img-size", "8", "-o", model],
        ["record", model, images, "-o", str(world / "recording.h5"), "--threads", "1"],
        ["lower", model, "--recording", str(world / "recording.h5"), "--method", "ivit", "-o", str(world / "graph.h5")],
    ):
        status, text, _ = forked(faults, arguments, 0, 0)
        if status != 0:
            raise SystemExit(f"{arguments[0]}: {text}")
    tried = commands(world, out)
    for module in ("onnxruntime", "intvit.floats.recording", "intvit.lowering.context", "intvit.vectors.export"):
        importlib.import_module(module)
    for name in ("run", "map"):  # compiles what all forks need; starts no threads that stay
        (folder / "warm").mkdir(exist_ok=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if main([a.replace(str(out), str(folder / "warm")) for a in tried[name][0]]) != 0:
                raise SystemExit(f"{name}: does not run")
    n_findings = 0
    for name in args.only or tried:
        bench = Bench(faults, out, name, *tried[name])
        for fault in args.fault or ["kill", "damaged", "full", "fail", "short"]:
            if fault == "damaged" and name != "record":
                continue
            start = time.monotonic()
            n_points, findings = bench.run(fault, args.sample)
            seconds = time.monotonic() - start
            tried_of = f"{n_points:4} of {bench.n_writes} writes, {seconds:.0f} s"
            print(f"{name:8} {fault:8} {tried_of}: {len(findings)} findings", *findings[:5], sep="\n  ", flush=True)
            n_findings += len(findings)
    return 1 if n_findings else 0


def outside(arguments: list[str]) -> int:
    """Compile the library; start this script once more with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        library = folder / "write_faults.so"
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            print("no C compiler: nothing was tried", file=sys.stderr)
            return 3
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        environment = {**os.environ, **ONE_THREAD, "LD_PRELOAD": str(library), "WRITE_FAULTS": name}
        return subprocess.run([sys.executable, __file__, *arguments], env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=["record", "lower", "run", "map", "export"])
    parser.add_argument("--fault", action="append", choices=[*FAULTS, "damaged"])
    parser.add_argument("--sample", type=int, help="writes to break per command, spread evenly; default all")
    args = parser.parse_args()
    if "WRITE_FAULTS" not in os.environ:
        return outside(sys.argv[1:])
    folder = Path(os.environ["WRITE_FAULTS"]).resolve()
    return inside(args, folder / "write_faults.so", folder)


if __name__ == "__main__":
    sys.exit(main())
