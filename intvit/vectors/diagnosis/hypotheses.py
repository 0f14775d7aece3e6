"""Single faults of a site, each with what the dumped tensor would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.ir import LAYOUT_OPS, Array, Node
from intvit.vectors.diagnosis import arith, moves
from intvit.vectors.diagnosis.arith import ROUNDINGS, magnitude
from intvit.vectors.diagnosis.datapath import Fault, Note
from intvit.vectors.diagnosis.kinds import Cause
from intvit.vectors.diagnosis.problem import PRODUCTS, Problem

Predict = Callable[["Array | None"], Array]
MOST_CUT = 27
"""Bits that are taken from a multiplier."""
STANDARD = (8, 16, 24, 32, 48)
MOST_BITS_LESS = 8


@dataclass(frozen=True)
class Hypothesis:
    """`predict(None)` is the dumped tensor (B, *shape) if the cause holds; `predict(rows)` rows (R, C) of it where
    `rows` is true. It may raise ZeroDivisionError, OverflowError or IntvitError: then the cause cannot be."""

    cause: Cause
    predict: Predict
    rows: bool = False


def hypotheses(problem: Problem) -> Iterator[Hypothesis]:
    """Simple ones first, but for their priors, which order what explains."""
    if not problem.tail:
        yield from _outputs(problem)
    yield from _steps(problem)
    yield from _constants(problem)
    yield from _operands(problem)
    yield from _methods(problem)


# ----------------------------------------------------------------------------------------------- the output


def _outputs(problem: Problem) -> Iterator[Hypothesis]:
    site, right, dtype = problem.stage.node.name, problem.right, problem.dumped.dtype

    def found(kind: str, text: str, values: Callable[[], Array], penalty: int = 0) -> Hypothesis:
        return Hypothesis(Cause(kind, site, "output", text, {}, penalty), lambda rows: values())

    for kind, what, move, penalty in _moved(problem):
        yield found(kind, what, lambda move=move: _each(move, right), penalty)
    for kind, what, move, penalty in (*moves.words(dtype), *moves.signs(dtype)):
        yield found(kind, what, lambda move=move: move(right), penalty)
    for k in (1, 2):
        yield found("shift", f"{2**k} times as large, saturated",
                    lambda k=k: arith.saturated(right << k, dtype.bits) if dtype.bits < 62 else right, k)  # fmt: skip
        yield found("shift", f"{2**k} times as large, wrapped",
                    lambda k=k: arith.wrapped(right << k, dtype.bits) if dtype.bits < 62 else right, k)  # fmt: skip
        for mode in ("floor", "half_up", "half_even", "toward_zero"):
            yield found("shift", f"shifted right by {k} more, {mode}",
                        lambda k=k, mode=mode: arith.shifted(right, k, mode), k + 1)  # fmt: skip
        yield found("width", f"its {k} lowest bit{'s' if k > 1 else ''} 0", lambda k=k: (right >> k) << k, k)
    for k in range(1, min(dtype.bits - 1, 9)):
        yield found("clamp", f"saturated at {dtype.bits - k} bits",
                    lambda k=k: arith.saturated(right, dtype.bits - k), k)  # fmt: skip
        yield found("overflow", f"wrapped at {dtype.bits - k} bits",
                    lambda k=k: arith.wrapped(right, dtype.bits - k), k)  # fmt: skip
    yield found("clamp", f"clamped at {1 - (1 << (dtype.bits - 1))}",
                lambda: np.maximum(right, 1 - (1 << (dtype.bits - 1))), 0)  # fmt: skip
    yield found("clamp", "clamped at 0", lambda: np.maximum(right, 0), 1)
    for bit in range(min(dtype.bits, 62)):
        for what, move in (("stuck at 0", lambda v, b=bit: v & ~(1 << b)), ("stuck at 1", lambda v, b=bit: v | (1 << b)),
                           ("inverted", lambda v, b=bit: v ^ (1 << b))):  # fmt: skip
            yield found("stuck_bit", f"bit {bit} {what}", lambda move=move: moves.as_type(move(right), dtype))
    yield from _stale(problem, found)
    yield from _stuck(problem, found)
    yield from _beats(problem, found)
    if (zero := problem.dumped.zero_point) != 0:
        yield found("missing", f"without the zero point {zero}",
                    lambda: arith.saturated(right - zero, dtype.bits))  # fmt: skip
        yield found("doubled", f"the zero point {zero} added twice",
                    lambda: arith.saturated(right + zero, dtype.bits))  # fmt: skip
    yield from _offsets(problem, found)


Found = Callable[..., Hypothesis]


def _moved(problem: Problem) -> Iterator[moves.Named]:
    shape = problem.right.shape[1:]
    yield from moves.lanes(shape)
    yield from moves.axes(shape)
    yield from moves.late(shape)


def _each(move: moves.Move, values: Array) -> Array:
    return np.stack([move(v) for v in values])


def _stale(problem: Problem, found: Found) -> Iterator[Hypothesis]:
    images = problem.images
    shape = problem.right.shape
    for image, values in problem.expected.items():
        if images != (image,):
            yield found("stale", f"that of image {image}, whatever the image",
                        lambda values=values: np.broadcast_to(values, shape))  # fmt: skip
    for by in (-1, 1):
        if len(images) > 1 and all(image + by in problem.expected for image in images[1:]):
            known = [problem.expected.get(image + by, problem.expected[image]) for image in images]
            yield found("stale", "that of the image before" if by < 0 else "that of the image behind",
                        lambda known=known: np.stack(known))  # fmt: skip
    for name, values in problem.neighbours.items():
        if values.shape == shape:
            what = "the operator is left out: it is its input" if name in problem.stage.node.inputs else (
                f"it is the tensor {name}")  # fmt: skip
            yield found("bypass", what, lambda values=values: values, 0 if name in problem.stage.node.inputs else 2)
            if name in problem.stage.node.inputs and problem.dumped.dtype.bits < 62:
                bits = problem.dumped.dtype.bits
                for how in ("saturate", "wrap"):
                    yield found("bypass", f"the operator is left out: it is its input, {how}d to {bits} bits"
                                .replace("saturated", "saturated").replace("wrapd", "wrapped"),
                                lambda values=values, how=how, bits=bits: arith.narrowed(values, bits, how), 1)  # fmt: skip


def _stuck(problem: Problem, found: Found) -> Iterator[Hypothesis]:
    """One word everywhere; the first row of a tensor again and again."""
    seen = problem.got[problem.valid]
    if seen.size and (seen == seen[0]).all():
        yield found("constant", f"stuck at {int(seen[0])}", lambda: np.full_like(problem.right, seen[0]))
    if problem.right.ndim > 2:
        yield found("constant", "its first row again and again",
                    lambda: np.broadcast_to(problem.right[..., :1, :], problem.right.shape), 2)  # fmt: skip
        yield found("constant", "its first column again and again",
                    lambda: np.broadcast_to(problem.right[..., :1], problem.right.shape), 2)  # fmt: skip


def _beats(problem: Problem, found: Found) -> Iterator[Hypothesis]:
    """A beat given twice or left out: from the first difference on, everything is so many elements late or early."""
    right, got = problem.right.reshape(len(problem.right), -1), problem.got.reshape(len(problem.got), -1)
    differ = problem.different.reshape(len(right), -1)
    n = right.shape[1]
    row = problem.right.shape[-1]
    for beat in dict.fromkeys(k for k in (1, 2, 4, 8, 16, 32, row) if k < n):
        for what, by in (("given twice", beat), ("left out", -beat)):

            def values(by: int = by, beat: int = beat) -> Array:
                made = right.copy()
                for i in np.flatnonzero(differ.any(axis=1)):
                    p = int(differ[i].argmax())
                    if by > 0:
                        p = max(p, beat)
                        made[i, p:] = right[i, p - beat : n - beat]
                    else:
                        made[i, p : n - beat] = right[i, p + beat :]
                        made[i, max(p, n - beat) :] = _tail(got[i], right[i], beat)[max(p, n - beat) - (n - beat) :]
                return made.reshape(problem.right.shape)

            at = " ".join(str(int(d.argmax())) for d in differ if d.any())
            of = "an element" if beat == 1 else f"a beat of {beat} elements"
            yield found("beat", f"{of} {what} before element {at.split()[0] if at else 0}", values)


def _tail(got: Array, right: Array, beat: int) -> Array:
    """What may stand where a left out beat leaves a gap at the end: zeros, what stood there, the last word, the
    first ones; what was got if it is one of these."""
    last = got[-beat:]
    for known in (np.zeros(beat, np.int64), right[-beat:], np.full(beat, right[-1]), right[:beat]):
        if np.array_equal(last, known):
            return last
    return np.zeros(beat, np.int64)


def _offsets(problem: Problem, found: Found) -> Iterator[Hypothesis]:
    """A constant, which the differences themselves tell, added before the clamp of the type."""
    at = problem.different
    delta = problem.got[at] - problem.right[at]
    values, counts = np.unique(delta, return_counts=True)
    bits = problem.dumped.dtype.bits
    if len(values) and len(values) < 200 and bits < 62:
        d = int(values[counts.argmax()])
        for how in ("saturated", "wrapped"):
            narrow = arith.saturated if how == "saturated" else arith.wrapped
            yield found("offset", f"{d:+d} on every element, {how}",
                        lambda d=d, narrow=narrow: narrow(problem.right + d, bits), how == "wrapped")  # fmt: skip


# ------------------------------------------------------------------------------------------------ the steps


def noted(problem: Problem) -> dict[str, Note]:
    """The steps of the site's model, and the ranges that they had by right."""
    notes: dict[str, Note] = {}
    stage = problem.stage
    if stage.modelled:
        stage.run(problem.operands, lead=problem.own[0].shape, notes=notes)
    return notes


