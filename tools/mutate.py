#!/usr/bin/env python3
"""Break the arithmetic on purpose: mutate intvit/spec and intvit/kernels, and see whether a test fails.

    python tools/mutate.py --sample 200 --seed 1 --workers 2
    python tools/mutate.py --only kernels/softmax.py
    python tools/mutate.py --verify-equivalents [--sample 15 --seed 1 --with-suite]

So are the few functions elsewhere whose numbers others rely on (ELSEWHERE): the walk through the texts of an HDF5 file,
the widths of intermediates, the constants that a kernel takes.
Choices between kernels that compute the same, alignment and block sizes are not arithmetic and are left alone.
A mutant changes one thing: a constant by one, + and -, a shift's direction, a comparison's edge, min and max, a dropped
saturation or rounding. Conditions whose only effect is to refuse input, docstrings and annotations are left alone, and
so are the changes that `equivalent_mutants.py` lists: each with the reason why it cannot change a result and with a
search of its own (`mutant_searches.py`), which --verify-equivalents runs on the original and on the mutant.
A mutant meets the tests of its operator, in memory: no file is changed. What survives is printed with file and line:
each is a missing test, or a change that changes nothing. A run that hangs is counted apart: it is no kill.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import keyword
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import mutant_import
import numba
import numpy as np
import pytest
from equivalent_mutants import EQUIVALENT, Equivalent
from mutant_searches import SEARCHES

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")
sys.path.insert(0, str(ROOT))  # the intvit beside this file, whatever is installed
TESTS = [
    "softmax/test_softmax_answers.py",
    "gelu/test_gelu_answers.py",
    "layernorm/test_layernorm_answers.py",
    "layernorm/test_shift_rule.py",
    "requantize/test_requantize_answers.py",
    "quantize",
    "matmul/test_matmul_answers.py",
    "operators/test_spec_arith.py",
    "test_hdf5.py",
    "operators/test_taps.py",
    "operators/test_bounds.py",
    "operators/test_limits.py",
    "operators/test_borders.py",
    "silu",
    "rmsnorm",
    "requantize",
    "layernorm",
    "matmul/test_packing.py",
    "softmax",
    "gelu",
    "mean",
    "matmul",
    "operators/test_conformance.py",
    "test_plan.py",
]
"""The quick ones first: a mutant's tests end with the first that fails."""
KEYWORDS = {
    "arith.py": "arith or known_answers or equivalence or conformance",
    "softmax.py": "softmax or gelu or mixed_all3 or masked or bound",
    "gelu.py": "gelu or bound",
    "gemm/": "test_gemm or plans_of or packing or test_borders",
    "tables.py": "gelu_tables or plans_of",
    "layernorm.py": "layernorm or gamma or inverse or product_high or bound",
    "rounding.py": "rounding or requant or dyadic or two_word or multiplier or test_gemm",
    "requantize.py": "rounding or requant or dyadic or two_word or add_saturating or multiplier",
    "matmul.py": "attn_v or matrix or log2 or product or vit_ivit",
    "pool.py": "mean or swin_ivit",
    "quantize.py": "quantize or vit_ivit",
    "border.py": "test_borders",
    "hdf5.py": "test_hdf5",
    "taps.py": "test_taps",
}
"""File or folder -> the tests that can tell; files not named here get all of TESTS."""
WIDEST = "kernels/arith.py"
"""The file that most kernels are compiled anew for."""
SWAPPED_CALLS = {"min": "max", "max": "min"}
DROPPED_CALLS = frozenset({"saturate", "clamp", "wrap", "wrap32"})
REFUSING = ("Method", "IntvitError", "check", "_check", "require")
REFUSING_FUNCTIONS = (
    "check", "_check", "require", "_require", "__post_init__", "is_line", "lie", "operands_fit", "_border", "as_rows",
    "aligned", "available_paths", "chosen_path", "path_notes", "known_to_llvm", "target_features",
)  # fmt: skip
"""Functions that refuse, lay out or choose; no arithmetic."""
NO_ARITHMETIC = frozenset({"__init__.py", "border.py", "cache.py", "method.py", "ranges.py", "registry.py", "taps.py"})
ELSEWHERE = {
    "files/hdf5.py": ("_heap_fault",),
    "kernels/border.py": ("constants",),
    "spec/taps.py": ("integer_type", "listing"),
}
"""File -> functions that are no arithmetic of an operator, and are mutated all the same. The checks of `method.py` only
refuse: there is nothing to mutate."""
FLOORED = {"rhe": "//", "rhe_div": "//", "rhe_shift": ">>"}


