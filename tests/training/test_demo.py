"""The demo song sounds, is the same each time, and the committed files are what the code renders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from examples.demo import picture
from examples.demo.instruments import RATE, Signal, guitar, hertz
from examples.demo.song import BEAT, BEATS, PEAK, render, write
from examples.demo.voice import Note, sing
from tfswa_sep import Stems

DEMO = Path(__file__).parents[2] / "examples" / "demo"
STEMS = ["vocals", "drums", "bass", "other"]


@pytest.fixture(scope="module")
def song() -> dict[str, Signal]:
    return render()


def share_of_energy(sound: Signal, low: float, high: float) -> float:
    """How much of a stem's energy lies between two frequencies (Hz)."""
    power = np.abs(np.fft.rfft(sound.mean(axis=0))) ** 2
    frequency = np.fft.rfftfreq(sound.shape[1], 1 / RATE)
    return float(power[(frequency >= low) & (frequency < high)].sum() / power.sum())


def pitch(sound: Signal) -> float:
    """Fundamental frequency (Hz) of a steady mono sound, by autocorrelation."""
    correlation = np.fft.irfft(np.abs(np.fft.rfft(sound, 2 * sound.size)) ** 2)
    shortest, longest = RATE // 1000, RATE // 60
    return RATE / (shortest + int(np.argmax(correlation[shortest:longest])))


@pytest.mark.slow
def test_the_song_is_20_seconds_of_stereo_that_does_not_clip(song: dict[str, Signal]) -> None:
    assert list(song) == STEMS
    assert {stem.shape for stem in song.values()} == {(2, 20 * RATE)}
    assert np.max(np.abs(sum(song.values()))) == pytest.approx(PEAK)


@pytest.mark.slow
def test_every_stem_sounds_where_it_should(song: dict[str, Signal]) -> None:
    for name, stem in song.items():
        assert 0.02 < np.sqrt(np.mean(stem**2)) < 0.2, name
        assert not np.allclose(stem[0], stem[1]) or name == "bass"  # a bass stands in the middle
    assert share_of_energy(song["bass"], 30, 300) > 0.6
    assert share_of_energy(song["vocals"], 250, 4000) > 0.8
    assert share_of_energy(song["drums"], 8000, 20000) > share_of_energy(song["other"], 8000, 20000)
    intro = song["vocals"][:, : round(2.5 * BEAT * RATE)]
    assert np.max(np.abs(intro)) < 1e-9  # the voice comes in late
    assert np.max(np.abs(song["drums"][:, : RATE // 10])) > 0.1  # a kick on the first beat


@pytest.mark.slow
def test_the_same_seed_is_the_same_performance() -> None:
    once, again = render(beats=4, seed=3), render(beats=4, seed=3)
    for name in STEMS:
        assert once[name].any()
        np.testing.assert_array_equal(once[name], again[name])


def test_voice_and_guitar_hit_the_note() -> None:
    rng = np.random.default_rng(0)
    voice = sing(rng, [Note(0.2, 1.0, 69, ("l", "a"))], 1.4)
    assert pitch(voice[round(0.4 * RATE) : round(0.6 * RATE)]) == pytest.approx(440, rel=0.03)
    string = guitar(rng, 57, 1.0, 0.8)
    assert pitch(string[RATE // 10 : RATE // 2]) == pytest.approx(hertz(57), rel=0.01)
    assert np.std(string[-RATE // 4 :]) < 0.5 * np.std(string[: RATE // 4])  # it dies away


@pytest.mark.slow
def test_the_committed_files_are_this_song(song: dict[str, Signal]) -> None:
    files = {DEMO / "stems" / f"{name}.ogg": stem for name, stem in song.items()}
    files[DEMO / "demo.ogg"] = np.asarray(sum(song.values()))
    for path, expected in files.items():
        found, rate = soundfile.read(path)
        assert (rate, found.shape) == (RATE, (BEATS * BEAT * RATE, 2)), path
        error = np.sum((found.T - expected) ** 2)
        assert error < 0.1 * np.sum(expected**2), path  # Vorbis is lossy: 10 dB and more
    assert sum(path.stat().st_size for path in files) < 1_500_000


def test_write_makes_the_mixture_and_its_stems(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stems: dict[str, Signal] = {name: 0.1 * rng.standard_normal((2, 5000)) for name in STEMS}
    files = write(stems, tmp_path / "new")
    names = [str(path.relative_to(tmp_path / "new")) for path in files]
    assert names == ["demo.ogg", *(f"stems/{name}.ogg" for name in STEMS)]
    assert {soundfile.info(path).frames for path in files} == {5000}


def test_a_tone_is_drawn_at_its_frequency() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    levels = picture.spectrogram(np.stack([tone, tone]), RATE, 40, 200)
    height = np.log(picture.HIGHEST / 1000) / np.log(picture.HIGHEST / picture.LOWEST) * 200
    assert levels.shape == (200, 40)
    assert abs(int(levels[:, 20].argmax()) - height) <= 1


def test_the_picture_has_a_panel_for_the_song_and_each_stem() -> None:
    rng = np.random.default_rng(0)
    stems = {name: 0.1 * rng.standard_normal((2, 2 * RATE), np.float32) for name in STEMS}
    image = np.asarray(picture.draw(np.asarray(sum(stems.values())), Stems(stems, sample_rate=RATE), RATE))
    assert image.shape[:2] == picture.SIZE[::-1]
    assert picture.PICTURE.stat().st_size < 300_000
    tops = [64 + (580 - 112) * number // 3 for number in range(4)]
    for name, top in zip(STEMS, tops, strict=True):
        hue = image[top + 20 : top + 90, 800:1300, :3].mean(axis=(0, 1))
        assert int(hue.argmax()) == int(np.argmax(picture.COLORS[name])), name
