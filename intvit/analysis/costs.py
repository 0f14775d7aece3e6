"""Costs: how many operations of which kind every operator of an integer graph does for one image, counted.

Of methods they are counted in their own specification: a copy of its modules runs on integers that count what is done
to them, with roundings, roots and divisions as one operation each. What is computed of constants alone costs nothing.
Of products, sums and requantizations they follow from the shapes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, IntGraph, Node, Tensor
from intvit.graph.operators.methods import mask_rows
from intvit.graph.parameters import method_params, node_method
from intvit.kernels.method import GeluForms
from intvit.spec import arith

KINDS = ("multiplications", "additions", "shifts", "comparisons", "divisions", "roots")
WEIGHTS = {
    "multiplications": 1.0,
    "additions": 0.1,
    "shifts": 0.1,
    "comparisons": 0.1,
    "divisions": 10.0,
    "roots": 10.0,
}
"""What one costs if nothing else is said, in multiplications: rough, and there to be replaced."""
WIDEST_TABLE = 16
"""Bits of an input that a table can have."""


@dataclass
class Counts:
    """How often each kind of operation is done."""

    of: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, n: int = 1) -> None:
        self.of[kind] += n

    def times(self, n: int) -> Counts:
        return Counts({kind: n * count for kind, count in self.of.items()})

    def weighed(self, weights: Mapping[str, float]) -> float:
        return math.fsum(weights[kind] * count for kind, count in self.of.items())


@dataclass(frozen=True)
class Cost:
    """Of one node and image. Bytes: of its inputs and output as they are typed, and of its constants.

    `table_bits`: of a table of the whole operator, where its output depends on one input of 16 bits or less.
    """

    site: str
    operator: str
    method: str
    operations: Counts
    bytes_moved: int
    bytes_constant: int
    table_bits: int | None


# ------------------------------------------------------------------------------------------ counting integers


def _is_power(value: Any) -> bool:
    """Whether a constant is a power of two, which only shifts."""
    return type(value) is int and value > 0 and value & (value - 1) == 0


def _counting(counts: Counts) -> type:
    """A class of integers that count what is done to them."""

    class Counted(int):
        pass

    def method(name: str, kind: str) -> None:
        plain = getattr(int, name)

        def run(self: Any, *others: Any) -> Any:
            of_two = kind in ("multiplications", "divisions") and any(_is_power(other) for other in others)
            counts.add("shifts" if of_two and name not in ("__pow__", "__rfloordiv__", "__rmod__") else kind)
            found = plain(self, *others)
            return Counted(found) if type(found) is int else found

        setattr(Counted, name, run)

    for name in ("add", "radd", "sub", "rsub", "neg"):
        method(f"__{name}__", "additions")
    for name in ("mul", "rmul", "pow"):
        method(f"__{name}__", "multiplications")
    for name in ("lshift", "rlshift", "rshift", "rrshift"):
        method(f"__{name}__", "shifts")
    for name in ("floordiv", "rfloordiv", "mod", "rmod"):
        method(f"__{name}__", "divisions")
    for name in ("lt", "le", "gt", "ge", "abs"):
        method(f"__{name}__", "comparisons")
    return Counted


DONE: dict[str, Mapping[str, int]] = {
    "rhe": {"divisions": 1, "additions": 1},
    "rhe_shift": {"shifts": 1, "additions": 1},
    "floor_shift": {"shifts": 1},
    "saturate": {"comparisons": 2},
    "clamp": {"comparisons": 2},
    "isqrt": {"roots": 1},
    "truncated_div": {"divisions": 1},
    "wrap": {},
}
"""What the functions of `spec.arith` are, as operations."""


def _arithmetic(counts: Counts, counted: type) -> dict[str, Callable[..., int]]:
    def known(name: str) -> Callable[..., int]:
        plain = getattr(arith, name)

        def run(*values: Any) -> Any:
            if any(type(value) is counted for value in values):
                for kind, n in DONE[name].items():
                    counts.add(kind, n)
                return counted(plain(*(int(value) for value in values)))
            return plain(*values)

        return run

    return {name: known(name) for name in DONE}


def _copied(module: ModuleType, replaced: Mapping[str, Any], copies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The names of a copy of a module of a specification, whose functions see `replaced` and copies of one another."""
    if module.__name__ in copies:
        return copies[module.__name__]
    path = module.__file__
    if path is None:
        raise IntvitError(f"{module.__name__}: must have a source to count in, and has none")
    space: dict[str, Any] = {"__name__": f"{module.__name__} (counting)", "__file__": path}
    copies[module.__name__] = space
    stand_in = ModuleType(space["__name__"])
    sys.modules[space["__name__"]] = stand_in  # where dataclasses look for names
    try:
        exec(compile(Path(path).read_text(), path, "exec"), space)
    finally:
        del sys.modules[space["__name__"]]
    for name, value in list(space.items()):
        home = getattr(value, "__module__", None)
        if name in replaced and home == arith.__name__:
            space[name] = replaced[name]
        elif isinstance(value, FunctionType) and _counts_too(str(home)):
            space[name] = _copied(sys.modules[str(home)], replaced, copies)[value.__name__]
        elif isinstance(value, ModuleType) and _counts_too(value.__name__):
            held = ModuleType(value.__name__)
            vars(held).update(_copied(value, replaced, copies))
            space[name] = held
    return space


