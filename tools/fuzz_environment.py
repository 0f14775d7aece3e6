"""Imported first: what must be set before NumPy and onnxruntime are imported, and where the package lies."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""Or else onnxruntime starts a thread when it is imported, and a process with threads cannot fork."""
sys.path.insert(0, str(ROOT))
