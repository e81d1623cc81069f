"""Families of models: each prepares an ONNX network's inputs and turns its outputs into stems."""
