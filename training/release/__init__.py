"""From a checkpoint to a released model: averaging, ONNX export, int8 quantization, model card."""
