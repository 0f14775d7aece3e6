"""Golden vectors: stimulus, integer parameters and expected output of single operators.

`numpy.load` and `json` read a case; what is here writes and checks them.

The normative text is golden/FORMAT.md. Every text and archive has one form only, so that a reader can demand it.
"""
