"""Few candidates that hit every class: greedy set cover, the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def cover(sets: Sequence[Collection[int]], wanted: Collection[int]) -> list[int]:
    """Indices of sets that together hold all of `wanted` that any holds; of equal gains the first set.

    Greedy: at most 1 + ln(largest set) times as many as are needed (Chvatal 1979). Afterwards those are dropped that
    later ones made superfluous.

    >>> cover([{1, 2}, {2, 3, 4}, {1, 5}], {1, 2, 3, 4, 5})
    [1, 2]
    """
    left = set(wanted)
    rest = {i: left.intersection(each) for i, each in enumerate(sets)}
    chosen: list[int] = []
    while left:
        best = max(rest, key=lambda i: (len(rest[i]), -i), default=None)
        if best is None or not rest[best]:
            break
        gained = rest.pop(best)
        chosen.append(best)
        left -= gained
        for i in [i for i, each in rest.items() if not each.isdisjoint(gained)]:
            rest[i] -= gained
    return _needed(sets, set(wanted), chosen)


def _needed(sets: Sequence[Collection[int]], wanted: set[int], chosen: list[int]) -> list[int]:
    count: dict[int, int] = {}
    for i in chosen:
        for key in wanted.intersection(sets[i]):
            count[key] = count.get(key, 0) + 1
    kept = list(chosen)
    for i in reversed(chosen):
        mine = wanted.intersection(sets[i])
        if all(count[key] > 1 for key in mine):
            kept.remove(i)
            for key in mine:
                count[key] -= 1
    return kept
