"""Songs with stems on disk, read for training."""
