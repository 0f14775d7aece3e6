"""Integer matrix products by the processor's own integer dot products, requantized on the way out.

A tile of MR rows times NR columns stays in registers over the whole depth: `vpdpbusd` (four 8-bit products per lane,
AVX-512 VNNI), `vpdpwssd` (two of 16 bits, VNNI) or `pmaddwd` (two of 16 bits, AVX2). All three add into 32 bits that
wrap, so the order of sums does not matter and every path gives the same integers: those of the spec, where the
declared accumulator holds the sum. `vpdpbusd` takes one unsigned operand: the left one is stored plus 128, and 128
times the column sums of the right one are subtracted.

The dtype of a packed right operand says which instruction meets it: uint8 vpdpbusd, uint16 vpdpwssd, int16 pmaddwd. On
processors without any of them `path8` and `path16` are None, and `kernels/matmul.py` multiplies.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

from intvit.errors import IntvitError
from intvit.kernels.arith import kernel
from intvit.kernels.border import border, characters
from intvit.kernels.requantize import regular

Array = np.ndarray[Any, Any]
MR, NR = 12, 32
"""Rows and columns of a tile: 24 vector registers of sums with AVX-512; with AVX2 four parts of 6 x 16."""
WORD = 4
"""Bytes of one row (left) or one column (right) that one instruction takes."""
ROW_BLOCK = 8 * MR
"""Rows that are packed at a time."""
INT32_MAX = 2**31 - 1
VNNI, PMADDWD = "llvm.x86.avx512", "llvm.x86.avx2.pmadd.wd"
EVERY_TOP_BIT = np.int32(-0x7F7F7F80)
"""0x80 in each of four bytes: adds 128 to signed bytes, making them unsigned."""


def target_features() -> dict[str, bool]:
    """Processor features that Numba compiles for: the host's, unless NUMBA_CPU_NAME and its kin say otherwise."""
    found = {}
    wanted = getattr(config, "CPU_FEATURES", None)
    wanted = codegen.get_host_cpu_features() if wanted is None else wanted
    for feature in filter(None, wanted.split(",")):
        found[feature[1:]] = feature[0] == "+"
    return found


def known_to_llvm(intrinsic_name: str, operand: str, result: str, n_operands: int) -> bool:
    """True if this LLVM has the intrinsic with these types."""
    types_ = ", ".join([result] * (n_operands > 2) + [operand] * 2)
    try:
        llvm.parse_assembly(f"declare {result} @{intrinsic_name}({types_})").verify()
    except RuntimeError:
        return False
    return True


NEEDS = {
    "vnni": (("avx512f", "avx512bw", "avx512vnni"), (f"{VNNI}.vpdpbusd.512", "<16 x i32>", "<16 x i32>", 3)),
    "avx2": (("avx2",), (PMADDWD, "<16 x i16>", "<8 x i32>", 2)),
}
"""Path -> processor features, and an intrinsic as `known_to_llvm` takes it."""


@cache
def path_notes() -> dict[str, str]:
    """Every path, fastest first, and why it cannot be taken ("" if it can)."""
    features, notes = target_features(), {}
    for path, (wanted, form) in NEEDS.items():
        missing = [name for name in wanted if not features.get(name)]
        notes[path] = f"the processor that Numba compiles for lacks {', '.join(missing)}" if missing else ""
        if not missing and not known_to_llvm(*form):
            notes[path] = f"this LLVM lacks {form[0]}({form[1]})"
    return {**notes, "blas": ""}


def available_paths() -> tuple[str, ...]:
    """The paths that can be taken here, fastest first; `blas` is the float carrier of `kernels/matmul.py`."""
    return tuple(path for path, note in path_notes().items() if not note)


def chosen_path() -> str:
    """The fastest path, or the one that the environment variable INTVIT_GEMM names. It never changes a bit."""
    wanted = os.environ.get("INTVIT_GEMM")
    if wanted is None:
        return available_paths()[0]
    if wanted not in available_paths():
        raise IntvitError(f"INTVIT_GEMM: must be one of {', '.join(available_paths())}, not {wanted!r}")
    return wanted


def packed_type(path: str, left: Any) -> Any:
    """dtype of a packed right operand on `path` for a left operand of dtype `left` (int8 or int16)."""
    if path == "vnni":
        return np.uint8 if left == np.int8 else np.uint16
    return np.int16


