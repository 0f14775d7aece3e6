"""Ties of a requantization, decided exactly: x * m / 2**e is a half just where x is odd times a power of two.

With m = m' * 2**v, m' odd: x * m / 2**e has the remainder one half if and only if x = u * 2**k, u odd, k = e - 1 - v
(none for k < 0), and is then u * m' / 2. Of its neighbours q = (u m' - 1) / 2 and q + 1 half_up takes q + 1, half_even
the even one, half_away q + 1 of a positive and q of a negative half: all agree just where u m' is positive and 3 modulo
4. Whether the codes differ behind a saturation is a matter of q alone. Of two terms it is enough to ask each with the
other as it is: where neither tie matters alone, both at once do not, as the saturation ends at an even and at an odd
code (tests/test_prove.py goes through all cases).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from intvit.proofs.intervals import Interval, rounded_shift

Window = tuple[int, int]
"""Least and largest q for which saturate(q + r) and saturate(q + 1 + r) differ, for an r that occurs."""


def differs(twice: int) -> bool:
    """True if the three roundings of the half `twice` / 2 do not agree; `twice` is odd."""
    return twice < 0 or twice % 4 == 1


def smallest_tie(x: Interval, m: int, e: int, windows: Sequence[Window]) -> int | None:
    """The operand of least magnitude (of two the positive) in `x` whose tie matters, or None if there is none."""
    if m == 0 or e < 1:
        return None
    v = (m & -m).bit_length() - 1
    k, odd = e - 1 - v, m >> v
    if k < 0:
        return None
    found: list[int] = []
    for low, high in windows:
        ends = (2 * low + 1, 2 * high + 1)
        least, most = ends if odd > 0 else ends[::-1]
        u_low = max(-(-x.low >> k), -(-least // odd))
        u_high = min(x.high >> k, most // odd)
        up, down = max(u_low, 0) | 1, -(max(-u_high, 0) | 1)
        # u + 2 differs from u by 2 modulo 4: of two neighbours one matters at least
        found += [u for u in (up, up + 2, down, down - 2) if u_low <= u <= u_high and differs(u * odd)]
    return min(found, key=lambda u: (abs(u), -u)) << k if found else None


def contiguous(m: int, e: int, bits: int) -> bool:
    """True if a term that rounds x * m / 2**e, x in an interval, cannot step over the codes of a type of `bits`."""
    return abs(m) < (((1 << bits) - 1) << e if e >= 0 else 1)


def window_of(limits: Interval, other: Interval) -> Window:
    """The q that matter where the other term takes, near enough together, the values of `other`."""
    return limits.low - other.high, limits.high - 1 - other.low


def windows_of(limits: Interval, values: Iterable[int]) -> list[Window]:
    """The same for another term that has just these values."""
    merged: list[Window] = []
    for value in sorted(set(values), reverse=True):
        low, high = window_of(limits, Interval(value, value))
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], high
        else:
            merged.append((low, high))
    return merged


def constant_tie(value: int, m: int, e: int, windows: Sequence[Window]) -> bool:
    """True if a constant operand ties, and it matters."""
    if e < 1 or (value * m) & ((1 << e) - 1) != 1 << (e - 1):
        return False
    q = (value * m) >> e
    return differs(2 * q + 1) and any(low <= q <= high for low, high in windows)


def rounds(value: int, m: int, e: int) -> int:
    return rounded_shift(value * m, e)
