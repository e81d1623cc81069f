"""From a checkpoint to a release: averaging, export, quantization, publishing."""
