"""Where elements may go wrong without any arithmetic: lanes, axes, beats, and words looked at as bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations

import numpy as np

from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array

Change = Callable[[Array], Array]
Move = Change
"""Of one image: (*shape) to (*shape)."""
Named = tuple[str, str, Move, int]
"""(kind, what happens, the move, penalty)."""
WORDS = (2, 4, 8, 16)
MOST_FACTORS = 12


def _flat(index: Array) -> Move:
    return lambda v: v.reshape(-1)[index].reshape(v.shape)


def _last(index: Array) -> Move:
    return lambda v: v[..., index]


def in_words(n: int, order: Array) -> Array:
    """Positions 0..n-1, in every full word the lanes in another order."""
    at, word = np.arange(n), len(order)
    full = n - n % word
    at[:full] = at[:full] - at[:full] % word + order[at[:full] % word]
    return at


def each(move: Move, values: Array) -> Array:
    """A move on every image: (B, *shape) to the same."""
    return np.stack([move(v) for v in values])


def lanes(shape: tuple[int, ...]) -> Iterator[Named]:
    """Lanes of words, over all elements and, where rows do not end at words, over each row."""
    n, row = math.prod(shape), shape[-1] if shape else 1
    for word in WORDS:
        if n < word:
            continue
        places: list[tuple[str, int, Callable[[Array], Move]]] = [("", n, _flat)]
        if row % word and row > word:
            places.append((" of each row", row, _last))
        for where, length, mover in places:
            for k in range(1, word):
                if k >= word // 2:  # smaller ones are those of smaller words
                    named = {word - 1: "in reverse order", word // 2: "with its halves exchanged"}
                    what = named.get(k, f"with lane i as lane i xor {k}") if word > 2 else "with its lanes exchanged"
                    index = in_words(length, np.arange(word) ^ k)
                    yield "lanes", f"words of {word} lanes{where} {what}", mover(index), 0
                if word > 2:
                    index = in_words(length, (np.arange(word) + k) % word)
                    yield "lanes", f"words of {word} lanes{where} rotated by {k}", mover(index), 1


def _divisors(n: int) -> list[int]:
    found = [d for d in range(2, n) if n % d == 0]
    return found if len(found) <= MOST_FACTORS else found[: MOST_FACTORS // 2] + found[-(MOST_FACTORS // 2) :]


def axes(shape: tuple[int, ...]) -> Iterator[Named]:
    """Axes in another order in memory, an axis cut in two among them; axes in reverse."""
    plain = tuple(n for n in shape if n > 1)
    seen: set[bytes] = set()

    def order(cut: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
        where = np.arange(math.prod(cut)).reshape(cut)
        for perm in permutations(range(len(cut))):
            index = where.transpose(perm).reshape(-1)
            key = index.tobytes()
            if perm != tuple(sorted(perm)) and key not in seen:
                seen.add(key)
                yield perm, index

    if 2 <= len(plain) <= 4:
        for perm, index in order(plain):
            what = "transposed" if len(plain) == 2 else f"with its axes in the order {list(perm)}"
            yield "axes", f"{list(plain)} {what} in memory", _flat(index), 0
    for axis, n in enumerate(plain):
        for d in _divisors(n):
            cut = (*plain[:axis], n // d, d, *plain[axis + 1 :])
            if len(cut) <= 3:
                for perm, index in order(cut):
                    yield "axes", f"{list(cut)} with its axes in the order {list(perm)} in memory", _flat(index), 2
    for axis, n in enumerate(shape):
        if n > 1:
            yield "axes", f"axis {axis} in reverse", partial(np.flip, axis=axis), 1
    if len(plain) > 1:
        yield "axes", "all elements in reverse", lambda v: v.reshape(-1)[::-1].reshape(v.shape), 1


def _shifted(v: Array, by: int, fill: str) -> Array:
    """The last axis `by` places later (earlier if negative), in front what `fill` says."""
    found = np.roll(v, by, axis=-1)
    gap = slice(0, by) if by > 0 else slice(by, None)
    if fill == "zero":
        found[..., gap] = 0
    elif fill == "held":
        found[..., gap] = v[..., :1] if by > 0 else v[..., -1:]
    return found


def _shifted_whole(v: Array, by: int, fill: str) -> Array:
    return _shifted(v.reshape(-1), by, fill).reshape(v.shape)


def late(shape: tuple[int, ...]) -> Iterator[Named]:
    """Elements a few places, a row or a plane late or early."""
    n, row = math.prod(shape), shape[-1] if shape else 1
    steps = dict.fromkeys(k for k in (1, 2, 4, 8, 16, 32, row, 2 * row, math.prod(shape[-2:])) if k < n)
    for k in steps:
        for by in (k, -k):
            what = f"{k} element{'s' if k > 1 else ''} {'late' if by > 0 else 'early'}"
            for fill, rest in (("wrapped", "the rest around the end"), ("zero", "zeros before"), ("held", "held")):
                yield ("late", f"all elements {what}, {rest}",
                       partial(_shifted_whole, by=by, fill=fill), 0)  # fmt: skip
                if k < row < n:
                    yield ("late", f"each row {what}, {rest}",
                           partial(_shifted, by=by, fill=fill), 0)  # fmt: skip


def cut(v: Array, k: int) -> Array:
    """The k lowest bits 0."""
    return (v >> k) << k


def as_type(v: Array, dtype: IntType, bits: int | None = None) -> Array:
    """The low bits of words as values of a type."""
    bits = dtype.bits if bits is None else bits
    v = v & ((1 << bits) - 1)
    return (v ^ (1 << (bits - 1))) - (1 << (bits - 1)) if dtype.signed else v


def _regrouped(v: Array, container: int, part: int, dtype: IntType, order: Callable[[int, int], int]) -> Array:
    """Words of `container` bits with their parts of `part` bits in another order, cut to the type."""
    parts = container // part
    words = np.zeros_like(v)
    for i in range(parts):
        words |= ((v >> (part * i)) & ((1 << part) - 1)) << (part * order(i, parts))
    return as_type(words, dtype)


def words(dtype: IntType) -> Iterator[Named]:
    """Elements whose bits went elsewhere; of types up to 62 bits."""
    bits = dtype.bits
    if bits > 62:
        return
    container = next(c for c in (8, 16, 32, 64) if c >= bits)

    def reverse(i: int, n: int) -> int:
        return n - 1 - i

    if bits > 1:
        yield "bits_reversed", f"its {bits} bits reversed", lambda v: _regrouped(v, bits, 1, dtype, reverse), 0
    if container > 8:
        yield (
            "bytes",
            f"the bytes of {container} bits reversed",
            lambda v: _regrouped(v, container, 8, dtype, reverse),
            0,
        )
        if container > 16:
            yield ("bytes", "the bytes of half words exchanged",
                   lambda v: _regrouped(v, container, 8, dtype, lambda i, n: i ^ 1), 1)  # fmt: skip
            yield "bytes", "half words exchanged", lambda v: _regrouped(v, container, 16, dtype, reverse), 1
    yield ("bytes", "nibbles of bytes exchanged",
           lambda v: _regrouped(v, container, 4, dtype, lambda i, n: i ^ 1), 2)  # fmt: skip


def signs(dtype: IntType) -> Iterator[Named]:
    """Signs of elements, in their type."""
    if dtype.bits > 62:
        return
    top = 1 << (dtype.bits - 1)
    yield "sign", "negated", lambda v: -v, 0
    yield "sign", "negated, saturated", lambda v: np.minimum(-v, top - 1), 0
    yield "sign", "inverted bit by bit, which is -x - 1", lambda v: ~v, 1
    yield "sign", "its magnitude", lambda v: abs(v), 1
    yield ("sign", "sign and magnitude instead of two's complement",
           lambda v: as_type(np.where(v < 0, top - v, v), dtype), 1)  # fmt: skip
    yield "unsigned", "its sign bit inverted (offset binary)", lambda v: as_type(v ^ top, dtype), 1
