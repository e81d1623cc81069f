"""The network's configuration and its presets.

Axis letters in this package:

    b batch   s stem   c audio channel   n samples
    f frequency (bins, or tokens after the band split)   t frames   d features   h heads
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tfswa_sep.constants import HOP, MODEL_CHANNELS, N_FFT, SAMPLE_RATE, STEMS

BRANCHES = ("time", "frequency", "window")  # TSA, FSA, SW-MSA

COMPRESSION = 0.3  # exponent of the magnitude features: keeps quiet partials visible
POWER_FLOOR = 1e-6  # added to squared magnitudes; an STFT value of 1e-3 is 114 dB below a full-scale sine
HIGHEST_LOGIT = 40.0  # limit on the logits of real masks: their exponentials stay finite in float32
MASK_FLOOR = 1e-6  # added to a mask's squared magnitude, so that the root is differentiable at zero
SHARE_FLOOR = 1e-3  # added to a mask's magnitude when the masks' remainder is shared out

_OLD_NAMES = {"stem": "split"}  # older files call the input layer the stem
# The values of fields that older files lack.
_OLD_DEFAULTS = {
    "features": "complex",
    "masks": "complex",
    "convs": (1, 1, 2, 2),
    "tdfs": (),
    "branches": BRANCHES,
}


@dataclass(frozen=True, kw_only=True)
class Band:
    """A run of STFT bins that the input layer folds into tokens of `stride` bins each."""

    start: int  # first bin
    stop: int  # one past the last bin
    stride: int  # bins per token
    taps: int = 0  # frames that each stem's complex filter spans; 0: masks only

    @property
    def tokens(self) -> int:
        """Tokens of the band."""
        return (self.stop - self.start) // self.stride


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a TFSWA-UNet, stored as JSON with the weights.

    The defaults are the preset `small`.
    """

    stems: tuple[str, ...] = STEMS
    channels: int = MODEL_CHANNELS  # audio channels
    sample_rate: int = SAMPLE_RATE  # Hz
    n_fft: int = N_FFT  # samples
    hop: int = HOP  # samples
    segment_samples: int = 196_096  # samples per segment at inference: 384 frames, 4.4 s
    margin_samples: int = 4_096  # context discarded at each end of a segment; twice that scored no better
    # The input layer: bands with their own weights ("bands"), or equal sub-bands stacked as features ("stack").
    split: Literal["bands", "stack"] = "bands"
    # Finest and with filters up to 1.4 kHz, where most of the error lies; the longest filters up to 340 Hz, where
    # neighbouring tones share a bin (experiments/011-finer-bands.md, 013-nine-frame-filters.md).
    bands: tuple[Band, ...] = (
        Band(start=0, stop=16, stride=1, taps=9),
        Band(start=16, stop=64, stride=1, taps=3),
        Band(start=64, stop=128, stride=2),
        Band(start=128, stop=384, stride=8),
        Band(start=384, stop=1024, stride=20),
    )
    # Features besides magnitudes: complex values; the phase advance in bands with filters (trained networks ignore
    # it elsewhere: experiments/012-filters-tdf.md); or none.
    features: Literal["complex", "advance", "magnitude"] = "advance"
    # What multiplies a bin: a complex number of magnitude at most 1, a real one between -1 and 1 ("signed"), or a
    # gain between 0 and 1 ("real"). The latter two are half as many values, and cheaper.
    masks: Literal["complex", "signed", "real"] = "signed"
    dims: tuple[int, ...] = (32, 64, 96, 160)  # features per stage, finest first
    convs: tuple[int, ...] = (1, 3, 4, 6)  # 3x3 convolutions per stage, in encoder and decoder
    # Hidden size of each stage's TDF, which mixes all frequencies of a frame; 0 for none, empty for none at all.
    tdfs: tuple[int, ...] = (32, 16, 0, 0)
    attentions: tuple[int, ...] = (0, 0, 1, 1)  # TFSWA blocks per stage, in encoder and decoder
    heads: int = 4
    window: tuple[int, int] = (5, 4)  # tokens of frequency, frames
    # The attentions of a TFSWA block. TSA made real songs worse (experiments/007-attentions.md).
    branches: tuple[str, ...] = ("frequency", "window")
    # In parallel with weights computed from the input, in parallel with equal weights, or in series.
    fusion: Literal["dynamic", "mean", "serial"] = "dynamic"
    head_dim: int = 32  # hidden features of each stem's head
    # The masks sum to one over the stems, so the stems sum to the mixture.
    mixture_consistent: bool = True

    def sees_phases(self, band: Band) -> bool:
        """Whether a band has phase features; see `mask_head.band_features`."""
        return self.features == "complex" or (self.features == "advance" and band.taps > 0)

    @property
    def magnitudes(self) -> int:
        """Magnitude features per bin: of the channels, of mid and of side."""
        return self.channels + (2 if self.features != "magnitude" and self.channels == 2 else 0)

    def feature_count(self, band: Band) -> int:
        """Features per bin of a band; see `mask_head.band_features`."""
        return self.magnitudes + (2 * self.channels if self.sees_phases(band) else 0)

    @property
    def mask_parts(self) -> int:
        """Values per bin of one stem's mask: real and imaginary parts of every channel, or gains."""
        return self.channels * (2 if self.masks == "complex" else 1)

    def filter_parts(self, band: Band) -> int:
        """Values per bin of one stem's filter: real and imaginary parts of each tap of every channel."""
        return 2 * self.channels * band.taps

    def head_parts(self, band: Band) -> int:
        """Values per bin and stem that the network returns: the mask's, then the filter's."""
        return self.mask_parts + self.filter_parts(band)

    @property
    def bins(self) -> int:
        """Bins that the network sees: all but the Nyquist bin."""
        return self.n_fft // 2

    @property
    def tokens(self) -> int:
        """Frequency tokens after the band split."""
        return sum(band.tokens for band in self.bands)

    @property
    def token_starts(self) -> list[int]:
        """The first bin of each token."""
        return [first for band in self.bands for first in range(band.start, band.stop, band.stride)]

    @property
    def rows(self) -> int:
        """Frequency rows of the first stage."""
        return self.bands[0].tokens if self.split == "stack" else self.tokens

    @property
    def frame_multiple(self) -> int:
        """Frames are padded to a multiple of this, so that strides and windows fit."""
        return int(2 ** (len(self.dims) - 1) * self.window[1])

    def unpadded_samples(self, samples: int) -> int:
        """The shortest length of at least so many samples whose frames need no padding."""
        frames = -(-(-(-samples // self.hop) + 1) // self.frame_multiple) * self.frame_multiple
        return (frames - 1) * self.hop

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types for `from_json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ModelConfig:
        """Read the dictionary of `to_json`, or one from an older version.

        Raises:
            ValueError: A field is unknown or malformed.
        """
        data = _OLD_DEFAULTS | {_OLD_NAMES.get(key, key): value for key, value in data.items()}
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"unknown model setting {unknown[0]!r}")
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
            }
            if "bands" in values:
                values["bands"] = tuple(b if isinstance(b, Band) else Band(**b) for b in values["bands"])
            config = ModelConfig(**values)
            config.check()
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"malformed model settings: {error}") from error
        return config

    def check(self) -> None:
        """Raise ValueError if the settings contradict one another."""
        stages = len(self.dims)
        if not (len(self.convs) == len(self.attentions) == stages):
            raise ValueError("dims, convs and attentions must name the same number of stages")
        if self.tdfs and len(self.tdfs) != stages:
            raise ValueError("tdfs must name as many stages as dims, or none")
        if not all(isinstance(hidden, int) and hidden >= 0 for hidden in self.tdfs):
            raise ValueError("tdfs must be row counts")
        if self.masks not in ("complex", "signed", "real"):
            raise ValueError(f"unknown masks {self.masks!r}: choose complex, signed or real")
        if self.features not in ("complex", "advance", "magnitude"):
            raise ValueError(f"unknown features {self.features!r}: choose complex, advance or magnitude")
        if not self.branches or [b for b in BRANCHES if b in self.branches] != list(self.branches):
            raise ValueError(f"branches must be some of {', '.join(BRANCHES)}, in this order")
        edges = [0, *(band.stop for band in self.bands)]
        if [band.start for band in self.bands] != edges[:-1] or edges[-1] != self.bins:
            raise ValueError(f"the bands must cover bins 0 to {self.bins} without a gap")
        if any((band.stop - band.start) % band.stride for band in self.bands):
            raise ValueError("a band must hold a whole number of tokens")
        if not all(isinstance(band.taps, int) and band.taps in (0, *range(1, 16, 2)) for band in self.bands):
            raise ValueError("a band's filter must span an odd number of frames, at most 15")
        if self.split == "stack" and any(band.stride != 1 for band in self.bands):
            raise ValueError("stacked sub-bands must have one bin per token")
        if self.split == "stack" and len({band.tokens for band in self.bands}) != 1:
            raise ValueError("stacked sub-bands must all have the same size")
        rows = self.rows
        if rows % 2 ** (stages - 1):
            raise ValueError(f"{rows} frequency tokens cannot be halved {stages - 1} times")
        if self.window[0] * self.window[1] > 1024:  # attention costs grow with its square
            raise ValueError(f"a window of {self.window[0]} by {self.window[1]} is too large")
        for stage, (dim, blocks) in enumerate(zip(self.dims, self.attentions, strict=True)):
            if blocks and (dim % self.heads or (rows >> stage) % self.window[0]):
                raise ValueError(
                    f"stage {stage}: the heads must divide {dim} features, the window {rows >> stage} rows"
                )


def _uniform_bands(count: int, *, stride: int) -> tuple[Band, ...]:
    width = 1024 // count
    return tuple(Band(start=i * width, stop=(i + 1) * width, stride=stride) for i in range(count))


PRESETS: dict[str, ModelConfig] = {
    # Cheap by design: non-uniform bands, and most convolutions and all attention at low resolution.
    "small": ModelConfig(),
    # Twice the features of `small` in every stage, 3.8 times its cost; can be grown from it (training/surgery.py).
    "large": ModelConfig(
        dims=(64, 128, 192, 320),
        tdfs=(64, 32, 0, 0),
        heads=8,
        head_dim=64,
    ),
    # 15.4 M parameters, all three attentions in all four stages.
    "reference": ModelConfig(
        masks="complex",
        dims=(48, 96, 184, 320),
        convs=(2, 2, 2, 2),
        tdfs=(),
        attentions=(1, 1, 2, 2),
        branches=BRANCHES,
        head_dim=64,
    ),
    # As published (EURASIP JASP 2025:39): magnitudes of four stacked sub-bands, serial attention in the bottleneck
    # only, one model per stem.
    "paper": ModelConfig(
        stems=("vocals",),
        split="stack",
        features="magnitude",
        masks="real",
        bands=_uniform_bands(4, stride=1),
        dims=(32, 64, 128, 256, 384, 384),
        convs=(4, 4, 4, 3, 3, 2),
        tdfs=(),
        attentions=(0, 0, 0, 0, 0, 4),
        branches=BRANCHES,
        window=(4, 4),
        fusion="serial",
        mixture_consistent=False,
    ),
}
