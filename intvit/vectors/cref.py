"""The C reference (golden/c): compile it, write cases as its replay program reads them, replay them.

    folder/<name>/case.txt                    the part: tensors, nodes, their constants, and what to compare
    folder/<name>/n<i>.<parameter>.hex        a constant of node i, for `$readmemh`
    folder/<name>/i<image>.t<j>.hex           stimulus or expected values of tensor j

golden/c/README.md says the form of `case.txt`. Constants have the names of `part.parameters`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reason, shortened
from intvit.files import safe_key, safe_name, writing
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node
from intvit.vectors.cases import Case
from intvit.vectors.memh import format_memh
from intvit.vectors.part import parameters

SOURCES = Path(__file__).resolve().parents[2] / "golden" / "c"
"""In a clone; an installed package has none, and `compiled` is told where they are."""
STANDARD = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZE = ("-fsanitize=undefined", "-fno-sanitize-recover")
COMPILERS = ("gcc", "clang", "cc")
AT_ONCE = 100
"""Cases of one run of the program."""
DIFFERENT, REFUSED, UNDEFINED = 1, 2, 3
"""Exit statuses of the program, and what the sanitizer is told to exit with."""


# ------------------------------------------------------------------------------------------- the program


def compilers() -> list[str]:
    """C compilers on the path, each once, by their path; the first is the one that `compiled` takes."""
    found = (shutil.which(name) for name in COMPILERS)
    return list({os.path.realpath(path): path for path in found if path}.values())


def compiled(
    folder: str | Path, compiler: str | None = None, *, sources: str | Path = SOURCES, sanitize: bool = True
) -> Path:
    """The replay program, compiled from all of `sources` into `folder`.

    `sanitize`: undefined behaviour ends it (gcc, clang). IntvitError where there is no compiler, no source, and with
    the compiler's first words where it refuses.
    """
    files = sorted(Path(sources).glob("*.c"))
    if not files:
        raise IntvitError(f"{sources}: must hold the C sources of golden/c, and holds none")
    found = compiler or next(iter(compilers()), None)
    if found is None:
        raise IntvitError(f"C reference: must have a compiler ({', '.join(COMPILERS)}), and there is none")
    program = Path(folder) / ("replay.exe" if os.name == "nt" else "replay")
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    flags = (*STANDARD, *(SANITIZE if sanitize else ()))
    done = _run([found, *flags, *map(str, files), "-o", str(program)])
    if done.returncode:
        raise IntvitError(f"{found}: must compile {sources}, and does not: {reason(ValueError(done.stderr))}")
    return program


def differences(program: str | Path, cases: Iterable[str | Path]) -> list[str]:
    """Replay case files (`write`): one line for each whose recomputed tensors differ, none where all are equal.

    IntvitError for a file that the program refuses, and where it is ended by the sanitizer or from outside.
    """
    paths, found = [str(path) for path in cases], []
    for first in range(0, len(paths), AT_ONCE):
        some = paths[first : first + AT_ONCE]
        done = _run([str(program), *some])
        if done.returncode not in (0, DIFFERENT):
            words = reason(ValueError(done.stderr.strip() or f"it ended with status {done.returncode}"))
            if done.returncode == REFUSED:
                raise IntvitError(words)
            raise IntvitError(f"{program}: must replay {some[0]} and those after it: {words}")
        lines = done.stdout.splitlines()
        wrong = [line for line in lines if ": equal: " not in line]
        if len(lines) != len(some) or bool(wrong) != (done.returncode == DIFFERENT):
            raise IntvitError(f"{program}: must print a line for each case, and prints {shortened(done.stdout[-200:])}")
        found += wrong
    return found


def replayed(program: str | Path, cases: Iterable[Case], folder: str | Path) -> list[str]:
    """`write` of every case, and `differences`."""
    return differences(program, [write(case, folder) for case in cases])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Its words must be text; the sanitizer's exit status is none of the program's own."""
    environment = {**os.environ, "UBSAN_OPTIONS": f"exitcode={UNDEFINED}", "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
        )
    except (OSError, ValueError) as error:
        raise IntvitError(f"{command[0]}: must be a program that runs: {reason(error)}") from None


# ------------------------------------------------------------------------------------------- its cases