@dataclass(frozen=True)
class Mutant:
    """One change: the one of number `number` of the `index`-th node of `file` that computes."""

    file: str
    line: int
    change: str
    index: int
    number: int
    place: str
    """The function, with those around it; at the module's own level the name that is assigned."""
    expression: str
    """The least expression around the change that has a name in it, as Python writes it."""
    nth: int
    """Which of the equal changes of such expressions of the function it is."""
    many: bool
    """True if there are several."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What `equivalent_mutants.py` calls it, whatever the names in it are."""
        change = f"{self.change} ({self.nth})" if self.many else self.change
        return self.file, self.place, nameless(self.expression), change

    def text(self) -> str:
        """The whole mutated file."""
        return apply(ROOT / "intvit" / self.file, self.index, self.number)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key[-1]} in {self.expression}"


def mutations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(description, replacement) for every change of one node."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for delta in (1, -1):
            yield f"{node.value} -> {node.value + delta}", ast.Constant(node.value + delta)
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield f"{node.value} * 1.001", ast.Constant(node.value * 1.001)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        for old, new in (
            (ast.Add, ast.Sub),
            (ast.Sub, ast.Add),
            (ast.RShift, ast.LShift),
            (ast.LShift, ast.RShift),
            (ast.Mult, ast.Add),
        ):
            if isinstance(node.op, old):
                changed = copy.deepcopy(node)
                changed.op = new()
                yield f"{old.__name__} -> {new.__name__}", changed
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for old, new in (
            (ast.Lt, ast.LtE),
            (ast.LtE, ast.Lt),
            (ast.Gt, ast.GtE),
            (ast.GtE, ast.Gt),
            (ast.Eq, ast.NotEq),
        ):
            if isinstance(node.ops[0], old):
                changed = copy.deepcopy(node)
                changed.ops = [new()]
                yield f"{old.__name__} -> {new.__name__}", changed
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield from call_mutations(node)


