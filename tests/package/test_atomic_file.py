"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa_sep.audio.atomic_file import atomic_write, remove_abandoned, temporary_folder

KILLED = """
import os, sys
from pathlib import Path
from tfswa_sep.audio.atomic_file import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(KeyError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "b")], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_write(tmp_path / "a") as temporary:
        remove_abandoned(tmp_path)
        assert os.listdir(tmp_path) == [temporary.name]


KILLED_EVAL = """
import os, sys
from pathlib import Path
from tfswa_sep.evaluation.methods import MixtureBaseline
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.run import evaluate
def die(*_):
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
evaluate(find_songs(Path(sys.argv[1])), [MixtureBaseline()], data="data", on_progress=die)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.slow
def test_the_next_evaluation_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    system, song = tmp_path / "tmp", tmp_path / "data" / "song"
    system.mkdir()
    song.mkdir(parents=True)
    samples = np.random.default_rng(0).normal(0, 0.1, (44_100, 2))
    for stem in ("vocals", "drums"):
        soundfile.write(song / f"{stem}.wav", samples, 44_100)

    def run(how: str) -> int:
        words = [sys.executable, "-c", KILLED_EVAL, str(tmp_path / "data"), how]
        return subprocess.run(words, env={**os.environ, "TMPDIR": str(system)}, check=False).returncode

    assert run("killed") == -9
    (left,) = system.iterdir()
    assert any(left.rglob("mixture*.wav"))
    (system / "tfswa-sep-of-the-user").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(system))
        with temporary_folder() as ours:  # of a process that lives
            assert not left.exists()
            assert run("whole") == 0
            assert {path.name for path in system.iterdir()} == {ours.name, "tfswa-sep-of-the-user"}
    assert os.listdir(system) == ["tfswa-sep-of-the-user"]


def test_errors_inside_a_temporary_folder_are_passed_on() -> None:
    with pytest.raises(OSError, match="full"), temporary_folder() as folder:
        raise OSError("full")
    assert not folder.exists()
