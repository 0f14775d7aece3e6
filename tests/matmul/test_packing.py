"""Operands as words: what packing writes, element for element, whatever the strides; sums of columns."""

import numpy as np
import pytest

from intvit.kernels import gemm
from intvit.kernels.gemm import layout, pack

PATHS = [path for path in gemm.available_paths() if path != "blas"]
DEPTHS = (1, 2, 3, 4, 5, 7, 8, 13)


def laid_out(matrix, row_stride, column_stride, start=3):
    """A vector of ones that holds the matrix with these strides (0 repeats), and more elements behind it."""
    rows, columns = matrix.shape
    flat = np.ones(start + rows * max(row_stride, 1) + columns * max(column_stride, 1) + 64, matrix.dtype)
    for i in range(rows):
        for k in range(columns):
            flat[start + i * row_stride + k * column_stride] = matrix[i, k]
    return flat


def strided(rows, columns, kind, seed):
    """(matrix, its row stride, its column stride): contiguous, transposed, with gaps, and repeating an element."""
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    matrix = rng.integers(limits.min, limits.max, (rows, columns), endpoint=True).astype(kind)
    yield matrix, columns, 1
    yield matrix, 1, rows
    yield matrix, 2 * columns + 1, 2
    yield np.repeat(matrix[:, :1], columns, axis=1), 1, 0
    yield np.repeat(matrix[:1], rows, axis=0), 0, 1


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("kind", "packed", "shift"),
    [(np.int8, np.int8, 0), (np.int8, np.int8, 128), (np.int8, np.int16, 0), (np.int16, np.int16, 0)],
)
def test_packing_the_left_operand_fills_its_tiles_with_zeros(kind, packed, shift, depth):
    """Words [tile][step][MR]; what is shifted by 128 is unsigned; missing rows and depth are 0; the guard stays."""
    unit, guard = layout.WORD // np.dtype(packed).itemsize, 64
    steps = -(-depth // unit) + 1
    for rows in (1, layout.MR - 1, layout.MR, layout.MR + 1):
        tiles = -(-rows // layout.MR)
        for matrix, row_stride, step_stride in strided(rows, depth, kind, rows):
            expected = np.zeros((tiles, steps, layout.MR, unit), packed)
            for i in range(rows):
                for k in range(depth):
                    word = np.int64(matrix[i, k]) + shift
                    expected[i // layout.MR, k // unit, i % layout.MR, k % unit] = word.astype(packed)
            buffer = np.full(expected.size + guard, 77, packed)
            flat = laid_out(matrix, row_stride, step_stride)
            pack.pack_rows(flat, 3, row_stride, step_stride, rows, depth, steps, shift, buffer[: expected.size])
            assert np.array_equal(buffer[: expected.size], expected.reshape(-1)), (rows, row_stride, step_stride)
            assert (buffer[expected.size :] == 77).all()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("kind", "packed"),
    [(np.int8, np.int8), (np.int8, np.int16), (np.int16, np.int16),
     (np.int8, np.uint8), (np.int8, np.uint16), (np.int16, np.uint16)],
)  # fmt: skip
def test_packing_the_right_operand_of_any_strides(kind, packed, depth):
    """Words [panel][step][NR], and nothing read beyond the depth: what stands there is not 0. Unsigned words hold the
    same bits."""
    unit = layout.WORD // np.dtype(packed).itemsize
    steps = -(-depth // unit)
    for columns in (1, layout.NR - 1, layout.NR + 1):
        panels = -(-columns // layout.NR)
        for matrix, depth_stride, column_stride in strided(depth, columns, kind, columns):
            expected = np.zeros((panels, steps, layout.NR, unit), packed)
            for k in range(depth):
                for c in range(columns):
                    expected[c // layout.NR, k // unit, c % layout.NR, k % unit] = matrix[k, c].astype(packed)
            buffer = np.full(expected.size, 77, packed)
            flat = laid_out(matrix, depth_stride, column_stride)
            pack.pack_columns(flat, 3, depth_stride, column_stride, depth, columns, steps, buffer)
            assert np.array_equal(buffer, expected.reshape(-1)), (columns, depth_stride, column_stride)
            sums = np.full(panels * layout.NR, 77, np.int32)
            pack.column_sums(flat, 3, depth_stride, column_stride, depth, columns, sums)
            assert sums.tolist() == [*matrix.sum(axis=0, dtype=np.int64).tolist(), *[0] * (len(sums) - columns)]


@pytest.mark.skipif(not PATHS, reason="this processor has no integer dot products that we use")
@pytest.mark.parametrize("lift", [1, -1, 2])
def test_packing_a_lifted_left_operand(lift):
    rng = np.random.default_rng(3)
    a, b = rng.integers(-300, 300, (2, 3, 5)).astype(np.int16), rng.integers(-128, 128, (2, 5, 4)).astype(np.int8)
    product = gemm.Product(PATHS[0], gemm.Epilogue.raw(), lift)
    assert np.array_equal(product.run(a, b, np.int32), (a.astype(np.int64) + lift) @ b.astype(np.int64))
