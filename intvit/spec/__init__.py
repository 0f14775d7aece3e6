"""THE SPECIFICATION: standard library only, unbounded integers, no arrays. Shares no code with the kernels."""
