"""Read a folder of golden vectors: nothing that its index does not list, no link, no byte that a digest does not bind.

What is not in the format is an IntvitError; what is in the format and differs from its digest is a Mismatch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reading
from intvit.files import NO_LINK, inside
from intvit.graph.inttypes import IntType
from intvit.graph.ir import TensorDigest
from intvit.spec import SPEC_VERSION
from intvit.vectors.compare import Mismatch, first_difference
from intvit.vectors.manifest import (
    ARRAYS,
    INDEX,
    MANIFEST,
    MOST_INDEX,
    MOST_MANIFEST,
    Entry,
    Index,
    Manifest,
    Signal,
    header,
    layout,
    parse_text,
    sha256,
)
from intvit.vectors.memh import parse_memh
from intvit.vectors.npz import parse_npz

Array = np.ndarray[Any, Any]
PLAIN = os.O_RDONLY | NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
HASHED_AT_ONCE = 1 << 20


def read_index(folder: Path) -> Index:
    """The index, its digest not compared; the folders that it lists and no others must be there."""
    if not os.path.isdir(folder):  # False for any name
        raise IntvitError(f"{folder}: must be a folder of golden vectors")
    index = parse_text(Index, read_bytes(folder, folder / INDEX, MOST_INDEX), folder / INDEX)
    if index.spec_version != SPEC_VERSION:
        raise _stale(folder / INDEX, index.spec_version)
    images: dict[str, set[str]] = {}
    for case in index.cases:
        site, image = case.folder.split("/")
        images.setdefault(site, set()).add(image)
    holds_exactly(folder, folder, {INDEX, *images})
    for site, names in images.items():
        holds_exactly(folder, folder / site, names)
    return index


def _stale(path: Path, actual: int) -> IntvitError:
    return IntvitError(f"{path}: spec version must be {SPEC_VERSION}, not {actual}: vectors are stale")


def read_manifest(folder: Path, index: Index, entry: Entry) -> tuple[Manifest, list[Mismatch]]:
    """The manifest of a case, which must agree with the index, and whether its digest does."""
    case = folder / entry.folder
    path = case / MANIFEST
    data = read_bytes(folder, path, MOST_MANIFEST)
    manifest = parse_text(Manifest, data, path)
    if manifest.spec_version != SPEC_VERSION:
        raise _stale(path, manifest.spec_version)
    for key, source in {"site": entry, "image": entry, "graph_hash": index, "recipe": index}.items():
        expected, actual = getattr(source, key), getattr(manifest, key)
        if repr(expected) != repr(actual):  # which tells 1, 1.0 and true apart
            raise IntvitError(f"{path}: {key} must be as in {INDEX}, and differs")
    holds_exactly(folder, case, {MANIFEST, *manifest.files})
    return manifest, list(_altered(path, entry.sha256, data))


@dataclass(frozen=True)
class Case:
    """Arrays by key, and where they, their files and their digests differ; `intact`: not in stimuli and parameters."""

    arrays: dict[str, Array]
    mismatches: list[Mismatch]
    intact: bool


def read_case(folder: Path, manifest: Manifest) -> Case:
    """The arrays of a case; those that are what their digest says fit their types and bounds."""
    case = folder / manifest.folder
    files = {name: read_bytes(folder, case / name, size) for name, size in manifest.sizes.items()}
    stored = parse_npz(files[ARRAYS], layout(manifest.signals), case / ARRAYS)
    found: list[Mismatch] = []
    intact = True
    for signal in manifest.signals:
        array = stored[signal.name]
        found += _compare_hex(case, manifest, signal, array, files)
        actual = array_hash(array)
        if actual == signal.sha256:
            check_values(f"{case}: {signal.name}", signal, array)
        else:
            found.append(Mismatch(str(case), f"sha256 of {signal.name}", signal.sha256, actual))
            intact &= signal.role == "expected"
    for name, data in files.items():
        found += _altered(case / name, manifest.files[name], data)
    return Case({s.key: stored[s.name] for s in manifest.signals}, found, intact)


def _compare_hex(
    case: Path, manifest: Manifest, signal: Signal, array: Array, files: dict[str, bytes]
) -> Iterator[Mismatch]:
    name = signal.hex_name
    if name in files:
        first = header(manifest.site, signal)
        words = parse_memh(files[name], signal.type, tuple(signal.shape), first, case / name)
        what = f"{shown(manifest.site)}: {name} against {ARRAYS}"
        yield from first_difference(str(case), what, array, words, signal.type)


def _altered(path: Path, expected: str, data: bytes) -> Iterator[Mismatch]:
    if sha256(data) != expected:
        yield Mismatch(str(path), "sha256 of the file", expected, sha256(data))


def check_values(where: str, signal: Signal, array: Array) -> None:
    """Every value must fit the declared type, and the proven bound; a parameter has the narrowest type."""
    if signal.role == "parameter" and signal.type != declared_type(array):
        raise IntvitError(f"{where}: type must be {declared_type(array)}, the narrowest, not {signal.dtype}")
    low, high = int(array.min()), int(array.max())
    most = signal.bound if signal.bound is not None else 1 << 64
    if low < max(signal.type.min, -most) or high > min(signal.type.max, most):
        limit = signal.dtype if signal.bound is None else f"{signal.dtype} and the bound {signal.bound}"
        raise IntvitError(f"{where}: values must fit {limit}, not {low}..{high}")


def array_hash(array: Array) -> str:
    """`tensor_hash`, without a copy of the whole array."""
    digest = TensorDigest(array.shape)
    flat = array.reshape(-1)
    for i in range(0, len(flat), HASHED_AT_ONCE):
        digest.update(flat[i : i + HASHED_AT_ONCE])
    return digest.hexdigest()


def declared_type(array: Array) -> IntType:
    """The narrowest signed type of at least 2 bits that holds the values of a parameter."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return IntType(max(high.bit_length(), (~low).bit_length(), 1) + 1)


def shown(name: str) -> str:
    """A name as printable ASCII."""
    return ascii(name)[1:-1]


def read_bytes(folder: Path, path: Path, most: int) -> bytes:
    """The bytes of a plain file below `folder`, at most `most`; IntvitError for links, pipes and devices."""
    inside(folder, path)
    with reading(path, "a readable file"), open(os.open(path, PLAIN), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IntvitError(f"{path}: must be a plain file")
        if status.st_size > most:
            raise IntvitError(f"{path}: must have at most {most} bytes, not {status.st_size}")
        return file.read(most)


def holds_exactly(folder: Path, at: Path, names: Collection[str]) -> None:
    """`at`, below `folder`, must be a folder that holds `names` and nothing else."""
    inside(folder, at)
    with reading(at, "a readable folder"):
        found = set(os.listdir(at))
    for name in sorted({*found, *names}):
        if name not in found:
            raise IntvitError(f"{at / name}: is listed but missing")
        if name not in names:
            raise IntvitError(f"{at}/{shown(name)}: must not be there, as nothing lists it")
