"""What may have become of the output of a site: moved, stuck, cut, stale, of another tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array
from intvit.vectors.diagnosis import arith, moves
from intvit.vectors.diagnosis.moves import Change, each
from intvit.vectors.diagnosis.problem import Problem

Made = tuple[str, str, Change, int]
"""(kind, what happens, right output (B, *shape) to what was given, penalty)."""
WIDEST = 62
"""Bits of an output whose words are looked at as bits."""
BEATS = (1, 2, 4, 8, 16, 32)
MOST_DELTAS = 200
"""Different differences, beyond which no constant is looked for among them."""


def changes(problem: Problem) -> Iterator[Made]:
    """Everything that may happen to the output, whatever the operator."""
    shape, dtype = problem.right.shape[1:], problem.dumped.dtype
    for kind, what, move, penalty in (*moves.lanes(shape), *moves.axes(shape), *moves.late(shape)):
        yield kind, what, partial(each, move), penalty
    yield from moves.words(dtype)
    yield from moves.signs(dtype)
    if dtype.bits <= WIDEST:
        yield from _narrow(problem, dtype.bits)
        yield from _bits(problem)
        yield from _offsets(problem, dtype.bits)
    yield from _stale(problem)
    yield from _others(problem)
    yield from _stuck(problem)
    yield from _beats(problem)


def _narrow(problem: Problem, bits: int) -> Iterator[Made]:
    """Shifts, clamps and wraps behind the output."""
    for k in (1, 2):
        yield "shift", f"{2**k} times as large, saturated", partial(_scaled, k=k, bits=bits, how="saturate"), k
        yield "shift", f"{2**k} times as large, wrapped", partial(_scaled, k=k, bits=bits, how="wrap"), k
        for mode in ("floor", "half_up", "half_even", "toward_zero"):
            yield "shift", f"shifted right by {k} more, {mode}", partial(arith.shifted, e=k, mode=mode), k + 1
        yield "width", f"its {k} lowest bit{'s' if k > 1 else ''} 0", partial(moves.cut, k=k), k
    for k in range(1, min(bits - 1, 9)):
        yield "clamp", f"saturated at {bits - k} bits", partial(arith.saturated, bits=bits - k), k
        yield "overflow", f"wrapped at {bits - k} bits", partial(arith.wrapped, bits=bits - k), k
    least = 1 - (1 << (bits - 1))
    yield "clamp", f"clamped at {least}", partial(np.maximum, least), 0
    yield "clamp", "clamped at 0", partial(np.maximum, 0), 1
    known, right = problem.got[problem.valid], problem.right
    if known.size:
        low, high = int(known.min()), int(known.max())
        if low > int(right.min()):
            yield "clamp", f"clamped at {low} from below", partial(np.maximum, low), 4
        if high < int(right.max()):
            yield "clamp", f"clamped at {high} from above", partial(np.minimum, high), 4
            yield "clamp", f"clamped at {low} and {high}", lambda v: np.clip(v, low, high), 4
    if zero := problem.dumped.zero_point:
        yield "missing", f"without the zero point {zero}", lambda v: arith.saturated(v - zero, bits), 0
        yield "doubled", f"the zero point {zero} added twice", lambda v: arith.saturated(v + zero, bits), 0


def _bits(problem: Problem) -> Iterator[Made]:
    dtype = problem.dumped.dtype
    for bit in range(dtype.bits):
        b = 1 << bit
        for what, keep, flip in (("stuck at 0", ~b, 0), ("stuck at 1", ~b, b), ("inverted", -1, b)):
            yield "stuck_bit", f"bit {bit} {what}", partial(_masked, keep=keep, flip=flip, dtype=dtype), 0


def _masked(v: Array, keep: int, flip: int, dtype: IntType) -> Array:
    return moves.as_type((v & keep) ^ flip, dtype)


def _scaled(v: Array, k: int, bits: int, how: str) -> Array:
    return arith.narrowed(v << k, bits, how)


def _given(values: Array, right: Array) -> Array:
    """Other values, whatever is right."""
    return np.broadcast_to(values, right.shape)


def _stale(problem: Problem) -> Iterator[Made]:
    images = problem.images
    for image, values in problem.expected.items():
        if images != (image,):
            yield "stale", f"that of image {image}, whatever the image", partial(_given, values), 0
    for by, text in ((-1, "that of the image before"), (1, "that of the image behind")):
        if len(images) > 1 and all(image + by in problem.expected for image in images[1:]):
            known = [problem.expected.get(image + by, problem.expected[image]) for image in images]
            yield "stale", text, partial(_given, np.stack(known)), 0


def _others(problem: Problem) -> Iterator[Made]:
    """Another tensor in its place; its own input, where the operator is left out."""
    bits = problem.dumped.dtype.bits
    for name, values in problem.neighbours.items():
        if values.shape != problem.right.shape:
            continue
        if name not in problem.stage.node.inputs:
            yield "bypass", f"it is the tensor {name}", partial(_given, values), 2
            continue
        text = "the operator is left out: it is its input"
        yield "bypass", text, partial(_given, values), 0
        yield "bypass", f"{text}, saturated to {bits} bits", partial(_given, arith.saturated(values, bits)), 1
        yield "bypass", f"{text}, wrapped to {bits} bits", partial(_given, arith.wrapped(values, bits)), 1


def _stuck(problem: Problem) -> Iterator[Made]:
    """One word everywhere; the first row or column of a tensor again and again."""
    seen = problem.got[problem.valid]
    if seen.size and (seen == seen[0]).all():
        yield "constant", f"stuck at {int(seen[0])}", partial(_given, seen[:1].reshape(())), 0
    if problem.right.ndim > 2:
        yield "constant", "its first row again and again", lambda v: np.broadcast_to(v[..., :1, :], v.shape), 2
        yield "constant", "its first column again and again", lambda v: np.broadcast_to(v[..., :1], v.shape), 2


def _beats(problem: Problem) -> Iterator[Made]:
    """A beat given twice or left out: from the first difference on, everything is so many elements late or early."""
    n, row = problem.right[0].size, problem.right.shape[-1]
    first = int(problem.different.reshape(len(problem.right), -1).any(axis=0).argmax())
    for beat in dict.fromkeys(k for k in (*BEATS, row) if k < n):
        of = "an element" if beat == 1 else f"a beat of {beat} elements"
        yield "beat", f"{of} given twice before element {first}", partial(_repeated, problem, beat), 0
        yield "beat", f"{of} left out before element {first}", partial(_left_out, problem, beat), 0


def _repeated(problem: Problem, beat: int, right: Array) -> Array:
    made = right.reshape(len(right), -1).copy()
    for image, differs in zip(made, problem.different.reshape(made.shape), strict=True):
        if differs.any():
            at = max(int(differs.argmax()), beat)
            image[at:] = image[at - beat : len(image) - beat].copy()
    return made.reshape(right.shape)


def _left_out(problem: Problem, beat: int, right: Array) -> Array:
    made = right.reshape(len(right), -1).copy()
    got = problem.got.reshape(made.shape)
    for image, differs, device in zip(made, problem.different.reshape(made.shape), got, strict=True):
        if differs.any():
            at, end = int(differs.argmax()), len(image) - beat
            tail = _tail(device, image, beat)
            image[at:end] = image[at + beat :].copy()
            image[max(at, end) :] = tail[max(at - end, 0) :]
    return made.reshape(right.shape)


def _tail(got: Array, right: Array, beat: int) -> Array:
    """What may stand where a beat that is left out leaves a gap at the end: zeros, what stood there, the last word,
    the first beat; what was got if it is one of these."""
    last = got[-beat:]
    for known in (np.zeros(beat, np.int64), right[-beat:], np.full(beat, right[-1]), right[:beat]):
        if np.array_equal(last, known):
            return last
    return np.zeros(beat, np.int64)


def _offsets(problem: Problem, bits: int) -> Iterator[Made]:
    """A constant, which the differences themselves tell, added before the clamp of the type."""
    at = problem.different
    values, counts = np.unique(problem.got[at] - problem.right[at], return_counts=True)
    if 0 < len(values) < MOST_DELTAS:
        d = int(values[counts.argmax()])
        yield "offset", f"{d:+d} on every element, saturated", lambda v: arith.saturated(v + d, bits), 0
        yield "offset", f"{d:+d} on every element, wrapped", lambda v: arith.wrapped(v + d, bits), 1
