"""Files that hold more, or less, than their headers say; all written and read without ffmpeg."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.audio.file_parts import FileBytes
from tfswa_sep.errors import InputError, TruncatedError

Samples = NDArray[np.float32]
RATE = 44_100
ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\0\0\0\0\x00\x32" + bytes(50)


@pytest.fixture(autouse=True)
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfswa_sep.audio.ffmpeg.find_ffmpeg", lambda: None)


def tones(seconds: float, pitch: float, rate: int = RATE, channels: int = 2) -> Samples:
    at = np.arange(round(seconds * rate)) / rate
    return np.tile(0.4 * np.sin(2 * np.pi * pitch * at), (channels, 1)).astype(np.float32)


def encode(folder: Path, samples: Samples, kind: str, rate: int = RATE) -> bytes:
    container, _, subtype = kind.partition(" ")
    path = folder / "one"
    soundfile.write(path, samples.T, rate, format=container, subtype=subtype or None)
    return path.read_bytes()


def read(path: Path, content: bytes, *, allow_truncated: bool = False) -> tuple[Samples, str]:
    path.write_bytes(content)
    with open_audio(path, allow_truncated=allow_truncated) as song:
        return np.concatenate(list(song.blocks()), axis=1), song.missing


def refusal(path: Path, content: bytes) -> str:
    with pytest.raises(TruncatedError) as caught:
        read(path, content)
    assert str(path) in str(caught.value) and "--allow-truncated" in str(caught.value)
    return str(caught.value)


JOINED = ("OGG VORBIS", "OGG OPUS", "MP3", "FLAC", "WAV", "RF64", "W64", "AIFF", "AU", "CAF")


@pytest.mark.parametrize("kind", JOINED)
def test_joined_files_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    rate = 48_000 if "OPUS" in kind else RATE
    pieces = [tones(seconds, pitch, rate) for seconds, pitch in ((1.0, 440), (0.5, 660), (0.7, 880))]
    content = b"".join(encode(tmp_path, piece, kind, rate) for piece in pieces)
    got, _ = read(tmp_path / "radio", content)
    expected = np.concatenate(pieces, axis=1)
    assert got.shape == expected.shape
    assert np.abs(got - expected)[:, 2000:-2000].mean() < 0.01


@pytest.mark.parametrize("kind", ("OGG VORBIS", "MP3", "FLAC", "WAV"))
def test_joined_files_of_other_rates_and_channels(tmp_path: Path, kind: str) -> None:
    content = encode(tmp_path, tones(1, 440, 22_050, 1), kind, 22_050) + encode(tmp_path, tones(1, 660), kind)
    got, _ = read(tmp_path / "radio", content)
    assert got.shape == (2, 2 * RATE)
    expected = np.concatenate([tones(1, 440), tones(1, 660)], axis=1)
    for inside in (slice(4000, 40_000), slice(48_000, 84_000)):
        assert np.abs(got - expected)[:, inside].max() < 0.03


def mp3(folder: Path, seconds: float = 2) -> tuple[bytes, int]:
    """A song, and where its length header is."""
    content = encode(folder, tones(seconds, 440), "MP3")
    return content, max(content.find(b"Xing"), content.find(b"Info"))


def test_an_mp3_header_with_too_few_frames(tmp_path: Path) -> None:
    content, at = mp3(tmp_path)
    got, _ = read(tmp_path / "a.mp3", content[: at + 8] + struct.pack(">I", 20) + content[at + 12 :])
    assert got.shape == (2, 2 * RATE)


def test_mp3s_of_two_rates_without_headers(tmp_path: Path) -> None:
    content = b""
    for rate in (RATE, 22_050):
        whole = encode(tmp_path, tones(1, 440, rate), "MP3", rate)
        at = max(whole.find(b"Xing"), whole.find(b"Info"))
        content += whole[whole.index(whole[:2], at) :]  # without the frame of the header
    got, _ = read(tmp_path / "a.mp3", content)
    assert abs(got.shape[1] - 2 * RATE) < 6000


def test_damage_in_an_mp3_is_reported_and_skipped(tmp_path: Path) -> None:
    content, _ = mp3(tmp_path, 4)
    half = len(content) // 2
    content = content[:half] + bytes(3000) + content[half + 3000 :]
    assert "bytes are not MP3, the first at 1." in refusal(tmp_path / "a.mp3", content)
    got, missing = read(tmp_path / "a.mp3", content, allow_truncated=True)
    assert "bytes are not MP3" in missing and got.shape[1] > 3 * RATE
    assert np.abs(got[:, -20_000:-2000]).max() > 0.3


@pytest.mark.parametrize("kind", ("MP3", "FLAC", "WAV", "AIFF", "AU", "OGG VORBIS"))
def test_tags_at_both_ends_damage_nothing(tmp_path: Path, kind: str) -> None:
    front = ID3V2 if kind in ("MP3", "FLAC") else b""
    got, _ = read(tmp_path / "song", front + encode(tmp_path, tones(1, 440), kind) + ID3V1)
    assert got.shape == (2, RATE)
    assert np.abs(got - tones(1, 440))[:, 2000:-2000].max() < 0.03


@pytest.mark.parametrize("kind", ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG VORBIS", "MP3"))
@pytest.mark.parametrize("share", (0.5, 0.97))
def test_cut_files_are_refused_with_numbers(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2 * RATE)).astype(np.float32)
    content = encode(tmp_path, noise, kind)
    content = content[: int(share * len(content))]
    assert "cut short" in refusal(tmp_path / "song", content)
    got, missing = read(tmp_path / "song", content, allow_truncated=True)
    assert "cut short" in missing and abs(got.shape[1] - share * 2 * RATE) < 0.3 * RATE


@pytest.mark.parametrize("claim", (0, 4 * RATE, 0xFFFF_FFFF, 0x7FFF_FFFF))
def test_a_wav_is_read_to_its_end_whatever_its_size_says(tmp_path: Path, claim: int) -> None:
    """A recorder that crashed leaves 0; a size over 4 GiB wraps around."""
    content = encode(tmp_path, samples := tones(5, 440), "WAV")
    at = content.index(b"data") + 4
    got, _ = read(tmp_path / "a.wav", content[:at] + struct.pack("<I", claim) + content[at + 4 :])
    assert got.shape == samples.shape
    np.testing.assert_allclose(got, samples, atol=1e-4)


def test_chunks_after_the_audio_are_not_audio(tmp_path: Path) -> None:
    content = encode(tmp_path, tones(1, 440), "WAV") + b"LIST\x04\0\0\0INFOid3 \x03\0\0\0abc\0"
    got, _ = read(tmp_path / "a.wav", content)
    assert got.shape == (2, RATE)
    empty = encode(tmp_path, tones(0, 440), "WAV") + b"LIST\x04\0\0\0INFO"
    with pytest.raises(Exception, match="0 samples"):
        read(tmp_path / "a.wav", empty)


@pytest.mark.skipif(os.name == "nt", reason="files with holes")
def test_a_size_that_wrapped_at_four_gigabytes(tmp_path: Path) -> None:
    from tfswa_sep.audio.truncation import survey

    content = encode(tmp_path, tones(1, 440), "WAV")
    at = content.index(b"data") + 4
    size = (1 << 32) + 4 * RATE
    with (path := tmp_path / "long.wav").open("wb") as file:
        file.write(content[:at] + struct.pack("<I", size - (1 << 32)) + content[at + 4 :])
        file.truncate(at + 4 + size)
        file.seek(0, os.SEEK_END)
        file.write(b"LIST\x04\0\0\0INFO")
    layout = survey(path)
    assert layout is not None and not layout.fault
    assert layout.parts[0].ranges == ((0, at + 4 + size),)


def test_a_page_with_a_wrong_checksum(tmp_path: Path) -> None:
    content = bytearray(encode(tmp_path, tones(3, 440), "OGG VORBIS"))
    content[len(content) // 2] ^= 1
    assert "is damaged" in refusal(tmp_path / "a.ogg", bytes(content))


def test_a_flac_is_read_on_behind_damage(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 6 * RATE)).astype(np.float32)
    content = encode(tmp_path, noise, "FLAC")
    for third in (len(content) // 3, 2 * len(content) // 3):
        content = content[:third] + bytes(20_000) + content[third + 20_000 :]
    path = tmp_path / "a.flac"
    assert "is damaged (flac decoder lost sync)" in refusal(path, content)
    for joined in (content, content + encode(tmp_path, noise, "FLAC")):
        got, missing = read(path, joined, allow_truncated=True)
        expected = noise.shape[1] * (1 + (joined is not content))
        assert "is damaged" in missing and 0 < expected - got.shape[1] < 0.5 * RATE
        for where in (slice(0, RATE), slice(-RATE, None)):
            np.testing.assert_allclose(got[:, where], noise[:, where], atol=1e-4)


def test_a_flac_that_says_too_little(tmp_path: Path) -> None:
    content = encode(tmp_path, tones(2, 440), "FLAC")
    for samples in (0, 5000):
        packed = int.from_bytes(content[18:26], "big") & ~((1 << 36) - 1) | samples
        got, _ = read(tmp_path / "a.flac", content[:18] + packed.to_bytes(8, "big") + content[26:])
        assert got.shape == (2, 2 * RATE)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak of memory")
@pytest.mark.parametrize("kind", ("FLAC", "MP3", "OGG VORBIS"))
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 20 * RATE)).astype(np.float32)
    content = encode(tmp_path, noise, kind)
    with (path := tmp_path / "long").open("wb") as file:
        for _ in range((150 << 20) // len(content)):
            file.write(content)
    measure = f"""
