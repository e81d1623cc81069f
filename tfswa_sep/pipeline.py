"""The way of a song through a model into files.

    open_audio -> blocks at the model's rate -> overlap_add(backend) -> StemWriter

Memory does not grow with the song: blocks stream from one end to the other. Loudness is never changed, unless
`rescale` asks for it. Axis letters: s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio import tags
from tfswa_sep.audio.decode import AudioReader, open_audio
from tfswa_sep.audio.formats import AudioFormat, find_format
from tfswa_sep.audio.resample import Samples
from tfswa_sep.audio.stem_mp4 import EXTENSION, check_stem_file
from tfswa_sep.audio.stem_paths import NAME_TEMPLATE, check_target, target_paths, track_name
from tfswa_sep.audio.stem_writer import StemWriter, Written
from tfswa_sep.errors import UsageError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.stem_matrix import parse_stems

Progress = Callable[[float, float | None], None]  # (seconds done, seconds in all or None where unknown)
# Blocks (c, n) at the model's rate, the (k, s) matrix of stems and the song's channels -> blocks (k, c, n)
Process = Callable[[Iterable[Samples], NDArray[np.float32], int], Iterator[Samples]]


class FileOptions(TypedDict, total=False):
    """How a song is read and its stems are written; see separate_song for each."""

    out: str | Path
    track: str | None
    name: str
    stems: str | Sequence[str] | None
    audio_format: str
    bit_depth: str | None
    bitrate: int | None
    rescale: bool
    exact_sum: bool
    stem_file: bool
    downmix: bool
    allow_truncated: bool
    overwrite: bool
    keep: Collection[str]


@dataclass(frozen=True, kw_only=True)
class SeparationResult:
    """What separate_song wrote."""

    files: dict[str, Path]  # stem -> file
    seconds: float  # length of the song
    sample_rate: int  # Hz, of the files
    clipped: dict[str, int]  # stem -> samples cut off at full scale, all channels together
    gain: float  # common gain that rescale applied to all stems, 1.0 for none
    model: str
    backend: str
    device: str
    precision: str  # of the network's numbers, "" where that is not on record
    warnings: tuple[str, ...]  # one line each
    stem_file: Path | None = None  # all stems as one file, if that was asked for


def separate_song(
    path: str | Path,
    model: Backend,
    process: Process,
    *,
    model_name: str,
    out: str | Path = ".",
    track: str | None = None,
    name: str = NAME_TEMPLATE,
    stems: str | Sequence[str] | None = None,
    audio_format: str = "wav",
    bit_depth: str | None = None,
    bitrate: int | None = None,
    rescale: bool = False,
    exact_sum: bool = False,
    stem_file: bool = False,
    downmix: bool = False,
    allow_truncated: bool = False,
    overwrite: bool = True,
    keep: Collection[str] = (),
    on_progress: Progress | None = None,
) -> SeparationResult:
    """Separate a song into files with its own sample rate, channels and length, all of them or none.

    out: the folder.  name: template of the files' paths in it, see stems.target_paths.
    track: what the song is called there, None for its file's name.
    stems: see stems.parse_stems, None for all.
    audio_format: "wav", "flac", "mp3", "ogg", "opus" or "m4a".
    bit_depth: "32f" (wav), "24" or "16"; None for 32f in wav and 24 in flac.
    bitrate: kbit/s of mp3, ogg, opus and m4a; None for a high one.
    rescale: bring too loud stems under full scale by one common gain, where files would clip.
    exact_sum: the last stem becomes what the others leave of the song, so that all add up to it exactly.
    stem_file: write all stems as one Native Instruments file too, see stem_file.py.
    downmix, allow_truncated: see audio.open_audio.
    overwrite: False refuses to replace files of an earlier run.
    keep: real paths of files that are never replaced, such as the other songs of a batch.
    Raises InputError, UsageError, ModelError, DeviceError or OutputError; then nothing is left behind.
    """
    encoding = find_format(audio_format, bit_depth, bitrate)
    with ExitStack() as opened:
        song = opened.enter_context(open_audio(path, downmix=downmix, allow_truncated=allow_truncated))
        names, mix = parse_stems(stems, model.stems)
        track = track or track_name(song.path)
        targets = target_paths(
            song.path,
            names,
            out=Path(out),
            extension=encoding.extension,
            template=name,
            track=track,
            keep=keep,
        )
        joined = None
        if stem_file:
            check_stem_file(names)
            joined = next(iter(targets.values())).parent / f"{track}{EXTENSION}"
            check_target(joined, song.path, keep)
        rate = encoding.nearest_rate(song.sample_rate)
        song_again = None
        if exact_sum:
            _check_exact_sum(mix, encoding, rescale=rescale)
            again = opened.enter_context(open_audio(path, downmix=downmix, allow_truncated=allow_truncated))
            song_again = again.blocks(rate, song.channels)
        writer = StemWriter(
            targets,
            audio_format=encoding,
            rate=rate,
            model_rate=model.sample_rate,
            channels=song.channels,
            frames=None if song.frames is None else _at_rate(song.frames, song.sample_rate, rate),
            rescale=rescale,
            overwrite=overwrite,
            mix=song_again,
            remainder=names[-1],
            stem_file=joined,
            tags=tags.read_tags(song.path),
            cover=tags.read_cover(song.path),
        )
        with writer:
            done = 0
            for block in process(song.blocks(model.sample_rate, model.channels), mix, song.channels):
                writer.write(block)
                done += block.shape[-1]
                if on_progress:
                    total = None if song.frames is None else song.frames / song.sample_rate
                    on_progress(done / model.sample_rate, total)
            written = writer.commit(_at_rate(song.decoded, song.sample_rate, rate))
        return SeparationResult(
            files=written.files,
            seconds=song.decoded / song.sample_rate,
            sample_rate=rate,
            clipped=written.clipped,
            gain=written.gain,
            model=model_name,
            backend=model.name,
            device=model.device,
            precision=model.precision,
            warnings=(
                *_warnings(song, rate, audio_format, written, exact_sum=exact_sum),
                *model.notes,
            ),
            stem_file=joined,
        )


def _at_rate(frames: int, rate: int, wanted: int) -> int:
    return frames if rate == wanted else max(1, round(frames * wanted / rate))


def _check_exact_sum(mix: NDArray[np.float32], encoding: AudioFormat, *, rescale: bool) -> None:
    if encoding.is_lossy or rescale:
        with_what = "--rescale" if rescale else f"lossy {encoding.container} files"
        raise UsageError(f"stems cannot add up exactly with {with_what}: leave out --exact-sum, or the other")
    if not (mix.sum(axis=0) == 1).all():
        raise UsageError(
            "--exact-sum needs stems that make up the whole song, each once, "
            "such as the default or vocals,accompaniment: change --stems"
        )


def _warnings(
    song: AudioReader, rate: int, audio_format: str, written: Written, *, exact_sum: bool
) -> Iterator[str]:
    if song.missing:
        yield f"{song.path} {song.missing}: {song.decoded / song.sample_rate:.2f} s of it were separated"
    if song.peak == 0:
        yield f"{song.path} is silent, so its stems are silent too"
    if rate != song.sample_rate:
        yield f"{audio_format} files cannot hold {song.sample_rate} Hz: the stems have {rate} Hz"
    if clipped := {stem: count for stem, count in written.clipped.items() if count}:
        counts = ", ".join(f"{stem} {count}" for stem, count in clipped.items())
        then = ", so there the stems do not add up to the song" if exact_sum else ""
        yield f"samples above full scale were clipped ({counts}){then}: use 32f or rescale to keep them"
    if written.gain < 1:
        yield f"all stems were made quieter by {-20 * np.log10(written.gain):.2f} dB, so that none clips"
    if not tags.can_write_covers() and tags.may_have_cover(song.path):
        yield 'covers are not copied without mutagen: pip install "tfswa-sep[tags]"'
