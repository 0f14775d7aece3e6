#!/usr/bin/env python3
"""The narrowest integer type of every intermediate, over seeded rows: the tables of docs/quantization.md.

    python tools/widths.py                  # prints the tables as the document holds them
    python tools/widths.py --write          # puts them into the document
    python tools/widths.py --operator softmax --columns 49 --scale 0.01 --rows 1000 --seed 7

The specification computes every row and says its intermediates (`intvit.spec.taps`); `s9` is a signed, `u26` an
unsigned type that holds all values seen, and no narrower one does. What was seen is no proof: other rows and scales can
need more.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

from intvit.graph import operators
from intvit.kernels import registry
from intvit.kernels.requantize import dyadic
from intvit.spec.matmul import linear, log2_matmul, matmul
from intvit.spec.pool import mean
from intvit.spec.requantize import requantize
from intvit.spec.taps import OUTPUT, Values, integer_type, intermediates, names

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "quantization.md"
BEGIN, END = "<!-- begin: python tools/widths.py --write -->", "<!-- end -->"


@dataclass(frozen=True)
class Setting:
    """What the rows of an operator are."""

    bits: int
    columns: int
    scale: float
    rows: int = 200
    seed: int = 1


SOFTMAX = Setting(bits=8, columns=197, scale=0.05)
ACTIVATION = Setting(bits=8, columns=64, scale=0.05)
NORM = Setting(bits=16, columns=192, scale=0.0005, rows=70)
OTHERS = Setting(bits=8, columns=64, scale=0.0007, rows=70)


def setting_of(operator: str) -> Setting:
    if operator == "softmax":
        return SOFTMAX
    return NORM if operator in operators.named("per_channel") else ACTIVATION


def limits(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def directed_rows(setting: Setting) -> Iterator[list[int]]:
    """Rows of every kind in turn: uniform, bell-shaped, equal, one-hot, a ramp, negative, two values."""
    rng, (low, high), n = Random(setting.seed), limits(setting.bits), setting.columns
    kinds: list[Callable[[], list[int]]] = [
        lambda: [rng.randint(low, high) for _ in range(n)],
        lambda: [sum(rng.randint(low, high) for _ in range(4)) // 8 for _ in range(n)],
        lambda: [rng.choice((low, 0, high, rng.randint(low, high)))] * n,
        lambda: [high if j == n // 2 else low for j in range(n)],
        lambda: [low + j * (high - low) // n for j in range(n)],
        lambda: [rng.randint(low, -1) for _ in range(n)],
        lambda: [rng.choice((low, high)) for _ in range(n)],
    ]
    for i in range(setting.rows):
        yield kinds[i % len(kinds)]()


def lowered(method: Any, setting: Setting) -> Any:
    """The method's integers for real scales; gamma and beta of a norm are seeded."""
    rng = Random(setting.seed)
    gamma = [rng.choice((-1, 1)) * rng.randint(50, 200) / 100 for _ in range(setting.columns)]
    beta = [rng.randint(-100, 100) / 100 for _ in range(setting.columns)]
    facts = {
        "gamma": gamma,
        "beta": beta,
        "shift": 0,
        "out_scale": 0.03,
        "out_bits": 4 if method.name == "fqvit" else 8,
    }
    return method.constants(setting.scale, facts, method.uniform)[0]


def types_seen(function: Callable[..., Any], calls: Iterable[tuple[Sequence[Any], dict[str, Any]]]) -> dict[str, str]:
    """Name -> narrowest type over all calls of a function of the specification."""
    ends: dict[str, Values] = {}  # the least and the largest value decide
    for arguments, options in calls:
        for name, values in intermediates(function, *arguments, **options).items():
            known = [v for v in (*values, *ends.get(name, [])) if v is not None]
            ends[name] = [min(known), max(known)] if known else []
    return {name: integer_type(values) for name, values in ends.items()}


def markdown(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]


def label(method: Any) -> str:
    return method.name if method.version == 1 else f"{method.name}.v{method.version}"


