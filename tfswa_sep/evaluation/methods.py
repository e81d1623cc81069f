"""Sources of estimates: a model, a folder of stems from any tool, or a baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from tfswa_sep import registry
from tfswa_sep.audio.resample import Samples
from tfswa_sep.constants import (
    ACCOMPANIMENT,
    BLOCK_SAMPLES,
    MODEL_CHANNELS,
    OF_OTHER,
    OTHER,
    SAMPLE_RATE,
    STEMS,
    VOCALS,
)
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.multitrack import (
    BLOCK_SECONDS,
    MIXTURE,
    Feed,
    Song,
    stem_files,
)  # fmt: skip
from tfswa_sep.evaluation.results import BASELINE, MethodScores
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.ensemble import Ensemble
from tfswa_sep.inference.hardware import prefers_int8
from tfswa_sep.inference.stem_matrix import with_accompaniment
from tfswa_sep.inference.stft_numpy import istft, stft
from tfswa_sep.options import OutputOptions, Runtime
from tfswa_sep.separator import Separator, Stems

Progress = Callable[[float], None]  # seconds of the song done


@dataclass(frozen=True)
class Estimates:
    """The estimated stems of one song."""

    files: dict[str, list[Path]]  # stem -> the files whose sum is its estimate
    seconds: float | None  # wall clock of the separation; None: they existed already


class Method(Protocol):
    """A source of estimates, song by song."""

    @property
    def rate(self) -> int:
        """Sample rate in Hz at which its estimates are scored."""

    def described(self) -> MethodScores:
        """Its entry in the record, without songs."""

    def estimate(self, song: Song, mixture: Path, folder: Path, on_progress: Progress) -> Estimates:
        """Estimate the stems of `song`.

        Args:
            song: For its true stems and its name.
            mixture: The mixture as a file.
            folder: An empty folder for the stems.
            on_progress: Called with the seconds done.

        Raises:
            TfswaError: The estimates cannot be made or found.
        """


class ModelMethod:
    """Separation with a model; guitar and piano count as `other` where the song has no such stems."""

    def __init__(
        self,
        model: str | Path | registry.ModelInfo | Backend,
        *,
        runtime: Runtime = Runtime(precision="fp32"),
        out: Path | None = None,
        live: str | None = None,
    ) -> None:
        """`out`: folder to keep the stems in, as <song>/<stem>.wav; `live`: separate as live, with this latency."""
        info = registry.find_model(model) if isinstance(model, str | Path) else model
        if isinstance(info, registry.ModelInfo):
            prefer_int8 = prefers_int8(runtime)
            info = registry.with_precision(info, runtime.precision, prefer_int8=prefer_int8)
        self._separator = Separator(info, runtime=runtime)
        self._threads, self.out, self._live = runtime.threads, out, live
        loaded = self._separator.backend
        self._stems = with_accompaniment(loaded.stems)
        self._sha256 = _digest(info, loaded) if isinstance(info, registry.ModelInfo) else None
        self._name = info.name if runtime.shifts == 1 else f"{info.name}, {runtime.shifts} shifts"
        self._name += f", live, {live} latency" if live else ""

    @property
    def rate(self) -> int:
        """The model's sample rate."""
        return self._separator.backend.sample_rate

    def described(self) -> MethodScores:
        """The model file and how it runs."""
        loaded = self._separator.backend
        return MethodScores(
            self._name,
            "model",
            sha256=self._sha256,
            backend=loaded.name,
            device=loaded.device,
            precision=loaded.precision,
            threads=self._threads,
        )

    def estimate(self, song: Song, mixture: Path, folder: Path, on_progress: Progress) -> Estimates:
        """Separate the mixture, and time it."""
        started = time.perf_counter()
        if self._live:
            place = folder if self.out is None else self.out / song.name
            files = self._separate_live(mixture, place, on_progress)
            return Estimates(fold(files, song), time.perf_counter() - started)
        result = self._separator.separate_file(
            mixture,
            OutputOptions(
                out=folder if self.out is None else self.out / song.name,
                stems=self._stems,
                name="{stem}{ext}",
            ),
            on_progress=lambda done, _: on_progress(done),
        )
        spent = time.perf_counter() - started
        return Estimates(fold({stem: [path] for stem, path in result.files.items()}, song), spent)

    def _separate_live(self, mixture: Path, place: Path, on_progress: Progress) -> dict[str, list[Path]]:
        """Push the mixture through live separation, and write the stems without its delay."""
        assert self._live is not None
        live, feed = self._separator.live(self._live, stems=self._stems), Feed([mixture], self.rate)
        parts: list[Stems] = []
        while not feed.ended:
            parts.append(live.push(feed.take(BLOCK_SAMPLES)))
            on_progress(min(len(parts) * BLOCK_SAMPLES, feed.frames) / self.rate)
        parts.append(live.push(np.zeros((live.channels, live.delay_samples), np.float32)))
        start = live.delay_samples
        stems = {
            stem: np.concatenate([part[stem] for part in parts], axis=1)[:, start : start + feed.frames]
            for stem in live.names
        }
        files = self._separator.save(Stems(stems, sample_rate=self.rate), place)
        return {stem: [path] for stem, path in files.items()}


