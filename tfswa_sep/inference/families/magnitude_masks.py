"""Networks that map magnitudes to masks, such as Spleeter's.

Axis letters: b batch, s model stem, c channel, t frames, f bins that the network sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfswa_sep.inference.families.family import Floats, Run
from tfswa_sep.inference.metadata import KEY, check_transform, integer, read_fields, stem_names
from tfswa_sep.inference.overlap_add import SegmentPlan
from tfswa_sep.inference.stft_numpy import istft, stft, window_of

NAME = "magnitudes to masks"
FORMAT = 3  # our own networks have format 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The metadata of such a file: a JSON object that also has "format" and "family"."""

    stems: tuple[str, ...]
    sample_rate: int  # Hz
    channels: int
    n_fft: int  # samples per frame, with a periodic Hann window
    hop: int  # samples between frames
    frames: int  # per segment: the network's t
    bins: int  # the network's f; the stems are silent above


class MagnitudeMasks:
    """magnitudes (b, c, t, f) to masks (b, s, c, t, f).

    The song's frames are centred on multiples of the hop, with zeros before it. Each frame belongs to one segment;
    where frames of two segments overlap, each has the share of their windows, so nothing but masks changes between
    segments.

    Args:
        properties: The file's metadata.
        file: Its name, for errors.

    Raises:
        ModelError: The metadata is missing or invalid.
    """

    def __init__(self, properties: Mapping[str, str], *, file: str) -> None:
        settings = read_fields(properties.get(KEY), _parse, file=file, version=FORMAT)
        self._settings = settings
        self.stems = settings.stems
        self.sample_rate = settings.sample_rate
        self.channels = settings.channels
        fade = settings.n_fft - settings.hop
        self.plan = SegmentPlan(
            segment=settings.frames * settings.hop + fade,
            margin=0,
            fade=fade,
            lead=settings.n_fft // 2,
            weights=_window_shares(settings.n_fft, settings.hop),
        )
        shape = (settings.channels, settings.frames, settings.bins)
        self.inputs = {"magnitudes": (None, *shape)}
        self.outputs = {"masks": (None, len(self.stems), *shape)}

    def separate(self, segments: Floats, run: Run, stem_matrix: Floats | None) -> Floats:
        """See Family."""
        n_fft, hop, bins = self._settings.n_fft, self._settings.hop, self._settings.bins
        spectrum = stft(segments, n_fft=n_fft, hop=hop, centred=False).swapaxes(2, 3)  # (b, c, t, all bins)
        (masks,) = run({"magnitudes": np.abs(spectrum[..., :bins])})
        if stem_matrix is not None:
            masks = np.einsum("ks,bsctf->bkctf", stem_matrix, masks)
        masked = np.zeros((*masks.shape[:-1], spectrum.shape[-1]), np.complex64)
        np.multiply(masks, spectrum[:, None, ..., :bins], out=masked[..., :bins])
        return istft(masked.swapaxes(3, 4), n_fft=n_fft, hop=hop, length=segments.shape[-1], centred=False)


def _parse(fields: dict[str, Any]) -> Settings:
    settings = Settings(
        stems=stem_names(fields["stems"]),
        sample_rate=integer(fields, "sample_rate", 8_000, 192_000),
        channels=integer(fields, "channels", 2, 2),
        n_fft=integer(fields, "n_fft", 64, 1 << 15),
        hop=integer(fields, "hop", 16, 1 << 15),
        frames=integer(fields, "frames", 1, 1 << 20),
        bins=integer(fields, "bins", 1, 1 << 14),
    )
    check_transform(settings.n_fft, settings.hop, frames=settings.frames)
    if settings.bins > settings.n_fft // 2 + 1:
        raise ValueError("bins")
    if settings.frames * settings.hop < settings.n_fft:
        raise ValueError("frames")
    return settings


def _window_shares(n_fft: int, hop: int) -> Floats:
    """The share of the frames from 0 on in the squared windows of all frames, (n_fft - hop,), from sample 0 on."""
    squared = window_of(n_fft, hop).astype(np.float64).reshape(-1, hop) ** 2
    shares = (squared.cumsum(axis=0) / squared.sum(axis=0))[:-1]
    return np.asarray(shares.reshape(-1), np.float32)