def _steps(problem: Problem) -> Iterator[Hypothesis]:
    site = problem.stage.node.name
    for name, note in noted(problem).items():
        for kind, text, fault, penalty in _faults(problem, name, note):
            yield Hypothesis(Cause(kind, site, name, text, {"fault": fault.kind, "value": fault.value}, penalty),
                             lambda rows, fault=fault: problem.predict(rows, fault=fault), True)  # fmt: skip


def _faults(problem: Problem, name: str, note: Note) -> Iterator[tuple[str, str, Fault, int]]:
    match note.kind:
        case "word":
            yield from _words(problem, name, note)
        case "shift" | "divide":
            for mode in (*ROUNDINGS, "double half_up", "double half_away"):
                if mode != note.usual and not (note.kind == "divide" and mode.startswith("double")):
                    said = mode.replace("double ", "two roundings: half_up to 31 bits fewer, then ")
                    yield "rounding", f"{said} instead of {note.usual}", Fault("rounding", name, mode), _odd(mode)
            if note.kind == "shift":
                for by in (1, -1, 2, -2):
                    what = f"by {abs(by)} {'more' if by > 0 else 'less'}"
                    yield "shift", f"shifts {what}", Fault("shift", name, by), abs(by) - 1
        case "clamp":
            overflow, bits = note.usual
            other = "wrap" if overflow == "saturate" else "saturate"
            yield "overflow", f"{other} for {overflow} at {bits} bits", Fault("clamp", name, (other, 0)), 0
            yield "clamp", f"at {1 - (1 << (bits - 1))} instead of {-(1 << (bits - 1))}", Fault("clamp", name, "symmetric"), 0
            yield "clamp", "at 0", Fault("clamp", name, "unsigned"), 1
            for less in (1, 2, 3, 4):
                if bits - less > 1:
                    for how, kind in (("saturate", "clamp"), ("wrap", "overflow")):
                        yield kind, f"{how}s at {bits - less} bits", Fault("clamp", name, (how, -less)), less
            for more in (1, 2, 4, 8, 16, 24):  # a word between that is wider than the output, and wraps
                yield "overflow", f"wraps at {bits + more} bits before it", Fault("clamp", name, ("wrap", more)), 3
        case "limit":
            yield "clamp", "without the clamp", Fault("unlimited", name), 1
        case "count":
            for value in range(0 if name != "steps" else 1, max(note.usual + 8, 9)):
                if value != note.usual:
                    usual = f"{value} instead of {note.usual}" if note.usual else f"the loop ended after {value}"
                    yield "steps", usual, Fault("count", name, value), abs(value - note.usual) // 4
        case "choice":
            usual, *others = note.usual
            kind = "max" if name == "row maximum" else "option"
            for other in others:
                yield kind, f"{other} instead of {usual}", Fault("choice", name, other), 0


