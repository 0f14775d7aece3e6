"""THE SPECIFICATION: standard library only, unbounded integers, no arrays. Shares no code with the kernels."""

SPEC_VERSION = 1
"""Changes when an operator's integers change. Published methods never do; see CHANGELOG, section Bits."""
