"""Intermediates of the specification by name: values for debug vectors, widths for registers.

`tap("sum", total)` gives its value back and shows it to whoever listens. Nobody does unless `intermediates` or
`listening` asked for it, in the same thread; then every value is noted under its name, row elements in their order.
`NAMES` lists the names that the methods of this package use. They are part of the interface: a name never changes its
meaning, and new ones may join. A name that a row does not come by is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Values = list[int | None]
"""Of a masked or undefined element None: no signal of hardware has to agree with it."""
Taps = dict[str, Values]
T = TypeVar("T")

OUTPUT = "y"
NAMES = {
    "softmax": {
        "x_max": "largest input that is not masked",
        "delta": "x - x_max",
        "argument": "the exponent's argument: delta (I-ViT: times 1.4375), not below n * x0",
        "quotient": "argument // x0: how often the exponential is halved, the count of its shift",
        "remainder": "argument - x0 * quotient: x0 < remainder <= 0",
        "polynomial": "I-BERT's second order polynomial of the remainder",
        "exp": "the exponential",
        "exp16": "I-BERT: exp requantized to 16 bits",
        "sum": "sum of the exponentials, before any clamp",
        "factor": "the reciprocal of the sum, as an integer",
        "product": "exponential times factor",
        "ratio": "FQ-ViT: sum over exp, rounded; none where exp is 0",
    },
    "gelu": {
        "x_max": "largest input of the token",
        "delta": "x - x_max, and at the end 0 - x_max",
        "argument": "delta times 1.4375, not below n * x0; C + 1 elements",
        "quotient": "argument // x0, negative where the argument is positive; C + 1 elements",
        "remainder": "argument - x0 * quotient; C + 1 elements",
        "exp": "the exponential; the last of C + 1 belongs to 0 - x_max",
        "sum": "exp + the last exp, before any clamp",
        "factor": "the reciprocal of the sum, as an integer",
        "product": "exp times factor",
        "sigmoid": "product >> 24: sigmoid(1.702 x) in steps of 2**-7",
        "clipped": "I-BERT: min(abs(x), -b)",
        "polynomial": "I-BERT: (clipped + b)**2 + c",
        "erf": "I-BERT: the polynomial with the sign of x, >> n",
        "gate": "I-BERT: erf + shift, what x is multiplied by",
    },
    "layernorm": {
        "scaled": "FQ-ViT: x * factor",
        "sum": "sum of the row",
        "square_sum": "FQ-ViT: sum of scaled**2",
        "mean": "sum / C, rounded",
        "delta": "x - mean",
        "shifted": "I-BERT: delta >> shift",
        "variance": "sum of delta**2 (I-BERT: of shifted**2); FQ-ViT: C * square_sum - sum**2",
        "step": "I-ViT: the ten iterates of the square root",
        "aligned": "FQ-ViT: variance * 2**even, in 2**60 .. 2**62",
        "root": "square root of the variance (FQ-ViT: of aligned, floor)",
        "fraction": "FQ-ViT: what the root lacks, in steps of 2**-30",
        "reciprocal": "FQ-ViT: 2**61 // root",
        "correction": "FQ-ViT: what one Newton step adds to reciprocal * 2**30",
        "inverse": "FQ-ViT: 1 / sqrt(variance) = inverse / 2**inverse_exp",
        "inverse_exp": "FQ-ViT: its exponent",
        "factor": "the reciprocal of the root, as an integer",
        "product": "delta * factor; FQ-ViT: sign * multiplier * scaled",
        "normalized": "product >> 1 (in 32 bits: halved toward zero)",
        "slope": "FQ-ViT: leading bits of A = abs(gamma) * C / (sqrt(variance) * out_scale)",
        "shift": "FQ-ViT: N, what the last rounding shifts",
        "multiplier": "FQ-ViT: M, the leading 8 bits of A",
        "beta_term": "FQ-ViT: beta / out_scale, N bits and guard bits behind the point",
        "mean_term": "FQ-ViT: what the mean takes away, in the same steps",
        "offset": "FQ-ViT: B, beta_term - mean_term rounded to N bits behind the point",
        "total": "FQ-ViT: product + offset",
    },
    "requantize": {
        "product": "x * m",
        "rounded": "product / 2**e, rounded half to even, before any saturation",
        "residual_product": "residual * residual_m",
        "residual_rounded": "residual_product / 2**residual_e, rounded half to even",
        "total": "the sum of the two rounded terms, before the last saturation",
    },
    "matmul": {
        "sum": "sum of products, without the bias",
        "weight": "log2_matmul: 2**(15 - code), 0 for code -1",
    },
    "mean": {"sum": "sum of the values"},
}
"""Operator -> name -> meaning; every operator has `y` as well, its output."""

_taps: ContextVar[Taps | None] = ContextVar("intvit.spec.taps", default=None)


def tap(name: str, value: T) -> T:
    """`value`, an integer or lists of them, noted under `name` if this thread listens; it is never changed.

    >>> tap("sum", 7)
    7
    """
    taps = _taps.get()
    if taps is not None:
        taps.setdefault(name, []).extend(_flat(value))
    return value


@contextmanager
def listening() -> Iterator[Taps]:
    """A dictionary that fills with what this thread taps inside the block: name -> values in the order of computing.

    Matrices are flattened row by row. Several calls follow one another under the same names. An inner block takes what
    is tapped inside it from the outer one.

    >>> with listening() as taps:
    ...     total = tap("sum", 3) + tap("sum", 4)
    >>> total, taps
    (7, {'sum': [3, 4]})
    """
    taps: Taps = {}
    token = _taps.set(taps)
    try:
        yield taps
    finally:
        _taps.reset(token)


def intermediates(function: Callable[..., Any], *args: Any, **options: Any) -> Taps:
    """Every intermediate of one call of a function of the specification, and its result under `y`.

    >>> from intvit.spec.pool import mean
    >>> intermediates(mean, [3, 4, 4])
    {'sum': [11], 'y': [4]}

    Raises what the function raises.
    """
    with listening() as taps:
        result = function(*args, **options)
    taps[OUTPUT] = _flat(result)
    return taps


def integer_type(values: Values) -> str:
    """The narrowest type that holds all of them: `u<bits>`, or `s<bits>` where one is negative; None counts as nothing.

    >>> integer_type([0, 255]), integer_type([-1, 255]), integer_type([0]), integer_type([None])
    ('u8', 's9', 'u1', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    if low >= 0:
        return f"u{max(high.bit_length(), 1)}"
    return f"s{max(high.bit_length(), (-1 - low).bit_length()) + 1}"


def listing(taps: Taps) -> str:
    """One line for each name: name, type and values, as the worked rows of docs/quantization.md show them.

    >>> print(listing({"delta": [-28, None, 0], "sum": [11]}))
    delta  s6  -28 - 0
    sum    u4  11
    """
    types = {name: integer_type(values) for name, values in taps.items()}
    wide = max(map(len, taps), default=0)
    kind = max(map(len, types.values()), default=0)
    return "\n".join(
        f"{name:{wide}}  {types[name]:{kind}}  {' '.join('-' if v is None else str(v) for v in values)}"
        for name, values in taps.items()
    )


def _flat(value: Any) -> Values:
    if isinstance(value, (list, tuple)):
        return [element for part in value for element in _flat(part)]
    return [value]
