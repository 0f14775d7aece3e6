"""Dyadic requantization, fast: one pass over an accumulator, constants per channel or one, prepared once per node.

A term carries its rounding, whose constants `regular` makes for the formula of `kernels/rounding.py`. Every loop rounds
by that but those two that take any e: they round half to even, HAWQ-V3's mode. Datapaths of which neither holds, where
a word may be too narrow for instance, have the loop of `kernels/datapath.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.kernels.arith import INT64_MAX, INT64_MIN, doubled_high, kernel, rhe_product, rhe_shift, saturate
from intvit.kernels.border import SIGNED, border, reals, shown
from intvit.kernels.datapath import by_numerics, by_stages, one_by_stages, stages, words
from intvit.kernels.rounding import ADD, AT, HALF_EVEN, LIMIT, ROUNDINGS, E, M, Rounding, regular, round_shift
from intvit.spec.numerics import HAWQ, STORAGE_BITS, Numerics

Array = np.ndarray[Any, Any]
WIDE_LIMIT = 2**61
PUBLISHED_SATURATING_WIDTHS = (4, 8, 16, 32)


def dyadic(in_scale: Any, out_scale: Any, numerics: Numerics = HAWQ, x_max: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(m, e) int64 with `in_scale / float32(out_scale) = m / 2**e` to 31 bits, per channel if either scale is.

    m is the nearest integer to f * 2**31, ties away from zero, 2**30 <= |m| <= 2**31: both ends occur. A zero ratio
    gives m = 0. HAWQ-V3; docs/quantization.md, "Requantization".

    With other `numerics` |m| has their bits, 2**(p-1) <= |m| < 2**p, or fewer where e would leave their shifts or a
    product with |x| <= `x_max` its word; and IntvitError for a ratio that is too large for them, or negative where m
    has no sign.
    """
    ratio = _ratio(in_scale, out_scale)
    mantissa, exponent = np.frexp(ratio)
    if numerics.requantizing == HAWQ:
        return _nearest(mantissa * 2.0**31), 31 - exponent.astype(np.int64)
    precision = _precision(numerics, x_max)
    e = precision - exponent.astype(np.int64)
    e -= np.abs(_nearest(np.ldexp(ratio, e))) == 2**precision  # rounded up to the next power
    e = np.minimum(np.where(ratio == 0, max(0, numerics.shift_least), e), numerics.shift_most)
    m = _nearest(np.ldexp(ratio, e))
    for bad, rule in (
        (e < numerics.shift_least, f"must be below 2**{precision - numerics.shift_least}: the least shift is "
                                   f"{numerics.shift_least}"),
        ((m < 0) & (not numerics.multiplier_signed), "must not be negative, as the multiplier has no sign"),
        ((m == 0) & (ratio != 0), f"must be 2**-{numerics.shift_most + 1} at least: the largest shift is "
                                  f"{numerics.shift_most}"),
    ):  # fmt: skip
        if bad.any():
            raise IntvitError(f"requantize: ratio of scales {rule}, and is {ratio[bad][0]:g}")
    return m, e


def _precision(numerics: Numerics, x_max: int) -> int:
    """Bits of |m|: as many as there are, and as products with |x| <= x_max have room for."""
    room = numerics.product_bits - 2 - x_max.bit_length()  # and of what rounding adds
    if room < 1:
        raise IntvitError(f"requantize: product must have {x_max.bit_length() + 3} bits at least, as its x reaches "
                          f"{x_max}, and has {numerics.product_bits}")  # fmt: skip
    return min(numerics.precision, room)


