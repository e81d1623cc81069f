"""Blocks of samples in, blocks of stems out: segments, STFT, features, backends, masks."""
