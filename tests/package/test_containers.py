"""What a file is taken for, and that no file makes ffmpeg open another one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfswa_sep.audio.containers import end_of_sound, find_demuxer
from tfswa_sep.audio.decode import open_audio
from tfswa_sep.audio.tags import read_tags
from tfswa_sep.errors import InputError

Song = Callable[..., Path]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")

# fmt: off
KINDS = (
    "m4a", "mov", "3gp", "mka", "webm", "avi", "flv", "wma", "aac", "ac3", "eac3", "dts", "mp2", "mp3", "ogg",
    "opus", "wav", "w64", "aiff", "caf", "au", "flac", "tta", "wv", "amr", "voc", "sf", "nut", "ts", "m2ts",
    "mpg", "thd", "mlp", "rm", "mxf", "swf", "gsm", "g722",
)
# fmt: on
ID3 = b"ID3\x04\0\0\0\0\0\x14" + bytes(20)
HIDDEN = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:9,\nPATH\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile PATH\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period>"
    b"<AdaptationSet><Representation><BaseURL>PATH</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\nPATH\n",
    "image": b"\x89PNG\r\n\x1a\n" + bytes(64),
}


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("tag", (b"", ID3, ID3 * 2), ids=("bare", "tag", "tags"))
@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("name", ("evil.mp3", "evil%03d.png"))
def test_no_file_makes_ffmpeg_open_another(
    song: Song, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, tag: bytes
) -> None:
    other = song("other.mp3", 44_100, subtype=None)
    monkeypatch.chdir(other.parent)
    hostile = other.with_name(name)
    hostile.write_bytes(tag + HIDDEN[kind].replace(b"PATH", str(other).encode()))
    shutil.copy(hostile, other.with_name("evil001.png"))
    with pytest.raises(InputError, match=r"text file|cannot be read as audio"), open_audio(hostile) as reader:
        list(reader.blocks())
    assert read_tags(hostile) == {}


@needs_ffmpeg
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_ffmpeg_reads_its_own_files(song: Song, kind: str) -> None:
    source = song("source.wav", np.sin(np.arange(16_000) / 20)[None].astype(np.float32) / 2, 16_000)
    target = source.with_name(f"a.{kind}")
    rate = {".amr": "8000", ".gsm": "8000", ".g722": "16000", ".sbc": "32000"}.get(target.suffix, "48000")
    channels = "1" if target.suffix in (".amr", ".gsm", ".g722") else "2"
    options = ["-ar", rate, "-ac", channels, "-strict", "-2"]
    made = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(source), *options, str(target)],
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if made.returncode:
        pytest.skip("this ffmpeg does not write it")
    with open_audio(target) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) > 0.9 * int(rate)
    assert find_demuxer(target) is not None


def test_tags_at_the_end_are_found() -> None:
    sound = b"\xff\xfb" * 1000
    ape = b"APETAGEX" + bytes(4) + (100).to_bytes(4, "little") + bytes(4)
    footer, header = (ape + flags + bytes(8) for flags in (b"\0\0\0\x80", b"\0\0\0\xa0"))
    lyrics = b"LYRICSBEGIN" + bytes(50) + b"000061LYRICS200"
    id3v1 = b"TAG" + bytes(125)
    newer = b"ID3\x04\0\x10\0\0\0\x32" + bytes(50) + b"3DI\x04\0\x10\0\0\0\x32"
    for tags in (b"", id3v1, header + bytes(68) + footer, lyrics + id3v1, newer + id3v1):
        assert end_of_sound(sound + tags) == len(sound)
    assert end_of_sound(b"TAG" + bytes(125)) == 0 and end_of_sound(sound + b"APETAGEX" + bytes(24)) == 2032


@needs_ffmpeg
@pytest.mark.parametrize("options", (("-c:a", "flac"), ("-c:a", "libspeex", "-ar", "16000", "-ac", "1")))
@pytest.mark.slow
def test_joined_ogg_files_that_only_ffmpeg_reads(tmp_path: Path, options: tuple[str, ...]) -> None:
    content, lengths = b"", []
    for pitch in (440, 660, 880):
        path = tmp_path / f"{pitch}.ogg"
        source = f"sine=frequency={pitch}:duration=1:sample_rate=44100"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *options, str(path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            pytest.skip("this ffmpeg does not write it")
        content += path.read_bytes()
        with open_audio(path) as song:
            lengths.append(sum(block.shape[1] for block in song.blocks()))
    (joined := tmp_path / "joined.ogg").write_bytes(content)
    with open_audio(joined) as song:
        got = np.concatenate(list(song.blocks()), axis=1)
    assert got.shape[1] == sum(lengths)
    for index, pitch in enumerate((440, 660, 880)):
        middle = got[0, sum(lengths[:index]) :][4000 : 4000 + song.sample_rate // 2]
        heard = (
            np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * song.sample_rate / len(middle)
        )
        assert heard == pytest.approx(pitch, abs=3)
