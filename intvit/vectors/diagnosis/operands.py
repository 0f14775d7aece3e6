"""What may have become of an operand on its way into a site."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from intvit.graph.ir import Array, Tensor
from intvit.vectors.diagnosis import arith, moves
from intvit.vectors.diagnosis.arith import magnitude
from intvit.vectors.diagnosis.moves import Change, each
from intvit.vectors.diagnosis.problem import Problem


def misread(problem: Problem, i: int, tensor: Tensor, v: Array) -> Iterator[tuple[str, str, Change, int]]:
    """What may have become of one operand (B, *shape)."""
    stage, bits = problem.stage, tensor.dtype.bits
    if bits < 62 and int(v.min()) < 0:
        for wide in dict.fromkeys((bits, 8, 16, 32)):
            if wide >= bits:
                yield "unsigned", f"taken as u{wide}", partial(arith.wrapped, bits=wide, signed=False), 0
    yield from moves.signs(tensor.dtype)
    for kind, what, move, penalty in moves.words(tensor.dtype):
        yield kind, what, move, penalty + 1
    needs = magnitude(v) + 1
    for less in (1, 2, 3, 4):
        if needs - less > 1:
            for how in ("wrap", "saturate"):
                text = f"{how}s at s{needs - less}, and needs s{needs}"
                yield "width", text, partial(arith.narrowed, bits=needs - less, overflow=how), less
        yield "width", f"its {less} lowest bit{'s' if less > 1 else ''} cut off", partial(moves.cut, k=less), less + 1
    yield "shift", "twice as large", lambda a: a << 1, 1
    yield "shift", "half as large", lambda a: a >> 1, 1
    if len(problem.own) > 1 or "residual" in stage.values:
        yield "missing", "left out" if stage.node.op == "requantize" else "0", lambda a: a * 0, 0 if i else 1
        yield "doubled", "counted twice", lambda a: a * 2, 1
    if zero := tensor.zero_point:
        yield "missing", f"its zero point {zero} not taken away", lambda a: a + zero, 0
        yield "doubled", f"its zero point {zero} taken away twice", lambda a: a - zero, 0
    yield from _elsewhere(problem, v)


def _elsewhere(problem: Problem, v: Array) -> Iterator[tuple[str, str, Change, int]]:
    """An operand whose elements lie elsewhere, or are those of another image."""
    shape, op = v.shape[1:], problem.stage.node.op
    # where every element stands for itself, the output may as well have been moved: that is simpler
    alone = op in ("requantize", "gelu", "silu", "quick_gelu") and not problem.tail and len(problem.own) == 1
    for kind, what, move, penalty in (*moves.lanes(shape), *moves.axes(shape), *moves.late(shape)):
        yield kind, what, partial(each, move), penalty + (3 if alone else 1)
    if len(shape) >= 2 and shape[-1] == shape[-2]:
        yield "axes", "its last two axes exchanged", lambda a: np.swapaxes(a, -1, -2), 0
    if len(v) > 1:
        yield "stale", "of the image before", lambda a: np.roll(a, 1, axis=0), 1
        yield "stale", "of the image behind", lambda a: np.roll(a, -1, axis=0), 1
        for b, image in enumerate(problem.images):
            yield "stale", f"of image {image}, whatever the image", partial(_only, b=b), 1


def _only(v: Array, b: int) -> Array:
    return np.broadcast_to(v[b], v.shape)
