"""A blind A/B listening test as one HTML file with the audio in it.

Both sides of a pair are cut at the same place, matched in loudness (ITU-R BS.1770-4, by pyloudnorm) and stored as
FLAC, so that no codec is heard. The page itself draws for each listener which side is called 1.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.audio.resample import Samples
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.multitrack import AUDIO_SUFFIXES, BLOCK_SECONDS, Feed
from tfswa_sep.evaluation.optional_packages import need, render

COMMAND = "eval listen"
SHORTEST = 0.4  # s: one block of a loudness measurement
QUIETEST = -60.0  # LUFS: anything below counts as silence
STEP = SAMPLE_RATE // 4  # samples between the possible starts of an excerpt


def listening_page(
    first: Path, second: Path, *, reference: Path | None = None, seconds: float = 8, trials: int = 12
) -> str:
    """The page for two audio files, or for two folders with files of the same names.

    Args:
        first: One side of the test.
        second: The other side.
        reference: The true stem or stems, to play alongside; the same kind of path.
        seconds: Length of each excerpt; it is taken where both sides together are loudest.
        trials: Maximum number of pairs, spread evenly over those there are.

    Raises:
        InputError: A file cannot be read.
        UsageError: No names match, all is silent, or a package is missing.
    """
    need("pyloudnorm", COMMAND)
    for path in (first, second, reference):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist: name an audio file, or a folder of them")
    pairs = _pairs(first, second)
    references = _audio_files(reference) if reference is not None and reference.is_dir() else {}
    chosen = sorted({round(index) for index in np.linspace(0, len(pairs) - 1, min(trials, len(pairs)))})
    content = []
    for name in (list(pairs)[index] for index in chosen):
        true = reference if reference is not None and reference.is_file() else references.get(name)
        sides = {"a": pairs[name][0], "b": pairs[name][1], **({"reference": true} if true else {})}
        if excerpts := _excerpts(sides, seconds):
            content.append({"name": name, **{side: _flac(samples) for side, samples in excerpts.items()}})
    if not content:
        raise UsageError(f"{first} and {second} are silent or too short: there is nothing to compare by ear")
    paths = [first.resolve(), second.resolve()]
    a, b = (path.name if paths[0].name != paths[1].name else str(path) for path in paths)
    return render("listen.html.j2", COMMAND, content={"a": a, "b": b, "trials": content})


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """{name: (file of A, file of B)}."""
    if first.is_file() and second.is_file():
        return {first.stem if first.stem == second.stem else "excerpt": (first, second)}
    if first.is_file() or second.is_file():
        raise UsageError(f"{first} and {second} are a file and a folder: name two files or two folders")
    a, b = _audio_files(first), _audio_files(second)
    pairs = {name: (a[name], b[name]) for name in sorted(a.keys() & b.keys())}
    if not pairs:
        raise UsageError(f"{first} and {second} have no audio files with the same name")
    return pairs


def _audio_files(folder: Path) -> dict[str, Path]:
    """{<song>/<stem>: audio file} below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _excerpts(sides: Mapping[str, Path], seconds: float) -> dict[str, Samples]:
    """The loudest excerpt that both sides have, (2, n) each, matched in loudness; empty for silence."""
    pyloudnorm = need("pyloudnorm", COMMAND)
    whole = {side: _read(path) for side, path in sides.items()}
    length = min(whole[side].shape[1] for side in ("a", "b"))
    size = min(round(seconds * SAMPLE_RATE), length)
    if size < SHORTEST * SAMPLE_RATE:
        return {}
    energy = sum(np.square(whole[side][:, :length], dtype=np.float64).sum(axis=0) for side in ("a", "b"))
    running = np.concatenate([[0.0], np.cumsum(energy)])
    starts = np.arange(0, length - size + 1, STEP)
    start = int(starts[np.argmax(running[starts + size] - running[starts])])
    excerpts = {side: samples[:, start : start + size] for side, samples in whole.items()}
    excerpts = {side: np.pad(cut, ((0, 0), (0, size - cut.shape[1]))) for side, cut in excerpts.items()}
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    loudness = {side: float(meter.integrated_loudness(samples.T)) for side, samples in excerpts.items()}
    if min(loudness["a"], loudness["b"]) < QUIETEST:
        return {}
    audible = {side: value for side, value in loudness.items() if value >= QUIETEST}
    target = min(audible.values())
    matched = {
        side: np.float32(10 ** ((target - value) / 20)) * excerpts[side] for side, value in audible.items()
    }
    peak = np.float32(max(1.0, *(float(np.abs(samples).max()) for samples in matched.values())))
    return {side: samples / peak for side, samples in matched.items()}


def _read(path: Path) -> Samples:
    feed, blocks = Feed([path], SAMPLE_RATE), []
    while not feed.ended:
        blocks.append(feed.take(BLOCK_SECONDS * SAMPLE_RATE))
    return np.concatenate(blocks, axis=1)[:, : feed.frames]


def _flac(samples: Samples) -> str:
    """A 16-bit FLAC file of samples (2, n), in base64."""
    data = io.BytesIO()
    soundfile.write(data, samples.T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return base64.b64encode(data.getvalue()).decode("ascii")
