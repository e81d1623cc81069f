"""From a checkpoint to a released model: averages, ONNX, 8 bits, model card."""
