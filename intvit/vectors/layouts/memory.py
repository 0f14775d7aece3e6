"""Arrays into words at addresses, and back; what a dump lacks or does not know is a mask, never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType, storage
from intvit.vectors.layouts.layout import HIGHEST, NUMBERS, Layout

Array = np.ndarray[Any, Any]
Addresses = range | Array
"""int64 (n,), or a range of n where they are equally spaced, which most are."""

MOST_BYTES = 1 << 32
"""Of the words of one tensor, padding included."""
AT_ONCE = 1 << 17
"""Elements that are put into words at once: they and their bits stay in the cache."""


def _nowhere(index: int) -> str:
    return "memory"


@dataclass(frozen=True)
class Bank:
    """Words of one memory: (n, bytes) u8, lowest byte first; `unknown` are the bits that are x or z.

    `place(i)` says where word i was read, for messages. `placed`: the addresses are those of the memory; else they
    count from 0 for the first word of the file.
    """

    addresses: Addresses
    words: Array
    unknown: Array | None = None
    place: Callable[[int], str] = field(default=_nowhere, repr=False, compare=False)
    placed: bool = True


@dataclass(frozen=True)
class Memory:
    """Banks of words of `word_bits` bits. Addresses count words, or bytes for the unit "byte".

    `bytewise`: the words are bytes at byte addresses, which only a layout makes words of. `shape`: of the numbers,
    where a format keeps one. `signed`: the words are numbers, two's complement. `depth`: words of the memory;
    `byte_order`: of a word.
    """

    word_bits: int
    banks: tuple[Bank, ...]
    unit: str = "word"
    bytewise: bool = False
    signed: bool = False
    shape: tuple[int, ...] | None = None
    depth: int | None = None
    byte_order: str = "little"

    @property
    def word_bytes(self) -> int:
        return -(-self.word_bits // 8)

    @property
    def step(self) -> int:
        """Addresses that a word takes."""
        return self.word_bytes if self.unit == "byte" else 1


@dataclass(frozen=True)
class Unpacked:
    """Values of a tensor, and which of them are known; the others are 0. A value may be one that its type does not
    hold: that of the bits as they were found."""

    values: Array
    valid: Array
    undefined: Array
    """Which of the others are there, with bits that are x or z."""

    @property
    def complete(self) -> bool:
        return bool(self.valid.all())


@dataclass(frozen=True)
class Plan:
    """A shape under a layout: T tiles of E elements, J words each, and where each lies. Errors name `where`."""

    shape: tuple[int, ...]
    layout: Layout
    where: object

    @cached_property
    def order(self) -> tuple[int, ...]:
        rank, order = len(self.shape), self.layout.order
        if isinstance(order, list):
            n = len(order)
            if n > rank or (order[0] >= 0 and n != rank):
                raise IntvitError(f"{self.where}: order must name the axes of {self.shape}, not {order}")
            return tuple(order) if order[0] >= 0 else (*range(rank - n), *(rank + axis for axis in order))
        return tuple(range(rank)) if order == "row_major" else tuple(reversed(range(rank)))

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """The ordered shape, brought to whole tiles."""
        ordered, levels = tuple(self.shape[axis] for axis in self.order), self.layout.levels
        if not levels:
            return ordered
        n = len(levels[0])
        if n > len(ordered):
            raise IntvitError(f"{self.where}: tiles {levels[0]} must have at most the axes of {self.shape}")
        tail = tuple(-(-size // tile) * tile for size, tile in zip(ordered[-n:], levels[0], strict=True))
        if self.layout.edges == "refuse" and tail != ordered[-n:]:
            raise IntvitError(f"{self.where}: {list(ordered[-n:])} must be whole tiles of {levels[0]}")
        return (*ordered[:-n], *tail)

    @cached_property
    def split(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """How `padded` splits into factors, the order of these, and how many of those in order count tiles."""
        levels = self.layout.levels
        if not levels:
            return self.padded, tuple(range(len(self.padded))), 0
        n, n_levels = len(levels[0]), len(levels)
        lead = len(self.padded) - n
        sizes = list(self.padded[:lead])
        for i, size in enumerate(self.padded[lead:]):
            bounds = [size, *(tiles[i] for tiles in levels), 1]
            sizes += [outer // inner for outer, inner in pairwise(bounds)]
        walk = list(range(n)) if self.layout.tile_order == "row_major" else list(reversed(range(n)))
        axes = list(range(lead))
        for level in range(n_levels + 1):
            axes += [lead + i * (n_levels + 1) + level for i in (walk if level < n_levels else range(n))]
        return tuple(sizes), tuple(axes), lead + n

    @cached_property
    def n_tiles(self) -> int:
        sizes, axes, n = self.split
        return math.prod(sizes[axis] for axis in axes[:n])

    @cached_property
    def n_elements(self) -> int:
        """Of a tile."""
        return math.prod(self.padded) // self.n_tiles

    @cached_property
    def n_words(self) -> int:
        """Of a tile."""
        return -(-self.n_elements // self.layout.lanes) * self.layout.words

    @property
    def numbers(self) -> tuple[int, ...]:
        """The shape of the elements as they follow one another."""
        sizes, axes, _ = self.split
        return tuple(sizes[axis] for axis in axes)

    def check(self) -> None:
        """IntvitError for a shape that does not fit the layout, and for words that would lie on others."""
        if 0 in self.shape:
            raise IntvitError(f"{self.where}: must have an element at least, and has the shape {self.shape}")
        size = self.n_tiles * self.n_words * self.layout.word_bytes
        if max(size, math.prod(self.padded)) > MOST_BYTES:
            raise IntvitError(f"{self.where}: must fit {MOST_BYTES} bytes of memory, not {size}")
        layout = self.layout
        if layout.address_unit == "byte" and layout.base % layout.word_bytes and layout.format not in ("bin", "ihex"):
            raise IntvitError(
                f"{self.where}: base must be a multiple of the {layout.word_bytes} bytes of a word in {layout.format},"
                f" not {layout.base:#x}"
            )
        for bank in range(layout.banks):
            self._check_bank(bank)

    def _check_bank(self, bank: int) -> None:
        layout, (n_tiles, n_words) = self.layout, self.counts(bank)
        if not n_tiles * n_words:
            return
        last = layout.base + (n_tiles - 1) * self.tile_stride + (n_words - 1) * self.word_stride
        if last > HIGHEST:
            raise IntvitError(f"{self.where}: address {last:#x} must be {HIGHEST:#x} at most")
        if layout.depth is not None and last >= layout.depth * layout.step:
            raise IntvitError(
                f"{self.where}: address {last:#x} must lie in the memory of depth {layout.depth}"
                f" ({layout.depth * layout.step:#x} {layout.address_unit}s)"
            )
        apart = self.tile_stride >= (n_words - 1) * self.word_stride + layout.step
        within = self.word_stride >= (n_tiles - 1) * self.tile_stride + layout.step
        if not (n_tiles == 1 or apart or within):
            sorted_ = np.sort(np.asarray(self.addresses(bank)))
            close = np.flatnonzero(np.diff(sorted_) < layout.step)
            if len(close):
                raise IntvitError(
                    f"{self.where}: tile_stride must leave room for {n_words} words of a tile, and at"
                    f" {self.tile_stride} two of them meet at address {sorted_[close[0] + 1]:#x}"
                )

    @property
    def word_stride(self) -> int:
        return self.layout.word_stride or self.layout.step

    @property
    def tile_stride(self) -> int:
        if self.layout.tile_stride is not None:
            return self.layout.tile_stride
        shared = self.layout.banks if self.layout.banking == "word" else 1
        return -(-self.n_words // shared) * self.word_stride

    def part(self, bank: int) -> tuple[slice, slice]:
        """Which tiles, and which words of them, a bank has."""
        n, everything = self.layout.banks, slice(None)
        if self.layout.banking == "word":
            return everything, slice(bank, self.n_words, n)
        if self.layout.banking == "tile":
            return slice(bank, self.n_tiles, n), everything
        if self.layout.tiles:
            size = -(-self.n_tiles // n)
            return slice(bank * size, (bank + 1) * size), everything
        size = -(-self.n_words // n)
        return everything, slice(bank * size, (bank + 1) * size)

    def counts(self, bank: int) -> tuple[int, int]:
        """Tiles and words of each in a bank."""
        tiles, words = self.part(bank)
        return len(range(self.n_tiles)[tiles]), len(range(self.n_words)[words])

    def addresses(self, bank: int) -> Addresses:
        """Of the words of a bank, tile by tile."""
        n_tiles, n_words = self.counts(bank)
        step, far, base = self.word_stride, self.tile_stride, self.layout.base
        if n_tiles <= 1 or n_words * step == far:
            return range(base, base + n_tiles * n_words * step, step)
        return (base + np.arange(n_tiles)[:, None] * far + np.arange(n_words) * step).reshape(-1)

    def arrange(self, values: Array) -> Array:
        """(T, E) from an array of the shape."""
        ordered = values.transpose(self.order)
        if self.padded != ordered.shape:
            padded = np.zeros(self.padded, values.dtype)
            padded[tuple(map(slice, ordered.shape))] = ordered
            ordered = padded
        sizes, axes, _ = self.split
        return np.ascontiguousarray(ordered.reshape(sizes).transpose(axes)).reshape(self.n_tiles, self.n_elements)

    def restore(self, tiles: Array) -> Array:
        """The array of the shape from (T, E)."""
        sizes, axes, _ = self.split
        factors = tiles.reshape([sizes[axis] for axis in axes]).transpose(_inverse(axes))
        ordered = factors.reshape(self.padded)[tuple(slice(self.shape[axis]) for axis in self.order)]
        return np.ascontiguousarray(ordered.transpose(_inverse(self.order))).reshape(self.shape)


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(axes))


def pack(array: Array, dtype: IntType, layout: Layout, where: object = "array") -> Memory:
    """The memory that holds an array of integers of `dtype`; everything it leaves free is 0."""
    array = np.asarray(array)
    layout.check_type(dtype, where)
    if array.dtype.kind not in "iub":
        raise IntvitError(f"{where}: must be integers, not {array.dtype}")
    stored = layout.as_stored()
    plan = Plan(array.shape, stored, where)
    plan.check()
    low, high = int(array.min()), int(array.max())
    if low < dtype.min or high > dtype.max:
        raise IntvitError(f"{where}: values must fit {dtype}, not {low}..{high}")
    values = array.astype(f"<i{_container(stored)}")
    if dtype.signed and stored.extend == "zero" and dtype.bits < stored.element_bits:
        values &= values.dtype.type((1 << dtype.bits) - 1)
    words = _to_words(plan.arrange(values), plan)
    banks = tuple(_bank(plan.addresses(i), words[plan.part(i)]) for i in range(stored.banks))
    if layout.format in NUMBERS and not layout.packed:
        return Memory(stored.word_bits, banks, signed=dtype.signed, shape=plan.numbers)
    return Memory(stored.word_bits, banks, stored.address_unit, depth=stored.depth, byte_order=stored.byte_order)


def _bank(addresses: Addresses, words: Array) -> Bank:
    """In order of addresses."""
    words = words.reshape(-1, words.shape[-1])
    if isinstance(addresses, range) or bool((np.diff(addresses) > 0).all()):
        return Bank(addresses, words)
    order = np.argsort(addresses, kind="stable")
    return Bank(addresses[order], words[order])


def unpack(
    memory: Memory, shape: tuple[int, ...], dtype: IntType, layout: Layout, where: object = "memory", *,
    partial: bool = True,
) -> Unpacked:  # fmt: skip
    """The array that a memory holds, and which of its elements are there and known.

    IntvitError for a word outside the signal (or the memory, where `depth` is given), and, unless `partial`, for the
    first address whose word is missing or unknown.
    """
    layout.check_type(dtype, where)
    stored = layout.as_stored()
    if layout.format in NUMBERS and not layout.packed:
        stored = stored.model_copy(update={"word_bits": 64, "element_bits": 64, "extend": "sign"})
        dtype = IntType(64)
    if not memory.bytewise and memory.word_bits != stored.word_bits:
        raise IntvitError(f"{where}: words must have {stored.word_bits} bits, not {memory.word_bits}")
    if len(memory.banks) != stored.banks:
        raise IntvitError(f"{where}: must have {stored.banks} banks, not {len(memory.banks)}")
    plan = Plan(tuple(shape), stored, where)
    plan.check()
    flat = (plan.n_tiles * plan.n_elements,)
    if memory.shape is not None and stored is not layout and memory.shape not in (plan.numbers, flat):
        raise IntvitError(f"{where}: shape must be {list(plan.numbers)}, not {list(memory.shape)}")
    words = np.zeros((plan.n_tiles, plan.n_words, stored.word_bytes), np.uint8)
    unknown, gone = None, np.zeros(words.shape, np.uint8)
    for i, bank in enumerate(memory.banks):
        part = plan.part(i)
        addresses = plan.addresses(i)
        found, lacking, there = _words_at(memory, bank, addresses, stored, where)
        if lacking is not None and lacking.any():
            if not partial:
                _refuse(bank, addresses, lacking, where)
            unknown = np.zeros_like(words) if unknown is None else unknown
            unknown[part] = lacking.reshape(unknown[part].shape)
            gone[part] = np.where(there, 0, 0xFF).astype(np.uint8).reshape(gone[part].shape[:2])[..., np.newaxis]
        if stored.banks == 1:
            words = found.reshape(words.shape)
        else:
            words[part] = found.reshape(words[part].shape)
    values = plan.restore(_values(_from_words(words, plan), dtype, stored))
    if unknown is None:
        return Unpacked(values, np.ones(plan.shape, np.bool_), np.zeros(plan.shape, np.bool_))
    valid = plan.restore(_from_words(unknown, plan) == 0)
    undefined = ~valid & plan.restore(_from_words(gone, plan) == 0)
    return Unpacked(np.where(valid, values, values.dtype.type(0)), valid, undefined)


def _refuse(bank: Bank, addresses: Addresses, lacking: Array, where: object) -> None:
    i = int(lacking.any(axis=1).argmax())
    what = "have all its bits" if not (lacking[i] == 0xFF).all() else "be there"
    raise IntvitError(f"{where}: word at address {addresses[i]:#x} must {what}, and is missing or unknown")


def _words_at(
    memory: Memory, bank: Bank, addresses: Addresses, layout: Layout, where: object
) -> tuple[Array, Array | None, Array]:
    """Words (n, bytes) of a bank at these addresses, their bits that are not known, None where all are, and which words
    are there."""
    n, size = len(addresses), layout.word_bytes
    if not memory.bytewise:
        return _entries_at(memory, bank, addresses, layout, where)
    scale = size if layout.address_unit == "word" else 1
    if isinstance(addresses, range) and addresses.step * scale == size:
        wanted: Addresses = range(addresses.start * scale, addresses.start * scale + n * size)
    else:
        wanted = (np.asarray(addresses)[:, None] * scale + np.arange(size)).reshape(-1)
    found, lacking, there = _entries_at(memory, bank, wanted, layout, where)
    found, lacking = found.reshape(n, size), None if lacking is None else lacking.reshape(n, size)
    there = np.asarray(there.reshape(n, size).all(axis=1))
    if lacking is not None and not bank.placed:
        _check_whole(bank, addresses, lacking)
    if layout.byte_order == "big":
        found, lacking = found[:, ::-1], None if lacking is None else lacking[:, ::-1]
    if layout.word_bits % 8:
        wide = found[:, -1] >> (layout.word_bits % 8)
        if wide.any():
            i = int(wide.argmax())
            raise IntvitError(f"{where}: word at address {addresses[i]:#x} must have {layout.word_bits} bits, not more")
    return found, lacking, there


def _check_whole(bank: Bank, addresses: Addresses, lacking: Array) -> None:
    """IntvitError for a file of bytes that ends inside of a word."""
    torn = (lacking[:, 0] == 0) & (lacking[:, -1] != 0)
    if torn.any():
        i = int(torn.argmax())
        n = int((lacking[i] == 0).sum())
        where = bank.place(len(bank.words))
        raise IntvitError(f"{where}: the word at address {addresses[i]:#x} must have {lacking.shape[1]} bytes, not {n}")


def _entries_at(
    memory: Memory, bank: Bank, wanted: Addresses, layout: Layout, where: object
) -> tuple[Array, Array | None, Array]:
    """Entries (n, bytes) of a bank, words or bytes as it has them, their bits that are not known, which are there."""
    held = _placed(memory, bank, layout)
    hit = np.ones(len(wanted), np.bool_)
    if isinstance(held, range) and isinstance(wanted, range) and held == wanted:
        return bank.words, bank.unknown, hit
    held, wanted = np.asarray(held, np.int64), np.asarray(wanted, np.int64)
    if np.array_equal(held, wanted):
        return bank.words, bank.unknown, hit
    found = np.zeros((len(wanted), bank.words.shape[1]), np.uint8)
    lacking = np.full_like(found, 0xFF)
    if not len(held):
        return found, lacking, ~hit
    rows = np.arange(len(held))
    if not (np.diff(held) > 0).all():  # the last of several words at one address counts
        rows = np.argsort(held, kind="stable")
        rows = rows[np.append(np.diff(held[rows]) > 0, True)]
        held = held[rows]
    if len(wanted):
        _check_inside(memory, bank, held, rows, wanted, layout)
    elif layout.depth is None:
        raise IntvitError(f"{bank.place(int(rows[0]))}: address {held[0]:#x} must not be there: the bank is empty")
    at = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    hit = held[at] == wanted
    found[hit] = bank.words[rows[at[hit]]]
    lacking[hit] = 0 if bank.unknown is None else bank.unknown[rows[at[hit]]]
    return found, lacking, hit


def _placed(memory: Memory, bank: Bank, layout: Layout) -> Addresses:
    """The addresses of a bank in units of the layout, or in bytes where it holds bytes."""
    held = bank.addresses
    unit = 1 if memory.bytewise or memory.unit == layout.address_unit else layout.step
    base = layout.base * (layout.word_bytes if memory.bytewise and layout.address_unit == "word" else 1)
    if not bank.placed:
        whole = layout.depth is not None and len(held) == layout.depth * (layout.word_bytes if memory.bytewise else 1)
        base = 0 if whole else base
    else:
        base = 0
    if isinstance(held, range):
        return range(base + held.start * unit, base + held.stop * unit, held.step * unit)
    return base + held * unit


def _check_inside(
    memory: Memory, bank: Bank, held: Array, rows: Array, wanted: Array, layout: Layout
) -> None:  # fmt: skip
    if layout.depth is None:
        low, high = int(wanted.min()), int(wanted.max())
    else:
        low, high = 0, layout.depth * (layout.word_bytes if memory.bytewise else layout.step) - 1
    outside = (held < low) | (held > high)
    if outside.any():
        i = int(outside.argmax())
        raise IntvitError(f"{bank.place(int(rows[i]))}: address {held[i]:#x} must lie in {low:#x}..{high:#x}")


def _container(layout: Layout) -> int:
    """Bytes of the NumPy integer that holds an element."""
    return next(n for n in (1, 2, 4, 8) if layout.element_bits <= 8 * n)


def _to_words(tiles: Array, plan: Plan) -> Array:
    """(T, J, bytes) u8 from (T, E) containers."""
    layout, size = plan.layout, plan.layout.word_bytes
    n_beats = plan.n_words // layout.words
    if n_beats * layout.lanes != plan.n_elements:
        whole = np.zeros((plan.n_tiles, n_beats * layout.lanes), tiles.dtype)
        whole[:, : plan.n_elements] = tiles
        tiles = whole
    beats = tiles.reshape(-1, layout.lanes)
    if layout.lane_order == "high":
        beats = beats[:, ::-1]
    shape = (plan.n_tiles, plan.n_words, size)
    as_is = layout.element_bits == 8 * tiles.itemsize and layout.lanes * tiles.itemsize == layout.words * size
    if as_is and layout.word_bits % 8 == 0:
        words = np.ascontiguousarray(beats).view(np.uint8).reshape(-1, layout.words, size)
        return (words if layout.word_order == "low" else words[:, ::-1]).reshape(shape)
    words = np.empty((len(beats), layout.words, size), np.uint8)
    n = max(1, AT_ONCE // max(layout.lanes, layout.words * size))
    for i in range(0, len(beats), n):
        block = _block_to_words(np.ascontiguousarray(beats[i : i + n]), layout)
        words[i : i + n] = block if layout.word_order == "low" else block[:, ::-1]
    return words.reshape(shape)


def _block_to_words(beats: Array, layout: Layout) -> Array:
    """(n, words, bytes) from (n, lanes), the first lane lowest."""
    n, size, bits = len(beats), layout.word_bytes, layout.element_bits
    if bits % 8 == 0 and layout.word_bits % 8 == 0:
        held = beats.view(np.uint8).reshape(n, layout.lanes, -1)[:, :, : bits // 8].reshape(n, -1)
    elif layout.word_bits % 8 == 0 or layout.words == 1:
        held = _to_limbs(beats, bits)[:, : -(-layout.lanes * bits // 8)]
    else:
        found = np.unpackbits(beats.view(np.uint8).reshape(n, layout.lanes, -1), axis=-1, bitorder="little")
        flat = _widened(found[:, :, :bits].reshape(n, -1), layout.words * layout.word_bits)
        return np.packbits(flat.reshape(n, layout.words, layout.word_bits), axis=-1, bitorder="little")
    return _widened(held, layout.words * size).reshape(n, layout.words, size)


def _to_limbs(beats: Array, bits: int) -> Array:
    """(n, bytes) from (n, lanes): element i at bit i * bits, in steps of 64 bits."""
    lanes = beats.T.astype("<u8", order="C") & np.uint64((1 << bits) - 1)
    limbs = np.zeros((-(-len(lanes) * bits // 64), len(beats)), "<u8")
    for i, lane in enumerate(lanes):
        limb, shift = divmod(i * bits, 64)
        limbs[limb] |= lane << np.uint64(shift)
        if shift + bits > 64:
            limbs[limb + 1] |= lane >> np.uint64(64 - shift)
    return np.ascontiguousarray(limbs.T).view(np.uint8)


def _from_limbs(held: Array, n_lanes: int, bits: int, c: int) -> Array:
    """(n, lanes) unsigned containers of c bytes: the inverse."""
    limbs = np.ascontiguousarray(_widened(held, -(-n_lanes * bits // 64) * 8).view("<u8").T)
    lanes = np.empty((n_lanes, len(held)), f"<u{c}")
    for i in range(n_lanes):
        limb, shift = divmod(i * bits, 64)
        lane = limbs[limb] >> np.uint64(shift)
        if shift + bits > 64:
            lane |= limbs[limb + 1] << np.uint64(64 - shift)
        lanes[i] = lane & np.uint64((1 << bits) - 1)
    return np.ascontiguousarray(lanes.T)


def _widened(rows: Array, width: int) -> Array:
    """(n, width) with zeros behind."""
    if rows.shape[1] == width:
        return rows
    wide = np.zeros((len(rows), width), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def _from_words(words: Array, plan: Plan) -> Array:
    """(T, E) unsigned containers from (T, J, bytes): what the bits of each element are, as a number."""
    layout, size, c = plan.layout, plan.layout.word_bytes, _container(plan.layout)
    held = words.reshape(-1, layout.words, size)
    if layout.word_order == "high":
        held = held[:, ::-1]
    if layout.element_bits == 8 * c and layout.lanes * c == layout.words * size and layout.word_bits % 8 == 0:
        beats = np.ascontiguousarray(held).reshape(len(held), -1).view(f"<u{c}")
    else:
        beats = np.empty((len(held), layout.lanes), f"<u{c}")
        n = max(1, AT_ONCE // max(layout.lanes, layout.words * size))
        for i in range(0, len(held), n):
            beats[i : i + n] = _block_from_words(np.ascontiguousarray(held[i : i + n]), layout, c)
    if layout.lane_order == "high":
        beats = beats[:, ::-1]
    return beats.reshape(plan.n_tiles, -1)[:, : plan.n_elements]


def _block_from_words(held: Array, layout: Layout, c: int) -> Array:
    """(n, lanes) unsigned containers of c bytes from (n, words, bytes), the first lane lowest."""
    n, bits = len(held), layout.element_bits
    used = layout.lanes * bits
    if layout.word_bits % 8 and layout.words > 1:
        found = np.unpackbits(held, axis=-1, bitorder="little", count=layout.word_bits).reshape(n, -1)
        packed = np.packbits(found[:, :used].reshape(n, layout.lanes, bits), axis=-1, bitorder="little")
        return _widened(packed.reshape(-1, packed.shape[-1]), c).view(f"<u{c}").reshape(n, layout.lanes)
    flat = held.reshape(n, -1)[:, : -(-used // 8)]
    if bits % 8:
        return _from_limbs(flat, layout.lanes, bits, c)
    lanes = _widened(flat.reshape(-1, bits // 8), c)
    return np.ascontiguousarray(lanes).view(f"<u{c}").reshape(n, layout.lanes)


def _values(raw: Array, dtype: IntType, layout: Layout) -> Array:
    """The integers that elements stand for; bits above those of the type that are no extension stay part of a value
    that the type does not hold."""
    bits, width = layout.element_bits, 8 * raw.itemsize
    signed = raw.view(f"<i{raw.itemsize}") if raw.flags.c_contiguous else raw.copy().view(f"<i{raw.itemsize}")
    if dtype.signed and (layout.extend == "sign" or dtype.bits == bits):
        return signed if bits == width else (signed << (width - bits)) >> (width - bits)
    wide = raw.astype(storage(IntType(bits, False)))
    if bits == 64:
        wide = np.where(wide < 0, np.int64(2**63 - 1), wide)
    if not dtype.signed:
        return wide
    sign = 1 << (dtype.bits - 1)
    return np.where(wide >> dtype.bits == 0, (wide ^ sign) - sign, wide).astype(wide.dtype)
