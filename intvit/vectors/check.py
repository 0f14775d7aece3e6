"""Check golden vectors: every byte against its digest, and every case recomputed from what it holds itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Node, Tensor
from intvit.vectors.bundle import read_case, read_index, read_manifest, shown
from intvit.vectors.compare import Mismatch, first_difference
from intvit.vectors.manifest import INDEX, MANIFEST, SHA256, Manifest, Signal, sha256

BACKENDS = ("spec", "kernel")


@dataclass(frozen=True)
class Report:
    """What a check found. `digest` is that of the bundle as it is, to be compared with one kept elsewhere."""

    n_cases: int
    digest: str
    mismatches: tuple[Mismatch, ...]


def check(
    folder: str | Path,
    *,
    backends: Sequence[str] = BACKENDS,
    digest: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a folder of golden vectors, against the `digest` of its bundle if one is given.

    IntvitError if it is not in the format. A bundle all of whose digests were made anew for other values is caught by
    the recomputation if arithmetic contradicts it, else by `digest` alone.
    """
    root = Path(folder)
    for backend in backends:
        if backend not in BACKENDS:
            raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if digest is not None and not re.fullmatch(SHA256, digest):
        raise IntvitError(f"digest: must be 64 lower-case hex digits, not {digest!r}")
    index = read_index(root)
    actual = index.content_digest
    found = []
    for what, expected in (("digest", index.digest), ("digest that was asked for", digest)):
        if expected not in (None, actual):
            found.append(Mismatch(str(root / INDEX), what, str(expected), actual))
    manifests = [read_manifest(root, index, entry) for entry in index.cases]
    _check_consistent(root, [manifest for manifest, altered in manifests if not altered])
    for i, (manifest, altered) in enumerate(manifests):
        found += altered or check_case(root, manifest, backends)
        if progress:
            progress(i + 1, len(index.cases))
    return Report(len(index.cases), actual, tuple(found))


def check_case(root: Path, manifest: Manifest, backends: Sequence[str] = BACKENDS) -> list[Mismatch]:
    """One case: stored bytes against digests and each other, then what each backend makes of the stimuli.

    Nothing is computed from stimuli or parameters that differ from their digests.
    """
    case = read_case(root, manifest)
    recomputed = _recompute(root / manifest.folder, manifest, case.arrays, backends) if case.intact else ()
    return [*case.mismatches, *recomputed]


def _recompute(
    folder: Path, manifest: Manifest, arrays: Mapping[str, Array], backends: Sequence[str]
) -> Iterator[Mismatch]:
    from intvit.engine.evaluate import prepare
    from intvit.graph.check import check_operator

    *inputs, expected = [s for s in manifest.signals if s.role != "parameter"]
    params = {s.key: arrays[s.key].astype(np.int64) for s in manifest.signals if s.role == "parameter"}
    names = tuple(str(s.tensor) for s in inputs)
    node = Node(manifest.op, manifest.site, names, str(expected.tensor), manifest.attrs, params)
    stimuli, output = [_tensor(s) for s in inputs], _tensor(expected)
    with _only(folder, "a case of one operator"):
        check_operator(node, stimuli, output)
    unbounded = dataclasses.replace(output, dtype=IntType(64))  # a result that its type does not hold must not wrap
    for backend in backends:
        with _only(folder, f"a case that the {backend} computes"):
            actual = prepare(node, stimuli, unbounded, backend)([arrays[s.key][None] for s in inputs])[0]
            if actual.shape != output.shape:
                raise IntvitError(f"output has the shape {actual.shape}, and {output.shape} is expected")
        what = f"{shown(manifest.site)}: output ({backend})"
        yield from first_difference(str(folder), what, arrays[expected.key], actual, expected.type)


@contextmanager
def _only(folder: Path, what: str) -> Iterator[None]:
    """The border around operators, whose constants here come from a file: what they refuse, said of the case."""
    try:
        yield
    except IntvitError as error:
        raise IntvitError(f"{folder}: must be {what}, not: {reason(error)}") from None


def _tensor(signal: Signal) -> Tensor:
    scale = np.array(signal.scale, np.float64)
    factor = None if signal.factor is None else tuple(signal.factor)
    return Tensor(
        str(signal.tensor), tuple(signal.shape), signal.type, scale, signal.encoding, signal.bound, signal.source,
        signal.zero_point or 0, factor,
    )  # fmt: skip


def _check_consistent(root: Path, manifests: Sequence[Manifest]) -> None:
    """What the cases say of the graph must be one graph: its tensors, their order, the operators of its sites."""
    facts: dict[tuple[str, ...], str] = {}
    made: set[tuple[str, int]] = set()
    read: set[tuple[str, int]] = set()
    for manifest in manifests:
        path = root / manifest.folder / MANIFEST
        for key, value in _facts(manifest):
            if facts.setdefault(key, value) != value:
                raise IntvitError(f"{path}: {' '.join(map(shown, key))} must be the same in every case, and differs")
        *inputs, output = [str(s.tensor) for s in manifest.signals if s.role != "parameter"]
        if (output, manifest.image) in made or (output, manifest.image) in read or output in inputs:
            raise IntvitError(f"{path}: tensor {shown(output)} must be computed once and before it is used")
        made.add((output, manifest.image))
        read |= {(name, manifest.image) for name in inputs}


def _facts(manifest: Manifest) -> Iterator[tuple[tuple[str, ...], str]]:
    """What other cases must say likewise, each as a digest: of hex files, of the site, of each tensor."""
    yield ("hex files",), str(len(manifest.files) > 1)
    site = manifest.model_dump(include={"op", "attrs"})
    site["signals"] = [s.model_dump(exclude={} if s.role == "parameter" else {"sha256"}) for s in manifest.signals]
    yield ("site", manifest.site), sha256(repr(site).encode())
    for signal in manifest.signals:
        if signal.role != "parameter":
            name, tensor = str(signal.tensor), signal.model_dump(exclude={"key", "role", "sha256"})
            yield ("tensor", name), sha256(repr(tensor).encode())
            yield ("values of", name, "on image", str(manifest.image)), signal.sha256
