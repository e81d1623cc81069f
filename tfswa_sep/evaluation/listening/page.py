"""A page for a blind A/B test by ear: one HTML file with the audio in it.

Both sides of a pair are cut at the same place, brought to one loudness (ITU-R BS.1770-4, by pyloudnorm) and
packed as FLAC, so that no codec is heard. Which side is called 1 is drawn by the page, for each listener.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.audio.resample import Samples
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.extra import need
from tfswa_sep.evaluation.multitrack import AUDIO_SUFFIXES, BLOCK_SECONDS, Feed

SHORTEST = 0.4  # s: loudness is measured in blocks of that length
QUIETEST = -60.0  # LUFS: below it there is nothing to hear
STEP = SAMPLE_RATE // 4  # samples between the places where an excerpt may begin


def listening_page(
    first: Path, second: Path, *, reference: Path | None = None, seconds: float = 8, trials: int = 12
) -> str:
    """The page, for two audio files or two folders with files of the same names, and the true ones if known.

    seconds: of each excerpt, from where the two sides together are loudest.
    trials: at most so many pairs, taken evenly from all there are.
    Raises UsageError where no names match or a package is missing, InputError for a file that cannot be read.
    """
    need("pyloudnorm", "eval listen")
    for path in (first, second, reference):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist: name an audio file, or a folder of them")
    pairs = _pairs(first, second)
    known = _sounds(reference) if reference is not None and reference.is_dir() else {}
    chosen = sorted({round(index) for index in np.linspace(0, len(pairs) - 1, min(trials, len(pairs)))})
    told = []
    for name in (list(pairs)[index] for index in chosen):
        true = reference if reference is not None and reference.is_file() else known.get(name)
        sides = {"a": pairs[name][0], "b": pairs[name][1], **({"reference": true} if true else {})}
        excerpts = _excerpts(sides, seconds)
        if excerpts:
            told.append({"name": name, **{side: _flac(samples) for side, samples in excerpts.items()}})
    if not told:
        raise UsageError(f"{first} and {second} are silent or too short: there is nothing to compare by ear")
    names = [first.resolve(), second.resolve()]
    labels = (
        [path.name for path in names] if names[0].name != names[1].name else [str(path) for path in names]
    )
    content = {"a": labels[0], "b": labels[1], "trials": told}
    template = (resources.files("tfswa_sep.evaluation.listening") / "page.html").read_text("utf-8")
    return template.replace("{{content}}", json.dumps(content).replace("<", "\\u003c"))


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """{name: (of A, of B)}."""
    if first.is_file() and second.is_file():
        name = first.stem if first.stem == second.stem else "excerpt"
        return {name: (first, second)}
    if first.is_file() or second.is_file():
        raise UsageError(f"{first} and {second} are a file and a folder: name two of a kind")
    one, two = _sounds(first), _sounds(second)
    pairs = {name: (one[name], two[name]) for name in sorted(one.keys() & two.keys())}
    if not pairs:
        raise UsageError(f"no audio file in {first} has the name of one in {second}")
    return pairs


def _sounds(folder: Path) -> dict[str, Path]:
    """{<song>/<stem>: audio file} below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def _excerpts(sides: Mapping[str, Path], seconds: float) -> dict[str, Samples]:
    """The loudest excerpt that both sides have, (2, n) each, equally loud; empty for silence."""
    pyloudnorm = need("pyloudnorm", "eval listen")
    whole = {side: _read(path) for side, path in sides.items()}
    length = min(whole[side].shape[1] for side in ("a", "b"))
    size = min(round(seconds * SAMPLE_RATE), length)
    if size < SHORTEST * SAMPLE_RATE:
        return {}
    energy = sum(np.square(whole[side][:, :length], dtype=np.float64).sum(axis=0) for side in ("a", "b"))
    running = np.concatenate([[0.0], np.cumsum(energy)])
    starts = np.arange(0, length - size + 1, STEP)
    start = int(starts[np.argmax(running[starts + size] - running[starts])])
    cut = {
        side: np.pad(piece, ((0, 0), (0, size - piece.shape[1])))
        for side, samples in whole.items()
        for piece in (samples[:, start : start + size],)
    }
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    loudness = {side: float(meter.integrated_loudness(samples.T)) for side, samples in cut.items()}
    if min(loudness["a"], loudness["b"]) < QUIETEST:
        return {}
    audible = [value for value in loudness.values() if value >= QUIETEST]
    gains = {
        side: 10 ** ((min(audible) - value) / 20) for side, value in loudness.items() if value >= QUIETEST
    }
    level = {side: np.float32(gain) * cut[side] for side, gain in gains.items()}
    peak = max(1.0, *(float(np.abs(samples).max()) for samples in level.values()))
    return {side: samples / np.float32(peak) for side, samples in level.items()}


def _read(path: Path) -> Samples:
    feed, blocks = Feed([path], SAMPLE_RATE), []
    while not feed.ended:
        blocks.append(feed.take(BLOCK_SECONDS * SAMPLE_RATE))
    return np.concatenate(blocks, axis=1)[:, : feed.frames]


def _flac(samples: Samples) -> str:
    """Base64 of a 16-bit FLAC file."""
    data = io.BytesIO()
    soundfile.write(data, samples.T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return base64.b64encode(data.getvalue()).decode("ascii")
