"""Operator: what is known of one kind of operator, in float graphs and in integer ones. A frozen value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intvit.errors import IntvitError
from intvit.graph.ir import Array, Node, Tensor

if TYPE_CHECKING:
    from intvit.engine.plan import Planner, Step
    from intvit.floats.importers.onnx import Reader
    from intvit.floats.importers.views import Value, Writer
    from intvit.lowering.context import Context

BACKENDS = ("kernel", "spec")
Evaluate = Callable[[Sequence[Array]], Array]
"""Batched inputs (B, ...) to the batched output."""
Prepare = Callable[[Node, Sequence[Tensor], Tensor], Evaluate]
"""A node, its inputs and its output -> what evaluates it; constants are laid out once, there."""
Read = Callable[["Reader", Any], None]
"""Appends what an ONNX node of the canonical form is in a float graph."""
Rewrite = Callable[["Writer", Any, "list[Value]", "dict[str, Any]"], "Value"]
"""(writer, ONNX node of a foreign graph, its inputs, its attributes) -> its output, written in the canonical form."""


def checked_backend(backend: object) -> str:
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise IntvitError(f"backend: must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return backend


@dataclass(frozen=True)
class Pointwise:
    """A function of one activation, and the attributes of the canonical ONNX node that computes it."""

    function: Callable[[Array], Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """One kind of operator. What it has not, as a float operator a backend, it leaves out.

    In a float graph:
    reads: ONNX operator of the canonical form -> how such a node is read. `function`: where ONNX has no such operator,
        the text of a function of the domain `intvit` that the file then carries.
    rewrites: ONNX operator of foreign graphs (`com.microsoft.Gelu`: of that domain) -> how it is rewritten.
        `pointwise`: functions of one activation by which a chain of arithmetic is recognised.
    lower(context, node): appends its integer form; None for what only integer graphs have.

    In an integer graph:
    check(node, inputs, output): IntvitError unless shapes, constants and bounds are as the integer form needs them.
    kernel, spec: the two backends. fuse(planner, node): a faster step that covers this node and maybe some after it.
    """

    name: str
    reads: Mapping[str, Read] = field(default_factory=dict)
    function: str = ""
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)
    pointwise: tuple[Pointwise, ...] = ()
    activations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Names of timm and transformers for it as an activation -> attributes of the canonical ONNX node."""
    lower: Callable[[Context, Node], None] | None = None
    check: Callable[[Node, Sequence[Tensor], Tensor], None] | None = None
    kernel: Prepare | None = None
    spec: Prepare | None = None
    fuse: Callable[[Planner, Node], Step | None] | None = None
    product: bool = False
    """It multiplies its inputs, as 8-bit integers at most."""
    narrow_input: bool = False
    """Its input is as narrow as the operand of a product."""
    per_channel: bool = False
    """Its raw output has a scale per channel, so that it must be requantized before channels move."""
    self_quantizing: bool = False
    """It requantizes its operands on the way in, so that its output is already narrow."""
    rounded_output: bool = False
    """Its output gets a quantizer even as the last of a graph."""
    still: Callable[[Node], bool] = lambda node: False
    """True for a node that moves no bit: quantizers are looked for through it."""
    log2_inputs: int = 0
    """How many of its inputs, from the first on, are log2 codes; -1: any."""
    takes: frozenset[str] = frozenset()
    """`zero_point` and `factor`, if its inputs may have one."""
    facts: tuple[str, ...] | None = None
    """Of a kind whose integer forms are the methods of the registry: what a lowering tells of a site beside the scale
    of its input; a method's `lower` takes what it names."""
    row_inputs: int = 0
    """So many of its inputs, from the first on, decide a row of the output (axis -2) by the same row alone, beside
    constants and all of the other inputs. 0: it does not go by rows."""
    masked: bool = False
    """Its methods take a mask."""
    statistic: Callable[[Array], float] | None = None
    """What calibration notes of its float64 input rows (R, C), in real units squared; the largest is kept."""
