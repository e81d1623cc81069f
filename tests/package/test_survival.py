"""Runs killed at random moments, and on disks of random size: what is there is whole, and the next run ends well.

SURVIVAL_RUNS=100 python -m pytest tests/package/test_survival.py     (100 kills and 50 disks; a sample without)
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from fakes import write_song
from faults import COMMAND

from tfswa_sep.audio.decode import open_audio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL"),
]

OPTIONS = ("wav --stem-file", "flac --rescale --bit-depth 16", "mp3", "m4a", "wav", "flac", "ogg", "opus")
KILLS = int(os.environ.get("SURVIVAL_RUNS", 4))
DISKS = max(2, KILLS // 2)
SECONDS = (2, 3)  # of the song at first, and of the song that takes its place
RATE = 44_100


@dataclass
class Runs:
    """What all runs with one choice of options share."""

    folder: Path  # with the songs, old/song.wav and new/song.wav, and the old stems, out
    options: list[str]
    took: float  # seconds, of a run
    old: dict[str, str]  # name -> digest of each stem

    def start(self, out: Path, *words: str, song: str = "new") -> subprocess.Popen[bytes]:
        """Separate a song to `out`."""
        typed = [*COMMAND, str(self.folder / song / "song.wav"), *self.options, "--out", str(out), *words]
        return subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, out: Path, *words: str, song: str = "new") -> tuple[int, str]:
        """Its exit code, and what it printed to stderr."""
        process = self.start(out, *words, song=song)
        _, err = process.communicate(timeout=300)
        return process.returncode, err.decode()

    def check_whole(self, out: Path, *, all_new: bool = False) -> None:
        """Each stem in `out` is a whole one of the old song, to the byte, or of the new one."""
        found = stems(out)
        for name, path in found.items():
            if all_new or digest(path) != self.old[name]:
                with open_audio(path) as song:
                    frames = sum(block.shape[1] for block in song.blocks())
                expected = SECONDS[1] * RATE
                expected = round(expected * song.sample_rate / RATE)  # Opus supports only its own rates
                assert expected - RATE // 100 <= frames < expected + 2200, (name, frames, expected)
        if all_new:
            assert set(found) == set(self.old)
            assert not list(out.rglob(".tfswa-sep-*.tmp"))


def stems(out: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(out.glob("song/[!.]*"))}


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def prepare(tmp_path: Path, onnx_model: Callable[..., Path]) -> Callable[[int], Runs]:
    """Runs of the n-th choice of options, with a tiny model; the old stems are made once."""
    model = str(onnx_model())
    made: dict[str, Runs] = {}

    def runs(number: int) -> Runs:
        chosen = OPTIONS[number % len(OPTIONS)]
        if chosen not in made:
            folder = tmp_path / f"songs {len(made)}"
            for name, seconds in zip(("old", "new"), SECONDS, strict=True):
                write_song(folder / name / "song.wav", seconds=seconds, rate=RATE)
            new = Runs(folder, ["--model", model, "--format", *chosen.split()], 0, {})
            began = time.monotonic()
            assert new.run(folder / "out", song="old")[0] == 0
            new.took = time.monotonic() - began
            new.old = {name: digest(path) for name, path in stems(folder / "out").items()}
            made[chosen] = new
        return made[chosen]

    return runs


@pytest.mark.longest
def test_runs_that_are_killed(tmp_path: Path, prepare: Callable[[int], Runs]) -> None:
    random.seed(KILLS)
    for number in range(KILLS):
        runs, out = prepare(number), tmp_path / f"out {number}"
        words: tuple[str, ...] = ()
        if replaces := number // len(OPTIONS) % 2 == 0:
            shutil.copytree(runs.folder / "out", out)
            words = ("--overwrite",)
        process = runs.start(out, *words)
        # Most are killed in the second half, when files are written, closed and renamed.
        time.sleep(runs.took * random.choice((random.uniform(0, 1.2), random.uniform(0.5, 1.1))))
        process.kill()
        process.communicate()
        runs.check_whole(out)
        assert not replaces or set(stems(out)) == set(runs.old)
        code, err = runs.run(out, *words)
        assert code == 0, err
        runs.check_whole(out, all_new=True)
        shutil.rmtree(out)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.longest
def test_disks_that_are_full(tmp_path: Path, prepare: Callable[[int], Runs]) -> None:
    random.seed(DISKS)
    (disk := tmp_path / "disk").mkdir()
    for number in range(DISKS):
        runs = prepare(number * 3)  # with few runs, a stem file and an M4A
        size = sum(path.stat().st_size for path in stems(runs.folder / "out").values())
        kilobytes = int(size * random.uniform(0.2, 3.5) / 1024)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a small disk here")
        try:
            shutil.copytree(runs.folder / "out", disk, dirs_exist_ok=True)
        except (OSError, shutil.Error):  # not even the old stems fit
            shutil.rmtree(disk / "song", ignore_errors=True)
        try:
            before = set(stems(disk))
            code, err = runs.run(disk, "--overwrite")
            assert code in (0, 5), err
            assert not code or len(err.splitlines()) == 1, err
            runs.check_whole(disk, all_new=code == 0)
            assert before <= set(stems(disk)) and not list(disk.rglob(".tfswa-sep-*.tmp"))
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            code, err = runs.run(disk, "--overwrite")
            assert code == 0, err
            runs.check_whole(disk, all_new=True)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