def method_table(operator: str, setting: Setting) -> list[str]:
    """One line for each name, one column for each method."""
    methods, meanings = registry.methods(operator), {**names()[operator], OUTPUT: "the output"}
    types = []
    for method in methods:
        params = lowered(method, setting)
        types.append(types_seen(method.spec, (((row, params), {}) for row in directed_rows(setting))))
    lines = ([f"`{name}`", *(t.get(name, "") for t in types), meaning] for name, meaning in meanings.items())
    return [
        f"**{operator}**: {setting.rows} rows of {setting.columns} s{setting.bits}, scale {setting.scale}, "
        f"seed {setting.seed}",
        "",
        *markdown(["name", *(label(m) for m in methods), "meaning"], lines),
    ]


def other_table(setting: Setting) -> list[str]:
    """The operators without methods."""
    rng, n = Random(setting.seed), setting.columns

    def row(bits: int, columns: int) -> list[int]:
        return [rng.randint(*limits(bits)) for _ in range(columns)]

    def matrix(bits: int, rows: int, columns: int) -> list[list[int]]:
        return [row(bits, columns) for _ in range(rows)]

    def ratio(in_scale: float, out_scale: float) -> list[list[int]]:
        return [constant.tolist() * n for constant in dyadic(in_scale, out_scale)]

    fine, coarse = ratio(setting.scale, 0.05), ratio(setting.scale / 20, 0.0004)
    second = dict(zip(("residual_m", "residual_e"), ratio(0.0005, 0.0004), strict=True))
    calls: dict[str, tuple[str, Callable[..., Any], Callable[[], tuple[Sequence[Any], dict[str, Any]]]]] = {
        "requantize s21 to s8": ("requantize", requantize, lambda: ((row(21, n), *fine, 8), {})),
        "requantize s21 + s16 to s16": (
            "requantize",
            requantize,
            lambda: ((row(21, n), *coarse, 16), {"residual": row(16, n), **second}),
        ),
        "linear, K = 192": ("matmul", linear, lambda: ((matrix(8, 1, 192), matrix(8, 8, 192), row(16, 8)), {})),
        "matmul, K = 64": ("matmul", matmul, lambda: ((matrix(8, 1, 64), matrix(8, 64, 8)), {})),
        "log2_matmul, K = 197": (
            "matmul",
            log2_matmul,
            lambda: (([[rng.randint(-1, 15) for _ in range(197)]], matrix(8, 197, 8)), {}),
        ),
        "mean of 49": ("mean", mean, lambda: ((row(8, 49),), {})),
    }
    lines = []
    for label, (operator, function, draw) in calls.items():
        meanings = {**names()[operator], OUTPUT: "the output"}
        types = types_seen(function, (draw() for _ in range(setting.rows)))
        lines += [[label, f"`{name}`", kind, meanings[name]] for name, kind in types.items()]
    return [
        f"**The others**: {setting.rows} rows of uniform integers, K of them to a sum, seed {setting.seed}",
        "",
        *markdown(["operator", "name", "type", "meaning"], lines),
    ]


def tables() -> str:
    """Everything that stands between the two marks of the document."""
    parts = [method_table(operator, setting_of(operator)) for operator in operators.with_methods()]
    return "\n\n".join("\n".join(lines) for lines in (*parts, other_table(OTHERS))) + "\n"


def with_tables(document: str) -> str:
    """The document with its tables made anew."""
    head, rest = document.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/quantization.md")
    parser.add_argument(
        "--operator", choices=sorted(operators.with_methods()), help="this table only, of the rows that follow"
    )
    for name in ("bits", "columns", "rows", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--scale", type=float)
    args = parser.parse_args()
    changed = {f.name: v for f in dataclasses.fields(Setting) if (v := getattr(args, f.name)) is not None}
    if args.operator:
        print("\n".join(method_table(args.operator, dataclasses.replace(setting_of(args.operator), **changed))))
    elif changed:
        parser.error(f"--{next(iter(changed))} needs --operator")
    elif args.write:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
    else:
        print(tables(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
