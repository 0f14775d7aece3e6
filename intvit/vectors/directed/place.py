"""Where stimuli go: the least and largest code of a tensor, and arrays of images to write into."""

from __future__ import annotations

from intvit.graph.inttypes import storage
from intvit.graph.ir import Array, Tensor
from intvit.spec.matmul import LOG2_FRACTION_BITS


def limits_of(tensor: Tensor) -> tuple[int, int]:
    """What type and bound of a tensor allow; of log2 codes those that there are."""
    low, high = tensor.dtype.min, tensor.dtype.max
    if tensor.encoding == "log2":
        low, high = max(low, -1), min(high, LOG2_FRACTION_BITS)
    return (low, high) if tensor.bound is None else (max(low, -tensor.bound), min(high, tensor.bound))


def stored(values: Array, tensor: Tensor) -> Array:
    """(N, *shape) in the narrowest NumPy integers of the tensor's type."""
    return values.reshape(-1, *tensor.shape).astype(storage(tensor.dtype))
