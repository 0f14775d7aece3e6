"""Export golden vectors: a folder per part of a stored integer graph, and in it one per set of stimuli."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError, placed
from intvit.files import remove, safe_name, whole_file, whole_folder
from intvit.graph.check import check
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node, Tensor
from intvit.spec import SPEC_VERSION
from intvit.vectors.bundle import array_hash, check_values, declared_type, laid_out, numerics_hash
from intvit.vectors.layouts.layout import build_layouts
from intvit.vectors.manifest import (
    ARRAYS,
    CASE,
    COVERAGE,
    INDEX,
    PARAMETERS,
    PART,
    Case,
    Entry,
    Index,
    Listed,
    Part,
    Signal,
    StoredLayouts,
    build,
    case_folder,
    hex_name,
    key_of,
    layout,
    parse_text,
    port_keys,
    sha256,
    written,
)
from intvit.vectors.memh import format_memh
from intvit.vectors.npz import format_npz
from intvit.vectors.part import parameters, part_of, reaching
from intvit.vectors.source import write_zip
from intvit.vectors.taps import tapped

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """A part that is to be exported, under a name."""

    name: str
    graph: IntGraph

    @property
    def sites(self) -> list[Node]:
        """Its nodes but for layout."""
        return [node for node in self.graph.nodes if node.op not in LAYOUT_OPS]


@dataclass(frozen=True)
class Stimuli:
    """Stimuli of one part: tensor -> (N, *shape), and what is known of what they reach (JSON)."""

    values: Mapping[str, Array]
    coverage: Any = None


def select_nodes(graph: IntGraph, patterns: Sequence[str]) -> list[Node]:
    """Nodes whose site, operator or `operator.method` matches a shell pattern; every pattern must match one.

    Layout moves carry no arithmetic and are never exported by themselves.
    """
    nodes = [n for n in graph.nodes if n.op not in LAYOUT_OPS]
    found: dict[str, Node] = {}
    for pattern in patterns:
        hits = [n for n in nodes if any(fnmatch.fnmatchcase(name, pattern) for name in _names(n))]
        if not hits:
            raise IntvitError(f"{pattern or repr('')}: must match a site or operator of the graph, and matches none")
        found |= {n.name: n for n in hits}
    return [n for n in nodes if n.name in found]


def _names(node: Node) -> tuple[str, ...]:
    method = node.attrs.get("method")
    return (node.name, node.op) if method is None else (node.name, node.op, f"{node.op}.{method}")


def select_parts(graph: IntGraph, sites: Sequence[str] = (), parts: Mapping[str, Sequence[str]] | None = None,
                 spans: Mapping[str, tuple[str, str]] | None = None) -> list[Wanted]:  # fmt: skip
    """What is to be exported, in the order in which it is done: a part for each site that a pattern of `sites` matches,
    one for each name of `parts`, of all sites that its patterns match, and one for each of `spans`: what computes the
    second of two sites from the first on. IntvitError for what matches nothing, and for a name that is used twice.
    """
    found = [Wanted(node.name, part_of(graph, [node.name])) for node in (select_nodes(graph, sites) if sites else ())]
    for name, patterns in (parts or {}).items():
        with placed(name):
            found.append(Wanted(name, part_of(graph, [node.name for node in select_nodes(graph, patterns)])))
    for name, span in (spans or {}).items():
        with placed(name):
            found.append(Wanted(name, part_of(graph, reaching(graph, *span))))
    known = {node.name for node in graph.nodes if node.op not in LAYOUT_OPS}
    for wanted in found:
        only = [node.name for node in wanted.sites]
        if len(only) == 1 and wanted.name != only[0]:
            raise IntvitError(f"{wanted.name}: a part of one site must have its name, {only[0]} (--site)")
        if len(only) > 1 and wanted.name in known:
            raise IntvitError(f"{wanted.name}: a part of {len(only)} sites must not have the name of one")
    names = [wanted.name for wanted in found]
    for name in names:
        if names.count(name) > 1:
            raise IntvitError(f"{name}: must name one part, and names {names.count(name)}")
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    return sorted(found, key=lambda w: (order[w.graph.nodes[-1].name], len(w.graph.nodes)))


def export(
    graph: IntGraph,
    images: Array,
    folder: str | Path,
    *,
    sites: Sequence[str] = ("*",),
    parts: Sequence[Wanted] | None = None,
    first_image: int = 0,
    hex_files: bool = True,
    taps: bool = False,
    resume: bool = False,
    layouts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Index:
    """Write a case per part and image below `folder`, which must not exist; returns the index of what is there.

    `parts`: as `select_parts` gives them; left out, one for each of the `sites`. `taps`: the named intermediates too.
    `layouts`: the TOML values of layouts (docs/layouts.md), by which memory files are written instead of plain hex.
    `resume`: keep what an export that was ended left, and take from it the cases that are the same. A name that ends in
    .zip becomes one file.
    """
    _origin(graph)
    wanted = select_parts(graph, sites) if parts is None else list(parts)
    names = sorted({name for each in wanted for name in _needed(each, taps)})
    q_images = quantize_images(graph, images)
    writer = _Writer(graph, hex_files, taps, resume, layouts, len(wanted) * len(q_images), progress)
    engine = Engine(graph)

    def cases() -> Iterator[tuple[Wanted, int, dict[str, Array]]]:
        for i in range(len(q_images)):
            tensors = engine.evaluate(q_images[i : i + 1], names)
            for each in wanted:
                yield each, first_image + i, {name: array[0] for name, array in tensors.items()}

    return writer.write(folder, wanted, cases(), {})


def export_stimuli(
    graph: IntGraph,
    stimuli: Mapping[str, Stimuli],
    folder: str | Path,
    *,
    parts: Sequence[Wanted],
    hex_files: bool = True,
    taps: bool = False,
    resume: bool = False,
    layouts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Index:
    """As `export`, with stimuli of its own for every part (by name); what comes of them is computed by the kernels."""
    n_cases = sum(len(next(iter(each.values.values()))) for each in stimuli.values())
    writer = _Writer(graph, hex_files, taps, resume, layouts, n_cases, progress)

    def cases() -> Iterator[tuple[Wanted, int, dict[str, Array]]]:
        from intvit.vectors.part import run

        for each in parts:
            given = stimuli[each.name].values
            found = run(each.graph, given, _needed(each, taps))
            for i in range(len(next(iter(given.values())))):
                yield each, i, {name: array[i] for name, array in found.items()}

    return writer.write(folder, parts, cases(), {name: each.coverage for name, each in stimuli.items()})


def directed_stimuli(part: IntGraph, seed: int = 0, level: int = 1) -> Stimuli:
    """Stimuli that reach the corners of a part of one site, and their coverage (docs/directed.md)."""
    from intvit.vectors.directed import directed

    found = directed(part, seed=seed, level=level)
    return Stimuli(found.stimuli, found.coverage.value())


def _needed(wanted: Wanted, taps: bool) -> tuple[str, ...]:
    """Which tensors of a part its cases are made of."""
    inside = [name for node in wanted.sites for name in node.inputs] if taps else []
    return tuple(dict.fromkeys((*wanted.graph.inputs, *wanted.graph.outputs, *inside)))


class _Writer:
    def __init__(self, graph: IntGraph, hex_files: bool, taps: bool, resume: bool, layouts: Mapping[str, Any] | None,
                 n_cases: int, progress: Progress | None) -> None:  # fmt: skip
        self.layouts = None if layouts is None else build_layouts(layouts)
        self.layout_values = None if layouts is None else StoredLayouts.of(layouts)
        self.origin = _origin(graph)
        if self.layouts is not None:
            self.origin["layout"] = self.layouts.digest
        self.resume = resume
        self.recipe = graph.metadata.get("recipe", {})
        self.hex_files, self.taps, self.n_cases, self.progress = hex_files, taps, n_cases, progress

    def write(self, folder: str | Path, wanted: Sequence[Wanted],
              cases: Iterator[tuple[Wanted, int, dict[str, Array]]], coverage: Mapping[str, Any]) -> Index:  # fmt: skip
        """`cases`: a part, the number of an image, the tensors of the part."""
        kind = "directed" if coverage else "images"
        self._index(kind, [(each, "0" * 64, [Entry(image=0, sha256="0" * 64)]) for each in wanted])
        known: dict[str, Part] = {}
        hashes: dict[str, str] = {}
        entries: dict[str, list[Entry]] = {each.name: [] for each in wanted}
        with _bundle(Path(folder), self.resume) as partial:
            for done, (each, image, tensors) in enumerate(cases, 1):
                taps = tapped(each.graph, tensors) if self.taps else {}
                if each.name not in known:
                    part, text = self._part(each, taps, partial, coverage.get(each.name))
                    known[each.name], hashes[each.name] = part, sha256(text)
                text = self._case(known[each.name], image, tensors, taps, partial)
                entries[each.name].append(Entry(image=image, sha256=sha256(text)))
                if self.progress:
                    self.progress(done, self.n_cases)
            index = self._index(kind, [(each, hashes[each.name], entries[each.name]) for each in wanted])
            index = index.model_copy(update={"digest": index.content_digest})
            _only_listed(partial, index)
            (partial / INDEX).write_bytes(written(index, "graph"))
        return index

    def _index(self, kind: str, parts: Sequence[tuple[Wanted, str, list[Entry]]]) -> Index:
        """IntvitError if there is none of these parts."""
        listed = []
        for each, digest, entries in parts:
            listed.append(Listed(part=each.name, folder=safe_name(each.name), sha256=digest, cases=entries))
        facts = {"recipe": self.recipe, "layouts": self.layout_values, "stimuli": kind, "parts": listed}
        index = build(Index, {**self.origin, **facts}, "graph")
        written(index, "graph")
        return index

    def _part(self, wanted: Wanted, taps: Mapping[str, Any], root: Path, coverage: Any) -> tuple[Part, bytes]:
        """Write what all cases of a part share; its manifest, and the bytes of that."""
        graph, n_sites = wanted.graph, len(wanted.sites)
        constants: dict[str, Array] = {}
        stated = []
        for node in graph.nodes:
            for name, array in parameters(node).items():
                key, where = key_of(n_sites, node.name, name), f"{node.name}: {name}"
                facts = {"key": key, "site": node.name, "constant": name, "shape": list(array.shape)}
                facts |= {"dtype": str(declared_type(array)), "sha256": array_hash(array)}
                _integers(where, array)
                stated.append(facts)
                constants[key] = array
        values = {
            **self.origin,
            "part": wanted.name,
            "numerics": numerics_hash(graph.nodes),
            "nodes": [_operator(node) for node in graph.nodes],
            "tensors": {name: _facts(tensor) for name, tensor in graph.tensors.items()},
            "stimuli": _ports("input", graph.inputs),
            "expected": _ports("output", graph.outputs),
            "taps": [tap.facts for tap in taps.values()],
            "parameters": stated,
            "files": {},
        }
        names = [PARAMETERS] if stated else []
        if self.hex_files and self.layouts is None:
            names += [f"{safe_name(str(facts['key']))}.hex" for facts in stated]
        part = build(Part, {**values, "files": dict.fromkeys(names, "0" * 64)}, wanted.name)
        for signal in part.parameters:
            check_values(f"{wanted.name}: {signal.name}", signal, constants[signal.key])
        files = self._files(part, PARAMETERS, part.parameters, constants) if stated else {}
        if coverage is not None:
            files[COVERAGE] = (json.dumps(coverage, indent=1, sort_keys=True) + "\n").encode("ascii")
        part = build(Part, {**values, "files": {name: sha256(data) for name, data in files.items()}}, wanted.name)
        text = written(part, wanted.name)
        if self.resume and (root / part.folder).is_dir():
            for place in [place for place in (root / part.folder).iterdir() if not place.is_dir()]:
                remove(place)
        _write(root / part.folder, {**files, PART: text})
        return part, text

    def _case(self, part: Part, image: int, tensors: Mapping[str, Array], taps: Mapping[str, Any], root: Path) -> bytes:
        """Write a case; the bytes of its manifest. IntvitError, before a file is written, for what a check would
        refuse."""
        arrays = {port.key: tensors[port.tensor] for port in (*part.stimuli, *part.expected)}
        if [tap.facts for tap in taps.values()] != [tap.model_dump() for tap in part.taps]:
            raise IntvitError(f"{part.part}: intermediates must be the same on every image, not others on {image}")
        for tap in taps.values():
            arrays |= tap.arrays
        for port in (*part.stimuli, *part.expected):
            where, tensor = f"{part.part}: {port.key}", part.tensors[port.tensor]
            _integers(where, arrays[port.key])
            check_values(where, part.of(port), arrays[port.key], tensor.bound)
        for tap_signal in part.tap_signals:
            check_values(f"{part.part}: {tap_signal.key}", tap_signal, arrays[tap_signal.key])
        hashes = {signal.key: array_hash(arrays[signal.key]) for signal in part.signals}
        facts = {**self.origin, "part": part.part, "image": image, "signals": hashes}
        folder = root / case_folder(part.part, image)
        if self.resume:
            text = _known(folder, part, facts, self.hex_files)
            if text is not None:
                return text
            remove(folder)
        files = self._files(part, ARRAYS, part.signals, arrays)
        facts["files"] = {name: sha256(data) for name, data in files.items()}
        text = written(build(Case, facts, part.part), part.part)
        _write(folder, {**files, CASE: text})
        return text

    def _files(self, part: Part, npz: str, signals: Sequence[Signal], arrays: Mapping[str, Array]) -> dict[str, bytes]:
        files = {npz: format_npz({s.name: arrays[s.key] for s in signals}, layout(signals))}
        if self.layouts is not None:
            files |= laid_out(part, signals, arrays, self.layouts)
        elif self.hex_files:
            files |= {hex_name(s): format_memh(arrays[s.key], s.type, part.header(s)) for s in signals}
        return files


@contextmanager
def _bundle(path: Path, resume: bool) -> Iterator[Path]:
    """A folder to fill: the bundle, or what is packed into it."""
    if path.suffix.lower() != ".zip":
        with whole_folder(path, resume=resume) as partial:
            yield partial
        return
    folder = path.with_name(f"{path.name}.folder")
    with whole_file(path) as file:
        if path.exists() or path.is_symlink():
            raise IntvitError(f"{path}: must not exist yet")
        if not resume or folder.is_symlink() or not folder.is_dir():
            remove(folder)
            folder.mkdir()
        try:
            yield folder
            write_zip(folder, file)
            remove(folder)
        finally:
            if not resume:
                remove(folder)


def _known(folder: Path, part: Part, facts: Mapping[str, Any], hex_files: bool) -> bytes | None:
    """The manifest of a case that an ended export left, if every file is there that it would be written with."""
    try:
        text = (folder / CASE).read_bytes()
        case = parse_text(Case, text, folder)
        case.matches(part)
    except (OSError, ValueError):  # IntvitError is one
        return None
    stated = case.model_dump(exclude={"files", "format", "version"}, exclude_none=True)
    if stated != dict(facts) or (len(case.files) > 1) != hex_files or set(os.listdir(folder)) != {CASE, *case.files}:
        return None
    same = all(sha256((folder / name).read_bytes()) == digest for name, digest in case.files.items())
    return text if same else None


def _only_listed(root: Path, index: Index) -> None:
    """Remove what an ended export of something else left."""
    wanted = {part.folder: {f"image{case.image}" for case in part.cases} for part in index.parts}
    for folder in root.iterdir():
        if folder.name not in wanted:
            remove(folder)
            continue
        for place in folder.iterdir():
            if place.is_dir() and place.name not in wanted[folder.name]:
                remove(place)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _origin(graph: IntGraph) -> dict[str, Any]:
    """What the vectors are made from; IntvitError for a graph that could not be stored."""
    version = graph.metadata.get("spec_version")
    if version != SPEC_VERSION:
        raise IntvitError(f"graph: spec version must be {SPEC_VERSION}, not {version!r}: lower the model again")
    check(graph)
    return {"graph_hash": graph.content_hash, "spec_version": version}


def _integers(where: str, array: Array) -> None:
    if array.dtype.kind not in "iub" or array.dtype == np.uint64:
        raise IntvitError(f"{where}: must be integers that fit s64, not {array.dtype}")


def _operator(node: Node) -> dict[str, Any]:
    constants = {"params", "bits"} if node.op not in LAYOUT_OPS else set()
    attrs = {key: value for key, value in node.attrs.items() if key not in constants}
    return {"site": node.name, "op": node.op, "attrs": attrs, "inputs": list(node.inputs), "output": node.output}


def _ports(word: str, names: Sequence[str]) -> list[dict[str, str]]:
    return [{"key": key, "tensor": name} for key, name in zip(port_keys(word, len(names)), names, strict=True)]


def _facts(tensor: Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "scale": tensor.scale.tolist(),
        "encoding": tensor.encoding,
        "bound": tensor.bound,
        "source": tensor.source,
        "zero_point": tensor.zero_point or None,
        "factor": None if tensor.factor is None else list(tensor.factor),
    }
