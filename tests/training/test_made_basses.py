"""Basses that are computed: they play the notes asked for, as instruments do, and no two are alike."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soxr")
pytest.importorskip("mido")

from training.corpus.recorded.sources import SAMPLE_RATE, Audio
from training.corpus.rendered import catalogue as rendered
from training.corpus.rendered import render
from training.corpus.rendered import synth_basses as made_basses
from training.corpus.rendered.sampler import Note

LINE = [Note(i * 0.5, 0.45, pitch, 90) for i, pitch in enumerate((28, 33, 40, 45, 52))]  # E1 to E3


def share(audio: Audio, *hertz: float) -> float:
    """Of the sound's energy, what lies within 3 Hz and a sixth of a semitone of these frequencies."""
    power = np.abs(np.fft.rfft(audio[:, 0] * np.hanning(len(audio)), 4 * SAMPLE_RATE)) ** 2
    frequencies = np.fft.rfftfreq(4 * SAMPLE_RATE, 1 / SAMPLE_RATE)
    near = [np.abs(frequencies - each) < 3 + 0.01 * each for each in hertz]
    return float(power[np.any(near, axis=0)].sum() / power.sum())


@pytest.mark.parametrize("kind", made_basses.VOICES)
@pytest.mark.parametrize("seed", range(4))
def test_a_note_has_the_pitch_asked_for(kind: str, seed: int) -> None:
    instrument = made_basses.make(kind, LINE, np.random.default_rng(seed))
    assert sorted(instrument.samples) == [28, 33, 40, 45, 52]
    for pitch, takes in instrument.samples.items():
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        assert max(np.abs(take).max() for take in takes) == pytest.approx(1)
        for take in takes:
            assert take.dtype == np.float32 and take.shape == (int(0.59 * SAMPLE_RATE), 1)
            assert share(take, hertz) > 0.003  # an octave higher there would be nothing
            below = share(take, 0.5 * hertz, 1.5 * hertz)  # and an octave lower much
            assert below < 0.05 or kind != "string"  # synthesizers have sub-oscillators
            assert share(take, *(0.5 * n * hertz for n in range(1, 11))) > 0.5


@pytest.mark.parametrize("kind", made_basses.VOICES)
def test_a_softer_note_is_softer_and_nothing_clicks_at_its_ends(kind: str) -> None:
    for seed in range(4):
        for takes in made_basses.make(kind, LINE, np.random.default_rng(seed)).samples.values():
            levels = [float(np.square(take).mean()) for take in takes]
            assert levels == sorted(levels) and levels[0] < 0.7 * levels[-1]
            assert all(abs(float(take[i, 0])) < 0.05 for take in takes for i in (0, -1))


def test_every_instrument_sounds_in_its_own_way() -> None:
    spectra = []
    for kind in made_basses.VOICES:
        for seed in range(3):
            take = made_basses.make(kind, LINE[:1], np.random.default_rng(seed)).samples[28][-1]
            power = np.abs(np.fft.rfft(take[: SAMPLE_RATE // 2, 0])) ** 2
            bands = np.array([part.sum() for part in np.split(power, [60, 120, 240, 480, 960])])
            spectra.append(10 * np.log10(bands / bands.sum() + 1e-9))
    for i, one in enumerate(spectra):
        assert all(np.abs(one - other).max() > 1 for other in spectra[:i])


def test_a_line_needs_no_recordings(tmp_path: Path) -> None:
    made = rendered.MADE_BASSES[0]
    assert rendered._source(made, tmp_path, tmp_path, None) is None  # nor can it be without a score
    (tmp_path / "midi").mkdir()
    for end in (".tsv", ".zip"):
        (tmp_path / f"midi/freedoom{end}").write_bytes(b"")
    source = rendered._source(made, tmp_path, tmp_path, None)
    assert source is not None
    assert source.licence == "BSD-3-Clause (Freedoom)" and source.licence_class == "permissive"
    assert [Path(f).name for f in source.files] == ["freedoom.tsv", "freedoom.zip"]
    audio, chain = render._play_bass(LINE, source, np.random.default_rng(0), seconds=3.0)
    assert audio.shape == (3 * SAMPLE_RATE, 1) and np.isfinite(audio).all() and np.abs(audio).max() > 0.01
    assert chain in ("di", "drive", "amp", "plain")
    again, _ = render._play_bass(LINE, source, np.random.default_rng(0), seconds=3.0)
    np.testing.assert_array_equal(audio, again)
