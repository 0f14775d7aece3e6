#!/usr/bin/env python3
"""The ranges of every integer constant, as the code requires them: the tables of docs/quantization.md.

    python tools/ranges.py                  # prints the tables as the document holds them
    python tools/ranges.py --write          # puts them into the document

Of methods the parameter classes are asked (`intvit.spec.ranges.asked`), of other operators the checks of their nodes,
of datapaths the `Numerics`. What a constant may be is what is said here; what a network has is much less.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np
from widths import DOCUMENT, END, lowered, markdown, setting_of

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Node, Tensor
from intvit.kernels import registry
from intvit.spec.numerics import PRESETS
from intvit.spec.ranges import Range, asked
from intvit.spec.taps import integer_type

BEGIN = "<!-- begin: python tools/ranges.py --write -->"
SCALES = (0.0005, 0.05, 0.95)
"""Of constants whose range depends on another one; the table says the union."""


def power(value: int) -> str:
    """An integer as a person would write it.

    >>> [power(v) for v in (255, -2**61, 2**62 - 1, 1 - 2**30, 1200)]
    ['255', '-2^61', '2^62 - 1', '1 - 2^30', '1200']
    """
    size, sign = abs(value), "-" if value < 0 else ""
    if size < 10000:
        return str(value)
    if size.bit_count() == 1:
        return f"{sign}2^{size.bit_length() - 1}"
    if (size + 1).bit_count() == 1:
        return f"1 - 2^{size.bit_length()}" if value < 0 else f"2^{size.bit_length()} - 1"
    return str(value)


def of_params(params: Any) -> dict[str, Range]:
    """Field of a parameter class -> (least, largest)."""
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {where.rpartition(" ")[2]: found for where, found in asked(lambda: type(params)(**values)).items()}


def of_method(method: Any) -> dict[str, Range]:
    """As `of_params`, over several scales."""
    union: dict[str, Range] = {}
    for scale in SCALES:
        params = lowered(method, dataclasses.replace(setting_of(method.operator), scale=scale, columns=4))
        for key, (low, high) in of_params(params).items():
            least, most = union.get(key, (low, high))
            union[key] = min(least, low), max(most, high)
    return union


def method_table() -> list[str]:
    """One line for each constant; methods of one parameter class share them."""
    lines: list[list[str]] = []
    shown: dict[type, list[Any]] = {}
    for method in registry.methods():
        if not method.informative:
            shown.setdefault(method.params, []).append(method)
    for params, methods in shown.items():
        vectors = {field.name for field in dataclasses.fields(params) if field.type not in (int, "int")}
        label = ", ".join(f"{m.operator} {m.name}" for m in methods)
        for key, found in of_method(methods[0]).items():
            per = "" if key not in vectors else "1 or C" if methods[0].operator == "gelu" else "C"
            lines.append([label, f"`{key}`", *map(power, found), integer_type(list(found)), per])
    return markdown(["method", "constant", "least", "largest", "type", "vector of"], lines)


def required(node: Node, inputs: list[Tensor], output: Tensor, key: str) -> Range:
    """The range of an array of a node that is right but for it, in the words of its check."""
    far = np.full(node.arrays[key].shape, 2**62)
    other = dataclasses.replace(node, arrays={**node.arrays, key: far})
    try:
        operators.get(node.op).check(other, inputs, output)  # type: ignore[union-attr, misc]
    except IntvitError as error:
        found = re.search(rf"{key} must lie in (-?\d+)\.\.(-?\d+)", str(error))
        if found:
            return int(found[1]), int(found[2])
    raise AssertionError(f"{node.op}: {key} has no range")


def examples() -> list[tuple[str, Node, list[Tensor], Tensor]]:
    """(name in the table, node, inputs, output) of the operators without methods, and of a mask."""

    def tensor(name: str, dtype: IntType, bound: int | None = None) -> Tensor:
        return Tensor(name, (2, 3), dtype, np.asarray(1.0), bound=bound)

    def ones(*shape: int) -> Any:
        return np.ones(shape, np.int64)

    x, wide, narrow = tensor("x", IntType(8)), tensor("y", IntType(64), 2**62), tensor("y", IntType(8))
    both = {f"{term}{key}": ones(3) for term in ("", "residual_") for key in "me"} | {"residual": ones(3)}
    params = {"x0": -20, "n": 15, "out_bits": 8}
    masked = Node("softmax", "s", ("x",), "y", {"method": "ivit", "version": 1, "params": params}, {"mask": ones(2, 3)})
    linear = Node("linear", "l", ("x",), "y", {}, {"weight": ones(3, 3), "bias": ones(3)})
    requantize = Node("requantize", "r", ("x",), "y", {"bits": 8}, both)
    return [("linear", linear, [x], wide), ("requantize", requantize, [x], narrow), ("softmax", masked, [x], wide)]


def array_table() -> list[str]:
    lines = []
    for label, node, inputs, output in examples():
        for key in sorted(node.arrays):
            found = required(node, inputs, output, key)
            lines.append([label, f"`{key}`", *map(power, found), integer_type(list(found))])
    return markdown(["operator", "constant", "least", "largest", "type"], lines)


def numerics_table() -> list[str]:
    lines = []
    for name, how in PRESETS.items():
        low, high = how.multipliers
        sums = "as proven" if how.accumulator_bits is None else str(how.accumulator_bits)
        words = (how.shift_least, how.shift_most, how.product_bits, how.rounded_bits, sums)
        lines.append([f"`{name}`", power(low), power(high), integer_type([low, high]), *map(str, words)])
    head = [
        "numerics",
        "least `m`",
        "largest `m`",
        "type",
        "least `e`",
        "largest `e`",
        "bits: product",
        "rounded",
        "sum",
    ]
    return markdown(head, lines)


def tables() -> str:
    """Everything that stands between the two marks of the document."""
    return "\n\n".join("\n".join(table()) for table in (method_table, array_table, numerics_table)) + "\n"


def with_tables(document: str) -> str:
    """The document with its tables made anew."""
    head, rest = document.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/quantization.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
    else:
        print(tables(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
