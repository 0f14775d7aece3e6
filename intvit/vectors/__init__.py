"""Golden vectors: stimulus, integer parameters and expected output of single operators. Reading needs NumPy alone."""
