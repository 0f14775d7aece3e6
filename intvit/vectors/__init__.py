"""Golden vectors: stimulus, integer parameters and expected output of single operators. Reading needs NumPy alone.

The normative text is golden/FORMAT.md. Every text and archive has one form only, so that a reader can demand it.
"""
