"""Importers: weights in, float ONNX out; `onnx` reads that into a float Graph."""