# --------------------------------------------------------------------------------------- intrinsics

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_INTEGERS = {8: _I8, 16: _I16, 32: _I32}


def _bytes_at(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, _I8.as_pointer()), [offset])


@intrinsic
def load_word(typingctx, array, offset):
    """The 32 bits at byte `offset` of a contiguous array, as int32; no alignment needed."""

    def codegen(context, builder, signature, args):
        at = _bytes_at(context, builder, array, args[0], args[1])
        return builder.load(builder.bitcast(at, _I32.as_pointer()), align=1)

    return types.int32(array, types.int64), codegen


@intrinsic
def store_word(typingctx, array, offset, word):
    """Write the low 32 bits of `word` at byte `offset`."""

    def codegen(context, builder, signature, args):
        at = _bytes_at(context, builder, array, args[0], args[1])
        builder.store(args[2], builder.bitcast(at, _I32.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int32), codegen


@intrinsic
def multiply_tile(typingctx, left, left_offset, right, right_offset, steps, sums):
    """sums[:MR, :NR] = a packed row tile times a packed column panel; offsets in bytes, steps >= 1."""
    signature = types.void(left, types.int64, right, types.int64, types.int64, sums)

    def codegen(context, builder, signature, args):
        a = _bytes_at(context, builder, left, args[0], args[1])
        b = _bytes_at(context, builder, right, args[2], args[3])
        c = _bytes_at(context, builder, sums, args[5], _I64(0))
        _emit_tile(builder, right.dtype, a, b, c, args[4])
        return context.get_dummy_value()

    return signature, codegen


def _emit_tile(builder: Any, kind: Any, a: Any, b: Any, c: Any, steps: Any) -> None:
    """LLVM for one tile: per part of the tile a loop over the depth, its sums in registers."""
    wide = kind in (types.uint8, types.uint16)
    lanes, rows = (16, MR) if wide else (8, MR // 2)
    vector = ir.VectorType(_I32, lanes)
    operand = vector if wide else ir.VectorType(_I16, 2 * lanes)
    if wide:  # with words as operands: older LLVMs have no other form, newer ones read it as their own
        name = "vpdpbusd" if kind == types.uint8 else "vpdpwssd"
        shape = ir.FunctionType(vector, [vector, operand, operand])
        function = cgutils.get_or_insert_function(builder.module, shape, f"{VNNI}.{name}.512")
    else:
        shape = ir.FunctionType(vector, [operand, operand])
        function = cgutils.get_or_insert_function(builder.module, shape, PMADDWD)

    def multiply_add(total: Any, x: Any, y: Any) -> Any:
        return builder.call(function, [total, x, y]) if wide else builder.add(total, builder.call(function, [x, y]))

    for row in range(0, MR, rows):
        for column in range(0, NR, 2 * lanes):
            before = builder.block
            loop, after = builder.append_basic_block("depth"), builder.append_basic_block("tile")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(_I64)
            step.add_incoming(_I64(0), before)
            totals = [[builder.phi(vector) for _ in range(2)] for _ in range(rows)]
            at = builder.gep(b, [builder.add(builder.mul(step, _I64(NR * WORD)), _I64(column * WORD))])
            columns = [_load_vector(builder, at, v * lanes * WORD, vector, operand) for v in range(2)]
            at = builder.gep(a, [builder.add(builder.mul(step, _I64(MR * WORD)), _I64(row * WORD))])
            results = []
            for r in range(rows):
                word = builder.load(builder.bitcast(builder.gep(at, [_I64(r * WORD)]), _I32.as_pointer()), align=4)
                spread = builder.bitcast(_splat(builder, word, vector, lanes), operand)
                # vpdpbusd: the first operand is the unsigned one
                results.append([multiply_add(totals[r][v], spread, columns[v]) for v in range(2)])
                for v in range(2):
                    totals[r][v].add_incoming(ir.Constant(vector, None), before)
                    totals[r][v].add_incoming(results[r][v], loop)
            following = builder.add(step, _I64(1))
            step.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
            builder.position_at_end(after)
            for r in range(rows):
                for v in range(2):
                    at = builder.gep(c, [_I64(((row + r) * NR + column + v * lanes) * WORD)])
                    builder.store(results[r][v], builder.bitcast(at, vector.as_pointer()), align=4)


@intrinsic
def finish_panel(typingctx, sums, rows, offset, m, e, half, first, low, high, out, at, stride):
    """out[at + i*stride + c] = saturate(rhe((sums[i, c] + offset[c]) * m[c], 2**e[c])), NR columns a row.

    Constants are read at `first` + c. Indices count elements.
    """
    count = types.int64
    signature = types.void(sums, count, offset, m, e, half, count, count, count, out, count, count)

    def codegen(context, builder, signature, args):
        kind = _INTEGERS[signature.args[9].dtype.bitwidth]
        wide, narrow = ir.VectorType(_I64, 8), ir.VectorType(kind, 8)
        first = args[6]

        def pointer(index, array, at, element):
            size = {_I32: 4, _I64: 8, kind: signature.args[9].dtype.bitwidth // 8}[element]
            return _bytes_at(context, builder, signature.args[index], array, builder.mul(at, _I64(size)))

        def constants(index, element):
            """The panel's NR constants as four vectors of int64."""
            base = pointer(index, args[index], first, element)
            found = []
            for group in range(NR // 8):
                shape = ir.VectorType(element, 8)
                at = builder.gep(base, [_I64(group * 8 * (4 if element is _I32 else 8))])
                found.append(builder.load(builder.bitcast(at, shape.as_pointer()), align=4))
            return found

        offsets, multipliers = constants(2, _I32), [builder.sext(v, wide) for v in constants(3, _I32)]
        shifts, halves = constants(4, _I64), constants(5, _I64)
        lows, highs = (_splat(builder, args[i], wide, 8) for i in (7, 8))
        one = ir.Constant(wide, [_I64(1)] * 8)
        with cgutils.for_range(builder, args[1]) as loop:
            row = _bytes_at(context, builder, signature.args[0], args[0], builder.mul(loop.index, _I64(NR * WORD)))
            to = builder.add(args[10], builder.mul(loop.index, args[11]))
            target = pointer(9, args[9], to, kind)
            for group in range(NR // 8):
                sums_at = builder.gep(row, [_I64(group * 8 * WORD)])
                total = builder.load(builder.bitcast(sums_at, ir.VectorType(_I32, 8).as_pointer()), align=4)
                product = builder.mul(builder.sext(builder.add(total, offsets[group]), wide), multipliers[group])
                odd = builder.and_(builder.ashr(product, shifts[group]), one)
                rounded = builder.ashr(builder.add(builder.add(product, halves[group]), odd), shifts[group])
                rounded = builder.select(builder.icmp_signed("<", rounded, lows), lows, rounded)
                rounded = builder.select(builder.icmp_signed(">", rounded, highs), highs, rounded)
                size = signature.args[9].dtype.bitwidth // 8
                store_at = builder.bitcast(builder.gep(target, [_I64(group * 8 * size)]), narrow.as_pointer())
                builder.store(builder.trunc(rounded, narrow), store_at, align=1)
        return context.get_dummy_value()

    return signature, codegen


def _load_vector(builder: Any, base: Any, offset: int, vector: Any, operand: Any) -> Any:
    at = builder.bitcast(builder.gep(base, [_I64(offset)]), vector.as_pointer())
    return builder.bitcast(builder.load(at, align=4), operand)


def _splat(builder: Any, word: Any, vector: Any, lanes: int) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, word, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, lanes), [_I32(0)] * lanes))


# ------------------------------------------------------------------------------------------ packing


@kernel
def pack_rows(flat, start, row_stride, step_stride, rows, depth, steps, shift, packed):
    """Rows of the left operand as words, tile by tile: packed[tile][step][MR] words; missing rows and depth are 0.

    Elements are `flat[start + i*row_stride + k*step_stride] + shift`; `packed` is int8 (shift 0 or 128) or int16 (0).
    """
    unit = WORD // packed.itemsize
    tiles = (rows + MR - 1) // MR
    plain = step_stride == 1 and flat.itemsize == packed.itemsize
    word_flip = EVERY_TOP_BIT if shift == 128 else np.int32(0)
    whole = depth // unit if plain else 0
    pairs = step_stride == 1 and flat.itemsize < packed.itemsize
    done = depth // 2 if pairs else whole
    for tile in range(tiles):
        for r in range(MR):
            i = tile * MR + r
            to = (tile * steps * MR + r) * WORD
            if i >= rows:
                for s in range(steps):
                    store_word(packed, to + s * MR * WORD, np.int32(0))
                continue
            at = start + i * row_stride
            if pairs:
                for s in range(depth // 2):
                    low, high = np.int32(flat[at + 2 * s]), np.int32(flat[at + 2 * s + 1])
                    store_word(packed, to + s * MR * WORD, (low & 0xFFFF) | (high << 16))
            for s in range(whole):
                store_word(packed, to + s * MR * WORD, load_word(flat, (at + s * unit) * flat.itemsize) ^ word_flip)
            for s in range(done, steps):
                for u in range(unit):
                    k = s * unit + u
                    value = np.int64(flat[at + k * step_stride]) + shift if k < depth else 0
                    packed[(to + s * MR * WORD) // packed.itemsize + u] = value


@kernel
def column_sums(flat, start, depth_stride, column_stride, depth, columns, sums):
    """sums[c] = sum of column c of the right operand; 0 beyond its edge."""
    for c in range(columns, sums.shape[0]):
        sums[c] = 0
    if depth_stride == 1:
        for c in range(columns):
            at = start + c * column_stride
            total = np.int32(0)
            for k in range(depth):
                total += np.int32(flat[at + k])
            sums[c] = total
    else:
        for c in range(columns):
            sums[c] = 0
        for k in range(depth):
            at = start + k * depth_stride
            if column_stride == 1:
                for c in range(columns):
                    sums[c] += np.int32(flat[at + c])
            else:
                for c in range(columns):
                    sums[c] += np.int32(flat[at + c * column_stride])


@kernel
def pack_columns(flat, start, depth_stride, column_stride, depth, columns, steps, packed):
    """The right operand as words: packed[panel][step][NR] words, zeros beyond its edges.

    `packed` is an int8 or int16 view of the packed operand.
    """
    unit = WORD // packed.itemsize
    panels = (columns + NR - 1) // NR
    whole = depth // unit if depth_stride == 1 and flat.itemsize == packed.itemsize else 0
    pairs = packed.itemsize == 2 and column_stride == 1
    words = packed.view(np.int32)
    for panel in range(panels):
        wide = min(NR, columns - panel * NR)
        base = panel * steps * NR
        if wide < NR or whole < steps:
            for i in range(base, base + steps * NR):
                words[i] = 0
        for c in range(wide):
            at = start + (panel * NR + c) * column_stride
            for s in range(whole):
                words[base + s * NR + c] = load_word(flat, (at + s * unit) * flat.itemsize)
        for s in range(whole, steps):
            at = start + panel * NR * column_stride + s * unit * depth_stride
            to = base + s * NR
            if pairs and 2 * s + 1 < depth:
                for c in range(wide):
                    words[to + c] = (np.int32(flat[at + c]) & 0xFFFF) | (np.int32(flat[at + depth_stride + c]) << 16)
            else:
                for u in range(min(unit, depth - s * unit)):
                    for c in range(wide):
                        packed[(to + c) * unit + u] = flat[at + u * depth_stride + c * column_stride]


# ---------------------------------------------------------------------------------------- multiply


@kernel
def finish(sums, rows, columns, first, offset, m, e, half, low, high, edge, out, to, stride):
    """out = saturate(rhe((sums + offset) * m, 2**e)) for the rows of a tile; for m empty sums + offset.

    1 <= e <= 62 and half = 2**(e-1) - 1: |sum * m| < 2**62, so that every term fits int64. A panel that the matrix
    does not fill goes through `edge`.
    """
    if m.shape[0] == 0:
        for i in range(rows):
            for c in range(columns):
                out[to + i * stride + c] = np.int32(sums[i, c] + offset[first + c])
        return
    if columns == NR:
        finish_panel(sums, rows, offset, m, e, half, first, low, high, out, to, stride)
        return
    finish_panel(sums, rows, offset, m, e, half, first, low, high, edge, 0, NR)
    for i in range(rows):
        for c in range(columns):
            out[to + i * stride + c] = edge[i * NR + c]


@kernel
def multiply_packed(
    flat, start, row_stride, step_stride, rows, depth, shift, left, right, steps, columns, sums, offset, m, e, half,
    low, high, edge, out, to, out_stride,
):  # fmt: skip
    """A left operand (strided in `flat`) times a packed right one, block by block, finished into `out`."""
    panels = (columns + NR - 1) // NR
    for i in range(0, rows, ROW_BLOCK):
        n = min(ROW_BLOCK, rows - i)
        pack_rows(flat, start + i * row_stride, row_stride, step_stride, n, depth, steps, shift, left)
        for panel in range(panels):
            j = panel * NR
            for tile in range((n + MR - 1) // MR):
                left_at, right_at = tile * steps * MR * WORD, panel * steps * NR * WORD
                multiply_tile(left, left_at, right, right_at, steps, sums)
                row = i + tile * MR
                finish(
                    sums, min(MR, rows - row), min(NR, columns - j), j, offset, m, e, half, low, high, edge, out,
                    to + row * out_stride + j, out_stride,
                )  # fmt: skip


@kernel
def multiply_batch(
    flat, starts, row_stride, step_stride, rows, depth, shift, left, b, b_starts, depth_stride, column_stride, right,
    right_signed, steps, columns, sums, correction, m, e, half, low, high, edge, out, tos,
    out_stride,
):  # fmt: skip
    """One product of activations per entry of `starts`: pack the right operand, then as `multiply_packed`.

    False if a matrix lies outside its array.
    """
    offset = np.zeros((columns + NR - 1) // NR * NR, np.int32)
    last = flat.shape[0] - 1 - (rows - 1) * row_stride - (depth - 1) * step_stride
    b_last = b.shape[0] - 1 - (depth - 1) * depth_stride - (columns - 1) * column_stride
    out_last = out.shape[0] - 1 - (rows - 1) * out_stride - (columns - 1)
    for n in range(starts.shape[0]):
        if min(starts[n], b_starts[n], tos[n]) < 0 or starts[n] > last or b_starts[n] > b_last or tos[n] > out_last:
            return False
        pack_columns(b, b_starts[n], depth_stride, column_stride, depth, columns, steps, right_signed)
        if correction != 0:
            column_sums(b, b_starts[n], depth_stride, column_stride, depth, columns, offset)
            for c in range(columns):
                offset[c] = np.int32(offset[c] * correction)
        multiply_packed(
            flat, starts[n], row_stride, step_stride, rows, depth, shift, left, right, steps, columns, sums, offset, m,
            e, half, low, high, edge, out, tos[n], out_stride,
        )  # fmt: skip
    return True


# ---------------------------------------------------------------------------------------- borders


def _steps(depth: int, packed: Array) -> int:
    """Words that `depth` elements fill, packed as `packed` is."""
    return -(-depth // (WORD // packed.itemsize))


def _padded(columns: int) -> int:
    """Columns of whole panels."""
    return columns + -columns % NR


def _line(array: Any, kinds: str) -> bool:
    """True for a contiguous vector of the machine's byte order whose dtype has one of these one-letter codes."""
    kind = array.dtype
    return bool(array.ndim == 1 and kind.char in kinds and kind.isnative and array.flags.c_contiguous)


def _inside(flat: Array, start: int, rows: int, row_stride: int, columns: int, column_stride: int) -> bool:
    """True if every element of a matrix at `start` of `flat` lies in it."""
    last = start + (rows - 1) * row_stride + (columns - 1) * column_stride
    return min(start, row_stride, column_stride) >= 0 and min(rows, columns) >= 1 and last < flat.size


def _require(name: str, fits: bool) -> None:
    if not fits:
        raise IntvitError(f"gemm {name}: arrays must fit the sizes that come with them, and do not")


def _check_columns(
    flat: Array, start: int, depth_stride: int, column_stride: int, depth: int, columns: int, steps: int, packed: Array
) -> None:
    fits = _line(flat, _NARROW) and _line(packed, _NARROW) and flat.itemsize <= packed.itemsize
    fits = fits and steps == _steps(depth, packed) and packed.nbytes >= _padded(columns) * steps * WORD
    _require("pack_columns", fits and _inside(flat, start, depth, depth_stride, columns, column_stride))


def _check_sums(
    flat: Array, start: int, depth_stride: int, column_stride: int, depth: int, columns: int, sums: Array
) -> None:
    fits = _line(flat, _NARROW) and _line(sums, _INT32) and sums.size >= columns
    _require("column_sums", fits and _inside(flat, start, depth, depth_stride, columns, column_stride))


def _check_tiles(
    depth: int, left: Array, right: Array, steps: int, columns: int, sums: Array, m: Array, e: Array, half: Array,
    high: int, edge: Array, out: Array,
) -> bool:  # fmt: skip
    """Whether all is there that one tile after another reads and writes: packed operands, constants, sums, edge."""
    padded, constants = _padded(columns), m.size
    return (
        left.dtype.char + right.dtype.char in _PAIRS
        and steps == _steps(depth, left)
        and _line(left, _NARROW)
        and left.nbytes >= ROW_BLOCK * steps * WORD
        and right.nbytes >= padded * steps * WORD
        and _line(right, right.dtype.char)
        and sums.dtype == np.int32
        and sums.shape == (MR, NR)
        and sums.flags.c_contiguous
        and (constants >= padded or (not constants and out.dtype.char in _INT32))
        and constants == e.size == half.size
        and _line(m, _INT32)
        and _line(e, _INT64)
        and _line(half, _INT64)
        and _line(out, _NARROW + _INT32)
        and high >> (8 * out.itemsize - 1) == 0
        and _line(edge, out.dtype.char)
        and edge.size >= MR * NR
    )


_INT32, _INT64, _NARROW = (characters(kinds) for kinds in ("int32", "int64", "int8|int16"))
_PAIRS = ("bB", "hH", "hh")
"""Codes of the dtypes of packed operands that meet in an instruction."""


def _check_packed(
    flat: Array, start: int, row_stride: int, step_stride: int, rows: int, depth: int, shift: int, left: Array,
    right: Array, steps: int, columns: int, sums: Array, offset: Array, m: Array, e: Array, half: Array, low: int,
    high: int, edge: Array, out: Array, to: int, out_stride: int,
) -> None:  # fmt: skip
    fits = _check_tiles(depth, left, right, steps, columns, sums, m, e, half, high, edge, out)
    fits = fits and _line(flat, _NARROW) and flat.itemsize <= left.itemsize
    fits = fits and _line(offset, _INT32) and offset.size >= _padded(columns)
    fits = fits and _inside(flat, start, rows, row_stride, depth, step_stride)
    _require("multiply_packed", fits and _inside(out, to, rows, out_stride, columns, 1))


def _check_batch(
    flat: Array, starts: Array, row_stride: int, step_stride: int, rows: int, depth: int, shift: int, left: Array,
    b: Array, b_starts: Array, depth_stride: int, column_stride: int, right: Array, right_signed: Array, steps: int,
    columns: int, sums: Array, correction: int, m: Array, e: Array, half: Array, low: int, high: int, edge: Array,
    out: Array, tos: Array, out_stride: int,
) -> None:  # fmt: skip
    """The kernel itself compares every start with the arrays."""
    fits = _check_tiles(depth, left, right, steps, columns, sums, m, e, half, high, edge, out)
    fits = fits and _line(flat, _NARROW) and flat.itemsize <= left.itemsize
    fits = fits and _line(right_signed, _NARROW) and right_signed.nbytes >= _padded(columns) * steps * WORD
    fits = fits and _line(b, _NARROW) and b.itemsize <= right_signed.itemsize == right.itemsize
    fits = fits and _line(starts, _INT64) and _line(b_starts, _INT64) and _line(tos, _INT64)
    fits = fits and starts.size == b_starts.size == tos.size
    fits = fits and _inside(flat, 0, rows, row_stride, depth, step_stride)
    fits = fits and _inside(b, 0, depth, depth_stride, columns, column_stride)
    _require("multiply_batch", fits and _inside(out, 0, rows, out_stride, columns, 1))


enter_pack_columns = border(_check_columns)(pack_columns)
enter_column_sums = border(_check_sums)(column_sums)
enter_multiply_packed = border(_check_packed)(multiply_packed)
enter_multiply_batch = border(_check_batch)(multiply_batch)


# ------------------------------------------------------------------------------------------ Python


@dataclass(frozen=True)
class Epilogue:
    """What happens to accumulators before they are stored: constants per column, padded to whole panels.

    `m` empty: nothing, they are stored as they are.
    """

    m: Array
    e: Array
    half: Array
    low: int
    high: int

    @staticmethod
    def raw() -> Epilogue:
        nothing = np.zeros(0, np.int64)
        return Epilogue(np.zeros(0, np.int32), nothing, nothing, 0, 0)

    @staticmethod
    def dyadic(m: Array, e: Array, bits: int, columns: int) -> Epilogue | None:
        """`saturate(rhe(x*m, 2**e))` at `bits`; None where the fast form does not hold: e outside 1..62."""
        constants = regular(np.asarray(m), np.asarray(e))
        if constants is None or bits > 32:
            return None
        m, e, half = (np.pad(np.broadcast_to(v, columns), (0, -columns % NR), mode="edge") for v in constants)
        return Epilogue(m.astype(np.int32), e, half, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class Operand:
    """A batch of matrices inside an array: `flat[starts[n] + i*row + k*column]`."""

    flat: Array
    starts: Array
    row: int
    column: int


def operand(x: Array) -> Operand:
    """View (..., R, K) without a copy; copied only if its strides are no multiples of its item size."""
    if any(stride < 0 or stride % x.itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    strides = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,))
    starts = np.zeros((), np.int64)
    for n, stride in zip(x.shape[:-2], strides[:-2], strict=True):
        starts = np.add.outer(starts, np.arange(n) * stride)
    return Operand(flat, np.ascontiguousarray(starts.reshape(-1)), strides[-2], strides[-1])


@dataclass(frozen=True)
class Linear:
    """A prepared linear operator: packed weights and the constants of its epilogue. One value serves every thread."""

    right: Array
    steps: int
    depth: int
    columns: int
    offset: Array
    shift: int
    left: Any
    """dtype of the packed left operand."""
    takes: Any
    """dtype of the operand that it was prepared for."""
    epilogue: Epilogue

    def run(self, x: Array, kind: Any) -> Array:
        """x (..., K) int8 or int16 -> (..., O) of dtype `kind`."""
        if x.dtype != self.takes or x.shape[-1:] != (self.depth,):
            raise IntvitError(f"linear: x must be {np.dtype(self.takes)} (..., {self.depth}), not {x.dtype} {x.shape}")
        rows = np.ascontiguousarray(x).reshape(-1, self.depth)
        out = np.empty((len(rows), self.columns), kind)
        if not out.size:
            return out.reshape(*x.shape[:-1], self.columns)
        left, sums, edge = _scratch(self.left, self.steps, kind)
        f = self.epilogue
        enter_multiply_packed(
            rows.reshape(-1), 0, self.depth, 1, len(rows), self.depth, self.shift, left, self.right, self.steps,
            self.columns, sums, self.offset, f.m, f.e, f.half, f.low, f.high, edge, out.reshape(-1), 0,
            self.columns,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], self.columns)


def aligned(count: int, kind: Any) -> Array:
    """An uninitialised vector that starts a cache line, so that no vector load crosses one."""
    raw = np.empty(count * np.dtype(kind).itemsize + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + count * np.dtype(kind).itemsize].view(kind)


def _scratch(left: Any, steps: int, kind: Any) -> tuple[Array, Array, Array]:
    """(packed rows, sums of a tile, an edge tile of the output) for one thread."""
    packed = aligned(ROW_BLOCK * steps * WORD // np.dtype(left).itemsize, left)
    return packed, aligned(MR * NR, np.int32).reshape(MR, NR), np.empty(MR * NR, kind)


def _packed(flat: Array, depth: int, columns: int, strides: tuple[int, int], kind: Any) -> tuple[Array, Array, int]:
    """(packed right operand, column sums, steps)"""
    steps = -(-depth // (WORD // np.dtype(kind).itemsize))
    padded = _padded(columns)
    packed, sums = aligned(padded * steps * WORD, np.uint8).view(kind), np.empty(padded, np.int32)
    enter_pack_columns(flat, 0, *strides, depth, columns, steps, _signed(packed))
    enter_column_sums(flat, 0, *strides, depth, columns, sums)
    return packed, sums.astype(np.int64), steps


def _signed(packed: Array) -> Array:
    return packed.view(np.int8 if packed.itemsize == 1 else np.int16)


def prepare_linear(
    weight: Array, bias: Array | None, x_max: int, left: Any, epilogue: Epilogue, path: str
) -> Linear | None:
    """A linear operator for |x| <= x_max of dtype `left`, or None where the proven bound leaves 32 bits."""
    columns, depth = weight.shape
    if not weight.size:
        return None
    offset = np.zeros(columns, np.int64) if bias is None else bias.astype(np.int64)
    if offset.shape != (columns,):
        raise IntvitError(f"linear: bias must have {columns} elements, not {offset.shape}")
    bound = np.abs(weight.astype(np.int64)).sum(axis=1) * x_max + np.abs(offset)
    if path == "blas" or left not in (np.int8, np.int16) or int(bound.max()) > INT32_MAX:
        return None
    kind = packed_type(path, left)
    eight = kind == np.uint8
    flat = np.ascontiguousarray(weight, np.int8 if eight else np.int16).reshape(-1)
    right, sums, steps = _packed(flat, depth, columns, (1, depth), kind)
    offset = np.pad(offset, (0, -columns % NR)) - (128 * sums if eight else 0)
    shift, packed_left = (128, np.int8) if eight else (0, np.int16)
    offset = offset.astype(np.int32)  # wraps, as the sums do
    return Linear(right, steps, depth, columns, offset, shift, packed_left, left, epilogue)


@dataclass(frozen=True)
class Product:
    """A prepared product of activations a (..., R, K) and b (..., K, C); `a` may stand for a + lift (16 bits)."""

    path: str
    epilogue: Epilogue
    lift: int

    def run(self, a: Array, b: Array, kind: Any, order: tuple[int, ...] | None = None) -> Array:
        """a int8 or int16, b int8 (..., K, C) -> (..., R, C) of dtype `kind`.

        `order`: a permutation of the result's axes in which it lies in memory.
        """
        self.check(a, b)
        (depth, columns), rows, lead = b.shape[-2:], a.shape[-2], a.shape[:-2]
        out, target = _ordered((*lead, rows, columns), kind, order)
        if not (a.size and b.size):  # the sum of nothing is 0
            out[...] = 0
            return out
        left_kind = np.int8 if a.dtype == np.int8 and self.path == "vnni" else np.int16
        right_kind = packed_type(self.path, left_kind)
        steps = -(-depth // (WORD // np.dtype(left_kind).itemsize))
        padded = _padded(columns)
        right = aligned(padded * steps * WORD // np.dtype(right_kind).itemsize, right_kind)
        eight = right_kind == np.uint8
        x, y, z, f = operand(a), operand(b), operand(target), self.epilogue
        left, sums, edge = _scratch(left_kind, steps, kind)
        enter_multiply_batch(
            x.flat, x.starts, x.row, x.column, rows, depth, 128 if eight else 0, left, y.flat, y.starts, y.row,
            y.column, right, _signed(right), steps, columns, sums, -128 if eight else self.lift, f.m, f.e, f.half,
            f.low, f.high, edge, z.flat, z.starts, z.row,
        )  # fmt: skip
        return out

    def check(self, a: Array, b: Array) -> None:
        """Raise IntvitError if a (..., R, K) and b (..., K, C) are no operands of one product."""
        if min(a.ndim, b.ndim) < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
            raise IntvitError(f"matmul: shapes must be (..., R, K) and (..., K, C), not {a.shape} and {b.shape}")
        if a.dtype not in (np.int8, np.int16) or b.dtype != np.int8 or (self.lift and a.dtype == np.int8):
            lifted = "int16" if self.lift else "int8 or int16"
            raise IntvitError(f"matmul: operands must be {lifted} and int8, not {a.dtype} and {b.dtype}")


def _ordered(shape: tuple[int, ...], kind: Any, order: tuple[int, ...] | None) -> tuple[Array, Array]:
    """(result, the same) of `shape`, contiguous once its axes are permuted by `order`; the last axis stays last."""
    if order is None or order[-1] != len(shape) - 1:
        out = np.empty(shape, kind)
        return out, out
    base = np.empty([shape[axis] for axis in order], kind)
    out = base.transpose(np.argsort(order))
    return out, out
