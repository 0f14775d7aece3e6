"""Integer matrix products by the processor's own integer dot products, requantized on the way out.

The order of sums does not matter where they wrap, so that every path gives the same integers: those of the spec, where
the declared accumulator holds the sum. `vpdpbusd` takes one unsigned operand: the left one is stored plus 128, and 128
times the column sums of the right one are subtracted. On processors without any of the instructions the path is `blas`,
and `kernels/matmul.py` multiplies.

The dtype of a packed right operand says which instruction meets it: uint8 vpdpbusd, uint16 vpdpwssd, int16 pmaddwd.

`detect` chooses the path, `layout` says how operands lie in memory, `intrinsics` holds the LLVM, `pack` fills words,
`epilogue` requantizes, `product` loops over tiles, `checks` guards the borders, and `run` is what Python calls.
"""

from intvit.kernels.gemm.detect import available_paths, chosen_path, path_notes
from intvit.kernels.gemm.epilogue import Epilogue
from intvit.kernels.gemm.run import InParts, Linear, Product, in_parts, prepare_linear

__all__ = [
    "Epilogue", "InParts", "Linear", "Product", "available_paths", "chosen_path", "in_parts", "path_notes",
    "prepare_linear",
]  # fmt: skip
