"""What this machine offers, as far as it can change how fast something runs; bits never depend on it."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import llvmlite.binding
import numba

import intvit
from intvit.kernels.cache import cache_folder
from intvit.kernels.gemm import chosen_path, path_notes

PACKAGES = ("numpy", "numba", "llvmlite", "onnx", "onnxruntime", "h5py", "torch")


def facts() -> dict[str, str]:
    """Versions, processor, the path of the integer products with what rules the others out, the folder of kernels."""
    found = {"intvit": intvit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    target = getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()
    found["processors"] = f"{n_processors}, {platform.machine()}, compiled for {target}"
    found["integer products"] = chosen_path()
    found |= {f"  {path}": note or "available" for path, note in path_notes().items()}
    found["compiled kernels"] = cache_folder() or "not kept: no folder can be written"
    return found
