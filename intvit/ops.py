"""Integer operators: the public functions, one signature for both backends.

Each is a method's `lower` (scales to integer constants, the only floats) followed by its integer kernel, or by its
scalar spec with `backend="spec"`. Inputs may have any integer dtype, byte order, strides and leading shape; uint64 must
fit int64, and bools are no integers. Reductions run over the last axis. Outputs are int64; an input without elements
gives an output without elements. `real = y_int * out_scale`; out_scale is a float, or float64 (C,) per channel.

`params`, the method's own parameter class (`intvit.spec.gelu.IbertGelu`, ...), stands for an accelerator with constants
of its own: it takes the place of scales, facts and options, none of which may then be given, and out_scale is None, as
what those integers stand for is known to their owner alone.

What is outside a limit is refused by an IntvitError. A kernel has limits that its spec does not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from intvit.errors import IntvitError, reading
from intvit.graph import operators
from intvit.graph.operators.kind import checked_backend
from intvit.graph.operators.matmul import log2_product
from intvit.graph.operators.methods import evaluator
from intvit.graph.operators.requantize import by_spec
from intvit.graph.parameters import stated_params
from intvit.kernels import registry
from intvit.kernels.arith import INT64_MAX, as_rows
from intvit.kernels.border import integer, real, reals, shown
from intvit.kernels.layernorm import variance_shift
from intvit.kernels.matmul import check_codes, check_shapes
from intvit.kernels.method import Method
from intvit.kernels.quantize import quantize_activation, quantize_bias, quantize_weight
from intvit.kernels.requantize import PUBLISHED_SATURATING_WIDTHS, apply_requantize, dyadic, dyadic_together
from intvit.spec.numerics import HAWQ, Numerics, build_numerics

Array = np.ndarray[Any, Any]


def apply(
    operator: str,
    x_int: Any,
    in_scale: Any = None,
    *,
    method: str,
    facts: Mapping[str, Any] | None = None,
    params: Any = None,
    mask: Any = None,
    backend: str = "kernel",
    **options: Any,
) -> tuple[Array, Any]:
    """Any operator that has methods, over the last axis; x (..., C) -> (y (..., C) int64, out_scale).

    `facts` are what its methods take beside the scale (`operators.Operator.facts`: `gamma` of an `rmsnorm`, for
    example), `options` the method's own. `mask` only where the operator takes one. Or `params`, the integers that
    scale, facts and options give: a value of the method's parameter class, whose vectors have C elements, or one where
    the operator takes one for all channels. IntvitError for a value of another class, for vectors of another length,
    and for scale, facts or options beside it.

    >>> from intvit.spec.softmax import IvitSoftmax
    >>> apply("softmax", [12, -3, 40], method="ivit", params=IvitSoftmax(x0=-20, n=15, out_bits=8))
    (array([23, 11, 93]), None)
    """
    x = _integers(operator, x_int)
    kind = operators.get(operator)
    if kind is None or kind.facts is None:
        raise IntvitError(f"operator: must be one of {', '.join(operators.with_methods())}, not {shown(operator)}")
    if mask is not None and not kind.masked:
        raise IntvitError(f"{operator}: mask must not be given")
    unknown = sorted(set(facts or {}) - set(kind.facts))
    if unknown:
        raise IntvitError(f"{operator}: facts must be of {', '.join(kind.facts) or 'none'}, not {unknown[0]}")
    m = _method(operator, method)
    hidden = None if mask is None else _mask(mask, x.shape)
    if params is not None:
        _given(m, params, x, {"in_scale": in_scale, **(facts or {}), **options})
        return _run(m, params, x, backend, hidden), None
    params, out_scale = m.constants(in_scale, facts or {}, _options(m, options))
    return _run(m, params, x, backend, hidden), out_scale


def softmax(
    x_int: Any,
    in_scale: float | None = None,
    *,
    method: str,
    out_bits: int | None = None,
    exp_range_max: float | None = None,
    params: Any = None,
    mask: Any = None,
    backend: str = "kernel",
    **options: Any,
) -> tuple[Array, float | None]:
    """Softmax over the last axis; x (..., N) -> (codes (..., N) int64, out_scale).

    `method` ivit (values below 2**(out_bits-1), scale 2**-(out_bits-1)), ibert (unsigned, scale 2**-out_bits) or fqvit
    (log2 codes of `out_bits` bits: probability 2**-code, -1 for zero; out_scale 1). `exp_range_max`: I-BERT's frozen
    range of the exponent in its own integers, natural by default. `mask` (broadcast against x): True takes no part.
    `options` are the method's own. Or, in place of all but the mask, `params`: `IvitSoftmax`, `IbertSoftmax` or
    `FqvitSoftmax` of `intvit.spec.softmax`.
    """
    scale = in_scale if params is not None else real("softmax: input scale", in_scale)
    facts = {"out_bits": out_bits, "exp_range_max": exp_range_max}
    return apply(
        "softmax", x_int, scale, method=method, mask=mask, backend=backend, facts=facts, params=params, **options
    )


def gelu(
    x_int: Any, in_scale: Any = None, *, method: str, n: int | None = None, params: Any = None,
    backend: str = "kernel", **options: Any,
) -> tuple[Array, Any]:  # fmt: skip
    """GELU; x (..., C) -> (y (..., C) int64, out_scale). I-BERT takes per-channel scales; its out_scale is negative.

    I-ViT's outputs depend on the other channels of the token. `n` is I-BERT's exponent, 14 (published) by default; the
    other methods have none. `options` are the method's own. Or, in place of them all, `params`: `IvitGelu` or
    `IbertGelu` of `intvit.spec.gelu`, the latter's vectors (C,) or (1,).

    >>> from intvit.spec.gelu import IbertGelu
    >>> gelu([12, -3, 40], method="ibert", params=IbertGelu(b=(-50,), c=(-2770,), shift=(-2770,), n=0))
    (array([ -49152,    6627, -217600]), None)
    """
    x = _integers("gelu", x_int)
    if params is not None:
        return apply("gelu", x, in_scale, method=method, params=params, backend=backend, n=n, **options)
    if "n" in _method("gelu", method).options.model_fields:
        options["n"] = n
    scales = reals("gelu: input scale", in_scale)
    if scales.size != 1 and scales.shape != x.shape[-1:]:
        raise IntvitError(f"gelu: input scale must be one or {x.shape[-1:]}, not {scales.shape}")
    return apply("gelu", x, scales if scales.ndim else float(scales), method=method, backend=backend, **options)


def layernorm(
    x_int: Any,
    in_scale: Any = None,
    gamma: Any = None,
    beta: Any = None,
    *,
    method: str,
    shift: int = 0,
    factor: Any = None,
    out_scale: float | None = None,
    params: Any = None,
    backend: str = "kernel",
    **options: Any,
) -> tuple[Array, Any]:
    """LayerNorm over the last axis; x (..., C) -> (y int64, out_scale), y neither clamped nor requantized.

    ivit and ibert: out_scale (C,) carries gamma and its sign; `shift` is I-BERT's frozen shift. fqvit: `factor` are the
    power-of-two factors of the input scale, `out_scale` the next quantizer's scale, which is also returned. `options`
    are the method's own. Or, in place of them all, `params`: `IvitLayerNorm`, `IbertLayerNorm` or `FqvitLayerNorm` of
    `intvit.spec.layernorm`, all vectors (C,).
    """
    x = _integers("layernorm", x_int)
    if params is not None:
        given = {"gamma": gamma, "beta": beta, "shift": shift or None, "factor": factor, "out_scale": out_scale}
        return apply("layernorm", x, in_scale, method=method, facts=given, params=params, backend=backend, **options)
    m = _method("layernorm", method)
    scales = reals("layernorm: input scale", in_scale)
    if scales.size != 1 and scales.shape != x.shape[-1:]:
        raise IntvitError(f"layernorm: input scale must be one or {x.shape[-1:]}, not {scales.shape}")
    scale = float(scales.min()) if scales.size else math.nan
    shift = integer("layernorm: shift", shift, 0, 31)
    facts = {"gamma": gamma, "beta": beta, "shift": shift, "factor": factor, "out_scale": out_scale}
    params, result = m.constants(scale, facts, _options(m, options))
    if x.shape[-1:] != (np.size(gamma),):
        raise IntvitError(f"layernorm: gamma must have {x.shape[-1:]} channels, not {np.size(gamma)}")
    expected = scale if factor is None else scale * np.asarray(factor)
    if scales.size > 1 and not np.array_equal(scales, np.broadcast_to(expected, scales.shape)):
        raise IntvitError("layernorm: input scales must be equal, or the least of them times `factor`, and are not")
    return _run(m, params, x, backend), result


def requantize(
    x_int: Any,
    in_scale: Any = None,
    out_scale: Any = None,
    bits: int | None = None,
    *,
    residual: Any = None,
    residual_scale: Any = None,
    clamp: bool = True,
    backend: str = "kernel",
    numerics: Numerics | str | Mapping[str, Any] | None = None,
    multiplier: Any = None,
    shift: Any = None,
    residual_multiplier: Any = None,
    residual_shift: Any = None,
    addend: Any = None,
    signed: bool = True,
) -> Array:
    """Dyadic requantization: x (..., C) at `in_scale` to codes at `out_scale`, each one or C.

    Round half to even, two roundings, one per term, then the sum. The published rule saturates at 4, 8, 16 and 32 bits
    and at no other width; `clamp=False` never saturates (beyond s64). Products are exact.

    `numerics`: another datapath, a preset's name, fields or a `Numerics`; then results have `bits` bits always,
    `signed` or not. In place of scales `multiplier` and `shift` (one or C) may be the integers of the datapath,
    x * multiplier / 2**shift, and so for the residual. `addend` (broadcast against x) comes in after the shift, as a
    zero point does.

    >>> requantize([1000, -1000], bits=8, multiplier=5, shift=7, addend=3, numerics="ita")
    array([ 42, -36])
    """
    x = _integers("requantize", x_int)
    bits = integer("requantize: bits", bits, 2, 64)
    how = HAWQ if numerics is None else build_numerics(numerics)
    x_shape = x.shape if x.ndim else (1,)
    term = _factor("", how, in_scale, out_scale, multiplier, shift)
    extra: dict[str, Any] = {}
    if residual is None:
        given = (residual_scale, residual_multiplier, residual_shift)
        if any(value is not None for value in given):
            raise IntvitError("requantize: residual must be given with its scale or multiplier")
    else:
        others = _broadcast("requantize: residual", _integers("requantize: residual", residual), x.shape)
        if how.residual == "together" and residual_scale is not None and in_scale is not None:
            m, rm, e = dyadic_together(in_scale, residual_scale, out_scale, how)
            term, other = (m, e), (rm, e)
        else:
            other = _factor("residual_", how, residual_scale, out_scale, residual_multiplier, residual_shift)
        extra = {"residual": others, "residual_m": other[0], "residual_e": other[1]}
        if how.residual == "together" and bool(np.any(term[1] != other[1])):
            raise IntvitError("requantize: products that are added together must have one shift, and have not")
    for constants in (*term, *(extra[key] for key in ("residual_m", "residual_e") if key in extra)):
        if len(constants) not in (1, x_shape[-1]):
            raise IntvitError(f"requantize: scale must be one or {x.shape[-1:]}, not {len(constants)}")
    width: int | None = bits
    if not clamp or (numerics is None and bits not in PUBLISHED_SATURATING_WIDTHS):
        width = None
    if numerics is not None or addend is not None or not signed:
        extra |= {"numerics": how, "signed": signed}
        if not signed and (width is None or width > 62):
            raise IntvitError(f"requantize: bits of unsigned results must be 62 at most, not {width or 'unlimited'}")
    if addend is not None:
        values = _integers("requantize: addend", addend).astype(np.int64)
        extra["addend"] = np.ascontiguousarray(_broadcast("requantize: addend", values, x.shape)).reshape(x_shape)
    if checked_backend(backend) == "kernel" and x.size:
        return apply_requantize(x, *term, width, **extra)
    return by_spec(x, *term, width, **extra)


def _factor(
    name: str, numerics: Numerics, in_scale: Any, out_scale: Any, multiplier: Any, shift: Any
) -> tuple[Array, Array]:
    """(m, e) (1,) or (C,) int64, of scales or as they are."""
    if (multiplier is None) != (shift is None) or (multiplier is None) == (in_scale is None):
        raise IntvitError(
            f"requantize: {name}scale or {name}multiplier and {name}shift must be given, one of these and not both"
        )
    if multiplier is None:
        if out_scale is None:
            raise IntvitError("requantize: out_scale must be given with scales")
        return dyadic(in_scale, out_scale, numerics)
    found = []
    limits = {"multiplier": numerics.multipliers, "shift": (numerics.shift_least, numerics.shift_most)}
    for (key, (low, high)), given in zip(limits.items(), (multiplier, shift), strict=True):
        values = np.atleast_1d(_integers(f"requantize: {name}{key}", given)).astype(np.int64)
        if values.ndim > 1 or not values.size or values.min() < low or values.max() > high:
            raise IntvitError(f"requantize: {name}{key} must be one or one per channel in {low}..{high}, not "
                              f"{shown(given)}")  # fmt: skip
        found.append(values)
    m, e = (np.ascontiguousarray(each) for each in np.broadcast_arrays(*found))
    return m, e


def log2_matmul(q: Any, v_int: Any, v_scale: float, *, backend: str = "kernel") -> tuple[Array, float]:
    """FQ-ViT attention times V: codes q (..., R, K), values v (..., K, C) -> (y int64, v_scale * 2**-15).

    Leading axes are broadcast. The kernel refuses values whose sums might leave int64: K * max|v| * 2**15 >= 2**63.
    """
    codes, values = _integers("log2_matmul: codes", q), _integers("log2_matmul: values", v_int)
    scale = real("log2_matmul: v_scale", v_scale)
    if not (math.isfinite(scale) and scale * 2.0**-15 > 0):
        raise IntvitError(f"log2_matmul: v_scale must be positive and finite, not {scale}")
    lead = check_shapes("log2_matmul", codes, values)
    check_codes(codes)
    shape = (*lead, codes.shape[-2], values.shape[-1])
    if checked_backend(backend) == "kernel":
        y = log2_product(codes, values, "kernel").astype(np.int64)
    elif not (math.prod(shape) and values.size):  # the sum of nothing is 0
        y = np.zeros(shape, np.int64)
    else:
        left = np.broadcast_to(codes, (*lead, *codes.shape[-2:])).reshape(-1, *codes.shape[-2:])
        right = np.broadcast_to(values, (*lead, *values.shape[-2:])).reshape(-1, *values.shape[-2:])
        y = log2_product(left, right, "spec").reshape(shape)
    return y, scale * 2.0**-15


def layernorm_shift(x_int: Any, shift: int = 0) -> int:
    """I-BERT's calibration rule: the shift that a batch of rows (..., C) asks for, never below the one it has.

    If the largest sum of squared deviations, after `shift`, reaches 2**32: max over rows of
    ceil(log2 sqrt(unshifted sum / 2**32)).
    """
    x, shift = _integers("layernorm_shift", x_int), integer("layernorm_shift: shift", shift, 0, 31)
    largest = largest_shifted = 0
    for row in _rows("layernorm_shift", x).tolist() if x.size else []:
        n = len(row)
        total = sum(row)
        mean, rest = divmod(total, n)
        mean += 2 * rest > n or (2 * rest == n and mean % 2 == 1)
        largest = max(largest, sum((x - mean) ** 2 for x in row))
        largest_shifted = max(largest_shifted, sum(((x - mean) >> shift) ** 2 for x in row))
    if largest_shifted < 2**32:
        return shift
    return max(shift, variance_shift(largest))


# ------------------------------------------------------------------------------------------ borders


_SIGNED = {1: np.int16, 2: np.int32, 4: np.int64, 8: np.int64}
"""Bytes of an unsigned type -> the signed one that holds it, or as much of it as we take."""


def _integers(name: str, x: Any) -> Array:
    """Any integers as a signed array of this machine's byte order that compiled code may read."""
    with reading(f"{name}: input", "integers"):
        array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise IntvitError(f"{name}: input must be integers, not {array.dtype}")
    if array.dtype.kind == "u":
        if array.dtype.itemsize == 8 and array.size and int(array.max()) > INT64_MAX:
            raise IntvitError(f"{name}: input must fit int64, and {array.max()} does not")
        return array.astype(_SIGNED[array.dtype.itemsize])
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.flags.behaved else array.copy()


