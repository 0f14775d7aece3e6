"""THE SPECIFICATION: standard library only, unbounded integers, no arrays. Shares no code with the kernels.

A function computes one row from a parameter class of integers; docs/quantization.md derives the formulas. `taps` shows
the intermediates of a call by name. Integers have no width here: where a docstring gives a type, such as s9 or u26
(signed or unsigned, bits), it is the one that the values fit, not one that they are cut to.
"""

SPEC_VERSION = 1
"""Changes when an operator's integers change. Published methods never do; see CHANGELOG, section Bits."""
