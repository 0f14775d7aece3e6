"""intvit: a bit-exact, integer-only reference simulator for Vision Transformers."""

__version__ = "0.1.0"
