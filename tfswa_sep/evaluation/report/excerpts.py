"""The best and the worst excerpt of each stem, as spectrograms and sounds that fit into an HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.audio.atomic_file import temporary_folder
from tfswa_sep.audio.resample import Samples
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.evaluation.methods import FolderMethod, Method, ModelMethod, fold
from tfswa_sep.evaluation.multitrack import BLOCK_SECONDS, MIXTURE, Feed, Song
from tfswa_sep.evaluation.musdb import decode_stems
from tfswa_sep.evaluation.optional_packages import need
from tfswa_sep.evaluation.perceptual import MELS, mel_decibels
from tfswa_sep.evaluation.results import Evaluation, MethodScores
from tfswa_sep.evaluation.scoring import EXCERPT_SECONDS, true_parts

CONTEXT_SECONDS = 4  # of the mixture, before and after an excerpt that is separated once more
METHODS = 3  # that are shown at most
ROWS = 128  # of a picture
RANGE = 70.0  # dB, from dark to bright
COLOURS = ((11, 13, 26), (72, 36, 117), (180, 54, 121), (251, 136, 97), (252, 253, 191))  # dark to bright
PNG_COLOURS = 64


@dataclass(frozen=True)
class Clip:
    """A sound and its spectrogram, as data: addresses."""

    title: str
    sound: str  # MP3
    picture: str  # PNG


@dataclass(frozen=True)
class Example:
    """The best or worst excerpt of one stem by one method."""

    method: str
    stem: str
    kind: str  # "best" or "worst"
    song: str
    start: float  # seconds
    sdr: float  # dB
    clips: tuple[Clip, Clip]  # the true stem, the estimate


def examples(evaluation: Evaluation, songs: Sequence[Song], methods: Sequence[Method]) -> list[Example]:
    """The best and the worst excerpt of every stem, for the first METHODS models and folders of estimates.

    Stems that a model did not keep are separated once more, but only the excerpt with CONTEXT_SECONDS around it.

    Args:
        evaluation: The scores.
        songs: Songs that were scored.
        methods: Methods that were scored, in the same order.

    Raises:
        TfswaError: A file has disappeared, or Pillow is not installed.
    """
    need("PIL", "--report")
    by_name = {song.name: song for song in songs}
    shown = [
        (scores, method)
        for scores, method in zip(evaluation.methods, methods, strict=True)
        if isinstance(method, ModelMethod | FolderMethod)
    ]
    chosen = [
        (scores.name, method, stem, kind, extreme)
        for scores, method in shown[:METHODS]
        for stem in scores.stems
        for kind, extreme in _extremes(scores, stem).items()
    ]
    found: dict[int, Example] = {}
    for song in dict.fromkeys(name for *_, (name, _, _) in chosen):
        with temporary_folder() as folder:
            decoded = decode_stems(by_name[song], folder)  # once for all its excerpts
            for number, (scored, method, stem, kind, (name, start, sdr)) in enumerate(chosen):
                if name == song:
                    clips = _clips(method, decoded, stem, start)
                    found[number] = Example(scored, stem, kind, name, start, sdr, clips)
    return [found[number] for number in range(len(chosen))]


def _extremes(scores: MethodScores, stem: str) -> dict[str, tuple[str, float, float]]:
    """{"best" and "worst": (song, start in seconds, SDR)}."""
    scored = [(song.song, song.stems[stem]) for song in scores.songs if stem in song.stems and not song.apart]
    best = [(name, score.best.start, score.best.sdr) for name, score in scored if score.best]
    worst = [(name, score.worst.start, score.worst.sdr) for name, score in scored if score.worst]
    if not best or not worst:
        return {}
    return {
        "best": max(best, key=lambda excerpt: excerpt[2]),
        "worst": min(worst, key=lambda excerpt: excerpt[2]),
    }


def _clips(method: ModelMethod | FolderMethod, song: Song, stem: str, start: float) -> tuple[Clip, Clip]:
    with temporary_folder() as folder:
        if isinstance(method, FolderMethod):
            place, files = start, method.estimate(song, folder, folder, lambda _: None).files
        elif method.out is not None:
            kept = FolderMethod(method.out, "kept").estimate(song, folder, folder, lambda _: None)
            place, files = start, fold(kept.files, song)
        else:
            first = max(0.0, start - CONTEXT_SECONDS)
            place = start - first
            part = _cut(song, first, place + EXCERPT_SECONDS + CONTEXT_SECONDS, folder)
            mixture = folder / "part of the mixture.wav"
            part.write_mixture(mixture, rate=method.rate)
            (folder / "estimates").mkdir()
            files = method.estimate(part, mixture, folder / "estimates", lambda _: None).files
        names = true_parts(list(files), song.stems)[stem]
        true = _read([song.files[name] for name in names if name in song.files], start, EXCERPT_SECONDS)
        guess = _read(files[stem], place, EXCERPT_SECONDS)
    loudest = float(mel_decibels(true.astype(float), SAMPLE_RATE).max())
    return (
        Clip(f"true {stem}", _mp3(true), _png(true, loudest)),
        Clip("estimate", _mp3(guess), _png(guess, loudest)),
    )


def _cut(song: Song, start: float, seconds: float, folder: Path) -> Song:
    """A part of a song, written to `folder`."""
    files = {}
    for stem in (MIXTURE,) if MIXTURE in song.files else song.stems:
        if stem in song.files:
            files[stem] = folder / f"part of {stem}.wav"
            samples = _read([song.files[stem]], start, seconds)
            soundfile.write(files[stem], samples.T, SAMPLE_RATE, subtype="FLOAT")
    return replace(song, files=files)


def _read(paths: list[Path], start: float, seconds: float) -> Samples:
    """A part of the sum of files, (2, n); it ends where they end."""
    feed, skipped = Feed(paths, SAMPLE_RATE), round(start * SAMPLE_RATE)
    for at in range(0, skipped, BLOCK_SECONDS * SAMPLE_RATE):
        feed.take(min(BLOCK_SECONDS * SAMPLE_RATE, skipped - at))
    samples = feed.take(round(seconds * SAMPLE_RATE))
    return samples[:, : max(0, feed.frames - skipped)]


def _mp3(samples: Samples) -> str:
    data = io.BytesIO()
    peak = max(1.0, float(np.abs(samples).max(initial=0)))
    soundfile.write(data, samples.T / peak, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return _address("audio/mpeg", data)


def _png(samples: Samples, loudest: float) -> str:
    """A spectrogram whose brightest colour is `loudest` dB; high frequencies on top."""
    image = need("PIL.Image", "--report")
    levels = mel_decibels(samples.astype(float), SAMPLE_RATE).mean(axis=0).T  # (MELS, spectra)
    rows = levels.reshape(ROWS, MELS // ROWS, -1).max(axis=1)[::-1]
    shade = np.clip(1 + (rows - loudest) / RANGE, 0, 1) * (PNG_COLOURS - 1)
    stops = np.linspace(0, PNG_COLOURS - 1, len(COLOURS))
    palette = np.stack(
        [np.interp(np.arange(PNG_COLOURS), stops, channel) for channel in zip(*COLOURS, strict=True)], axis=1
    )
    picture = image.frombytes("P", (rows.shape[1], ROWS), shade.round().astype(np.uint8).tobytes())
    picture.putpalette(palette.round().astype(np.uint8).tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return _address("image/png", data)


def _address(kind: str, data: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
