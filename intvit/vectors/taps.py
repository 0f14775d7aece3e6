"""The named intermediates of the specification, as arrays: what a golden case says of the inside of its operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.engine.evaluate import prepare_in
from intvit.errors import IntvitError, placed
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node
from intvit.spec.taps import Aligned, listening, sometimes
from intvit.vectors.manifest import key_of


@dataclass(frozen=True)
class Tapped:
    """An intermediate of a site on one set of stimuli: (rows of the output, values a row), or a vector.

    `known` tells the elements that there are, if some may not be: of a masked element nothing has to agree.
    """

    key: str
    site: str
    name: str
    values: Array
    known: Array | None

    @property
    def facts(self) -> dict[str, Any]:
        """Widths are of 64 bits: on other stimuli more of them may be needed than on these."""
        return {
            "key": self.key, "site": self.site, "intermediate": self.name, "shape": list(self.values.shape),
            "dtype": "s64", "some": self.known is not None,
        }  # fmt: skip

    @property
    def arrays(self) -> dict[str, Array]:
        found = {self.key: self.values}
        return found if self.known is None else {**found, f"{self.key}.known": self.known}


def tapped(part: IntGraph, tensors: Mapping[str, Array]) -> dict[str, Tapped]:
    """Key -> what the specification taps on the way, of every site of a part, from `tensors` (without a batch axis).

    Sites in the order of execution, intermediates sorted. Products of a requantization that may not fit 64 bits are
    left out. IntvitError for another value beyond these.
    """
    sites = [node for node in part.nodes if node.op not in LAYOUT_OPS]
    found: dict[str, Tapped] = {}
    for node in sites:
        with placed(node.name), listening(Aligned()) as taps:
            prepare_in(part, node, "spec")([tensors[name][None] for name in node.inputs])
        left_out, not_always = _beyond(part, node), sometimes(node.op, node.attrs.get("method"))
        rows = math.prod(part.tensors[node.output].shape[:-1])
        for name, values in sorted(taps.items()):
            if name in left_out:
                continue
            key = f"tap.{key_of(len(sites), node.name, name)}"
            known = np.array([value is not None for value in values])
            if any(value is not None and not -(2**63) <= value < 2**63 for value in values):
                raise IntvitError(f"{node.name}: {name} must fit 64 bits to be exported, and does not")
            array = np.array([0 if value is None else value for value in values], np.int64)
            shape = (rows, -1) if len(values) % rows == 0 else (-1,)
            always = known.all() and name not in not_always
            whole = None if always else known.astype(np.int8).reshape(shape)
            found[key] = Tapped(key, node.name, name, array.reshape(shape), whole)
    return found


def _beyond(part: IntGraph, node: Node) -> frozenset[str]:
    """Intermediates that may be wider than 64 bits, by the types and constants alone."""
    if node.op != "requantize":
        return frozenset()
    terms = [(name, node.arrays[m]) for name, m in zip(node.inputs, ("m", "residual_m"), strict=False)]
    reach = sum(part.tensors[name].max_abs * int(np.abs(m).max()) for name, m in terms)
    return frozenset(("product", "residual_product", "total")) if reach >= 2**63 else frozenset()
