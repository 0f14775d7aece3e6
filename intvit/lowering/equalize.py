"""Equalization: a scale per channel behind a norm, whose differences the weights of the linear operators take.

`sum w_c x_c = sum (w_c f_c) (x_c / f_c)`: what the quantizer rounds is x / f, and both sides are real numbers that are
equal. In integers nothing is added, as a norm's quantizer has a multiplier per channel anyway. Source: SmoothQuant
(arXiv 2211.10438, Eq. 4); for a Vision Transformer's norms, RepQ-ViT (arXiv 2212.08254).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intvit.graph import layout, operators
from intvit.graph.ir import Array, FloatGraph, Node
from intvit.lowering import widths
from intvit.lowering.recipe import Recipe

MOST = 256.0
"""A factor, and its reciprocal."""


def equalized(graph: FloatGraph, recipe: Recipe) -> dict[str, tuple[float, list[Node]]]:
    """Tensor behind a norm -> how far its channels are evened out, and the linear operators that read it.

    Left out are tensors that something else reads, and those whose channels are moved on the way.
    """
    found = {}
    for node in graph.nodes:
        if node.op not in operators.norms():
            continue
        strength = recipe.quantizer(node.op, node.name).equalize
        name = widths.quantizer_site(graph, node)
        readers = list(widths.readers(graph, name))
        if strength and readers and all(r.op == "linear" for r in readers) and _keeps_channels(graph, name):
            found[name] = strength, readers
    return found


def _keeps_channels(graph: FloatGraph, name: str) -> bool:
    """True if the last axis of a tensor is that of every tensor that moves make of it."""
    moves = [node for node in graph.consumers[name] if widths.moves_no_bit(node)]
    shapes = graph.tensors
    return all(
        node.op in layout.MOVES
        and layout.keeps_channels(node, shapes[name].shape, shapes[node.output].shape)
        and _keeps_channels(graph, node.output)
        for node in moves
    )


def channel_factors(magnitudes: Array, weights: Sequence[Array], strength: float) -> Array:
    """f (C,) float64 of geometric mean 1: `magnitude**strength / largest |weight|**(1 - strength)` of each channel.

    magnitudes: largest |x| (C,), real units. weights: (O, C) each. strength 1 gives every channel the same range; 0
    every column of the weights. A channel without a magnitude or a weight has the factor 1.
    """
    largest = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0).astype(np.float64)
    usable = (magnitudes > 0) & (largest > 0)
    logs = np.zeros(len(largest))
    logs[usable] = strength * np.log(magnitudes[usable]) - (1 - strength) * np.log(largest[usable])
    if usable.any():
        logs[usable] -= logs[usable].mean()
    return np.clip(np.exp(logs), 1 / MOST, MOST)
