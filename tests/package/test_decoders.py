"""Never less sound than a file holds, without a word: every container, whole and damaged in every way.

Each file is made from a known source and damaged on purpose. We must give the source's samples, or refuse, or
say what is missing. A few kinds of file in the usual run; all of them with `make test-decoders`, which also
prints the table.
"""

from __future__ import annotations

import collections
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.errors import InputError

Samples = NDArray[np.float32]
pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")

ALL = os.environ.get("TFSWA_ALL_DECODERS") == "1"
SECONDS = 3.0
CUTS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
ID3V2 = b"ID3\x04\0\0\0\0\x07\x68" + b"TIT2\0\0\0\x04\0\0\x03abc" + bytes(1000 - 14)
ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
APE = b"APETAGEX\xd0\x07\0\0\x20\0\0\0\0\0\0\0\0\0\0\xa0" + bytes(8)
APE += b"APETAGEX\xd0\x07\0\0\x20\0\0\0\0\0\0\0\0\0\0\x80" + bytes(8)


@dataclass(frozen=True)
class Kind:
    """A kind of file that ffmpeg writes."""

    name: str  # with its extension
    options: str
    rates: tuple[int, ...] = (44_100,)
    channels: tuple[int, ...] = (2,)
    decibels: float = 40  # how near to the source; 40 for what is lossless
    padding: int = 0  # samples that a codec may add or leave out
    has_length: bool = True  # whether a file says anywhere how long it is
    checks: bool = True  # whether zeros in the middle can be distinguished from audio
    joins: bool = True  # whether a file can be recognized in the middle of another
    tags: bool = False  # whether programs put ID3 and APE tags around it
    sample: bool = False  # whether the usual run has it too


def pcm(name: str, options: str = "", **more: object) -> Kind:
    return Kind(name, options, (44_100, 8_000), (1, 2), checks=False, **more)  # type: ignore[arg-type]


def lossy(name: str, options: str, *rates: int, **more: object) -> Kind:
    more = {"channels": (1, 2), "decibels": 10, "padding": 4096} | more
    return Kind(name, options, rates or (44_100,), **more)  # type: ignore[arg-type]


