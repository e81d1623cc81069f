"""Audio files in and out: decoding, resampling, encoding, tags."""