def dyadic_together(
    in_scale: Any, residual_scale: Any, out_scale: Any, numerics: Numerics, x_max: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m, residual_m, e): multipliers of one e, of which the larger has all its bits; `x_max`: of both."""
    firsts, seconds = np.broadcast_arrays(_ratio(in_scale, out_scale), _ratio(residual_scale, out_scale))
    larger = np.maximum(np.abs(firsts), np.abs(seconds))
    e = dyadic(larger, 1.0, numerics, 2 * x_max)[1]
    m, residual_m = (_nearest(np.ldexp(ratio, e)) for ratio in (firsts, seconds))
    least, most = numerics.multipliers
    if min(m.min(), residual_m.min()) < least or max(m.max(), residual_m.max()) > most:
        raise IntvitError(f"requantize: ratios of scales must have multipliers in {least}..{most}, and have not")
    return m, residual_m, e


def _nearest(scaled: Array) -> Array:
    """The nearest integers, ties away from zero."""
    return np.copysign(np.floor(np.abs(scaled) + 0.5), scaled).astype(np.int64)


def _ratio(in_scale: Any, out_scale: Any) -> Array:
    """in_scale / float32(out_scale), (1,) or (C,)."""
    scales = np.atleast_1d(reals("requantize: input scale", in_scale))
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        target = np.float32(reals("requantize: output scale", out_scale)).astype(np.float64)
        ratio = scales / target if scales.size == 1 or target.size in (1, scales.size) else np.full(1, np.nan)
    if not np.isfinite(ratio).all() or not np.isfinite(target).all() or ratio.ndim > 1:
        raise IntvitError(
            "requantize: scales must be one number or one per channel, finite, and so their ratio to the output scale, "
            f"not {shown(in_scale)} to {shown(out_scale)}"
        )
    return np.asarray(ratio)


# -------------------------------------------------------------------------------------------- loops


@kernel
def multiplier(constants, j):
    """The multiplier of column j, below 2**31; as the compiler knows that, an element takes 0.57 ns instead of 0.72."""
    return np.int64(np.int32(constants[M, j]))


@border(x=f"{SIGNED} R C", constants="int64 5 M=C|1", out=f"{SIGNED} R C")
@kernel
def _one_term(x, constants, mask, low, high, plus, out):
    """What is rounded is cut to low..high, and then `plus` is added.

    |x| <= 2**31; or any int64 x if e <= 62 - bits: what lies beyond LIMIT saturates, wherever it lies.

    One constant stays in registers: 0.40 ns an element from int8 to int8, with four loads 0.57 (a Xeon with AVX-512).
    """
    if constants.shape[1] == 1:
        m, e, add, at = multiplier(constants, 0), constants[E, 0], constants[ADD, 0], constants[AT, 0]
        limit = constants[LIMIT, 0]
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                v = np.int64(x[i, j])
                if x.itemsize == 8:
                    v = min(max(v, -limit), limit)
                out[i, j] = min(max(round_shift(v * m, e, add, at, mask), low), high) + plus
        return
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = np.int64(x[i, j])
            if x.itemsize == 8:
                v = min(max(v, -constants[LIMIT, j]), constants[LIMIT, j])
            p = round_shift(v * multiplier(constants, j), constants[E, j], constants[ADD, j], constants[AT, j], mask)
            out[i, j] = min(max(p, low), high) + plus


@border(
    x="int8|int16|int32 R C", constants="int64 5 1", residual="int8|int16|int32 A C", others="int64 5 1",
    out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def _two_terms(x, constants, residual, others, mask, low, high, out):
    """Two terms, each with one constant, rounded and then added; the rows of the residual repeat."""
    m, e, add, at = multiplier(constants, 0), constants[E, 0], constants[ADD, 0], constants[AT, 0]
    n, f, plus, by = multiplier(others, 0), others[E, 0], others[ADD, 0], others[AT, 0]
    for i in range(x.shape[0]):
        k = i % residual.shape[0]
        for j in range(x.shape[1]):
            a = round_shift(np.int64(x[i, j]) * m, e, add, at, mask)
            b = round_shift(np.int64(residual[k, j]) * n, f, plus, by, mask)
            out[i, j] = min(max(a + b, low), high)


@border(x="int8|int16|int32 R C", constants="int64 5 1", addend="int8|int16|int32 A C", out=f"{SIGNED} R C")
@kernel
def _plus(x, constants, addend, mask, low, high, out):
    """As `_two_terms` where the second has ratio 1, as a constant that was rounded once: 0.55 ns instead of 0.63."""
    m, e, add, at = multiplier(constants, 0), constants[E, 0], constants[ADD, 0], constants[AT, 0]
    for i in range(x.shape[0]):
        k = i % addend.shape[0]
        for j in range(x.shape[1]):
            total = round_shift(np.int64(x[i, j]) * m, e, add, at, mask) + np.int64(addend[k, j])
            out[i, j] = min(max(total, low), high)


@border(x="int64 R C", constants="int64 5 C", out=f"{SIGNED} R C")
@kernel
def _wide_term(x, constants, mask, low, high, plus, out):
    """As `_one_term`, |x| < 2**61 and ratios m / 2**(e + 31), e >= 2.

    What is rounded are the upper bits of a product in two words.
    """
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            p = doubled_high(x[i, j], constants[M, j])
            p = round_shift(p, constants[E, j], constants[ADD, j], constants[AT, j], mask)
            out[i, j] = min(max(p, low), high) + plus


@border(x=f"{SIGNED} R C", out=f"{SIGNED} R C")
@kernel
def _clamp(x, low, high, plus, out):
    """As `_one_term`, with a ratio of 1, as after every LayerNorm of FQ-ViT.

    Nothing but saturation: 0.4 ns an element instead of 0.75.
    """
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = min(max(np.int64(x[i, j]), low), high) + plus


@border(x=f"{SIGNED} R C", m="int64 M=C|1", e="int64 M", out=f"{SIGNED} R C")
@kernel
def _any_term(x, m, e, bits, out):
    """Any x, |m| <= 2**31 and any e, half to even."""
    step = np.int64(m.shape[0] > 1)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = saturate(rounded(x, i, j, m[j * step], e[j * step]), bits)


@border(
    x=f"{SIGNED} R C", m="int64 M=C|1", e="int64 M", residual=f"{SIGNED} A C", residual_m="int64 N=C|1",
    residual_e="int64 N", out=f"{SIGNED} R C",
)  # fmt: skip
@kernel
def _any_two_terms(x, m, e, residual, residual_m, residual_e, bits, out):
    """Two terms as `_any_term` has one, each saturated at s64, and then their sum; the rows of the residual repeat."""
    step, residual_step = np.int64(m.shape[0] > 1), np.int64(residual_m.shape[0] > 1)
    for i in range(x.shape[0]):
        k = i % residual.shape[0]
        for j in range(x.shape[1]):
            n = j * residual_step
            a = rounded(x, i, j, m[j * step], e[j * step])
            b = rounded(residual, k, j, residual_m[n], residual_e[n])
            out[i, j] = saturate(add_saturating(a, b), bits)


@kernel
def rounded(x, i, j, m, e):
    """rhe(x[i, j] * m, 2**e), saturated at s64; the product of up to 32 bits fits one word, others take two."""
    if x.itemsize < 8:
        return rhe_shift(np.int64(x[i, j]) * m, e)
    return rhe_product(np.int64(x[i, j]), m, e)


@kernel
def add_saturating(a, b):
    """a + b, saturated at s64."""
    if b > 0:
        return a + b if a <= INT64_MAX - b else np.int64(INT64_MAX)
    return a + b if a >= INT64_MIN - b else np.int64(INT64_MIN)


# ------------------------------------------------------------------------------------------ prepared


@dataclass(frozen=True)
class Term:
    """A factor m / 2**e, or one per channel, and what the loops make of it."""

    m: Array
    """(1,) or (C,) int64, |m| <= 2**31."""
    e: Array
    """As many int64, any number; a negative one multiplies."""
    rounding: Rounding = HALF_EVEN

    def __post_init__(self) -> None:
        if self.m.dtype != np.int64 or self.e.dtype != np.int64:
            raise IntvitError(f"requantize: m and e must be int64, not {self.m.dtype} and {self.e.dtype}")
        if self.m.ndim != 1 or self.m.shape != self.e.shape or not self.m.size:
            raise IntvitError(f"requantize: m and e must be one or one per channel, not {self.m.shape}, {self.e.shape}")
        if self.m.min() < -(2**31) or self.m.max() > 2**31:  # the loops keep 32 bits of them
            raise IntvitError(f"requantize: m must lie in -2**31..2**31, not {self.m.min()}..{self.m.max()}")

    @cached_property
    def is_one(self) -> bool:
        return bool(np.all((self.m == 1 << 30) & (self.e == 30)))

    @cached_property
    def constants(self) -> Array | None:
        """For `_one_term` and `_two_terms`; None if some e leaves 1..62."""
        return regular(self.m, self.e, self.rounding)

    @cached_property
    def last_shift(self) -> int:
        """The largest e of the constants."""
        assert self.constants is not None
        return int(self.constants[E].max())

    @cached_property
    def wide(self) -> Array | None:
        """For `_wide_term`; None if some e leaves 33..93."""
        found = regular(self.m, self.e - 31, self.rounding)
        return None if found is None or found[E].min() < 2 else found

    def check(self, columns: int) -> None:
        """Raise IntvitError if there is neither one factor nor one per column."""
        if len(self.m) not in (1, columns):
            raise IntvitError(f"requantize: m and e must be one or {columns}, not {self.m.shape}")


@dataclass(frozen=True)
class Requantize:
    """`saturate(rhe(x*m, 2**e) [+ rhe(residual*m', 2**e')])`, prepared. One value serves every thread."""

    term: Term
    other: Term | None
    bits: int
    kind: Any
    """dtype of the results."""
    constant: Array | None = None
    """The residual, if it is the same for every x."""
    numerics: Numerics = HAWQ
    addend: Array | None = None
    """int64, added to what was rounded."""
    signed: bool = True
    """Whether the results are."""

    def __post_init__(self) -> None:
        rounding = ROUNDINGS.get(self.numerics.rounding, HALF_EVEN)
        if any(term.rounding != rounding for term in (self.term, self.other) if term is not None):
            raise IntvitError(f"requantize: terms must round as the numerics say, {self.numerics.rounding}")

    def run(self, x: Array, residual: Array | None = None) -> Array:
        """x (..., C) signed; a residual is broadcast to it. Empty x give empty results."""
        lead, columns = math.prod(x.shape[:-1]), x.shape[-1]
        residual = self.constant if residual is None else residual
        if (residual is None) != (self.other is None):
            raise IntvitError("requantize: a residual must come with its m and e, and they with it")
        self.term.check(columns)
        if self.other is not None:
            self.other.check(columns)
        rows, out = _rows(x, lead), np.empty((lead, columns), self.kind)
        others = None
        if residual is not None and not self.zero_point:
            others = _repeating(residual, x.shape)
        if not self.is_plain(rows.itemsize) or not (others is None or self.is_plain(others.itemsize)):
            self._any(rows, others, out, x.shape)
        elif self.other is None or others is None:
            self._one(rows, out)
        else:
            self._two(rows, others, self.other, out)
        return out.reshape(x.shape)

    def is_plain(self, itemsize: int) -> bool:
        """Whether the fast loops give what the numerics say, for all x of `itemsize` bytes."""
        how = self.numerics
        if how == HAWQ and self.addend is None and self.signed:
            return True
        if how.double_rounding or how.residual != "each" or how.output_overflow != "saturate" or self.bits > 32:
            return False
        if how.rounding not in ROUNDINGS or self.addend is not None or not self.signed:
            return False
        terms = [term for term in (self.term, self.other) if term is not None]
        return itemsize < 8 and all(term.constants is not None and self._holds(term, 8 * itemsize) for term in terms)

    def _holds(self, term: Term, bits: int) -> bool:
        """Whether no word of a term is narrowed, for x of `bits` bits."""
        most, shift = int(np.abs(term.m).max()) << (bits - 1), int(term.e.min())
        fits = most < 2 ** (self.numerics.product_bits - 1)
        return fits and 2 * ((most >> shift) + 1) + abs(self.zero_point) < 2 ** (self.numerics.rounded_bits - 1)

    def _any(self, rows: Array, residual: Array | None, out: Array, shape: tuple[int, ...]) -> None:
        """By the loop of all numerics."""
        term, columns = self.term, rows.shape[1]
        wide = residual is not None and self.numerics.residual == "together"
        for array in (rows, residual) if wide else ():
            if array is not None and array.itemsize == 8 and not _below(array, 2**62):
                raise IntvitError("requantize: what is multiplied and added together must lie within +-2**62")
        addend = np.full((1, columns), self.zero_point)
        if self.addend is not None:
            addend = _repeating(self.addend, shape)
        none = np.zeros((1, columns), np.int8)
        if residual is None and self.addend is None and self._staged(rows, None):
            one_by_stages(rows, term.m, stages(term.e, self.numerics),
                          words(self.numerics, self.bits, signed=self.signed), self.zero_point, out)  # fmt: skip
            return
        if self._staged(rows, residual):
            other = self.other if self.other is not None and residual is not None else term
            by_stages(rows, term.m, stages(term.e, self.numerics), none if residual is None else residual, other.m,
                      stages(other.e, self.numerics), addend, words(self.numerics, self.bits, signed=self.signed),
                      residual is not None, out)  # fmt: skip
            return
        other = self.other if self.other is not None and residual is not None else term
        by_numerics(rows, term.m, term.e, none if residual is None else residual, other.m, other.e, addend,
                    words(self.numerics, self.bits, signed=self.signed), residual is not None, out)  # fmt: skip

    def _staged(self, rows: Array, residual: Array | None) -> bool:
        """Whether products of these values pass their words as they are, and every shift is one of 1..62."""
        most = 0
        for term, values in ((self.term, rows), (self.other, residual)):
            if term is None or values is None:
                continue
            if values.itemsize == 8 or term.e.min() < 1 or term.e.max() > 62:
                return False
            reach = max(-int(values.min()), int(values.max())) * int(np.abs(term.m).max()) if values.size else 0
            most = most + reach if self.numerics.residual == "together" else max(most, reach)
        return most <= 2**62 and most < 2 ** (self.numerics.product_bits - 1)

    @cached_property
    def limits(self) -> tuple[int, int]:
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    @cached_property
    def zero_point(self) -> int:
        """The second term, if it is one constant for all that leaves room in 64 bits; else 0."""
        if self.constant is None or self.other is None or not self.other.is_one or self.bits > 32:
            return 0
        same = self.constant.size == 1 and self.constant.itemsize < 8
        return int(self.constant.reshape(-1)[0]) if same else 0

    def _one(self, rows: Array, out: Array) -> None:
        term, narrow, plus = self.term, rows.itemsize < 8, self.zero_point
        limits = (*(limit - plus for limit in self.limits), plus)
        if term.is_one:
            _clamp(rows, *limits, out)
        elif term.constants is not None and (narrow or term.last_shift <= 62 - self.bits):
            _one_term(rows, term.constants, term.rounding.mask, *limits, out)
        elif not narrow and term.wide is not None and _below(rows, WIDE_LIMIT):
            constants = np.ascontiguousarray(np.broadcast_to(term.wide, (len(term.wide), rows.shape[1])))
            _wide_term(rows, constants, term.rounding.mask, *limits, out)
        elif term.rounding != HALF_EVEN:
            self._any(rows, None, out, rows.shape)
        elif plus and self.other is not None:
            addend = np.full((1, rows.shape[1]), plus)
            _any_two_terms(rows, term.m, term.e, addend, self.other.m, self.other.e, self.bits, out)
        else:
            _any_term(rows, term.m, term.e, self.bits, out)

    def _two(self, rows: Array, residual: Array, other: Term, out: Array) -> None:
        first, second = self.term.constants, other.constants
        narrow = rows.itemsize < 8 and residual.itemsize < 8 and self.term.rounding == other.rounding
        if narrow and first is not None and second is not None and first.shape[1] == second.shape[1] == 1:
            mask, limits = self.term.rounding.mask, self.limits
            if other.is_one:
                _plus(rows, first, residual, mask, *limits, out)
            else:
                _two_terms(rows, first, residual, second, mask, *limits, out)
        elif {self.term.rounding, other.rounding} != {HALF_EVEN}:
            self._any(rows, residual, out, rows.shape)
        else:
            _any_two_terms(rows, self.term.m, self.term.e, residual, other.m, other.e, self.bits, out)


def prepare_requantize(
    m: Array,
    e: Array,
    bits: int | None,
    *,
    residual_m: Array | None = None,
    residual_e: Array | None = None,
    constant: Array | None = None,
    out_dtype: Any = np.int64,
    numerics: Numerics = HAWQ,
    addend: Array | None = None,
    signed: bool = True,
) -> Requantize:
    """What `apply_requantize` computes, for any x; `constant` is a residual that is requantized here, once."""
    width = STORAGE_BITS if bits is None else bits
    if 8 * np.dtype(out_dtype).itemsize < width + (not signed):
        raise IntvitError(f"requantize: {np.dtype(out_dtype)} must hold {width} bits, and does not")
    numerics = numerics.requantizing
    rounding = ROUNDINGS.get(numerics.rounding, HALF_EVEN)
    extra: dict[str, Any] = {"numerics": numerics, "addend": addend, "signed": signed}
    if residual_m is None or residual_e is None:
        return Requantize(Term(m, e, rounding), None, width, out_dtype, **extra)
    other = Term(residual_m, residual_e, rounding)
    added = constant is not None and is_addend(constant, residual_m, residual_e)
    if numerics.residual == "together" and not added and np.any(e != residual_e):
        raise IntvitError("requantize: products that are added together must have one e, and have not")
    if constant is None or (numerics != HAWQ and not added):
        return Requantize(Term(m, e, rounding), other, width, out_dtype, constant, **extra)
    columns = max((*constant.shape[-1:], *other.m.shape))
    ready = Requantize(Term(residual_m, residual_e), None, 64, np.int64).run(
        _broadcast(constant, (*constant.shape[:-1], columns))
    )
    lead = next((i for i, n in enumerate(ready.shape[:-1]) if n != 1), ready.ndim - 1)
    ready = ready.reshape(ready.shape[lead:])  # as few rows as repeat
    narrow = ready.astype(np.int32)
    ready = narrow if np.array_equal(narrow, ready) else ready
    return Requantize(Term(m, e, rounding), Term(np.array([1 << 30]), np.array([30]), rounding), width, out_dtype,
                      ready, **extra)  # fmt: skip


def is_addend(constant: Array, m: Array, e: Array) -> bool:
    """True if a constant residual is one number, times 1: a zero point, which nothing multiplies or rounds."""
    one = m.size == 1 and e.size == 1 and int(e[0]) >= 0 and int(m[0]) == 1 << int(e[0])
    return one and bool(np.all(constant == constant.reshape(-1)[0]))


def apply_requantize(
    x: Array,
    m: Array,
    e: Array,
    bits: int | None,
    *,
    residual: Array | None = None,
    residual_m: Array | None = None,
    residual_e: Array | None = None,
    out_dtype: Any = np.int64,
    **datapath: Any,
) -> Array:
    """`saturate(rhe(x*m, 2**e) [+ rhe(residual*m', 2**e')])` over (..., C); m, e of length 1 or C.

    `datapath`: numerics, addend and signed of `prepare_requantize`. Saturates at every width; `bits` None at s64 only.
    The result has `out_dtype`, which must hold `bits`. Integers are signed: of 32 unsigned bits no fast form could hold
    all.
    """
    prepared = prepare_requantize(
        m, e, bits, residual_m=residual_m, residual_e=residual_e, out_dtype=out_dtype, **datapath
    )
    return prepared.run(x if x.ndim else x.reshape(1), residual).reshape(x.shape)


def _rows(x: Array, lead: int) -> Array:
    if x.dtype.kind != "i":
        raise IntvitError(f"requantize: x must be signed, not {x.dtype}")
    return np.ascontiguousarray(x.reshape(lead, x.shape[-1]))


def _broadcast(residual: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(residual, shape)
    except ValueError:
        raise IntvitError(f"requantize: residual must broadcast to {shape}, and {residual.shape} does not") from None


def _repeating(residual: Array, shape: tuple[int, ...]) -> Array:
    """Rows of a residual: as they are if they are the last axes of `shape`, else broadcast to it."""
    if not residual.ndim or residual.shape != shape[len(shape) - residual.ndim :]:
        residual = _broadcast(residual, shape)
    return _rows(residual, math.prod(residual.shape[:-1]))


def _below(rows: Array, limit: int) -> bool:
    return not rows.size or (int(rows.min()) > -limit and int(rows.max()) < limit)
