"""The benchmark: measuring processes, contenders, peers, and the record.

Tiny scripts replace the measured programs: the real peers need gigabytes and minutes.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from rich.console import Console

pytest.importorskip("psutil")

from tfswa_sep.inference.onnx_backend import OnnxBackend
from training.benchmark import __main__ as benchmark
from training.benchmark import evaluation, profile
from training.benchmark.contenders import (
    Contender,
    default_precision,
    our_contenders,
    precisions_of,
    score,
)
from training.benchmark.measure import (
    FailedCommandError,
    Run,
    measure,
    seconds_to_first_line,
)
from training.benchmark.peers import PEERS, Peer, PeerInstallError, install, peer_contenders
from training.benchmark.record import measurement, plot, table

ROOT = Path(__file__).resolve().parents[2]
HELP = """
  --backend <onnx|torch>          What computes.
  --precision <fp32|int8|auto>    How numbers are held
                                  [default: auto].
  --bit-depth <16|24>             Not bf16.
"""
# Replaces `tfswa-sep`: logs its arguments, and does what they ask for.
COMMAND = """#!{python}
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([*arguments, os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if "--help" in arguments:
    print({help!r})
elif arguments[:2] == ["models", "path"]:
    print({model!r})
elif arguments[:2] == ["eval", "run"]:
    mean = {{"vocals": {{"sdr": 4.0, "gain": 1.0}}}}
    Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps({{"methods": [{{"mean": mean}}]}}))
else:
    assert Path(arguments[0]).is_file() and Path(arguments[2]).is_dir()
    sys.exit("no 16 bits here" if arguments[5:8:2] == ["torch", "auto"] else 0)
"""


def read_log(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake tfswa-sep, with a `python` next to it as in a virtual environment."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "model").write_bytes(bytes(1234))
    program = tmp_path / "bin" / "command"
    facts = {"log": str(tmp_path / "log"), "model": str(tmp_path / "model"), "help": HELP}
    program.write_text(COMMAND.format(python=sys.executable, **facts))
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 100 samples\n")
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    return program


def contender(name: str = "fake", code: str = "pass", **changes: Any) -> Contender:
    fields: dict[str, Any] = {
        "backend": "torch", "precision": "fp32", "threads": None, "stems": 2, "weights": "own",
        "model_bytes": 10**6, "command": (sys.executable, "-c", code, "{song}", "{out}"),
    }  # fmt: skip
    return Contender(name=name, **(fields | changes))


def test_a_song_is_looped_to_the_requested_length(tmp_path: Path) -> None:
    loop = np.arange(1, 1001, dtype=np.int16)
    soundfile.write(tmp_path / "loop.wav", loop, 8000)
    benchmark.make_song(tmp_path / "loop.wav", tmp_path / "long.wav", minutes=0.01)
    result, rate = soundfile.read(tmp_path / "long.wav", dtype="int16")
    assert rate == 8000
    np.testing.assert_array_equal(result, np.tile(loop, 5)[:4800])


def measure_apart(code: str) -> Run:
    """`measure` Python code from a small process: the kernel counts the memory of the one that measures too."""
    script = (
        "import json, sys; from training.benchmark.measure import measure;"
        "print(json.dumps(vars(measure(sys.argv[1:]))))"
    )
    words = [sys.executable, "-c", script, sys.executable, "-c", code]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return Run(**json.loads(printed))


def test_a_process_is_measured() -> None:
    idle, busy = measure_apart("pass"), measure_apart(f"held = bytearray(b'1') * {100 << 20}")
    assert idle.memory < 100 << 20 < busy.memory
    assert busy.wall > 0 and busy.cpu > 0


def test_memory_is_that_of_all_processes_together() -> None:
    size = 100 << 20
    child = f"held = bytearray(b'1') * {size}; print(flush=True); input()"
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1)"
    until_both_hold = (
        "[p.stdout.readline() for p in both]; time.sleep(0.5); [p.communicate(b'\\n') for p in both]"
    )
    together = measure_apart(f"import subprocess, sys, time; both = [{start}, {start}]; {until_both_hold}")
    assert 2 * size < together.memory < 3 * size


def test_a_failed_command_is_an_error() -> None:
    command = [sys.executable, "-c", "import sys; print('no such stem'); sys.exit(3)"]
    with pytest.raises(FailedCommandError, match="exit code 3: no such stem"):
        measure(command)
    with pytest.raises(FailedCommandError, match="exit code 1"):
        seconds_to_first_line([sys.executable, "-c", "pass"])  # prints nothing


def test_the_time_ends_with_the_first_line_and_the_call_with_the_process() -> None:
    slow = "import time; print('first', flush=True); time.sleep(0.2); print('second')"
    started = time.perf_counter()
    first = seconds_to_first_line([sys.executable, "-c", slow])
    assert 0 < first < time.perf_counter() - started - 0.2


def test_precisions_are_read_from_the_help() -> None:
    assert precisions_of(HELP) == ("fp32", "int8")
    assert precisions_of("  --bit-depth <16|24>  Not int8.") == ()
    mentioned = "  Float32 unless --precision says otherwise.\n\nOptions:\n  --json FILE  Write it there.\n"
    assert precisions_of(mentioned + HELP) == ("fp32", "int8") and precisions_of(mentioned) == ()
    assert default_precision(mentioned + HELP) == "auto"
    assert default_precision(HELP) == "auto"
    assert default_precision("  --precision <fp32|int8>  Not auto [default: int8].") == "int8"
    assert default_precision("  --bit-depth <16|24>  [default: 24]") == "fp32"


def test_every_setting_of_our_command_is_a_contender(command: Path, tmp_path: Path) -> None:
    result = our_contenders(
        str(command), backends=["onnx"], precisions=None, threads=[1, 2], extra=["--stems", "vocals"]
    )
    assert [(each.backend, each.precision, each.threads) for each in result] == [
        ("auto", "auto", None), ("onnx", "fp32", 1), ("onnx", "fp32", 2),
        ("onnx", "int8", 1), ("onnx", "int8", 2),
    ]  # fmt: skip
    last = result[-1]
    assert last.command[4:] == (
        "--quiet", "--backend", "onnx", "--precision", "int8", "--threads", "2", "--stems", "vocals"
    )  # fmt: skip
    assert last.first_sample[0] == str(command.parent / "python")
    assert last.first_sample[3:] == ("{song}", "onnx", "threads=2", "precision=int8")
    assert last.model_bytes == 1234 and last.stems == 1
    torch = our_contenders(str(command), backends=["torch"], precisions=None, threads=[1], extra=[])[1:]
    assert [(each.precision, each.stems) for each in torch] == [("fp32", 4), ("auto", 4)]
    asked = [line for line in read_log(tmp_path / "log") if line[:2] == ["models", "path"]]
    assert ["models", "path", "small", "--backend", "onnx", "--precision", "int8", None] in asked


def test_a_failing_contender_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "busy_cores", lambda: 0.0)
    song = tmp_path / "song.wav"
    song.write_bytes(b"")
    good = contender(first_sample=(sys.executable, "-c", "print('here')"))
    advice = 'run: pip install "tfswa-sep[torch]"'  # not rich markup
    contenders = [good, contender("bad", f"raise SystemExit({advice!r})")]
    out = io.StringIO()
    result = benchmark.measure_all(
        contenders,
        song,
        minutes=0.5,
        runs=2,
        patience=60.0,
        scores={good.without_threads: {"vocals": 1.0}},
        console=Console(file=out),
    )
    (row,) = result["measurements"]
    assert (row["name"], len(row["runs"]), len(row["first_sample_runs"])) == ("fake", 2, 2)
    assert (row["ratio"], row["sdr"]) == (1.0, {"vocals": 1.0})
    assert [each["name"] for each in result["not_run"]] == ["bad (torch fp32)"]
    assert result["not_run"][0]["reason"] == f"exit code 1: {advice}"
    Console(file=out, width=200).print(table({**result, "busy_cores": 0.0}))
    assert f"bad (torch fp32) failed: exit code 1: {advice}" in out.getvalue()
    assert f"not run: bad (torch fp32): exit code 1: {advice}" in out.getvalue()


def test_slow_contenders_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "busy_cores", lambda: 0.0)
    song = tmp_path / "song.wav"
    song.write_bytes(b"")
    contenders, console = [contender()], Console(file=io.StringIO())
    result = benchmark.measure_all(
        contenders, song, minutes=0.5, runs=2, patience=0.0, scores={}, console=console
    )
    assert [len(row["runs"]) for row in result["measurements"]] == [1]


def test_medians_and_ratios_to_our_command() -> None:
    runs = (Run(9.0, 1.0, 10), Run(3.0, 3.0, 30), Run(4.0, 2.0, 20))
    row = measurement(contender(threads=2), 0.5, runs, [], baseline=2.0)
    assert row["median"] == {"wall": 4.0, "cpu": 2.0, "memory": 20, "first_sample": 4.0}
    assert (row["real_time_factor"], row["ratio"], row["threads"]) == (pytest.approx(4.0 / 30), 2.0, 2)


def test_table_and_plot_show_the_record() -> None:
    runs = (Run(6.0, 1.0, 2 * 10**6),)
    rows = [
        measurement(contender("ours"), 1.0, runs, [0.75], baseline=6.0, sdr={"vocals": 4.321}),
        measurement(contender("peer", weights="random", threads=1), 1.0, runs, [], baseline=3.0),
    ]
    record = {
        "machine": "a machine", "busy_cores": 1.0, "measurements": rows,
        "not_run": [{"name": "other", "reason": "no wheel"}],
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=300).print(table(record))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines()]
    assert [
        "ours",
        "2",
        "torch",
        "fp32",
        "auto",
        "6.0",
        "0.100",
        "1.00",
        "0.8",
        "2",
        "1.0",
        "vocals 4.32",
    ] in cells
    assert ["peer*", "2", "torch", "fp32", "1", "6.0", "0.100", "2.00", "(6.0)", "2", "1.0", "-"] in cells
    for note in ("random weights", "1.0 cores busy", "not run: other: no wheel"):
        assert note in out.getvalue()
    picture = ElementTree.fromstring(plot(record))
    texts = [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours torch fp32 1 min", "peer torch fp32 1 min 1 thr", "0.100"} <= set(texts)


@pytest.mark.slow
def test_a_peer_has_its_own_environment(tmp_path: Path) -> None:
    wheel = tmp_path / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fake.py", "print('first')")
        file.writestr("fake-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
        file.writestr(
            "fake-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("fake-1.0.dist-info/RECORD", "")
    peer = Peer(
        name="fake",
        requirements=(str(wheel),),
        random_weights=False,
        weights="venv/lib/python*/site-packages/fake.py",
        command=("{python}", "-m", "fake", "{song}"),
    )
    folder = install(peer, tmp_path)
    (one,) = peer_contenders(peer, tmp_path, threads=[1], scorer="tfswa-sep")
    assert one.command == (str(folder / "venv" / "bin" / "python"), "-m", "fake", "{song}")
    assert (one.environment["OMP_NUM_THREADS"], one.model_bytes) == ("1", len("print('first')"))
    assert seconds_to_first_line(one.command) > 0
    (folder / "kept").touch()
    assert (install(peer, tmp_path) / "kept").exists()  # installed only once
    with pytest.raises(PeerInstallError, match=r"(?i)wheel"):  # capitalized differently by versions of pip
        install(Peer(name="fake", requirements=("no/such.whl",)), tmp_path)
    assert not (folder / "kept").exists()


def test_peers_are_pinned() -> None:
    for peer in PEERS:
        assert peer.version
        assert peer.backend != "torch" or "torch==2.13.0" in peer.requirements


def test_the_stems_of_peers_are_scored_by_our_command(command: Path, tmp_path: Path) -> None:
    (tmp_path / "songs" / "a song").mkdir(parents=True)
    for stem in ("vocals", "drums"):
        soundfile.write(tmp_path / "songs" / "a song" / f"{stem}.wav", np.full(800, 0.25), 44_100)
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2] + '.wav')"
    other = contender(
        code=f"import os, sys; assert os.environ['ASKED'] == 'so'\n{copy}",
        score=(str(command), "eval", "run", "--json", "{json}", "--estimates", "{estimates}"),
        variables=(("ASKED", "so"),),
    )
    assert score(other, tmp_path / "songs") == {"vocals": 4.0}


@pytest.mark.slow
def test_the_command_measures_and_writes_everything(
    command: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "HELP_RUNS", 1)
    soundfile.write(tmp_path / "loop.wav", np.ones(800, dtype=np.int16), 8000)
    code = benchmark.main([
        "--command", str(command), "--song", str(tmp_path / "loop.wav"), "--minutes", "0.01", "0.02",
        "--backend", "torch", "--threads", "2", "--runs", "1", "--peers", "--valid", str(tmp_path),
        "--json", str(tmp_path / "record.json"), "--plot", str(tmp_path / "plot.svg"),
        "--", "--stems", "vocals",
    ])  # fmt: skip
    assert code == 0
    record = json.loads((tmp_path / "record.json").read_text())
    rows = [
        (row["minutes"], row["backend"], row["precision"], row["threads"]) for row in record["measurements"]
    ]
    assert rows == [
        (0.01, "auto", "auto", None), (0.01, "torch", "fp32", 2),
        (0.02, "auto", "auto", None), (0.02, "torch", "fp32", 2),
    ]  # fmt: skip
    assert all(row["sdr"] == {"vocals": 4.0} for row in record["measurements"])
    assert all("no 16 bits here" in each["reason"] for each in record["not_run"])
    assert len(record["not_run"]) == 2
    assert "not run: tfswa-sep (torch auto, 2 threads)" in " ".join(capsys.readouterr().out.split())
    ElementTree.fromstring((tmp_path / "plot.svg").read_text())
    runs = [line for line in read_log(tmp_path / "log") if line[-3:-1] == ["--stems", "vocals"]]
    assert [line[-1] for line in runs] == [None, "2", "2"] * 2  # OMP_NUM_THREADS


@pytest.mark.slow
def test_the_profile_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.2, 0.2, (44_100, 2)), 44_100)
    network = OnnxBackend._run_network
    spent = profile.profile(song, tmp_path / "out")
    steps = [*profile.STEPS.values(), "rest"]
    assert sum(spent[step] for step in steps) == pytest.approx(spent["all"]) and set(spent) == {*steps, "all"}
    assert all(spent[step] > 0 for step in steps) and spent["network"] > spent["STFT"]
    assert OnnxBackend._run_network is network and len(list((tmp_path / "out/song").iterdir())) == 4
    assert profile.main([str(song), "--minutes", "0.02"]) == 0
    assert "network" in capsys.readouterr().out


def test_the_time_of_bsseval_is_that_beyond_a_run_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for song in ("A", "B", "C"):
        (tmp_path / song).mkdir()
        (tmp_path / song / "vocals.flac").touch()
    commands: list[str] = []

    def fake(command: list[str], *, environment: dict[str, str]) -> Run:
        songs = Path(command[command.index("--data") + 1])
        assert sorted(path.parent.name for path in songs.glob("*/vocals.flac")) == ["A", "B"]
        words = " ".join(command)
        commands.append(words)
        cpu = 110.0 if "museval-reference" in words else 20.0 if "museval" in words else 10.0
        return Run(wall=2 * cpu, cpu=cpu, memory=0)

    monkeypatch.setattr(evaluation, "measure", fake)
    evaluation.main([str(tmp_path), "--songs", "2"])
    assert ["--jobs 2" in words for words in commands] == [False, False, True, False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| without BSSEval | 1 | 20 | 10 |  |  |"
    assert lines[4] == "| museval | 2 | 40 | 20 | 10 | 10.0 times as long |"
    assert lines[5] == "| museval-reference | 1 | 220 | 110 | 100 | 1.0 times as long |"
