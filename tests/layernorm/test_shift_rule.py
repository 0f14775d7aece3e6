"""The shift of I-BERT's LayerNorm and RMSNorm, which keeps the variance within 32 bits."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intvit.kernels.layernorm import variance_shift


@given(st.integers(0, 2**100))
def test_the_shift_rule(variance):
    """The least s with variance <= 2**32 * 4**s, exact at powers of two where logarithms of doubles are not."""
    shift = variance_shift(variance)
    assert Fraction(variance, 4**shift) <= 2**32
    assert shift == 0 or Fraction(variance, 4 ** (shift - 1)) > 2**32


@pytest.mark.parametrize("k", range(32, 90))
def test_the_shift_rule_near_powers_of_two(k):
    wanted = max(0, -(-(k - 32) // 2))
    assert variance_shift(float(2**k)) == wanted
    assert variance_shift(np.nextafter(2.0**k, np.inf)) == max(0, (k - 32) // 2 + 1)
    assert variance_shift(2**k + 1) == max(0, (k - 32) // 2 + 1)