def _odd(mode: str) -> int:
    return {"half_down": 2, "ceiling": 2}.get(mode, 1 if mode.startswith("double") else 0)


def _words(problem: Problem, name: str, note: Note) -> Iterator[tuple[str, str, Fault, int]]:
    """A register that is narrower than what it has to hold, in either policy; terms that are missing or double."""
    low, high = note.low, note.high
    unsigned = max(high.bit_length(), 1)
    signed = max(high.bit_length(), (~low).bit_length() if low < 0 else 0) + 1
    output = name in ("y", "accumulator") and not problem.tail
    for is_signed, needs in ((True, signed), (False, unsigned)):
        if not is_signed and low < 0:
            continue
        widths = [needs - less for less in range(1, MOST_BITS_LESS + 1)] + [b for b in STANDARD if b < needs - MOST_BITS_LESS]
        for bits in widths:
            if bits < (2 if is_signed else 1):
                continue
            for how, verb in (("wrap", "wraps"), ("saturate", "saturates")):
                word = f"{verb} at {'s' if is_signed else 'u'}{bits}, and needs {'s' if is_signed else 'u'}{needs}"
                penalty = min(needs - bits, 9) // 2 + (not is_signed)
                yield "width", word, Fault(how, name, (bits, is_signed)), penalty
    if name == "accumulator" and problem.stage.node.op in ("linear", "matmul"):
        for bits in [*range(signed - 1, max(signed - 5, 2), -1), *(b for b in STANDARD if b < signed - 5)]:
            yield "width", f"saturates at s{bits} after every addition", Fault("saturate each", "sum", bits), 1
    if low < 0 and not output:
        for bits in dict.fromkeys((signed, *(b for b in (8, 16, 32) if b > signed))):
            yield "unsigned", f"taken as u{bits}", Fault("wrap", name, (bits, False)), 0
    elif high > 1:
        yield "unsigned", f"taken as s{unsigned}", Fault("wrap", name, (unsigned, True)), 0
    if output:
        return
    for k in (1, 2, 3, 4):
        yield "width", f"its {k} lowest bit{'s' if k > 1 else ''} cut off", Fault("drop", name, k), 1 + k
    yield "missing", "0", Fault("zero", name), 1
    yield "sign", "negated", Fault("negate", name), 0
    if low < 0:
        yield "sign", "its magnitude", Fault("absolute", name), 1
    yield "doubled", "twice as large", Fault("double", name), 1
    yield "shift", "half as large", Fault("half", name), 2
    for by in (1, -1):
        yield "offset", f"{by:+d}", Fault("add", name, by), 1


