"""Separate one song into stem files:

    open_audio -> blocks at the model's rate -> separate_blocks -> StemWriter

Blocks stream from one end to the other, so memory use does not depend on the song's length. Loudness is preserved
unless `rescale` is set. Axis letters: s stem of the model, k requested stem, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio import tags
from tfswa_sep.audio.atomic_file import remove_abandoned_once
from tfswa_sep.audio.decode import AudioReader, open_audio
from tfswa_sep.audio.formats import AudioFormat, find_format
from tfswa_sep.audio.reblock import BlockReader
from tfswa_sep.audio.resample import Samples, convert, frames_at, margins, trim
from tfswa_sep.audio.stem_mp4 import EXTENSION, check_stem_file
from tfswa_sep.audio.stem_paths import check_target, default_track_name, target_paths
from tfswa_sep.audio.stem_writer import Record, StemWriter, Written, describe_clipping
from tfswa_sep.errors import OutputError, UsageError, install_command
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.ensemble import Ensemble
from tfswa_sep.inference.separate_blocks import separate_blocks
from tfswa_sep.inference.stem_matrix import adds_up_to_song, parse_stems, shares_of_rest
from tfswa_sep.options import OutputOptions

Progress = Callable[[float, float | None], None]  # (seconds done, seconds in total or None if unknown)


@dataclass(frozen=True, kw_only=True)
class SeparationResult:
    """What separate_song wrote."""

    files: dict[str, Path]  # stem -> file
    seconds: float  # length of the song
    sample_rate: int  # Hz, of the files
    clipped: dict[str, int]  # stem -> number of samples clipped at full scale, over all channels
    gain: float  # applied to all stems by rescale, 1.0 if none was needed
    model: str
    backend: str
    device: str
    precision: str  # of the network's weights, "" if unknown
    warnings: tuple[str, ...]  # one line each
    stem_file: Path | None = None  # all stems as one file, if requested


def separate_song(
    path: str | Path,
    model: Backend | Ensemble,
    options: OutputOptions,
    *,
    model_name: str,
    track_name: str | None = None,
    keep: Collection[str] = (),
    record: Record | None = None,
    batch_size: int | None = None,
    shifts: int = 1,
    on_start: Callable[[Mapping[str, Path]], None] | None = None,
    on_progress: Progress | None = None,
) -> SeparationResult:
    """Separate a song into files with its own sample rate, channels and length, all of them or none.

    Args:
        path: The song.
        model: The loaded model or models.
        options: See OutputOptions.
        model_name: Name in the result.
        track_name: Name of the song in its stems' paths; None for its file's name.
        keep: Real paths of files that must never be replaced, such as the other songs of a batch.
        record: Files that it owns are replaced even without `overwrite`.
        batch_size: Segments per call; None for the best number for the device.
        shifts: See Runtime.
        on_start: Called once, with each stem's temporary file; a WAV file can be read as it grows.
        on_progress: Called after each block, in this thread.

    Raises:
        TfswaError: InputError, UsageError, ModelError, DeviceError or OutputError; no files are left behind.
    """
    encoding = find_format(options.audio_format, options.bit_depth, options.bitrate)
    with ExitStack() as opened:

        def open_song() -> AudioReader:
            return opened.enter_context(
                open_audio(
                    path,
                    downmix=options.downmix,
                    allow_truncated=options.allow_truncated,
                    track=options.track,
                )
            )

        song = open_song()
        names, stem_matrix = parse_stems(options.stems, model.stems)
        track = track_name or default_track_name(song.path)
        targets = target_paths(
            song.path,
            names,
            out=Path(options.out),
            extension=encoding.extension,
            template=options.name,
            track=track,
            keep=keep,
        )
        stem_file = None
        if options.stem_file:
            check_stem_file(names)
            stem_file = next(iter(targets.values())).parent / f"{track}{EXTENSION}"
            check_target(stem_file, song.path, keep)
            if str(stem_file).casefold() in {str(target).casefold() for target in targets.values()}:
                raise OutputError(
                    f"a stem and the stem file would both be {stem_file}: choose another --name"
                )
        remove_abandoned_once(Path(options.out).absolute())
        rate = encoding.nearest_rate(song.sample_rate)
        margin, *_ = margins(song.sample_rate, model.sample_rate, rate)
        blocks = song.blocks(model.sample_rate, model.channels, margin=margin)
        shares = shares_of_rest(stem_matrix, model.stems)
        # Parts of a song at another rate that the model cannot hear must not be missing from the stems' sum.
        has_rest = model.sample_rate not in (song.sample_rate, rate) and shares.any()
        mixture = open_song().blocks(rate, song.channels) if has_rest or options.exact_sum else None
        whole = None
        if has_rest and mixture:
            mixture, whole = tee(mixture) if options.exact_sum else (None, mixture)
        if options.exact_sum:
            _check_exact_sum(stem_matrix, model.stems, encoding, rescale=options.rescale)
        found_tags = tags.read_tags(song.path)
        kept_tags = tags.cut_tags(found_tags)
        writer = StemWriter(
            targets,
            audio_format=encoding,
            rate=rate,
            channels=song.channels,
            frames=None if song.frames is None else frames_at(song.frames, song.sample_rate, rate),
            rescale=options.rescale,
            overwrite=options.overwrite,
            record=record,
            mixture=mixture,
            remainder=names[-1] if options.exact_sum else "",
            stem_file=stem_file,
            tags=kept_tags,
            cover=tags.read_cover(song.path),
        )
        with writer:
            if on_start:
                on_start(writer.unfinished)
            done = 0
            for stems in separate_to_rate(
                model,
                blocks,
                names,
                rates=(song.sample_rate, rate),
                frames=lambda: frames_at(song.decoded, song.sample_rate, rate),
                channels=song.channels,
                whole=whole,
                shares=shares,
                batch_size=batch_size,
                shifts=shifts,
            ):
                writer.write(stems)
                done += stems.shape[-1]
                if on_progress:
                    total = None if song.frames is None else song.frames / song.sample_rate
                    on_progress(done / rate, total)
            written = writer.commit()
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
                *_warnings(song, rate, options, encoding, written, found_tags, kept_tags),
                *model.notes,
            ),
            stem_file=stem_file,
        )


def separate_to_rate(
    model: Backend | Ensemble,
    blocks: Iterator[Samples],
    names: Sequence[str],
    *,
    rates: tuple[int, int],
    frames: Callable[[], int],
    channels: int,
    whole: Iterator[Samples] | None,
    shares: NDArray[np.float32],
    batch_size: int | None,
    shifts: int,
) -> Iterator[Samples]:
    """Separate a song into blocks of stems (k, c, n) at another rate than the model's.

    Args:
        model: The loaded model or models.
        blocks: The song at the model's rate and channels, continued at both ends by the margin of these rates.
        names: The k requested stems, as parse_stems returns them.
        rates: The song's own, and that of the stems, in Hz.
        frames: The stems' length; called at the end.
        channels: Of the song and of the stems.
        whole: The song as (c, n) blocks at the stems' rate. What the model cannot hear of it, such as everything above
            half its own rate, is added to the stems in these `shares`.
        shares: (k,).
        batch_size: Segments per call; None for the best number for the device.
        shifts: See Runtime.
    """
    heard = None
    if whole is not None:
        blocks, copied = tee(blocks)
        heard = BlockReader((block[:channels] for block in copied), channels)
    separated = separate_blocks(
        model, blocks, names, mono=channels == 1, batch_size=batch_size, shifts=shifts
    )

    def flat() -> Iterator[Samples]:
        for stems in separated:
            rows = stems.reshape(-1, stems.shape[-1])
            yield rows if heard is None else np.concatenate([rows, heard.read(rows.shape[1])])

    *_, margin = margins(rates[0], model.sample_rate, rates[1])
    song = BlockReader(whole, channels) if whole is not None else None
    for rows in trim(convert(flat(), model.sample_rate, rates[1]), margin, frames):
        stems = rows[: len(shares) * channels].reshape(len(shares), channels, -1)
        if song is not None:
            rest = song.read(rows.shape[1]) - rows[-channels:]
            stems = stems + shares[:, None, None] * rest
        yield stems


def _check_exact_sum(
    stem_matrix: NDArray[np.float32], available: Sequence[str], encoding: AudioFormat, *, rescale: bool
) -> None:
    if encoding.is_lossy or rescale:
        with_what = "--rescale" if rescale else f"lossy {encoding.container} files"
        raise UsageError(f"--exact-sum does not work with {with_what}: remove one of them")
    if not adds_up_to_song(stem_matrix, available):
        raise UsageError(
            "--exact-sum needs stems that make up the whole song, each once, "
            "such as vocals,accompaniment: change --stems"
        )


def _warnings(
    song: AudioReader,
    rate: int,
    options: OutputOptions,
    encoding: AudioFormat,
    written: Written,
    found_tags: Mapping[str, str],
    kept_tags: Mapping[str, str],
) -> Iterator[str]:
    yield from song.notes
    if song.missing:
        yield f"{song.path} {song.missing}: {song.decoded / song.sample_rate:.2f} s were separated"
    if song.peak == 0:
        yield f"{song.path} is silent, so its stems are silent too"
    if rate != song.sample_rate:
        yield f"{options.audio_format} files cannot hold {song.sample_rate} Hz: the stems are at {rate} Hz"
    if options.bitrate:
        low, high = encoding.bitrate_limits(rate, song.channels)
        if not low <= options.bitrate <= high:
            kind = "mono" if song.channels == 1 else "stereo"
            yield (
                f"{kind} {options.audio_format} files at {rate} Hz cannot have {options.bitrate} kbit/s: "
                f"the stems have about {min(max(options.bitrate, low), high)}"
            )
    if clipped := describe_clipping(written):
        if options.exact_sum:
            yield f"{clipped}, so the stems do not sum to the song there: use 32f to keep them"
        else:
            yield f"{clipped}: use 32f or rescale to keep them"
    elif written.sum_error:
        decibels = 20 * np.log10(written.sum_error)
        yield f"the song exceeds the stems' bit depth: their sum is off by up to {decibels:.0f} dBFS"
    if written.stem_file_peak > 1:
        decibels = 20 * np.log10(written.stem_file_peak)
        yield f"the stem file is up to {decibels:.1f} dB above full scale, which many players clip"
    if written.gain < 1:
        yield f"all stems were turned down by {-20 * np.log10(written.gain):.2f} dB to avoid clipping"
    if long := [name for name, text in found_tags.items() if kept_tags[name] != text]:
        yield f"some tags of {song.path} are too long and were cut short in the stems ({', '.join(long)})"
    if lost := tags.lost_tags(found_tags, encoding.container):
        yield (
            f"some tags are not copied to {encoding.container} files without mutagen ({', '.join(lost)}): "
            f"{install_command(extra='tags')}"
        )
    if not tags.has_mutagen() and tags.may_have_cover(song.path):
        yield f"covers are not copied without mutagen: {install_command(extra='tags')}"
