"""What is proven of a graph, as values: intervals of signals, ties of roundings, clamps, and notes for 32-bit words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intvit.proofs.intervals import Box, Interval

EXACT, BOUND, DECLARED = "exact", "bound", "declared"
"""Of an interval: both ends are attained, for operands that range over their intervals; it holds every value; it is
what the graph declares, as no rule for the method is known here."""
NEVER, CAN, OPEN = "never", "can", "not excluded"
"""Whether a clamp acts: for no input; for the input of the witness; the bound does not exclude it."""


class NotProven(Exception):
    """No rule holds for these constants: the reason."""


@dataclass(frozen=True)
class Claim:
    """The signal `name` of the operator `site` lies in `interval`. `declared`: width of the tensor's type, if any.

    `witness`: operands that attain the ends, JSON values. `observed`: what data showed.
    """

    site: str
    operator: str
    name: str
    interval: Interval
    how: str
    declared: int | None = None
    witness: Mapping[str, Any] | None = None
    observed: Interval | None = None

    @property
    def bits(self) -> int:
        """The least two's complement width."""
        return self.interval.bits

    @property
    def slack(self) -> int | None:
        return None if self.declared is None else self.declared - self.bits


@dataclass(frozen=True)
class Tie:
    """Whether a rounding half to even meets a half, where it matters which way it goes.

    `reachable` of `channels` constants have an operand in its interval that ties so that half_even, half_up and
    half_away do not all give one code; None where that is not decided, for the reason in `why`. `witness`: channel, the
    operand of the least magnitude.
    """

    site: str
    operator: str
    name: str
    channels: int
    reachable: int | None
    witness: tuple[int, int] | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        return "possible" if self.reachable is None else "reachable" if self.reachable else "no tie reachable"


@dataclass(frozen=True)
class Clamp:
    """Whether a saturation, clamp or wrap acts: `interval` of the value before it, `limits` of what passes as it is."""

    site: str
    operator: str
    name: str
    interval: Interval
    limits: Interval
    acts: str
    witness: str = ""


@dataclass(frozen=True)
class Note:
    """What hardware or C of 32 bits must know."""

    site: str
    operator: str
    text: str


@dataclass
class Facts:
    """What the rules of one operator found; `y` its output's box, `row_sum` a bound of the sum of an output's row."""

    signals: dict[str, tuple[Interval, str]] = field(default_factory=dict)
    y: Box | None = None
    y_how: str = BOUND
    row_sum: int | None = None
    ties: list[tuple[str, int, int | None, tuple[int, int] | None, str]] = field(default_factory=list)
    clamps: list[tuple[str, Interval, Interval, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    witnesses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def exact(self, name: str, interval: Interval) -> Interval:
        self.signals[name] = interval, EXACT
        return interval

    def bound(self, name: str, interval: Interval) -> Interval:
        self.signals[name] = interval, BOUND
        return interval

    def clamp(self, name: str, interval: Interval, limits: Interval, exact: bool, witness: str = "") -> Interval:
        """The interval behind a clamp."""
        acts = NEVER if interval in limits else CAN if exact else OPEN
        self.clamps.append((name, interval, limits, acts, witness if acts == CAN else ""))
        ends = (max(limits.low, min(limits.high, end)) for end in (interval.low, interval.high))
        return Interval(*ends)

    def wrap(self, name: str, interval: Interval, bits: int = 32) -> Interval:
        """The interval behind a two's complement word."""
        found = interval.wrapped(bits)
        self.clamps.append((f"{name} wraps", interval, found, NEVER if interval == found else OPEN, ""))
        return found


@dataclass(frozen=True)
class Proof:
    """Everything that is proven of a graph, in the order of its nodes."""

    graph_hash: str
    claims: tuple[Claim, ...]
    ties: tuple[Tie, ...]
    clamps: tuple[Clamp, ...]
    notes: tuple[Note, ...]
    unproven: Mapping[str, str]
    """Site -> why nothing is proven of its intermediates; its output is taken as declared."""
    boxes: Mapping[str, Box]
    """Tensor -> its box."""
