"""Which songs a command line means, where folders and names are odd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tfswa_sep.batch.inputs import STDIN, find_songs
from tfswa_sep.errors import InputError, UsageError


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; file contents do not matter here."""
    monkeypatch.chdir(tmp_path)
    for name in ("album/a.wav", "album/deep/b.wav", "album/closed/c.wav", "alone/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def close(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a folder be nobody's to read, which no mode does for root."""
    scandir = os.scandir

    def refuse(path: str | Path = ".") -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        if os.fspath(path) == name:
            raise PermissionError(13, "Permission denied", name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_opened_is_a_failure_beside_the_songs(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close("album/closed", monkeypatch)
    *songs, closed = find_songs(["album"], recursive=True)
    assert [str(song.path) for song in songs] == ["album/a.wav", "album/deep/b.wav"]
    assert (str(closed.path), closed.problem) == (
        "album/closed", "album/closed cannot be opened: Permission denied",
    )  # fmt: skip
    with pytest.raises(InputError, match="album/closed cannot be opened: Permission denied"):
        find_songs(["album/closed"], recursive=True)


def test_linked_folders_are_searched_once(work: Path) -> None:
    (work / "elsewhere" / "cd").mkdir(parents=True)
    (work / "elsewhere" / "cd" / "c.wav").touch()
    (work / "album" / "closed" / "c.wav").unlink()
    for link, target in (("linked", "../elsewhere"), ("a_loop", "."), ("b_loop", "../album"), ("c", "deep")):
        (work / "album" / link).symlink_to(target)
    songs = find_songs(["album"], recursive=True)
    assert [(str(song.path), str(song.folder)) for song in songs] == [
        ("album/a.wav", "."), ("album/deep/b.wav", "deep"), ("album/linked/cd/c.wav", "linked/cd"),
    ]  # fmt: skip
    assert [str(song.path) for song in find_songs(["album"], recursive=False)] == ["album/a.wav"]


def test_what_is_left_out_is_counted(work: Path) -> None:
    names = ("cover.jpg", "back.JPG", "README", ".hidden", *(f"x.{extension}" for extension in MORE.split()))
    for name in names:
        (work / "album" / name).touch()
    songs = find_songs(["album"], recursive=False)
    assert len(songs) == 1 + len(MORE.split())
    note = "album: ignored 3 other files (2 .jpg, 1 without extension)"
    assert [song.notes for song in songs if song.notes] == [(note,)]


MORE = "3gp mpc ogv weba snd amr ts m4r dsf spx"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([""], UsageError, "the name of a song is empty"),
        (["album", " "], UsageError, "the name of a song is empty"),
        (["https://host/song.mp3"], InputError, "is a URL, not a file: download it first"),
        (["album/a.wav", "out"], InputError, "to write the stems there, use --out out"),
        (["out"], InputError, "no songs in the folder out: it is empty"),
        (["."], InputError, "use --recursive to search its subfolders"),
        (["alone"], InputError, "no songs in the folder alone$"),
    ],
)
def test_what_names_no_song(work: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    (work / "out").mkdir()
    with pytest.raises(error, match=message):
        find_songs(arguments, recursive=False)


def test_folders_that_fit_a_pattern_are_searched(work: Path) -> None:
    def found(pattern: str, *, recursive: bool = False) -> list[tuple[str, str]]:
        return [(str(song.path), str(song.folder)) for song in find_songs([pattern], recursive=recursive)]

    assert found("al*") == [("album/a.wav", ".")]  # and none in alone
    assert ("album/deep/b.wav", "deep") in found("al*", recursive=True)
    with pytest.raises(InputError, match=r"no songs match alo\*"):
        find_songs(["alo*"], recursive=True)


def test_a_file_called_like_the_standard_input(work: Path) -> None:
    (work / "-").touch()
    assert [str(song.path) for song in find_songs(["-", "./-", "[-]"], recursive=False)] == [
        STDIN, str(work / "-"), str(work / "-"),
    ]  # fmt: skip