def write(case: Case, folder: str | Path) -> Path:
    """Write a case below `folder`; the path of its `case.txt`.

    IntvitError for a case without images, and for values that are no integers of their tensor's shape and type.
    """
    part, home = case.part, Path(folder) / safe_name(case.name)
    if not case.images:
        raise IntvitError(f"{case.name}: must have an image, and has none")
    numbers = {name: i for i, name in enumerate(part.tensors)}
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        lines = ["intvit c case 1"]
        lines += [f"tensor {i} {_shaped(t.dtype, t.shape)}" for i, t in enumerate(part.tensors.values())]
        for i, node in enumerate(part.nodes):
            lines += _node(part, node, f"n{i}", numbers, home)
        for image in case.images:
            lines += _image(case, image, numbers, home)
        lines.append("end")
        path = home / "case.txt"
        path.write_bytes(("\n".join(lines) + "\n").encode("ascii"))
    return path


def _image(case: Case, image: int, numbers: Mapping[str, int], home: Path) -> Iterator[str]:
    yield f"image {image}"
    for role, arrays in (("stimulus", case.stimuli(image)), ("expected", case.expected(image))):
        for name, array in arrays.items():
            if name not in numbers:
                raise IntvitError(f"{case.name}: {role} must be of a tensor of the part, and {name!r} is none")
            tensor = case.part.tensors[name]
            values = np.asarray(array)
            if values.dtype.kind not in "iu" or values.shape != tensor.shape:
                raise IntvitError(
                    f"{case.name}: {role} {name} must be integers {tensor.shape}, not {values.dtype} {values.shape}"
                )
            file = f"i{image}.t{numbers[name]}.hex"
            _write_hex(home / file, values, tensor.dtype, f"{case.name}: {role} {name}")
            yield f"{role} {numbers[name]} {file}"
    yield "run"


def _node(part: IntGraph, node: Node, short: str, numbers: Mapping[str, int], home: Path) -> Iterator[str]:
    yield f"node {node.op} {_method(node)} {safe_key(node.name)}"
    yield f"reads {' '.join(str(numbers[name]) for name in node.inputs)}"
    yield f"writes {numbers[node.output]}"
    if node.op in LAYOUT_OPS:
        yield from _layout(part, node)
    for key, value in node.attrs.get("numerics", {}).items():
        name = "residuals" if key == "residual" else key  # an array of the node has that name
        yield f"word {name} {value}" if isinstance(value, str) else f"number {name} {int(value)}"
    if node.op == "mean":
        yield f"number axis {node.attrs['axis']}"
        yield f"number keepdims {int(node.attrs['keepdims'])}"
    parts = sorted(node.arrays) if node.op == "concat" else []
    for key, array in parameters(node).items():
        name = f"part{parts.index(key)}" if key in parts else key
        if not array.shape:
            yield f"number {name} {int(array)}"
            continue
        dtype, file = _narrowest(array), f"{short}.{name}.hex"
        _write_hex(home / file, array, dtype, f"{node.name}: {key}")
        yield f"array {name} {_shaped(dtype, array.shape)} {file}"
    yield "end"


def _layout(part: IntGraph, node: Node) -> Iterator[str]:
    """The attributes of a move; of a slice, where it starts and how far apart its indices are."""
    attrs: dict[str, Any] = dict(node.attrs)
    if node.op == "slice":
        size = part.tensors[node.inputs[0]].shape[attrs["axis"]]
        attrs["start"], _, attrs["step"] = slice(attrs["start"], attrs.pop("stop"), attrs["step"]).indices(size)
    if node.op == "concat":
        parts = sorted(node.arrays)
        attrs["order"] = [-1 - parts.index(item) if isinstance(item, str) else item for item in attrs["order"]]
    for key, value in attrs.items():
        several = isinstance(value, list)
        if several and not value:
            raise IntvitError(f"{node.name}: {key} must have an axis at least in the C reference, and has none")
        yield f"numbers {key} {' '.join(map(str, value))}" if several else f"number {key} {value}"


def _method(node: Node) -> str:
    """Name, of a version above 1 with it; the program knows none of those."""
    name, version = node.attrs.get("method", "-"), node.attrs.get("version", 1)
    return safe_key(name) if version == 1 else f"{safe_key(name)}.v{version}"


def _shaped(dtype: IntType, shape: tuple[int, ...]) -> str:
    return " ".join(map(str, (dtype, len(shape), *shape)))


def _narrowest(array: Array) -> IntType:
    low, high = int(array.min()), int(array.max())
    return IntType(max(2, high.bit_length() + 1, (-1 - low).bit_length() + 1))


def _write_hex(path: Path, array: Array, dtype: IntType, what: str) -> None:
    if array.size and not (dtype.min <= int(array.min()) and int(array.max()) <= dtype.max):
        raise IntvitError(f"{what} must fit {dtype}, not {int(array.min())}..{int(array.max())}")
    path.write_bytes(format_memh(array, dtype, f"{dtype} shape {list(array.shape)}, row-major"))
