"""What `tfswa-sep batch` costs against `tfswa-sep --jobs`: python -m training.benchmark.library SONG [--workers 2]

Both separate the same short songs, cut from SONG, in turns. A line per run: the seconds of the whole command, and the
songs per second once warm, from the tenth song to the last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile

_COMMAND = (sys.executable, "-m", "tfswa_sep")
_COLD = 10  # songs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("song", type=Path)
    parser.add_argument("--songs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each song")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()
    count = str(arguments.workers)
    contenders = {
        f"--jobs {count}": ("--jobs", count, "--threads", "1"),
        f"batch --workers {count}": ("batch", "--workers", count),
    }
    best = dict.fromkeys(contenders, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        songs = Path(folder, "songs")
        _cut(arguments.song, songs, count=arguments.songs, seconds=arguments.seconds)
        for run in range(arguments.runs):
            for label, options in contenders.items():
                out = Path(folder, f"{run} {label}")
                batch = options[:1] if options[0] == "batch" else ()
                command = [
                    *_COMMAND,
                    *batch,
                    str(songs),
                    "--out",
                    str(out),
                    "--quiet",
                    *options[len(batch) :],
                ]
                began = time.perf_counter()
                subprocess.run(command, check=True)
                took, speed = time.perf_counter() - began, _warm_speed(out)
                best[label] = max(best[label], speed)
                print(f"{label}: {took:.1f} s, {speed:.2f} songs per second once warm", flush=True)
    plain, batch_speed = best.values()
    print(f"batch takes {plain / batch_speed:.2f} times as long per song, at best")


def _cut(source: Path, folder: Path, *, count: int, seconds: float) -> None:
    """Write short songs: excerpts of the source from different places."""
    folder.mkdir()
    audio, rate = soundfile.read(source, dtype="int16")
    length = round(seconds * rate)
    for number in range(count):
        start = number * 7919 % max(len(audio) - length, 1)
        soundfile.write(folder / f"{number:04}.wav", audio[start : start + length], rate)


def _warm_speed(out: Path) -> float:
    """Songs per second, by the times at which their last stems were written."""
    ends = sorted(max(file.stat().st_mtime for file in song.glob("*.wav")) for song in out.glob("[0-9]*"))
    return (len(ends) - 1 - _COLD) / (ends[-1] - ends[_COLD])


if __name__ == "__main__":
    main()
