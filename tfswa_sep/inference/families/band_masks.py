"""Our own models: features of bands to masks and filters; see `features` and `mask_apply`."""

from __future__ import annotations

from collections.abc import Mapping

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.families.family import Floats, Run
from tfswa_sep.inference.features import band_features
from tfswa_sep.inference.mask_apply import apply_masks
from tfswa_sep.inference.metadata import KEY, ModelMetadata, contradicts, parse_metadata
from tfswa_sep.inference.overlap_add import plan_segments
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.model.config import ModelConfig


class BandMasks:
    """For each band, features_0, ... (b, features, bins of the band, t) to masks_0, ...

    (b, s * parts * bins per token, tokens, t).

    Args:
        properties: The file's metadata.
        file: Its name, for errors.

    Raises:
        ModelError: The metadata is missing or invalid.
    """

    def __init__(self, properties: Mapping[str, str], *, file: str) -> None:
        self.metadata: ModelMetadata = parse_metadata(properties.get(KEY), file=file)
        try:
            config = ModelConfig.from_json(self.metadata.config)
        except ValueError as error:
            raise ModelError(f"{file} is damaged: {error}") from None
        if contradicts(self.metadata, config):
            raise ModelError(f"{file} is damaged: its metadata contradicts itself")
        self._config = config
        self.stems = self.metadata.stems
        self.sample_rate = self.metadata.sample_rate
        self.channels = self.metadata.channels
        self.plan = plan_segments(segment=self.metadata.segment_samples, margin=self.metadata.margin_samples)
        t = self.plan.segment // self.metadata.hop + 1
        self.inputs = {
            f"features_{i}": (None, config.feature_count(band), band.stop - band.start, t)
            for i, band in enumerate(config.bands)
        }
        self.outputs = {
            f"masks_{i}": (None, len(self.stems) * config.head_parts(band) * band.stride, band.tokens, t)
            for i, band in enumerate(config.bands)
        }

    def fit_segment(self, samples: int) -> int:
        """See backend.AnyLength."""
        return min(self._config.unpadded_samples(samples), self.plan.segment)

    def separate(
        self, segments: Floats, run: Run, stem_matrix: Floats | None, *, newest: int | None = None
    ) -> Floats:
        """See Family; with `newest`, only the last so many samples are returned."""
        spectrum = stft(segments, n_fft=self._config.n_fft, hop=self._config.hop)
        bands = band_features(spectrum, self._config)
        masks = run({f"features_{i}": band for i, band in enumerate(bands)})
        return apply_masks(masks, spectrum, segments, self._config, stem_matrix, newest=newest)
