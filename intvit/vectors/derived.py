"""What hardware takes in place of a node's own constants, where its words or its paper ask for other numbers."""

from __future__ import annotations

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.ir import Array, Node
from intvit.graph.operators.accumulators import numerics_of
from intvit.graph.operators.requantize import addend
from intvit.graph.parameters import method_params, node_method
from intvit.spec.numerics import WIDEST_PRODUCT

MOST = 1 << 31


def derived(node: Node, x: Array | None = None) -> dict[str, Array]:
    """Other constants of a site by name, int64, which give the same outputs; none where there are no others.

    Of `requantize`: `m` and `e` (residual: `residual_m`, `residual_e`) with m in a signed 32-bit word, 2**31 being
    2**30 with e - 1, where an m is 2**31 and its numerics round once and keep whole products; `addend` () where the
    second term is a zero point, which takes the place of `residual`, `residual_m` and `residual_e`.

    Of methods that compute constants for every row (`Method.derived`; FQ-ViT's LayerNorm: M, N and B) what they are
    for the rows of `x` (..., C): name -> (..., C). Without `x` there are none of these. By the specification, as slow
    as that is. IntvitError for an `x` that is no integers of C channels.
    """
    if node.op == "requantize":
        return _requantize(node)
    kind = operators.get(node.op)
    if x is None or kind is None or kind.facts is None:
        return {}
    method, params = node_method(node), method_params(node)
    if method.derived is None:
        return {}
    rows = np.asarray(x)
    channels = max((array.size for array in node.arrays.values()), default=1)
    if rows.dtype.kind not in "iu" or not rows.ndim or not rows.size or rows.shape[-1] != channels:
        raise IntvitError(f"{node.name}: x must be integers (..., {channels}), not {rows.dtype} {rows.shape}")
    found = [method.derived(row, params) for row in rows.reshape(-1, channels).tolist()]
    return {key: np.array([each[key] for each in found], np.int64).reshape(rows.shape) for key in found[0]}


def _requantize(node: Node) -> dict[str, Array]:
    found: dict[str, Array] = {}
    zero_point, how = addend(node), numerics_of(node)
    terms = ["", "residual_"] if "residual_m" in node.arrays and zero_point is None else [""]
    together = how.residual == "together" and len(terms) > 1
    halved = not how.double_rounding and not together and how.product_bits == WIDEST_PRODUCT
    for term in terms if halved else ():
        m, e = (node.arrays[f"{term}{key}"].astype(np.int64) for key in "me")
        full = m == MOST
        if full.any():
            found |= {f"{term}m": np.where(full, m >> 1, m), f"{term}e": e - full}
    if zero_point is not None:
        found["addend"] = np.array(zero_point, np.int64)
    return dict(sorted(found.items()))
