"""The command: what it takes, what it writes and says, and how it fails."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile
from fakes import SLOW_COMMAND, write_song
from waiting import wait_for

import tfswa_sep
from tfswa_sep import registry, separator
from tfswa_sep.batch import workers
from tfswa_sep.batch.plan import Outcome, PlannedSong, Work
from tfswa_sep.cli import main
from tfswa_sep.errors import InputError, OutputError

STEMS = ("vocals", "drums", "bass", "other")
ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "onnxruntime", "torch", "soundfile", "huggingface_hub", "rich")
NOT_ALWAYS = (
    "multiprocessing",
    "statistics",
    "webbrowser",
)  # of the standard library, for some commands only


def files_in(folder: Path) -> set[str]:
    """All but the manifests."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)) for path in found}


def python(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python that sees this checkout, installed or not."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, env=env
    )


# --- help


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    def seconds(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    helped, took = seconds("-X", "importtime", "-m", "tfswa_sep", "--help")
    # Processor time, and relative to that of typer: neither other work nor a slow machine must fail the test.
    assert took < 4 * seconds("-c", "import typer")[1]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in helped.stderr.splitlines()}
    assert "typer" in loaded and not loaded.intersection(HEAVY)


@pytest.mark.parametrize(
    "command", ["", "separate", "models", "models list", "models pull", "models verify", "eval", "doctor"]
)
def test_help_fits_a_terminal(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: tfswa-sep {command}") and err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "list[" not in out and "x>=" not in out and "{SONG}" not in out


def test_help_groups_many_options_and_not_few(capsys: pytest.CaptureFixture[str]) -> None:
    def titles(*command: str) -> list[str]:
        assert main.run([*command, "--help"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line[:1].strip() and line[-1] == ":"]

    assert titles("separate") == [
        "Arguments:", "Stems:", "Output files:", "Input:", "Several songs:", "Model and hardware:",
        "Messages and help:",
    ]  # fmt: skip
    assert titles("eval", "run")[:3] == ["Songs:", "Methods:", "Scores and results:"]
    assert titles("models", "verify") == ["Arguments:", "Options:"]
    assert main.run(["models", "path", "--help"]) == 0
    assert "--backend" not in capsys.readouterr().out.partition("Messages and help:")[2]
    assert main.run(["eval", "listen-results", "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(" ANSWERS.json...")


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    assert "tfswa-sep song.mp3" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"tfswa-sep {tfswa_sep.__version__}\n"


def test_the_shell_completes_commands() -> None:
    script = "from tfswa_sep.cli.main import main; main()"
    words = {"_TFSWA_SEP_COMPLETE": "complete_bash", "COMP_WORDS": "tfswa-sep mo", "COMP_CWORD": "1"}
    assert python("-c", script, env={**os.environ, **words}).stdout.split() == ["models"]


# --- separate


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["song.wav"], {f"song/{stem}.wav" for stem in STEMS}),
        (["separate", "song.wav"], {f"song/{stem}.wav" for stem in STEMS}),
        (["song.wav", "--stems", "vocals"], {"song/vocals.wav"}),
        (["--stems", "vocals", "song.wav"], {"song/vocals.wav"}),
        (["--stems=vocals,accompaniment", "song.wav"], {"song/vocals.wav", "song/accompaniment.wav"}),
        (["-o", "a/b", "song.wav", "--stems", "drums+bass"], {"a/b/song/drums+bass.wav"}),
        (["song.wav", "--format", "flac", "--stems", "bass"], {"song/bass.flac"}),
        (["--two-stems", "vocals", "song.wav"], {"song/vocals.wav", "song/accompaniment.wav"}),
        (["song.wav", "--two-stems=drums"], {"song/drums.wav", "song/no_drums.wav"}),
        (["song.wav", "--stems", "no_vocals,instrumental"], {"song/no_vocals.wav", "song/instrumental.wav"}),
        (["--stems", "bass", "--name", "{stem} of {track}{ext}", "--", "song.wav"], {"bass of song.wav"}),
    ],
)
def test_separate_writes_the_stems_that_were_asked_for(
    work: Path, arguments: list[str], written: set[str]
) -> None:
    assert main.run(arguments) == 0
    assert files_in(work) == {"song.wav", *written}
    for name in written:
        samples, rate = soundfile.read(work / name)
        assert (samples.shape, rate) == ((22_050, 2), 44_100) and np.abs(samples).max() > 0.1


def test_it_says_what_ran_and_what_it_wrote(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["song.wav", "--stems", "vocals,drums", "--verbose"]) == 0
    out, err = capsys.readouterr()
    first, *paths, took = out.splitlines()
    assert first == "model small, backend onnx int8, device cpu"
    assert paths == ["song/vocals.wav", "song/drums.wav"] and took.startswith("0.5 s of audio took ")
    assert err == ""
    assert main.run(["song.wav", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object_a_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["song.wav", "--stems", "vocals", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    song = json.loads(line)
    assert (song["song"], song["status"]) == ("song.wav", "done")
    assert song["files"] == {"vocals": "song/vocals.wav"} and song["seconds"] == 0.5
    assert (song["model"], song["backend"], song["device"]) == ("small", "onnx", "cpu")
    assert song["precision"] == "int8"
    assert main.run(["none.wav", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {
        "kind": "InputError",
        "message": "no such file: none.wav",
        "exit_code": 3,
    }
    assert err == "tfswa-sep: no such file: none.wav\n"


def test_finished_stems_are_replaced_unless_forbidden(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["song.wav"], ["song.wav", "--overwrite"], ["song.wav", "--stems", "vocals"]):
        assert main.run(words) == 0
    assert main.run(["song.wav", "--no-overwrite"]) == OutputError.exit_code


def test_finished_work_is_skipped_and_other_work_done(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem, manifest = work / "song" / "bass.wav", work / "song" / ".song.tfswa-sep.json"

    def status(*words: str) -> str:
        assert main.run(["song.wav", "--json", *words]) == 0
        return str(json.loads(capsys.readouterr().out)["status"])

    assert [status(), status(), status("--no-overwrite"), status("--overwrite")] == [
        "done", "skipped", "skipped", "done",
    ]  # fmt: skip
    stem.unlink()
    assert status() == "done" and stem.exists()
    for spoil in (lambda: stem.write_bytes(b"mine"), manifest.unlink, lambda: manifest.write_text("{")):
        spoil()  # now a stem is there of which nobody knows that it is ours
        assert main.run(["song.wav", "--json"]) == OutputError.exit_code
        assert capsys.readouterr().out and status("--overwrite") == "done" and len(stem.read_bytes()) > 1000
    assert status("--bit-depth", "16") == "done"  # other options
    precise = [status("--bit-depth", "16", "--precision", "fp32") for _ in range(2)]
    assert precise == ["done", "skipped"]  # perhaps another model file
    write_song(work / "song.wav", seconds=0.6)
    assert main.run(["song.wav", "--json"]) == OutputError.exit_code  # another song
    assert capsys.readouterr().out and status("--overwrite") == "done"
    assert main.run(["song.wav"]) == 0
    assert capsys.readouterr().out.startswith(
        "already separated with these options (--overwrite redoes it): song.wav\n"
    )


def test_folders_are_walked_and_mirrored(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for song in ("in/a.wav", "in/deep/er/a.wav", "in/deep/.hidden.wav"):
        write_song(work / song)
    (work / "in" / "notes.txt").write_text("no song")
    assert main.run(["in", "--stems", "bass", "-o", "out", "-q"]) == 0
    assert files_in(work / "out") == {"a/bass.wav"}
    for _ in range(2):  # stems in in/a and in/deep/er/a after the first run are not songs
        assert main.run(["in", "-r", "--stems", "bass", "-o", "in", "-q"]) == 0
    assert files_in(work / "in") - {"a.wav", "deep/er/a.wav", "deep/.hidden.wav", "notes.txt"} == {
        "a/bass.wav",
        "deep/er/a/bass.wav",
    }
    assert main.run(["in/*.wav", "--stems", "bass", "-o", "globbed", "-q"]) == 0
    assert files_in(work / "globbed") == {"a/bass.wav"}


def test_a_file_whose_name_begins_with_a_dash(work: Path) -> None:
    write_song(work / "-dash.wav")
    assert main.run(["-dash.wav", "--stems", "bass"]) == 0
    assert files_in(work) == {"song.wav", "-dash.wav", "-dash/bass.wav"}


def test_shards_take_every_song_once(work: Path) -> None:
    songs = [str(write_song(work / f"{name}.wav", seconds=0.1)) for name in "abcde"]
    for shard, expected in (("1/2", "ace"), ("2/2", "bd")):
        assert main.run([*songs, "--shard", shard, "--stems", "bass", "-o", shard[0], "-q"]) == 0
        assert files_in(work / shard[0]) == {f"{name}/bass.wav" for name in expected}


# --- several songs


def test_songs_of_one_name_do_not_overwrite_each_other(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = ["a/song.wav", "b/Song.flac", "c/song_2.wav", "song{x}.wav", "d/song{x}.wav", "a/../a/song.wav"]
    for song in songs[:-1]:
        write_song(work / song)
    assert main.run([*songs, "--stems", "vocals", "-o", "out"]) == 0
    tracks = {"song", "Song_2", "song_2_2", "song{x}", "song{x}_2"}
    assert files_in(work / "out") == {f"{track}/vocals.wav" for track in tracks}
    notes = capsys.readouterr().err.splitlines()
    assert (
        notes[0]
        == "tfswa-sep: note: another song is also named Song: the stems of b/Song.flac are named Song_2"
    )
    assert len(notes) == 3


def test_one_bad_file_does_not_end_the_batch(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "text.mp3").write_text("no song at all\n")
    assert main.run(["text.mp3", "song.wav", "none.wav", "--stems", "vocals"]) == 7
    assert files_in(work) == {"song.wav", "text.mp3", "song/vocals.wav"}
    out, err = capsys.readouterr()
    text, none = err.splitlines()
    assert text.startswith("tfswa-sep: ") and "text.mp3" in text
    assert none == "tfswa-sep: no such file: none.wav"
    assert out.endswith("\n\n1 done, 2 failed\n") and max(map(len, out.splitlines())) <= 80


def test_failures_are_reported_in_the_order_of_the_songs(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["song.wav", "none.wav", "out", "--stems", "bass", "--json"]) == 7
    songs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(song["song"], song["status"]) for song in songs] == [
        ("song.wav", "done"), ("none.wav", "failed"), ("out", "failed"),
    ]  # fmt: skip
    assert songs[2]["error"]["message"] == "no such file: out (for the output folder, use --out out)"


def test_a_song_that_failed_holds_no_samples() -> None:
    held = []

    class Fails:
        def separate(self, song: PlannedSong, on_progress: object) -> Outcome:
            samples = np.zeros(8)
            held.append(weakref.ref(samples))
            try:
                raise OSError("inside")
            except OSError as error:
                raise InputError("outside") from error

    song = PlannedSong(Path("song.wav"), "song.wav", "song", Path())
    outcome = workers._separate(song, cast(Work, Fails()), None)
    assert isinstance(outcome.error, InputError) and "inside" in outcome.trace
    assert [samples() for samples in held] == [None]


def test_progress_begins_before_the_model_is_loaded(work: Path) -> None:
    calls: list[object] = []

    class Loads:
        def separate(self, song: PlannedSong, on_progress: object) -> Outcome:
            calls.append("separate")
            return Outcome(song, "done")

    song = PlannedSong(Path("song.wav"), "song.wav", "song", Path())
    workers._separate(song, cast(Work, Loads()), lambda *progress: calls.append(progress))
    assert calls == [(song, 0.0, None), "separate"]


def test_a_worker_ends_even_if_the_exception_of_the_signal_is_lost() -> None:
    class Swallows:
        def separate(self, song: PlannedSong, on_progress: Callable[[float, float], None]) -> Outcome:
            with contextlib.suppress(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
            on_progress(1.0, 2.0)
            raise AssertionError("went on")

    ours, theirs = multiprocessing.Pipe()
    ours.send(PlannedSong(Path("song.wav"), "song.wav", "song", Path()))
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit):
            workers._serve(theirs, cast(Work, Swallows()))
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def test_what_every_song_would_meet_ends_the_batch(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_song(work / "other.wav")
    assert main.run(["song.wav", "other.wav", "--stems", "piano"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- failing well


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.mp3"], 3, "no such file: none.mp3"),
        (["seperate", "song.wav"][:1], 3, "no such file: seperate (did you mean the command 'separate'?"),
        (["text.mp3"], 3, "text.mp3"),
        (["empty.wav"], 3, "empty.wav"),
        (["folder"], 3, "folder"),
        (["bell\a\n.wav"], 3, "no such file: bell\\x07 .wav"),
        (["song.wav", "--stems", "piano"], 2, "unknown stem 'piano'"),
        (["song.wav", "--model", "smal"], 4, "did you mean 'small'?"),
        (["song.wav", "--out", "text.mp3/deep"], 5, "text.mp3"),
        (["song.wav", "--format", "mp4"], 2, "'mp4'"),
        (["song.wav", "--format", "flac", "--bit-depth", "32f"], 2, "32f"),
        (["song.wav", "--threads", "0"], 2, "--threads"),
        (["song.wav", "--no-such-option"], 2, "--no-such-option"),
        (["separate"], 2, "missing argument 'SONG' (see tfswa-sep separate --help)"),
        (["models", "path"], 2, "missing argument 'MODEL' (see tfswa-sep models path --help)"),
        (["models", "foo"], 2, "no such command: foo; choose from list, info, path, pull, verify, rm"),
        (["song.wav", "--jobs", "many"], 2, "invalid value for '--jobs' / '-j': not a whole number (see"),
        (["song.wav", "--jobs", "0"], 2, "invalid value for '--jobs' / '-j': must be at least 1 (see"),
        (["serve", "--port", "70000"], 2, "invalid value for '--port': must be at most 65535 (see"),
        (["serve", "--quota", "x"], 2, "invalid value for '--quota': not a number (see"),
        (["song.wav", "-n", "htdemucs"], 2, "no such option: -n; did you mean --model?"),
        (["song.wav", "--mp3"], 2, "did you mean --format mp3?"),
        (["song.wav", "--output_dir", "out"], 2, "did you mean --out?"),
        (["song.wav", "--two-stems", "vocals", "--stems", "bass"], 2, "cannot be combined"),
        (["song.wav", "--stems", "karaoke"], 2, "did you mean accompaniment?"),
        (["song.wav", "--stems", "vocal"], 2, "did you mean vocals?"),
        ([""], 2, "the name of a song is empty"),
        (["https://me:secret@host/a.mp3"], 3, "tfswa-sep: https://***@host/a.mp3 is a URL, not a file"),
        (["song.wav", "--name", "{stem}{ext}", "text.mp3"], 2, "--name needs {track}"),
        (["song.wav", "--name", "../{stem}{ext}"], 2, "../"),
        (["models", "path", "large"], 4, "unknown model 'large'"),
        (["eval", "--data", "nowhere"], 3, "nowhere"),
        (["eval"], 2, "--data"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (work / "text.mp3").write_text("no song at all\n" * 100)
    (work / "empty.wav").touch()
    (work / "folder").mkdir()
    before = files_in(work)
    assert main.run(arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tfswa-sep: ") and message in line
    assert files_in(work) == before and not (work / "song").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            RuntimeError("two\nlines"),
            1,
            "bug in tfswa-sep: please report it with the output of --debug: RuntimeError",
        ),
        (MemoryError(), 6, "out of memory"),
        (OSError(24, "Too many open files"), 6, "too many open files: raise the limit on open files"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_unexpected_is_one_line_too(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(separator.Separator, "separate_file", fail)
    assert main.run(["song.wav"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert files_in(work) == {"song.wav"}


def test_debug_shows_where(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["text.mp3", "--debug"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("tfswa-sep: no such file: text.mp3\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["none.wav"], 3), (["song.wav", "--model", "none"], 4), (["song.wav"], 4), (["song.wav", "--no"], 2)],
)
def test_early_errors_are_reported_before_heavy_imports(work: Path, arguments: list[str], code: int) -> None:
    """The third has a bundled file whose hash is wrong."""
    (work / "small.onnx").write_bytes(b"\x08 not the file on record")
    script = f"""
import sys
from pathlib import Path
from tfswa_sep import registry
from tfswa_sep.cli import main
if {code} == 4:
    registry.WEIGHTS = Path({str(work)!r})
else:
    registry.fetch = lambda *_, **options: Path()
code = main.run({[str(work / arguments[0]), *arguments[1:]]!r})
print(code, sorted(set({HEAVY + NOT_ALWAYS!r}) & sys.modules.keys()))
"""
    done = python("-c", script)
    assert done.stdout == f"{code} []\n"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("SIGINT", 130),
        pytest.param("SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("SIGHUP", 143, marks=pytest.mark.slow),
    ],
)
def test_an_interruption_leaves_nothing_half_written(tmp_path: Path, sent: str, code: int) -> None:
    write_song(tmp_path / "song.wav", seconds=20)
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_COMMAND, "song.wav"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "working\n"
        assert wait_for(lambda: len(files_in(tmp_path)) > 1)  # temporary files are open
        process.send_signal(getattr(signal, sent))
        *_, line = process.stderr.read().splitlines()
        assert process.wait(timeout=300) == code
    assert line.startswith("tfswa-sep: ") and line.endswith("no partial files were left")
    assert files_in(tmp_path) == {"song.wav"} and not (tmp_path / "song").exists()


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_is_not_lost_in_an_import(tmp_path: Path, sent: str, code: int) -> None:
    """numpy.random ignores what is raised while it is imported; onnxruntime turns it into an ImportError."""
    (tmp_path / "compiled.py").write_text(
        "import contextlib, os, signal\n"
        "with contextlib.suppress(BaseException):\n"
        f"    os.kill(os.getpid(), signal.{sent})\n"
    )
    command = "def command():\n    import compiled, time\n    time.sleep(30)\n"
    run = "from tfswa_sep.cli import terminal; raise SystemExit(terminal.run(command, debug=False, as_json=False))"
    done = subprocess.run(
        [sys.executable, "-c", command + run], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code and "no partial files were left" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_with_json_reports_what_was_done(tmp_path: Path, sent: str, code: int) -> None:
    write_song(tmp_path / "a.wav", seconds=0.1)
    write_song(tmp_path / "b.wav", seconds=20)
    command = [sys.executable, "-c", SLOW_COMMAND, "a.wav", "b.wav", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        done = json.loads(process.stdout.readline())
        process.send_signal(getattr(signal, sent))
        (error,) = map(json.loads, process.stdout.read().splitlines())
        assert process.wait(timeout=300) == code
    assert (done["song"], done["status"]) == ("a.wav", "done")
    assert error["error"]["exit_code"] == code and "no partial files" in error["error"]["message"]


@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_a_closed_pipe_is_not_an_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-m", "tfswa_sep", *arguments],
            stdout=broken,
            stderr=subprocess.PIPE,
            timeout=300,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


# --- models


def test_models_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("small (default)") and "vocals, drums, bass, other" in text
    assert ".md" not in text  # files of the checkout, which no installation has
    assert main.run(["models", "list"]) == 0
    assert capsys.readouterr().out == text
    assert main.run(["models", "--json"]) == 0
    small, *_ = json.loads(capsys.readouterr().out)["models"]
    assert small["name"] == "small" and small["files"][0]["backend"] == "onnx"


def test_models_path_is_the_file_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "path", "small"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == registry.fetch(registry.default_model(), "onnx") and path.suffix == ".onnx"


# --- the real thing


@pytest.mark.slow
def test_the_demo_song_through_the_real_model(tmp_path: Path) -> None:
    song = ROOT / "examples/demo/demo.ogg"
    done = python("-m", "tfswa_sep", str(song), "--out", str(tmp_path), "--stems", "vocals,accompaniment")
    assert (done.returncode, done.stderr) == (0, "")
    mixture, rate = soundfile.read(song)
    vocals, rate_out = soundfile.read(tmp_path / "demo" / "vocals.wav")
    accompaniment, _ = soundfile.read(tmp_path / "demo" / "accompaniment.wav")
    assert rate == rate_out and vocals.shape == mixture.shape
    assert np.isfinite(vocals).all() and 0.01 < np.abs(vocals).max() < 1.5
    # Ogg's float samples, 44.1 kHz: the stems add up to what was decoded.
    assert np.abs(vocals + accompaniment - mixture).max() < 1e-3
