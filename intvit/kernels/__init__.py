"""The arithmetic, fast: Numba kernels behind checked borders, and the methods as values.

What is here: a kernel for each function of `spec`, `gemm`, tables, `lower` of the methods (the only floats), `method`
(what a method states) and `registry` (which there are). What is not: graphs and nodes.
"""
