"""`tfswa-sep models`: the list of models, and downloads as a user sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import write_song
from model_server import BODY, SHA256, ModelServer

from tfswa_sep import registry
from tfswa_sep.cli import main
from tfswa_sep.registry.models_toml import read_models

OUR_LIST = registry.PACKAGE.parent / "models.toml"


@pytest.fixture
def listed(server: ModelServer, tmp_path: Path) -> ModelServer:
    """A server with two models that the user's list names: `best` without a hash and a licence, and a bag."""
    common = 'summary = "x"\nsample_rate = 44100\nchannels = 2\ntraining_data = "x"\n'
    bag = "".join(
        f'[[models.bag.files]]\nbackend = "onnx"\nwhere = "{server.url}/{name}"\nsha256 = "{SHA256}"\n'
        f"bytes = {len(BODY)}\nweights = {weights}\n"
        for name, weights in (("a.onnx", [1, 0]), ("b.onnx", [0, 1]))
    )
    text = (
        f'[models.best]\n{common}license = "none stated"\nstems = ["vocals", "other"]\n'
        f'[models.best.published]\nsource = "its author"\nvocals = 9\n'
        f'[[models.best.files]]\nbackend = "onnx"\nwhere = "{server.url}/cut.onnx"\n'
        f'[models.bag]\n{common}license = "MIT"\nstems = ["vocals", "other"]\n{bag}'
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(text, encoding="utf-8")
    return server


def test_our_list_pins_every_remote_file() -> None:
    models = read_models(OUR_LIST)
    assert {
        "small",
        "htdemucs",
        "htdemucs_ft",
        "htdemucs_6s",
        "scnet_small",
        "bs_roformer_sw",
    } <= models.keys()
    for model in models.values():
        assert all(file.sha256 and file.bytes for file in model.files)
        assert not model.published or model.published_by
        assert bool(model.scores) == model.default  # what others measured is never called ours
    assert len(registry.files_for(models["htdemucs_ft"], "onnx")) == 4


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_a_terminal(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFSWA_CONFIG", str(tmp_path))
    shown = in_terminal("models", columns=columns).splitlines()
    assert max(len(line.rstrip()) for line in shown) <= columns
    (row,) = (line.split() for line in shown if line.startswith("melband_roformer_kim"))
    assert row == ["melband_roformer_kim", "vocals,", "other", "951", "MB", "11.0*", "MIT"]
    (row,) = (line.split() for line in shown if line.startswith("small"))
    assert row[-6:] == ["19", "MB", "0.04", "6.1", "4.6", "GPL-3.0-or-later"]
    assert "not measured by us" in " ".join(" ".join(shown).split())


def test_the_list_says_what_is_not_known(listed: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models"]) == 0
    out = capsys.readouterr().out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("best"))
    assert row == ["best", "vocals,", "other", "?", "9.0*", "none", "stated"]
    assert "SHA-256 not published, recorded at the first download: best\n" in out
    assert main.run(["models", "info", "best"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "SHA-256 not published: recorded at the first download" in shown
    assert "published SDR vocals 9.0 dB, not measured by us: its author" in shown
    assert main.run(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["best"]["license"] == "none stated" and models["best"]["published"] == {"vocals": 9.0}
    assert models["small"]["real_time_factor"] == 0.041
    assert [file["weights"] for file in models["bag"]["files"]] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_missing_licence_is_mentioned_before_the_first_download_only(
    listed: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.files["cut.onnx"] = b""
    note = "tfswa-sep: note: the publisher of best states no licence for its weights"
    assert main.run(["models", "pull", "best"]) == 4  # an empty file is no model
    assert capsys.readouterr().err.splitlines()[0].startswith(note)
    del listed.files["cut.onnx"]
    listed.gets.clear()
    assert main.run(["models", "pull", "best", "bag"]) == 0
    assert capsys.readouterr().err.count(note) == 1
    assert main.run(["models", "path", "best"]) == main.run(["models", "pull", "best"]) == 0
    assert capsys.readouterr().err == ""


def test_a_hash_that_is_not_published_is_recorded_at_the_first_download(
    listed: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["models", "pull", "best"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[0])
    assert path.read_bytes() == BODY
    (file,) = registry.find_model("best").files
    assert (file.sha256, file.bytes) == (SHA256, len(BODY))
    assert sum(model.name.endswith("cut.onnx") for model in registry.known_models()) == 0  # no second entry
    # Any other file is refused from now on, until the record is deleted.
    path.unlink()
    listed.files["cut.onnx"] = BODY[::-1]
    assert main.run(["models", "pull", "best"]) == 4
    assert "has SHA-256" in capsys.readouterr().err
    listed.files["cut.onnx"] = BODY + b"!"
    assert main.run(["models", "rm", "best"]) == main.run(["models", "pull", "best"]) == 0
    assert registry.find_model("best").files[0].bytes == len(BODY) + 1


def test_all_files_of_a_bag_are_pulled_and_removed(
    listed: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["models", "path", "bag"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.read_bytes() == BODY for path in paths] == [True, True]
    assert main.run(["models", "pull", "bag"]) == 0
    assert listed.asked == ["GET /a.onnx", "GET /b.onnx"]
    assert main.run(["models", "rm", "bag"]) == 0
    assert not any(path.exists() for path in paths)


def test_offline_names_the_model(listed: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "pull", "bag", "--offline"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "on another machine, type `tfswa-sep models pull bag`; then copy " in line
    assert listed.asked == []


def test_a_terminal_shows_a_bar(listed: ModelServer) -> None:
    shown = in_terminal("models", "pull", "bag", columns=80)
    assert "bag (1 of 2)" in shown and "bag (2 of 2)" in shown and "/1.3 MB" in shown


def test_separate_and_eval_download_as_pull_does(
    listed: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files, with the same note; what arrives here is no network, so nothing is separated."""
    write_song(tmp_path / "song.wav", seconds=0.1)
    monkeypatch.chdir(tmp_path)
    assert main.run(["song.wav", "--model", "best"]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert "note: the publisher of best states no licence" in first and "not an ONNX model" in second
    assert main.run(["models", "rm", "best"]) == 0
    (tmp_path / "songs" / "a").mkdir(parents=True)
    for stem in ("mixture", "vocals", "other"):
        write_song(tmp_path / "songs" / "a" / f"{stem}.wav", seconds=0.1)
    assert main.run(["eval", "--data", "songs", "--model", "best"]) == 4
    assert "note: the publisher of best states no licence" in capsys.readouterr().err
    assert main.run(["song.wav", "--model", "bag", "--offline"]) == 4
    assert "type `tfswa-sep models pull bag`" in capsys.readouterr().err


def test_eval_downloads_only_files_of_the_chosen_precision(listed: ModelServer, tmp_path: Path) -> None:
    files = "".join(
        f'[[models.bag.files]]\nbackend = "onnx"\nwhere = "{listed.url}/{precision}.onnx"\n'
        f'precision = "{precision}"\n'
        for precision in ("int8", "fp32")
    )
    config = tmp_path / "config" / "models.toml"
    config.write_text(config.read_text().partition("[[models.bag.files]]")[0] + files)
    for stem in ("vocals", "other"):
        (tmp_path / "songs" / "a").mkdir(parents=True, exist_ok=True)
        write_song(tmp_path / "songs" / "a" / f"{stem}.wav", seconds=0.1)
    assert main.run(["eval", "--data", str(tmp_path / "songs"), "--model", "bag"]) == 4
    assert listed.asked == ["GET /fp32.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_leaves_a_download_that_resumes(listed: ModelServer, tmp_path: Path) -> None:
    """The server stalls after half of the file; a second run needs only the other half."""
    address = f"{listed.url}/stall.onnx#sha256={SHA256}"
    command = [sys.executable, "-m", "tfswa_sep", "models", "pull", address]
    environment = os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    parts = tmp_path / "cache" / "parts"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert listed.stalled.wait(300)
        while not any(path.stat().st_size > 500_000 for path in parts.glob("*.part")):
            assert process.poll() is None  # it is about to write what was sent
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (130, "tfswa-sep: interrupted; run again to resume the download\n")
    done: list[int] = []
    path = registry.fetch(
        registry.find_model(address), "onnx", on_progress=lambda count, _: done.append(count)
    )
    assert path.read_bytes() == BODY and done[0] > 500_000


def in_terminal(*words: str, columns: int) -> str:
    """What the command writes in a terminal, without control sequences."""
    pty = pytest.importorskip("pty")  # not on Windows
    import fcntl
    import re
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "tfswa_sep", *words]
    with subprocess.Popen(command, env=environment, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        try:
            while block := os.read(master, 65536):
                shown += block
        except OSError:  # Linux reports the end of a terminal as an error
            pass
    os.close(master)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")