def call_mutations(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    assert isinstance(node.func, ast.Name)
    name = node.func.id
    if name in SWAPPED_CALLS:
        changed = copy.deepcopy(node)
        changed.func = ast.Name(SWAPPED_CALLS[name], ast.Load())
        yield f"{name} -> {SWAPPED_CALLS[name]}", changed
    if name in DROPPED_CALLS:
        yield f"{name} dropped", node.args[0]
    if name in FLOORED and len(node.args) == 2:
        template = ast.parse(f"(a {FLOORED[name]} b)", mode="eval").body
        assert isinstance(template, ast.BinOp)
        template.left, template.right = node.args
        yield f"{name} -> floor", template


@dataclass(frozen=True)
class Place:
    """A node that computes, and where it stands."""

    node: ast.AST
    function: str = ""
    around: ast.AST | None = None

    @property
    def expression(self) -> str:
        """Of a compound statement the first line."""
        return ast.unparse(self.around).splitlines()[0] if self.around else ""


def listed_keys() -> dict[tuple[str, str, str, str], Equivalent]:
    """`Mutant.key` of every change that `equivalent_mutants.py` lists -> its entry."""
    keys = [
        ((entry.file, entry.place, nameless(expression), change), entry)
        for entry in EQUIVALENT
        for expression, changes in entry.changes.items()
        for change in changes
    ]
    if len(dict(keys)) != len(keys):
        raise ValueError("EQUIVALENT names a change twice")
    return dict(keys)


def has_name(node: ast.AST) -> bool:
    return any(isinstance(child, (ast.Name, ast.Attribute)) for child in ast.walk(node))


def nameless(expression: str) -> str:
    """The expression with its names numbered as they come: renaming one leaves it as it is."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        name = match[0]
        return name if keyword.iskeyword(name) else numbers.setdefault(name, f"_{len(numbers)}")

    return re.sub(r"\b[^\W\d]\w*", number, expression)


def mutable_nodes(tree: ast.Module) -> Iterator[Place]:
    """Nodes that compute: no docstrings, annotations, defaults, decorators, nor what only refuses input."""

    def visit(node: ast.AST, function: str, around: ast.AST | None) -> Iterator[Place]:
        if isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse:
            return
        if isinstance(node, ast.keyword) and node.arg == "align":  # a hint to the compiler
            return
        if (
            isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reshape"
        ):  # NumPy infers any negative length
            return
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arguments, ast.Assert)):
            return
        if isinstance(node, ast.FunctionDef) and node.name.startswith(REFUSING_FUNCTIONS):
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith(REFUSING):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            function = f"{function}.{node.name}" if function else node.name
        if isinstance(node, ast.stmt) or (isinstance(node, ast.expr) and has_name(node)):
            around = node
        if not function and isinstance(node, (ast.Assign, ast.AnnAssign)):
            function = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        yield Place(node, function, around)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "slice", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, function, around)

    yield from visit(tree, "", None)


def all_mutants(only: str | None = None) -> list[Mutant]:
    """Every mutant, or those of one file or line."""
    found: list[Mutant] = []
    only, _, only_line = (only or "").partition(":")
    for folder in ("spec", "kernels"):
        for path in sorted((ROOT / "intvit" / folder).rglob("*.py")):
            name = path.relative_to(ROOT / "intvit").as_posix()
            if path.name not in NO_ARITHMETIC and (not only or name == only):
                found += mutants_of(path, name)
    for name, functions in ELSEWHERE.items():
        if not only or name == only:
            found += [m for m in mutants_of(ROOT / "intvit" / name, name) if m.place in functions]
    return [mutant for mutant in found if not only_line or mutant.line == int(only_line)]


def mutants_of(path: Path, name: str) -> list[Mutant]:
    places = list(mutable_nodes(ast.parse(path.read_text())))
    changes = [
        (index, number, place, change)
        for index, place in enumerate(places)
        for number, (change, _) in enumerate(mutations(place.node))
    ]
    often = Counter((place.function, nameless(place.expression), change) for _, _, place, change in changes)
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for index, number, place, change in changes:
        same = (place.function, nameless(place.expression), change)
        seen[same] += 1
        line = getattr(place.node, "lineno", 1)
        found.append(
            Mutant(name, line, change, index, number, place.function, place.expression, seen[same], often[same] > 1)
        )
    return found


def apply(path: Path, index: int, number: int) -> str:
    """The file with mutation `number` of node `index` made."""
    tree = ast.parse(path.read_text())
    target = list(mutable_nodes(tree))[index].node
    replacement = list(mutations(target))[number][1]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return replacement if node is target else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Replace().visit(tree)))


def keyword_of(file: str) -> str | None:
    """The tests that can tell a change of `file`: by its own name, else by its folder's."""
    path = Path(file)
    return KEYWORDS.get(path.name) or KEYWORDS.get(f"{path.parent.name}/")


def run_tests(mutant: Mutant | None, timeout: int) -> str:
    """ "killed", "survived" or "timed out": what the tests of the mutant's file say.

    None is the original, by the same way: what that way breaks is no kill.
    """
    selected = keyword_of(mutant.file) if mutant else None
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [*(["-k", selected] if selected else []), *(f"tests/{name}" for name in TESTS)]
    with tempfile.TemporaryDirectory() as scratch:
        # hypothesis must not remember failures of other mutants
        env = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": scratch}
        env["PYTHONPATH"] = os.pathsep.join(str(path) for path in (ROOT / "tools" / "mutated", ROOT / "tools", ROOT))
        file, text = (mutant.file, mutant.text()) if mutant else (WIDEST, (ROOT / "intvit" / WIDEST).read_text())
        env["INTVIT_MUTANT"] = f"{scratch}/mutant.json"
        Path(env["INTVIT_MUTANT"]).write_text(json.dumps({"file": file, "text": text}))
        tests = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            status = tests.wait(timeout)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            if tests.poll() is None:
                os.killpg(tests.pid, signal.SIGKILL)
                tests.wait()
    if status in (pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.USAGE_ERROR):
        raise SystemExit(f"no tests for {mutant}")
    return "survived" if status == 0 else "killed"


# ------------------------------------------------------------------------------ searches of equivalents


def plain(outcome: Any) -> Any:
    """An outcome of a search as a value that compares bit for bit, dtype and shape included."""
    if isinstance(outcome, np.ndarray):
        return str(outcome.dtype), outcome.shape, outcome.tobytes()
    return [plain(value) for value in outcome] if isinstance(outcome, tuple) else outcome


def size(outcome: Any) -> int:
    if isinstance(outcome, tuple):
        return sum(size(value) for value in outcome)
    return outcome.size if isinstance(outcome, np.ndarray) else 1


def search_once(name: str, seed: int, mutant: Mutant | None, expected: list[Any] | None) -> Any:
    """In a process of its own: the outcomes of the search and their number, or the first call that is told apart."""
    if mutant:
        mutant_import.install(mutant.file, mutant.text())
    np.seterr(all="ignore")
    found, n_values = [], 0
    try:
        for number, (call, outcome) in enumerate(SEARCHES[name](np.random.default_rng(seed))):
            value = plain(outcome)
            if expected is None:
                found.append(value)
                n_values += size(outcome)
            elif number >= len(expected) or value != expected[number]:
                return call
    except Exception as error:  # the original raises nothing
        return f"{type(error).__name__}: {error}"
    return (found, n_values) if expected is None else None


def in_processes(tasks: Sequence[tuple[Any, ...]], workers: int, timeout: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(task, `search_once(*task)`) as they end, each in a fork of this process; what dies or hangs gives a text."""
    waiting, running = list(tasks), {}

    def child(end: Connection, task: tuple[Any, ...]) -> None:
        end.send(search_once(*task))

    while waiting or running:
        while waiting and len(running) < workers:
            task = waiting.pop(0)
            here, there = FORK.Pipe(duplex=False)
            process = FORK.Process(target=child, args=(there, task))
            process.start()
            there.close()
            running[here] = task, process, time.monotonic() + timeout
        for end in wait(list(running), timeout=1) or [e for e in running if running[e][2] < time.monotonic()]:
            task, process, _ = running.pop(end)
            try:
                result = end.recv() if end.poll() else f"no answer in {timeout} s"
            except EOFError:
                result = "died"
            process.kill()
            process.join()
            yield task, result


def verify(mutants: Sequence[Mutant], args: argparse.Namespace) -> int:
    """Search for an input that tells a listed mutant from the original, then, if asked to, run the tests on it."""
    entry_of = listed_keys()
    listed = [mutant for mutant in mutants if mutant.key in entry_of]
    if args.sample and args.sample < len(listed):
        listed = random.Random(args.seed).sample(listed, args.sample)
    numba.njit(lambda x: x + 1)(1)  # every fork starts with a compiler that is warm
    expected, apart = {}, []
    names = sorted({entry_of[mutant.key].search for mutant in listed})
    for (name, *_), result in in_processes([(name, args.seed, None, None) for name in names], args.workers, 3600):
        if isinstance(result, str):
            print(f"{name}: {result}")
            return 2
        expected[name], n_values = result
        print(f"{name}: {len(expected[name])} calls, {n_values} integers", flush=True)
    tasks = [(name, args.seed, mutant, expected[name]) for mutant in listed for name in [entry_of[mutant.key].search]]
    for number, ((name, _, mutant, _), result) in enumerate(in_processes(tasks, args.workers, 20 * args.timeout), 1):
        if result is not None:
            apart.append(mutant)
            print(f"TOLD APART {mutant}\n  by {name}: {str(result)[:400]}", flush=True)
        if number % 20 == 0:
            print(f"{number} of {len(tasks)}, {len(apart)} told apart", flush=True)
    killed = 0
    if args.with_suite:
        for mutant, verdict in judged(listed, args.workers, args.timeout):
            killed += verdict != "survived"
            if verdict != "survived":
                print(f"{verdict.upper()} {mutant}", flush=True)
        print(f"the tests: {killed} of {len(listed)} killed or timed out")
    print(
        f"{len(listed)} of {len(entry_of)} listed mutants, seed {args.seed}: {len(apart)} told apart by their searches"
    )
    return 1 if apart or killed else 0


def judged(mutants: Sequence[Mutant], workers: int, timeout: int) -> Iterator[tuple[Mutant, str]]:
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(mutants, pool.map(lambda mutant: run_tests(mutant, timeout), mutants), strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="how many mutants to draw; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="one file or line of it, e.g. kernels/softmax.py or kernels/softmax.py:152")
    parser.add_argument("--timeout", type=int, default=300, help="seconds a mutant may take")
    parser.add_argument("--json", type=Path, help="write what was not killed here")
    parser.add_argument("--verify-equivalents", action="store_true", help="run the search of every listed mutant")
    parser.add_argument("--with-suite", action="store_true", help="with --verify-equivalents: the tests on each, too")
    args = parser.parse_args()
    mutants = all_mutants(args.only)
    listed = listed_keys()
    unknown = listed.keys() - {mutant.key for mutant in mutants}
    if unknown and args.only is None:
        print("EQUIVALENT names changes that do not exist:", *sorted(unknown), sep="\n")
        return 2
    if args.verify_equivalents:
        return verify(mutants, args)
    candidates = [mutant for mutant in mutants if mutant.key not in listed]
    drawn = candidates
    if args.sample and args.sample < len(candidates):
        drawn = random.Random(args.seed).sample(candidates, args.sample)
    if run_tests(None, 3600) != "survived":
        print("the tests fail without any mutation")
        return 2
    start, alive, count = time.monotonic(), [], Counter[str]()
    for mutant, verdict in judged(drawn, args.workers, args.timeout):
        count[verdict] += 1
        if verdict != "killed":
            alive.append((mutant, verdict))
            print(f"{verdict.upper()} {mutant}", flush=True)
        if count.total() % 20 == 0:
            print(f"{count.total()} of {len(drawn)}: {dict(count)}, {time.monotonic() - start:.0f} s", flush=True)
    print(
        f"{len(drawn)} mutants, seed {args.seed}, of {len(candidates)}: {count['killed']} killed, "
        f"{count['survived']} survived, {count['timed out']} timed out: "
        f"{100 * count['killed'] / len(drawn):.1f} % killed; "
        f"{len(mutants) - len(candidates)} more are equivalent, as EQUIVALENT says"
    )
    if args.json:
        found = [{"file": m.file, "line": m.line, "change": m.change, "verdict": verdict} for m, verdict in alive]
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