def fold(estimates: Mapping[str, Sequence[Path]], song: Song) -> dict[str, list[Path]]:
    """The estimates, with guitar and piano as part of `other` if the song's true stems do not set them apart."""
    folded = {stem: list(paths) for stem, paths in estimates.items()}
    if OTHER in folded and OTHER in song.stems:
        for stem in OF_OTHER:
            if stem not in song.stems:
                folded[OTHER] += folded.pop(stem, [])
    return folded


def _digest(info: registry.ModelInfo, loaded: Backend | Ensemble) -> str:
    """The SHA-256 of the model's file or, if there are several, of their digests."""
    networks = loaded.models if isinstance(loaded, Ensemble) else (loaded,)
    digests = [
        registry.digest(path)
        for member, network in zip(info.members or (info,), networks, strict=True)
        for path in registry.fetch_all(member, network.name)
    ]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class FolderMethod:
    """Stems from any tool: `<song>/<stem>.<suffix>`, also below `test/` or `train/` as in museval.

    Missing stems and songs are not scored. The accompaniment is `accompaniment.*` or `instrumental.*`, else the sum
    of all stems but the vocals if there are all of them. Guitar and piano count as `other` where the song has no such
    stems.
    """

    folder: Path
    name: str
    alone: bool = False  # there is one song: `folder` may hold its stems
    rate: int = SAMPLE_RATE

    def described(self) -> MethodScores:
        """Its name."""
        return MethodScores(self.name, "estimates")

    def place(self, song: Song) -> Path:
        """The folder of the song's stems. Raises InputError if there are several."""
        places = [self.folder / part / song.name for part in ("", "test", "train")]
        found = [path for path in places if path.is_dir()]
        if len(found) > 1:
            raise InputError(f"{found[0]} and {found[1]} hold stems of the same song: remove one")
        return found[0] if found else self.folder if self.alone else places[0]

    def estimate(self, song: Song, mixture: Path, folder: Path, on_progress: Progress) -> Estimates:
        """The existing files; none for a song without a folder. Raises InputError if the folder has no stems."""
        place = self.place(song)
        if not place.is_dir():
            return Estimates({}, None)
        files = stem_files(place)
        order = [stem for stem in (*song.stems, ACCOMPANIMENT) if stem in files]
        estimates = fold(
            {stem: [files[stem]] for stem in dict.fromkeys([*order, *files]) if stem != MIXTURE}, song
        )
        if not estimates:
            raise InputError(f"no stems in {place}: expected files such as vocals.wav")
        for stems in (song.stems, STEMS):
            rest = [estimates[stem] for stem in stems if stem != VOCALS and stem in estimates]
            if VOCALS in song.stems and ACCOMPANIMENT not in estimates and len(rest) == len(stems) - 1:
                estimates[ACCOMPANIMENT] = [path for paths in rest for path in paths]
        return Estimates(estimates, None)


