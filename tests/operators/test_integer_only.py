"""Integer-only is proved: no float type in any kernel as Numba types it; the spec imports neither NumPy nor Numba."""

import importlib
import pkgutil
import subprocess
import sys

import pytest
from numba.core import types

from intvit import kernels
from intvit.kernels.arith import KERNELS
from intvit.kernels.gemm import Epilogue, available_paths
from intvit.kernels.gemm.layout import Matrices, Matrix, Parts, Scratch, Size

for found in pkgutil.walk_packages(kernels.__path__, "intvit.kernels."):
    importlib.import_module(found.name)

I64 = types.int64
ROWS = types.Array(I64, 2, "C")
VECTOR = types.Array(I64, 1, "C")
MASK = types.Array(types.boolean, 2, "C")
CUBE = types.Array(I64, 3, "C")
CUBE8, CUBE32 = (types.Array(kind, 3, "C") for kind in (types.int8, types.int32))
ROWS32 = types.Array(types.int32, 2, "C")
OPEN2, OPEN3 = (types.Array(types.uint8, n, "C") for n in (2, 3))
OUT8 = types.Array(types.int8, 2, "C")
ROWS8 = OUT8
OUT16 = types.Array(types.int16, 2, "C")
LINE8, LINE32 = (types.Array(kind, 1, "C") for kind in (types.int8, types.int32))
PATH = available_paths()[0]
PACKED = types.Array({"vnni": types.uint8, "avx512": types.uint16}.get(PATH, types.int16), 1, "C")
"""A right operand as this processor multiplies it: Numba compiles what a kernel calls, and no other instruction."""
MATRIX = types.NamedTuple([LINE8, *[I64] * 3], Matrix)
BATCH = types.NamedTuple([LINE8, VECTOR, I64, I64], Matrices)
SIZE = types.NamedTuple([I64] * 4, Size)
EPILOGUE = types.NamedTuple([LINE32, ROWS, *[I64] * 4], Epilogue)
SCRATCH = types.NamedTuple([LINE8, ROWS32, LINE8], Scratch)
PARTS = types.NamedTuple([ROWS32, LINE32, ROWS32, ROWS32, I64, OPEN2], Parts)
MATRIX32 = types.NamedTuple([LINE32, *[I64] * 3], Matrix)

# Argument types by name: the same name means the same thing in every kernel.
BY_NAME = {
    "rows": ROWS,
    "out": ROWS,
    "mask": MASK,
    "x": I64,
    "residual": ROWS,
    "b": I64,
    "c": I64,
    "shift": I64,
    "m": I64,
    "e": I64,
    "bias": VECTOR,
    "factor": types.Array(types.int16, 1, "C"),
    "constants": ROWS,
    "words": ROWS32,
    "longs": ROWS,
    "residual_m": VECTOR,
    "residual_e": VECTOR,
}
SPECIAL = {
    "_any_term": (ROWS, VECTOR, VECTOR, I64, OUT8),
    "_any_two_terms": (ROWS, VECTOR, VECTOR, ROWS, VECTOR, VECTOR, I64, OUT8),
    "_mean": (ROWS, VECTOR),
    "through": (I64, I64, I64, VECTOR),
    "by_numerics": (ROWS32, VECTOR, VECTOR, ROWS8, VECTOR, VECTOR, ROWS, VECTOR, types.boolean, OUT8),
    "one_by_stages": (ROWS32, VECTOR, ROWS, VECTOR, I64, OUT8),
    "by_stages": (ROWS32, VECTOR, ROWS, ROWS8, VECTOR, ROWS, ROWS, VECTOR, types.boolean, OUT8),
    "staged": (I64, ROWS, I64),
    "_saturating": (CUBE, CUBE, VECTOR, I64, CUBE),
    "_row_lengths": (ROWS8, I64, I64, ROWS32),
    "_column_lengths": (CUBE8, ROWS32),
    "_follow": (CUBE8, I64, CUBE8, VECTOR, I64, OPEN3, CUBE32),
    "_fit": (LINE32, I64, types.boolean, LINE32),
    "_slow_kernel": (CUBE, CUBE, CUBE),
    ("gelu", "_ibert"): (ROWS, VECTOR, VECTOR, VECTOR, I64, ROWS),
    "_one_term": (ROWS, ROWS, I64, I64, I64, I64, OUT8),
    "_plus": (ROWS32, ROWS, ROWS8, I64, I64, I64, OUT8),
    ("requantize", "rounded"): (ROWS32, I64, I64, I64, I64),
    "_two_terms": (ROWS32, ROWS, ROWS8, ROWS, I64, I64, I64, OUT8),
    "_wide_term": (ROWS, ROWS, I64, I64, I64, I64, OUT8),
    "_clamp": (ROWS32, I64, I64, I64, OUT8),
    "_log2_weights": (ROWS8, OUT16),
    "narrow_max": (ROWS8, MASK, I64, I64),
    "row_max_at": (ROWS8, MASK, I64, I64),
    "_ivit_table": (I64, I64, VECTOR),
    "_ivit_narrow": (ROWS8, MASK, VECTOR, I64, I64, I64, OUT16),
    ("softmax", "_divide"): (VECTOR, I64, MASK, I64, I64, I64, I64, OUT16, I64),
    "_ibert_wide": (OUT16, MASK, types.Array(types.int16, 1, "C"), I64, I64, OUT16),
    "_ibert_table": (I64, I64, I64, I64, I64, I64, VECTOR),
    "_fqvit_table": (I64, I64, I64, I64, I64, VECTOR),
    "_fqvit_narrow": (ROWS8, MASK, VECTOR, I64, I64, types.boolean, OUT8),
    "_fqvit_leading_row": (
        ROWS8, I64, types.Array(types.int16, 1, "C"), I64, I64, I64, ROWS32, ROWS, I64, LINE32, LINE32, ROWS32,
    ),
    "_by_element": (ROWS8, LINE8, OUT8),
    "_by_wide_element": (OUT16, LINE8, OUT8),
    "_by_row_max": (ROWS8, OUT8, OUT8),
    "pack_rows": (LINE8, I64, I64, I64, I64, I64, I64, I64, LINE8),
    "column_sums": (LINE8, I64, I64, I64, I64, I64, LINE32),
    "pack_columns": (LINE8, I64, I64, I64, I64, I64, I64, LINE8),
    "finish": (SCRATCH, I64, I64, I64, LINE32, EPILOGUE, MATRIX, I64),
    "multiply_packed": (MATRIX, MATRIX, SIZE, PACKED, LINE32, EPILOGUE, SCRATCH),
    "multiply_batch": (BATCH, BATCH, BATCH, SIZE, PACKED, I64, EPILOGUE, SCRATCH),
    "multiply_bounded": (MATRIX, MATRIX32, SIZE, PACKED, PARTS, I64, I64, SCRATCH),
    "enter_multiply_bounded": (*MATRIX, *MATRIX32, *SIZE, PACKED, *PARTS, I64, I64, *SCRATCH),
    "enter_multiply_packed": (*MATRIX, *MATRIX, *SIZE, PACKED, LINE32, *EPILOGUE, *SCRATCH),
    "enter_multiply_batch": (*BATCH, *BATCH, *BATCH, *SIZE, PACKED, I64, *EPILOGUE, *SCRATCH),
}  # fmt: skip


