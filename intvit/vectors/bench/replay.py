"""Replay cases against RTL, and prove that the replay can fail: one flipped bit in each expected file."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from intvit.errors import IntvitError
from intvit.files import whole_folder
from intvit.vectors.bench import simulate
from intvit.vectors.bench.constants import Stream, printable
from intvit.vectors.bench.write import TIMEOUT, Job, Written, linked, write_bench


@dataclass(frozen=True)
class Outcome:
    """One case in one bench: words compared, cycles to the last one, and the first lines of what differed."""

    case: str
    bench: str
    passed: bool
    words: int
    cycles: int
    said: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flip:
    """One flipped bit of an expected file, and whether the bench found just this word."""

    case: str
    bench: str
    file: str
    word: int
    bit: int
    found: bool
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Of all cases in all benches."""

    simulator: str
    outcomes: tuple[Outcome, ...]
    flips: tuple[Flip, ...]

    @property
    def passed(self) -> bool:
        return all(o.passed for o in self.outcomes) and all(f.found for f in self.flips)

    @property
    def summary(self) -> dict[str, object]:
        """For JSON."""
        return {"simulator": self.simulator, "passed": self.passed, "outcomes": [asdict(o) for o in self.outcomes],
                "flips": [asdict(f) for f in self.flips]}  # fmt: skip

    def lines(self) -> list[str]:
        """For people: a line for each case and bench, what differed below it, the flips, and last what it comes to."""
        lines = []
        for o in self.outcomes:
            verdict = "PASS" if o.passed else "FAIL"
            lines.append(f"{verdict}  {printable(o.case)}  {o.bench}: {o.words} words, {o.cycles} cycles")
            lines += [f"      {line}" for line in (*o.said, *(() if o.passed else o.notes))]
        for f in self.flips:
            what = f"bit {f.bit} of word {f.word} of {f.file} flipped"
            lines.append(f"{'PASS' if f.found else 'FAIL'}  {f.bench}: {what}, {'' if f.found else 'not '}found")
            lines += [f"      {line}" for line in f.said if not f.found]
        failed = sum(not o.passed for o in self.outcomes)
        cases, words = len({o.case for o in self.outcomes}), sum(o.words for o in self.outcomes)
        benches = " and ".join(dict.fromkeys(o.bench for o in self.outcomes))
        verdict = "every bit equal" if not failed else f"{failed} of {len(self.outcomes)} runs FAILED"
        lines.append(f"{cases} cases, {benches}, {self.simulator}: {words} words compared, {verdict}")
        if self.flips:
            lines.append(f"{len(self.flips)} flipped bits, {sum(f.found for f in self.flips)} found")
        return lines


