"""Networks that map the mixture's spectrum to the stems', some with the waveform beside it.

The settings are those that unblend writes into a file's metadata. Its families are RoFormers and SCNet (spectra only)
and htdemucs (spectrum and waveform).
Axis letters: b batch, s model stem, k requested stem, c channel, n samples, f bins, t frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.families.family import Floats, Run, Shape
from tfswa_sep.inference.metadata import MAX_SEGMENT, check_transform, decimal, stem_names
from tfswa_sep.inference.overlap_add import plan_triangles
from tfswa_sep.inference.stft_numpy import WINDOWS, istft, stft

Spectrum = NDArray[np.complex64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How such a network is used."""

    stems: tuple[str, ...]
    estimated: int  # the network's stems; one more is what they leave of the mixture
    sample_rate: int  # Hz
    channels: int
    segment: int  # samples per segment
    padding: int  # zeros after each segment
    n_fft: int
    hop: int
    window: str  # one of stft_numpy.WINDOWS
    normalized: bool  # spectra are divided by the square root of n_fft
    margin: int  # samples by which a segment is extended by reflection before it is transformed
    trim: int  # frames left out at each end


class SpectraToSpectra:
    """spec_real, spec_imag (b, c, f, t) to out_spec_real, out_spec_imag (b, s, c, f, t).

    Args:
        properties: The file's metadata.
        file: Its name, for errors.

    Raises:
        ModelError: The metadata are invalid.
    """

    _normalizes = False  # whether the network normalizes each segment

    def __init__(self, properties: Mapping[str, str], *, file: str) -> None:
        try:
            settings = _parse(properties)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError(f"{file} is damaged: its metadata is invalid (at {error})") from None
        if properties.get("external_normalization") == "true" and not self._normalizes:
            raise ModelError(f"{file} needs songs that are normalized as a whole, which is not supported")
        self._settings = settings
        self.stems = settings.stems
        self.sample_rate = settings.sample_rate
        self.channels = settings.channels
        self.plan = plan_triangles(settings.segment)
        self._samples = settings.segment + settings.padding
        shape = (settings.channels, *self._spectrum_shape())
        self.inputs: dict[str, Shape] = dict.fromkeys(("spec_real", "spec_imag"), (None, *shape))
        self.outputs: dict[str, Shape] = dict.fromkeys(
            ("out_spec_real", "out_spec_imag"), (None, settings.estimated, *shape)
        )

    def separate(self, segments: Floats, run: Run, stem_matrix: Floats | None) -> Floats:
        """See Family."""
        count = self._settings.estimated
        rows = np.eye(len(self.stems), dtype=np.float32) if stem_matrix is None else stem_matrix
        # A stem that is the mixture minus the estimated ones: its weight is the mixture's, and is taken off theirs.
        of_mixture = rows[:, count:].sum(axis=1)
        waves = self._estimate(segments, run, rows[:, :count] - of_mixture[:, None])
        return waves + of_mixture[:, None, None] * segments[:, None] if of_mixture.any() else waves

    def _estimate(self, segments: Floats, run: Run, rows: Floats) -> Floats:
        """Sums (b, k, c, n) of the estimated stems, with weights (k, s)."""
        real, imaginary = run(self._spectra(segments))
        return self._waves(real, imaginary, rows)

    def _spectra(self, segments: Floats) -> dict[str, Floats]:
        """The network's spectra of segments."""
        spectrum = self._transform(segments)
        return {
            "spec_real": np.ascontiguousarray(spectrum.real),
            "spec_imag": np.ascontiguousarray(spectrum.imag),
        }

    def _waves(self, real: Floats, imaginary: Floats, rows: Floats) -> Floats:
        """Sums (b, k, c, n) of spectra (b, s, c, f, t), with weights (k, s)."""
        spectrum = np.empty((len(real), len(rows), *real.shape[2:]), np.complex64)
        spectrum.real = np.einsum("ks,bscft->bkcft", rows, real)
        spectrum.imag = np.einsum("ks,bscft->bkcft", rows, imaginary)
        return self._invert(spectrum)[..., : self._settings.segment]

    def _spectrum_shape(self) -> tuple[int, int]:
        """Bins and frames."""
        return self._settings.n_fft // 2 + 1, self._samples // self._settings.hop + 1

    def _transform(self, segments: Floats) -> Spectrum:
        """Spectra (b, c, f, t) of segments (b, c, n)."""
        return self._stft(_pad(segments, 0, self._settings.padding, "constant"))

    def _invert(self, spectrum: Spectrum) -> Floats:
        """Undo _transform, for any number of axes before f."""
        return self._istft(spectrum, self._samples)

    def _stft(self, samples: Floats) -> Spectrum:
        settings = self._settings
        side = settings.n_fft // 2
        spectrum = stft(
            _pad(samples, side, side, "reflect"),
            n_fft=settings.n_fft,
            hop=settings.hop,
            window=settings.window,
            centred=False,
        )
        return spectrum / np.float32(settings.n_fft**0.5) if settings.normalized else spectrum

    def _istft(self, spectrum: Spectrum, length: int) -> Floats:
        settings = self._settings
        if settings.normalized:
            spectrum = spectrum * np.float32(settings.n_fft**0.5)
        return istft(spectrum, n_fft=settings.n_fft, hop=settings.hop, window=settings.window, length=length)


