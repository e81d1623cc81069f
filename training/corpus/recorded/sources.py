"""Sources of the corpus, and the recipes that read, filter and cut recorded (not rendered) material.

A source becomes one array of one pool. A hash over its files and settings tells whether an array on disk is up to
date. Its recipe is stored by name, so that a source is small enough to be sent to another process.
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

from tfswa_sep.constants import SAMPLE_RATE

Audio = NDArray[np.float32]  # (n, c), 44.1 kHz, full scale +-1

NARROW_HZ = 3000  # speech with less bandwidth is unusable
ARCHIVE_MARK = "::"  # "music.pk3::sound/a.ogg" is a member of a zip archive


@dataclasses.dataclass(frozen=True)
class Source:
    """What one array of the corpus is made from, how, and under which terms."""

    pool: str  # song, band, vocals, accompaniment, drums, bass or other
    name: str  # of the array's file, without .npy
    licence: str
    licence_class: str  # permissive, attribution, copyleft or own-terms
    version: str  # commit or package version
    recipe: str  # key of training.corpus.build.RECIPES
    files: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # further columns of the manifest

    def fingerprint(self, seed: int) -> str:
        """Hash over everything that determines the samples, with file sizes in place of their content."""
        sizes = [(Path(f).name, file_size(f)) for f in self.files]
        key = json.dumps([self.pool, self.name, self.recipe, self.settings, sizes, seed], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A continuous recording, (n, c) float32 at 44.1 kHz, labelled with its origin."""

    audio: Audio
    label: str


def file_size(name: str) -> int:
    """Bytes of a file or of the archive that contains it."""
    return Path(name.split(ARCHIVE_MARK)[0]).stat().st_size


def read_bytes(name: str) -> bytes:
    """Content of a file or a zip member. Raises OSError or KeyError if it does not exist."""
    if ARCHIVE_MARK in name:
        archive, member = name.split(ARCHIVE_MARK)
        with zipfile.ZipFile(archive) as z:
            return z.read(member)
    return Path(name).read_bytes()