def bench(
    jobs: Sequence[Job],
    *,
    simulator: str = "verilator",
    benches: Sequence[str] = simulate.BENCHES,
    seed: int = 1,
    stall: int = 25,
    selftest: bool = False,
    keep: str | Path | None = None,
    timeout: int = TIMEOUT,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Write, build and run the benches of all jobs as one simulation each; with `selftest` once more for every flip.

    `stall` is the percentage of cycles in which a stream pauses. `keep`: a folder, which must not exist, for all files.
    IntvitError for a top that does not compile or fit, and where the simulator is missing.
    """
    _check_options(simulator, benches, seed, stall, timeout)
    say = progress or (lambda text: None)
    outcomes, flips = list[Outcome](), list[Flip]()
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="intvit-bench-")))
        else:
            folder = stack.enter_context(whole_folder(keep)).resolve()  # programs run in it
        if simulator == "verilator":
            _no_spaces(folder, *(job.top.path.resolve() for job in jobs))
        written = write_bench(folder, jobs, timeout=timeout)
        description = json.loads((folder / "bench.json").read_text())
        for name in benches:
            say(f"build the {name} bench")
            simulate.build(folder, description, name, simulator)
            say(f"run the {name} bench")
            ran = simulate.run(folder, description, name, simulator, seed=seed, stall=stall)
            outcomes += [_outcome(written[each.index], name, each) for each in ran]
            if selftest:
                say(f"flip bits in front of the {name} bench")
                flips += _selftest(folder, description, written, name, simulator, seed, stall)
    return Report(simulate.version(simulator), tuple(outcomes), tuple(flips))


def _check_options(simulator: str, benches: Sequence[str], seed: int, stall: int, timeout: int) -> None:
    for name in benches:
        if name not in simulate.BENCHES:
            raise IntvitError(f"bench: must be one of {', '.join(simulate.BENCHES)}, not {name!r}")
    if not benches:
        raise IntvitError("bench: must be sv or cocotb or both, not none")
    most = 2**31 - 1
    for what, value, low, high in (("seed", seed, 0, most), ("stall", stall, 0, 95), ("timeout", timeout, 100, most)):
        if not low <= value <= high:
            raise IntvitError(f"{what}: must lie in {low}..{high}, not {value}")
    why = simulate.missing(simulator, benches)
    if why is not None:
        raise IntvitError(f"bench: {why}")


def _no_spaces(*paths: Path) -> None:
    for path in paths:
        if len(str(path).split()) > 1:
            raise IntvitError(f"{path}: must be a path without spaces, which make cannot read")


def _outcome(written: Written, name: str, ran: simulate.Ran) -> Outcome:
    words = sum(stream.words for stream in written.expected) if ran.passed else ran.words
    said = tuple(_placed(written, line) for line in ran.said)
    return Outcome(written.job.case.name, name, ran.passed, words, ran.cycles, said, tuple(written.notes))


def _placed(written: Written, line: str) -> str:
    """A mismatch with the image and the index of its word."""
    fields = line.split()
    stream = next((s for s in written.expected if fields[2:3] == [s.port]), None)
    if stream is None or fields[3:4] != ["word"] or not fields[4].isdecimal() or int(fields[4]) >= stream.words:
        return line
    return f"{line} ({place(written, stream, int(fields[4]))})"


def place(written: Written, stream: Stream, word: int) -> str:
    """Where a word of a stream lies: tensor, image, index."""
    case = written.job.case
    shape = case.part.tensors[stream.tensor].shape
    size = stream.words // len(case.images)
    image, rest = divmod(word, size)
    index = []
    for length in reversed(shape):
        rest, at = divmod(rest, length)
        index.append(at)
    number = case.images[image] if image < len(case.images) else "?"
    return f"{printable(stream.tensor)}, image {number}, index {index[::-1]}"


def _selftest(folder: Path, description: dict[str, object], written: Sequence[Written], name: str, simulator: str,
              seed: int, stall: int) -> list[Flip]:  # fmt: skip
    """Each expected file with one bit flipped, alone: the bench must say that this word differs, and nothing else."""
    flips = []
    for index, each in enumerate(written):
        for stream in each.expected:
            generator = random.Random(f"{seed} {each.ident} {stream.port}")
            word, bit = generator.randrange(stream.words), generator.randrange(stream.bits)
            with tempfile.TemporaryDirectory(prefix="intvit-flip-") as at:
                copy = Path(at)
                linked(folder, copy)
                _flip(copy / stream.file, word, bit)
                (ran,) = simulate.run(folder, description, name, simulator, seed=seed, stall=stall, only=index, at=copy)
            named = [line for line in ran.said if line.startswith(f"MISMATCH {each.ident} {stream.port} word {word} ")]
            found = not ran.passed and ran.errors == 1 and len(ran.said) == len(named) == 1
            flips.append(Flip(each.job.case.name, name, stream.file, word, bit, found, ran.said))
    return flips


def _flip(path: Path, word: int, bit: int) -> None:
    """Turn one bit of a `$readmemh` file; the file becomes one of its own if it was a link."""
    comment, *lines = path.read_text("ascii").splitlines()
    lines[word] = f"{int(lines[word], 16) ^ 1 << bit:0{len(lines[word])}x}"
    text = "\n".join([comment, *lines])
    path.unlink()
    path.write_text(f"{text}\n", "ascii")
