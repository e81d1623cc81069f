"""Tracker modules: stems add up to the song, and instruments are classified by sound and name."""

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus import BAND, build
from training.corpus.recorded.sources import active_level, read_tsv
from training.corpus.tracker import find_parts, songs, tracker

needs_player = pytest.mark.skipif(not tracker.is_installed(), reason="libopenmpt is not installed")

RATE = 8287.1  # Hz of a sample at the note C-2 on an Amiga of PAL countries
PERIODS = {"C-1": 856, "D-1": 762, "E-1": 678, "G-1": 570, "A-1": 508, "C-2": 428}
KICK, BASS, LEAD, SILENT = range(4)


def sample_of(kind: int) -> NDArray[np.int8]:
    """One instrument, int8 at RATE: a kick drum, a bass on 83 Hz, a lead on 663 Hz (each at C-2), silence."""
    t = np.arange(2400) / RATE
    if kind == KICK:
        click = np.random.default_rng(0).normal(0, 0.3, len(t)) * np.exp(-t * 90)
        wave = np.sin(2 * np.pi * 60 * t) * np.exp(-t * 18) + click
    else:
        hertz = {BASS: 83, LEAD: 663, SILENT: 0}[kind]
        wave = np.sum([np.sin(2 * np.pi * n * hertz * t) / n**2 for n in (1, 2, 3)], axis=0)
    return np.asarray(np.round(wave / max(np.abs(wave).max(), 1) * 100), np.int8)


def module(names: tuple[str, ...] = ("bd", "", ""), *, patterns: int = 8) -> bytes:
    """A four-channel MOD with a kick on every fourth row, and a bass and a lead that wander."""
    samples = [sample_of(kind) for kind in (KICK, BASS, LEAD)]
    head = b"song".ljust(20, b"\0")
    for name, sample in zip((*names, *[""] * 28), (*samples, *[np.zeros(0, np.int8)] * 28), strict=True):
        loop = (0, len(sample) // 2) if len(sample) and sample is not samples[KICK] else (0, 1)
        head += name.encode().ljust(22, b"\0") + struct.pack(">HBBHH", len(sample) // 2, 0, 64, *loop)
    head += bytes([patterns, 127]) + bytes(128) + b"M.K."
    rows = b""
    for row in range(64):
        melody = list(PERIODS.values())[row // 4 % 6]
        cells = ((KICK, 428), (BASS, melody), (LEAD, melody))
        for instrument, period in (*cells, (SILENT, 0)):
            struck = period and row % 4 == 0
            value = (period, (instrument + 1) << 4) if struck else (0, 0)
            rows += struct.pack(">HBB", value[0], value[1], 0)
    return head + rows + b"".join(s.tobytes() for s in samples)


@needs_player
def test_a_score_counts_the_notes_of_each_instrument() -> None:
    score = tracker.read_score(module())
    assert score.seconds == pytest.approx(8 * 64 * 0.12, abs=0.1)  # 50 ticks a second, 6 a row
    assert score.names == {0: "bd", 1: "", 2: ""}
    assert {i: len(notes) for i, notes in score.notes.items()} == {0: 1, 1: 6, 2: 6}
    assert score.notes[KICK].total() == 8 * 16


@needs_player
def test_stems_add_up_to_the_song() -> None:
    whole = tracker.play(module(), seconds=5)
    parts = [tracker.play(module(), seconds=5, instruments=[i]) for i in range(3)]
    assert all(np.abs(part).max() > 0.01 for part in parts)
    assert whole.shape == (5 * SAMPLE_RATE, 2) and whole.dtype == np.float32
    np.testing.assert_allclose(sum(parts), whole, atol=1e-5)
    after = tracker.play(module(patterns=1), seconds=20)[10 * SAMPLE_RATE :]
    assert not after.any()  # silence after the end


@needs_player
def test_other_files_are_rejected() -> None:
    with pytest.raises(ValueError, match="not a tracker module"):
        tracker.read_score(b"module m; endmodule" * 100)


@needs_player
@pytest.mark.slow
def test_parts_are_found_by_sound() -> None:
    song = find_parts.find_parts(module())
    assert song is not None
    assert song[1] == {"drums": (KICK,), "bass": (BASS,), "other": (LEAD,)}
    assert find_parts.find_parts(module(patterns=2)) is None  # 15 s are too short
    # a contradictory name raises doubt, and a song needs all parts
    assert find_parts.find_parts(module(("bd", "strings", ""))) is None


def test_a_name_only_decides_between_possible_parts() -> None:
    notes, rate = Counter({60: 40, 62: 5}), find_parts.RATE
    t = np.arange(4 * rate) / rate
    hum = np.sin(2 * np.pi * 70 * t)[:, None].astype(np.float32)  # a bass on one note, or a long drum
    sound = find_parts.measure(hum, notes)
    assert find_parts.possible_parts(sound) == {"drums", "bass"}
    assert find_parts.classify(sound, "") is None
    assert find_parts.classify(sound, "Slap Bass") == "bass"
    assert find_parts.classify(sound, "bass drum") == "drums"
    assert find_parts.classify(sound, "strings") is None
    assert all(find_parts.classify(sound, name) is None for name in ("choir", "vocal bass", "scream.1"))


@needs_player
@pytest.mark.slow
def test_a_song_becomes_three_sources_with_their_levels_in_the_song(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "game-data/usr/share"
    folder.mkdir(parents=True)
    (folder / "a.mod").write_bytes(module())
    (folder / "not.mod").write_text("module;")
    monkeypatch.setattr(songs, "MODULE_PARTS", tmp_path / "parts.tsv")
    rows = list(find_parts.list_songs(tmp_path, "game-data"))
    songs.write_parts(tmp_path / "parts.tsv", rows)
    sources = songs.tracker_sources(tmp_path)
    assert [(s.pool, s.extra["song"], s.extra["stem"]) for s in sources] == [
        ("band", "game-a.mod", part) for part in ("drums", "bass", "other")
    ]
    pieces = [next(songs.render_tracker_stem(s, np.random.default_rng(0))).audio for s in sources]
    song = np.sum(pieces, axis=0)
    assert active_level(song) == pytest.approx(songs.LEVEL, abs=0.1)
    together = tracker.play(module(), seconds=61)[: len(song)]
    gain = np.abs(song).max() / np.abs(together).max()
    np.testing.assert_allclose(song, together * gain, atol=1e-4)
    monkeypatch.setattr(songs, "LEVEL", 0.0)  # limited by the peak
    loud = [next(songs.render_tracker_stem(s, np.random.default_rng(0))).audio for s in sources]
    assert max(np.abs(a).max() for a in (*loud, sum(loud))) == pytest.approx(songs.PEAK, abs=1e-3)


def test_without_libopenmpt_there_are_no_songs_and_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    (tmp_path / "debian_music.tsv").write_text("package\tlicence\n")
    assert tracker.LIBRARY in build.find_missing(tmp_path, tmp_path, tmp_path)
    assert songs.tracker_sources(tmp_path) == []


def test_the_committed_table_fits_the_packages() -> None:
    rows = read_tsv(songs.MODULE_PARTS)
    assert len({(row["package"], Path(row["file"]).name) for row in rows}) == len(rows) > 40
    for row in rows:
        assert row["package"] in songs.MODULE_PACKAGES and songs.MODULE.search(row["file"])
        numbers = [int(i) for part in BAND for i in row[part].split()]
        assert all(row[part] for part in BAND) and min(numbers) >= 1
        assert len(set(numbers)) == len(numbers)
