"""Score separated stems against the true ones.

The true stems are folders as in `multitrack.py`, the numbers are those of `metrics.py`. Everything is scored
at the model's sample rate, over the whole song, from the files that the separator (or any other tool) wrote.

Nothing can be said of a stem that is silent, nor of one that is the whole mixture: it is left out of the
mean, and the report says so.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from tfswa_sep import registry
from tfswa_sep.backends import Backend
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.metrics import RunningScore, Samples
from tfswa_sep.multitrack import BLOCK_SECONDS, STEMS, Feed, Song, find_songs, stem_files
from tfswa_sep.report import Report, SongScore, StemScore
from tfswa_sep.separator import Separator
from tfswa_sep.spectrogram import istft, stft
from tfswa_sep.stems import ACCOMPANIMENT, VOCALS

Progress = Callable[[str, float, float], None]  # song, seconds done, seconds in all

SAMPLE_RATE = 44_100  # Hz, where estimates without a model are scored


def evaluate_folder(
    data: Path,
    *,
    model: str | Path | registry.ModelInfo | Backend | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    apart: str | None = None,
    oracle: bool = False,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Separate every song under `data` with `model` (None: the default), and score what was written to disk.

    out: folder that keeps the estimates as `out/<song>/<stem>.wav`; None: they are thrown away song by song.
    apart: a glob; the songs whose names match it are scored but kept out of the mean.
    oracle: also score the ideal ratio mask, a ceiling for what masking magnitudes can reach.
    command: what was typed, for the record; None: this process's own arguments.

    Raises InputError (no songs, a file that cannot be read), UsageError (`apart` matches nothing, the model
    has a stem that cannot be scored), and all that separating a song raises.
    """
    songs = find_songs(data)
    is_apart = _apart(apart, songs)
    info = registry.find_model(model) if isinstance(model, str | Path) else model or registry.default_model()
    separator = Separator(info, backend=backend, device=device, threads=threads)
    loaded = separator.backend
    if unknown := [stem for stem in loaded.stems if stem not in STEMS]:
        raise UsageError(f"the model separates {unknown[0]}; only {', '.join(STEMS)} can be scored")
    wanted = [*loaded.stems, ACCOMPANIMENT] if VOCALS in loaded.stems else list(loaded.stems)
    scores: list[SongScore] = []
    for song in songs:
        with tempfile.TemporaryDirectory(prefix="tfswa-sep-eval-") as temporary:
            mixture = Path(temporary) / "mixture.wav"
            length = song.write_mixture(mixture, rate=loaded.sample_rate)

            def tell(done: float, _: float | None, name: str = song.name, length: float = length) -> None:
                if on_progress is not None:
                    on_progress(name, done, length)

            started = time.perf_counter()
            result = separator.separate_file(
                mixture,
                out=(out or Path(temporary) / "stems") / song.name,
                stems=wanted,
                name="{stem}{ext}",
                on_progress=tell,
            )
            spent = time.perf_counter() - started
            estimates = {stem: [path] for stem, path in result.files.items()}
            rate = loaded.sample_rate
            stems, skipped, warnings = _score(song, mixture, estimates, rate=rate, oracle=oracle)
        scores.append(SongScore(song.name, length, spent, is_apart[song.name], stems, skipped, warnings))
    sha256 = _sha256(registry.fetch(info, loaded.name)) if isinstance(info, registry.ModelInfo) else None
    return Report.now(
        data=data.resolve().name,
        songs=tuple(scores),
        source=info.name,
        sha256=sha256,
        backend=loaded.name,
        device=loaded.device,
        threads=threads,
        command=command,
    )


