"""Synthesized basses: they play the right notes, and no two sound alike."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soxr")
pytest.importorskip("mido")

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio
from training.corpus.rendered import catalogue, render, synth_basses
from training.corpus.rendered.sampler import Note

LINE = [Note(i * 0.5, 0.45, pitch, 90) for i, pitch in enumerate((28, 33, 40, 45, 52))]  # E1 to E3


def energy_share(audio: Audio, *frequencies: float) -> float:
    """Share of the energy within 3 Hz plus a sixth of a semitone of some frequencies."""
    power = np.abs(np.fft.rfft(audio[:, 0] * np.hanning(len(audio)), 4 * SAMPLE_RATE)) ** 2
    bins = np.fft.rfftfreq(4 * SAMPLE_RATE, 1 / SAMPLE_RATE)
    near = [np.abs(bins - hertz) < 3 + 0.01 * hertz for hertz in frequencies]
    return float(power[np.any(near, axis=0)].sum() / power.sum())


@pytest.mark.parametrize("kind", synth_basses.VOICES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_notes_have_their_pitch(kind: str, seed: int) -> None:
    instrument = synth_basses.build_instrument(kind, LINE, np.random.default_rng(seed))
    assert sorted(instrument.samples) == [28, 33, 40, 45, 52]
    for pitch, takes in instrument.samples.items():
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        assert max(np.abs(take).max() for take in takes) == pytest.approx(1)
        for take in takes:
            assert take.dtype == np.float32 and take.shape == (int(0.59 * SAMPLE_RATE), 1)
            assert energy_share(take, hertz) > 0.003  # would be nothing an octave higher
            below = energy_share(take, 0.5 * hertz, 1.5 * hertz)  # would be much an octave lower
            assert below < 0.05 or kind != "string"  # synthesizers have sub-oscillators
            assert energy_share(take, *(0.5 * n * hertz for n in range(1, 11))) > 0.5


@pytest.mark.parametrize("kind", synth_basses.VOICES)
@pytest.mark.slow
def test_soft_notes_are_softer_and_do_not_click(kind: str) -> None:
    for seed in range(4):
        for takes in synth_basses.build_instrument(kind, LINE, np.random.default_rng(seed)).samples.values():
            levels = [float(np.square(take).mean()) for take in takes]
            assert levels == sorted(levels) and levels[0] < 0.7 * levels[-1]
            assert all(abs(float(take[i, 0])) < 0.05 for take in takes for i in (0, -1))


def test_no_two_instruments_sound_alike() -> None:
    spectra = []
    for kind in synth_basses.VOICES:
        for seed in range(3):
            take = synth_basses.build_instrument(kind, LINE[:1], np.random.default_rng(seed)).samples[28][-1]
            power = np.abs(np.fft.rfft(take[: SAMPLE_RATE // 2, 0])) ** 2
            bands = np.array([part.sum() for part in np.split(power, [60, 120, 240, 480, 960])])
            spectra.append(10 * np.log10(bands / bands.sum() + 1e-9))
    for i, one in enumerate(spectra):
        assert all(np.abs(one - other).max() > 1 for other in spectra[:i])


def test_a_synthesized_bass_needs_no_samples(tmp_path: Path) -> None:
    render_spec = catalogue.SYNTH_BASSES[0]
    assert catalogue._source(render_spec, tmp_path, tmp_path, None) is None  # without a score
    (tmp_path / "midi").mkdir()
    for end in (".tsv", ".zip"):
        (tmp_path / f"midi/freedoom{end}").write_bytes(b"")
    source = catalogue._source(render_spec, tmp_path, tmp_path, None)
    assert source is not None
    assert source.licence == "BSD-3-Clause (Freedoom)" and source.licence_class == "permissive"
    assert [Path(f).name for f in source.files] == ["freedoom.tsv", "freedoom.zip"]
    audio, chain = render._play_bass(LINE, source, np.random.default_rng(0), seconds=3.0)
    assert audio.shape == (3 * SAMPLE_RATE, 1) and np.isfinite(audio).all() and np.abs(audio).max() > 0.01
    assert chain in ("di", "drive", "amp", "plain")
    again, _ = render._play_bass(LINE, source, np.random.default_rng(0), seconds=3.0)
    np.testing.assert_array_equal(audio, again)
