"""Check golden vectors: recompute every case with both backends from what the case itself holds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node, Tensor, tensor_hash
from intvit.inttypes import IntType
from intvit.spec import SPEC_VERSION
from intvit.vectors.manifest import Manifest, Signal, read_manifest
from intvit.vectors.memh import parse_memh


@dataclass(frozen=True)
class Mismatch:
    """The first differing element of one comparison."""

    case: str
    site: str
    what: str
    index: tuple[int, ...]
    expected: int
    actual: int

    def __str__(self) -> str:
        return (
            f"{self.case}: {self.site}: {self.what} differs first at index {list(self.index)}: "
            f"expected {self.expected} (0x{self.expected & (2**64 - 1):x}), "
            f"got {self.actual} (0x{self.actual & (2**64 - 1):x})"
        )


def find_cases(folder: Path) -> list[Path]:
    """Case folders below `folder`; all that `index.json` lists must be there."""
    if not folder.is_dir():
        raise IntvitError(f"{folder}: must be a folder of golden vectors")
    cases = sorted(path.parent for path in folder.rglob("case.json"))
    if not cases:
        raise IntvitError(f"{folder}: must hold at least one case.json")
    index = folder / "index.json"
    if index.is_file():
        listed = {folder / name for name in json.loads(index.read_text())["cases"]}
        missing = sorted(str(path) for path in listed - set(cases))
        if missing:
            raise IntvitError(f"{missing[0]}: case is listed in index.json but missing")
    return cases


def load_case(folder: Path) -> tuple[Manifest, dict[str, Array]]:
    """Manifest and arrays of one case, shapes and integer types verified, digests not."""
    manifest = read_manifest(folder)
    path = folder / "case.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise IntvitError(f"{path}: must be a whole npz file, not: {error}") from None
    for signal in manifest.signals:
        array = arrays.get(signal.key)
        if array is None:
            raise IntvitError(f"{path}: {manifest.site}: array {signal.key!r} is missing")
        if list(array.shape) != signal.shape or array.dtype.kind not in "iub":
            raise IntvitError(
                f"{path}: {manifest.site}: {signal.key} must be integers {signal.shape}, "
                f"not {array.dtype} {list(array.shape)}"
            )
    if manifest.spec_version != SPEC_VERSION:
        raise IntvitError(
            f"{folder}: spec version must be {SPEC_VERSION}, not {manifest.spec_version}: vectors are stale"
        )
    return manifest, arrays


def check_case(folder: Path, backends: tuple[str, ...] = ("spec", "kernel")) -> Iterator[Mismatch]:
    """Mismatches of one case: stored arrays against their digests and hex files, then each backend against them."""
    from intvit.evaluate import prepare

    manifest, arrays = load_case(folder)
    for signal in manifest.signals:
        yield from _stored(folder, manifest, signal, arrays[signal.key])
    inputs = [s for s in manifest.signals if s.role == "stimulus"]
    (expected,) = [s for s in manifest.signals if s.role == "expected"]
    params = {s.key: arrays[s.key] for s in manifest.signals if s.role == "parameter"}
    node = Node(
        manifest.op, manifest.site, tuple(str(s.tensor) for s in inputs), str(expected.tensor), manifest.attrs, params
    )
    stimulus = [arrays[s.key][None] for s in inputs]
    for backend in backends:
        evaluate = prepare(node, [_tensor(s) for s in inputs], _tensor(expected), backend)
        actual = evaluate(stimulus)[0]
        yield from first_difference(folder, manifest.site, f"output ({backend})", arrays[expected.key], actual)


def _stored(folder: Path, manifest: Manifest, signal: Signal, array: Array) -> Iterator[Mismatch]:
    path = folder / f"{signal.key}.hex"
    dtype = IntType.parse(signal.dtype)
    if path.is_file():
        words = parse_memh(path.read_text(), dtype, tuple(signal.shape), f"{path}: {manifest.site}")
        if tensor_hash(words) != signal.sha256 or tensor_hash(array) != signal.sha256:
            yield from first_difference(folder, manifest.site, f"{signal.key}.hex against case.npz", array, words)
    if tensor_hash(array) != signal.sha256:
        yield Mismatch(str(folder), manifest.site, f"digest of {signal.key}", (), int(signal.sha256[:15], 16),
                       int(tensor_hash(array)[:15], 16))  # fmt: skip


def first_difference(folder: Path, site: str, what: str, expected: Array, actual: Array) -> Iterator[Mismatch]:
    different = np.argwhere(expected != actual)
    if len(different):
        index = tuple(int(i) for i in different[0])
        yield Mismatch(str(folder), site, what, index, int(expected[index]), int(actual[index]))


def _tensor(signal: Signal) -> Tensor:
    scale = None if signal.scale is None else np.array(signal.scale, np.float64)
    dtype = IntType.parse(signal.dtype)
    return Tensor(str(signal.tensor), tuple(signal.shape), dtype, scale, signal.encoding, signal.bound)


def check(
    folder: str | Path,
    *,
    backends: tuple[str, ...] = ("spec", "kernel"),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Mismatch]]:
    """Check every case below `folder`; (number of cases, mismatches)."""
    cases = find_cases(Path(folder))
    found: list[Mismatch] = []
    for i, case in enumerate(cases):
        found += check_case(case, backends)
        if progress:
            progress(i + 1, len(cases))
    return len(cases), found
