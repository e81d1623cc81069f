"""From blocks of samples to blocks of stems: segments, STFT, features, backends, masks."""
