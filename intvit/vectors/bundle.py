"""Read a bundle of golden vectors: nothing that its index does not list, no link, no byte that a digest does not bind.

What is not in the format is an IntvitError; what is in the format and differs from its digest is a Mismatch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intvit.errors import IntvitError, placed, reason
from intvit.graph.check import check_part
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Graph, IntGraph, Node, Tensor, TensorDigest
from intvit.graph.operators.accumulators import NUMERICS
from intvit.spec import SPEC_VERSION
from intvit.vectors.compare import Mismatch, first_difference, shown
from intvit.vectors.layouts.dump import encoded
from intvit.vectors.layouts.layout import Layouts, build_layouts
from intvit.vectors.manifest import (
    ARRAYS,
    CASE,
    COVERAGE,
    INDEX,
    MOST_INDEX,
    MOST_MANIFEST,
    PARAMETERS,
    PART,
    Case,
    Entry,
    Index,
    Listed,
    Operator,
    Part,
    Signal,
    hex_name,
    layout,
    parse_text,
    sha256,
)
from intvit.vectors.memh import format_memh, parse_memh, size_memh
from intvit.vectors.npz import parse_npz, size_npz
from intvit.vectors.source import Source, open_source

Array = np.ndarray[Any, Any]
HASHED_AT_ONCE = 1 << 20


def read_index(source: Source) -> Index:
    """The index, its digest not compared; the folders that it lists and no others must be there."""
    index = parse_text(Index, source.read(INDEX, MOST_INDEX), source.shown(INDEX))
    if index.spec_version != SPEC_VERSION:
        raise _stale(source.shown(INDEX), index.spec_version)
    source.holds_exactly("", {INDEX, *(part.folder for part in index.parts)})
    return index


def layouts_of(source: Source, index: Index) -> Layouts | None:
    """The layouts of the memory files; None for one element a word. Their digest must be what the manifests say."""
    where = source.shown(INDEX)
    found = None if index.layouts is None else build_layouts(index.layouts.values, f"{where}: layouts")
    if index.layout != (None if found is None else found.digest):
        raise IntvitError(f"{where}: layout must be the digest of the layouts, and is not")
    return found


def _stale(path: str, actual: int) -> IntvitError:
    return IntvitError(f"{path}: spec version must be {SPEC_VERSION}, not {actual}: vectors are stale")


def read_part(source: Source, index: Index, listed: Listed) -> tuple[Part, list[Mismatch]]:
    """The manifest of a part, which must agree with the index, and whether its digest does."""
    path = f"{listed.folder}/{PART}"
    data = source.read(path, MOST_MANIFEST)
    part = parse_text(Part, data, source.shown(path))
    _of_the_index(source.shown(path), part, index, {"part": listed.part})
    source.holds_exactly(listed.folder, {PART, *part.files, *(f"image{case.image}" for case in listed.cases)})
    return part, list(_altered(source.shown(path), listed.sha256, data))


def read_case(source: Source, index: Index, part: Part, entry: Entry) -> tuple[Case, list[Mismatch]]:
    """The manifest of a case, which must agree with its part, and whether its digest does."""
    folder = f"{part.folder}/image{entry.image}"
    path = f"{folder}/{CASE}"
    data = source.read(path, MOST_MANIFEST)
    case = parse_text(Case, data, source.shown(path))
    _of_the_index(source.shown(path), case, index, {"part": part.part, "image": entry.image})
    try:
        case.matches(part)
    except ValueError as error:
        raise IntvitError(f"{source.shown(path)}: {error}") from None
    source.holds_exactly(folder, {CASE, *case.files})
    return case, list(_altered(source.shown(path), entry.sha256, data))


def _of_the_index(path: str, found: Part | Case, index: Index, more: dict[str, Any]) -> None:
    if found.spec_version != SPEC_VERSION:
        raise _stale(path, found.spec_version)
    for key, expected in {"graph_hash": index.graph_hash, "layout": index.layout, **more}.items():
        if repr(expected) != repr(getattr(found, key)):  # which tells 1, 1.0 and true apart
            raise IntvitError(f"{path}: {key} must be as in {INDEX}, and differs")


@dataclass(frozen=True)
class Arrays:
    """Arrays by key, and where they, their files and their digests differ; `intact`: not in those to compute from."""

    arrays: dict[str, Array]
    mismatches: list[Mismatch]
    intact: bool


def read_parameters(source: Source, part: Part, layouts: Layouts | None) -> Arrays:
    """The constants of a part; those that are what their digest says have the narrowest type."""
    given = {p.key for p in part.parameters}
    digests = {p.key: p.sha256 for p in part.parameters}
    found = _read(source, part, part.folder, PARAMETERS, part.parameters, digests, part.files, given, layouts)
    if COVERAGE in part.files:
        path = f"{part.folder}/{COVERAGE}"
        data = source.read(path, MOST_MANIFEST)
        found.mismatches.extend(_altered(source.shown(path), part.files[COVERAGE], data))
    return found


def read_arrays(source: Source, part: Part, case: Case, layouts: Layouts | None) -> Arrays:
    """The arrays of a case; those that are what their digest says fit their types and bounds."""
    given = {port.key for port in part.stimuli}
    folder = f"{part.folder}/image{case.image}"
    return _read(source, part, folder, ARRAYS, part.signals, case.signals, case.files, given, layouts)


def _read(source: Source, part: Part, folder: str, npz: str, signals: Sequence[Signal], digests: Mapping[str, str],
          listed: Mapping[str, str], given: Collection[str], layouts: Layouts | None) -> Arrays:  # fmt: skip
    memories = set(listed) - {npz, COVERAGE}
    if not signals:
        return Arrays({}, [], True)
    where = source.shown(folder)
    files = {npz: source.read(f"{folder}/{npz}", size_npz(layout(signals)))}
    stored = parse_npz(files[npz], layout(signals), f"{where}/{npz}")
    bounds = {port.key: part.tensors[port.tensor].bound for port in (*part.stimuli, *part.expected)}
    found: list[Mismatch] = []
    intact = True
    for signal in signals:
        array = stored[signal.name]
        if layouts is None and memories:
            size = size_memh(signal.type, tuple(signal.shape), part.header(signal))
            files[hex_name(signal)] = source.read(f"{folder}/{hex_name(signal)}", size)
            found += _compare_hex(where, part, npz, signal, array, files)
        actual = array_hash(array)
        if actual == digests[signal.key]:
            check_values(f"{where}: {signal.name}", signal, array, bounds.get(signal.key))
            if npz == PARAMETERS and signal.type != declared_type(array):
                raise IntvitError(
                    f"{where}: {signal.name}: type must be {declared_type(array)}, the narrowest, not {signal.dtype}"
                )
        else:
            found.append(Mismatch(where, f"sha256 of {signal.name}", digests[signal.key], actual))
            intact &= signal.key not in given
    if layouts is not None and memories:
        arrays = {signal.key: stored[signal.name] for signal in signals}
        found += _compare_laid(source, part, folder, signals, arrays, memories, files, layouts, npz)
    for name, data in files.items():
        found += _altered(f"{where}/{name}", listed[name], data)
    return Arrays({s.key: stored[s.name] for s in signals}, found, intact)


def laid_out(part: Part, signals: Sequence[Signal], arrays: Mapping[str, Array], layouts: Layouts) -> dict[str, bytes]:
    """The memory files of some arrays, as layouts ask for them."""
    types = {signal.key: signal.type for signal in signals}
    given = {key: (arrays[key], types[key]) for key in types}
    with placed(part.part):
        return dict(encoded(given, layouts.within(part.folder), part.made_from))


def _compare_laid(
    source: Source, part: Part, folder: str, signals: Sequence[Signal], arrays: Mapping[str, Array],
    memories: Collection[str], files: dict[str, bytes], layouts: Layouts, npz: str,
) -> Iterator[Mismatch]:  # fmt: skip
    """Memory files must be, byte by byte, what the arrays give; `files` gets them."""
    fitting = [signal for signal in signals if fits(arrays[signal.key], signal.type)]
    wanted = laid_out(part, fitting, arrays, layouts)
    if len(fitting) == len(signals) and set(wanted) != set(memories):
        raise IntvitError(f"{source.shown(folder)}: memory files must be {sorted(wanted)}, not {sorted(memories)}")
    for name in sorted(memories):
        expected = wanted.get(name, b"")
        files[name] = source.read(f"{folder}/{name}", max(len(expected), 1 << 16))
        if name in wanted and files[name] != expected:
            at = next((i for i, (a, b) in enumerate(zip(files[name], expected, strict=False)) if a != b), 0)
            line = expected[:at].count(b"\n") + 1
            place = f"{source.shown(folder)}/{name}"
            yield Mismatch(place, f"byte {at} (line {line}) against {npz}", "that of its array", "another")


def _compare_hex(where: str, part: Part, npz: str, signal: Signal, array: Array, files: Mapping[str, bytes],
                 ) -> Iterator[Mismatch]:  # fmt: skip
    name = hex_name(signal)
    if name in files:
        first, shape = part.header(signal), tuple(signal.shape)
        if fits(array, signal.type) and format_memh(array, signal.type, first) == files[name]:
            return
        words = parse_memh(files[name], signal.type, shape, first, f"{where}/{name}")
        what = f"{shown(part.part)}: {name} against {npz}"
        yield from first_difference(where, what, array, words, signal.type)


def node_of(operator: Operator, part: Part, arrays: Mapping[str, Array]) -> Node:
    """The node whose constants are parameters: scalars of a method, `bits`, and arrays."""
    scalars: dict[str, int] = {}
    constants: dict[str, Array] = {}
    for p in part.parameters:
        if p.site == operator.site:
            array = arrays[p.key].astype(np.int64)
            if array.ndim or operator.op in LAYOUT_OPS:
                constants[p.constant] = array
            else:
                scalars[p.constant] = int(array)
    attrs = dict(operator.attrs)
    if "method" in attrs:
        attrs["params"] = scalars
    else:
        attrs |= scalars
    return Node(operator.op, operator.site, tuple(operator.inputs), operator.output, attrs, constants)


def graph_of(part: Part, parameters: Mapping[str, Array], where: object) -> IntGraph:
    """The part as a graph, its constants checked as those of a stored graph are."""
    tensors = {
        name: Tensor(name, tuple(t.shape), IntType.parse(t.dtype), np.array(t.scale, np.float64), t.encoding, t.bound,
                     t.source, t.zero_point or 0, None if t.factor is None else tuple(t.factor))
        for name, t in part.tensors.items()
    }  # fmt: skip
    nodes = tuple(node_of(operator, part, parameters) for operator in part.nodes)
    inputs, outputs = (tuple(port.tensor for port in ports) for ports in (part.stimuli, part.expected))
    graph: IntGraph = Graph(inputs, outputs, nodes, tensors, {"spec_version": part.spec_version})
    try:
        check_part(graph)
    except IntvitError as error:
        raise IntvitError(f"{where}: must be a part of a graph, not: {reason(error)}") from None
    if part.numerics != numerics_hash(nodes):
        raise IntvitError(f"{where}: numerics must be the digest of those of its nodes, and differ")
    return graph


@dataclass(frozen=True)
class GoldenCase:
    """A part and its cases, as a reader of the bundle gets them: compared with every digest on the way."""

    name: str
    part: IntGraph
    images: tuple[int, ...]
    manifest: Part
    _source: Source
    _index: Index
    _listed: Listed
    layouts: Layouts | None
    """Of the memory files; None: one element a word."""

    def stimuli(self, image: int) -> dict[str, Array]:
        """Tensor -> (*shape)."""
        return self._tensors(image, [(port.key, port.tensor) for port in self.manifest.stimuli])

    def expected(self, image: int) -> dict[str, Array]:
        return self._tensors(image, [(port.key, port.tensor) for port in self.manifest.expected])

    def _tensors(self, image: int, keys: Sequence[tuple[str, str]]) -> dict[str, Array]:
        arrays = self.arrays(image)
        return {tensor: arrays[key] for key, tensor in keys}

    def arrays(self, image: int) -> dict[str, Array]:
        """Key -> array of one case; IntvitError where a byte is not what its digest says."""
        entry = next((entry for entry in self._listed.cases if entry.image == image), None)
        if entry is None:
            raise IntvitError(f"{self.name}: image must be one of {_span(self.images)}, not {image}")
        case, altered = read_case(self._source, self._index, self.manifest, entry)
        found = read_arrays(self._source, self.manifest, case, self.layouts)
        _intact([*altered, *found.mismatches])
        return found.arrays


def open_bundle(path: str | Path) -> list[GoldenCase]:
    """Every part of a bundle, a folder or a zip, in order; IntvitError for what is none and for what was altered."""
    source = open_source(path)
    index = read_index(source)
    if index.digest != index.content_digest:
        _intact([Mismatch(source.shown(INDEX), "digest", index.digest, index.content_digest)])
    found, layouts = list[GoldenCase](), layouts_of(source, index)
    for listed in index.parts:
        part, altered = read_part(source, index, listed)
        constants = read_parameters(source, part, layouts)
        _intact([*altered, *constants.mismatches])
        graph = graph_of(part, constants.arrays, source.shown(f"{part.folder}/{PART}"))
        images = tuple(entry.image for entry in listed.cases)
        found.append(GoldenCase(listed.part, graph, images, part, source, index, listed, layouts))
    return found


def _intact(mismatches: Sequence[Mismatch]) -> None:
    if mismatches:
        raise IntvitError(f"{mismatches[0]}; the vectors were altered: `golden check` tells where")


def _span(images: Sequence[int]) -> str:
    return f"{images[0]}..{images[-1]}"


def numerics_hash(nodes: Sequence[Node]) -> str:
    """sha256 of the numerics of some nodes."""
    return sha256(json.dumps([node.attrs.get(NUMERICS, {}) for node in nodes], sort_keys=True).encode())


def fits(array: Array, dtype: IntType) -> bool:
    return dtype.min <= int(array.min()) and int(array.max()) <= dtype.max


def _altered(path: str, expected: str, data: bytes) -> Iterator[Mismatch]:
    if sha256(data) != expected:
        yield Mismatch(path, "sha256 of the file", expected, sha256(data))


def check_values(where: str, signal: Signal, array: Array, bound: int | None = None) -> None:
    """Every value must fit the declared type, and the proven bound."""
    low, high = int(array.min()), int(array.max())
    most = bound if bound is not None else 1 << 64
    if low < max(signal.type.min, -most) or high > min(signal.type.max, most):
        limit = signal.dtype if bound is None else f"{signal.dtype} and the bound {bound}"
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
