"""`case.npz`: an uncompressed zip of npy files, of which equal arrays give equal bytes on every machine.

NumPy and every unzip program read it. `zipfile` and `numpy.savez` do not write it, as what they write differs between
their versions; nor do they read it, as they accept more than one form. Where each byte lies follows from names, types
and shapes, so that reading needs no header to be believed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType

Array = np.ndarray[Any, Any]
Layout = Mapping[str, tuple[IntType, tuple[int, ...]]]
"""Name -> declared type and shape, in the order of the archive."""

LOCAL, CENTRAL, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
MADE_BY, NEEDED = (3 << 8) | 20, 20
"""Version 2.0 of the zip format, file attributes as Unix has them."""
DATE = (1 << 5) | 1
"""1 January 1980: the earliest that zip knows."""
ATTRIBUTES = 0o100644 << 16
NPY_ALIGNMENT = 64
MOST_BYTES = 1 << 31
"""Of an archive: beyond it zip needs another form."""


def stored_type(dtype: IntType) -> np.dtype[Any]:
    """The narrowest signed integer of NumPy, little-endian, that holds `dtype`.

    >>> [stored_type(IntType.parse(text)).str for text in ("s8", "u8", "s33")]
    ['|i1', '<i2', '<i8']
    """
    bits = dtype.bits + (not dtype.signed)
    if bits > 64:
        raise IntvitError(f"integer type: must fit s64, not {dtype}")
    return np.dtype(f"<i{next(n for n in (1, 2, 4, 8) if bits <= 8 * n)}")


def size_npz(layout: Layout) -> int:
    """Bytes of the archive of arrays of these types and shapes."""
    total = END.size
    for name, (dtype, shape) in layout.items():
        total += LOCAL.size + CENTRAL.size + 2 * len(_member(name))
        total += len(_npy_header(dtype, shape)) + stored_type(dtype).itemsize * math.prod(shape)
    return total


def format_npz(arrays: Mapping[str, Array], layout: Layout) -> bytes:
    """The archive; values must fit their types."""
    if size_npz(layout) > MOST_BYTES:
        raise IntvitError(f"case.npz: must not pass {MOST_BYTES} bytes, and would have {size_npz(layout)}")
    return b"".join(part for _, part in _parts(arrays, layout))


def parse_npz(data: bytes, layout: Layout, where: object) -> dict[str, Array]:
    """The arrays; IntvitError if `format_npz` would not have written these very bytes."""
    if len(data) != size_npz(layout):
        raise IntvitError(f"{where}: must be the {size_npz(layout)} bytes of its arrays, not {len(data)} bytes")
    arrays, at = {}, 0
    for name, (dtype, shape) in layout.items():
        at += LOCAL.size + len(_member(name)) + len(_npy_header(dtype, shape))
        array = np.frombuffer(data, stored_type(dtype), math.prod(shape), at).reshape(shape)
        arrays[name], at = array, at + array.nbytes
    at = 0
    for what, part in _parts(arrays, layout):
        if data[at : at + len(part)] != part:
            raise IntvitError(f"{where}: bytes {at}..{at + len(part) - 1} must be the {what} of its arrays, and differ")
        at += len(part)
    return arrays


def _parts(arrays: Mapping[str, Array], layout: Layout) -> Iterator[tuple[str, bytes]]:
    """(what it is, bytes) in order."""
    central, at = [], 0
    for name, (dtype, shape) in layout.items():
        member, header = _member(name), _npy_header(dtype, shape)
        values = np.ascontiguousarray(arrays[name], stored_type(dtype)).tobytes()
        size = len(header) + len(values)
        # flags, method, time, date, checksum, size twice, length of the name, of what follows it
        facts = (0, 0, 0, DATE, zlib.crc32(values, zlib.crc32(header)), size, size, len(member), 0)
        yield f"header and checksum of {name}", LOCAL.pack(b"PK\3\4", NEEDED, *facts) + member
        yield f"npy header of {name}", header
        yield f"values of {name}", values
        central.append(CENTRAL.pack(b"PK\1\2", MADE_BY, NEEDED, *facts, 0, 0, 0, ATTRIBUTES, at) + member)
        at += LOCAL.size + len(member) + size
    directory = b"".join(central)
    n = len(central)
    yield "directory", directory + END.pack(b"PK\5\6", 0, 0, n, n, len(directory), at, 0)


def _member(name: str) -> bytes:
    return f"{name}.npy".encode("ascii")


def _npy_header(dtype: IntType, shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of the npy format, padded with spaces to a multiple of 64 bytes."""
    text = f"{{'descr': {stored_type(dtype).str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(len(text) + 11) % NPY_ALIGNMENT
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + padding + 1) + (text + " " * padding + "\n").encode("ascii")
