"""Quick GELU, x * sigmoid(1.702 x), as in CLIP: what ShiftGELU computes with no error of its form."""

from __future__ import annotations

from intvit.kernels.gelu import SIGMOID
from intvit.kernels.silu import gated

IVIT, IBERT = gated("quick_gelu", SIGMOID, "x * sigmoid(1.702 x)")