KINDS = (
    pcm("16.wav", "-c:a pcm_s16le", sample=True),
    pcm("24.wav", "-c:a pcm_s24le"),
    pcm("32f.wav", "-c:a pcm_f32le"),
    pcm("8.wav", "-c:a pcm_u8", decibels=30),
    pcm("alaw.wav", "-c:a pcm_alaw", decibels=30),
    lossy("ima.wav", "-c:a adpcm_ima_wav", checks=False),
    lossy("ms.wav", "-c:a adpcm_ms", checks=False),
    lossy("mp3.wav", "-c:a libmp3lame", checks=True),
    pcm("rf64.wav", "-rf64 always", sample=True),
    pcm("a.w64", ""),
    pcm("a.aiff", "", sample=True),
    pcm("24.aiff", "-c:a pcm_s24be"),
    pcm("sowt.aiff", "-c:a pcm_s16le"),
    pcm("a.au", ""),
    pcm("a.caf", "-c:a pcm_s16be", sample=True),
    pcm("32f.caf", "-c:a pcm_f32be"),
    pcm("alac.caf", "-c:a alac"),
    pcm("a.voc", "-c:a pcm_u8", decibels=30),
    pcm("a.sf", "", has_length=False, joins=False),
    Kind("a.flac", "", (44_100, 96_000), (1, 2), tags=True, sample=True),
    Kind("24.flac", "-sample_fmt s32", (44_100,), (2,), tags=True),
    Kind("flac.oga", "-c:a flac", (44_100, 48_000), (1, 2), sample=True),
    lossy("vorbis.ogg", "-c:a libvorbis", 44_100, 22_050, sample=True),
    lossy("a.opus", "-b:a 128k", 48_000, sample=True, padding=1000),
    lossy("speex.ogg", "-c:a libspeex", 16_000, channels=(1,), decibels=0),
    lossy("vbr.mp3", "-q:a 2", 44_100, 22_050, 11_025, tags=True, sample=True),
    lossy("cbr.mp3", "-b:a 160k", 48_000, 24_000, tags=True),
    lossy("bare.mp3", "-write_xing 0 -id3v2_version 0", 44_100, has_length=False, tags=True, sample=True),
    lossy("a.mp2", "-c:a mp2", 44_100, has_length=False, tags=True),
    lossy("a.aac", "-b:a 192k", 44_100, has_length=False, tags=True, sample=True),
    lossy("a.m4a", "-b:a 192k", 44_100, 22_050, sample=True),
    lossy("fast.m4a", "-b:a 192k -movflags +faststart", sample=True),
    lossy(
        "fragmented.m4a", "-b:a 192k -movflags frag_keyframe+empty_moov -frag_duration 500000", sample=True
    ),
    lossy("dash.m4a", "-b:a 192k -movflags dash+global_sidx -frag_duration 500000"),
    Kind("alac.m4a", "-c:a alac", (44_100, 48_000), (1, 2), sample=True),
    Kind("alacfast.m4a", "-c:a alac -movflags +faststart"),
    Kind("flac.mp4", "-c:a flac -strict -2"),
    lossy("opus.mp4", "-c:a libopus -b:a 128k", 48_000, padding=1000),
    pcm("a.mov", "-c:a pcm_s16le -movflags +faststart"),
    lossy("a.mka", "-c:a aac -b:a 192k", sample=True),
    Kind("flac.mka", "-c:a flac"),
    pcm("pcm.mka", "-c:a pcm_s16le"),
    lossy("vorbis.webm", "-c:a libvorbis"),
    lossy("opus.webm", "-c:a libopus -b:a 128k", 48_000, padding=1000),
    lossy("live.webm", "-c:a libopus -b:a 128k -live 1", 48_000, padding=1000, has_length=False),
    lossy("a.flv", "-c:a aac -b:a 192k", 44_100, sample=True),
    lossy("mp3.flv", "-c:a libmp3lame", 44_100),
    lossy("a.avi", "-c:a libmp3lame", 44_100),
    pcm("pcm.avi", "-c:a pcm_s16le"),
    lossy("a.wma", "-c:a wmav2 -b:a 192k", 44_100, sample=True),
    lossy("a.ts", "-c:a aac -b:a 192k", 44_100, has_length=False, sample=True),
    lossy("ac3.ts", "-c:a ac3 -b:a 192k", 48_000, has_length=False),
    lossy("a.mpg", "-c:a mp2 -b:a 192k", 44_100, has_length=False),
    lossy("a.ac3", "-b:a 192k", 48_000, has_length=False),
    lossy("a.eac3", "-b:a 192k", 48_000, has_length=False),
    lossy("a.dts", "-strict -2", 48_000, has_length=False, channels=(2,)),
    Kind("a.wv", "", (44_100,), (1, 2), tags=True, sample=True),
    Kind("a.tta", "", (44_100,), (1, 2), tags=True, sample=True),
    Kind("a.thd", "-strict -2", (48_000,), (2,), has_length=False),
    pcm("a.nut", "-c:a pcm_s16le", has_length=False),
    lossy("a.amr", "-c:a libopencore_amrnb", 8_000, channels=(1,), decibels=0, has_length=False),
    lossy("a.3gp", "-c:a aac", 44_100),
    lossy("a.g722", "", 16_000, channels=(1,), has_length=False, checks=False),
    lossy("a.gsm", "", 8_000, channels=(1,), decibels=0, has_length=False),
)


def source(rate: int, channels: int, seed: int) -> Samples:
    """A melody that is nowhere the same, (c, n)."""
    random = np.random.default_rng(seed)
    length = round(SECONDS * rate)
    voices = []
    for _ in range(channels):
        notes = random.uniform(200, min(1800, rate / 6), 40)
        at = np.linspace(0, len(notes) - 1, length)
        pitch = np.interp(at, np.arange(len(notes)), notes)
        loudness = np.interp(at, np.arange(len(notes)), random.uniform(0.15, 0.45, len(notes)))
        voices.append(loudness * np.sin(2 * np.pi * np.cumsum(pitch) / rate))
    return np.array(voices, np.float32)


def encode(kind: Kind, folder: Path, rate: int, channels: int, seed: int) -> Path | None:
    """A file of this kind; None if this ffmpeg does not write it."""
    target = folder / f"{rate}-{channels}-{seed}-{kind.name}"
    raw = source(rate, channels, seed).T.tobytes()
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-y",
        "-f",
        "f32le",
        "-ar",
        str(rate),
        "-ac",
        str(channels),
        "-i",
        "-",
    ]
    done = subprocess.run(
        [*command, *kind.options.split(), str(target)], input=raw, check=False, capture_output=True
    )
    return None if done.returncode else target


def read(path: Path, *, allow_truncated: bool = False) -> tuple[int, Samples, str]:
    """Rate, samples (c, n), and what was said."""
    with open_audio(path, allow_truncated=allow_truncated) as song:
        blocks = list(song.blocks())
        return song.sample_rate, np.concatenate(blocks, axis=1), song.missing