import re
from pathlib import Path
from tfswa_sep.audio.truncation import survey
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
assert survey(Path({str(path)!r})).fault == ""
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110_000  # kB


def test_an_au_header_that_points_at_itself(tmp_path: Path) -> None:
    content = bytearray(encode(tmp_path, tones(0.1, 440), "AU"))
    content[4:8], content[8:12] = bytes(4), b"\0\xff\xff\xff"
    with pytest.raises(InputError):
        read(tmp_path / "a.au", bytes(content))


def long_wav(folder: Path) -> Path:
    (path := folder / "a.wav").write_bytes(encode(folder, tones(60, 440), "WAV"))
    return path


def test_a_file_that_shrinks_while_it_is_surveyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.flac").write_bytes(encode(tmp_path, tones(1, 440), "FLAC") + bytes(3 << 20))
    load = FileBytes._load

    def load_and_shrink(data: FileBytes, at: int) -> None:
        load(data, at)
        os.truncate(path, 5000)

    monkeypatch.setattr(FileBytes, "_load", load_and_shrink)
    with pytest.raises(InputError, match=r"a\.flac became shorter while it was read") as caught:
        open_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ("WAV", "RF64", "FLAC", "OGG VORBIS", "MP3", "AIFF"))
@pytest.mark.parametrize("after", (0, 3))
def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, kind: str, after: int) -> None:
    path = tmp_path / "song"
    path.write_bytes(encode(tmp_path, tones(20, 440), kind))
    for allow_truncated in (False, True):
        content = path.read_bytes()
        with open_audio(path, allow_truncated=allow_truncated) as song:
            blocks = song.blocks()
            for _ in range(after):
                next(blocks)
            os.truncate(path, len(content) // 3)
            if allow_truncated:
                list(blocks)
                assert song.missing
            else:
                with pytest.raises(InputError, match=r"song (is|changed|contains)") as caught:
                    list(blocks)
                assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(content)


@pytest.mark.skipif(os.name == "nt", reason="needs os.truncate on an open file")
@pytest.mark.slow
def test_a_cut_during_the_survey_ends_the_command_with_one_line(tmp_path: Path) -> None:
    path = long_wav(tmp_path)
    typed = f"""
import os, sys
from tfswa_sep.audio import file_parts
from tfswa_sep.cli import main
find = file_parts.FileBytes.__len__
def cut(data):
    os.truncate({str(path)!r}, 40)
    return find(data)
file_parts.FileBytes.__len__ = cut
sys.argv[1:] = [{str(path)!r}]
main.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", typed], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "a.wav became shorter while it was read" in done.stderr


@pytest.mark.slow
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(encode(tmp_path, tones(2, 440), "MP3") + encode(tmp_path, tones(60, 660), "MP3"))

    class FailingFile(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() + (size or 0) > 200_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    real = Path.open
    with open_audio(path) as song:
        monkeypatch.setattr(Path, "open", lambda self, *_, **__: FailingFile(self))
        with pytest.raises(TruncatedError, match=r"a\.mp3 is damaged \(Input/output error"):
            list(song.blocks())
    with pytest.raises(InputError, match=r"a\.mp3 cannot be read \(Input/output error\): check the disk"):
        open_audio(path)
    monkeypatch.setattr(Path, "open", real)