def read_audio(name: str) -> Audio:
    """Decode a file with libsndfile or else ffmpeg to (n, 1 or 2) float32 at 44.1 kHz.

    Raises ValueError if neither can decode it.
    """
    content = read_bytes(name)
    try:
        audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        command = ["ffmpeg", "-v", "error", "-i", "pipe:0", "-f", "wav", "-c:a", "pcm_f32le", "pipe:1"]
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        if done.returncode or len(done.stdout) < 100:
            raise ValueError(f"cannot decode {name}") from None
        start = done.stdout.find(b"data") + 8  # a piped WAV does not state its length
        rate = int.from_bytes(done.stdout[24:28], "little")
        channels = int.from_bytes(done.stdout[22:24], "little")
        samples = np.frombuffer(done.stdout[start:], np.float32)
        audio = samples[: len(samples) // channels * channels].reshape(-1, channels)
    audio = audio[:, :2]
    if rate != SAMPLE_RATE and len(audio):
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return np.ascontiguousarray(audio, np.float32)


def read_excerpt(name: str, start: float, end: float) -> Audio:
    """The samples between two times (s) of a file that libsndfile can read, (n, c) at 44.1 kHz."""
    with soundfile.SoundFile(name) as f:
        f.seek(round(start * f.samplerate))
        audio = f.read(round((end - start) * f.samplerate), dtype="float32", always_2d=True)
        return np.asarray(soxr.resample(audio, f.samplerate, SAMPLE_RATE), np.float32)


def stereo(audio: Audio) -> Audio:
    """(n, 1 or 2) -> (n, 2), with mono on both channels."""
    return np.repeat(audio, 2, axis=1) if audio.shape[1] == 1 else audio


def to_int16(audio: Audio) -> NDArray[np.int16]:
    """Round float between -1 and 1 to int16, clipped at full scale."""
    return np.asarray(np.clip(np.rint(audio * 32767), -32768, 32767), "<i2")


def frame_levels(audio: Audio, frame: int) -> NDArray[np.float64]:
    """RMS in dBFS of consecutive frames of `frame` samples, in the louder channel; the last one is zero-padded."""
    count = -(-len(audio) // frame)
    padded = np.zeros((count * frame, audio.shape[1]), np.float32)
    padded[: len(audio)] = audio
    power = np.mean(padded.reshape(count, frame, audio.shape[1]) ** 2, axis=1, dtype=np.float64).max(axis=1)
    return np.asarray(10 * np.log10(power + 1e-12), np.float64)


def runs(indices: NDArray[np.int64], *, gap: int = 1) -> Iterator[tuple[int, int]]:
    """First and last of each run of ascending indices that are at most `gap` apart."""
    if len(indices):
        for run in np.split(indices, np.flatnonzero(np.diff(indices) > gap) + 1):
            yield int(run[0]), int(run[-1])


def active_spans(audio: Audio, *, floor_db: float, hang: float, shortest: float) -> list[tuple[int, int]]:
    """Sample ranges above `floor_db`, bridging gaps of up to `hang` s and dropping spans under `shortest` s."""
    frame = SAMPLE_RATE // 20
    spans = []
    for first, last in runs(np.flatnonzero(frame_levels(audio, frame) > floor_db), gap=int(hang * 20)):
        start, end = max(0, first - 1) * frame, min(len(audio), (last + 3) * frame)
        if end - start >= shortest * SAMPLE_RATE:
            spans.append((start, end))
    return spans


def active_level(audio: Audio) -> float:
    """RMS in dBFS of the 50 ms frames that are within 30 dB of the loudest."""
    levels = frame_levels(audio, SAMPLE_RATE // 20)
    if not len(levels):
        return -120.0
    return float(10 * np.log10(np.mean(10 ** (levels[levels > levels.max() - 30] / 10))))


def normalize(
    audio: Audio, *, level_db: float = -20.0, peak: float = 0.98, max_gain_db: float = 40.0
) -> Audio:
    """Bring the active level to `level_db`, or lower if the peak would otherwise exceed `peak`."""
    gain = 10 ** (min(level_db - active_level(audio), max_gain_db) / 20)
    loudest = float(np.abs(audio).max(initial=0.0))
    return (audio * min(gain, peak / max(loudest, 1e-9))).astype(np.float32)


def split_render(audio: Audio, label: str) -> Iterator[Piece]:
    """Normalize a render and cut it at long silences."""
    audio = normalize(audio)
    for start, end in active_spans(audio, floor_db=-55, hang=2.0, shortest=4.0):
        yield Piece(audio[start:end], label)


def bandwidth(audio: Audio) -> float:
    """Highest frequency in Hz within 80 dB of the strongest bin (95th percentile over frames)."""
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
    """Rows of a tab-separated table with a header."""
    header, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [dict(zip(header, row, strict=False)) for row in rows]


def take_files(shared: Path, pattern: str) -> tuple[str, ...]:
    """Recordings of voices and the tables of their takes, in turn: a.opus, a.tsv, b.opus, b.tsv."""
    recordings = sorted((shared / "voices").glob(f"{pattern}.opus"))
    return tuple(str(file) for path in recordings for file in (path, path.with_suffix(".tsv")))


def read_take_tables(files: Sequence[str]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Each recording of `take_files` with the rows of its table."""
    for recording, table in zip(files[::2], files[1::2], strict=True):
        yield recording, read_tsv(Path(table))


# ---- recipes for recorded material: (source, generator) -> pieces ----


def read_whole(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One file, padded or cut to settings["frames"] so that the stems of a song stay aligned."""
    audio = stereo(read_audio(source.files[0]))
    frames = int(source.settings["frames"])
    yield Piece(np.pad(audio[:frames], ((0, max(0, frames - len(audio))), (0, 0))), source.name)


def read_takes(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Takes as the tables list them, normalized per file; settings["stereo"] gives (n, 2)."""
    for recording, rows in read_take_tables(source.files):
        audio = read_audio(recording)
        audio = normalize(stereo(audio) if source.settings.get("stereo") else audio[:, :1])
        for row in rows:
            start, end = (round(float(row[k]) * SAMPLE_RATE) for k in ("start_seconds", "end_seconds"))
            if end - start >= 0.3 * SAMPLE_RATE:
                yield Piece(audio[start:end], row["source_file"])


def read_active(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The parts of recordings above -50 dBFS, at their recorded levels."""
    for name in source.files:
        audio = stereo(read_audio(name))
        hang = float(source.settings.get("hang", 0.5))
        for start, end in active_spans(audio, floor_db=-50, hang=hang, shortest=1.0):
            yield Piece(audio[start:end], f"{Path(name).parent.name}/{Path(name).stem}@{start}")


def _skip_copies(names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files, without exact copies of earlier ones."""
    seen = set()
    for name in names:
        content = read_bytes(name)
        digest = hashlib.md5(content).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield name, content


def _read_clips(names: Iterable[str], min_hz: float) -> Iterator[Piece]:
    """Clips of speech, trimmed and normalized, (n, 1).

    Skips copies, silence, undecodable files, and bandwidths below `min_hz`.
    """
    for name, _ in _skip_copies(names):
        try:
            audio = read_audio(name)[:, :1]
        except ValueError:
            continue
        spans = active_spans(audio, floor_db=active_level(audio) - 40, hang=1e9, shortest=0.3)
        if not spans or active_level(audio) < -55:
            continue
        audio = audio[spans[0][0] : spans[-1][1]]
        if bandwidth(audio) >= min_hz:
            yield Piece(normalize(audio), Path(name).name)


def read_widest_clips(names: Sequence[str], min_hz: float) -> Iterator[Piece]:
    """Clips of speech with a bandwidth of at least `min_hz`, or narrower ones if there are none.

    A narrow voice is mixed with equally narrow music (see training/mixing/mixer.py).
    """
    empty = True
    for piece in _read_clips(names, min_hz):
        empty = False
        yield piece
    if empty:
        yield from _read_clips(names, NARROW_HZ)


def read_speech(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The widest clips in the order of the files."""
    return read_widest_clips(source.files, source.settings["min_hz"])


def read_music(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Mixed music in random order: files of at least 30 s, up to settings["minutes"] in total.

    Skips copies, files that are mostly silent, and bandwidths below settings["min_hz"].
    """
    left = source.settings["minutes"] * 60 * SAMPLE_RATE
    for name, content in _skip_copies(source.files[i] for i in rng.permutation(len(source.files))):
        if left < 30 * SAMPLE_RATE:
            return
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                if file.frames < 30 * file.samplerate:
                    continue
        except soundfile.LibsndfileError:
            pass  # ffmpeg may be able to read it
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
