"""The float side: weights, images and float activations, up to the recording.

What is here: `importers` (weights of others to ONNX, ONNX to a float graph), `model` (onnxruntime runs it), `images`
and `preprocessing`, `recording` and its `journal`, `live` (the same without a file), and the embedded data. What is
not: ranges and quantizers, which `lowering` takes from recordings.
"""
