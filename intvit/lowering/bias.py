"""Bias correction: what a method and its quantizer get wrong on average goes into the bias behind them.

I-BERT's polynomial of erf, for one, is off by up to 0.01 wherever |x| < 2.5, and always to the same side: behind it the
sums of thousands of products are all shifted. The mean of what a linear operator reads, in the float network and in
integers, is taken on sampled rows of the calibration; `W mean(x) - W' mean(x')` is added to its bias, W' being the
rounded weights. Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv
1906.04721), empirical form; local, every operator being fed the float network's input.

Slope correction: where the error of a channel grows with its values, its weights are multiplied by the slope of the
least squares line of the float network's values over the integers', before they are rounded.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from intvit.errors import placed
from intvit.graph import layout, operators
from intvit.graph.ir import Array, FloatGraph, IntGraph, Node
from intvit.lowering import widths

N_ROWS = 1024
"""Sampled of an operator, evenly over images and positions."""


@dataclass
class Rows:
    """Sampled rows (R, C) float32 of the input of an operator, and the same ones of its output."""

    inputs: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)

    def add(self, x: Array, y: Array, n_images: int) -> None:
        """Take the rows of a batch (B, ..., C) of `n_images` in all."""
        per_image = -(-N_ROWS // n_images)
        x, y = (values.reshape(len(values), -1, values.shape[-1]) for values in (x, y))
        at = np.unique(np.linspace(0, x.shape[1] - 1, per_image).round().astype(int))
        self.inputs.append(x[:, at].reshape(-1, x.shape[-1]))
        self.outputs.append(y[:, at].reshape(-1, y.shape[-1]))


def sampled(graph: FloatGraph, known: frozenset[str]) -> list[Node]:
    """The operators before linear ones of which rows are of use: recorded at both ends, an output row for a row."""
    kinds = [name for name in operators.with_methods() if name not in operators.named("masked")]
    return [
        node
        for node in graph.nodes
        if node.op in kinds
        and {node.inputs[0], node.output} <= known
        and any(reader.op == "linear" for reader in widths.readers(graph, node.output))
        and not _scaled(graph, node.output)
    ]


def _scaled(graph: FloatGraph, name: str) -> bool:
    """Whether a constant factor stands behind a tensor: its integers then stand for other values."""
    after = [node for node in graph.consumers[name] if widths.moves_no_bit(node)]
    return any(node.op == "scale" or _scaled(graph, node.output) for node in after)


def corrected_by(parts: IntGraph, name: str, sites: Container[str]) -> tuple[Node, Node] | None:
    """The operator of `sites` and the requantization that make integer tensor `name`, whose mean error is corrected.

    None if something else makes it; reshapes and transposes in between keep the channels.
    """
    rounding: Node | None = None
    node = parts.by_output.get(name)
    while node is not None and (node.op in ("reshape", "transpose") or (node.op == "requantize" and rounding is None)):
        rounding = node if node.op == "requantize" else rounding
        if len(node.inputs) > 1:
            return None
        before, after = (parts.tensors[each].shape for each in (node.inputs[0], node.output))
        if node.op != "requantize" and not layout.keeps_channels(node, before, after):
            return None
        node = parts.by_output.get(node.inputs[0])
    return (node, rounding) if node is not None and rounding is not None and node.name in sites else None


@dataclass(frozen=True)
class Fit:
    """Means (C,) of a tensor in the float network and in integers, real units, and by how much the float network's
    values grow with the integers' (C,)."""

    floats: Array
    integers: Array
    slopes: Array


RIDGE = 0.01
"""Of the mean variance of a tensor's channels: of those that vary less the slope stays near 1."""
STEEPEST = 2.0


def fitted(parts: IntGraph, name: str, samples: Mapping[str, Rows]) -> Fit | None:
    """Of what the integer tensor `name` stands for; None unless it is a sampled operator, requantized."""
    chain = corrected_by(parts, name, samples)
    if chain is None:
        return None
    node, rounding = chain
    of = parts.tensors[node.inputs[0]]
    rows = samples[node.name]
    values = np.concatenate(rows.inputs).astype(np.float64) / of.scale + of.zero_point
    q = np.clip(np.rint(values), of.dtype.min, of.dtype.max).astype(np.int64)[None]
    for step in chain:
        kind = operators.get(step.op)
        assert kind is not None
        assert kind.kernel is not None
        with placed(step.name):
            q = kind.kernel(step, [parts.tensors[step.inputs[0]]], parts.tensors[step.output])([q])
    last = parts.tensors[rounding.output]
    integers = (q[0].astype(np.float64) - last.zero_point) * last.scale
    return fit_of(np.concatenate(rows.outputs).astype(np.float64), integers)


def fit_of(floats: Array, integers: Array) -> Fit:
    """Of the same rows (R, C) of both, float64."""
    means = floats.mean(axis=0), integers.mean(axis=0)
    x, y = integers - means[1], floats - means[0]
    variance = np.mean(x * x, axis=0)
    ridge = RIDGE * np.mean(variance) or 1.0
    slopes = (np.mean(x * y, axis=0) + ridge) / (variance + ridge)
    return Fit(*means, np.clip(slopes, 1 / STEEPEST, STEEPEST))
