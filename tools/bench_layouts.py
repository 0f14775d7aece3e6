#!/usr/bin/env python3
"""Time packing, writing, reading and unpacking of `$readmemh` texts on one core, the best of several runs.

    python tools/bench_layouts.py --rounds 9

MB/s of tensor bytes: elements times the bytes of their own type. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np

from intvit.graph.inttypes import IntType
from intvit.vectors.layouts.formats import read, write
from intvit.vectors.layouts.layout import Layout
from intvit.vectors.layouts.memory import pack, unpack

CASES = {
    "4 x s8 a word of 32 bits": (8, Layout(lanes=4, element_bits=8)),
    "4 x s8 a word of 32 bits, tiles of 64 x 64": (8, Layout(lanes=4, element_bits=8, tiles=[64, 64])),
    "16 x s8 a word of 128 bits": (8, Layout(lanes=16, element_bits=8, word_bits=128)),
    "s8 a word of 8 bits": (8, Layout(element_bits=8, word_bits=8)),
    "s8 sign-extended to a word of 32 bits": (8, Layout()),
    "8 x s4 a word of 32 bits": (4, Layout(lanes=8, element_bits=4)),
    "4 x s24 in 3 words of 32 bits": (24, Layout(lanes=4, words=3, element_bits=24)),
    "s32 a word": (32, Layout()),
}


def best(rounds: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest run, and the result."""
    fastest, result = float("inf"), None
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=4096, help="of the square tensor")
    options = parser.parse_args()
    print("| layout | written | read |\n|---|---|---|")
    for name, (bits, layout) in CASES.items():
        dtype = IntType(bits)
        side = options.side if bits <= 8 else options.side // 2
        size = side * side * max(1, bits // 8) / 1e6
        rng = np.random.default_rng(0)
        array = rng.integers(dtype.min, dtype.max, (side, side), np.int64, endpoint=True)
        array = array.astype(np.int8 if bits <= 8 else np.int32)
        seconds, data = best(options.rounds, lambda: write(pack(array, dtype, layout), "memh", "bench")[".hex"])  # noqa: B023
        again, back = best(
            options.rounds,
            lambda: unpack(read([("bench", data)], layout), array.shape, dtype, layout, partial=False),  # noqa: B023
        )
        assert np.array_equal(back.values, array)
        print(f"| {name} | {size / seconds:.0f} | {size / again:.0f} |", flush=True)


if __name__ == "__main__":
    main()
