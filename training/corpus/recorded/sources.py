"""What the corpus is made of, and how recorded (not rendered) material is read, filtered and cut.

A source is one array of one pool. It names its files and its settings, so that a hash over both tells
whether the array that lies on disk is still the one that would be built. The recipes that turn a source
into pieces of sound are found by name, which keeps a source small enough to be sent to another process.
"""

import dataclasses
import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Audio = NDArray[np.float32]  # (n, c), 44.1 kHz, full scale +-1

SAMPLE_RATE = 44100
NARROW_HZ = 3000  # bandwidth under which speech is of no use
ARCHIVE_MARK = "::"  # "music.pk3::sound/a.ogg" is a member of a zip archive


@dataclasses.dataclass(frozen=True)
class Source:
    """One array of the corpus: pool, name, terms of use, files it is made from, recipe and its settings."""

    pool: str  # song, band, vocals, accompaniment, drums, bass, other
    name: str  # file name of the array without .npy
    licence: str
    licence_class: str  # permissive, attribution, copyleft or own-terms
    version: str  # commit or package version
    recipe: str  # key of training.corpus.build.RECIPES
    files: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # goes into the manifest row as it is

    def fingerprint(self, seed: int) -> str:
        """Hash over everything that decides the samples; file sizes stand for their content."""
        sizes = [(Path(f).name, file_size(f)) for f in self.files]
        key = json.dumps([self.pool, self.name, self.recipe, self.settings, sizes, seed], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One uninterrupted stretch of sound, (n, c) float32 at 44.1 kHz, and where it is from."""

    audio: Audio
    label: str


def file_size(name: str) -> int:
    """Bytes of a file, or of the archive that holds it."""
    return Path(name.split(ARCHIVE_MARK)[0]).stat().st_size


def read_bytes(name: str) -> bytes:
    """Content of a file or of a zip member. Raises OSError or KeyError when it is not there."""
    if ARCHIVE_MARK in name:
        archive, member = name.split(ARCHIVE_MARK)
        with zipfile.ZipFile(archive) as z:
            return z.read(member)
    return Path(name).read_bytes()


def read_audio(name: str) -> Audio:
    """Decode a file to (n, 1 or 2) float32 at 44.1 kHz; what libsndfile cannot read goes through ffmpeg.

    Raises ValueError when neither decodes it.
    """
    content = read_bytes(name)
    try:
        audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        command = ["ffmpeg", "-v", "error", "-i", "pipe:0", "-f", "wav", "-c:a", "pcm_f32le", "pipe:1"]
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        if done.returncode or len(done.stdout) < 100:
            raise ValueError(f"cannot decode {name}") from None
        head = done.stdout.find(b"data") + 8  # a piped wav has no true length: take what follows its head
        rate = int.from_bytes(done.stdout[24:28], "little")
        channels = int.from_bytes(done.stdout[22:24], "little")
        samples = np.frombuffer(done.stdout[head:], np.float32)
        audio = samples[: len(samples) // channels * channels].reshape(-1, channels)
    audio = audio[:, :2]
    if rate != SAMPLE_RATE and len(audio):
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return np.ascontiguousarray(audio, np.float32)


def read_span(name: str, start: float, end: float) -> Audio:
    """The samples between two times (s) of a file that libsndfile reads, (n, c) at 44.1 kHz."""
    with soundfile.SoundFile(name) as f:
        f.seek(round(start * f.samplerate))
        audio = f.read(round((end - start) * f.samplerate), dtype="float32", always_2d=True)
        return np.asarray(soxr.resample(audio, f.samplerate, SAMPLE_RATE), np.float32)


def stereo(audio: Audio) -> Audio:
    """(n, 2): mono on both channels."""
    return np.repeat(audio, 2, axis=1) if audio.shape[1] == 1 else audio


def frame_levels(audio: Audio, frame: int) -> NDArray[np.float64]:
    """RMS in dBFS of consecutive frames of `frame` samples, loudest channel; the rest at the end counts."""
    count = -(-len(audio) // frame)
    padded = np.zeros((count * frame, audio.shape[1]), np.float32)
    padded[: len(audio)] = audio
    power = np.mean(padded.reshape(count, frame, audio.shape[1]) ** 2, axis=1, dtype=np.float64).max(axis=1)
    return np.asarray(10 * np.log10(power + 1e-12), np.float64)


def sounding_spans(audio: Audio, *, floor_db: float, hang: float, shortest: float) -> list[tuple[int, int]]:
    """Sample ranges above floor_db; gaps under `hang` s are bridged, spans under `shortest` s dropped."""
    frame = SAMPLE_RATE // 20
    on = np.flatnonzero(frame_levels(audio, frame) > floor_db)
    spans: list[tuple[int, int]] = []
    for group in np.split(on, np.flatnonzero(np.diff(on) > hang * 20) + 1) if len(on) else []:
        start, end = max(0, group[0] - 1) * frame, min(len(audio), (group[-1] + 3) * frame)
        if end - start >= shortest * SAMPLE_RATE:
            spans.append((int(start), int(end)))
    return spans


def active_level(audio: Audio) -> float:
    """RMS in dBFS of the 50 ms frames that are within 30 dB of the loudest one."""
    levels = frame_levels(audio, SAMPLE_RATE // 20)
    return (
        float(10 * np.log10(np.mean(10 ** (levels[levels > levels.max() - 30] / 10))))
        if len(levels)
        else -120.0
    )


def normalise(audio: Audio, *, level_db: float = -20.0, peak: float = 0.98, most_db: float = 40.0) -> Audio:
    """Bring the active level to level_db, lowered again where the peak would pass `peak`."""
    gain = 10 ** (min(level_db - active_level(audio), most_db) / 20)
    loudest = float(np.abs(audio).max(initial=0.0))
    return (audio * min(gain, peak / max(loudest, 1e-9))).astype(np.float32)


def levelled(audio: Audio, label: str) -> Iterator[Piece]:
    """A render at the usual level, without its long silences."""
    audio = normalise(audio)
    for start, end in sounding_spans(audio, floor_db=-55, hang=2.0, shortest=4.0):
        yield Piece(audio[start:end], label)


def bandwidth(audio: Audio) -> float:
    """Highest frequency in Hz that rises within 80 dB of the strongest bin (95th percentile of frames)."""
    n = 2048
    mono = audio.mean(axis=1)
    if len(mono) < 2 * n:
        mono = np.pad(mono, (0, 2 * n - len(mono)))
    starts = np.linspace(0, len(mono) - n, min(200, len(mono) // n)).astype(int)
    frames = np.stack([mono[s : s + n] for s in starts]) * np.hanning(n)
    power = np.percentile(np.abs(np.fft.rfft(frames, axis=1)) ** 2, 95, axis=0)
    smooth = np.convolve(power, np.ones(9) / 9, "same")
    above = np.flatnonzero(smooth > smooth.max() * 1e-8)
    return float(above[-1] * SAMPLE_RATE / n) if len(above) and smooth.max() > 0 else 0.0


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a head line."""
    head, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [dict(zip(head, row, strict=False)) for row in rows]


# ---- recipes for recorded material: (source, generator) -> pieces ----


def whole(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One file as it is, padded or cut to settings["frames"]: stems of one song stay aligned."""
    audio = stereo(read_audio(source.files[0]))
    frames = int(source.settings["frames"])
    yield Piece(np.pad(audio[:frames], ((0, max(0, frames - len(audio))), (0, 0))), source.name)


def takes(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The takes of a voicebank as its table cuts them, one gain per file; settings["stereo"]: (n, 2)."""
    for opus, table in zip(source.files[::2], source.files[1::2], strict=True):
        recorded = read_audio(opus)
        audio = normalise(stereo(recorded) if source.settings.get("stereo") else recorded[:, :1])
        for row in read_tsv(Path(table)):
            start, end = (round(float(row[k]) * SAMPLE_RATE) for k in ("start_seconds", "end_seconds"))
            if end - start >= 0.3 * SAMPLE_RATE:
                yield Piece(audio[start:end], row["source_file"])


def sounding(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The stretches of recordings in which something sounds (above -50 dBFS), levels as recorded."""
    for name in source.files:
        audio = stereo(read_audio(name))
        hang = float(source.settings.get("hang", 0.5))
        for start, end in sounding_spans(audio, floor_db=-50, hang=hang, shortest=1.0):
            yield Piece(audio[start:end], f"{Path(name).parent.name}/{Path(name).stem}@{start}")


def spoken_clips(names: Iterable[str], min_hz: float) -> Iterator[Piece]:
    """Clips without the silence around them, at one level; (n, 1).

    Left out: copies, silence, what cannot be decoded, bandwidths under `min_hz`.
    """
    seen: set[str] = set()
    for name in names:
        digest = hashlib.md5(read_bytes(name)).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            audio = read_audio(name)[:, :1]
        except ValueError:
            continue
        spans = sounding_spans(audio, floor_db=active_level(audio) - 40, hang=1e9, shortest=0.3)
        if not spans or active_level(audio) < -55:
            continue
        audio = audio[spans[0][0] : spans[-1][1]]
        if bandwidth(audio) >= min_hz:
            yield Piece(normalise(audio), Path(name).name)


def widest_clips(names: Sequence[str], min_hz: float) -> Iterator[Piece]:
    """Spoken clips of a bandwidth of `min_hz` or more; where there is none, the narrow ones.

    A narrow voice is mixed with music as narrow (see training/mixing/mixer.py).
    """
    found = False
    for piece in spoken_clips(names, min_hz):
        found = True
        yield piece
    if not found:
        yield from spoken_clips(names, NARROW_HZ)


def speech(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The widest spoken clips in the order of their names."""
    return widest_clips(source.files, source.settings["min_hz"])


def music(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Mixed music: files of 30 s or more that sound most of the time, up to settings["minutes"] in all.

    Left out: duplicates, files under settings["min_hz"] bandwidth, files that are mostly silent.
    """
    left = source.settings["minutes"] * 60 * SAMPLE_RATE
    seen: set[str] = set()
    for index in rng.permutation(len(source.files)):
        name = source.files[index]
        content = read_bytes(name)
        digest = hashlib.md5(content).hexdigest()
        if digest in seen or left < 30 * SAMPLE_RATE:
            continue
        seen.add(digest)
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as f:
                if f.frames < 30 * f.samplerate:
                    continue
        except soundfile.LibsndfileError:
            pass  # ffmpeg may know it
        try:
            audio = read_audio(name)
        except ValueError:
            continue
        levels = frame_levels(audio, SAMPLE_RATE)
        loud = np.flatnonzero(levels > -50)
        if len(audio) < 30 * SAMPLE_RATE or len(loud) < 0.6 * len(levels) or active_level(audio) < -45:
            continue
        if bandwidth(audio) < source.settings["min_hz"]:
            continue
        audio = audio[loud[0] * SAMPLE_RATE : (loud[-1] + 1) * SAMPLE_RATE]
        audio = audio[: int(min(left, 300 * SAMPLE_RATE))]
        left -= len(audio)
        peak = np.abs(audio).max()
        yield Piece(stereo(audio / max(1.0, peak / 0.98)), Path(name.split(ARCHIVE_MARK)[-1]).name)
