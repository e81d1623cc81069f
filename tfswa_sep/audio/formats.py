"""The formats of stem files: containers, bit depths, bitrates and sample rates."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfswa_sep.audio.ffmpeg import find_ffmpeg
from tfswa_sep.errors import UsageError, ffmpeg_install_command

BIT_DEPTHS = {"wav": ("32f", "24", "16"), "flac": ("24", "16")}  # the first is the default
BITRATES = {"mp3": 320, "ogg": 256, "opus": 192, "m4a": 256}  # kbit/s of a stereo file, the default
_LOSSY_LIMITS = {"mp3": (8, 320), "ogg": (64, 500), "opus": (16, 500), "m4a": (16, 512)}  # kbit/s
_RATES: dict[str, Sequence[int]] = {  # Hz, of containers that support only some rates
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    "m4a": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
    "ogg": range(8_000, 192_001),
}
_AAC_BITS = 4.2  # per sample: the most that ffmpeg's encoder uses for music (measured)
_FLAC_FREE_RATE = 65_535  # Hz; above it FLAC supports only multiples of ten
_FLAC_TOP_RATE = 655_350  # Hz
# Vorbis has a quality from 0 to 10: libvorbis's target in kbit/s at 44.1 kHz for 0, 1, ... 10.
_VORBIS_STEREO = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 500)
_VORBIS_MONO = (48, 60, 70, 80, 86, 96, 110, 120, 140, 160, 240)


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """How stems are encoded; see find_format."""

    container: str  # "wav", "flac", "mp3", "ogg", "opus" or "m4a"; also the file name's extension
    bit_depth: str  # "32f", "24" or "16"; "" for lossy files
    bitrate: int = 0  # kbit/s of lossy files

    @property
    def extension(self) -> str:
        """With the dot."""
        return f".{self.container}"

    @property
    def is_lossy(self) -> bool:
        """Whether decoded samples differ from the originals."""
        return not self.bit_depth

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample before compression."""
        return int(self.bit_depth.removesuffix("f")) // 8 if self.bit_depth else 4

    @property
    def steps(self) -> int | None:
        """Integer steps from zero to full scale; None for floats and lossy files."""
        return {"16": 1 << 15, "24": 1 << 23}.get(self.bit_depth)

    @property
    def highest(self) -> float:
        """The loudest positive sample that is not clipped."""
        return 1.0 if self.steps is None else 1 - 1 / self.steps

    def nearest_rate(self, rate: int) -> int:
        """`rate` in Hz if the container supports it, else the next higher one it supports, or its highest."""
        if self.container == "flac" and rate > _FLAC_FREE_RATE:
            return min(round(rate / 10) * 10, _FLAC_TOP_RATE)
        if rates := _RATES.get(self.container):
            return rates[min(bisect_left(rates, rate), len(rates) - 1)]
        return rate

    def bitrate_limits(self, rate: int, channels: int) -> tuple[int, int]:
        """The lowest and the highest bitrate, in kbit/s, of a lossy file of this sample rate in Hz."""
        if self.container == "mp3":  # of MPEG 1, 2 and 2.5
            return (32, 320) if rate >= 32_000 else (8, 160) if rate >= 16_000 else (8, 64)
        if self.container == "opus":
            return 6 * channels, 256 * channels
        if self.container == "ogg":
            aims = _VORBIS_STEREO if channels == 2 else _VORBIS_MONO
            return aims[0], aims[-1]
        return 0, int(_AAC_BITS * rate * channels / 1000)

    def compression_level(self, rate: int, channels: int) -> float:
        """The bitrate as libsndfile takes it: 0 for the codec's highest, 1 for its lowest."""
        if self.container == "mp3":  # linear between the limits; 1 itself is refused
            low, high = self.bitrate_limits(rate, channels)
            return float(np.clip((high - self.bitrate) / (high - low), 0, 0.99))
        if self.container == "opus":  # linear from 6 to 256 kbit/s per channel
            return float(np.clip((256 - self.bitrate / channels) / 250, 0, 1))
        aims = _VORBIS_STEREO if channels == 2 else _VORBIS_MONO
        return float(1 - np.interp(self.bitrate, aims, np.arange(11)) / 10)


def find_format(container: str, bit_depth: str | None = None, bitrate: int | None = None) -> AudioFormat:
    """The format for these options.

    Args:
        container: See AudioFormat.
        bit_depth: None for 32f in wav and 24 in flac.
        bitrate: kbit/s of mp3, ogg, opus and m4a; None for the one in BITRATES.

    Raises:
        UsageError: The format is unknown, or the options do not fit it.
    """
    if container not in {**BIT_DEPTHS, **BITRATES}:
        raise UsageError(f"unknown format '{container}': choose from {', '.join([*BIT_DEPTHS, *BITRATES])}")
    if container in BIT_DEPTHS:
        depths = BIT_DEPTHS[container]
        if bitrate is not None:
            raise UsageError(f"{container} files have no bitrate: remove --bitrate")
        bit_depth = None if bit_depth is None else str(bit_depth)  # 16 means "16"
        if bit_depth not in (None, *depths):
            raise UsageError(
                f"{container} files cannot have bit depth '{bit_depth}': choose from {', '.join(depths)}"
            )
        return AudioFormat(container=container, bit_depth=bit_depth or depths[0])
    if bit_depth is not None:
        raise UsageError(f"{container} files have no bit depth: remove --bit-depth, or use --bitrate instead")
    low, high = _LOSSY_LIMITS[container]
    if bitrate is not None and not low <= bitrate <= high:
        raise UsageError(f"{container} files cannot have {bitrate} kbit/s: choose from {low} to {high}")
    if container == "m4a" and find_ffmpeg() is None:
        raise UsageError(f"writing m4a needs ffmpeg: {ffmpeg_install_command()}")
    return AudioFormat(container=container, bit_depth="", bitrate=bitrate or BITRATES[container])
