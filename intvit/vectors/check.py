"""Check golden vectors: every byte against its digest, and every case recomputed from what it holds itself."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.graph import operators
from intvit.graph.inttypes import IntType, storage
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node
from intvit.vectors.bundle import (
    graph_of,
    layouts_of,
    read_arrays,
    read_case,
    read_index,
    read_parameters,
    read_part,
)
from intvit.vectors.compare import Mismatch, first_difference, shown
from intvit.vectors.manifest import INDEX, PART, SHA256, Case, Index, Listed, Part, sha256
from intvit.vectors.source import Source, open_source

BACKENDS = ("spec", "kernel")
SPEC_STEPS = 1_000_000
"""Multiplications, or the like, of a site that the specification is given; of more it computes some rows."""
MANY = 100
"""Parts that are worth the start of processes."""
STEPS_AN_ELEMENT = 16
"""Of an operator that is no product."""


@dataclass(frozen=True)
class Report:
    """What a check found. `digest` is that of the bundle as it is, to be compared with one kept elsewhere."""

    n_cases: int
    digest: str
    mismatches: tuple[Mismatch, ...]
    rows: tuple[int, int] = (0, 0)
    """That the specification computed, and that there are, of sites that were too large for it."""


def check(
    folder: str | Path,
    *,
    backends: Sequence[str] = BACKENDS,
    digest: str | None = None,
    full: bool = False,
    jobs: int | None = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a bundle of golden vectors (a folder or a zip), against its `digest` if one is given.

    IntvitError if it is not in the format. A bundle all of whose digests were made anew for other values is caught by
    the recomputation if arithmetic contradicts it, else by `digest` alone. The kernels compute everything; the
    specification, which is slow, as many rows of a site as `SPEC_STEPS` allow, spread evenly; `full`: all. `jobs`:
    processes, among which the parts are shared out; None: as many as there are cores, for many parts.
    """
    for backend in backends:
        if backend not in BACKENDS:
            raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if digest is not None and not re.fullmatch(SHA256, digest):
        raise IntvitError(f"digest: must be 64 lower-case hex digits, not {digest!r}")
    source = open_source(folder)
    index = read_index(source)
    layouts_of(source, index)
    actual = index.content_digest
    found: list[Mismatch] = []
    for what, expected in (("digest", index.digest), ("digest that was asked for", digest)):
        if expected not in (None, actual):
            found.append(Mismatch(source.shown(INDEX), what, str(expected), actual))
    parts, cases = _manifests(source, index)
    intact = {name for name, (_, altered) in parts.items() if not altered}
    _check_consistent(source, index, {name: parts[name][0] for name in parts if name in intact}, cases)
    n_jobs = min(jobs or (os.cpu_count() if len(index.parts) >= MANY else 1) or 1, len(index.parts))
    done = 0
    rows = [0, 0]
    one = partial(_check_part, folder, index, tuple(backends), full)
    with ExitStack() as stack:
        found_of: Iterable[Found] = map(one, index.parts)
        if n_jobs > 1:
            pool = stack.enter_context(ProcessPoolExecutor(n_jobs, get_context("spawn")))
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            found_of = pool.map(one, index.parts)
        for listed, (mismatches, computed, total) in zip(index.parts, found_of, strict=True):
            found += mismatches
            rows = [rows[0] + computed, rows[1] + total]
            done += len(listed.cases)
            if progress:
                progress(done, index.n_cases)
    return Report(index.n_cases, actual, tuple(found), (rows[0], rows[1]))


Found = tuple[list[Mismatch], int, int]


def _check_part(folder: str | Path, index: Index, backends: Sequence[str], full: bool, listed: Listed) -> Found:
    """Mismatches of a part and its cases; rows of its large sites that the specification computed, and all of them."""
    source = open_source(folder)
    layouts = layouts_of(source, index)
    part, altered = read_part(source, index, listed)
    constants = read_parameters(source, part, layouts)
    found = [*altered, *constants.mismatches]
    usable = constants.intact and not altered
    graph = graph_of(part, constants.arrays, source.shown(f"{part.folder}/{PART}")) if usable else None
    checker = _Checker(source, backends, full)
    for entry in listed.cases:
        case, of_case = read_case(source, index, part, entry)
        found += of_case
        if not of_case and not altered:
            arrays = read_arrays(source, part, case, layouts)
            found += arrays.mismatches
            if graph is not None and arrays.intact:
                found += checker.recompute(part, graph, case, arrays.arrays)
    return found, checker.computed, checker.all


