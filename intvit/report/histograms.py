"""Histograms of the float model's values against those of the uniform models, where these differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from intvit.engine import Engine
from intvit.engine.trace import dequantize
from intvit.files.memory import fitting
from intvit.floats.images import ImageSource
from intvit.floats.live import LiveActivations
from intvit.graph.ir import Array, FloatGraph
from intvit.mapping.candidates import Candidate
from intvit.mapping.values import float_values
from intvit.report.data import FLOAT, Histogram, Site

MOST_KINDS, MOST_SITES, MOST_IMAGES, BINS = 3, 2, 16, 64
"""Kinds of operators, sites of each, and images that are looked at."""


def differing(sites: Sequence[Site], methods: Sequence[str]) -> list[Site]:
    """Of each kind of operator the sites between whose methods the SQNR differences are furthest apart."""

    def spread(site: Site) -> float:
        found = [s.sqnr_diff for s in site.scores if s.method in methods and s.sqnr_diff is not None]
        return max(found) - min(found) if found else -math.inf

    kinds = list(dict.fromkeys(site.operator for site in sites))[:MOST_KINDS]
    return [
        site for kind in kinds
        for site in sorted((s for s in sites if s.operator == kind), key=spread, reverse=True)[:MOST_SITES]
    ]  # fmt: skip


def histograms(
    graph: FloatGraph, candidates: Mapping[str, Candidate], sites: Sequence[Site], live: LiveActivations,
    images: ImageSource, threads: int | None = None,
) -> list[Histogram]:  # fmt: skip
    """On the first images. Each method where it stands in its uniform model."""
    chosen, n_images = differing(sites, list(candidates)), min(MOST_IMAGES, live.n_images)
    step = fitting(8, 8 * sum(math.prod(graph.tensors[graph.node(site.site).output].shape) for site in chosen))
    spans = [(start, min(start + step, n_images)) for start in range(0, n_images, step)]

    def floats(site: str, span: tuple[int, int]) -> Array:
        read = partial(live.read, start=span[0], stop=span[1])
        return float_values(graph, graph.node(site).output, set(live.names), read)

    ends = {site.site: (math.inf, -math.inf) for site in chosen}
    for span in spans:
        for site, (low, high) in ends.items():
            values = floats(site, span)
            ends[site] = min(low, float(values.min())), max(high, float(values.max()))
    ends = {site: (low, high if high > low else low + 1.0) for site, (low, high) in ends.items()}
    counts = {site: {FLOAT: np.zeros(BINS, np.int64)} for site in ends}
    for span in spans:
        for site in ends:
            counts[site][FLOAT] += _counts(floats(site, span), ends[site])
    for method, candidate in candidates.items():
        own = {candidate.graph.node(site).output: site for site in ends if site in candidate.sites}
        for name, found in _of(candidate, own, ends, images, spans, threads).items():
            counts[own[name]][method] = found
    return [
        Histogram(site=site.site, operator=site.operator, images=n_images, low=ends[site.site][0],
                  high=ends[site.site][1], counts={name: n.tolist() for name, n in counts[site.site].items()})
        for site in chosen
    ]  # fmt: skip


def _of(
    candidate: Candidate, own: Mapping[str, str], ends: Mapping[str, tuple[float, float]], images: ImageSource,
    spans: Sequence[tuple[int, int]], threads: int | None,
) -> dict[str, Array]:  # fmt: skip
    """Integer tensor -> counts of what its integers stand for, over all spans."""
    found = {name: np.zeros(BINS, np.int64) for name in own}

    def each(at: int, name: str, q: Array) -> Array:
        return _counts(dequantize(q, candidate.graph.tensors[name]), ends[own[name]])

    def sink(start: int, parts: Mapping[str, Array]) -> None:
        for name, part in parts.items():
            found[name] += part

    if own:
        batches = ((start, images.read(start, stop)) for start, stop in spans)
        Engine(candidate.graph.up_to(list(own))).stream(batches, list(own), sink, threads=threads, each=each)
    return found


def _counts(values: Array, ends: tuple[float, float]) -> Array:
    """In BINS equal bins; what lies outside counts at the ends."""
    return np.histogram(np.clip(values, *ends), BINS, ends)[0]
