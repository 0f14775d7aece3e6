"""Integer products: every path that this processor has, against the spec's sums, on adversarial operands."""

import subprocess
import sys

import numpy as np
import pytest

from intvit.errors import IntvitError
from intvit.kernels import gemm
from intvit.kernels.gemm import layout, pack
from intvit.spec.arith import rhe_shift, saturate
from intvit.spec.matmul import linear, matmul

PATHS = [path for path in gemm.available_paths() if path != "blas"]
SHAPES = [(1, 1, 1), (1, 5, 3), (12, 4, 32), (13, 64, 33), (25, 7, 64), (97, 130, 31), (200, 33, 70)]
SPECIAL = ["random", "lowest", "alternating", "one row of extremes"]
pytestmark = pytest.mark.skipif(not PATHS, reason="this processor has no integer dot products that we use")


def fill(kind, shape, low, high, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(low, high + 1, shape)
    if kind == "lowest":
        x[...] = low
    elif kind == "alternating":
        x.reshape(-1)[0::2], x.reshape(-1)[1::2] = low, high
    elif kind == "one row of extremes":
        x[..., 0, :] = high
    return x


def requantized(sums, m, e, bits):
    return [[saturate(rhe_shift(v * int(a), int(b)), bits) for v, a, b in zip(row, m, e, strict=True)] for row in sums]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("left", [np.int8, np.int16])
@pytest.mark.parametrize("path", PATHS)
def test_linear(path, left, kind):
    high = 127 if left is np.int8 else 900
    for seed, (rows, depth, columns) in enumerate(SHAPES):
        x = fill(kind, (rows, depth), -high - 1, high, seed).astype(left)
        w = fill(kind, (columns, depth), -128, 127, seed + 50)
        bias = np.random.default_rng(seed).integers(-(2**20), 2**20, columns)
        prepared = gemm.prepare_linear(w, bias, high + 1, left, gemm.Epilogue.raw(), path)
        sums = np.array(linear(x.tolist(), w.tolist(), bias.tolist()))
        assert np.array_equal(prepared.run(x, np.int32), sums), (rows, depth, columns)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("path", PATHS)
def test_requantized_on_the_way_out(path, bits):
    rng = np.random.default_rng(bits)
    kind = {16: np.int16, 32: np.int32}.get(bits, np.int8)
    for rows, depth, columns in SHAPES:
        x, w = rng.integers(-128, 128, (rows, depth)), rng.integers(-128, 128, (columns, depth))
        m = rng.choice([2**30, 2**31, 2**31 - 1, -(2**31), -(2**30) - 7, 3 * 2**29, 0], columns)
        e = rng.choice([31, 33, 36, 44, 61, 62], columns)
        epilogue = gemm.Epilogue.dyadic(m, e, bits, columns)
        prepared = gemm.prepare_linear(w, None, 128, np.int8, epilogue, path)
        expected = requantized((x @ w.T).tolist(), m, e, bits)
        assert prepared.run(x.astype(np.int8), kind).tolist() == expected


@pytest.mark.parametrize("path", PATHS)
def test_ties_are_rounded_to_even(path):
    # 1 * m / 2**e = 1/2, 3/2, ...: sums 1, 3, 5 by weights of one column
    x = np.arange(-9, 10).reshape(-1, 1).astype(np.int8)
    epilogue = gemm.Epilogue.dyadic(np.array([2**30]), np.array([31]), 8, 1)
    prepared = gemm.prepare_linear(np.array([[1]]), None, 128, np.int8, epilogue, path)
    assert prepared.run(x, np.int8)[:, 0].tolist() == [round(v / 2) for v in range(-9, 10)]


@pytest.mark.parametrize(("m", "e"), [(2**30, 0), (2**30, 63), (2**31, 1), (2**30, -4)])
def test_shifts_beyond_the_fast_form_are_left_to_the_others(m, e):
    assert gemm.Epilogue.dyadic(np.array([m]), np.array([e]), 8, 3) is None


def test_outputs_beyond_32_bits_are_left_to_the_others():
    assert gemm.Epilogue.dyadic(np.array([2**30]), np.array([31]), 33, 3) is None
    assert gemm.Epilogue.dyadic(np.array([2**30]), np.array([31]), 32, 3) is not None


@pytest.mark.parametrize("packed", [np.int8, np.int16])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 31, 32, 33])
def test_packing_the_right_operand_fills_its_panels_and_nothing_else(packed, columns):
    """Words [panel][step][NR], depth pairs or quadruples in a word, 0 where the operand ends; the guard stays."""
    depth, guard = 7, 4 * layout.NR * 4
    unit = layout.WORD // np.dtype(packed).itemsize
    steps, panels = -(-depth // unit), -(-columns // layout.NR)
    b = np.random.default_rng(columns).integers(1, 128, (depth, columns)).astype(np.int8)
    expected = np.zeros((panels, steps, layout.NR, unit), packed)
    for k in range(depth):
        for c in range(columns):
            expected[c // layout.NR, k // unit, c % layout.NR, k % unit] = b[k, c]
    for flat, depth_stride, column_stride in ((b, columns, 1), (b.T, 1, depth)):
        size = panels * steps * layout.NR * unit
        buffer = np.full(size + guard, 77, packed)
        flat = np.ascontiguousarray(flat).reshape(-1)
        pack.pack_columns(flat, 0, depth_stride, column_stride, depth, columns, steps, buffer)
        assert np.array_equal(buffer[:size], expected.reshape(-1))
        assert (buffer[size:] == 77).all()


@pytest.mark.parametrize(("bias", "fits"), [(2**31 - 2, True), (2**31 - 1, False)])
def test_the_bound_is_32_bits(bias, fits):
    prepared = gemm.prepare_linear(np.array([[1]]), np.array([bias]), 1, np.int8, gemm.Epilogue.raw(), PATHS[0])
    assert (prepared is not None) == fits


def test_sums_beyond_32_bits_are_left_to_the_others():
    w = np.full((1, 70000), 127)
    assert gemm.prepare_linear(w, None, 32767, np.int16, gemm.Epilogue.raw(), PATHS[0]) is None


@pytest.mark.parametrize(("left", "lift"), [(np.int8, 0), (np.int16, 0), (np.int16, 16384)])
@pytest.mark.parametrize("path", PATHS)
def test_products_of_activations(path, left, lift):
    product = gemm.Product(path, gemm.Epilogue.raw(), lift)
    high = 127 if left is np.int8 else 2000
    for seed, (lead, rows, depth, columns) in enumerate([((2, 3), 25, 8, 25), ((4,), 7, 5, 49), ((1, 2, 1), 1, 1, 1)]):
        for kind in SPECIAL:
            a = fill(kind, (*lead, rows, depth), -high - 1, high, seed).astype(left)
            k = fill(kind, (*lead, columns, depth), -128, 127, seed + 9).astype(np.int8)
            b = np.swapaxes(k, -1, -2)
            flat = [np.reshape(v, (-1, *v.shape[-2:])) for v in (a.astype(int) + lift, b)]
            expected = np.array([matmul(x.tolist(), y.tolist()) for x, y in zip(*flat, strict=True)])
            expected = expected.reshape(*lead, rows, columns)
            views = [
                (a, b),
                (a, np.ascontiguousarray(b)),
                (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -2, 0)), 0, -2), b),
                (np.flip(np.ascontiguousarray(np.flip(a, -1)), -1), np.flip(np.ascontiguousarray(np.flip(b, -2)), -2)),
                (np.repeat(a, 2, axis=-1)[..., ::2], np.repeat(np.ascontiguousarray(b), 2, axis=-1)[..., ::2]),
            ]
            for x, y in views:
                assert np.array_equal(product.run(x, y, np.int32), expected), (lead, kind)


@pytest.mark.parametrize("path", PATHS)
def test_a_result_laid_out_for_its_reader(path):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (2, 3, 5, 7)).astype(np.int8), rng.integers(-128, 128, (2, 3, 7, 9)).astype(np.int8)
    product = gemm.Product(path, gemm.Epilogue.raw(), 0)
    y = product.run(a, b, np.int32, (0, 2, 1, 3))
    assert np.array_equal(y, product.run(a, b, np.int32))
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous


def test_the_path_can_be_chosen_and_never_changes_a_bit(mixed_path, tmp_path):
    hashes = set()
    for path in gemm.available_paths():
        done = subprocess.run(
            [sys.executable, "-c",
             "import sys, intvit, numpy as np\n"
             "x = np.random.default_rng(0).integers(-128, 128, (3, 1, 28, 28)).astype(np.int8)\n"
             "print(intvit.load(sys.argv[1]).run(x)['logits'].tolist())", str(mixed_path)],
            env={**__import__("os").environ, "INTVIT_GEMM": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_an_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv("INTVIT_GEMM", "abacus")
    with pytest.raises(IntvitError, match=r"INTVIT_GEMM: must be one of .*blas, not 'abacus'"):
        gemm.chosen_path()
