from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from tfswa_sep.audio import decode, tags
from tfswa_sep.audio.decode import open_audio
from tfswa_sep.errors import InputError, ffmpeg_install_command

Samples = NDArray[np.float32]
Noise = Callable[..., Samples]
Song = Callable[..., Path]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def read(path: Path, rate: int | None = None, channels: int | None = None, block: int = 1000) -> Samples:
    with open_audio(path) as reader:
        samples = np.concatenate(list(reader.blocks(rate, channels, block)), axis=1)
    return samples


def refusal(path: Path) -> str:
    """The one line with which reading `path` fails, checked to be one line that names the file."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def convert(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-i", str(source), *options, str(target)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return target


def cut_file(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    (("a.wav", "FLOAT", 0), ("a.wav", "PCM_24", 1e-6), ("a.flac", "PCM_16", 1e-4), ("a.ogg", "VORBIS", 1.0)),
)
def test_files_come_whole_in_blocks(
    noise: Noise, song: Song, name: str, subtype: str, tolerance: float
) -> None:
    samples = noise(2, 5003)
    got = read(song(name, samples, 22_050, subtype))
    assert got.dtype == np.float32 and got.shape == (2, 5003)
    assert np.abs(got - samples).max() <= tolerance


def test_reader_says_what_it_reads(song: Song) -> None:
    with open_audio(song("a.wav", 5000, 48_000)) as reader:
        assert (reader.sample_rate, reader.channels, reader.frames, reader.decoded) == (48_000, 2, 5000, 0)
        next(blocks := reader.blocks(block=3000))
        assert reader.decoded == 3000
        next(blocks)
        assert reader.decoded == 5000
        assert reader.peak == pytest.approx(0.5, abs=1e-3)


def test_streamed_resampling_equals_one_shot(noise: Noise, song: Song) -> None:
    samples = noise(2, 30_011)
    expected = soxr.resample(samples.T, 48_000, 44_100).T
    got = read(song("a.wav", samples, 48_000), 44_100)
    assert got.shape == expected.shape
    inside = slice(256, -256)  # the ends differ: soxr takes the silence around the song for part of it
    np.testing.assert_allclose(got[:, inside], expected[:, inside], atol=1e-6)


def test_mono_becomes_two_equal_channels_and_back(noise: Noise, song: Song) -> None:
    mono, stereo = noise(1, 4000), noise(2, 4001)
    got = read(song("mono.wav", mono), channels=2)
    np.testing.assert_array_equal(got, np.concatenate([mono, mono]))
    got = read(song("stereo.wav", stereo), channels=1)
    np.testing.assert_allclose(got, stereo.mean(axis=0, keepdims=True), atol=1e-7)


def test_missing_folder_empty_and_text_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.mp3")
    assert "is a folder" in refusal(tmp_path)
    (empty := tmp_path / "empty.mp3").touch()
    assert "is empty" in refusal(empty)
    (text := tmp_path / "text.mp3").write_text("Grüße: this is no song\n" * 300, encoding="utf-8")
    assert "text file" in refusal(text)
    (short := tmp_path / "short.wav").write_text("x")
    assert "text file" in refusal(short)


def test_playlists_are_refused_before_ffmpeg_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "FfmpegDecoder", lambda path: pytest.fail("ffmpeg was asked"))
    hostile = tmp_path / "song.mp3"
    hostile.write_bytes(b"#EXTM3U\n#\x00\xff\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    assert "text file" in refusal(hostile)


def test_files_that_are_not_audio_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.mp3"
    junk.write_bytes(np.random.default_rng(1).bytes(20_000))
    assert re.search("cannot be read as audio|needs ffmpeg", refusal(junk))


def test_without_ffmpeg_the_install_line_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfswa_sep.audio.ffmpeg.find_ffmpeg", lambda: None)
    (file := tmp_path / "song.m4a").write_bytes(
        b"\0\0\0\x0cftypM4A " + b"\0\0\0\0mdat" + bytes(range(256)) * 20
    )
    message = refusal(file)
    assert "needs ffmpeg" in message and ffmpeg_install_command() in message


def test_no_samples_too_many_channels_and_odd_rates_are_refused(song: Song) -> None:
    assert "0 samples" in refusal(song("none.wav", np.zeros((2, 0), np.float32)))
    assert "6 channels" in refusal(song("surround.wav", np.zeros((6, 100), np.float32)))
    assert "sample rate of 12 Hz" in refusal(song("slow.wav", np.zeros((2, 100), np.float32), 12))


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1e30))
def test_samples_that_are_not_finite_are_reported_by_index(noise: Noise, song: Song, value: float) -> None:
    samples = noise(2, 5000)
    samples[1, 2345] = value
    message = refusal(song("broken.wav", samples))
    assert "sample 2345 of channel 2 (0.053 s)" in message and f"is {value:g}," in message


@pytest.mark.parametrize(("name", "subtype"), (("cut.flac", "PCM_16"), ("cut.wav", "PCM_16")))
def test_truncated_files_are_refused(song: Song, name: str, subtype: str) -> None:
    path = cut_file(song(name, 100_000, subtype=subtype), 0.6)
    assert re.search("cut short|damaged", refusal(path))


def test_wav_written_as_a_stream_is_read(noise: Noise, song: Song) -> None:
    path = song("stream.wav", samples := noise(2, 5000), subtype="FLOAT")
    data = bytearray(path.read_bytes())
    size = data.index(b"data") + 4
    data[size : size + 4] = b"\xff" * 4  # what a program writes that does not know the length yet
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path), samples)


def loud_then_silent(seconds: float = 6) -> Samples:
    half = int(seconds * 44_100 / 2)
    random = np.random.default_rng(0)
    return np.concatenate([random.uniform(-0.5, 0.5, (2, half)), np.zeros((2, half))], axis=1).astype(
        np.float32
    )


def write_mp3(path: Path, samples: Samples) -> Path:
    with soundfile.SoundFile(
        path, "w", 44_100, 2, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(samples.T)
    return path


def test_whole_mp3_is_read(tmp_path: Path) -> None:
    samples = loud_then_silent()
    got = read(write_mp3(tmp_path / "whole.mp3", samples))
    assert got.shape == samples.shape
    lags = np.correlate(samples[0, :20_000], got[0, 2000:18_000])  # the encoder's delay must be taken out
    assert lags.argmax() == 2000


def test_truncated_mp3_is_refused(tmp_path: Path) -> None:
    path = write_mp3(tmp_path / "cut.mp3", loud_then_silent())
    assert "cut short" in refusal(cut_file(path, 0.6))


def test_mp3_without_length_header_is_read_to_its_end(tmp_path: Path) -> None:
    samples = loud_then_silent()
    path = write_mp3(tmp_path / "bare.mp3", samples)
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\xff\xfb", data.index(b"LAME")) :])  # from the second frame on
    assert soundfile.info(path).frames < samples.shape[1] * 0.9  # what libsndfile takes for the length
    got = read(path)
    assert abs(got.shape[1] - samples.shape[1]) < 3000  # the encoder's delay and padding


@needs_ffmpeg
def test_m4a_is_read_by_ffmpeg(song: Song, noise: Noise) -> None:
    wav = song("a.wav", samples := noise(1, 48_000), 32_000)
    got = read(convert(wav, wav.with_suffix(".m4a"), "-c:a", "alac"))
    np.testing.assert_allclose(got[:, : samples.shape[1]], samples, atol=1e-4)
    assert got.shape == samples.shape


@needs_ffmpeg
def test_odd_file_names_reach_ffmpeg(song: Song, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = song("a.wav", noise(2, 2000))
    odd = convert(wav, wav.with_suffix(".m4a")).rename(wav.parent / "-i http:it's%03d.m4a")
    monkeypatch.chdir(odd.parent)
    assert read(Path(odd.name)).shape[1] >= 2000


@needs_ffmpeg
def test_video_without_sound_is_reported(tmp_path: Path) -> None:
    video = tmp_path / "mute.mkv"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=d=0.2:s=64x64", str(video)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert "no audio track" in refusal(video)


@needs_ffmpeg
def test_a_title_is_not_mistaken_for_a_duration(song: Song) -> None:
    wav = song("a.wav", 44_100)
    m4a = convert(wav, wav.with_suffix(".m4a"), "-metadata", "title=Duration: 99:59:59.00")
    with open_audio(m4a) as reader:
        assert reader.frames is not None and reader.frames < 50_000


@needs_ffmpeg
def test_truncated_m4a_is_refused(song: Song) -> None:
    wav = song("a.wav", 441_000)
    whole = convert(wav, wav.with_suffix(".m4a"), "-movflags", "+faststart")
    assert "cut short" in refusal(cut_file(whole, 0.5))
    no_index = convert(wav, wav.with_name("b.m4a"))
    assert "cut short" in refusal(cut_file(no_index, 0.5))


@needs_ffmpeg
def test_damage_in_the_middle_of_an_m4a_is_reported(song: Song) -> None:
    wav = song("a.wav", 441_000)
    path = convert(wav, wav.with_suffix(".m4a"), "-c:a", "alac")
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(20_000) + data[half + 20_000 :])
    assert re.search(r"is damaged \(.*9\.\d\d s can be read\)", refusal(path))
    with open_audio(path, allow_truncated=True) as reader:
        list(reader.blocks())
    assert "is damaged" in reader.missing


@needs_ffmpeg
@pytest.mark.parametrize("container", (".mka", ".mov"))
def test_skipped_audio_is_reported(song: Song, container: str) -> None:
    """The timestamps jump; nothing else says that something is missing."""
    wav = song("a.wav", 441_000)
    path = convert(
        wav, wav.with_suffix(container), "-af", "aselect='not(between(t,3,3.5))'", "-c:a", "pcm_s16le"
    )
    with open_audio(path, allow_truncated=True) as reader:
        decoded = sum(block.shape[1] for block in reader.blocks())
    if decoded < 430_000:
        assert re.search(r"0\.5\d s are missing|9\.50 s of the 10\.00 s", reader.missing)
        assert reader.missing in refusal(path)


def video(path: Path, *inputs: str, options: tuple[str, ...] = ()) -> Path:
    """A video of 2 s with one audio track per lavfi source."""
    sources = [word for source in ("testsrc=d=2:s=64x64", *inputs) for word in ("-f", "lavfi", "-i", source)]
    maps = [word for index in range(len(inputs) + 1) for word in ("-map", str(index))]
    subprocess.run(["ffmpeg", "-v", "error", *sources, *maps, *options, str(path)], check=True)
    return path


@needs_ffmpeg
@pytest.mark.parametrize("container", (pytest.param("mkv", marks=pytest.mark.slow), "mp4"))
def test_of_several_tracks_one_that_is_not_silent_is_used_and_reported(
    tmp_path: Path, container: str
) -> None:
    path = video(
        tmp_path / f"dub.{container}", "anullsrc=d=2", "sine=220:d=2", "sine=880:d=2", options=("-c:a", "aac")
    )

    def pitch(track: int | None) -> tuple[int, tuple[str, ...]]:
        with open_audio(path, track=track) as reader:
            sound = np.concatenate(list(reader.blocks()), axis=1)[0]
            spectrum = np.abs(np.fft.rfft(sound))
            return round(int(spectrum.argmax()) * reader.sample_rate / len(sound)), reader.notes

    hertz, notes = pitch(None)
    assert abs(hertz - 220) < 3
    assert len(notes) == 1 and "3 audio tracks" in notes[0] and "using track 2, as 1 is silent:" in notes[0]
    assert "--track" in notes[0] and "und" not in notes[0]
    hertz, notes = pitch(3)
    assert abs(hertz - 880) < 3 and not notes
    with pytest.raises(InputError, match="no audio track 4: it has 3 audio tracks"):
        open_audio(path, track=4)


@needs_ffmpeg
def test_the_default_track_is_taken(tmp_path: Path) -> None:
    options = ("-c:a", "aac", "-disposition:a:0", "0", "-disposition:a:1", "default")
    path = video(tmp_path / "dub.mkv", "sine=220:d=2", "sine=880:d=2", options=options)
    with open_audio(path) as reader:
        assert "using track 2" in reader.notes[0]


def test_a_track_that_a_song_has_not(song: Song) -> None:
    with pytest.raises(InputError, match="no audio track 2: it has one"):
        open_audio(song("a.wav", 1000), track=2)


@needs_ffmpeg
def test_audio_that_starts_late_keeps_its_place(tmp_path: Path) -> None:
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=d=3:s=64x64", "-itsoffset", "0.5"]
    command += ["-f", "lavfi", "-i", "sine=440:d=2", "-map", "0", "-map", "1", "-c:a", "flac"]
    subprocess.run([*command, str(tmp_path / "late.mkv")], check=True)
    with open_audio(tmp_path / "late.mkv") as reader:
        sound = np.concatenate(list(reader.blocks()), axis=1)[0]
    assert np.flatnonzero(np.abs(sound) > 0.01)[0] == pytest.approx(22_050, abs=50)
    assert len(sound) == pytest.approx(2.5 * 44_100, abs=50)
    assert "starts 0.50 s late" in reader.notes[0]


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    (
        ("a.mp4", "-c:v mpeg4 -c:a aac -movflags frag_keyframe+empty_moov"),
        ("a.mkv", "-c:v mpeg4 -c:a ac3"),
        ("a.vob", "-c:v mpeg2video -c:a ac3"),
        ("a.ts", "-c:v mpeg2video -c:a mp2"),
        ("a.avi", "-c:v mpeg4 -c:a libmp3lame -q:a 4"),
        ("a.flv", "-c:v flv -c:a aac"),
        ("a.wmv", "-c:v wmv2 -c:a wmav2"),
    ),
)
def test_healthy_videos_are_read(tmp_path: Path, name: str, options: str) -> None:
    path = video(tmp_path / name, "sine=220:d=4:r=44100", options=tuple(options.split()))
    with open_audio(path) as reader:
        decoded = sum(block.shape[1] for block in reader.blocks())
    assert 4 * 44_100 - 2000 < decoded < 4.2 * 44_100 and not reader.missing
    assert not any("late" in note for note in reader.notes)


@needs_ffmpeg
def test_leaving_early_ends_ffmpeg(song: Song) -> None:
    wav = song("a.wav", 441_000)
    with open_audio(convert(wav, wav.with_suffix(".mka"))) as reader:
        next(reader.blocks())
        process = reader._decoder._child._process  # type: ignore[attr-defined]
        assert process.poll() is None
    assert process.poll() is not None


def test_an_ffmpeg_that_does_not_run_matters_only_to_songs_that_need_it(
    song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = song("a.wav", 4410)
    program = wav.parent / "ffmpeg"
    program.write_bytes(b"half of a download")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(wav.parent))
    monkeypatch.setattr(tags, "has_mutagen", lambda: False)
    assert tags.read_tags(wav) == {}
    m4a = wav.with_suffix(".m4a")
    m4a.write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    assert "cannot run" in refusal(m4a)


def test_an_interruption_ends_an_ffmpeg_that_says_nothing(
    song: Song, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = song("a.wav", 4410)
    program = wav.parent / "ffmpeg"
    program.write_text("#!/bin/sh\necho $$ > pid\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(wav.parent), prepend=os.pathsep)
    monkeypatch.chdir(wav.parent)
    m4a = wav.with_suffix(".m4a")
    m4a.write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))

    def interrupt() -> None:
        while not (Path("pid").exists() and Path("pid").read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        open_audio(m4a)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