class Hybrid(SpectraToSpectra):
    """Spectra as in SpectraToSpectra and audio (b, c, n), to spectra and out_wave (b, s, c, n), which are added.

    Before its transform a segment is extended by reflection and up to whole hops; the highest bin and some frames at
    each end are left out.
    """

    _normalizes = True

    def __init__(self, properties: Mapping[str, str], *, file: str) -> None:
        super().__init__(properties, file=file)
        shape = (self.channels, self.plan.segment)
        self.inputs["audio"] = (None, *shape)
        self.outputs["out_wave"] = (None, self._settings.estimated, *shape)

    def _estimate(self, segments: Floats, run: Run, rows: Floats) -> Floats:
        real, imaginary, waves = run({**self._spectra(segments), "audio": segments})
        summed: Floats = np.einsum("ks,bscn->bkcn", rows, waves)
        return self._waves(real, imaginary, rows) + summed

    def _spectrum_shape(self) -> tuple[int, int]:
        settings = self._settings
        frames = (self._extended() + 2 * settings.margin) // settings.hop + 1
        return settings.n_fft // 2, frames - 2 * settings.trim

    def _extended(self) -> int:
        """Samples of a segment and its extension to whole hops."""
        hop = self._settings.hop
        return -(-self._samples // hop) * hop

    def _transform(self, segments: Floats) -> Spectrum:
        margin, trim = self._settings.margin, self._settings.trim
        after = margin + self._extended() - self._samples
        spectrum = self._stft(_pad(segments, margin, after, "reflect"))
        return spectrum[..., :-1, trim : spectrum.shape[-1] - trim]

    def _invert(self, spectrum: Spectrum) -> Floats:
        margin, trim = self._settings.margin, self._settings.trim
        whole = np.pad(spectrum, [(0, 0)] * (spectrum.ndim - 2) + [(0, 1), (trim, trim)])
        return self._istft(whole, self._extended() + 2 * margin)[..., margin:]


def _pad(samples: Floats, before: int, after: int, mode: str) -> Floats:
    widths: Sequence[tuple[int, int]] = [(0, 0)] * (samples.ndim - 1) + [(before, after)]
    padded: Floats = np.pad(samples, widths, mode=mode)  # type: ignore[call-overload]
    return padded


def _parse(properties: Mapping[str, str]) -> Settings:
    """Read the metadata. Raises ValueError or KeyError for anything missing or invalid."""

    def number(key: str, low: int, high: int, default: str | None = None) -> int:
        fields = properties if default is None else {key: default, **properties}
        return decimal(fields, key, low, high)

    def flag(key: str) -> bool:
        if (text := properties.get(key, "false")) not in ("true", "false"):
            raise ValueError(key)
        return text == "true"

    padded = number("segment_samples", 64, MAX_SEGMENT)
    segment = number("logical_segment_samples", 64, padded, default=str(padded))
    n_fft, hop = number("stft_n_fft", 64, 1 << 15), number("stft_hop_length", 16, 1 << 15)
    stems = stem_names(json.loads(properties["sources"]))
    settings = Settings(
        stems=stems,
        estimated=len(stems) - flag("output_complement"),
        sample_rate=number("sample_rate", 8_000, 192_000),
        channels=number("audio_channels", 2, 2),
        segment=segment,
        padding=padded - segment,
        n_fft=n_fft,
        hop=hop,
        window=properties.get("stft_window", "hann"),
        normalized=flag("stft_normalized"),
        margin=number("stft_pad_samples", 0, padded - 1, default="0"),
        trim=number("stft_frame_trim", 0, 16, default="0"),
    )
    check_transform(n_fft, hop, frames=padded // hop + 1, any_hop=True)
    if number("stft_win_length", 64, 1 << 15) != n_fft:
        raise ValueError("stft_win_length")
    if settings.window not in WINDOWS:
        raise ValueError("stft_window")
    if settings.estimated < 1:
        raise ValueError("sources")
    if n_fft >= segment:
        raise ValueError("stft_n_fft")
    return settings
