"""The operators, fast: `lower` from real scales, Numba kernels, Method values. One file per operator, as in `spec`."""
