"""From blocks of samples to blocks of stems: segments, transforms, backends."""