def check_outputs(methods: Sequence[Method], songs: Sequence[Song]) -> None:
    """Raise UsageError if a model's stems would overwrite true stems or those of another tool."""
    files = [path for song in songs for path in song.files.values()]
    inputs = {folder for path in files for folder in (path.parent, path.resolve().parent)}
    inputs |= {method.place(song) for method in methods if isinstance(method, FolderMethod) for song in songs}
    inputs = {folder for folder in inputs if folder.is_dir()}
    outs = [method.out for method in methods if isinstance(method, ModelMethod) and method.out is not None]
    for place in (out / song.name for out in outs for song in songs):
        if place.is_dir() and any(place.samefile(folder) for folder in inputs):
            raise UsageError(f"the stems in {place} would be overwritten: choose another --out")


def check_estimates(methods: Sequence[Method], songs: Sequence[Song]) -> None:
    """Raise InputError if a folder of estimates has none of the songs."""
    for method in methods:
        if isinstance(method, FolderMethod) and not any(method.place(song).is_dir() for song in songs):
            raise InputError(
                f"no estimates of the song {songs[0].name!r} or any other: {method.place(songs[0])} is not a folder"
            )


@dataclass(frozen=True)
class MixtureBaseline:
    """The mixture as the estimate of every stem: a lower bound."""

    name: str = "mixture"
    rate: int = SAMPLE_RATE

    def described(self) -> MethodScores:
        """A baseline."""
        return MethodScores(self.name, BASELINE)

    def estimate(self, song: Song, mixture: Path, folder: Path, on_progress: Progress) -> Estimates:
        """The mixture, for every stem."""
        return Estimates({stem: [mixture] for stem in with_accompaniment(song.stems)}, None)


@dataclass(frozen=True)
class OracleBaseline:
    """The mixture through oracle masks: an upper bound for masking magnitudes.

    The ratio mask is a stem's share of the summed magnitudes; the binary mask is 1 where the stem is the loudest,
    and for vocals where they are louder than the accompaniment. Computed in blocks of ten seconds.
    """

    binary: bool
    rate: int = SAMPLE_RATE

    @property
    def name(self) -> str:
        """Name in tables."""
        return "oracle binary mask" if self.binary else "oracle ratio mask"

    def described(self) -> MethodScores:
        """A baseline."""
        return MethodScores(self.name, BASELINE)

    def estimate(self, song: Song, mixture: Path, folder: Path, on_progress: Progress) -> Estimates:
        """Write the masked mixture."""
        truths, mixed = song.truths(self.rate), Feed([mixture], self.rate)
        files = {stem: [folder / f"{stem}.wav"] for stem in with_accompaniment(song.stems)}
        writers = {
            stem: soundfile.SoundFile(path, "w", self.rate, MODEL_CHANNELS, subtype="FLOAT", format="WAV")
            for stem, (path,) in files.items()
        }
        written = 0
        while not mixed.ended:
            size = BLOCK_SECONDS * self.rate
            block = mixed.take(size)
            true = {stem: feed.take(size) for stem, feed in truths.items()}
            for stem, samples in self._masked(block, true).items():
                writers[stem].write(samples[:, : mixed.frames - written].T)
            written += size
            on_progress(min(written, mixed.frames) / self.rate)
        for writer in writers.values():
            writer.close()
        return Estimates(files, None)

    def _masked(self, mixture: Samples, true: dict[str, Samples]) -> dict[str, Samples]:
        spectrum = stft(mixture)
        sizes = {stem: np.abs(stft(samples)) for stem, samples in true.items()}
        if self.binary:
            loudest = np.max(list(sizes.values()), axis=0)
            masks = {stem: (size >= loudest) & (loudest > 0) for stem, size in sizes.items()}
            if VOCALS in true:
                rest = np.sum([samples for stem, samples in true.items() if stem != VOCALS], axis=0)
                masks[VOCALS] = sizes[VOCALS] > np.abs(stft(rest))
                masks[ACCOMPANIMENT] = ~masks[VOCALS]
        else:
            whole = np.sum(list(sizes.values()), axis=0) + 1e-8
            masks = {stem: size / whole for stem, size in sizes.items()}
            if VOCALS in true:
                masks[ACCOMPANIMENT] = 1 - masks[VOCALS]
        return {
            stem: istft((spectrum * mask).astype(np.complex64), length=mixture.shape[1])
            for stem, mask in masks.items()
        }
