"""Several songs and several runs: none replaces another's files, and manifests match the files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
from fakes import write_song
from model_server import ModelServer
from test_cli import files_in

from tfswa_sep import registry
from tfswa_sep.audio import ffmpeg
from tfswa_sep.audio.atomic_file import AtomicFile
from tfswa_sep.audio.stem_writer import StemWriter
from tfswa_sep.batch import manifest
from tfswa_sep.cli import main
from tfswa_sep.registry.models_toml import ModelFile, unlisted_model


def results(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What the command reports of each song."""
    capsys.readouterr()
    assert main.run([*words, "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_address_works_at_its_first_use(
    work: Path, server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("song.wav", "--stems", "bass", "--model", f"{server.url}/tiny.onnx")
    status = [results(capsys, *words)[0]["status"] for _ in range(2)]
    assert status == ["done", "skipped"] and server.asked == ["GET /tiny.onnx"]


def test_a_model_file_that_was_not_fetched_is_not_looked_into(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFSWA_CACHE", str(work / "cache"))
    own = work / "own.onnx"
    own.write_bytes(b"\x08 a model")
    files = (ModelFile("torch", "https://host/a.safetensors", "", 0), ModelFile("onnx", str(own), "", 0))
    described = manifest.describe_work(work / "song.wav", unlisted_model("own", "", files), {})
    hashes = {file.label: "" if file.backend == "torch" else registry.digest(own) for file in files}
    assert described["model"]["sha256"] == hashes


def test_songs_that_an_earlier_version_finished_stay_finished(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What decides how stems come out is on record as it always was; a choice that came later joins it."""
    assert results(capsys, "song.wav", "--stems", "bass")[0]["status"] == "done"
    record = json.loads((work / "song" / ".song.tfswa-sep.json").read_text())
    assert record["options"] == {
        "name": "{track}/{stem}{ext}", "stems": "bass", "audio_format": "wav", "bit_depth": None,
        "bitrate": None, "rescale": False, "exact_sum": False, "stem_file": False, "downmix": False,
        "allow_truncated": False, "precision": "auto",
    }  # fmt: skip
    assert results(capsys, "song.wav", "--stems", "bass", "--shifts", "2")[0]["status"] == "done"


def test_no_stem_replaces_another_song(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = write_song(work / "song_vocals.wav", seconds=0.3)
    before = recording.read_bytes()
    words = ["song.wav", "song_vocals.wav", "--name", "{track}_{stem}{ext}", "--stems", "vocals"]
    assert main.run(words) == 7
    assert recording.read_bytes() == before
    assert files_in(work) == {"song.wav", "song_vocals.wav", "song_vocals_vocals.wav"}
    (line,) = capsys.readouterr().err.splitlines()
    assert "a stem of song.wav would overwrite another song (song_vocals.wav): choose another --out" in line
    assert main.run([*words, "--shard", "1/2"]) == 5  # nor that of another machine


@pytest.mark.skipif(ffmpeg.find_ffmpeg() is None, reason="needs ffmpeg")
def test_no_stem_file_replaces_a_song(work: Path) -> None:
    song = work / "song.stem.mp4"
    song.write_bytes((work / "song.wav").read_bytes())
    before = song.read_bytes()
    words = ["--name", "{track}.{stem}{ext}", "--stem-file", "--out", "."]
    assert main.run(["song.wav", "song.stem.mp4", *words]) == 7
    assert song.read_bytes() == before


def test_a_song_that_would_be_overwritten_does_not_end_the_batch(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_song(work / "vocals" / "vocals.wav")
    assert main.run(["vocals/vocals.wav", "song.wav", "--stems", "vocals"]) == 7
    assert files_in(work) == {"song.wav", "vocals/vocals.wav", "song/vocals.wav"}
    assert "would overwrite the song itself (vocals/vocals.wav)" in capsys.readouterr().err


def test_the_standard_input_has_a_name_of_its_own(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_song(work / "stdin.wav", seconds=0.3)
    sound = io.BytesIO((work / "song.wav").read_bytes())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=sound, isatty=lambda: False))
    one, other = results(capsys, "-", "stdin.wav", "--out", "out", "--stems", "bass")
    assert (one["song"], one["files"]) == ("standard input", {"bass": "out/stdin/bass.wav"})
    assert (other["song"], other["files"]) == ("stdin.wav", {"bass": "out/stdin_2/bass.wav"})


def test_the_format_may_be_part_of_a_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("song.wav", "--out", "o", "--stems", "bass", "--name", "{track}{ext}/{stem}{ext}")
    assert [results(capsys, *words)[0]["status"] for _ in range(2)] == ["done", "skipped"]
    assert files_in(work / "o") == {"song.wav/bass.wav"}


def test_moved_stems_are_reported_with_their_place(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results(capsys, "song.wav", "--out", "stems", "--stems", "vocals,bass")
    os.rename("stems", "moved")
    (song,) = results(capsys, "song.wav", "--out", "moved", "--stems", "vocals,bass")
    assert (song["status"], song["stem_file"]) == ("skipped", None)
    assert song["files"] == {stem: f"moved/song/{stem}.wav" for stem in ("vocals", "bass")}


def test_stems_of_earlier_runs_are_not_songs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_song(work / "al" / "song.wav")
    for stem in ("bass", "vocals", "drums"):
        results(capsys, "al", "--out", "al/st", "--stems", stem)
        (work / "al/st/song/bass.wav").unlink(missing_ok=True)
    (song,) = results(capsys, "al", "-r", "--out", "al/st2", "--stems", "bass")
    assert song["song"] == "al/song.wav"
    known = json.loads((work / "al/st/song/.song.tfswa-sep.json").read_text())
    assert list(known["outputs"]) == ["drums.wav"] and list(known["earlier"]) == ["vocals.wav"]


def test_stems_of_another_song_of_the_same_name_are_replaced_only_if_asked(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        str(write_song(work / name / "01.wav", seconds=s)) for name, s in (("a", 0.2), ("b", 0.3))
    )
    words = ("--out", "out", "--stems")
    (song,) = results(capsys, first, *words, "bass")
    before = (work / "out/01/bass.wav").read_bytes()
    for stems in ("bass", "drums"):
        assert main.run([second, *words, stems]) == 5
        assert "out/01 has the stems of another recording" in capsys.readouterr().err
    assert files_in(work / "out") == {"01/bass.wav"} and (work / "out/01/bass.wav").read_bytes() == before
    (replaced,) = results(capsys, second, *words, "bass", "--overwrite")
    assert song["warnings"] == [] and "replaced those of another recording" in replaced["warnings"][0]
    (again,) = results(capsys, second, *words, "bass")
    assert again["status"] == "skipped" and again["warnings"] == []


@pytest.mark.parametrize("moment", (lambda: (StemWriter, "commit"), lambda: (manifest.Record, "announce")))
def test_of_two_runs_for_songs_of_the_same_name_one_is_refused(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: Callable[[], tuple[type, str]],
) -> None:
    """The other run ends while this one is under way, or where it is about to name its files."""
    songs = [str(write_song(work / name / "01.wav", seconds=s)) for name, s in (("a", 0.2), ("b", 0.3))]
    owner, name = moment()
    original = getattr(owner, name)

    def go_on_later(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        assert main.run([songs[0], "--out", "out", "--stems", "bass"]) == 0
        return original(*arguments)

    monkeypatch.setattr(owner, name, go_on_later)
    assert main.run([songs[1], "--out", "out", "--stems", "bass"]) == 5
    assert "out/01/bass.wav" in capsys.readouterr().err
    assert soundfile.info(work / "out/01/bass.wav").duration == pytest.approx(0.2, abs=0.01)
    assert files_in(work / "out") == {"01/bass.wav"}


@pytest.mark.parametrize("field", ("warnings", "seconds"))
def test_a_damaged_result_on_record_is_not_used(
    work: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    words = ("song.wav", "--stems", "bass")
    results(capsys, *words)
    record = work / "song" / ".song.tfswa-sep.json"
    document = json.loads(record.read_text())
    document["result"][field] = None
    record.write_text(json.dumps(document))
    assert results(capsys, *words)[0]["status"] == "done"


def test_stems_on_a_disk_that_rounds_times_are_still_ours(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("song.wav", "--stems", "bass")
    results(capsys, *words)
    stem = work / "song/bass.wav"
    time = stem.stat().st_mtime_ns // (2 * 10**9) * 2 * 10**9  # as a FAT disk has it after it was unmounted
    os.utime(stem, ns=(time, time))
    assert results(capsys, *words)[0]["status"] == "skipped"
    assert results(capsys, *words, "--bit-depth", "16")[0]["status"] == "done"


def test_a_stem_that_was_edited_is_replaced_only_if_asked(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("song.wav", "--stems", "bass,drums")
    results(capsys, *words)
    (work / "song/bass.wav").write_bytes(b"edited")
    assert main.run([*words]) == 5
    assert "song/bass.wav already exists" in capsys.readouterr().err
    assert (work / "song/bass.wav").read_bytes() == b"edited"
    assert results(capsys, *words, "--overwrite")[0]["status"] == "done"
    assert results(capsys, *words, "--bit-depth", "16")[0]["status"] == "done"  # ours are replaced freely


def test_a_run_that_was_killed_while_files_got_their_names_is_done_again(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = 0
    commit = AtomicFile.commit

    def die_later(self: AtomicFile, target: Path, **options: Any) -> None:
        nonlocal commits
        commits += target.suffix == ".wav"
        if commits == 2:
            raise KeyboardInterrupt
        commit(self, target, **options)

    words = ("song.wav", "--stems", "bass,drums")
    for bits in ("16", "24"):  # at first there is nothing, then the stems of the first run
        commits = 0
        monkeypatch.setattr(AtomicFile, "commit", die_later)
        assert main.run([*words, "--bit-depth", bits]) == 130
        monkeypatch.setattr(AtomicFile, "commit", commit)
        assert results(capsys, *words, "--bit-depth", bits)[0]["status"] == "done"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
def test_a_worker_that_is_terminated_twice_still_tidies_up(tmp_path: Path) -> None:
    """The second time comes from the end of a parent that has not waited long enough on a busy machine."""
    typed = """
import multiprocessing, pathlib, sys, time
from tfswa_sep.batch import workers
class Work:
    def separate(self, song, report):
        try:
            print("works", flush=True)
            time.sleep(100)
        finally:
            print("tidies", flush=True)
            time.sleep(0.5)
            print("is done", flush=True)
ours, theirs = multiprocessing.Pipe()
ours.send("song")
workers._serve(theirs, Work())
"""
    with subprocess.Popen([sys.executable, "-c", typed], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in ("works\n", "tidies\n"):
            assert process.stdout.readline() == line
            process.terminate()
        assert process.stdout.read() == "is done\n"
    assert process.returncode == 128 + 15