# ----------------------------------------------------------------------------------------------- constants


def _constants(problem: Problem) -> Iterator[Hypothesis]:
    """Constants that were read wrongly."""
    stage = problem.stage
    site = stage.node.name

    def found(kind: str, key: str, text: str, given: Mapping[str, Array], penalty: int = 0) -> Hypothesis:
        return Hypothesis(Cause(kind, site, key, text, {}, penalty),
                          lambda rows: problem.predict(rows, constants=given), True)  # fmt: skip

    values = {key: v for key, v in stage.values.items() if key != "mask"}
    for key, v in values.items():
        for kind, text, other, penalty in _read_wrongly(stage.node, key, v):
            if not np.array_equal(other, v):
                yield found(kind, key, text, {key: other}, penalty)
    keys = list(values)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            if values[first].shape == values[second].shape and not np.array_equal(values[first], values[second]):
                both = {first: values[second], second: values[first]}
                yield found("exchanged", f"{first} and {second}", "exchanged", both)
    if {"m", "residual_m"} <= set(values):
        both = {"m": values["residual_m"], "e": values["residual_e"], "residual_m": values["m"], "residual_e": values["e"]}
        if not (np.array_equal(both["m"], values["m"]) and np.array_equal(both["e"], values["e"])):
            yield found("exchanged", "m, e and residual_m, residual_e", "exchanged: the residual has the other's scale", both)
            yield found("exchanged", "residual_m, residual_e", "m and e for both terms", {
                "residual_m": values["m"], "residual_e": values["e"]}, 1)  # fmt: skip
            yield found("exchanged", "m, e", "residual_m and residual_e for both terms", {
                "m": values["residual_m"], "e": values["residual_e"]}, 1)  # fmt: skip
    for prefix in ("", "residual_"):
        if f"{prefix}m" in values and f"{prefix}e" in values and stage.node.op in ("requantize", "softmax"):
            yield from _fewer_bits(values, prefix, found)
    yield from _in_place(values, found)
    if "mask" in stage.values:
        mask = stage.values["mask"]
        yield found("missing", "mask", "no mask", {"mask": np.zeros_like(mask)})
        yield found("sign", "mask", "inverted", {"mask": 1 - mask})
    for name, node in problem.similar.items():
        if not {k: v for k, v in node.arrays.items()} and not node.attrs.get("params"):
            continue
        from intvit.vectors.part import parameters

        other = parameters(node)
        if {k: v.shape for k, v in other.items()} == {k: v.shape for k, v in stage.values.items()}:
            yield found("other_constants", "constants", f"all those of {name}", other)
            if len(other) > 1:
                for key, v in other.items():
                    if not np.array_equal(v, stage.values[key]):
                        yield found("other_constants", key, f"that of {name}", {key: v}, 1)


