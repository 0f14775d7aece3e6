"""Searches for an input that tells a mutant from the original, each aimed at one kind of place.

A search yields (what it called, outcome); it is run twice, once with the original and once with the mutant, and the
outcomes are compared. Outcomes are what a caller sees: integers, arrays with dtype, refusals with their text. Which way
through the kernels was taken is none. The inputs come from a seed alone, and lie where the changed lines decide: at
both sides of every limit, at ties, at zeros, at the ends of the words.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from math import isqrt, prod
from typing import Any

import numpy as np

Outcomes = Iterator[tuple[str, Any]]
Rng = np.random.Generator
SEARCHES: dict[str, Callable[[Rng], Outcomes]] = {}
INT64 = (-(2**63), 2**63 - 1)
KINDS = (np.int8, np.int16, np.int32, np.int64)


def search(function: Callable[[Rng], Outcomes]) -> Callable[[Rng], Outcomes]:
    SEARCHES[function.__name__] = function
    return function


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the call gives; a refusal or an error is a text."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def beside(*values: int, by: int = 2, low: int = INT64[0], high: int = INT64[1]) -> list[int]:
    """Every value, its negative, and what is at most `by` away, within low..high."""
    found = {sign * v + d for v in values for sign in (1, -1) for d in range(-by, by + 1)}
    return sorted(v for v in found if low <= v <= high)


def powers_and_random(rng: Rng, bits: int, count: int) -> list[int]:
    """Integers of up to `bits` bits and a sign: beside powers of two, and of every length at random."""
    random = [int(rng.integers(-(2**63), 2**63 - 1)) >> int(rng.integers(63 - bits, 63)) for _ in range(count)]
    return [*beside(*(2**k for k in range(bits)), low=-(2**bits), high=2**bits - 1), *random]


# --------------------------------------------------------------------------------------- primitives


@search
def spec_shifts(rng: Rng) -> Outcomes:
    """Shifts of the spec by anything from -70 to 70, every one around 0, of integers of up to 80 bits."""
    from intvit.spec import arith

    for shift in range(-70, 71):
        for value in [*powers_and_random(rng, 62, 30), 2**80 + 1, -(2**79), 3 * 2**69]:
            yield f"shifts({value}, {shift})", (arith.rhe_shift(value, shift), arith.floor_shift(value, shift))


@search
def int64_shifts(rng: Rng) -> Outcomes:
    """Shifts to both sides around the ends of int64 and around 62 and 63 bits, each within its contract."""
    from intvit.kernels import arith

    values = powers_and_random(rng, 63, 200)
    for shift in (0, 1, 2, 30, 31, 32, 33, 59, 60, 61, 62, 63, 64, 65, 90):
        near = [v >> min(shift, 63) for v in beside(*INT64, by=70)]
        for value in [*values, *near]:
            yield f"shift_left({value}, {shift})", arith.shift_left(value, shift)
            if abs(value) <= 2**62:
                yield f"rhe_shift({value}, {shift})", arith.rhe_shift(value, shift)
    for value in [*values, *(s * k * 2**31 + d for k in range(9) for s in (1, -1) for d in (-1, 0, 1))]:
        yield f"wrap32({value})", arith.wrap32(value)


@search
def two_word_products(rng: Rng) -> Outcomes:
    """x * m / 2**e: products beside the limits of 63 and 95 bits, ties, e from -40 to 100."""
    from intvit.kernels.arith import rhe_product

    factors = [*beside(2**31, 2**30, 0, low=-(2**31), high=2**31), 3 * 2**29, 327685]
    for e in range(-40, 101):
        for m in factors:
            edges = [s * 2**63 * 2 ** max(e, 0) // (m * 2 ** max(-e, 0)) + d for s in (1, -1) for d in (-1, 0, 1) if m]
            ties = [((2 * k + 1) << max(e - 1, 0)) // m for k in (-2, -1, 0, 1) if m]
            chosen = [*INT64, INT64[0] + 1, 2**62, -(2**62), 0, 1, -1, *edges, *ties]
            random = [int(rng.integers(*INT64)) >> int(rng.integers(0, 60)) for _ in range(6)]
            for x in (x for x in [*chosen, *random] if INT64[0] <= x <= INT64[1]):
                yield f"rhe_product({x}, {m}, {e})", rhe_product(x, m, e)


@search
def square_roots(rng: Rng) -> Outcomes:
    """Below 2**62: all up to 2**14; beside squares of every length, most of them of 30 and 31 bits; at random."""
    from intvit.kernels.arith import isqrt as fast

    for value in range(2**14):
        yield f"isqrt({value})", fast(value)
    roots = [int(rng.integers(1, 2**31)) >> int(rng.integers(0, 31)) for _ in range(6000)]
    roots += [int(rng.integers(2**30, 2**31)) for _ in range(30000)] + [2**30 + k for k in range(3000)]
    roots += [isqrt(2**61) + k for k in range(-3000, 3000)] + [2**31 - k for k in range(1, 3000)]
    for root in roots:
        for value in (root * root - 1, root * root, root * root + 2 * root):
            yield f"isqrt({value})", fast(value)
    for _ in range(20000):
        value = int(rng.integers(0, 2**62)) >> int(rng.integers(0, 60))
        yield f"isqrt({value})", fast(value)


@search
def inverse_roots(rng: Rng) -> Outcomes:
    """1 / sqrt of 1 .. 2**62 - 1: small, beside squares and powers of two, at random."""
    from intvit.kernels.layernorm import inverse_sqrt

    roots = [int(rng.integers(1, 2**31)) >> int(rng.integers(0, 31)) for _ in range(20000)]
    values = [*range(1, 2**13), *(r * r + d for r in roots for d in (-1, 0, 1)), *powers_and_random(rng, 62, 30000)]
    for value in values:
        if 0 < value < 2**62:
            yield f"inverse_sqrt({value})", tuple(inverse_sqrt(value))


# ------------------------------------------------------------------------------------ requantization


MULTIPLIERS = (2**30, 2**31, 2**31 - 1, -(2**31), -(2**30) - 1, 3 * 2**29, 0, 1, -1, 2, 7)


@search
def saturating_sums(rng: Rng) -> Outcomes:
    """Sums of two int64 of every length and sign, and those that end beside the limits."""
    from intvit.kernels.requantize import add_saturating

    values = powers_and_random(rng, 63, 300)
    for a, b in itertools.product(values[::7], values[::5]):
        for c in {a, *(min(max(end - b + d, INT64[0]), INT64[1]) for end in INT64 for d in (-1, 0, 1))}:
            yield f"add_saturating({c}, {b})", add_saturating(c, b)


@search
def requantized(rng: Rng) -> Outcomes:
    """Every dtype and width, at every shift where one kernel hands over to another; inputs beside 2**61, where the
    two-word kernel ends, beside the first that saturate, at ties; multipliers beyond those that scales give."""
    from intvit.kernels.requantize import apply_requantize

    def column(kind: Any, m: int, e: int, bits: int) -> list[int]:
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        edge = (2 ** (bits - 1)) * 2**e // m if m and e >= 0 else 0
        wide = [2**61, 2**60, 2**59, 2**62 // abs(m) if m else 0, edge, edge // 2]
        ties = [((2 * k + 1) << max(e - 1, 0)) // m for k in (-3, 0, 1) if m]
        chosen = [*beside(*wide, low=low, high=high), low, high, 0, 1, -1, *ties, *rng.integers(low, high, 12).tolist()]
        return [v for v in chosen if low <= v <= high]

    multipliers = [*MULTIPLIERS, *rng.integers(2**30, 2**31, 4).tolist()]
    for kind, bits in itertools.product(KINDS, (4, 8, 16, 31, 32, 61, 62, 63, None)):
        width = bits or 64
        limits = {-3, 0, 1, 2, 3, *range(30, 35), *range(61, 65), *range(92, 96), 61 - width, 62 - width, 63 - width}
        for e, m in itertools.product(sorted(limits), multipliers):
            x = np.array(column(kind, m, e, width), kind)
            for rows in (x[:, None], *([x[:1, None], x[-1:, None]] if kind is np.int64 else [])):
                got = outcome(apply_requantize, rows, np.array([m]), np.array([e]), bits)
                yield f"requantize({kind.__name__} {rows.ravel().tolist()}, {m}, {e}, {bits})", got


@search
def residuals(rng: Rng) -> Outcomes:
    """Two terms of every pair of dtypes, each with one constant or one per channel."""
    from intvit.kernels.requantize import apply_requantize

    for kind, other in itertools.product(KINDS, KINDS):
        for channels, bits, e in itertools.product(((1, 1), (3, 1), (1, 3), (3, 3)), (8, 32, 63), (1, 31, 40, 62, 63)):
            m, n = (rng.choice(MULTIPLIERS, count) for count in channels)
            f, g = (np.full(count, e) + rng.integers(0, 2, count) for count in channels)
            x, r = (
                rng.integers(np.iinfo(k).min, np.iinfo(k).max, (9, 3), endpoint=True).astype(k) >> k(rng.integers(0, 8))
                for k in (kind, other)
            )
            got = outcome(apply_requantize, x, m, f, bits, residual=r, residual_m=n, residual_e=g)
            yield f"requantize({x.tolist()}, {m}, {f}, {bits}, {r.tolist()}, {n}, {g})", got


# --------------------------------------------------------------------------------- matrix products


@search
def wide_products(rng: Rng) -> Outcomes:
    """matmul and log2_matmul with bounds beside 2**24, 2**31, 2**53 and 2**63; deep, with leading axes, empty."""
    from intvit import ops
    from intvit.kernels.matmul import matmul

    sizes = [1, 3, 2**11, 321, 2**26, 2**26 + 1, 28059810762433, 2**31, 2**47]
    limits = (2**24, 2**31, 2**53, 2**63)
    for a_max, limit, depth in itertools.product(sizes, limits, (1, 2, 3, 7, 100)):
        for b_max in {max(limit // (a_max * depth) + d, 0) for d in (-1, 0, 1)}:
            if b_max >= 2**63:
                continue
            a = rng.choice([a_max, -a_max, a_max - 1, 0, 1], (2, depth))
            b = rng.choice([b_max, -b_max, b_max // 2, 1], (depth, 3))
            for signs in ((abs(a), abs(b)), (a, b)):
                yield f"matmul({signs})", outcome(matmul, *signs)
    for shapes in (((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((0, 2, 3), (0, 3, 2)), ((4, 2, 3), (3, 2))):
        for top in (0, 1, 2**20, 2**40, 2**62):
            a, b = (np.full(shape, top if i else 1) for i, shape in enumerate(shapes))
            yield f"matmul({shapes}, {top})", outcome(matmul, a, b)
    for top, depth in itertools.product((127, 2**23, 2**38, 2**38 - 1, 2**47, 2**48 - 1, 2**48), (1, 2, 5)):
        q, v = rng.integers(-1, 16, (3, 4, depth)), rng.integers(-top, top + 1, (3, depth, 2))
        yield f"log2_matmul({q.tolist()}, {v.tolist()})", outcome(ops.log2_matmul, q, v, 1.0)


def strided(rng: Rng, shape: tuple[int, int], kind: Any) -> Iterator[tuple[np.ndarray, int, int]]:
    """(flat, stride of the rows, stride of the columns) of a random matrix with gaps, transposed, with an axis of
    stride 0; what lies between and behind is not 0."""
    rows, columns = shape
    limits = np.iinfo(kind)
    for row, column in ((columns, 1), (1, rows), (2 * columns + 1, 2), (1, 0), (0, 1)):
        count = rows * max(row, 1) + columns * max(column, 1) + 64
        yield rng.integers(limits.min, limits.max, count, endpoint=True).astype(kind), row, column


@search
def packing(rng: Rng) -> Outcomes:
    """What the two packing functions write: every dtype, depth 1 to 17, around whole tiles and panels, any strides."""
    from intvit.kernels.gemm import layout, pack

    ways = ((np.int8, np.int8, 0), (np.int8, np.int8, 128), (np.int8, np.int16, 0), (np.int16, np.int16, 0))
    for (kind, packed, shift), depth in itertools.product(ways, range(1, 18)):
        unit = layout.WORD // np.dtype(packed).itemsize
        steps = -(-depth // unit)
        for rows in (1, 11, 12, 13, 25):
            for flat, row, step in strided(rng, (rows, depth), kind):
                out = np.full((-(-rows // layout.MR)) * layout.MR * steps * unit, 77, packed)
                pack.pack_rows(flat, 0, row, step, rows, depth, steps, shift, out)
                yield f"pack_rows({kind.__name__}, {packed.__name__}, {shift}, {rows}, {depth}, {row}, {step})", out
        for columns in (1, 5, 31, 32, 33, 64, 65):
            for flat, step, column in strided(rng, (depth, columns), kind):
                out = np.full((-(-columns // layout.NR)) * layout.NR * steps * unit, 77, packed)
                pack.pack_columns(flat, 0, step, column, depth, columns, steps, out)
                sums = np.full((-(-columns // layout.NR)) * layout.NR, 77, np.int32)
                pack.column_sums(flat, 0, step, column, depth, columns, sums)
                yield (
                    f"pack_columns({kind.__name__}, {packed.__name__}, {columns}, {depth}, {step}, {column})",
                    (
                        out,
                        sums,
                    ),
                )


@search
def operands(rng: Rng) -> Outcomes:
    """The matrices that `Matrices` describe: views of every kind, also with axes of stride 0 and negative ones."""
    from intvit.kernels.gemm.layout import operands as matrices

    for kind, lead in itertools.product((np.int8, np.int16, np.int32), ((), (2,), (2, 3), (1, 2, 2))):
        base = rng.integers(-100, 100, (*lead, 6, 8)).astype(kind)
        columns = np.ascontiguousarray(np.swapaxes(base, -1, -2))
        views = [
            base,
            np.swapaxes(columns, -1, -2),
            base[..., ::2],
            base[..., 1::3, :],
            base[..., ::-1],
            base[..., ::-1, :],
        ]
        views += [np.broadcast_to(base[..., :1], base.shape), np.broadcast_to(base[..., :1, :], base.shape)]
        views += [np.broadcast_to(base[:1], base.shape), np.broadcast_to(base.reshape(-1)[0], base.shape)]
        for number, x in enumerate(views):
            described = matrices(x)
            rows, depth = x.shape[-2:]
            index = described.starts[:, None, None] + np.arange(rows)[:, None] * described.row
            found = described.flat[index + np.arange(depth) * described.column]
            yield f"operand({kind.__name__}, {lead}, {number})", (found, len(described.starts) == prod(lead))


@search
def tiles(rng: Rng) -> Outcomes:
    """Products and linear operators on every path of this processor, around whole blocks of rows, tiles and panels,
    raw and requantized to every width."""
    from intvit.kernels import gemm

    for path in gemm.available_paths()[:-1]:
        for rows, depth, columns in (
            (1, 3, 1),
            (95, 5, 32),
            (96, 8, 33),
            (97, 4, 31),
            (107, 6, 64),
            (121, 2, 40),
            (217, 3, 9),
        ):
            a, b = rng.integers(-128, 128, (rows, depth)), rng.integers(-128, 128, (depth, columns))
            m, e = rng.integers(2**30, 2**31, columns), rng.integers(31, 42, columns)
            for kind, bits in ((np.int8, 8), (np.int32, 32)):
                epilogues = [gemm.Epilogue.dyadic(m, e, bits, columns)]
                epilogues += [gemm.Epilogue.raw()] if kind is np.int32 else []
                for epilogue in epilogues:
                    linear = gemm.prepare_linear(b.T, None, 128, np.int8, epilogue, path)
                    assert linear is not None
                    yield f"linear({path}, {rows}, {depth}, {columns}, {bits})", linear.run(a.astype(np.int8), kind)
                    product = gemm.Product(path, epilogue, 0)
                    got = product.run(a.astype(np.int8), b.astype(np.int8), kind)
                    yield f"product({path}, {rows}, {depth}, {columns}, {bits})", got


# --------------------------------------------------------------------------------- softmax and GELU

SCALES = (7.3, 1.7, 1.0, 0.75, 0.6, 0.59, 0.5, 0.3, 0.05, 0.011, 1 / 127, 0.003, 4e-4, 1e-5, 1e-7, 1.1 / 2**30)


def rows_around(rng: Rng, steps: tuple[int, ...], top: int = 2**31 - 1) -> Iterator[np.ndarray]:
    """Rows of 8, 16 and 32 bits: random ones, constant ones, distances to the maximum beside multiples of `steps`."""
    for bits in (8, 16, 32):
        low, high = -(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, top)
        yield rng.integers(low, high, (6, 9), endpoint=True)
        for base in (high, low + 40, 0, -1, -5, -17, -24, -25, -40, low // 3):
            distances = [
                k * step + d for step in steps for k in (0, 1, 2, 7, 8, 9, 15, 16, 30, 31, 32) for d in (-1, 0, 1)
            ]
            row = [base - d for d in distances if d >= 0 and low <= base - d <= high]
            yield np.array([row])
            yield np.full((2, 5), base)


def masks(rng: Rng, shape: tuple[int, ...]) -> Iterator[np.ndarray | None]:
    yield None
    for share in (0.3, 0.9):
        yield rng.random(shape) < share
    yield np.ones(shape, bool)


def softmax_parameters() -> Iterator[tuple[str, Any]]:
    """(method, parameters) of every scale and width that the methods take, and beyond what their scales give."""
    from intvit.kernels import registry

    for name, scale in itertools.product(("ivit", "ibert", "fqvit", "ivit_tvm"), SCALES):
        for bits in {"fqvit": (2, 3, 4, 5, 6, 7), "ivit_tvm": (8,)}.get(name, (4, 8, 16, 32)):
            options = {"exp_range_max": 2.0**33} if name == "ibert" and scale > 1.6 else {}
            found = outcome(registry.get("softmax", name).lower, scale, out_bits=bits, **options)
            if isinstance(found, tuple):
                yield name, found[0]


@search
def softmax_rows(rng: Rng) -> Outcomes:
    """Every method's kernel: scales from 2**-30 to 7.3, every width, masks of none, some and all positions."""
    from intvit.kernels import registry

    for name, params in softmax_parameters():
        kernel = registry.get("softmax", name).kernel(params)
        for rows in rows_around(rng, (-params.x0, max(-params.x0 * 2 // 3, 1))):
            for mask in masks(rng, rows.shape):
                yield f"softmax({name}, {params}, {rows.tolist()}, {mask})", outcome(kernel, rows, mask)


@search
def narrow_softmax(rng: Rng) -> Outcomes:
    """The softmax of 8-bit scores as the engine does it, by table where there is one, else by the general kernel:
    row lengths at which a sum reaches 2**60 and 2**62, masks that repeat, codes and weights of every width."""
    from intvit.kernels import registry
    from intvit.kernels.matmul import log2_weights

    def cases() -> Iterator[tuple[str, Any, int]]:
        for name, params in softmax_parameters():
            if name != "ivit_tvm":
                yield from ((name, params, n) for n in (1, 2, 33))
        ivit, fqvit = (registry.get("softmax", name).params for name in ("ivit", "fqvit"))
        for x0, n in ((2**29, 2**18 - 1), (2**29, 2**18), (2**29, 2**18 + 1)):
            yield "ivit", ivit(-x0, 15, 8), n
        for c_bits, n in itertools.product((26, 27, 28), (7, 8, 9, 15, 16)):
            for bits in (4, 5):  # n * (c << 30) around 2**60 with a mask; 2**62 / 5 lies between 12 and 13 * 2**56
                yield "fqvit", fqvit(-100, 256, 2**c_bits, 30, bits), n

    for name, params, n in cases():
        method = registry.get("softmax", name)
        rows = rng.integers(-128, 128, (4, n)).astype(np.int8)
        rows[1], rows[2:3, : n // 2], rows[-1, -1] = 127, -128, 127
        for mask in masks(rng, (2, n)):
            every = None if mask is None else np.tile(mask, (2, 1))
            general = outcome(method.kernel(params), rows.astype(np.int64), every)
            for kind, maker in (("codes", method.fast.narrow), ("weights", method.fast.narrow_weights)):
                narrow = maker(params, n, mask is not None) if maker else None
                if kind == "weights" and (name != "fqvit" or params.bits != 4):
                    continue
                if narrow is not None:
                    got = np.empty(rows.shape, np.int64 if kind == "codes" else np.int16)
                    narrow(rows, mask, got)
                elif kind == "codes" or isinstance(general, str):
                    got = general
                else:
                    got = log2_weights(general.astype(np.int8))
                yield f"narrow({name}, {params}, {n}, {kind}, {mask is not None})", got


@search
def deployed_exponents(rng: Rng) -> Outcomes:
    """The 32-bit exponent of spec and kernel at shifts of 0, 15, 16 and 28 to 40 bits, d from -2**31 to 2**33."""
    from intvit.kernels.softmax import shift_exp_tvm as fast
    from intvit.spec.softmax import shift_exp_tvm as slow

    for x0 in (-1, -2, -3, -7, -255, -(2**14), -(2**22) - 1, -(2**29), -(2**30) + 1):
        for n in (0, 15, 16, 23):
            near = [-(x0 * (s - n)) * 16 // 23 + d for s in (*range(28, 41), 0, 15, 16) for d in range(-3, 4)]
            for d in [*near, *rng.integers(-(2**31), 2**33, 40).tolist(), 0, -(2**31), 2**31 - 1]:
                yield f"shift_exp_tvm({d}, {x0}, {n})", (slow([d], x0, n)[0], fast(d, x0, n))


@search
def gelu_rows(rng: Rng) -> Outcomes:
    """Spec and kernel of every method: rows whose maximum is negative by every amount that shifts 28 to 40 bits, zeros,
    the clip of I-BERT's polynomial, one scale and one per channel, n 6 and 14."""
    from intvit.kernels import registry

    for name, scale in itertools.product(("ivit", "ibert", "ivit_tvm"), SCALES):
        method = registry.get("gelu", name)
        for n in (6, 14) if name == "ibert" else (None,):
            found = outcome(method.lower, scale, n=n)
            if not isinstance(found, tuple):
                continue
            params = found[0]
            step = -(params.b[0] if name == "ibert" else params.x0)
            rows = list(rows_around(rng, (step,)))
            tops = [-(step * k * 16 // 23) + d for k in range(4, 20) for d in (-1, 0, 1)]
            rows += [np.array([[top, top - step, top - 1]]) for top in tops if -(2**30) < top < 2**30]
            rows += [np.array([[0, -1, 1, -step, step, step + 1, -step - 1]])] if step < 2**31 - 1 else []
            for row in rows:
                fast = outcome(method.kernel(params), row)
                # the spec's integers have no end: exp of a negative maximum of 32 bits is one of gigabytes
                small = row.size < 200 and row.min() > -(2**12) * step
                slow = [method.spec(r, params) for r in row.tolist()] if small else None
                yield f"gelu({name}, {params}, {row.tolist()})", (fast, slow)
    method = registry.get("gelu", "ibert")
    params = method.lower(np.array([0.02, 0.3, 0.001]), n=14)[0]
    row = rng.integers(-300, 300, (500, 3))
    yield "gelu(ibert, per channel)", (method.kernel(params)(row), [method.spec(r, params) for r in row.tolist()])


# --------------------------------------------------------------------------------------- LayerNorm


@search
def fqvit_layernorm(rng: Rng) -> Outcomes:
    """FQ-ViT's kernel where its short form begins and ends: exponents from 2**-60 to 2**60 of output scale, gamma and
    beta, a gamma of 0, factors, |x| * factor beside 2**19 and 2**20, 1 to 300 channels."""
    from intvit.kernels import registry

    method = registry.get("layernorm", "fqvit")

    def run(gamma: Any, beta: Any, out_scale: float, rows: np.ndarray, factor: Any = None) -> tuple[str, Any]:
        params, _ = method.lower(0.1, gamma=gamma, beta=beta, factor=factor, out_scale=out_scale)
        name = f"layernorm({list(gamma)[:3]}, {list(beta)[:3]}, {out_scale}, {rows.tolist()[0][:5]})"
        return name, outcome(method.kernel(params), rows)

    for channels, exponent in itertools.product((1, 2, 3, 8, 33, 300), range(-60, 61, 3)):
        gamma = rng.uniform(0.4, 2, channels) * rng.choice([-1, 1], channels)
        beta = rng.normal(0, 1, channels)
        rows = np.clip(rng.normal(3, 30, (4, channels)), -128, 127).astype(np.int64)
        yield run(gamma, beta, 0.03 * 2.0**exponent, rows)
        yield run(gamma * 2.0**exponent, beta, 0.03, rows)
        yield run(gamma, beta * 2.0**exponent, 0.03, rows)
        yield run(gamma, beta * 2.0 ** (2 * exponent), 2.0**exponent, rows)
        yield run(np.where(np.arange(channels) % 3 == 1, 0, gamma), beta, 0.03 * 2.0**exponent, rows)
    for least in range(-3, 4):  # power + exponent beside 1, 2, 30, 31; room - exponent beside 32, 33, 34
        for shift in (*range(12), *range(24, 34)):
            gamma = 2.0 ** rng.integers(-2, 3, 6) * rng.choice([1, 1 - 2.0**-30, 1 + 2.0**-20], 6)
            rows = rng.integers(-128, 128, (6, 6)) * 2 ** int(rng.integers(0, 10))
            for beta in (2.0 ** -rng.integers(0, 6, 6), 2.0 ** rng.integers(12, 33, 6), np.zeros(6)):
                yield run(gamma, beta * 2.0**least, 2.0 ** (least - shift + 12), rows)
    for top in (2**19, 2**20, 2**21):
        for d, factor in itertools.product((-2, -1, 0, 1), (None, [8, 1, 2, 4], [1, 1, 1, 1])):
            largest = (top + d) // (8 if factor == [8, 1, 2, 4] else 1)
            for rows in (np.array([[largest, 5, -7, 0]]), np.array([[-largest, largest, 3, 3]])):
                yield run(rng.uniform(0.4, 2, 4), rng.normal(0, 1, 4), 0.02, rows, factor)
    for tiny in range(60, 150, 2):  # a bias that is cut to MOST_ROOM
        rows = rng.integers(-128, 128, (3, 4))
        yield run(rng.uniform(0.4, 2, 4), rng.choice([-1, 1], 4) * 2.0**-tiny, 0.03, rows)
        yield run(rng.uniform(0.4, 2, 4) * 2.0**-20, rng.choice([-1, 1], 4) * 2.0**-tiny, 2.0**-20, rows)


@search
def deployed_layernorm(rng: Rng) -> Outcomes:
    """I-ViT's 32-bit LayerNorm: variances that are small, beside squares, and that wrap."""
    from intvit.kernels import registry

    method = registry.get("layernorm", "ivit_tvm")
    for scale in (1, 3, 50, 1000, 2**14, 2**16, 2**20, 2**27, 2**31):
        for channels in (1, 2, 5, 64):
            params, _ = method.lower(0.1, gamma=np.ones(channels), beta=rng.normal(0, 1, channels))
            rows = rng.integers(-scale, scale, (200, channels))
            yield f"layernorm(ivit_tvm, {scale}, {channels})", outcome(method.kernel(params), rows)


# --------------------------------------------------------------------------------------- elsewhere


@search
def damaged_texts(rng: Rng) -> Outcomes:
    """Collections of texts whose sizes, marks and ends lie anywhere, inside one another, and short of one another."""
    from intvit.files import hdf5

    with tempfile.TemporaryDirectory() as folder:
        for number in range(6000):
            data = bytearray(16 * int(rng.integers(1, 40)) + int(rng.choice([0, 0, 1, 8, 15])))
            for at in range(0, len(data) - 15, 16):  # empty texts, some that are longer, a few that are free
                data[at] = rng.random() < 0.9
                data[at + 8] = int(rng.choice([0, 0, 0, 1, 8, 15, 16, 17, 48]))
            for drawn in rng.integers(-8, len(data), int(rng.integers(0, 5))):
                at = max(int(drawn) // 8 * 8 + int(rng.choice([0, 0, 0, 1])), 0)
                size = max((len(data) - at) // 16 * 16 + int(rng.choice([0, 0, 0, -16, 16, 1])), 0)
                data[at : at + 16] = (hdf5.HEAP + size.to_bytes(8, "little"))[: len(data) - at]
            path = f"{folder}/{number % 2}"
            with open(path, "wb") as file:
                file.write(data)
            yield f"heaps({bytes(data).hex()})", outcome(hdf5._heap_fault, path, number, len(data), 0)


@search
def listings(rng: Rng) -> Outcomes:
    """Listings of no name, of one and of several, with values of every width, and with none."""
    from intvit.spec.taps import listing

    for _ in range(2000):
        taps: dict[str, list[int | None]] = {}
        for name in ("", "y", "sum", "remainder"):
            if rng.random() < 0.5:
                count = int(rng.integers(0, 3))
                taps[name] = [int(rng.integers(*INT64)) >> int(rng.integers(0, 64)) for _ in range(count)]
        yield f"listing({taps})", listing(taps)
