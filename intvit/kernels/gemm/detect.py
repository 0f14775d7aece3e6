"""Which integer dot products this processor has, and which path is taken.

The features are those that Numba compiles for, the intrinsics those that its LLVM knows. Nothing here computes.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.core import codegen, config

from intvit.errors import IntvitError

VNNI, PMADDWD, PMADDWD_512 = "llvm.x86.avx512", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx512.pmaddw.d.512"


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
    "avx512": (("avx512f", "avx512bw"), (PMADDWD_512, "<32 x i16>", "<16 x i32>", 2)),
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
    if path == "vnni" and left == np.int8:
        return np.uint8
    return np.int16 if path == "avx2" else np.uint16


def fuses_additions() -> bool:
    """True if pairs of 16 bits in 512-bit vectors are multiplied and added to a sum by one instruction."""
    return not path_notes()["vnni"]
