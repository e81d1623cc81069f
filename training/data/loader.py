"""From the `data` config to batches: songs, targets, and the examples of each step.

Example `i` of batch `step` depends only on (seed, step, i), not on the number of workers or processes, or on
whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.multitrack import names_without
from tfswa_sep.inference.metadata import is_stem_name
from tfswa_sep.inference.stem_matrix import parse_stems
from tfswa_sep.model.config import ModelConfig
from training.data import folder, musdb
from training.data.cache import CachedTrack, build_cache
from training.data.chunks import SongChunks
from training.data.tracks import Track, decode
from training.mixing.mixer import STEMS, Mixer
from training.mixing.settings import MixSettings
from training.stop import ignore_stop_signals

Batch = tuple[Tensor, Tensor, Tensor]  # mixtures (b, c, n), stems (b, s, c, n), which are known (b, s)


class Examples(Protocol):
    """What draws one mixture (c, n), its stems (s, c, n), and which of them are known (s,)."""

    seed: int

    def example(self, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """One example, of numpy arrays or of tensors, by nothing but `rng`."""
        ...


class Batches(Dataset[Batch]):
    """Batches by step: `count` examples from the `first` of each step's on."""

    def __init__(self, examples: Examples, *, count: int, first: int = 0) -> None:
        self.examples, self.count, self.first = examples, count, first

    def __getitem__(self, step: int) -> Batch:
        drawn = [
            self.examples.example(np.random.default_rng((self.examples.seed, step, i)))
            for i in range(self.first, self.first + self.count)
        ]
        mixture, stems, known = (
            torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*drawn, strict=True)
        )
        return mixture, stems, known


