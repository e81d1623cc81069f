"""The corpus build on synthetic material: cutting, arrays, resuming, determinism, sampler and MIDI."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

mido = pytest.importorskip("mido")
pytest.importorskip("torch")

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus import BAND, build
from training.corpus.recorded import catalogue, sources
from training.corpus.recorded.sources import Piece, Source
from training.corpus.rendered import effects, midi, strums
from training.corpus.rendered.sampler import Instrument, Kit, Note, play, play_drums
from training.corpus.speech import synthesize
from training.corpus.tracker import tracker


def tone(hertz: float, seconds: float, level: float = 0.3) -> sources.Audio:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[:, None]


def strongest(audio: sources.Audio) -> float:
    spectrum = np.abs(np.fft.rfft(audio[:, 0] * np.hanning(len(audio))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(audio))


@pytest.fixture
def speech(tmp_path: Path) -> Source:
    """Three clips of noise: one is a copy, one is silent."""
    clip = np.random.default_rng(0).uniform(-0.2, 0.2, SAMPLE_RATE).astype(np.float32)
    for name, audio in (("a", clip), ("b", clip), ("c", np.zeros(SAMPLE_RATE)), ("d", clip[::-1] * 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", audio, SAMPLE_RATE)
    files = tuple(str(tmp_path / f"{n}.wav") for n in "abcd")
    return Source("vocals", "clips", "CC0-1.0", "permissive", "1", "speech", files, {"min_hz": 5000})


def test_active_spans_bridge_short_gaps_and_end_at_long_ones() -> None:
    quiet = np.zeros((SAMPLE_RATE, 1), np.float32)
    audio = np.concatenate(
        [quiet, tone(440, 2), quiet[: SAMPLE_RATE // 5], tone(440, 1), quiet, quiet, tone(440, 0.2)]
    )
    spans = sources.active_spans(audio, floor_db=-50, hang=0.5, shortest=1.0)
    assert len(spans) == 1
    start, end = (x / SAMPLE_RATE for x in spans[0])
    assert 0.85 <= start <= 1.0
    assert 4.2 <= end <= 4.4


def test_normalize_sets_the_level_and_limits_the_peak() -> None:
    level = sources.active_level(sources.normalize(tone(300, 1, 0.01)))
    assert level == pytest.approx(-20, abs=0.2)
    click = np.zeros((SAMPLE_RATE, 2), np.float32)
    click[100] = 0.9
    assert np.abs(sources.normalize(click)).max() <= 0.98


def test_bandwidth_of_low_passed_noise() -> None:
    noise = np.random.default_rng(0).standard_normal((SAMPLE_RATE * 2, 1)).astype(np.float32)
    assert sources.bandwidth(noise) > 21000
    spectrum = np.fft.rfft(noise, axis=0)
    spectrum[16000:] = 0  # bins of half a Hz
    assert sources.bandwidth(np.fft.irfft(spectrum, axis=0).astype(np.float32)) == pytest.approx(
        8000, abs=500
    )


def test_build_writes_memory_mappable_arrays_and_a_manifest(speech: Source, tmp_path: Path) -> None:
    out = tmp_path / "pools"
    (row,) = build.build([speech], out, processes=1)
    array = np.load(out / row["array"], mmap_mode="r")
    assert array.dtype == np.int16
    assert array.shape == (row["segments"][-1][1], 1)
    assert array.flags["C_CONTIGUOUS"]
    assert row["labels"] == ["a.wav", "d.wav"]  # without the copy and the silent clip
    assert row["segments"][0][0] == 0
    assert row["segments"][0][1] == row["segments"][1][0]
    assert np.abs(array).max() > 3000
    content = json.loads((out / "manifest.json").read_text())
    assert content["sources"][0]["licence_class"] == "permissive"
    assert content["sample_rate"] == 44100
    assert f"| vocals | clips | {row['minutes']} |" in (out / "card.md").read_text()


def test_build_keeps_existing_arrays_and_rebuilds_changed_ones(speech: Source, tmp_path: Path) -> None:
    out = tmp_path / "pools"
    build.build([speech], out, processes=1)
    path = out / "vocals/clips.npy"
    before, seen = path.stat().st_mtime_ns, []
    build.build([speech], out, processes=1, on_done=lambda row, kept: seen.append(kept))
    assert seen == [True]
    assert path.stat().st_mtime_ns == before
    changed = dataclasses.replace(speech, files=speech.files[:1])
    (row,) = build.build([changed], out, processes=1)
    assert len(row["segments"]) == 1
    path.unlink()
    assert build.build([changed], out, processes=1)[0]["array"] == "vocals/clips.npy"
    assert path.is_file()


def test_a_source_without_usable_audio_is_listed_separately_and_retried(
    speech: Source, tmp_path: Path
) -> None:
    out = tmp_path / "pools"
    silent = dataclasses.replace(speech, name="silent", files=speech.files[2:3])
    build.build([silent, speech], out, processes=1)
    content = json.loads((out / "manifest.json").read_text())
    assert [r["source"] for r in content["sources"]] == ["clips"]
    assert [r["source"] for r in content["empty"]] == ["silent"]
    seen: list[bool] = []
    build.build([silent, speech], out, processes=1, on_done=lambda row, kept: seen.append(kept))
    assert seen == [True, False]


def test_a_failing_source_leaves_nothing_and_does_not_stop_the_others(speech: Source, tmp_path: Path) -> None:
    out = tmp_path / "pools"
    broken = dataclasses.replace(speech, name="broken", settings={})
    seen: list[dict[str, object]] = []
    rows = build.build([broken, speech], out, processes=1, on_done=lambda row, kept: seen.append(row))
    assert [r["source"] for r in rows] == ["clips"]
    assert any("KeyError" in str(r.get("error")) for r in seen)
    assert sorted(p.name for p in (out / "vocals").iterdir()) == ["clips.npy"]


def test_an_interrupted_array_never_appears(tmp_path: Path) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece(tone(440, 1), "first")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        build.write_array(tmp_path / "pool/x.npy", pieces())
    assert list((tmp_path / "pool").iterdir()) == []


def test_mono_and_stereo_do_not_mix(tmp_path: Path) -> None:
    both = [Piece(tone(440, 0.1), "mono"), Piece(np.repeat(tone(440, 0.1), 2, axis=1), "stereo")]
    with pytest.raises(ValueError, match="2 channels"):
        build.write_array(tmp_path / "x.npy", both)


def test_sampler_plays_the_pitch_and_length_of_a_note() -> None:
    guitar = Instrument({57: [tone(220, 4)], 69: [tone(440, 4)]})
    notes = [Note(0.5, 1.0, 60, 100)]
    audio = play(notes, guitar, np.random.default_rng(0), seconds=3)
    assert audio.shape == (3 * SAMPLE_RATE, 1)
    assert np.abs(audio[: SAMPLE_RATE // 2]).max() == 0
    assert np.abs(audio[int(1.6 * SAMPLE_RATE) :]).max() < 1e-6
    assert strongest(audio[SAMPLE_RATE // 2 : SAMPLE_RATE]) == pytest.approx(261.6, abs=2.5)


def test_a_closed_hat_chokes_the_open_one() -> None:
    ring = np.ones((SAMPLE_RATE, 2), np.float32)
    kit = Kit({42: [ring[:100]], 46: [ring]}, layered=False)
    rng = np.random.default_rng(0)
    alone = play_drums([Note(0, 0.1, 46, 127)], kit, rng, seconds=1)
    choked = play_drums([Note(0, 0.1, 46, 127), Note(0.3, 0.1, 42, 127)], kit, rng, seconds=1)
    assert alone[int(0.5 * SAMPLE_RATE), 0] == 1
    assert choked[int(0.5 * SAMPLE_RATE), 0] == 0


def test_convolution_equals_numpy_and_equalizer_keeps_time() -> None:
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((150_000, 1)).astype(np.float32)
    kernel = rng.standard_normal(3000).astype(np.float32)
    assert np.allclose(
        effects.convolve(audio, kernel)[:, 0], np.convolve(audio[:, 0], kernel)[:150_000], atol=1e-2
    )
    flat = effects.equalize(audio, np.ones_like(effects.eq_frequencies()))
    assert np.allclose(flat, audio, atol=1e-4)


def test_midi_round_trip(tmp_path: Path) -> None:
    import zipfile

    drums = midi.Track(0, (Note(0.25, 0.1, 36, 90), Note(0.75, 0.1, 38, 80)), drums=True)
    lead = midi.Track(30, (Note(0.0, 0.5, 64, 100), Note(0.5, 0.5, 64, 101)))
    midi.write_midi([lead, drums], tmp_path / "x.mid")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.write(tmp_path / "x.mid", "x.mid")
    tracks = midi.read_tracks(str(tmp_path / "x.zip"), "x.mid")
    assert [(t.program, t.drums, [n.pitch for n in t.notes]) for t in tracks] == [
        (30, False, [64, 64]),
        (0, True, [36, 38]),
    ]
    assert tracks[0].notes[1].start == pytest.approx(0.5, abs=0.002)
    assert mido.MidiFile(tmp_path / "x.mid").length == pytest.approx(1.0, abs=0.01)


def test_strums_depend_only_on_the_seed() -> None:
    def one(seed: int) -> list[Note]:
        rng = np.random.default_rng(seed)
        return strums.humanize(strums.draw_chords(rng, style="chug", key=3, beat=0.5, bars=4), rng)

    assert one(1) == one(1)
    assert one(1) != one(2)
    assert min(n.pitch for n in one(1)) >= strums.LOWEST


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GPL-2+", "copyleft"),
        ("CC-BY-SA-3.0", "copyleft"),
        ("CC-BY-4.0 (Groove) + MIT", "attribution"),
        ("CC0-1.0", "permissive"),
        ("BSD-3-Clause (Freedoom) + MIT (soundfont)", "permissive"),
        ("own user terms", "own-terms"),
    ],
)
def test_licence_classes(text: str, kind: str) -> None:
    assert catalogue.licence_class(text) == kind


@pytest.mark.parametrize(
    ("name", "kept"),
    [("p/music/theme.ogg", True), ("p/music/theme_fast.ogg", False), ("p/sfx/long.ogg", False),
     ("p/a.pk3::sound/cdtracks/x.ogg", True), ("p/music/choir2.ogg", False), ("p/voices/hello.ogg", False)],
)  # fmt: skip
def test_music_is_distinguished_from_voices_and_effects(name: str, kept: bool) -> None:
    assert catalogue.is_music(name) is kept


def test_a_speaker_of_narrow_recordings_is_kept_as_recorded(tmp_path: Path) -> None:
    """A sample rate of 12 kHz gives no 10 kHz; narrow clips are used only if there are no wide ones."""
    rng = np.random.default_rng(0)
    for name, rate in (("narrow", 12_000), ("wide", SAMPLE_RATE)):
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-0.2, 0.2, rate), rate)
    files = tuple(str(tmp_path / f"{n}.wav") for n in ("narrow", "wide"))
    source = Source("vocals", "a", "CC0-1.0", "permissive", "1", "speech", files, {"min_hz": 10_000})

    def labels(source: Source) -> list[str]:
        return [piece.label for piece in sources.read_speech(source, rng)]

    assert labels(source) == ["wide.wav"]
    assert labels(dataclasses.replace(source, files=files[:1])) == ["narrow.wav"]
    assert [piece.label for piece in sources.read_widest_clips(files[:1], 10_000)] == ["narrow.wav"]


def test_nothing_non_commercial_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "multitrack/train").mkdir(parents=True)
    assert catalogue.licence_class("CC-BY-NC-SA-4.0") == "non-commercial"
    assert catalogue.licence_class("CC-BY-SA-3.0 (Vincent)") == "copyleft"
    source = Source("vocals", "demo", "CC_BY_NC", catalogue.licence_class("CC_BY_NC"), "1", "speech", (), {})
    monkeypatch.setattr(build, "all_sources", lambda *_: [source])
    monkeypatch.setattr(build, "find_missing", lambda *_: [])
    command = ["--shared", str(tmp_path), "--out", str(tmp_path / "pools")]
    with pytest.raises(SystemExit):
        build.main(command)
    assert (
        "demo has a non-commercial licence (CC_BY_NC" in capsys.readouterr().err
        and not (tmp_path / "pools").exists()
    )
    assert build.main([*command, "--without", "demo", "--processes", "1"]) == 0


def test_a_package_is_excluded_with_everything_made_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "multitrack/train").mkdir(parents=True)
    debian, midi_files, left = tmp_path / "debian", str(tmp_path / "midi.zip"), list[str]()

    def source(pool: str, name: str, *files: str, **extra: str) -> Source:
        return Source(pool, name, "GPL-2", "copyleft", "1", "speech", files, {}, dict(extra))

    kit, font = f"{debian}/kits/usr/drumkit.xml", str(tmp_path / "sf2/FluidR3_GM.sf2")
    everything = [
        source("vocals", "talk-en", f"{debian}/talk-data/usr/a.ogg"),
        source("vocals", "sung-talk-en", f"{debian}/talk-data/usr/a.ogg"),
        source("accompaniment", "talk-data", f"{debian}/talk-data/usr/a.pk3::music/b.ogg"),
        source("vocals", "talk-cs", f"{debian}/talk-data-cs/usr/a.ogg"),
        source("drums", "kit", midi_files, kit),
        source("band", "one.drums", midi_files, kit, song="one", stem="drums"),
        source("band", "one.bass", midi_files, song="one", stem="bass"),
        source("band", "two.bass", midi_files, song="two", stem="bass"),
        source("song", "one.vocals", midi_files, song="one", stem="vocals"),
        source("other", "font", midi_files, font),
        dataclasses.replace(source("band", "three.bass", f"{debian}/game/a.xm"), recipe="tracker_stem"),
    ]

    def record(selected: list[Source], *_: object, **__: object) -> list[dict[str, object]]:
        left.extend(s.name for s in selected)
        return []

    monkeypatch.setattr(build, "all_sources", lambda *_: everything)
    monkeypatch.setattr(build, "find_missing", lambda *_: [])
    monkeypatch.setattr(build, "build", record)
    monkeypatch.setattr(synthesize, "synthesize", lambda *_, **__: [])
    command = ["--shared", str(tmp_path), "--debian", str(debian), "--soundfonts", str(tmp_path)]
    command += ["--out", str(tmp_path / "pools")]
    without = [f"--without={name}" for name in ("talk-data", "kits", "fluid-soundfont-gm", tracker.LIBRARY)]
    assert build.main([*command, *without]) == 0
    assert left == ["talk-cs", "two.bass", "one.vocals"]


def test_missing_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multitrack/train").mkdir(parents=True)
    (tmp_path / "debian_music.tsv").write_text("package\tlicence\n0ad-data\tCC-BY-SA-3.0\n")
    assert "0ad-data" in build.find_missing(tmp_path, tmp_path / "debian", tmp_path)
    (tmp_path / "debian/0ad-data").mkdir(parents=True)
    assert "0ad-data" not in build.find_missing(tmp_path, tmp_path / "debian", tmp_path)
    with pytest.raises(SystemExit):
        build.main(["--shared", str(tmp_path), "--debian", str(tmp_path / "debian"), "--out", str(tmp_path)])
    assert "more; fetch or install them" in capsys.readouterr().err


def test_a_description_may_change_without_a_rebuild(speech: Source, tmp_path: Path) -> None:
    out = tmp_path / "pools"
    build.build([speech], out, processes=1)
    before = (out / "vocals/clips.npy").stat().st_mtime_ns
    (row,) = build.build([dataclasses.replace(speech, extra={"speakers": 3})], out, processes=1)
    assert row["speakers"] == 3 and (out / "vocals/clips.npy").stat().st_mtime_ns == before
    assert "| clips |" in (out / "card.md").read_text() and "| 3 |" in (out / "card.md").read_text()


def test_the_command_fails_if_a_source_is_empty_unless_it_is_excluded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = tmp_path / "shared/multitrack/train/Song/vocals.opus"
    song.parent.mkdir(parents=True)
    (tmp_path / "shared/voices").mkdir()
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 48_000 * 2)
    soundfile.write(song, sound, 48_000, format="OGG", subtype="OPUS")
    banks = list(catalogue.VOICEBANKS)  # none of them exists
    without = banks[1:] + [f"sung-{bank}-{part}" for bank in banks for part in (1, 2)]
    command = ["--shared", str(tmp_path / "shared"), "--out", str(tmp_path / "pools"), "--processes", "1"]
    command += ["--soundfonts", str(tmp_path)]
    command += [f"--without={name}" for name in without]
    with pytest.raises(SystemExit):
        build.main(command)
    assert "missing: fluid-soundfont-gm, musescore-general-soundfont;" in capsys.readouterr().err
    command += ["--without=fluid-soundfont-gm", "--without=musescore-general-soundfont"]
    assert build.main(command) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "vocals/alys: no usable audio" in printed and "--without alys" in printed
    assert build.main([*command, "--without", "alys"]) == 0
    assert [r["source"] for r in json.loads((tmp_path / "pools/manifest.json").read_text())["sources"]] == [
        "Song.vocals",
        "album",
    ]
    assert build.main([*command, "--without", "alys", "--without", "permissive"]) == 0


def test_phrases_with_reverb_are_stereo_and_marked_as_wet(tmp_path: Path) -> None:
    voices = tmp_path / "voices"
    voices.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (SAMPLE_RATE, 2))
    for name in ("producer-space-etv-am-136", "producer-space-shv-c-126"):
        soundfile.write(voices / f"{name}.opus", noise, 48_000, format="OGG", subtype="OPUS")
        table = "start_seconds\tend_seconds\tsource_file\n0.0\t0.8\tone.wav\n"
        (voices / f"{name}.tsv").write_text(table)
    (tmp_path / "multitrack/train").mkdir(parents=True)
    voices_by_name = {s.name: s for s in catalogue.voice_sources(tmp_path)}
    wet, dry = voices_by_name["producer-space-etv"], voices_by_name["producer-space-shv"]
    assert (wet.extra.get("wet"), dry.extra.get("wet")) == (True, None)
    assert {wet.extra["voice"], dry.extra["voice"]} == {"song"}
    rng = np.random.default_rng(0)
    assert next(sources.read_takes(wet, rng)).audio.shape[1] == 2
    assert next(sources.read_takes(dry, rng)).audio.shape[1] == 1


def test_a_song_without_vocals_is_a_band(tmp_path: Path) -> None:
    for song, stems in {"Sung": ("vocals", "bass", "drums", "other"), "MarkBoas": BAND}.items():
        folder = tmp_path / "multitrack/train" / song
        folder.mkdir(parents=True)
        for stem in stems:
            soundfile.write(
                folder / f"{stem}.opus", np.zeros((4800, 2)), 48_000, format="OGG", subtype="OPUS"
            )
    pools = {s.extra["song"]: s.pool for s in catalogue.song_sources(tmp_path)}
    assert pools == {"Sung": "song", "MarkBoas": "band"}
