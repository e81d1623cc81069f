"""Numbers and names that modules on several levels share; imports nothing."""

from __future__ import annotations

SAMPLE_RATE = 44_100  # Hz, of the models that come with tfswa-sep and of MUSDB18
MODEL_CHANNELS = 2  # of every model; mono songs are fed as two equal channels
N_FFT = 2048  # samples per frame: 46 ms at 44.1 kHz
HOP = 512  # samples between frames: 12 ms at 44.1 kHz
BLOCK_SAMPLES = 65_536  # samples decoded, resampled and encoded at once: 1.5 s at 44.1 kHz

VOCALS = "vocals"
OTHER = "other"  # what no other stem is named after
STEMS = (VOCALS, "drums", "bass", OTHER)
ACCOMPANIMENT = "accompaniment"  # everything but the vocals
INSTRUMENTAL = "instrumental"  # another word for it

NAME_TEMPLATE = "{track}/{stem}{ext}"  # of a stem's path
