"""Written as LLVM: words of memory, one tile of a product, and its requantization. Vectors and instructions stop here.

A tile of MR rows times NR columns stays in registers over the whole depth: `vpdpbusd` (four 8-bit products per lane,
AVX-512 VNNI), `vpdpwssd` (two of 16 bits, VNNI) or `pmaddwd` (two of 16 bits, AVX-512 or AVX2). All add into 32 bits
that wrap.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from intvit.kernels.gemm.detect import PMADDWD, PMADDWD_512, VNNI, fuses_additions
from intvit.kernels.gemm.layout import BLOCK, MR, NR, WORD

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_INTEGERS = {8: _I8, 16: _I16, 32: _I32, 64: _I64}


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
    fused = kind == types.uint8 or (kind == types.uint16 and fuses_additions())
    operand = vector if fused else ir.VectorType(_I16, 2 * lanes)
    if fused:  # with words as operands: older LLVMs have no other form, newer ones read it as their own
        name = "vpdpbusd" if kind == types.uint8 else "vpdpwssd"
        shape = ir.FunctionType(vector, [vector, operand, operand])
        function = cgutils.get_or_insert_function(builder.module, shape, f"{VNNI}.{name}.512")
    else:
        shape = ir.FunctionType(vector, [operand, operand])
        function = cgutils.get_or_insert_function(builder.module, shape, PMADDWD_512 if wide else PMADDWD)

    def multiply_add(total: Any, x: Any, y: Any) -> Any:
        return builder.call(function, [total, x, y]) if fused else builder.add(total, builder.call(function, [x, y]))

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
def saturate_row(typingctx, left, right, steps, low, high, out):
    """out[c], for BLOCK columns: from 0, for k in turn, plus left[k] * right[k, c], clamped to low..high; all int32."""
    word = types.int32
    signature = types.void(left, right, types.int64, word, word, out)

    def codegen(context, builder, signature, args):
        a, b, c = (_bytes_at(context, builder, signature.args[i], args[i], _I64(0)) for i in (0, 1, 5))
        lanes = 16
        vector = ir.VectorType(_I32, lanes)
        low, high = (_splat(builder, args[i], vector, lanes) for i in (3, 4))
        totals = [cgutils.alloca_once(builder, vector) for _ in range(BLOCK // lanes)]  # registers, once optimized
        for total in totals:
            builder.store(ir.Constant(vector, None), total)
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.gep(a, [builder.mul(loop.index, _I64(WORD))])
            x = _splat(builder, builder.load(builder.bitcast(at, _I32.as_pointer()), align=4), vector, lanes)
            row = builder.gep(b, [builder.mul(loop.index, _I64(BLOCK * WORD))])
            for v, total in enumerate(totals):
                y = _load_vector(builder, row, v * lanes * WORD, vector, vector)
                found = builder.add(builder.load(total), builder.mul(x, y))
                found = builder.select(builder.icmp_signed("<", found, low), low, found)
                builder.store(builder.select(builder.icmp_signed(">", found, high), high, found), total)
        for v, total in enumerate(totals):
            at = builder.bitcast(builder.gep(c, [_I64(v * lanes * WORD)]), vector.as_pointer())
            builder.store(builder.load(total), at, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def finish_panel(typingctx, sums, rows, offset, epilogue, first, out, at, stride):
    """out[at + i*stride + c] = saturate(round((sums[i, c] + offset[c]) * m[c] / 2**e[c]) + plus), NR columns a row.

    It rounds as `round_shift` does. Constants are read at `first` + c. Indices count elements.
    """
    count = types.int64
    signature = types.void(sums, count, offset, epilogue, count, out, count, count)

    def codegen(context, builder, signature, args):
        sums_kind, _, offset_kind, (m_kind, rounding_kind, *_), _, out_kind, *_ = signature.args
        sums, rows, offset, epilogue, first, out, at, stride = args
        m, rounding, mask, low, high, plus = (builder.extract_value(epilogue, i) for i in range(6))
        size = out_kind.dtype.bitwidth // 8
        wide, narrow = ir.VectorType(_I64, 8), ir.VectorType(_INTEGERS[out_kind.dtype.bitwidth], 8)

        def constants(kind, array, row=0):
            """The panel's NR constants as four vectors."""
            size, shape = kind.dtype.bitwidth // 8, ir.VectorType(_INTEGERS[kind.dtype.bitwidth], 8)
            *_, length = cgutils.unpack_tuple(builder, context.make_array(kind)(context, builder, array).shape)
            start = builder.add(first, builder.mul(length, _I64(row)))
            base = _bytes_at(context, builder, kind, array, builder.mul(start, _I64(size)))
            found = []
            for group in range(NR // 8):
                at = builder.gep(base, [_I64(group * 8 * size)])
                found.append(builder.load(builder.bitcast(at, shape.as_pointer()), align=4))
            return found

        offsets, multipliers = constants(offset_kind, offset), [builder.sext(v, wide) for v in constants(m_kind, m)]
        shifts, added, places = (constants(rounding_kind, rounding, row) for row in range(3))
        masks, lows, highs, added_last = (_splat(builder, value, wide, 8) for value in (mask, low, high, plus))
        with cgutils.for_range(builder, rows) as loop:
            row = _bytes_at(context, builder, sums_kind, sums, builder.mul(loop.index, _I64(NR * WORD)))
            to = builder.add(at, builder.mul(loop.index, stride))
            target = _bytes_at(context, builder, out_kind, out, builder.mul(to, _I64(size)))
            for group in range(NR // 8):
                sums_at = builder.gep(row, [_I64(group * 8 * WORD)])
                total = builder.load(builder.bitcast(sums_at, ir.VectorType(_I32, 8).as_pointer()), align=4)
                product = builder.mul(builder.sext(builder.add(total, offsets[group]), wide), multipliers[group])
                decided = builder.and_(builder.ashr(product, places[group]), masks)
                rounded = builder.ashr(builder.add(builder.add(product, added[group]), decided), shifts[group])
                rounded = builder.add(rounded, added_last)
                rounded = builder.select(builder.icmp_signed("<", rounded, lows), lows, rounded)
                rounded = builder.select(builder.icmp_signed(">", rounded, highs), highs, rounded)
                store_at = builder.bitcast(builder.gep(target, [_I64(group * 8 * size)]), narrow.as_pointer())
                builder.store(builder.trunc(rounded, narrow), store_at, align=1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_panel(typingctx, sums, rows, offset, first, out, at, stride):
    """out[at + i*stride + c] = sums[i, c] + offset[first + c], NR columns a row, 32 bits that wrap.

    Narrower outputs keep the low bits: a raw product is asked for in int32 only.
    """
    count = types.int64
    signature = types.void(sums, count, offset, count, out, count, count)

    def codegen(context, builder, signature, args):
        sums_kind, _, offset_kind, _, out_kind, *_ = signature.args
        sums, rows, offset, first, out, at, stride = args
        width = out_kind.dtype.bitwidth
        vector, stored = ir.VectorType(_I32, 8), ir.VectorType(_INTEGERS[width], 8)
        base = _bytes_at(context, builder, offset_kind, offset, builder.mul(first, _I64(WORD)))
        offsets = [_load_vector(builder, base, group * 8 * WORD, vector, vector) for group in range(NR // 8)]
        with cgutils.for_range(builder, rows) as loop:
            row = _bytes_at(context, builder, sums_kind, sums, builder.mul(loop.index, _I64(NR * WORD)))
            to = builder.add(at, builder.mul(loop.index, stride))
            target = _bytes_at(context, builder, out_kind, out, builder.mul(to, _I64(width // 8)))
            for group in range(NR // 8):
                total = builder.add(_load_vector(builder, row, group * 8 * WORD, vector, vector), offsets[group])
                if width != 32:
                    total = (builder.trunc if width < 32 else builder.sext)(total, stored)
                place = builder.gep(target, [_I64(group * width)])
                builder.store(total, builder.bitcast(place, stored.as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, codegen


def _load_vector(builder: Any, base: Any, offset: int, vector: Any, operand: Any) -> Any:
    at = builder.bitcast(builder.gep(base, [_I64(offset)]), vector.as_pointer())
    return builder.bitcast(builder.load(at, align=4), operand)


def _splat(builder: Any, word: Any, vector: Any, lanes: int) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, word, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, lanes), [_I32(0)] * lanes))
