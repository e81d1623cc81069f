"""The official splits of MUSDB18 (`train/*.stem.mp4`) and MUSDB18-HQ (`train/<song>/<stem>.wav`).

The `musdb` package decides which songs are for validation; see https://sigsep.github.io/datasets/musdb.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tfswa_sep.errors import InputError
from training.data.tracks import Track

Split = Literal["train", "valid", "test"]


def find_tracks(root: Path, split: Split, *, is_wav: bool) -> tuple[list[Track], tuple[str, ...]]:
    """The tracks of a split and the names of their stems. Raises InputError if `root` has none."""
    import musdb  # brings stempeg, which looks for ffmpeg as soon as it is imported

    subset = "test" if split == "test" else "train"
    kind = "MUSDB18-HQ (train/<song>/vocals.wav)" if is_wav else "MUSDB18 (train/*.stem.mp4)"
    if not (root / subset).is_dir():
        raise InputError(f"{root} is not {kind}: it has no folder {subset}")
    database = musdb.DB(
        root=str(root), is_wav=is_wav, subsets=subset, split=None if split == "test" else split
    )
    tracks = [
        Track(
            name=track.name,
            files={stem: (Path(source.path),) for stem, source in track.sources.items()},
            streams=None if is_wav else {stem: source.stem_id for stem, source in track.sources.items()},
        )
        for track in database.tracks
        if track.sources
    ]
    if not tracks:
        raise InputError(f"{root} has no songs of the {split} split of {kind}")
    return tracks, tuple(database.sources_names)