Cases = Mapping[str, Sequence[tuple[Case, list[Mismatch]]]]


def _manifests(source: Source, index: Index) -> tuple[dict[str, tuple[Part, list[Mismatch]]], Cases]:
    parts = {listed.part: read_part(source, index, listed) for listed in index.parts}
    cases = {
        listed.part: [read_case(source, index, parts[listed.part][0], entry) for entry in listed.cases]
        for listed in index.parts
    }
    return parts, cases


@dataclass
class _Checker:
    source: Source
    backends: Sequence[str]
    full: bool
    computed: int = 0
    all: int = 0

    def recompute(self, part: Part, graph: IntGraph, case: Case, arrays: Mapping[str, Array]) -> Iterator[Mismatch]:
        """What differs from the expected tensors, first as the kernels compute them, then the specification."""
        folder = self.source.shown(case.folder)
        expected = {port.tensor: (port.key, arrays[port.key]) for port in part.expected}
        stimuli = {port.tensor: arrays[port.key][None] for port in part.stimuli}
        values = dict(stimuli)
        for node in graph.nodes:
            with _only(folder, "a case that the kernel computes"):
                values[node.output] = self._whole(graph, node, values, "kernel")
            key, golden = expected.get(node.output, ("", None))
            name = f"{shown(part.part)}: {key or shown(node.name)}"
            kind = graph.tensors[node.output].dtype
            for backend in self.backends:
                wanted = values[node.output][0] if golden is None else golden
                if backend == "kernel" and golden is not None:
                    yield from first_difference(folder, f"{name} (kernel)", golden, values[node.output][0], kind)
                elif backend == "spec" and node.op not in LAYOUT_OPS:
                    yield from self._by_spec(folder, f"{name} (spec)", graph, node, values, wanted)
            fits = int(values[node.output].min()) >= kind.min and int(values[node.output].max()) <= kind.max
            if not fits:
                return  # what comes after has nothing to be computed from
            values[node.output] = values[node.output].astype(storage(kind), copy=False)
        if "kernel" in self.backends:
            with _only(folder, "a case that the engine computes"):
                found = _by_engine(graph, stimuli)
            for tensor, (key, golden) in expected.items():
                what = f"{shown(part.part)}: {key} (engine)"
                yield from first_difference(folder, what, golden, found[tensor][0], graph.tensors[tensor].dtype)
        # intermediates are what the specification says on the way
        yield from self._taps(folder, part, graph, values, arrays)

    def _whole(self, graph: IntGraph, node: Node, values: Mapping[str, Array], backend: str) -> Array:
        from intvit.engine.evaluate import prepare

        inputs = [graph.tensors[name] for name in node.inputs]
        output = graph.tensors[node.output]
        if node.op not in LAYOUT_OPS:  # a result that its type does not hold must not wrap
            output = dataclasses.replace(output, dtype=IntType(64))
        result = prepare(node, inputs, output, backend)([values[name] for name in node.inputs])
        if result.shape[1:] != output.shape:
            raise IntvitError(f"output has the shape {result.shape[1:]}, and {output.shape} is expected")
        return result

    def _by_spec(self, folder: str, what: str, graph: IntGraph, node: Node, values: Mapping[str, Array],
                 expected: Array) -> Iterator[Mismatch]:  # fmt: skip
        rows = None if self.full else chosen_rows(graph, node)
        given = dict(values)
        if rows is not None:
            kind = operators.get(node.op)
            for name in node.inputs[: kind.row_inputs if kind else 0]:
                given[name] = values[name][..., rows, :]
            self.computed, self.all = self.computed + len(rows), self.all + expected.shape[-2]
        with _only(folder, "a case that the spec computes"):
            from intvit.engine.evaluate import prepare

            output = dataclasses.replace(graph.tensors[node.output], dtype=IntType(64))
            evaluate = prepare(node, [graph.tensors[name] for name in node.inputs], output, "spec")
            actual = evaluate([given[name] for name in node.inputs])[0]
        part = expected if rows is None else expected[..., rows, :]
        if actual.shape != part.shape:
            raise IntvitError(f"{folder}: output has the shape {actual.shape}, and {part.shape} is expected")
        whole = expected.copy().astype(np.int64)
        if rows is None:
            whole = actual
        else:
            whole[..., rows, :] = actual
        yield from first_difference(folder, what, expected, whole, graph.tensors[node.output].dtype)

    def _taps(self, folder: str, part: Part, graph: IntGraph, values: Mapping[str, Array],
              arrays: Mapping[str, Array]) -> Iterator[Mismatch]:  # fmt: skip
        if not part.taps:
            return
        from intvit.vectors.taps import tapped

        found = tapped(graph, {name: array[0] for name, array in values.items()})
        if {key: tap.facts for key, tap in found.items()} != {tap.key: tap.model_dump() for tap in part.taps}:
            raise IntvitError(f"{folder}: taps must be the intermediates of its sites, and differ")
        for key, actual in [item for tap in found.values() for item in tap.arrays.items()]:
            what = f"{shown(part.part)}: {shown(key)}"
            yield from first_difference(folder, what, arrays[key], actual, IntType(64))


