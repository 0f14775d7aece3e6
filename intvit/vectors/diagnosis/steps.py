"""Faults of single steps: what each register, shift, division and clamp of a datapath may do instead."""

from __future__ import annotations

from collections.abc import Iterator

from intvit.vectors.diagnosis.arith import ROUNDINGS
from intvit.vectors.diagnosis.datapath import BOTH, Fault, Note
from intvit.vectors.diagnosis.problem import Problem

STANDARD = (8, 16, 24, 32, 48)
MOST_BITS_LESS = 8
TOGETHER = (("rounded", "residual_rounded"), ("delta >> 1", "delta >> 4"))
"""Steps that one circuit may do."""


def noted(problem: Problem) -> dict[str, Note]:
    """The steps of the site's model, and the ranges that they had by right."""
    notes: dict[str, Note] = {}
    stage = problem.stage
    if stage.modelled:
        stage.run(problem.operands, lead=problem.own[0].shape, notes=notes)
    for pair in TOGETHER:
        if set(pair) <= set(notes):
            notes[BOTH.join(pair)] = notes[pair[0]]
    return notes


def faults(problem: Problem, name: str, note: Note) -> Iterator[tuple[str, str, Fault, int]]:
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
            yield (
                "clamp",
                f"at {1 - (1 << (bits - 1))} instead of {-(1 << (bits - 1))}",
                Fault("clamp", name, "symmetric"),
                0,
            )
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
        widths = [needs - less for less in range(1, MOST_BITS_LESS + 1)] + [
            b for b in STANDARD if b < needs - MOST_BITS_LESS
        ]
        for bits in widths:
            if bits < (2 if is_signed else 1):
                continue
            for how, verb in (("wrap", "wraps"), ("saturate", "saturates")):
                word = f"{verb} at {'s' if is_signed else 'u'}{bits}, and needs {'s' if is_signed else 'u'}{needs}"
                penalty = min(needs - bits, 9) // 2 + (not is_signed)
                yield "width", word, Fault(how, name, (bits, is_signed)), penalty
    if name == "accumulator" and problem.stage.node.op in ("linear", "matmul"):
        for bits in [*range(signed + 1, max(signed - 5, 2), -1), *(b for b in STANDARD if b < signed - 5)]:
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
    yield "missing", "0", Fault("zero", name), 4
    yield "sign", "negated", Fault("negate", name), 0
    if low < 0:
        yield "sign", "its magnitude", Fault("absolute", name), 1
    yield "doubled", "twice as large", Fault("double", name), 1
    yield "shift", "half as large", Fault("half", name), 2
    for by in (1, -1):
        yield "offset", f"{by:+d}", Fault("add", name, by), 1
