"""What may have become of the constants of a site: read from elsewhere, with bits less, exchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from intvit.graph.ir import Array
from intvit.vectors.diagnosis import arith
from intvit.vectors.diagnosis.arith import magnitude
from intvit.vectors.diagnosis.moves import in_words
from intvit.vectors.diagnosis.problem import Problem
from intvit.vectors.part import parameters

MOST_CUT = 27
"""Bits that are taken from a multiplier."""
Read = tuple[str, str, str, Mapping[str, Array], int]
"""(kind, which constants, what happened, what was read instead, penalty)."""


def misread(problem: Problem) -> Iterator[Read]:
    """Constants that were read wrongly."""
    stage = problem.stage
    values = {key: v for key, v in stage.values.items() if key != "mask"}
    for key, v in values.items():
        for kind, text, other, penalty in _one(key, v):
            if not np.array_equal(other, v):
                yield kind, key, text, {key: other}, penalty
    yield from _exchanged(values)
    if stage.node.op in ("requantize", "softmax"):
        for key in ("m", "residual_m"):
            if key in values:
                yield from _fewer_bits(key, values[key])
    yield from _in_place(values)
    if "mask" in stage.values:
        mask = stage.values["mask"]
        yield "missing", "mask", "no mask", {"mask": np.zeros_like(mask)}, 0
        yield "sign", "mask", "inverted", {"mask": 1 - mask}, 0
    yield from _elsewhere(problem)


def _elsewhere(problem: Problem) -> Iterator[Read]:
    """The constants of another site, all of them or one."""
    values = problem.stage.values
    for name, node in problem.similar.items():
        other = parameters(node)
        if not other or {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in values.items()}:
            continue
        yield "other_constants", "constants", f"all those of {name}", other, 0
        if len(other) > 1:
            for key, v in other.items():
                if not np.array_equal(v, values[key]):
                    yield "other_constants", key, f"that of {name}", {key: v}, 1


def _exchanged(values: Mapping[str, Array]) -> Iterator[Read]:
    """Two constants of one shape, one for the other."""
    keys = list(values)
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            if values[a].shape == values[b].shape and not np.array_equal(values[a], values[b]):
                yield "exchanged", f"{a} and {b}", "exchanged", {a: values[b], b: values[a]}, 0
    if not {"m", "residual_m"} <= set(values):
        return
    first = {"m": values["m"], "e": values["e"]}
    second = {"m": values["residual_m"], "e": values["residual_e"]}
    if any(not np.array_equal(first[key], second[key]) for key in first):
        of_residual = {f"residual_{key}": v for key, v in first.items()}
        text = "exchanged: the residual has the other's scale"
        yield "exchanged", "m, e and residual_m, residual_e", text, {**second, **of_residual}, 0
        yield "exchanged", "residual_m, residual_e", "m and e for both terms", of_residual, 1
        yield "exchanged", "m, e", "residual_m and residual_e for both terms", second, 1


def _in_place(values: Mapping[str, Array]) -> Iterator[Read]:
    """All constants per channel together, from another channel."""
    per_channel = {k: v for k, v in values.items() if v.ndim >= 1 and v.shape[0] > 1 and k != "residual"}
    if len(per_channel) < 2:
        return
    for what, index in _channels(max(v.shape[0] for v in per_channel.values())):
        given = {k: v[index] for k, v in per_channel.items() if v.shape[0] == len(index)}
        yield "neighbour", ", ".join(given), what, given, 0


def _channels(n: int) -> Iterator[tuple[str, Array]]:
    at = np.arange(n)
    yield "of channel c + 1", np.roll(at, -1)
    yield "of channel c - 1", np.roll(at, 1)
    yield "of channel c + 1, the last one its own", np.minimum(at + 1, n - 1)
    yield "of channel c - 1, the first one its own", np.maximum(at - 1, 0)
    yield "of the first channel for all", at * 0
    yield "of the last channel for all", at * 0 + n - 1
    yield "of the channels in reverse", at[::-1]
    for k in (2, 4, 8):
        if n > k:
            yield f"of channel c - c mod {k}: one for {k} channels", at - at % k
            yield f"of channel c xor {k - 1}", np.where((at ^ (k - 1)) < n, at ^ (k - 1), at)


def _one(key: str, v: Array) -> Iterator[tuple[str, str, Array, int]]:
    if v.ndim == 0:
        for by in (1, -1, 2, -2, 3, -3, 4, -4, 7, -7, 8, -8):
            yield "option", f"{int(v) + by} instead of {int(v)}", v + by, abs(by) // 2
        if abs(int(v)) > 64:
            yield "option", f"{int(v) // 2} instead of {int(v)}", v // 2, 1
            yield "option", f"{int(v) * 2} instead of {int(v)}", v * 2, 1
        return
    term = {"bias": "the bias", "residual": "the zero point", "shift": "the shift"}.get(key, key)
    if key == "residual" and np.unique(v).size > 1:
        term = "the residual"
    named = key in ("bias", "residual")
    yield "missing", f"without {term}" if named else "0", v * 0, 0 if named else 3
    yield "doubled", "counted twice", v * 2, 0
    yield "sign", "negated" if key != "residual" else "subtracted", -v, 0
    yield "shift", "half as large", v >> 1, 2
    if int(v.min()) < 0:
        yield "sign", "its magnitude", abs(v), 1
        for bits in dict.fromkeys((magnitude(v) + 1, 8, 16, 32)):
            if magnitude(v) < bits <= 62:
                yield "unsigned", f"taken as u{bits}", v & ((1 << bits) - 1), 0
    if int(v.max()) > 1:
        bits = int(v.max()).bit_length()
        if bits <= 60:
            yield "unsigned", f"taken as s{bits}", arith.wrapped(v, bits), 1
    for less in (1, 2, 3, 4):
        bits = magnitude(v) + 1 - less
        if bits > 1:
            yield "width", f"wraps at s{bits}", arith.wrapped(v, bits), less
            yield "width", f"saturates at s{bits}", arith.saturated(v, bits), less
    for k in (1, 2, 3, 4, 8):
        if key not in ("e", "residual_e", "m", "residual_m") and k < magnitude(v):
            for mode in ("floor", "half_up", "toward_zero", "half_even"):
                yield ("multiplier_bits", f"{k} bit{'s' if k > 1 else ''} less, {mode}",
                       arith.shifted(v, k, mode) << k, k // 2 + (mode != "floor"))  # fmt: skip
    if key.endswith("e"):
        for by in (1, -1, 2, -2):
            yield "shift", f"{by:+d}", v + by, abs(by) - 1
    for bits in (8, 16, 24, 32):
        if magnitude(v) >= bits:
            yield "width", f"its lower {bits} bits only", arith.wrapped(v, bits), 4
            yield "width", f"its lower {bits} bits only, without a sign", arith.wrapped(v, bits, False), 5
    if v.shape[0] > 1 and key != "residual":
        for what, index in _channels(v.shape[0]):
            yield "neighbour", what, v[index], 0
        for word in (2, 4, 8, 16):
            if v.shape[0] >= word:
                index = in_words(v.shape[0], np.arange(word)[::-1])
                yield "lanes", f"words of {word} in reverse order", v[index], 1
    if v.ndim == 2 and key == "weight":
        yield from _weights(v)


def _weights(v: Array) -> Iterator[tuple[str, str, Array, int]]:
    rows, columns = v.shape
    yield "axes", "read as if transposed in memory", v.reshape(columns, rows).T, 0
    if rows == columns:
        yield "axes", "transposed", v.T, 0
    yield "axes", "its inputs in reverse", v[:, ::-1], 1
    for what, by in (("late", 1), ("early", -1)):
        yield "late", f"one input channel {what}", np.roll(v, by, axis=1), 0
        yield "late", f"one element {what}", np.roll(v.reshape(-1), by).reshape(v.shape), 0
    for word in (2, 4, 8, 16):
        if columns >= word:
            for k in dict.fromkeys((word - 1, word // 2)):
                index = in_words(columns, np.arange(word) ^ k)
                what = "in reverse order" if k == word - 1 else "with its halves exchanged"
                yield "lanes", f"words of {word} lanes {what}", v[:, index], 1
    yield "clamp", "clamped at -127", np.maximum(v, -127), 2
    for bits in (4, 6, 7):
        yield "width", f"wraps at s{bits}", arith.wrapped(v, bits), 3
        yield "width", f"saturates at s{bits}", arith.saturated(v, bits), 3
    yield "missing", "without the last input channel", np.where(np.arange(columns) == columns - 1, 0, v), 2
    yield "missing", "without the first input channel", np.where(np.arange(columns) == 0, 0, v), 2


def _fewer_bits(key: str, m: Array) -> Iterator[Read]:
    """A multiplier that lost its last bits, cut or rounded; the ratio is nearly the same."""
    if all(v & (v - 1) == 0 for v in np.abs(m).reshape(-1).tolist()):  # a power of two has none to lose
        return
    for k in range(1, min(MOST_CUT, magnitude(m) - 2)):
        for mode in ("floor", "half_even", "half_up", "half_away", "toward_zero"):
            fewer = arith.shifted(m, k, mode) << k
            if not np.array_equal(fewer, m):
                text = f"{k} bit{'s' if k > 1 else ''} less, {mode}"
                yield "multiplier_bits", key, text, {key: fewer}, min(k - 1, 8) // 2 + (mode != "floor")
