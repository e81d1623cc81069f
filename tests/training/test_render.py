"""Songs rendered stem by stem: which songs, which instruments, and aligned stems."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("soxr")
pytest.importorskip("mido")

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio
from training.corpus.rendered import catalogue, render
from training.corpus.rendered.catalogue import FLUID, Render
from training.corpus.rendered.midi import Track, write_midi
from training.corpus.rendered.sampler import Note

HEAD = "file\tseconds\thas_drums\thas_bass\tprograms\tnotes\tdrum_notes\tbass_notes\n"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two MIDI songs of which one has no bass, and one player for each stem."""
    score = tuple(Note(i * 0.5, 0.4, 40 + i % 5, 90) for i in range(240))
    band = [Track(0, score, drums=True), Track(33, score), Track(0, score), Track(30, score)]
    (tmp_path / "midi").mkdir()
    write_midi(band, tmp_path / "song.mid")
    with zipfile.ZipFile(tmp_path / "midi/freedoom.zip", "w") as z:
        z.write(tmp_path / "song.mid", "freedoom/song.mid")
    rows = ["song.mid\t120.0\t1\t1\t\t960\t240\t240\n", "other.mid\t120.0\t1\t0\t\t960\t240\t0\n"]
    (tmp_path / "midi/freedoom.tsv").write_text(HEAD + "".join(rows))
    for name in ("drums/kit/index.tsv", "bass/one/index.tsv", FLUID):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    players = (
        Render("drums", "kit", "groove", "drums/kit", 12),
        Render("bass", "one", "freedoom", "bass/one", 8, 1, {"articulations": ["sustain"]}),
        Render("other", "font", "freedoom", FLUID, 12),
        Render("other", "strums", "", "guitar/strummed", 8, 1, {"articulations": ["sustain"]}),
    )
    monkeypatch.setattr(catalogue, "RENDERS", players)
    return tmp_path


def test_a_band_has_three_stems_and_an_instrument_for_each(shared: Path) -> None:
    sources = catalogue.band_sources(shared, shared, None)
    assert [s.name for s in sources] == [f"freedoom-song.{stem}" for stem in ("drums", "bass", "other")]
    assert {(s.pool, s.extra["song"], s.settings["shift"]) for s in sources} == {
        ("band", "freedoom-song", sources[0].settings["shift"])
    }
    assert [Path(s.files[2]).name for s in sources] == ["index.tsv", "index.tsv", "FluidR3_GM.sf2"]
    assert all("Freedoom" in s.licence for s in sources)
    (shared / FLUID).unlink()
    assert catalogue.band_sources(shared, shared, None) == []


@pytest.mark.slow
def test_the_stems_of_a_band_have_the_same_length_and_key(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: dict[str, list[Note]] = {}

    def play_noise(stem: str, notes: Sequence[Note], seconds: float, channels: int) -> Audio:
        """Noise, a little shorter than requested, as instruments may be."""
        played.setdefault(stem, []).extend(notes)
        n = int((seconds - 0.3) * SAMPLE_RATE)
        return np.random.default_rng(0).uniform(-0.1, 0.1, (n, channels)).astype(np.float32)

    def synthesize(tracks: Sequence[Track], font: str, *, seconds: float, **rest: Any) -> Audio:
        audio = np.zeros((int(seconds * SAMPLE_RATE), 2), np.float32)
        for track in tracks:
            part = play_noise("other", track.notes, seconds, 2)
            audio[: len(part)] += part
        return audio

    monkeypatch.setattr(render, "load_kit", lambda folder: None)
    monkeypatch.setattr(render, "load_instrument", lambda folder, articulations: None)
    monkeypatch.setattr(
        render, "play_drums", lambda notes, kit, rng, *, seconds: play_noise("drums", notes, seconds, 2)
    )
    monkeypatch.setattr(
        render, "play", lambda notes, bass, rng, *, seconds: play_noise("bass", notes, seconds, 1)
    )
    monkeypatch.setattr(render, "synthesize", synthesize)
    sources = catalogue.band_sources(shared, shared, None)
    stems = [next(render.render_song_stem(s, np.random.default_rng(0))).audio for s in sources]
    assert {stem.shape for stem in stems} == {(round(catalogue.SONG_SECONDS * SAMPLE_RATE), 2)}
    assert {stem: min(n.start for n in notes) for stem, notes in played.items()} == dict.fromkeys(played, 0.0)
    shift = sources[0].settings["shift"]
    assert sorted({n.pitch for n in played["other"]}) == [40 + shift + i for i in range(5)]
    assert sorted({n.pitch % 12 for n in played["bass"]}) == sorted((40 + shift + i) % 12 for i in range(5))


def test_octaves_are_varied_if_the_source_says_so(shared: Path) -> None:
    line = tuple(Note(i * 0.5, 0.4, 36 + i % 3, 90) for i in range(8))
    played = {
        variation: notes
        for notes, variation in (render.vary_octaves(line, np.random.default_rng(i)) for i in range(40))
    }
    steps = {
        variation: [n.pitch - line[i % len(line)].pitch for i, n in enumerate(notes)]
        for variation, notes in played.items()
    }
    assert steps == {
        "up": [12] * 8, "leaps": [0, 12] * 4, "above": [0] * 8 + [12] * 8, "below": [0] * 8 + [-12] * 8,
    }  # fmt: skip
    for variation in ("above", "below"):
        assert all(1 <= n.velocity < 90 for n in played[variation][8:])
    (shared / "bass/flbass").mkdir()
    (shared / "bass/flbass/index.tsv").write_bytes(b"")
    sampled = [s for s in catalogue.rendered_sources(shared, shared, None) if "made" not in s.settings]
    assert [s.name for s in sampled if s.settings.get("octaves")] == ["flbass-octaves"]
    assert not any("octaves" in s.settings for s in catalogue.band_sources(shared, shared, None))
