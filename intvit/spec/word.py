"""A word of hardware: a value narrowed to some bits, then bits of it forced. `intvit whatif` puts it between sites."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec.numerics import Overflow, narrowed


def word(
    row: Sequence[int],
    bits: int,
    overflow: Overflow,
    *,
    keep: Sequence[int] | None = None,
    force: Sequence[int] | None = None,
    flip: Sequence[int] | None = None,
) -> list[int]:
    """`((narrow(x) & keep) | force) ^ flip`, in two's complement: all (C,), masks of `bits` bits with their sign.

    Returns (C,) of `bits` bits. ValueError for masks of another length. Source: docs/whatif.md.

    >>> word([200, -3, 5], 8, "saturate"), word([200, -3, 5], 8, "wrap")
    ([127, -3, 5], [-56, -3, 5])
    >>> word([5, 5, 5], 8, "wrap", keep=[-2, -1, -1], force=[0, 8, 0], flip=[0, 0, -128])
    [4, 13, -123]
    """
    kept = [-1] * len(row) if keep is None else keep
    forced = [0] * len(row) if force is None else force
    flipped = [0] * len(row) if flip is None else flip
    each = zip(row, kept, forced, flipped, strict=True)
    return [((narrowed(x, bits, overflow) & k) | f) ^ t for x, k, f, t in each]
