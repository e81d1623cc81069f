"""What a batch will take, from a sample of its songs."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from tfswa_sep.audio.atomic_file import temporary_folder
from tfswa_sep.audio.decode import open_audio
from tfswa_sep.cluster import rows
from tfswa_sep.cluster.catalog import Catalog, Song, is_in
from tfswa_sep.cluster.store import Store
from tfswa_sep.cluster.worker import Job, local_copy
from tfswa_sep.errors import InputError, TfswaError
from tfswa_sep.separator import Separator

_SONGS = 10  # that are looked at
_SEPARATED = 2  # of these


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a batch will take.

    Attributes:
        songs: In the catalogue.
        done: Of them by earlier runs.
        sampled: How many were looked at.
        hours: Of music, in the songs that are left.
        bytes_to_read: Of these songs.
        bytes_to_write: Of their stems.
        cpu_hours: On this machine's CPU, with the job's threads.
    """

    songs: int
    done: int
    sampled: int
    hours: float
    bytes_to_read: float
    bytes_to_write: float
    cpu_hours: float


def estimate(catalog: Catalog, job: Job, *, seed: int = 0) -> Estimate:
    """Look at some songs of a catalogue, and separate a few of them to a temporary folder.

    Raises:
        InputError: None of the songs in the sample can be read.
    """
    finished = rows.finished_keys(Store(job.target), job.work)
    generator = random.Random(seed)
    sample: list[Song] = []
    left = 0
    for song in catalog:  # each song that is left gets into the sample with the same probability
        if not job.overwrite and is_in(rows.done_key(song.source, song.version), finished):
            continue
        left += 1
        if len(sample) < _SONGS:
            sample.append(song)
        elif (place := generator.randrange(left)) < _SONGS:
            sample[place] = song
    seconds: list[float] = []
    sizes: list[int] = []
    ratios: list[float] = []  # of CPU time to the song's length
    written: list[float] = []  # bytes per second
    problem = ""
    separator = Separator(job.model, runtime=job.runtime)
    with temporary_folder() as folder:
        for song in sample:
            try:
                path, _ = local_copy(song, folder)
                with open_audio(path, downmix=True, allow_truncated=True) as audio:
                    length = (audio.frames or 0) / audio.sample_rate
                sizes.append(path.stat().st_size)
                if len(ratios) < _SEPARATED:
                    began = time.process_time()
                    result = separator.separate_file(path, replace(job.options, out=folder / "stems"))
                    length = result.seconds
                    ratios.append((time.process_time() - began) / length)
                    written.append(sum(file.stat().st_size for file in result.files.values()) / length)
                seconds.append(length)
            except TfswaError as error:
                problem = str(error)
    if left and not ratios:
        raise InputError(f"none of {len(sample)} sampled songs can be separated: {problem}")
    total = left * sum(seconds) / max(len(seconds), 1)
    return Estimate(
        songs=catalog.songs,
        done=catalog.songs - left,
        sampled=len(seconds),
        hours=total / 3600,
        bytes_to_read=left * sum(sizes) / max(len(sizes), 1),
        bytes_to_write=total * sum(written) / max(len(written), 1),
        cpu_hours=total * sum(ratios) / max(len(ratios), 1) / 3600,
    )
