"""Numbers and names that several packages share; imports nothing."""

from __future__ import annotations

SAMPLE_RATE = 44_100  # Hz, of the bundled models and of MUSDB18
MODEL_CHANNELS = 2  # of every model; mono songs become two equal channels
N_FFT = 2048  # samples per frame: 46 ms at 44.1 kHz
HOP = 512  # samples between frames: 12 ms at 44.1 kHz
BLOCK_SAMPLES = 65_536  # samples per block of decoding, resampling and encoding: 1.5 s at 44.1 kHz

VOCALS = "vocals"
OTHER = "other"  # everything that is in no other stem
STEMS = (VOCALS, "drums", "bass", OTHER)
OF_OTHER = ("guitar", "piano")  # stems that some models have besides, and others count as OTHER
ACCOMPANIMENT = "accompaniment"  # everything but the vocals
INSTRUMENTAL = "instrumental"  # its synonym

NAME_TEMPLATE = "{track}/{stem}{ext}"  # path of a stem
