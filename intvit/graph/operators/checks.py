"""Parts of the checks of integer nodes. Each raises IntvitError that names the node, the rule and the value."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node, Tensor


def count(node: Node, inputs: Sequence[Tensor], *counts: int) -> None:
    if len(inputs) not in counts:
        raise IntvitError(f"{node.name}: {node.op} must have {' or '.join(map(str, counts))} inputs, not {len(inputs)}")


def attributes(node: Node, **types: type) -> None:
    """The attributes must be just these, of just these types."""
    if set(node.attrs) != set(types):
        raise IntvitError(f"{node.name}: attributes must be {sorted(types)}, not {sorted(node.attrs)}")
    for key, kind in types.items():
        if type(node.attrs[key]) is not kind:
            raise IntvitError(f"{node.name}: {key} must be {kind.__name__}, not {node.attrs[key]!r:.60}")


def arrays(node: Node, needed: set[str], optional: frozenset[str] = frozenset()) -> None:
    if not needed <= set(node.arrays) <= needed | optional:
        raise IntvitError(f"{node.name}: arrays must be {sorted(needed | optional)}, not {sorted(node.arrays)}")


def shape(node: Node, output: Tensor, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        raise IntvitError(f"{node.name}: output shape must be {expected}, not {output.shape}")


def holds(node: Node, output: Tensor, proven: int | None) -> None:
    """The output's type and bound must hold what the operator was proven to give; None is any 64-bit value."""
    if proven is None:
        if output.dtype.bits != 64 or output.bound is not None:
            raise IntvitError(f"{node.name}: output must be s64 without a bound, as none is proven; not {output.dtype}")
    elif output.max_abs < proven or output.dtype.max < proven:
        raise IntvitError(f"{node.name}: output must hold +-{proven}, not {output.dtype} bound {output.bound}")


def keeps(node: Node, source: Tensor, output: Tensor) -> None:
    """The output must hold every value of the input as it is."""
    if source.dtype.bits > output.dtype.bits or source.max_abs > output.max_abs:
        raise IntvitError(f"{node.name}: output must hold {source.name}, {source.dtype}, not {output.dtype}")


def values(node: Node, key: str, low: int, high: int, shapes: tuple[tuple[int, ...], ...]) -> Array:
    array = node.arrays[key]
    if array.shape not in shapes:
        raise IntvitError(f"{node.name}: {key} must be of shape {' or '.join(map(str, shapes))}, not {array.shape}")
    if int(array.min()) < low or int(array.max()) > high:
        raise IntvitError(
            f"{node.name}: {key} must lie in {low}..{high}, not {int(array.min())}..{int(array.max())}"
        )  # fmt: skip
    return array


def broadcasts(node: Node, key: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    padded = (1,) * (len(wanted) - len(found)) + found
    if len(padded) != len(wanted) or any(n not in (1, m) for n, m in zip(padded, wanted, strict=True)):
        raise IntvitError(f"{node.name}: {key} must broadcast to {wanted}, not be of shape {found}")
