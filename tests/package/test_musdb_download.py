"""`eval --musdb download`: a small archive of computed songs from a server on this machine."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from model_server import ModelServer

from tfswa_sep.cli import main
from tfswa_sep.errors import InputError, ModelError
from tfswa_sep.evaluation import musdb
from tfswa_sep.evaluation.multitrack import Song
from tfswa_sep.registry import download

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")  # of musdb


def zipped(**contents: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture(scope="module")
def stem_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A song of 1 s, whose stems are four tones; the fifth stream, which comes first, is their sum."""
    path = tmp_path_factory.mktemp("song") / "a.stem.mp4"
    tones = [f"0.1*sin({frequency}*t)" for frequency in (500, 900, 1700, 3300)]
    command = ["ffmpeg", "-v", "error"]
    for tone in ("+".join(tones), *tones):
        command += ["-f", "lavfi", "-i", f"aevalsrc={tone}|{tone}:d=1:s=44100"]
    maps = [word for number in range(5) for word in ("-map", str(number))]
    subprocess.run([*command, *maps, "-c:a", "aac", "-b:a", "192k", path], check=True)
    return path.read_bytes()


def serve(server: ModelServer, monkeypatch: pytest.MonkeyPatch, body: bytes, *, name: str = "a.zip") -> None:
    server.files[name] = body
    archive = replace(musdb.ARCHIVE, where=f"{server.url}/{name}", bytes=len(body))
    monkeypatch.setattr(musdb, "ARCHIVE", archive)


def kept(tmp_path: Path) -> set[str]:
    """Files below tmp_path but the locks'."""
    files = (path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    return {name for name in files if not name.endswith(".lock")}


@pytest.mark.slow
def test_excerpts_are_downloaded_once_and_scored_in_one_command(
    server: ModelServer,
    stem_file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    songs = {f"{subset}/A - {subset}.stem.mp4": stem_file for subset in ("test", "train")}
    serve(server, monkeypatch, zipped(**songs), name="cut.zip")  # cut off and resumed
    estimates = tmp_path / "found" / "A - test"
    estimates.mkdir(parents=True)
    decoded = musdb.decode_stems(
        Song("A - test", {}, packed=_written(tmp_path / "a.stem.mp4", stem_file)), estimates
    )
    decoded.files["mixture"].unlink()
    words = ["eval", "--musdb", "download", "--estimates", str(tmp_path / "found"), "--metrics", ""]
    for _ in range(2):
        assert main.run([*words, "--json", str(tmp_path / "a.json")]) == 0
    printed = capfd.readouterr()
    assert printed.err.count("downloading MUSDB18's excerpts to ") == 1
    assert server.gets["cut.zip"] == 2
    assert "not scores by the official MUSDB18 protocol" in " ".join(printed.out.split())
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["data"] == "MUSDB18 7 s excerpts test"
    assert record["methods"][0]["mean"]["drums"]["sdr"] > 60
    assert kept(tmp_path / "cache") == {f"musdb18-7/{name}" for name in songs}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_later_run_resumes(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = zipped(**{"train/a.stem.mp4": bytes(500_000)})
    serve(server, monkeypatch, body)
    part = download._part(musdb.ARCHIVE)
    part.parent.mkdir(parents=True)
    part.write_bytes(body[:400_000])
    counts: list[int] = []
    folder = musdb.download_excerpts(lambda done, _: counts.append(done))
    assert counts[0] > 400_000 and counts[-1] == len(body)
    assert (folder / "train" / "a.stem.mp4").read_bytes() == bytes(500_000)


def test_only_songs_are_unpacked_and_only_into_their_folders(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        "../out.stem.mp4", "/tmp/out.stem.mp4", "train/../../out.stem.mp4", "train/..\\out.stem.mp4",
        "C:/out.stem.mp4", "train/C:out.stem.mp4", "train/sub/out.stem.mp4", "train/out.exe", "out.stem.mp4",
        "train/song.stem.mp4",
    )  # fmt: skip
    serve(server, monkeypatch, zipped(**dict.fromkeys(names, b"")))
    musdb.download_excerpts()
    assert kept(tmp_path) == {"cache/musdb18-7/train/song.stem.mp4"}


def test_a_bad_archive_leaves_nothing_to_be_taken_for_songs(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = zipped(**{"train/a.stem.mp4": b"song" * 1000})
    damaged = good.replace(b"songsong", b"songsung", 1)  # the checksum is wrong
    for body, why in (
        (b"<html>not found</html>", "arrived damaged"),
        (damaged, "arrived damaged"),
        (zipped(**{"readme.txt": b""}), "not the archive of MUSDB18's excerpts"),
    ):
        serve(server, monkeypatch, body)
        with pytest.raises(InputError, match=why):
            musdb.download_excerpts()
        assert kept(tmp_path) == set()
    with zipfile.ZipFile(data := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("train/a.stem.mp4", bytes(1_000_000))
    serve(server, monkeypatch, data.getvalue())
    with pytest.raises(InputError, match="not the archive"):
        musdb.download_excerpts()
    serve(server, monkeypatch, good)
    monkeypatch.setattr(musdb, "ARCHIVE", replace(musdb.ARCHIVE, bytes=len(good) + 1))
    with pytest.raises(ModelError, match="bytes instead of"):
        musdb.download_excerpts()
    assert not musdb.excerpts_folder().exists()


def test_offline_says_so(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["eval", "--musdb", "download", "--offline"]) == 4
    assert "offline mode is on" in capsys.readouterr().err
