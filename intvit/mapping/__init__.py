"""Mapping: which method each Softmax, GELU and LayerNorm site should use.

`scores` runs models and gives `tables`; `rules` read them and choose site by site; `search` measures whole models in
the `space` of all choices. Paper: "Mixed Non-linear Quantization for Vision Transformers".
"""
