"""From the `data` config to batches: songs, targets, and the examples of each step.

Example `i` of a step depends only on (seed, step, i), not on the number of workers or processes, nor on whether the
run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

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
from training.data import folder
from training.data.cache import CachedTrack, build_cache
from training.data.sources import (
    Examples,
    Source,
    WeightedExamples,
    cache_folder,
    open_source,
    read_sources,
)
from training.data.tracks import Track, decode, to_float
from training.mixing.mixer import Mixer
from training.mixing.settings import MixSettings
from training.stop import ignore_stop_signals

Batch = tuple[Tensor, Tensor, Tensor]  # mixtures (b, c, n), stems (b, s, c, n), known stems (b, s)


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
    about: str  # where the examples come from

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
    is_open = config.get("kind", "open") == "open"
    opened = _open_corpus(config, seed=seed, device=device) if is_open else _open_sources(config, seed=seed)
    draw, stems, valid, about = opened
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
    return TrainingData(targets=names, matrix=torch.from_numpy(matrix), draw=draw, valid=valid, about=about)


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


# How to draw examples, the stems, how to read the validation songs, and a description
_Opened = tuple[Callable[[float], Examples], tuple[str, ...], dict[str, Callable[[], Tensor]], str]


def _open_corpus(config: DictConfig, *, seed: int, device: torch.device | str) -> _Opened:
    settings = MixSettings(**cast(dict[str, Any], OmegaConf.to_container(config.mix)))
    pools = Path(config.pools)

    def draw(seconds: float) -> Examples:
        return Mixer(pools, replace(settings, seconds=seconds), seed=seed, device=device)

    valid = _folder_readers(Path(config.valid), STEMS, config.valid_exclude) if config.valid else {}
    return draw, STEMS, valid, f"open corpus in {config.pools}"


def _open_sources(config: DictConfig, *, seed: int) -> _Opened:
    cache, workers = Path(config.cache), config.build_workers
    several = "sources" in config
    if several:
        sources = read_sources(cast(Any, OmegaConf.to_container(config.sources)))
    else:
        sources = [
            Source(
                kind=config.kind, root=config.root, type=config.type, split=config.get("split", "official")
            )
        ]
    opened = [
        open_source(
            source,
            cache=cache_folder(cache, source) if several else cache,
            workers=workers,
            seed=seed,
            anywhere=config.anywhere,
        )
        for source in sources
    ]
    stems = tuple(dict.fromkeys(stem for source in opened for stem in source.stems))

    def draw(seconds: float) -> Examples:
        if len(opened) == 1:
            return opened[0].draw(seconds)
        parts = [(source.draw(seconds), source.stems) for source in opened]
        return WeightedExamples(parts, [source.weight for source in sources], stems, seed=seed)

    about = ", ".join(source.about for source in opened)
    if config.valid:
        roots = ", ".join(source.root for source in sources)
        held_out = _held_out(Path(config.valid), stems, config.valid_exclude, known_from=roots)
    else:
        held_out = [track for source in opened for track in source.held_out]
    cached = build_cache(held_out, stems, cache / "valid", workers=workers)
    return draw, stems, {track.name: _cache_reader(track) for track in cached}, about


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
