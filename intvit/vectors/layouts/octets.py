"""Memories as bytes: raw binary, and Intel HEX, whose records carry byte addresses and checksums."""

from __future__ import annotations

import binascii

import numpy as np

from intvit.errors import IntvitError, reason
from intvit.vectors.layouts.memory import Addresses, Array, Bank, Memory

RECORD = 32
"""Data bytes of a record that we write."""
SEGMENT = 1 << 16
MOST_INTEL = 1 << 32
DATA, END, SEGMENT_ADDRESS, _START_SEGMENT, LINEAR_ADDRESS, _START_LINEAR = range(6)


def as_bytes(memory: Memory, bank: Bank) -> tuple[Addresses, Array]:
    """Byte addresses and bytes (n,) of the words of a bank, in order."""
    size, scale = memory.word_bytes, 1 if memory.unit == "byte" else memory.word_bytes
    words = bank.words[:, ::-1] if memory.byte_order == "big" else bank.words
    held = bank.addresses
    if isinstance(held, range) and held.step * scale == size:
        return range(held.start * scale, held.start * scale + len(held) * size), np.ascontiguousarray(words).reshape(-1)
    at = np.asarray(held, np.int64)[:, None] * scale + np.arange(size)
    return at.reshape(-1), np.ascontiguousarray(words).reshape(-1)


def write_raw(memory: Memory, bank: Bank, most: int, where: object) -> bytes:
    """From the first word on; what no word fills is 0."""
    addresses, data = as_bytes(memory, bank)
    if isinstance(addresses, range) or not len(data):
        return data.tobytes()
    first, last = int(addresses[0]), int(addresses[-1])
    if last - first >= most:
        raise IntvitError(f"{where}: bytes with their gaps must be at most {most}, not {last - first + 1}")
    whole = np.zeros(last - first + 1, np.uint8)
    whole[addresses - first] = data
    return whole.tobytes()


def read_raw(data: bytes, where: object) -> Bank:
    """Bytes (n, 1) from address 0 of the file."""
    return Bank(range(len(data)), np.frombuffer(data, np.uint8)[:, None], None, lambda i: f"{where}: byte {i}", False)


def write_intel(memory: Memory, bank: Bank, where: object) -> bytes:
    """Records of at most 32 bytes that end where an address is a multiple of 32."""
    addresses, data = as_bytes(memory, bank)
    n = len(data)
    if n and int(addresses[-1]) >= MOST_INTEL:
        raise IntvitError(f"{where}: address {int(addresses[-1]):#x} must be below {MOST_INTEL:#x} in Intel HEX")
    pieces, i, upper = [], 0, 0
    while i < n:
        segment = int(addresses[i]) // SEGMENT
        if isinstance(addresses, range):
            end = min(n, i + (segment + 1) * SEGMENT - addresses[i])
            at = np.arange(addresses[i], addresses[i] + end - i)
        else:
            end = int(np.searchsorted(addresses, (segment + 1) * SEGMENT))
            at = addresses[i:end]
        if segment != upper:
            pieces.append(
                _records(np.zeros(1, np.int64), [2], LINEAR_ADDRESS, np.array(divmod(segment, 256), np.uint8))
            )
            upper = segment
        starts = np.flatnonzero(np.append(True, (np.diff(at) != 1) | (at[1:] % RECORD == 0)))
        lengths = np.diff(np.append(starts, len(at)))
        pieces.append(_records(at[starts] % SEGMENT, lengths, DATA, data[i:end]))
        i = end
    return b"".join([*pieces, b":00000001FF\n"])


