"""The kinds of causes: how likely each is beside others that explain as much, and what it means. docs/compare.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One alternative. `site` is where it would sit; `step` the step, operand, constant or `output` there."""

    kind: str
    site: str
    step: str
    text: str
    penalty: int = 0
    """Beside the kind's own: of what is fitted to the dump, or is rare within its kind."""

    @property
    def prior(self) -> int:
        """Smaller is simpler."""
        return KINDS[self.kind][0] + self.penalty

    def __str__(self) -> str:
        return f"{self.step}: {self.text}"


KINDS: dict[str, tuple[int, str]] = {
    "stale": (10, "the output, or an operand, is that of another image"),
    "constant": (11, "the output is stuck at one word, or one row of it repeats"),
    "rounding": (12, "a shift or division rounds by another rule, or twice; the rules are those of docs/numerics.md"),
    "overflow": (13, "wrap for saturate, or saturate for wrap"),
    "clamp": (14, "a clamp at -127 instead of -128, at 0, at one bit less, or a clamp that is missing"),
    "lanes": (15, "lanes of a word of 2, 4, 8 or 16 elements are exchanged, reversed or rotated"),
    "bytes": (15, "bytes or nibbles of an element are reversed"),
    "bits_reversed": (15, "bits of an element are reversed"),
    "axes": (16, "axes are permuted, in the same memory, or tiles taken for rows; an axis or all of it reversed"),
    "late": (16, "elements are shifted: one beat late or early"),
    "missing": (16, "a term or factor is missing: the bias, the zero point, the residual, a step"),
    "sign": (17, "a value is negated, or its magnitude is taken"),
    "unsigned": (17, "a two's complement operand is taken without a sign, or an unsigned one with it"),
    "shift": (18, "a shift goes further or less far, by one bit or two"),
    "doubled": (18, "a constant or a step counts twice"),
    "max": (16, "softmax or ShiftGELU without, or with another, row maximum"),
    "exchanged": (18, "two operands or constants are exchanged: scales of the residual, gain and bias, b and c"),
    "steps": (19, "an iteration has fewer or more steps, as LayerNorm's square root"),
    "multiplier_bits": (20, "constants have one or more bits less, cut off or rounded"),
    "width": (21, "an operand, accumulator or intermediate has a bit less than it needs; it wraps or saturates"),
    "neighbour": (22, "the constants of the next channel, of the one before, of the first for all, or in reverse"),
    "option": (23, "the method with another of its options"),
    "method": (24, "another method"),
    "beat": (25, "a beat is given twice, or left out"),
    "stuck_bit": (25, "a bit is stuck at 0 or 1, or inverted"),
    "offset": (26, "a constant is added to every element"),
    "other_constants": (27, "the constants, or the table, of another site"),
    "bypass": (28, "the operator is left out, or another tensor is given"),
    "region": (40, "the fault lies in one lane, one channel, one row: there every element has the same fault"),
}  # fmt: skip
"""Kind -> (prior, meaning)."""
