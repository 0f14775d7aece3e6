"""Operands as words: what packing writes, and the sums of columns. No products."""

from __future__ import annotations

import numpy as np

from intvit.kernels.arith import kernel
from intvit.kernels.border import border
from intvit.kernels.gemm.checks import check_columns, check_sums
from intvit.kernels.gemm.intrinsics import load_word, store_word
from intvit.kernels.gemm.layout import MR, NR, WORD

EVERY_TOP_BIT = np.int32(-0x7F7F7F80)
"""0x80 in each of four bytes: adds 128 to signed bytes, making them unsigned."""


@kernel
def pack_rows(flat, start, row_stride, step_stride, rows, depth, steps, shift, packed):
    """Rows of the left operand as words, tile by tile: packed[tile][step][MR] words; missing rows and depth are 0.

    Element (i, k), of rows x depth, is `flat[start + i*row_stride + k*step_stride] + shift`. `flat` is int8 or int16,
    `packed` int8 (shift 0 or 128, which makes the bits of an unsigned byte) or int16 (shift 0), never the narrower one.
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
    """sums[c] = sum over k of `flat[start + k*depth_stride + c*column_stride]`, k < depth; 0 for c >= columns.

    `flat` int8 or int16; `sums` int32, at least `columns` of them, which wrap.
    """
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
    """The right operand as words, panel by panel: packed[panel][step][NR] words; missing columns and depth are 0.

    Element (k, c), of depth x columns, is `flat[start + k*depth_stride + c*column_stride]`, int8 or int16. `packed` has
    8 or 16 bits, never fewer than `flat`, and may be unsigned: it holds the bits of the two's complement.
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


enter_pack_columns = border(check_columns)(pack_columns)
enter_column_sums = border(check_sums)(column_sums)