def _broadcast(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise IntvitError(f"{name} must broadcast to {shape}, and {array.shape} does not") from None


def _mask(mask: Any, shape: tuple[int, ...]) -> Array:
    with reading("softmax: mask", "bools"):
        array = np.asarray(mask)
    flags = array.dtype == np.bool_ or (array.dtype.kind in "iu" and bool(((array == 0) | (array == 1)).all()))
    if not flags:
        raise IntvitError(f"softmax: mask must be bools or 0 and 1, not {shown(mask)}")
    return _broadcast("softmax: mask", array.astype(np.bool_), shape)


def _rows(name: str, x: Array) -> Array:
    if not x.ndim:
        raise IntvitError(f"{name}: input must have an axis to run over, and is one number")
    return as_rows(x)


def _method(operator: str, name: Any) -> Method:
    return registry.get(operator, name if isinstance(name, str) else shown(name))


def _options(m: Method, options: dict[str, Any]) -> dict[str, Any]:
    """Options that are given; IntvitError if the method has none of that name."""
    try:
        return m.checked({key: value for key, value in options.items() if value is not None})
    except IntvitError as error:
        raise IntvitError(f"{m.operator} {m.name}: {error}") from None


def _given(m: Method, params: Any, x: Array, others: Mapping[str, Any]) -> None:
    """IntvitError unless `params` are the method's, fit the channels of `x`, and nothing stands beside them."""
    if type(params) is not m.params:
        raise IntvitError(f"{m.operator} {m.name}: params must be {m.params.__name__}, not {shown(params)}")
    beside = [key for key, value in others.items() if value is not None]
    if beside:
        raise IntvitError(f"{m.operator} {m.name}: {beside[0]} must not be given beside params")
    kind, channels = operators.get(m.operator), x.shape[-1:]
    lengths = channels if kind is not None and kind.per_channel else (1, *channels)
    for key, vector in stated_params(params)[1].items():
        if x.ndim and len(vector) not in lengths:
            rule = " or ".join(map(str, lengths))
            raise IntvitError(f"{m.operator} {m.name}: params.{key} must have {rule} elements, not {len(vector)}")


def _run(m: Method, params: Any, x: Array, backend: str, mask: Array | None = None) -> Array:
    backend = checked_backend(backend)
    if x.ndim and not x.size:
        return np.zeros(x.shape, np.int64)
    run = evaluator(m, params, backend)
    rows = _rows(m.operator, x)
    hidden = None if mask is None else np.array(mask.reshape(rows.shape), order="C")
    return run(rows, hidden).reshape(x.shape)


__all__ = [
    "apply",
    "gelu",
    "layernorm",
    "layernorm_shift",
    "log2_matmul",
    "quantize_activation",
    "quantize_bias",
    "quantize_weight",
    "requantize",
    "softmax",
]
