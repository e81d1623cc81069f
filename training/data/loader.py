"""From the `data` config to batches: songs, targets, and the examples of each step.

Example `i` of a step depends only on (seed, step, i), not on the number of workers or processes, nor on whether the
run was resumed.
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

from tfswa_sep.constants import STEMS
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.multitrack import names_without
from tfswa_sep.inference.metadata import is_stem_name
from tfswa_sep.inference.stem_matrix import parse_stems
from tfswa_sep.model.config import ModelConfig
from training.data import folder, musdb
from training.data.cache import CachedTrack, build_cache
from training.data.chunks import SongChunks
from training.data.tracks import Track, decode, to_float
from training.mixing.mixer import Mixer
from training.mixing.settings import MixSettings
from training.stop import ignore_stop_signals

Batch = tuple[Tensor, Tensor, Tensor]  # mixtures (b, c, n), stems (b, s, c, n), known stems (b, s)


class Examples(Protocol):
    """A source of training examples."""

    seed: int

    def example(self, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,): arrays or tensors.

        `rng` is the only source of randomness.
        """
        ...


class Batches(Dataset[Batch]):
    """Batches by step: `count` examples of each, beginning with number `first`."""

    def __init__(self, examples: Examples, *, count: int, first: int = 0) -> None:
        self.examples, self.count, self.first = examples, count, first

    def __getitem__(self, step: int) -> Batch:
        examples = [
            self.examples.example(np.random.default_rng((self.examples.seed, step, i)))
            for i in range(self.first, self.first + self.count)
        ]
        mixture, stems, known = (
            torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*examples, strict=True)
        )
        return mixture, stems, known


def load_batches(
    examples: Examples, steps: range, *, count: int, first: int, workers: int
) -> Iterator[Batch]:
    """The batches of `steps`, prepared ahead of time by `workers` processes (0: in this one)."""
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
    """What a run trains and validates on."""

    targets: tuple[str, ...]  # what the network estimates
    matrix: Tensor  # (k targets, s stems) of zeros and ones
    draw: Callable[[float], Examples]  # seconds -> examples of that length
    valid: dict[str, Callable[[], Tensor]]  # song -> reads its stems (s, c, n)

    @property
    def adds_up(self) -> bool:
        """Whether the targets sum to the mixture: each stem is in exactly one."""
        return bool((self.matrix.sum(dim=0) == 1).all())


def open_data(
    config: DictConfig, targets: tuple[str, ...], *, seed: int, device: torch.device | str = "cpu"
) -> TrainingData:
    """Open the songs of the `data` config, decoding those that are not cached.

    Args:
        config: The `data` section.
        targets: Used if the config names none.
        seed: Of the examples.
        device: Where the open corpus is kept and mixed; worker processes can mix on the CPU only.

    Raises:
        InputError: Songs are missing or cannot be read.
        UsageError: A target is unknown.
    """
    kind, stems = config.get("kind", "open"), tuple[str, ...]()
    if kind == "open":
        settings = MixSettings(**cast(dict[str, Any], OmegaConf.to_container(config.mix)))
        pools, stems = Path(config.pools), STEMS

        def draw(seconds: float) -> Examples:
            return Mixer(pools, replace(settings, seconds=seconds), seed=seed, device=device)

        valid = _folder_readers(Path(config.valid), stems, config.valid_exclude) if config.valid else {}
    else:
        tracks, stems, held_out = _find_tracks(config, kind)

        def draw(seconds: float) -> Examples:
            return SongChunks(tracks, seconds=seconds, seed=seed, anywhere=config.anywhere)

        valid = {track.name: _cache_reader(track) for track in held_out}
    names, matrix = parse_stems(list(config.get("targets") or targets), stems)
    if unusable := [name for name in names if not is_stem_name(name)]:
        raise UsageError(
            f"{unusable[0]!r} is not a valid stem name: names in data.targets consist of up to 48 lower-case letters,"
            " digits, - and _, with + for sums"
        )
    matrix = matrix[:, :-1] + matrix[:, -1:]  # a song is the sum of its stems
    if empty := [name for name, row in zip(names, matrix, strict=True) if not row.any()]:
        raise UsageError(
            f"data.targets contains {empty[0]!r}, but the songs only have the stems {', '.join(stems)}"
        )
    return TrainingData(targets=names, matrix=torch.from_numpy(matrix), draw=draw, valid=valid)


def seconds_of(config: DictConfig) -> float:
    """Length of an example in the `data` config; see `whole_seconds`."""
    return float(config.mix.seconds if config.get("kind", "open") == "open" else config.seconds)


def whole_seconds(seconds: float, shape: ModelConfig) -> float:
    """The length nearest to `seconds` whose frames the network need not pad, or `seconds` itself if it fits.

    Padding costs time (for 6 s, 7 % of a step of `small` and 15 % of `paper`) and enters the batch norms.
    """
    frames, multiple = round(seconds * shape.sample_rate) // shape.hop + 1, shape.frame_multiple
    if frames % multiple == 0:
        return seconds
    return (max(round(frames / multiple), 1) * multiple - 1) * shape.hop / shape.sample_rate


def _find_tracks(
    config: DictConfig, kind: str
) -> tuple[list[CachedTrack], tuple[str, ...], list[CachedTrack]]:
    """Tracks to train on, the names of their stems, and tracks to validate on."""
    root, cache = Path(config.root), Path(config.cache)
    held_out: list[Track] = []
    if kind in ("musdb18", "musdb18hq"):
        if config.split not in ("official", "all"):
            raise InputError(f"unknown data.split {config.split!r}: choose official or all")
        tracks, stems = musdb.find_tracks(root, "train", is_wav=kind == "musdb18hq")
        official, _ = musdb.find_tracks(root, "valid", is_wav=kind == "musdb18hq")
        if config.valid:
            held_out = _held_out(Path(config.valid), stems, config.valid_exclude, known_from=str(root))
        elif config.split == "official":
            held_out = official
        if config.split == "all":
            tracks = [*tracks, *official]
    elif kind == "folder":
        tracks, stems = folder.find_tracks(root)
        if config.valid:
            held_out = _held_out(Path(config.valid), stems, config.valid_exclude, known_from=str(root))
    else:
        raise InputError(f"unknown data.kind {kind!r}: choose open, musdb18, musdb18hq or folder")
    build = config.build_workers
    return (
        build_cache(tracks, stems, cache / "train", workers=build),
        stems,
        build_cache(held_out, stems, cache / "valid", workers=build),
    )


def _held_out(root: Path, stems: tuple[str, ...], exclude: str | None, *, known_from: str) -> list[Track]:
    """The tracks of a folder to validate on, except those whose names match the glob `exclude`.

    Raises InputError for a stem that the training songs (`known_from`) lack: it would be missing in the mixture.
    """
    tracks, names = folder.find_tracks(root)
    kept = names_without((track.name for track in tracks), exclude)
    if unknown := sorted(set(names) - set(stems)):
        raise InputError(f"{root} has a stem {unknown[0]!r}: {known_from} has only {', '.join(stems)}")
    return [track for track in tracks if track.name in kept]


def _cache_reader(track: CachedTrack) -> Callable[[], Tensor]:
    return lambda: torch.from_numpy(to_float(track.samples))


def _folder_readers(
    root: Path, stems: tuple[str, ...], exclude: str | None
) -> dict[str, Callable[[], Tensor]]:
    """Functions that decode the songs of a folder. Raises InputError as `_held_out` does."""

    def reader(track: Track) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(to_float(decode(track, stems)))

    tracks = _held_out(root, stems, exclude, known_from="the open corpus")
    return {track.name: reader(track) for track in tracks}