def signature(dispatcher):
    function = dispatcher.py_func
    module = function.__module__.rpartition(".")[2]
    special = SPECIAL.get((module, function.__name__), SPECIAL.get(function.__name__))
    if special is not None:
        return special
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return tuple(BY_NAME.get(name, I64) for name in names)


def float_types(dispatcher, arguments):
    """Every float or complex among the types that Numba gives to the variables and calls of a function, typed anew."""
    from numba.core import compiler, typed_passes
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    ir = compiler.run_frontend(dispatcher.py_func)
    result = typed_passes.type_inference_stage(
        cpu_target.typing_context, cpu_target.target_context, ir, arguments, None
    )
    seen = [*result.typemap.values(), result.return_type]
    for call in result.calltypes.values():
        if call is not None:
            seen += [call.return_type, *call.args]
    return [t for t in seen if isinstance(getattr(t, "dtype", t), (types.Float, types.Complex))]


@pytest.mark.parametrize("dispatcher", KERNELS, ids=lambda d: f"{d.py_func.__module__}.{d.py_func.__name__}")
def test_no_float_in_any_kernel(dispatcher):
    if PATH == "blas" and "multiply_" in dispatcher.py_func.__name__:
        pytest.skip("no integer dot products on this processor")
    assert float_types(dispatcher, signature(dispatcher)) == []


def test_the_proof_can_fail():
    import numba

    @numba.njit
    def divides(a, b):
        return a // (a / b)

    assert float_types(divides, (I64, I64)) != []


def test_every_kernel_is_visited():
    assert len(KERNELS) >= 30
    modules = ["arith", "gelu", "gemm.pack", "gemm.product", "layernorm", "matmul", "pool", "requantize", "rounding"]
    assert {d.py_func.__module__ for d in KERNELS} >= {
        f"intvit.kernels.{name}" for name in [*modules, "softmax", "tables"]
    }


def test_spec_imports_neither_numpy_nor_numba():
    code = (
        "import sys\n"
        "for name in ('numpy', 'numba', 'h5py', 'onnx'): sys.modules[name] = None\n"
        "from intvit.spec import arith, gelu, layernorm, matmul, pool, requantize, softmax, taps\n"
        "row, params = [1, 2, 3], softmax.IvitSoftmax(-2, 15, 8)\n"
        "assert softmax.ivit(row, params) == [28, 42, 56]\n"
        "assert taps.intermediates(softmax.ivit, row, params)['sum'] == [147456]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
