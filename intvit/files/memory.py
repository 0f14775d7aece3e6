"""How many images are worked on at once: bounded by bytes, as the activations of one may take half a gigabyte."""

from __future__ import annotations

ACTIVATION_BYTES = 2**29
"""Activations that are held at once; a single image may need more."""


def fitting(batch: int, image_bytes: int) -> int:
    """At most `batch` images, one at least, of `image_bytes` each, that `ACTIVATION_BYTES` hold."""
    return max(1, min(batch, ACTIVATION_BYTES // max(1, image_bytes)))
