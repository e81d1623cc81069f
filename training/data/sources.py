"""Datasets: finding and opening their songs, and drawing examples from several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from tfswa_sep.constants import STEMS
from tfswa_sep.errors import InputError, UsageError
from training.data import folder, musdb
from training.data.cache import CachedTrack, build_cache
from training.data.chunks import SongChunks, StemMixes
from training.data.tracks import Track
from training.mixing.mixer import Mixer
from training.mixing.settings import MixSettings


class Examples(Protocol):
    """A source of training examples."""

    seed: int

    def example(self, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,): arrays or tensors.

        `rng` is the only source of randomness.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset as the config names it."""

    kind: str = "folder"  # or musdb18, musdb18hq, open
    root: str
    type: int = 4  # layout, see training/data/folder.py; musdb18 and musdb18hq can be of type 1 or 4
    split: str = "official"  # or all; only for musdb18 and musdb18hq
    weight: float = 1.0  # share of the examples, relative to the other datasets
    mix: Mapping[str, Any] = field(default_factory=dict)  # changes to MixSettings; only for open


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A dataset that has been found and decoded."""

    stems: tuple[str, ...]
    draw: Callable[[float], Examples]  # seconds -> examples of that length
    held_out: list[Track]  # songs of the official validation split
    about: str


def read_sources(rows: Sequence[Mapping[str, Any]]) -> list[Source]:
    """Parse `data.sources`.

    Raises:
        UsageError: A row has an unknown key, no root, a weight that is not positive, or unusable `mix` settings.
    """
    known = [each.name for each in fields(Source)]
    for row in rows:
        if unknown := sorted(row.keys() - set(known)):
            raise UsageError(f"data.sources: unknown key {unknown[0]!r}, choose from {', '.join(known)}")
        if "root" not in row:
            raise UsageError(f"data.sources: {dict(row)} has no root")
        if not float(row.get("weight", 1)) > 0:
            raise UsageError(f"data.sources: the weight of {row['root']} must be positive")
        if row.get("mix") and row.get("kind") != "open":
            raise UsageError(f"data.sources: {row['root']} has mix settings, which are for kind open only")
        _mix_settings(row.get("mix") or {})
    if not rows:
        raise UsageError("data.sources is empty: add data.sources='[{root: FOLDER}, ...]'")
    return [Source(**row) for row in rows]


def _mix_settings(changes: Mapping[str, Any]) -> MixSettings:
    if "seconds" in changes:
        raise UsageError(
            "data.sources: set data.seconds instead of mix.seconds, since it is for all datasets"
        )
    defaults = OmegaConf.create(asdict(MixSettings()))
    OmegaConf.set_struct(defaults, True)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(defaults, changes))
    except OmegaConfBaseException as error:
        raise UsageError(f"data.sources: unknown setting mix.{error.full_key}") from error
    return MixSettings(**cast(dict[str, Any], merged))


def open_source(
    source: Source, *, cache: Path, workers: int | None, seed: int, anywhere: float
) -> OpenSource:
    """Find the songs of a dataset, and decode those that are not in `cache`.

    Raises:
        InputError: Songs are missing or cannot be read.
        UsageError: The kind, type or split is unknown.
    """
    root = Path(source.root)
    if source.kind == "open":
        settings = _mix_settings(source.mix)

        def mix(seconds: float) -> Examples:
            return Mixer(root, replace(settings, seconds=seconds), seed=seed)

        return OpenSource(stems=STEMS, draw=mix, held_out=[], about=f"open corpus in {root}")
    groups, held_out = _find(source)
    stems = tuple(dict.fromkeys(stem for _, names in groups for stem in names))
    tracks: list[CachedTrack] = []
    for found, names in groups:
        place = cache / "train" / names[0] if source.type in (2, 3) else cache / "train"
        tracks += build_cache(found, names, place, workers=workers)

    def draw(seconds: float) -> Examples:
        if source.type == 4:
            return SongChunks(tracks, seconds=seconds, seed=seed, anywhere=anywhere)
        return StemMixes(tracks, stems, seconds=seconds, seed=seed, anywhere=anywhere)

    what = "recordings" if source.type in (2, 3) else "songs"
    return OpenSource(stems=stems, draw=draw, held_out=held_out, about=f"{len(tracks)} {what} in {root}")


def _find(source: Source) -> tuple[list[tuple[list[Track], tuple[str, ...]]], list[Track]]:
    """Groups of tracks with their stems, and the official validation songs."""
    root = Path(source.root)
    if source.kind in ("musdb18", "musdb18hq"):
        if source.split not in ("official", "all"):
            raise InputError(f"unknown data.split {source.split!r}: choose official or all")
        if source.type not in (1, 4):
            raise UsageError(f"data.type must be 1 or 4 for {source.kind}, not {source.type}")
        is_wav = source.kind == "musdb18hq"
        tracks, stems = musdb.find_tracks(root, "train", is_wav=is_wav)
        official, _ = musdb.find_tracks(root, "valid", is_wav=is_wav)
        if source.split == "all":
            return [([*tracks, *official], stems)], []
        return [(tracks, stems)], official
    if source.kind != "folder":
        raise InputError(f"unknown data.kind {source.kind!r}: choose open, musdb18, musdb18hq or folder")
    if source.type in (1, 4):
        return [folder.find_tracks(root)], []
    if source.type in (2, 3):
        recordings = folder.find_recordings(root) if source.type == 2 else folder.read_list(root)
        return [(tracks, (stem,)) for stem, tracks in recordings.items()], []
    raise UsageError(f"unknown data.type {source.type!r}: choose 1, 2, 3 or 4")


def cache_folder(cache: Path, source: Source) -> Path:
    """A folder in `cache` for one of several datasets."""
    root = Path(source.root).resolve()
    return cache / folder.unique_name(root, root.name)


class WeightedExamples:
    """Draws each example from one of several datasets, in proportion to their weights.

    A stem that a dataset lacks is unknown in its examples, and silent.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Examples, tuple[str, ...]]],
        weights: Sequence[float],
        stems: Sequence[str],
        *,
        seed: int,
    ) -> None:
        self.seed, self.count = seed, len(stems)
        self._parts = [(examples, [stems.index(stem) for stem in own]) for examples, own in parts]
        self._shares = np.array(weights) / sum(weights)

    def example(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,)."""
        examples, places = self._parts[int(rng.choice(len(self._parts), p=self._shares))]
        mixture, own, own_known = (torch.as_tensor(part) for part in examples.example(rng))
        stems = torch.zeros(self.count, *own.shape[1:])
        known = torch.zeros(self.count)
        stems[places], known[places] = own, own_known
        return mixture, stems, known