def _records(addresses: Array, lengths: Array | list[int], kind: int, data: Array) -> bytes:
    """Records of one kind, whose data follow one another."""
    sizes = np.asarray(lengths)
    n, longest = len(sizes), int(sizes.max())
    starts = np.cumsum(sizes) - sizes
    column = np.arange(longest)
    inside = column < sizes[:, None]
    rows = np.zeros((n, longest + 5), np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = sizes, addresses >> 8, addresses & 255, kind
    rows[:, 4:-1][inside] = data[(starts[:, None] + column)[inside]]
    sums = (-rows.sum(axis=1, dtype=np.int64)).astype(np.uint8)
    rows[np.arange(n), 4 + sizes] = sums
    text = np.empty((n, 2 * rows.shape[1] + 2), np.uint8)
    text[:, 0] = ord(":")
    text[:, 1:-1] = np.frombuffer(binascii.hexlify(rows.data).upper(), np.uint8).reshape(n, -1)
    used = np.arange(text.shape[1]) < (2 * sizes + 11)[:, None]
    text[np.arange(n), 2 * sizes + 11] = ord("\n")
    used[np.arange(n), 2 * sizes + 11] = True
    return text[used].tobytes()


def read_intel(data: bytes, where: object) -> Bank:
    """Bytes (n, 1) at their addresses; records of every kind, any case, any length, up to the end record."""
    upper, ended = 0, False
    found: list[tuple[int, int, bytes]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.strip()
        if not line:
            continue
        if ended:
            raise IntvitError(f"{where}: line {number}: nothing must stand behind the end record")
        kind, address, body = _record(line, f"{where}: line {number}")
        if kind == DATA:
            end = upper + address + len(body)
            if address + len(body) > SEGMENT or end > MOST_INTEL:
                raise IntvitError(f"{where}: line {number}: record at {upper + address:#x} must not cross 64 KiB")
            found.append((number, upper + address, body))
        elif kind in (SEGMENT_ADDRESS, LINEAR_ADDRESS):
            if len(body) != 2:
                raise IntvitError(f"{where}: line {number}: address record must have 2 bytes, not {len(body)}")
            upper = int.from_bytes(body, "big") << (4 if kind == SEGMENT_ADDRESS else 16)
        ended = kind == END
    if not ended:
        raise IntvitError(f"{where}: must end with the record :00000001FF, and the file ends first")
    return _joined(found, where)


def _record(line: bytes, where: str) -> tuple[int, int, bytes]:
    """Kind, address and data of a record."""
    try:
        record = binascii.unhexlify(line[1:]) if line.startswith(b":") else b""
    except ValueError as error:
        raise IntvitError(f"{where}: must be a record of hex digits, not: {reason(error)}") from None
    if len(record) < 5 or len(record) != record[0] + 5:
        shown = ascii(line[:20].decode("ascii", "replace"))
        raise IntvitError(f"{where}: must be : and a record as long as its first byte says, not {shown}")
    if sum(record) & 255:
        right = -sum(record[:-1]) & 255
        address = int.from_bytes(record[1:3], "big")
        raise IntvitError(f"{where}: checksum at address {address:#x} must be {right:02X}, not {record[-1]:02X}")
    if record[3] > _START_LINEAR:
        raise IntvitError(f"{where}: kind of record must be 0 to 5, not {record[3]}")
    return record[3], int.from_bytes(record[1:3], "big"), record[4:-1]


def _joined(found: list[tuple[int, int, bytes]], where: object) -> Bank:
    numbers = np.array([number for number, _, _ in found], np.int64)
    firsts = np.array([address for _, address, _ in found], np.int64)
    sizes = np.array([len(body) for _, _, body in found], np.int64)
    data = np.frombuffer(b"".join(body for _, _, body in found), np.uint8)[:, None]
    starts = np.cumsum(sizes) - sizes

    def place(index: int) -> str:
        return f"{where}: line {numbers[np.searchsorted(starts, index, 'right') - 1]}"

    if len(found) == 0 or (firsts[1:] == firsts[:-1] + sizes[:-1]).all():
        first = int(firsts[0]) if len(found) else 0
        return Bank(range(first, first + len(data)), data, None, place)
    order = np.argsort(firsts, kind="stable")
    over = firsts[order][1:] < (firsts + sizes)[order][:-1]
    if over.any():
        i = int(order[1:][over][0])
        raise IntvitError(f"{where}: line {numbers[i]}: address {firsts[i]:#x} must be given once, not twice")
    return Bank(np.repeat(firsts - starts, sizes) + np.arange(len(data)), data, None, place)
