"""Directed stimuli: few inputs of one operator that reach its corners, and the proof of which there are.

`directed(part)` gives them for a part of one site: stimuli of the shapes of its tensors, and what they cover.
docs/directed.md.
"""

from __future__ import annotations

from intvit.errors import IntvitError
from intvit.graph.ir import LAYOUT_OPS, IntGraph, Node
from intvit.vectors.directed.coverage import Class, Coverage, Directed, Signal

__all__ = ["Class", "Coverage", "Directed", "Signal", "directed"]

LEVELS = (1, 2)


def directed(part: IntGraph, *, seed: int = 0, level: int = 1, most: int | None = None) -> Directed:
    """Stimuli of the one site of a part, (N, *shape) for each of its inputs, and their coverage.

    `level` 1: every class, in as few images as greedy cover finds, what is left of them random. 2: pairs of classes
    as well, and more that is random. `most`: the most images; classes that find no place are then missed. The same
    part, seed and level give the same stimuli on every machine. IntvitError for a part of several sites.
    """
    node = _one(part)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise IntvitError(f"seed: must be an integer in 0..2**63 - 1, not {seed!r:.60}")
    if type(level) is not int or level not in LEVELS:
        raise IntvitError(f"level: must be one of {', '.join(map(str, LEVELS))}, not {level!r:.60}")
    if most is not None and (type(most) is not int or most < 1):
        raise IntvitError(f"most: must be an integer of at least 1, not {most!r:.60}")
    from intvit.vectors.directed import products, requantize, rows

    if node.op == "requantize":
        return requantize.directed(part, node, seed, level, most)
    if node.op in products.OPERATORS:
        return products.OPERATORS[node.op](part, node, seed, level, most)
    if "method" in node.attrs or node.op == "mean":
        return rows.directed(part, node, seed, level, most)
    if node.op in LAYOUT_OPS:
        return products.moved(part, node, seed, level, most)
    raise IntvitError(f"{node.name}: no directed stimuli are known for {node.op}")


def _one(part: IntGraph) -> Node:
    if len(part.nodes) != 1:
        raise IntvitError(f"directed: part must have one site, not {len(part.nodes)}")
    return part.nodes[0]