def load_batches(
    examples: Examples, steps: range, *, count: int, first: int, workers: int
) -> Iterator[Batch]:
    """The batches of `steps`, made by `workers` processes ahead of time (0: in this one)."""
    yield from DataLoader(
        Batches(examples, count=count, first=first),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=ignore_stop_signals,
        pin_memory=bool(workers) and torch.cuda.is_available(),
    )


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run learns from."""

    targets: tuple[str, ...]  # what the network puts out
    matrix: Tensor  # (k targets, s stems) of zeros and ones
    draw: Callable[[float], Examples]  # seconds -> examples of that length
    valid: dict[str, Callable[[], Tensor]]  # song -> its stems (s, c, n)

    @property
    def adds_up(self) -> bool:
        """Every stem is in exactly one target, so that targets sum to the mixture."""
        return bool((self.matrix.sum(dim=0) == 1).all())


def open_data(
    config: DictConfig, targets: tuple[str, ...], *, seed: int, device: torch.device | str = "cpu"
) -> TrainingData:
    """The songs of the `data` config, decoded if they are not; `targets` where the config names none.

    device: where the open corpus is kept and mixed; a process of its own can mix on the CPU alone.
    Raises InputError for songs that are not there or cannot be read, UsageError for an unknown target.
    """
    kind, stems = config.get("kind", "open"), tuple[str, ...]()
    if kind == "open":
        settings = MixSettings(**cast(dict[str, Any], OmegaConf.to_container(config.mix)))
        pools, stems = Path(config.pools), STEMS

        def draw(seconds: float) -> Examples:
            return Mixer(pools, replace(settings, seconds=seconds), seed=seed, device=device)

        valid = _folder_songs(Path(config.valid), stems, config.valid_exclude) if config.valid else {}
    else:
        tracks, stems, held_out = _find(config, kind)

        def draw(seconds: float) -> Examples:
            return SongChunks(tracks, seconds=seconds, seed=seed, anywhere=config.anywhere)

        valid = {track.name: _reader(track) for track in held_out}
    names, matrix = parse_stems(list(config.get("targets") or targets), stems)
    if unusable := [name for name in names if not is_stem_name(name)]:
        raise UsageError(
            f"{unusable[0]!r} is not a valid stem name: data.targets may contain lower-case letters, digits, - and _,"
            " with + for sums, up to 48 characters"
        )
    matrix = matrix[:, :-1] + matrix[:, -1:]  # a song is the sum of its stems
    if empty := [name for name, row in zip(names, matrix, strict=True) if not row.any()]:
        raise UsageError(
            f"the songs have no stem {empty[0]!r}, which is in data.targets: they have {', '.join(stems)}"
        )
    return TrainingData(targets=names, matrix=torch.from_numpy(matrix), draw=draw, valid=valid)


def seconds_of(config: DictConfig) -> float:
    """How long the `data` config wants an example to be; see `whole_seconds`."""
    return float(config.mix.seconds if config.get("kind", "open") == "open" else config.seconds)


def whole_seconds(seconds: float, shape: ModelConfig) -> float:
    """The length nearest to `seconds` whose frames the network need not pad; itself where it is one.

    Padding takes time (6 s: 7 % of a step of `small`, 15 % of `paper`), and batch norms count it.
    """
    frames, multiple = round(seconds * shape.sample_rate) // shape.hop + 1, shape.frame_multiple
    if frames % multiple == 0:
        return seconds
    return (max(round(frames / multiple), 1) * multiple - 1) * shape.hop / shape.sample_rate


def _find(config: DictConfig, kind: str) -> tuple[list[CachedTrack], tuple[str, ...], list[CachedTrack]]:
    """Tracks to train on, the names of their stems, and tracks to validate on."""
    root, cache = Path(config.root), Path(config.cache)
    held_out: list[Track] = []
    if kind in ("musdb18", "musdb18hq"):
        if config.split not in ("official", "all"):
            raise InputError(f"unknown data.split {config.split!r}: choose official or all")
        tracks, stems = musdb.find_tracks(root, "train", is_wav=kind == "musdb18hq")
        official, _ = musdb.find_tracks(root, "valid", is_wav=kind == "musdb18hq")
        if config.valid:
            why = f" that {root} does not have"
            held_out = _held_out(Path(config.valid), stems, config.valid_exclude, why=why)
        elif config.split == "official":
            held_out = official
        if config.split == "all":
            tracks = [*tracks, *official]
    elif kind == "folder":
        tracks, stems = folder.find_tracks(root)
        if config.valid:
            why = f" that no song of {root} has"
            held_out = _held_out(Path(config.valid), stems, config.valid_exclude, why=why)
    else:
        raise InputError(f"unknown data.kind {kind!r}: choose open, musdb18, musdb18hq or folder")
    build = config.build_workers
    return (
        build_cache(tracks, stems, cache / "train", workers=build),
        stems,
        build_cache(held_out, stems, cache / "valid", workers=build),
    )


def _held_out(root: Path, stems: tuple[str, ...], exclude: str | None, *, why: str) -> list[Track]:
    """The tracks of a folder to validate on, those whose names match the glob `exclude` left out.

    Raises InputError, which `why` ends, for a stem that is not one of `stems`: the mixture would lack it.
    """
    tracks, found = folder.find_tracks(root)
    kept = names_without((track.name for track in tracks), exclude)
    tracks = [track for track in tracks if track.name in kept]
    if unknown := sorted(set(found) - set(stems)):
        raise InputError(f"{root} has a stem {unknown[0]!r}{why}")
    return tracks


def _reader(track: CachedTrack) -> Callable[[], Tensor]:
    def read() -> Tensor:
        return torch.from_numpy(track.samples.transpose(1, 2, 0).astype(np.float32) / 32_768)

    return read


def _folder_songs(root: Path, stems: tuple[str, ...], exclude: str | None) -> dict[str, Callable[[], Tensor]]:
    """The songs of a folder, read when they are asked for. Raises InputError as `_held_out` does."""
    tracks = _held_out(root, stems, exclude, why=f": the open corpus has only {', '.join(stems)}")

    def reader(track: Track) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(decode(track, stems).transpose(1, 2, 0).astype(np.float32) / 32_768)

    return {track.name: reader(track) for track in tracks}
