#!/usr/bin/env python3
"""Break the arithmetic on purpose: mutate intvit/spec and intvit/kernels, and see whether a test fails.

    python tools/mutate.py --sample 200 --seed 1 --workers 2
    python tools/mutate.py --only kernels/softmax.py

Choices between kernels that compute the same, alignment and block sizes are not arithmetic and are left alone.
A mutant changes one thing: a constant by one, + and -, a shift's direction, a comparison's edge, min and max, a dropped
saturation or rounding. Conditions whose only effect is to refuse input, docstrings and annotations are left alone, and
so are the changes that `equivalent_mutants.py` lists with the reason why they cannot change a result.
A mutant meets the tests of its operator. Survivors are printed with file and line: each is a missing test, or a change
that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("intvit", "tests", "tools", "golden", "pyproject.toml")
TESTS = [
    "test_known_answers.py",
    "test_conformance.py",
    "test_properties.py",
    "test_spec_arith.py",
    "test_equivalence.py",
    "test_plan.py",
    "test_layernorm_leading.py",
    "test_limits.py",
    "test_gemm.py",
]
KEYWORDS = {
    "arith.py": "arith or known_answers or equivalence or conformance",
    "softmax.py": "softmax or gelu or mixed_all3 or masked or bound",
    "gelu.py": "gelu or bound",
    "gemm.py": "test_gemm or plans_of",
    "tables.py": "gelu_tables or plans_of",
    "layernorm.py": "layernorm or gamma or inverse or product_high or bound",
    "requantize.py": "requant or dyadic or two_word or add_saturating or multiplier",
    "matmul.py": "attn_v or matrix or log2 or product or vit_ivit",
    "pool.py": "mean or swin_ivit",
    "quantize.py": "quantize or vit_ivit",
}
"""File -> the tests that can tell; files not named here get all of TESTS."""
SWAPPED_CALLS = {"min": "max", "max": "min"}
DROPPED_CALLS = frozenset({"saturate", "clamp", "wrap", "wrap32"})
REFUSING = ("Method", "IntvitError", "check", "_check")
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
    """The function, with those around it; empty at the module's own level."""
    statement: str
    """The statement as Python writes it, of a compound one the first line: neither layout nor comments matter."""
    nth: int
    """Which of the equal changes of such statements of the function it is."""
    many: bool
    """True if there are several."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What `equivalent_mutants.py` calls it."""
        return self.file, self.place, self.statement, f"{self.change} ({self.nth})" if self.many else self.change

    def text(self) -> str:
        """The whole mutated file."""
        return apply(ROOT / "intvit" / self.file, self.index, self.number)


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
    statement: str = ""


def mutable_nodes(tree: ast.Module) -> Iterator[Place]:
    """Nodes that compute: no docstrings, annotations, defaults, decorators, nor what only refuses input."""

    def visit(node: ast.AST, function: str, statement: str) -> Iterator[Place]:
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
        if isinstance(node, ast.FunctionDef) and node.name.startswith(
            ("check", "_caching", "cache_folder", "_border", "as_rows", "aligned", "available_paths", "chosen_path")
        ):
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith(REFUSING):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            function = f"{function}.{node.name}" if function else node.name
        if isinstance(node, ast.stmt):
            statement = ast.unparse(node).splitlines()[0]
        yield Place(node, function, statement)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "slice", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, function, statement)

    yield from visit(tree, "", "")


def all_mutants(only: str | None = None) -> list[Mutant]:
    """Every mutant, or those of one file or line."""
    found: list[Mutant] = []
    only, _, only_line = (only or "").partition(":")
    for folder in ("spec", "kernels"):
        for path in sorted((ROOT / "intvit" / folder).glob("*.py")):
            name = f"{folder}/{path.name}"
            if not only or name == only:
                found += mutants_of(path, name)
    return [mutant for mutant in found if not only_line or mutant.line == int(only_line)]


def mutants_of(path: Path, name: str) -> list[Mutant]:
    places = list(mutable_nodes(ast.parse(path.read_text())))
    changes = [
        (index, number, place, change)
        for index, place in enumerate(places)
        for number, (change, _) in enumerate(mutations(place.node))
    ]
    often = Counter((place.function, place.statement, change) for _, _, place, change in changes)
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for index, number, place, change in changes:
        same = (place.function, place.statement, change)
        seen[same] += 1
        line = getattr(place.node, "lineno", 1)
        found.append(Mutant(name, line, change, index, number, *same[:2], seen[same], often[same] > 1))
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


def survives(mutant: Mutant, folder: Path, timeout: int) -> bool:
    """True if the tests of the mutant's operator pass on it."""
    path = folder / "intvit" / mutant.file
    original = path.read_text()
    path.write_text(mutant.text)
    keyword = KEYWORDS.get(path.name)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [*(["-k", keyword] if keyword else []), *(f"tests/{name}" for name in TESTS)]
    # hypothesis must not remember failures of other mutants
    env = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "h"),
    }
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=timeout, check=False)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original)
        shutil.rmtree(folder / "h", ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="how many mutants to draw; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="one file or line of it, e.g. kernels/softmax.py or kernels/softmax.py:152")
    parser.add_argument("--timeout", type=int, default=180, help="seconds a mutant may take; an endless loop is a kill")
    parser.add_argument("--work", type=Path, default=Path("/tmp/intvit-mutants"))
    parser.add_argument("--json", type=Path, help="write the survivors here")
    args = parser.parse_args()
    mutants = all_mutants(args.only)
    excluded = [m for m in mutants if m.keys & set(EQUIVALENT)]
    unknown = set(EQUIVALENT).difference(*(m.keys for m in excluded))
    if unknown and args.only is None:
        print(f"EQUIVALENT names changes that do not exist: {sorted(unknown)}")
        return 2
    mutants = [m for m in mutants if not m.keys & set(EQUIVALENT)]
    total = len(mutants)
    if args.sample and args.sample < total:
        mutants = random.Random(args.seed).sample(mutants, args.sample)
    folders: SimpleQueue[Path] = SimpleQueue()
    for i in range(args.workers):
        folder = args.work / str(i)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            copy_of = shutil.copytree if source.is_dir() else shutil.copy
            copy_of(source, folder / name)  # type: ignore[operator]
        folders.put(folder)
    unchanged = Mutant("spec/pool.py", 0, "nothing", (ROOT / "intvit/spec/pool.py").read_text(), "")
    folder = folders.get()
    if not survives(unchanged, folder, 600):
        print("the tests fail without any mutation")
        return 2
    folders.put(folder)
    start, survivors, done = time.monotonic(), [], 0

    def judge(mutant: Mutant) -> tuple[Mutant, bool]:
        place = folders.get()
        try:
            return mutant, survives(mutant, place, args.timeout)
        finally:
            folders.put(place)

    with ThreadPoolExecutor(args.workers) as pool:
        for mutant, alive in pool.map(judge, mutants):
            done += 1
            if alive:
                survivors.append(mutant)
                print(f"SURVIVED {mutant.file}:{mutant.line}: {mutant.change}", flush=True)
            if done % 20 == 0:
                print(f"{done} of {len(mutants)}, {len(survivors)} alive, {time.monotonic() - start:.0f} s", flush=True)
    killed = len(mutants) - len(survivors)
    print(
        f"killed {killed} of {len(mutants)} mutants ({100 * killed / len(mutants):.1f} %), "
        f"drawn from {total}, seed {args.seed}; {len(excluded)} more are equivalent, as EQUIVALENT says"
    )
    if args.json:
        args.json.write_text(
            json.dumps([{"file": m.file, "line": m.line, "change": m.change} for m in survivors], indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
