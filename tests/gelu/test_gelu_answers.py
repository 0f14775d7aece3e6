"""GELU: answers worked out by hand from the published formulas; no function of this package made them.

Each says where its formula stands.
"""

import numpy as np
import pytest

from intvit import ops
from intvit.kernels import registry


def test_bound_of_gelu_is_that_of_its_widest_channel():

    method = registry.get("gelu", "ibert")
    params, _ = method.lower(np.array([0.05, 0.002]), n=6)
    alone = [method.bound(method.lower(np.array([s]), n=6)[0], 127, 1) for s in (0.05, 0.002)]
    assert method.bound(params, 127, 2) == max(alone) > min(alone)


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_gelu_of_two_channels_with_scales_of_their_own(backend):
    x = np.array([[-90, -90], [-3, -3], [0, 0], [40, 40]])
    both, _ = ops.gelu(x, [0.02, 0.05], method="ibert", n=6, backend=backend)
    for channel, scale in enumerate((0.02, 0.05)):
        alone, _ = ops.gelu(x[:, channel : channel + 1], scale, method="ibert", n=6, backend=backend)
        assert np.array_equal(both[:, channel], alone[:, 0])
    assert (both[[0, 1, 3], 0] != both[[0, 1, 3], 1]).all()
