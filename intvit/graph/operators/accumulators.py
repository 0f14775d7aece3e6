"""What a node says of its numerics, and the sums of its products where their words may be too narrow for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from intvit.errors import Infeasible, IntvitError
from intvit.graph.inttypes import IntType, storage
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators import checks
from intvit.graph.operators.kind import Evaluate
from intvit.graph.ranges import accumulator_type
from intvit.kernels.accumulators import fitting, follow, saturating
from intvit.spec.accumulators import accumulate
from intvit.spec.numerics import HAWQ, Numerics, build_numerics

if TYPE_CHECKING:
    from intvit.lowering.context import Context

NUMERICS = "numerics"
"""The attribute of a node: what is not as usual."""


@cache
def _built(text: str) -> Numerics:
    found = build_numerics(json.loads(text))
    if json.dumps(found.stated, sort_keys=True) != text:
        raise IntvitError(f"numerics: must be what is not as usual, {found.stated}, not {text:.80}")
    return found


def numerics_of(node: Node) -> Numerics:
    """IntvitError for what are none, or those as usual."""
    if NUMERICS not in node.attrs:
        return HAWQ
    try:
        text = json.dumps(node.attrs[NUMERICS], sort_keys=True)
        found = _built(text)
    except (TypeError, ValueError) as error:
        raise IntvitError(f"{node.name}: {error}") from None
    if found == HAWQ:
        raise IntvitError(f"{node.name}: numerics must not be stated where they are as usual")
    return found


def attributes(node: Node, **types: type) -> Numerics:
    """`checks.attributes`, beside numerics that may be there."""
    if NUMERICS in node.attrs:
        types = {**types, NUMERICS: dict}
    checks.attributes(node, **types)
    return numerics_of(node)


def stated(numerics: Numerics) -> dict[str, Any]:
    """The attribute, if there is something to say."""
    return {NUMERICS: numerics.stated} if numerics != HAWQ else {}


def accumulating(numerics: Numerics) -> Numerics:
    """Only what is said of accumulators."""
    return Numerics(accumulator_bits=numerics.accumulator_bits, accumulator=numerics.accumulator)


def lowered(context: Context, node: Node, bound: int) -> tuple[dict[str, Any], IntType, int | None]:
    """(attributes, type, bound) of the accumulator of a node whose sums are at most `bound`."""
    how = accumulating(context.recipe.numerics_at(node.op, node.name))
    bits = how.accumulator_bits
    if bits is not None and how.accumulator == "prove" and bound >= 1 << (bits - 1):
        blamed = context.softmax_behind(context.values[node.inputs[0]]) or node.name
        raise Infeasible(
            blamed, f"accumulator of {node.name} must be proven to fit {bits} bits, and its sums reach {bound}, "
            f"{bound.bit_length() + 1} bits"
        )  # fmt: skip
    return stated(how), *word_of(how, bound)


def word_of(how: Numerics, bound: int) -> tuple[IntType, int | None]:
    """(type, bound) of an accumulator of sums of at most `bound`: no bound where the policy may act."""
    bits = how.accumulator_bits
    if bits is None:
        return accumulator_type(bound), bound
    if bound < 1 << (bits - 1):
        return IntType(min(bits, accumulator_type(bound).bits)), bound
    return IntType(bits), None


def proven(context: Context, node: Node, bound: int) -> None:
    """Infeasible if sums of at most `bound`, of an operator without a policy, may leave a stated accumulator."""
    bits = context.recipe.numerics_at(node.op, node.name).accumulator_bits
    if bits is not None and bound >= 1 << (bits - 1):
        raise Infeasible(node.name, f"accumulator of a {node.op} must be proven to fit {bits} bits, and its sums reach "
                         f"{bound}, {bound.bit_length() + 1} bits")  # fmt: skip


def may_act(node: Node, bound: int) -> bool:
    """Whether a sum of at most `bound` may leave the accumulator."""
    bits = numerics_of(node).accumulator_bits
    return bits is not None and bound >= 1 << (bits - 1)


def check(node: Node, output: Tensor, bound: int) -> None:
    """The attributes are numerics of accumulators at most, and the output holds what they leave of the sums."""
    how = attributes(node)
    if how != accumulating(how):
        raise IntvitError(f"{node.name}: numerics must be of accumulators, not {how.stated}")
    bits = how.accumulator_bits
    if bits is None or bound < 1 << (bits - 1):
        checks.holds(node, output, bound)
        return
    if how.accumulator == "prove":
        raise IntvitError(f"{node.name}: accumulator must be proven to fit {bits} bits, and its sums reach {bound}")
    if output.dtype.bits != bits or output.bound is not None:
        raise IntvitError(f"{node.name}: output must be s{bits} without a bound, not {output.dtype} {output.bound}")


def by_kernel(node: Node, exact: Evaluate, factors: Callable[[Sequence[Array]], Any],
              bias: Array | None = None) -> Evaluate:  # fmt: skip
    """Sums under the node's policy. factors(values): (a (..., R, K), b (..., K, C)), of which they are the products."""
    how = numerics_of(node)
    bits, policy = how.accumulator_bits, how.accumulator
    assert bits is not None

    def run(values: Sequence[Array]) -> Array:
        if policy == "saturate":
            a, b = factors(values)
            return saturating(a, b, bias, bits)
        return fitting(exact(values), bits, policy)

    return run


def fused(node: Node, exact: Evaluate, factors: Callable[[Sequence[Array]], Any], output: Tensor, longest: int = 0,
          bounded: Callable[[Sequence[Array], int, Array], Array] | None = None) -> Evaluate:  # fmt: skip
    """As `by_kernel`, stored in the integers of `output`, where int32 holds the sums, without a bias, of a fast path.

    factors(values): (a, lift, b) of `kernels.accumulators.follow`, which takes `longest` and bounded(values) as well.
    """
    how = numerics_of(node)
    bits, policy = how.accumulator_bits, how.accumulator
    assert bits is not None
    bias, kind = node.arrays.get("bias", np.zeros(output.shape[-1], np.int64)), storage(output.dtype)

    def run(values: Sequence[Array]) -> Array:
        if policy == "saturate":
            a, lift, b = factors(values)
            known = partial(bounded, values) if bounded else None
            found = follow(a, lift, b, bias, bits, partial(exact, values), longest, known)
        else:
            found = fitting(exact(values) + bias.astype(np.int32), bits, policy)
        return found.astype(kind, copy=False)

    return run


def by_spec(node: Node, factors: Callable[[Sequence[Array]], Any], bias: Array | None = None) -> Any:
    """As `by_kernel`, by the specification."""
    how = numerics_of(node)
    bits = how.accumulator_bits
    assert bits is not None

    def run(values: Sequence[Array]) -> Array:
        a, b = factors(values)
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(-1, *a.shape[-2:]).tolist()
        right = np.broadcast_to(b, (*lead, *b.shape[-2:])).reshape(-1, *b.shape[-2:]).tolist()
        offset = [0] * b.shape[-1] if bias is None else bias.tolist()
        found = np.empty((len(left), a.shape[-2], b.shape[-1]), np.int64)
        for n, (rows, matrix) in enumerate(zip(left, right, strict=True)):
            columns = list(zip(*matrix, strict=True))
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    products = [x * w for x, w in zip(row, column, strict=True)]
                    try:
                        found[n, i, j] = accumulate(products, offset[j], bits, how.accumulator)
                    except OverflowError as error:
                        raise IntvitError(f"accumulator: {error}, at {[i, j]} of matrix {n}") from None
        return found.reshape(*lead, a.shape[-2], b.shape[-1])

    return run