def _counts_too(module: str) -> bool:
    """Whether functions of a module compute what is counted."""
    return (
        module.startswith("intvit.spec.")
        and module.rpartition(".")[2] not in ("arith", "taps", "ranges")
        and (module in sys.modules)
    )


def of_row(spec: Callable[..., Any], row: Sequence[int], *others: Any) -> Counts:
    """What a specification does to a row."""
    counts = Counts()
    counted = _counting(counts)
    space = _copied(sys.modules[spec.__module__], _arithmetic(counts, counted), {})
    space[spec.__name__]([counted(v) for v in row], *others)
    return counts


# ------------------------------------------------------------------------------------------ graphs


def costs(graph: IntGraph) -> list[Cost]:
    """Of every node that computes something, in order."""
    found = []
    for node in graph.nodes:
        if node.op not in LAYOUT_OPS:
            found.append(_cost(node, [graph.tensors[name] for name in node.inputs], graph.tensors[node.output]))
    return found


def _cost(node: Node, inputs: list[Tensor], output: Tensor) -> Cost:
    named = node_method(node).id.split(".", 1)[1] if "method" in node.attrs else ""
    counts = _method(node, inputs[0]) if named else _shaped(node, inputs, output)
    moved = sum(_bits(tensor) for tensor in (*inputs, output))
    constant = sum(array.size * _narrowest(array) for array in node.arrays.values())
    table = None
    if named and inputs[0].dtype.bits <= WIDEST_TABLE:
        forms = node_method(node).fast
        if isinstance(forms, GeluForms) and forms.depends == "element":
            channels = max((array.size for array in node.arrays.values()), default=1)
            table = channels * (1 << inputs[0].dtype.bits) * output.dtype.bits
    return Cost(node.name, node.op, named, counts, -(-moved // 8), -(-constant // 8), table)


def _bits(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.bits


def _narrowest(array: np.ndarray[Any, Any]) -> int:
    most = max(int(array.max()), -int(array.min()) - 1, 0)
    return IntType(max(2, most.bit_length() + 1)).bits


def _method(node: Node, x: Tensor) -> Counts:
    """One row of codes from end to end of the input's range, times the rows."""
    method, n = node_method(node), x.shape[-1]
    top = x.max_abs
    row = [round(-top + 2 * top * i / max(1, n - 1)) for i in range(n)]
    mask = mask_rows(node, (1, *x.shape))
    hidden = [] if mask is None else [mask[0].tolist()]
    return of_row(method.spec, row, method_params(node), *hidden).times(math.prod(x.shape[:-1]))


def _shaped(node: Node, inputs: list[Tensor], output: Tensor) -> Counts:
    counts, elements = Counts(), math.prod(output.shape)
    depth = inputs[0].shape[-1]
    if node.op in ("linear", "matmul", "log2_matmul"):
        counts.add("shifts" if node.op == "log2_matmul" else "multiplications", elements * depth)
        counts.add("additions", elements * (depth - 1 + ("bias" in node.arrays)))
    elif node.op == "mean":
        summed = math.prod(inputs[0].shape)
        counts.add("additions", summed - elements)
        counts.add("divisions", elements)
    elif node.op == "requantize":
        multiplied = 1 + (len(inputs) > 1)
        counts.add("multiplications", elements * multiplied)
        counts.add("shifts", elements * multiplied)
        counts.add("additions", elements * (2 * multiplied - 1 + ("residual" in node.arrays)))
        counts.add("comparisons", 2 * elements)
    return counts


def by_method(found: Sequence[Cost], weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """operator -> method -> the weighed cost of a site, on average: what `map --costs` reads."""
    sums: dict[tuple[str, str], list[float]] = {}
    for each in found:
        if each.method:
            name = each.method.split(".")[0]
            sums.setdefault((each.operator, name), []).append(each.operations.weighed(weights))
    tables: dict[str, dict[str, float]] = {}
    for (operator, method), values in sorted(sums.items()):
        tables.setdefault(operator, {})[method] = math.fsum(values) / len(values)
    return tables


def read_weights(text: str | None) -> dict[str, float]:
    """`divisions=20,roots=8`: others as usual. IntvitError for what is none."""
    weights = dict(WEIGHTS)
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if key.strip() not in weights or not 0 <= number < math.inf:
            raise IntvitError(f"--weights: must be KIND=NUMBER of {', '.join(KINDS)}, not {part!r}")
        weights[key.strip()] = number
    return weights


def records(found: Sequence[Cost], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """A line for each node: JSON, CSV."""
    return [
        {"site": each.site, "operator": each.operator, "method": each.method, **each.operations.of,
         "weighed": each.operations.weighed(weights), "bytes_moved": each.bytes_moved,
         "bytes_constant": each.bytes_constant, "table_bits": each.table_bits}
        for each in found
    ]  # fmt: skip


def summed(found: Sequence[Cost]) -> list[Cost]:
    """Of all sites of an operator and method together."""
    groups: dict[tuple[str, str], list[Cost]] = {}
    for each in found:
        groups.setdefault((each.operator, each.method), []).append(each)
    whole = []
    for (operator, method), parts in groups.items():
        counts = Counts({kind: sum(part.operations.of[kind] for part in parts) for kind in KINDS})
        tables = [part.table_bits for part in parts if part.table_bits is not None]
        whole.append(
            Cost(f"{len(parts)} sites", operator, method, counts, sum(part.bytes_moved for part in parts),
                 sum(part.bytes_constant for part in parts), sum(tables) if tables else None)
        )  # fmt: skip
    return whole


def all_methods(found: Sequence[Sequence[Cost]]) -> list[Cost]:
    """Of several graphs, that of the first wherever an operator and method occur in more than one."""
    seen: set[tuple[str, str]] = set()
    joined: list[Cost] = []
    for each in found:
        known = {(cost.operator, cost.method) for cost in each}
        joined += [cost for cost in each if (cost.operator, cost.method) not in seen]
        seen |= known
    return joined


def format_toml(tables: Mapping[str, Mapping[str, float]]) -> str:
    """For `map --costs`."""
    lines = []
    for operator, table in tables.items():
        lines += [f"[{operator}]", *(f"{method} = {value:.6g}" for method, value in table.items()), ""]
    return "\n".join(lines)
