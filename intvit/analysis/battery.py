"""What every method must hold, tried on one: for whoever adds a method, here or in a package of their own.

    from intvit.analysis.battery import findings

    def test_my_softmax():
        assert findings(MY_SOFTMAX) == []

On the command line: `intvit methods --check NAME`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Graph, Tensor
from intvit.graph.operators.methods import node_of
from intvit.kernels.method import Method
from intvit.spec import SPEC_VERSION

SCALES = (0.5, 0.125, 0.0417, 0.01, 1 / 511, 2.0**-12)
BITS = (8, 16)
"""Of the inputs."""
CHANNELS = (1, 3, 32)


def findings(method: Method, *, seed: int = 0, n_rows: int = 24) -> list[str]:
    """What is wrong with a method, one line each; empty if nothing was found.

    Tried on seeded rows of 8 and 16 bits, at several scales and row lengths, with and without masks: its constants are
    integers; specification and kernel agree; the specification holds Python integers and no float; outputs lie within
    the bound; what a scale cannot do is refused by IntvitError; golden vectors of it are written and checked.
    """
    found = [*_signature(method), *_integer_only(method)]
    rng, n_tried = np.random.default_rng(seed), 0
    for scale in SCALES:
        for channels in CHANNELS:
            try:
                params = constants(method, scale, channels, rng)
            except IntvitError:
                continue
            except Exception as error:
                return [*found, f"lower at scale {scale:.4g}: {type(error).__name__}: {error}, and no IntvitError"]
            wrong = _not_integers(params)
            if wrong:
                return [*found, wrong]
            for bits in BITS:
                try:
                    _compare(method, params, _rows(rng, bits, n_rows, channels), rng)
                    n_tried += 1
                except IntvitError:  # beyond a limit that the method states
                    continue
                except _Wrong as error:
                    found.append(f"scale {scale:.4g}, {bits} bits, {channels} channels: {error}")
    if not n_tried:
        found.append(f"refused every scale of {', '.join(f'{scale:.4g}' for scale in SCALES)} at every width")
    elif not found:
        found += _golden(method, rng)
    return found


class _Wrong(Exception):
    pass


def constants(method: Method, scale: float, channels: int, rng: np.random.Generator) -> Any:
    """Parameters at a scale, on ordinary facts and default options."""
    if method.input_scale is not None:
        scale = float(method.input_scale(scale))
    gamma, beta = rng.normal(1, 0.3, channels), rng.normal(0, 0.3, channels)
    low, high = method.widths
    facts = {"out_bits": min(max(8, low), high), "exp_range_max": None, "gamma": gamma, "beta": beta, "shift": 0,
             "factor": None, "out_scale": 0.03, "x_max": 127}  # fmt: skip
    if method.out_encoding == "log2":
        facts["out_bits"] = 4
    kind = operators.get(method.operator)
    known = kind.facts or () if kind else ()
    return method.constants(scale, {key: facts[key] for key in known}, {})[0]


def _signature(method: Method) -> Iterator[str]:
    """`lower` may name facts of its operator and options that it declares."""
    kind = operators.get(method.operator)
    if kind is None or kind.facts is None:
        yield f"operator must be one of {', '.join(operators.with_methods())}, not {method.operator!r}"
        return
    known = {*kind.facts, *method.options.model_fields}
    for name in list(inspect.signature(method.lower).parameters)[1:]:
        if name not in known:
            yield f"lower: {name} must be a fact of {method.operator} or an option that is declared"


def _integer_only(method: Method) -> Iterator[str]:
    """No float stands in the text of the specification."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method.spec)))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield f"spec: must hold integers only, and holds {node.value}"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield "spec: must divide by //, and divides by /"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
            yield "spec: must hold integers only, and calls float"


def _not_integers(params: Any) -> str:
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        for number in value if isinstance(value, tuple) else [value]:
            if type(number) is not int:
                return f"params.{field.name}: must be an int or a tuple of ints, and holds {type(number).__name__}"
    return ""


def _rows(rng: np.random.Generator, bits: int, n_rows: int, channels: int) -> Array:
    """Random rows of several spreads, and the ones that break things: all equal, one high, the ends of the type."""
    top = 2 ** (bits - 1)
    spread = rng.integers(1, top, (n_rows, 1))
    rows = rng.integers(-top, top, (n_rows, channels)) % (2 * spread) - spread
    one = np.full(channels, -top)
    one[channels // 2] = top - 1
    return np.vstack([rows, np.zeros(channels, int), np.full(channels, top - 1), np.full(channels, -top), one])


def _compare(method: Method, params: Any, rows: Array, rng: np.random.Generator) -> None:
    if method.longest_row is not None and rows.shape[1] > method.longest_row:
        return
    masks: list[Array | None] = [None]
    kind = operators.get(method.operator)
    if kind and kind.masked:
        masks += [np.asarray(rng.random(rows.shape) < 0.3), np.ones(rows.shape, np.bool_)]
    run = method.kernel(params)
    for mask in masks:
        fast = run(np.array(rows, np.int64)) if mask is None else run(np.array(rows, np.int64), mask.copy())
        if fast.dtype != np.int64 or fast.shape != rows.shape:
            raise _Wrong(f"kernel: must give int64 {rows.shape}, not {fast.dtype} {fast.shape}")
        for i, row in enumerate(rows.tolist()):
            slow = method.spec(row, params) if mask is None else method.spec(row, params, mask[i].tolist())
            if any(type(value) is not int for value in slow):
                raise _Wrong(f"spec: must give ints, not {sorted({type(value).__name__ for value in slow})}")
            if slow != fast[i].tolist():
                j = next(j for j, pair in enumerate(zip(slow, fast[i].tolist(), strict=True)) if pair[0] != pair[1])
                raise _Wrong(f"row {row[:8]}, element {j}: spec gives {slow[j]}, kernel {fast[i, j]}")
        bound = method.bound(params, int(np.abs(rows).max()), rows.shape[1]) if method.bound else None
        if bound is not None and int(np.abs(fast).max()) > bound:
            raise _Wrong(f"bound: {bound} must hold every output, and {int(np.abs(fast).max())} is one")


def _golden(method: Method, rng: np.random.Generator) -> Iterator[str]:
    """A graph of this one operator, its golden vectors, and both backends on them."""
    from intvit.vectors.check import check as check_vectors
    from intvit.vectors.export import export

    channels, dtype = max(c for c in CHANNELS if method.longest_row is None or c <= method.longest_row), IntType(8)
    for scale in SCALES:
        try:
            graph = one_operator(method, scale, channels, dtype, rng)
            break
        except IntvitError:
            continue
    else:
        return
    images = rng.integers(-128, 128, (1, 2, channels)).astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(graph, images, Path(folder) / "vectors")
            report = check_vectors(Path(folder) / "vectors")
        except IntvitError as error:
            yield f"golden vectors: {error}"
            return
        for mismatch in report.mismatches:
            yield f"golden vectors: {mismatch}"


def one_operator(method: Method, scale: float, channels: int, dtype: IntType, rng: np.random.Generator) -> Graph:
    """The graph `x (2, channels) -> method -> y`."""
    x = Tensor("x", (2, channels), dtype, np.asarray(scale))
    node, y = node_of(method, constants(method, scale, channels, rng), "y", x, "y", 1.0)
    graph = Graph(("x",), ("y",), (node,), {"x": x, "y": y}, {"recipe": {}, "spec_version": SPEC_VERSION})
    check(graph)
    return graph
