"""Activations computed when they are asked for: calibration and analysis of large image sets without a recording."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intvit.errors import IntvitError
from intvit.files.memory import ACTIVATION_BYTES, fitting
from intvit.floats.images import ImageSource
from intvit.floats.model import FloatModel
from intvit.graph.ir import Array


@dataclass
class LiveActivations:
    """The float model on the first `n_images` of a source, one batch kept: read site after site, not image after image.

    Serves wherever a Recording does (`calibrate.Activations`). Of a batch whose activations are too many to be held at
    once, as many as can be are kept, and the model runs again for the next ones.
    """

    model: FloatModel
    images: ImageSource
    limit: int | None = None
    names: list[str] = field(init=False)
    _sizes: dict[str, int] = field(init=False)
    """Bytes of each activation of one image."""
    _range: tuple[int, int] = (0, 0)
    _tensors: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [self.model.input, *self.model.sites()]
        self.n_images = min(self.limit or len(self.images), len(self.images))
        self.model_sha256 = self.model.sha256
        self.images_sha256 = self.images.sha256(self.n_images)
        self.preprocessing = self.images.preprocessing
        first = self.model.run(self.images.read(0, 1), self.names)
        self._sizes = {name: tensor.nbytes for name, tensor in first.items()}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Images start..stop of one tensor, float32 (B, ...)."""
        if name not in self._sizes:
            raise IntvitError(f"{name}: no such activation of this model")
        if name == self.model.input:
            return self.images.read(start, stop)
        low, high = self._range
        if not (low <= start and stop <= high and name in self._tensors):
            self._tensors = {}
            self._tensors = self._run(self._held(name, stop - start), start, stop)
            self._range = low, high = start, stop
        return self._tensors[name][start - low : stop - low]

    def _held(self, name: str, n_images: int) -> list[str]:
        """`name` and as many as can be held beside it, first those that the model computes after it."""
        computed = [other for other in self.names if other != self.model.input]
        at = computed.index(name)
        order = computed[at:] + computed[:at]
        room = np.cumsum([n_images * self._sizes[other] for other in order])
        return order[: max(1, int(np.searchsorted(room, ACTIVATION_BYTES, side="right")))]

    def _run(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        step = fitting(stop - start, sum(self._sizes.values()))
        if step == stop - start:
            return self.model.run(self.images.read(start, stop), self.names)
        tensors: dict[str, Array] = {}
        for at in range(start, stop, step):
            found = self.model.run(self.images.read(at, min(at + step, stop)), self.names)
            for name in names:
                if name not in tensors:
                    tensors[name] = np.empty((stop - start, *found[name].shape[1:]), np.float32)
                tensors[name][at - start : at - start + len(found[name])] = found[name]
        return tensors