def likeness(got: Samples, expected: Samples, padding: int) -> tuple[float, int]:
    """Decibels of the expected over the difference in the worst quarter of a second, and the shift."""
    length = 1 << (got.shape[1] + expected.shape[1]).bit_length()
    mixed = [np.fft.rfft(audio.sum(axis=0), length) for audio in (got, expected)]
    both = np.fft.irfft(mixed[0] * np.conj(mixed[1]), length)
    near = np.concatenate([both[-padding - 1 :], both[: padding + 1]])
    shift = int(near.argmax()) - padding - 1
    shared = min(got.shape[1] - shift, expected.shape[1])
    first = max(0, -shift)
    window = max(1, shared // 12)
    worst = np.inf
    for start in range(first + window, shared - 2 * window + 1, window):  # the edges are the codec's
        wanted = expected[:, start : start + window]
        error = got[:, start + shift : start + shift + window] - wanted
        worst = min(worst, 10 * np.log10(np.mean(wanted**2) / max(1e-12, np.mean(error**2))))
    return float(worst), shift


def is_equal(kind: Kind, got: Samples, expected: Samples) -> str:
    """Empty if the samples are the source's, else why not."""
    padding = kind.padding + (kind.padding and 2 * round(0.05 * 44_100))
    if got.shape[0] != expected.shape[0]:
        return f"{got.shape[0]} channels"
    if not -padding // 2 <= got.shape[1] - expected.shape[1] <= padding:
        return f"{got.shape[1]} samples of {expected.shape[1]}"
    decibels, shift = likeness(got, expected, padding)
    if kind.decibels and decibels < kind.decibels:
        return f"{decibels:.0f} dB at a shift of {shift}"
    return ""


def are_equal(kind: Kind, got: Samples, pieces: list[Samples]) -> str:
    """As is_equal, for files that are joined: each brings its own padding."""
    if len(pieces) == 1:
        return is_equal(kind, got, pieces[0])
    first, last = pieces
    if abs(got.shape[1] - first.shape[1] - last.shape[1]) > 2 * kind.padding:
        return f"{got.shape[1]} samples of {first.shape[1]} and {last.shape[1]}"
    why = is_equal(kind, got[:, : first.shape[1]], first)
    return why or is_equal(kind, got[:, -last.shape[1] :], last)


def damages(kind: Kind, whole: bytes, other: bytes | None) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each damaged file."""
    yield "whole", whole
    for share in CUTS if ALL else CUTS[::3]:
        yield f"cut {share}", whole[: int(len(whole) * share)]
    half, twentieth = len(whole) // 2, len(whole) // 20
    yield "zeros", whole[: half - twentieth] + bytes(2 * twentieth) + whole[half + twentieth :]
    if kind.joins:
        yield "joined twice", whole + whole
    if other and kind.joins:
        yield "joined", whole + other
        yield "joined cut", whole[: int(len(whole) * 0.8)] + other
    if kind.tags:
        yield "tagged", whole + ID3V1
        yield "tagged twice", ID3V2 + whole + APE + ID3V1
        yield "joined tagged", ID3V2 + whole + ID3V1 + ID3V2 + whole + ID3V1
    yield from lies(kind, whole)


def lies(kind: Kind, whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers whose claim is smaller than the sound, or unknown."""

    def patch(at: int, content: bytes) -> bytes:
        return whole[:at] + content + whole[at + len(content) :]

    suffix = Path(kind.name).suffix
    if whole[:4] == b"RIFF" and suffix == ".wav" and "rf64" not in kind.name:
        at = whole.index(b"data") + 4
        for name, size in (("small", 20_000), ("zero", 0), ("unknown", 0xFFFF_FFFF)):
            yield f"lies {name}", patch(at, size.to_bytes(4, "little"))
    elif whole[:4] == b"RF64":
        yield "lies small", patch(28, (20_000).to_bytes(8, "little"))
        yield "lies zero", patch(28, bytes(8))
    elif suffix == ".aiff":
        at = whole.index(b"SSND") + 4
        yield "lies small", patch(at, (20_008).to_bytes(4, "big"))
        yield "lies zero", patch(at, bytes(4))
        yield "lies count", patch(whole.index(b"COMM") + 10, (5000).to_bytes(4, "big"))
    elif suffix == ".au":
        yield "lies small", patch(8, (20_000).to_bytes(4, "big"))
        yield "lies unknown", patch(8, b"\xff" * 4)
    elif suffix == ".caf" and "alac" not in kind.name:
        at = whole.index(b"data") + 4
        yield "lies small", patch(at, (20_004).to_bytes(8, "big"))
        yield "lies unknown", patch(at, b"\xff" * 8)
    elif suffix == ".flac":
        for name, samples in (("small", 10_000), ("zero", 0)):
            packed = int.from_bytes(whole[18:26], "big") & ~((1 << 36) - 1) | samples
            yield f"lies {name}", patch(18, packed.to_bytes(8, "big"))
    elif suffix == ".mp3" and (b"Xing" in whole[:4096] or b"Info" in whole[:4096]):
        at = max(whole.find(b"Xing"), whole.find(b"Info"))
        yield "lies small", patch(at + 8, (20).to_bytes(4, "big"))
        yield "lies zero", patch(at + 8, bytes(4))
    elif suffix == ".tta":
        import zlib

        head = whole[:14] + (10_000).to_bytes(4, "little")
        yield "lies small", head + zlib.crc32(head).to_bytes(4, "little") + whole[22:]


def judge(kind: Kind, path: Path, damage: str, rate: int, pieces: list[Samples]) -> str:
    """What comes of a file: one of these, or "WRONG" and why.

    equal: the source's samples.  told: refused, and with --allow-truncated read, with a word on what is missing.
    refused: that too.  prefix: all of a file that ends early and never says how long it is.
    zeros are sound: nothing can tell them from silence.
    """
    intact = damage in ("whole", "tagged", "tagged twice")
    try:
        got_rate, got, said = read(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        if intact:
            return f"WRONG: {error}"
        try:
            _, _, said = read(path, allow_truncated=True)
        except InputError:
            return "refused"
        return "told" if said else "WRONG: nothing said of what is missing"
    if damage.startswith("joined") and got_rate != rate:
        got = soxr.resample(got.T, got_rate, rate).T
    if damage.startswith("joined cut"):
        return "prefix" if not kind.has_length else f"WRONG: {got.shape[1]} samples of a cut file"
    expected = np.concatenate(pieces, axis=1)
    why = are_equal(kind, got, pieces)
    if not why:
        return "equal"
    if damage.startswith("cut") and (not kind.has_length):
        shorter = expected[:, : got.shape[1]]
        held = float(damage.split()[1])
        if got.shape[1] >= (held - 0.1) * expected.shape[1] - 8192 and not is_equal(kind, got, shorter):
            return "prefix"
    if damage == "zeros" and not kind.checks and abs(got.shape[1] - expected.shape[1]) <= kind.padding + 4410:
        middle = round(expected.shape[1] * 0.4)
        why = is_equal(kind, got[:, :middle], expected[:, :middle])
        why = why or is_equal(kind, got[:, -middle:], expected[:, -middle:])
        if not why:
            return "zeros are sound"
    return f"WRONG: {why}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if ALL or kind.sample], ids=lambda kind: kind.name)
def test_no_sound_is_lost_without_a_word(tmp_path: Path, kind: Kind) -> None:
    wrong = []
    verdicts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    variants = [(rate, channels) for rate in kind.rates for channels in kind.channels]
    for rate, channels in variants if ALL else variants[-1:]:
        path = encode(kind, tmp_path, rate, channels, 0)
        if path is None:
            pytest.skip("this ffmpeg does not write it")
        other_rate = kind.rates[-1] if rate != kind.rates[-1] else kind.rates[0]
        other_channels = kind.channels[0]
        other = encode(kind, tmp_path, other_rate, other_channels, 1)
        first = source(rate, channels, 0)
        second = source(other_rate, other_channels, 1)
        if other_rate != rate:
            second = soxr.resample(second.T, other_rate, rate).T
        second = np.broadcast_to(second, (max(channels, other_channels), second.shape[1]))
        if channels < other_channels:
            first = np.broadcast_to(first, (other_channels, first.shape[1]))
        whole = path.read_bytes()
        for damage, content in damages(kind, whole, other.read_bytes() if other else None):
            broken = tmp_path / f"broken{Path(kind.name).suffix}"
            broken.write_bytes(content)
            pieces = [source(rate, channels, 0)]
            if damage in ("joined twice", "joined tagged"):
                pieces = pieces * 2
            elif damage.startswith("joined"):
                pieces = [first, second]
            verdict = judge(kind, broken, damage, rate, pieces)
            verdicts[damage.split()[0]][verdict.split(":")[0]] += 1
            if verdict.startswith("WRONG"):
                wrong.append(f"{rate} Hz, {channels} channels, {damage}: {verdict}")
    if table := os.environ.get("TFSWA_DECODERS_TABLE"):
        columns = ("whole", "cut", "zeros", "joined", "tagged", "lies")
        cells = (
            ", ".join(f"{count} {what}" for what, count in verdicts[column].items()) for column in columns
        )
        with Path(table).open("a", encoding="utf-8") as file:
            file.write(f"| {kind.name} | {' | '.join(cells)} |\n")
    assert not wrong, "\n" + "\n".join(wrong)
