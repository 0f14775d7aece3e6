"""Which operands give a product a stated remainder: exact answers in logarithmic time, for intervals of any length.

`first` and `least` decide what is reachable: where they find nothing, nothing is there (tests/vectors/test_directed.py
holds them against trying every operand).
"""

from __future__ import annotations


def first(m: int, c: int, modulus: int, low: int, high: int, at: int, to: int) -> int | None:
    """The least x in at..to with low <= (m * x + c) mod modulus <= high, or None; 0 <= low <= high < modulus.

    >>> first(3, 0, 8, 4, 4, 0, 100), first(2, 0, 8, 5, 5, 0, 100)
    (4, None)
    """
    if at > to:
        return None
    # (m * (at + k) + c) in low..high  <=>  m * k in low - start .. high - start, a range that may wrap
    start = (m * at + c) % modulus
    left, right = (low - start) % modulus, (high - start) % modulus
    k = 0 if left > right or left == 0 else _smallest(m % modulus, modulus, left, right)
    return None if k is None or at + k > to else at + k


def _smallest(a: int, m: int, low: int, high: int) -> int | None:
    """The least k >= 0 with low <= a * k mod m <= high; 0 <= low <= high < m, 0 <= a < m.

    Either a multiple of a lies in the range itself, or the wraps y (a*k - m*y in the range) solve the same question
    modulo a: m * y mod a in -high .. -low. Euclid's algorithm.
    """
    if low == 0:
        return 0
    if a == 0:
        return None
    if 2 * a > m:  # the mirror halves the number at least every second time
        a, low, high = m - a, m - high, m - low
    k = -(-low // a)
    if a * k <= high:
        return k
    y = _smallest(m % a, a, -high % a, -low % a)
    return None if y is None else -(-(low + m * y) // a)


def least(m: int, c: int, modulus: int, at: int, to: int) -> int:
    """The x in at..to with the least (m * x + c) mod modulus, of several the least; at <= to.

    Record lows one after another: a record falls by a distance `down`, over `cost_down` operands, that is what is left
    of the modulus in Euclid's algorithm on the step `up`.

    >>> least(5, 3, 16, 0, 2), least(5, 3, 16, 0, 9)
    (0, 9)
    """
    value, x, rest = (m * at + c) % modulus, at, to - at
    up, cost_up, down, cost_down = m % modulus, 1, modulus, 0
    while value and up:
        if down <= value:
            k = min(value // down, rest // cost_down)
            value, x, rest = value - k * down, x + k * cost_down, rest - k * cost_down
            if down <= value:
                break  # the next fall is beyond the interval
            continue
        j, most = -(-(down - value) // up), (down - 1) // up
        if j <= most:
            down, cost_down = down - j * up, cost_down + j * cost_up
            if cost_down > rest:
                break
            continue
        down, cost_down = down - most * up, cost_down + most * cost_up
        k = up // down
        up, cost_up = up - k * down, cost_up + k * cost_down
    return x


def bisect(rises, target: int, at: int, to: int) -> int:  # type: ignore[no-untyped-def]
    """The least x in at..to with rises(x) >= target, or to + 1; `rises` never falls."""
    to += 1
    while at < to:
        middle = (at + to) // 2
        if rises(middle) >= target:
            to = middle
        else:
            at = middle + 1
    return at
