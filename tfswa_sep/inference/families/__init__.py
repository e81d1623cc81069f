"""What an ONNX network maps to what: each family of models prepares its inputs and turns its outputs into stems."""