def chosen_rows(graph: IntGraph, node: Node) -> Array | None:
    """The rows of a node's output that the specification computes; None: all."""
    kind, shape = operators.get(node.op), graph.tensors[node.output].shape
    if kind is None or not kind.row_inputs or len(shape) < 2 or {"mask", "residual"} & set(node.arrays):
        return None
    if any(graph.tensors[name].shape[-2:-1] != shape[-2:-1] for name in node.inputs[: kind.row_inputs]):
        return None
    product = kind.product or len(node.inputs) > kind.row_inputs
    inner = graph.tensors[node.inputs[0]].shape[-1] if product else STEPS_AN_ELEMENT
    most = max(1, SPEC_STEPS // max(1, inner * math.prod(shape) // shape[-2]))
    return None if most >= shape[-2] else np.unique(np.linspace(0, shape[-2] - 1, most).astype(np.int64))


def _by_engine(graph: IntGraph, stimuli: Mapping[str, Array]) -> dict[str, Array]:
    """The expected tensors by the engine's plan, fused where it fuses."""
    from intvit.engine import Engine

    values, found = dict(stimuli), dict[str, Array]()
    for name in graph.inputs:
        values[name] = values[name].astype(storage(graph.tensors[name].dtype), copy=False)
    Engine(graph).program(graph.outputs).run(values, lambda name, array: found.__setitem__(name, array))
    return {name: found[name] for name in graph.outputs}


@contextmanager
def _only(folder: str, what: str) -> Iterator[None]:
    """The border around operators, whose constants here come from a file: what they refuse, said of the case."""
    try:
        yield
    except IntvitError as error:
        raise IntvitError(f"{folder}: must be {what}, not: {reason(error)}") from None


def _check_consistent(source: Source, index: Index, parts: Mapping[str, Part], cases: Cases) -> None:
    """What the parts say of the graph must be one graph: its tensors, their order, the operators of its sites."""
    facts: dict[tuple[str, ...], str] = {}
    read: set[str] = set()
    makers: dict[str, str] = {}
    for name, part in parts.items():
        path = source.shown(f"{part.folder}/{PART}")

        def same(key: tuple[str, ...], value: str, path: str = path) -> None:
            if facts.setdefault(key, value) != value:
                raise IntvitError(f"{path}: {' '.join(map(shown, key))} must be the same in every case, and differs")

        for key, value in _facts(part):
            same(key, value)
        for node in part.nodes:
            if makers.setdefault(node.output, node.site) != node.site:
                raise IntvitError(f"{path}: tensor {shown(node.output)} must be computed once and before it is used")
        alone = len(part.nodes) == 1
        if alone and any(port.tensor in read for port in part.expected):
            tensor = shown(part.expected[0].tensor)
            raise IntvitError(f"{path}: tensor {tensor} must be computed once and before it is used")
        read |= {port.tensor for port in part.stimuli}
        for case, altered in cases[name]:
            same(("hex files of cases",), str(len(case.files) > 1))
            if index.stimuli == "images" and not altered:
                for port in (*part.stimuli, *part.expected):
                    same(("values of", port.tensor, "on image", str(case.image)), case.signals[port.key])


def _facts(part: Part) -> Iterator[tuple[tuple[str, ...], str]]:
    """What other parts must say likewise, each as a digest: of hex files, of sites, of tensors."""
    if part.parameters:
        yield ("hex files",), str(any(name.endswith(".hex") for name in part.files))
    for node in part.nodes:
        constants = [(p.constant, p.shape, p.dtype, p.sha256) for p in part.parameters if p.site == node.site]
        yield ("site", node.site), sha256(repr((node.model_dump(), constants)).encode())
    for name, tensor in part.tensors.items():
        yield ("tensor", name), sha256(repr(tensor.model_dump()).encode())
