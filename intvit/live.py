"""Activations computed when they are asked for: calibration and analysis of large image sets without a recording."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intvit.errors import IntvitError
from intvit.floatrun import FloatModel
from intvit.graph.ir import Array
from intvit.images import ImageSource


@dataclass
class LiveActivations:
    """The float model on the first `n_images` of a source, one batch kept: read site after site, not image after image.

    Serves wherever a Recording does (`calibrate.Activations`).
    """

    model: FloatModel
    images: ImageSource
    limit: int | None = None
    names: list[str] = field(init=False)
    _range: tuple[int, int] = (0, 0)
    _tensors: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [self.model.input, *self.model.sites()]
        self.n_images = min(self.limit or len(self.images), len(self.images))
        self.model_sha256 = self.model.sha256
        self.images_sha256 = self.images.sha256(self.n_images)
        self.preprocessing = self.images.preprocessing

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Images start..stop of one tensor, float32 (B, ...)."""
        low, high = self._range
        if not (low <= start and stop <= high):
            self._tensors = self.model.run(self.images.read(start, stop), self.names)
            self._range = low, high = start, stop
        if name not in self._tensors:
            raise IntvitError(f"{name}: no such activation of this model")
        return self._tensors[name][start - low : stop - low]
