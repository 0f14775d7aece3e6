"""Candidate rows for operators that work row by row: the corners of a row, and seeded rows of every spread."""

from __future__ import annotations

from collections.abc import Iterator

from intvit.vectors.directed.stream import Stream

Row = list[int]


def corners(n: int, low: int, high: int) -> Iterator[Row]:
    """Rows of `n` of low..high: of equal values, one-hot, in halves, in steps; every row is distinct in kind."""
    zero, one = min(max(0, low), high), min(max(1, low), high)
    middle = (low + high) // 2
    for value in dict.fromkeys((low, high, zero, one, max(low, -1), middle)):
        yield [value] * n
    for at in dict.fromkeys((0, n // 2, n - 1)):
        for rest, peak in ((low, high), (high, low), (zero, high), (zero, low), (zero, one), (low, min(low + 1, high)),
                           (high, max(high - 1, low)), (middle, high)):  # fmt: skip
            row = [rest] * n
            row[at] = peak
            yield row
    half = n // 2
    for a, b in ((low, high), (zero, one), (max(low, -1), one), (zero, high), (low, zero), (middle, high)):
        yield [a] * half + [b] * (n - half)
        yield [b] * half + [a] * (n - half)
        yield [a if i % 2 else b for i in range(n)]
        yield [a] * (n - 1) + [b] if n > 1 else [b]
        yield [b, b, *[a] * (n - 2)][:n]
    span = high - low
    yield [low + span * i // max(n - 1, 1) for i in range(n)]
    yield [high - span * i // max(n - 1, 1) for i in range(n)]
    yield [min(high, low + i) for i in range(n)]
    yield [max(low, high - i) for i in range(n)]
    yield [min(max(i - half, low), high) for i in range(n)]
    for k in range(span.bit_length()):
        yield [high, *[max(low, high - (1 << k) + 1 - i % 3) for i in range(n - 1)]]
        yield [min(max((1 << k) * (1 if i % 2 else -1), low), high) for i in range(n)]
        yield [min(max(1 << (k * i // n), low), high) for i in range(n)]


def every_distance(n: int, low: int, high: int, most: int) -> Iterator[Row]:
    """Rows below one largest element that together hold every distance from it; the largest is `high`, then others.

    Of more than `most` rows evenly spaced ones.
    """
    for top in dict.fromkeys((high, min(max(0, low), high), (high + low) // 2, max(low, min(high, 1)), low)):
        distances = list(range(1, top - low + 1)) if top - low < 1 << 17 else []
        step = max(n - 1, 1)
        starts = list(range(0, len(distances), step)) or [0]
        for i in starts[:: -(-len(starts) // most)]:
            part = distances[i : i + step]
            yield ([top] + [top - d for d in part] + [top] * n)[:n]


def seeded(n: int, low: int, high: int, stream: Stream) -> Row:
    """A row around some centre, with a spread of some number of bits, of one of six kinds."""
    span = high - low
    spread = min(1 << stream.within(0, max(span.bit_length(), 1)), span)
    centre = stream.within(low, high) if stream.below(3) else min(max(0, low), high)
    a, b = max(low, centre - spread), min(high, centre + spread)
    kind = stream.below(6)
    values = stream.integers(a, b, n).tolist()
    if kind == 1:  # two values
        values = [a if v < centre else b for v in values]
    elif kind == 2:  # few elements away from the centre
        rare = stream.integers(0, max(n // 8, 1), n).tolist()
        values = [v if r == 0 else centre for v, r in zip(values, rare, strict=True)]
    elif kind == 3:  # near the centre, seldom far
        bits = stream.integers(0, max((b - a).bit_length(), 1), n).tolist()
        values = [centre + ((v - centre) >> k if v >= centre else -((centre - v) >> k))
                  for v, k in zip(values, bits, strict=True)]  # fmt: skip
    elif kind == 4:  # one largest or least
        values[stream.below(n)] = stream.within(low, high)
    elif kind == 5:  # below a largest, by bits
        bits = stream.integers(0, max((b - low).bit_length(), 1), n).tolist()
        words = stream.integers(0, 1 << 30, n).tolist()
        values = [max(low, b - ((1 << k >> 1) + (w >> max(31 - k, 0)))) for k, w in zip(bits, words, strict=True)]
        values[stream.below(n)] = b
    return values


def with_sum(row: Row, total: int, low: int, high: int, stream: Stream) -> Row | None:
    """The row with elements moved, as few as it takes, so that they add up to `total`; None if none of low..high do."""
    row, left = list(row), total - sum(row)
    for at in stream.shuffled(len(row)):
        if not left:
            break
        moved = min(max(row[at] + left, low), high)
        left -= moved - row[at]
        row[at] = moved
    return row if not left else None


def powers(n: int, x0: int, low: int, high: int, halves: int) -> Iterator[Row]:
    """Rows whose exponentials are e(0) * 2**-k for small k, multiples of x0 below the largest, that add up to
    `halves` halves of the largest: a half more or less than a whole number of times it."""
    step, depth = -x0, (high - low) // max(-x0, 1)
    for spare in range(2):
        counts = {0: halves // 2, 1: halves % 2}
        while sum(counts.values()) < n - spare:
            k = max((k for k, c in counts.items() if c and k < depth and k < 20), default=None)
            if k is None:
                break
            k = min(k, max(counts))
            counts[k] -= 1
            counts[k + 1] = counts.get(k + 1, 0) + 2
        row = [high - k * step for k, c in counts.items() for _ in range(c)]
        if row and len(row) <= n and min(row) >= low:
            yield (row + [low] * n)[:n]