def evaluate_estimates(
    data: Path,
    estimates: Path,
    *,
    apart: str | None = None,
    oracle: bool = False,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Score stems that any tool wrote, `estimates/<song>/<stem>.<suffix>`, against the true ones under
    `data`.

    Where `data` is one song, `estimates` may be the folder of its stems. Stems that the tool did not write
    are not scored. The accompaniment is `accompaniment.*`, else the sum of drums, bass and other where all
    three are there. Other options and errors as in `evaluate_folder`.
    """
    songs = find_songs(data)
    is_apart = _apart(apart, songs)
    scores: list[SongScore] = []
    for song in songs:
        folder = estimates / song.name
        if len(songs) == 1 and not folder.is_dir():
            folder = estimates
        if not folder.is_dir():
            raise InputError(f"no estimates of the song {song.name!r}: {folder} is no folder")
        files = stem_files(folder)
        found = {stem: [files[stem]] for stem in (*STEMS, ACCOMPANIMENT) if stem in files}
        if not found:
            raise InputError(f"no stems in {folder}: expected vocals.wav and the like")
        rest = [found[stem][0] for stem in STEMS if stem != VOCALS and stem in found]
        if ACCOMPANIMENT not in found and len(rest) == len(STEMS) - 1:
            found[ACCOMPANIMENT] = rest
        with tempfile.TemporaryDirectory(prefix="tfswa-sep-eval-") as temporary:
            mixture = Path(temporary) / "mixture.wav"
            length = song.write_mixture(mixture, rate=SAMPLE_RATE)
            stems, skipped, warnings = _score(song, mixture, found, rate=SAMPLE_RATE, oracle=oracle)
        scores.append(SongScore(song.name, length, None, is_apart[song.name], stems, skipped, warnings))
        if on_progress is not None:
            on_progress(song.name, length, length)
    source = estimates.resolve().name
    return Report.now(data=data.resolve().name, songs=tuple(scores), source=source, command=command)


def _apart(pattern: str | None, songs: list[Song]) -> dict[str, bool]:
    """{song: whether it is kept out of the mean}."""
    found = {song.name: pattern is not None and fnmatchcase(song.name, pattern) for song in songs}
    if pattern is not None and not any(found.values()):
        raise UsageError(f"no song matches the pattern {pattern!r}; there are {', '.join(found)}")
    return found


def _score(
    song: Song,
    mixture_file: Path,
    estimate_files: Mapping[str, list[Path]],
    *,
    rate: int,
    oracle: bool,
) -> tuple[dict[str, StemScore], dict[str, str], tuple[str, ...]]:
    """Read true stems, mixture and estimates side by side; (scores, why others have none, warnings)."""
    truths = song.truths(rate)
    estimates = {stem: Feed(paths, rate) for stem, paths in estimate_files.items()}
    mixture = Feed([mixture_file], rate)
    feeds = [*truths.values(), *estimates.values(), mixture]
    # Three estimates a stem: the separated one, the mixture, the ideal ratio mask's.
    sums = {stem: (RunningScore(), RunningScore(), RunningScore()) for stem in estimates}
    while not all(feed.ended for feed in feeds):
        blocks = {stem: feed.take(BLOCK_SECONDS * rate) for stem, feed in truths.items()}
        mixed = mixture.take(BLOCK_SECONDS * rate)
        ideal = _ideal_ratio_masked(blocks, mixed) if oracle else {}
        everything = np.sum(list(blocks.values()), axis=0)
        blocks[ACCOMPANIMENT] = everything - blocks[VOCALS]
        for stem, (of_estimate, of_mixture, of_oracle) in sums.items():
            truth, rest = blocks[stem], everything - blocks[stem]
            of_estimate.add(truth, rest, estimates[stem].take(BLOCK_SECONDS * rate))
            of_mixture.add(truth, rest, mixed)
            if oracle:
                of_oracle.add(truth, rest, ideal[stem])
    scores: dict[str, StemScore] = {}
    skipped: dict[str, str] = {}
    for stem, (of_estimate, of_mixture, of_oracle) in sums.items():
        if of_estimate.is_silent:
            skipped[stem] = (
                f"silent in this song; the estimate is {of_estimate.level():+.1f} dB to the mixture"
            )
        elif of_estimate.is_alone:
            skipped[stem] = f"the whole mixture of this song; SDR of the estimate {of_estimate.sdr():.1f} dB"
        else:
            kept, leaked = of_estimate.shares()
            scores[stem] = StemScore(
                sdr=of_estimate.sdr(),
                mixture_sdr=of_mixture.sdr(),
                si_sdr=of_estimate.si_sdr(),
                kept=kept,
                leaked=leaked,
                oracle_sdr=of_oracle.sdr() if oracle else None,
            )
    lengths = {stem: feed.frames for stem, feed in estimates.items() if feed.frames != mixture.frames}
    warnings = (f"{stem} has {n} frames, the mixture {mixture.frames}" for stem, n in lengths.items())
    return scores, skipped, tuple(warnings)


def _ideal_ratio_masked(truths: Mapping[str, Samples], mixture: Samples) -> dict[str, Samples]:
    """The mixture through each stem's ideal ratio mask: its share of the true stems' summed magnitudes."""
    spectrum = stft(mixture)
    magnitudes = {stem: np.abs(stft(truths[stem])) for stem in STEMS}
    whole = np.sum(list(magnitudes.values()), axis=0) + 1e-8
    magnitudes[ACCOMPANIMENT] = whole - magnitudes[VOCALS]
    return {
        stem: istft(spectrum * (magnitude / whole), length=mixture.shape[1])
        for stem, magnitude in magnitudes.items()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