def _in_place(values: Mapping[str, Array], found: Callable[..., Hypothesis]) -> Iterator[Hypothesis]:
    """All constants per channel together, from another channel."""
    per_channel = {k: v for k, v in values.items() if v.ndim >= 1 and v.shape[0] > 1 and k != "residual"}
    if len(per_channel) < 2:
        return
    for what, index in _channels(max(v.shape[0] for v in per_channel.values())):
        given = {k: v[index] for k, v in per_channel.items() if v.shape[0] == len(index)}
        yield found("neighbour", ", ".join(given), what, given)


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


def _read_wrongly(node: Node, key: str, v: Array) -> Iterator[tuple[str, str, Array, int]]:
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
    yield "missing", f"without {term}" if key in ("bias", "residual") else "0", v * 0, 0
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
                index = moves._in_words(v.shape[0], word, lambda i, w=word: w - 1 - i)
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
                index = moves._in_words(columns, word, lambda i, k=k: i ^ k)
                what = "in reverse order" if k == word - 1 else "with its halves exchanged"
                yield "lanes", f"words of {word} lanes {what}", v[:, index], 1
    yield "clamp", "clamped at -127", np.maximum(v, -127), 2
    for bits in (4, 6, 7):
        yield "width", f"wraps at s{bits}", arith.wrapped(v, bits), 3
        yield "width", f"saturates at s{bits}", arith.saturated(v, bits), 3
    yield "missing", "without the last input channel", np.where(np.arange(columns) == columns - 1, 0, v), 2
    yield "missing", "without the first input channel", np.where(np.arange(columns) == 0, 0, v), 2


