"""x * sigmoid(a x) over one token: SiLU (a = 1) and quick GELU (a = 1.702). I-ViT's form is ShiftGELU (`gelu.ivit`).

`row` (C,), C >= 1, integers of any width in steps of the input scale; the result is (C,). docs/quantization.md, "SiLU
and quick GELU".
"""

from __future__ import annotations

from collections.abc import Sequence

from intvit.spec import softmax
from intvit.spec.gelu import TAPS as GELU_TAPS
from intvit.spec.softmax import TAPS as SOFTMAX_TAPS
from intvit.spec.softmax import IbertSoftmax
from intvit.spec.taps import tap

_SHIFTED = ("x_max", "delta", "argument", "quotient", "remainder", "exp", "sum", "factor", "product")
_TAPS = {
    **{name: GELU_TAPS["gelu"][name] for name in _SHIFTED},
    **{name: SOFTMAX_TAPS["softmax"][name] for name in ("polynomial", "exp16")},
    "sigmoid": "sigmoid(a x), in steps of 2**-7 (I-BERT: of 2**-out_bits)",
}
TAPS = {"silu": _TAPS, "quick_gelu": _TAPS}


def ibert(row: Sequence[int], p: IbertSoftmax) -> list[int]:
    """y_j = x_j * s_j, s_j the first of the two values of I-BERT's softmax of (a x_j, 0).

    `p` holds the softmax's constants at a times the input scale. (C,) in steps of the input scale * 2**-out_bits.
    Source: I-BERT (arXiv 2101.01321), Algorithm 3 (i-exp and softmax); the arrangement as a sigmoid is ours.
    """
    sigmoid = tap("sigmoid", [softmax.ibert([x, 0], p)[0] for x in row])
    return [x * s for x, s in zip(row, sigmoid, strict=True)]
