"""The named intermediates of the specification, as arrays: what a golden case says of the inside of its operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from intvit.engine.evaluate import prepare_in
from intvit.errors import IntvitError, placed
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph
from intvit.spec.taps import listening
from intvit.vectors.manifest import key_of


@dataclass(frozen=True)
class Tapped:
    """An intermediate of a site on one set of stimuli: (rows of the output, values a row), or a vector.

    `known` tells the elements that there are, if some are not: of a masked element nothing has to agree.
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

    Sites in the order of execution, intermediates sorted. IntvitError for a value beyond 64 bits.
    """
    sites = [node for node in part.nodes if node.op not in LAYOUT_OPS]
    found: dict[str, Tapped] = {}
    for node in sites:
        with placed(node.name), listening() as taps:
            prepare_in(part, node, "spec")([tensors[name][None] for name in node.inputs])
        rows = math.prod(part.tensors[node.output].shape[:-1])
        for name, values in sorted(taps.items()):
            key = f"tap.{key_of(len(sites), node.name, name)}"
            known = np.array([value is not None for value in values])
            if any(value is not None and not -(2**63) <= value < 2**63 for value in values):
                raise IntvitError(f"{node.name}: {name} must fit 64 bits to be exported, and does not")
            array = np.array([0 if value is None else value for value in values], np.int64)
            shape = (rows, -1) if len(values) % rows == 0 else (-1,)
            whole = None if known.all() else known.astype(np.int8).reshape(shape)
            found[key] = Tapped(key, node.name, name, array.reshape(shape), whole)
    return found
