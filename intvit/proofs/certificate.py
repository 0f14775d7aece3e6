"""A certificate: every claim that an independent checker derives again, and the constants that it derives it from.

`tools/check_certificate.py` is that checker: the standard library alone, no line of this package. The certificate is
one JSON file and, beside it, the graph's constants as a plain archive of .npy files (`.npz`). The JSON holds the
graph's structure, so that structure and constants together hash to the content hash of the graph.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, IntGraph, describe
from intvit.proofs.claims import DECLARED, NEVER, Facts, Proof
from intvit.proofs.intervals import Box, Interval, box, rounded_shift
from intvit.proofs.norms import with_bias
from intvit.proofs.render import number
from intvit.proofs.softmax import LOG2_ROW, SUM_MAX
from intvit.proofs.walk import Progress, Rules, Site, prove
from intvit.spec import softmax
from intvit.vectors.npz import Layout, format_npz

FORMAT: Final = "intvit.certificate"
VERSION: Final = 1


def _softmax(site: Site) -> Facts:
    """Outputs and sums of a row of them: exponential * factor, where sum * factor <= most, or the sum is clamped."""
    p, facts = site.params, Facts()
    if isinstance(p, softmax.FqvitSoftmax):
        facts.row_sum, facts.y = LOG2_ROW, Box((-1,), ((1 << p.bits) - 1,))
        return facts
    shift = 32 - p.out_bits
    if isinstance(p, softmax.IbertSoftmax):  # h * (2**32 // sum), h of the row's maximum or of a row hidden whole
        tops = [min(rounded_shift((p.c << k) * p.m, p.e), 32767) for k in (p.n, 0)]
        facts.row_sum, high = 1 << p.out_bits, max(h * (2**32 // max(h, 1)) for h in tops) >> shift
    else:
        top = -p.x0 << p.n
        facts.row_sum, high = max(SUM_MAX, site.n * top) >> shift, max(SUM_MAX, top) >> shift
    facts.y = Box((0,), (high,))
    return facts


def _norm(site: Site) -> Facts:
    """What holds of every row: docs/prove.md, "LayerNorm"."""
    p, facts = site.params, Facts()
    shift = getattr(p, "shift", None)
    high = (1 << 30) - 1 if shift is None else ((1 << 32) - ((1 << 31) >> shift)) >> 1
    normalized = facts.bound("normalized", Interval(-(1 << 30), high))
    facts.y = box([normalized])
    if hasattr(p, "bias"):
        with_bias(facts, normalized, p.bias)
    return facts


OUTLINES: Rules = {
    **{f"softmax.{name}.v1": _softmax for name in ("ivit", "ibert", "fqvit")},
    **{f"{operator}.{name}.v1": _norm for operator in ("layernorm", "rmsnorm") for name in ("ivit", "ibert")},
}
"""What the checker, in its few lines, knows of methods. Of others it takes the declared type of the output."""


def certified(graph: IntGraph, progress: Progress | None = None) -> Proof:
    """The proof as far as the checker can follow it."""
    return prove(graph, rules=OUTLINES, datapaths=False, progress=progress)


def side_file(path: Path) -> Path:
    """Where the constants of the certificate `path` stand."""
    return path.with_name(f"{path.stem}.npz")


def claims_of(proof: Proof) -> dict[str, list[list[Any]]]:
    """The claims as lists: intervals with widths, ties that are decided, clamps and whether they never act."""
    return {
        "intervals": [
            [c.site, c.name, number(c.interval.low), number(c.interval.high), c.bits, c.declared, c.slack]
            for c in proof.claims
            if c.how != DECLARED
        ],
        "ties": [
            [t.site, t.name, t.channels, t.reachable, *(t.witness or (None, None))]
            for t in proof.ties
            if t.operator == "requantize" and t.reachable is not None
        ],
        "clamps": [
            [c.site, c.name, number(c.interval.low), number(c.interval.high), c.acts == NEVER] for c in proof.clamps
        ],
    }


def constants(graph: IntGraph) -> bytes:
    """The archive: the arrays of the nodes in order, of a node by key, under the names 00000, 00001, ..."""
    arrays, layout = dict[str, Array](), dict[str, tuple[IntType, tuple[int, ...]]]()
    for node in graph.nodes:
        for key in sorted(node.arrays):
            array = np.asarray(node.arrays[key])
            name, ends = f"{len(arrays):05d}", (int(array.min()), int(array.max()))
            bits = next(b for b in (8, 16, 32, 64) if -(1 << (b - 1)) <= ends[0] and ends[1] < 1 << (b - 1))
            arrays[name], layout[name] = array, (IntType(bits), array.shape)
    held: Layout = layout
    return format_npz(arrays, held)


def format_certificate(graph: IntGraph, proof: Proof, archive: str, data: bytes) -> str:
    """The JSON; `archive` names the file of the constants, `data` are its bytes."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "content_hash": graph.content_hash,
        "constants": {"file": archive, "sha256": hashlib.sha256(data).hexdigest()},
        "graph": describe(graph),
        "declared": sorted(proof.unproven),
        **claims_of(proof),
    }
    return json.dumps(content, sort_keys=True) + "\n"