def _fewer_bits(values: Mapping[str, Array], prefix: str, found: Callable[..., Hypothesis]) -> Iterator[Hypothesis]:
    """A multiplier that lost bits: m cut or rounded, and e with it, which is the same ratio nearly."""
    key = f"{prefix}m"
    m = values[key]
    if m.ndim and key == "residual_m" and (abs(m) & (abs(m) - 1) == 0).all():
        return
    for k in range(1, min(MOST_CUT, magnitude(m) - 2)):
        for mode, penalty in (("floor", 0), ("half_even", 1), ("half_up", 1), ("half_away", 1), ("toward_zero", 1)):
            fewer = f"{k} bit{'s' if k > 1 else ''} less, {mode}"
            cut = arith.shifted(m, k, mode)
            if not np.array_equal(cut << k, m):
                yield found("multiplier_bits", key, fewer, {key: cut << k}, min(k - 1, 8) // 2 + penalty)


# ------------------------------------------------------------------------------------------------ operands


def _operands(problem: Problem) -> Iterator[Hypothesis]:
    """Operands that were read wrongly, moved or of another image."""
    stage, own = problem.stage, problem.own
    site = stage.node.name
    residual = ("residual" in stage.values,)[0]

    def found(kind: str, i: int, text: str, make: Callable[[], list[Array]], penalty: int = 0) -> Hypothesis:
        return Hypothesis(Cause(kind, site, f"input{i}", text, {}, penalty),
                          lambda rows: problem.predict(rows, own=make()), True)  # fmt: skip

    def with_other(i: int, values: Array) -> list[Array]:
        return [values if j == i else v for j, v in enumerate(own)]

    for i, tensor in enumerate(stage.inputs):
        v = own[i].astype(np.int64, copy=False)
        bits = tensor.dtype.bits
        if bits < 62 and int(v.min()) < 0:
            for wide in dict.fromkeys((bits, 8, 16, 32)):
                if wide >= bits:
                    yield found("unsigned", i, f"taken as u{wide}",
                                lambda i=i, v=v, w=wide: with_other(i, v & ((1 << w) - 1)))  # fmt: skip
        for kind, what, move, penalty in moves.signs(tensor.dtype):
            yield found(kind, i, what, lambda i=i, v=v, move=move: with_other(i, move(v)), penalty)
        for kind, what, move, penalty in moves.words(tensor.dtype):
            yield found(kind, i, what, lambda i=i, v=v, move=move: with_other(i, move(v)), penalty + 1)
        needs = magnitude(v) + 1
        for less in (1, 2, 3, 4):
            if needs - less > 1:
                for how in ("wrap", "saturate"):
                    yield found("width", i, f"{how}s at s{needs - less}, and needs s{needs}",
                                lambda i=i, v=v, how=how, b=needs - less: with_other(i, arith.narrowed(v, b, how)), less)  # fmt: skip
            yield found("width", i, f"its {less} lowest bit{'s' if less > 1 else ''} cut off",
                        lambda i=i, v=v, k=less: with_other(i, (v >> k) << k), less + 1)  # fmt: skip
        for by in (1, -1):
            yield found("shift", i, "twice as large" if by > 0 else "half as large",
                        lambda i=i, v=v, by=by: with_other(i, v << 1 if by > 0 else v >> 1), 1)  # fmt: skip
        if len(own) > 1 or residual:
            yield found("missing", i, "left out" if stage.node.op == "requantize" else "0",
                        lambda i=i, v=v: with_other(i, v * 0), 0 if i else 1)  # fmt: skip
            yield found("doubled", i, "counted twice", lambda i=i, v=v: with_other(i, v * 2), 1)
        if tensor.zero_point:
            yield found("missing", i, f"its zero point {tensor.zero_point} not taken away",
                        lambda i=i, v=v, z=tensor.zero_point: with_other(i, v + z))  # fmt: skip
            yield found("doubled", i, f"its zero point {tensor.zero_point} taken away twice",
                        lambda i=i, v=v, z=tensor.zero_point: with_other(i, v - z))  # fmt: skip
        shape = v.shape[1:]
        elementwise = stage.node.op in ("requantize", "gelu", "silu", "quick_gelu") and not problem.tail
        for kind, what, move, penalty in (*moves.lanes(shape), *moves.axes(shape), *moves.late(shape)):
            later = 3 if elementwise and len(own) == 1 else 1
            yield found(kind, i, what, lambda i=i, v=v, move=move: with_other(i, _each(move, v)), penalty + later)
        if v.ndim == 3 and v.shape[1] == v.shape[2] or (v.ndim == 4 and v.shape[2] == v.shape[3]):
            yield found("axes", i, "transposed", lambda i=i, v=v: with_other(i, np.swapaxes(v, -1, -2)))
        if len(v) > 1:
            for by, text in ((1, "of the image before"), (-1, "of the image behind")):
                yield found("stale", i, text, lambda i=i, v=v, by=by: with_other(i, np.roll(v, by, axis=0)), 1)
            for b, image in enumerate(problem.images):
                yield found("stale", i, f"of image {image}, whatever the image",
                            lambda i=i, v=v, b=b: with_other(i, np.broadcast_to(v[b], v.shape)), 1)  # fmt: skip
    if len(own) == 2 and own[0].shape == own[1].shape:
        yield found("exchanged", 0, "and input1 exchanged", lambda: [own[1], own[0]])


# ------------------------------------------------------------------------------------------------- methods


def _methods(problem: Problem) -> Iterator[Hypothesis]:
    """Another method of the operator, with the constants that its own lowering gives at this scale."""
    stage = problem.stage
    node = stage.node
    if "method" not in node.attrs or node.op in LAYOUT_OPS or node.op in PRODUCTS:
        return
    from intvit.graph.operators.methods import evaluator, mask_rows
    from intvit.graph.parameters import node_method
    from intvit.kernels import registry

    usual = node_method(node)
    for method in registry.methods(node.op):
        if method.id == usual.id:
            continue
        for text, params in _parameters(problem, method):

            def values(rows: Array | None, method: object = method, params: object = params) -> Array:
                x = problem.own[0]
                flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.int64)
                made = evaluator(method, params, "kernel")(flat, mask_rows(node, x.shape)).reshape(x.shape)  # type: ignore[arg-type]
                return made

            if not problem.tail:
                what = f"{method.name} instead of {usual.name}{text}"
                yield Hypothesis(Cause("method", node.name, "method", what), values)


def _parameters(problem: Problem, method: object) -> Iterator[tuple[str, object]]:
    """Parameters of another method: from the site's own constants where it has all of them, and by its lowering."""
    import dataclasses
    import inspect

    stage = problem.stage
    mine = {key: (int(v) if v.ndim == 0 else tuple(v.tolist())) for key, v in stage.values.items() if key != "mask"}
    names = [f.name for f in dataclasses.fields(method.params)]  # type: ignore[attr-defined]
    bits = next((mine[key] for key in ("out_bits", "bits") if key in mine), 8)
    guesses = {"out_bits": bits, "bits": bits, "n": None, "shift": 0}
    if all(name in mine or name in guesses for name in names):
        for shift in range(8) if "shift" in names and "shift" not in mine else (0,):
            given = {name: mine.get(name, guesses.get(name)) for name in names}
            if "shift" in names and "shift" not in mine:
                given["shift"] = shift
            try:
                note = f", shift {shift}" if "shift" in names and "shift" not in mine else ""
                yield f", with these constants{note}", method.params(**given)  # type: ignore[attr-defined]
            except (IntvitError, TypeError):
                continue
    least, most = method.widths  # type: ignore[attr-defined]
    bits = min(max(int(bits), least), most)
    known = {"out_bits": bits, "exp_range_max": None, "shift": 0, "factor": None}
    wanted = inspect.signature(method.lower).parameters  # type: ignore[attr-defined]
    facts = {key: value for key, value in known.items() if key in wanted}
    try:
        scale = float(np.asarray(stage.inputs[0].scale))
        params, _ = method.lower(scale, **facts)  # type: ignore[attr-defined]
    except (IntvitError, TypeError, ValueError):
        return
    yield ", with its constants at this scale", params
