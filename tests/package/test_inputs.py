"""Which songs a command line means, where folders and names are odd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tfswa_sep.batch.inputs import STDIN, find_songs
from tfswa_sep.errors import InputError


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in; what is in files is no matter here."""
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


def test_a_folder_that_cannot_be_opened_is_told_and_the_rest_found(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close("album/closed", monkeypatch)
    found = find_songs(["album"], recursive=True)
    assert [str(song.path) for song in found] == ["album/a.wav", "album/deep/b.wav"]
    notes = [note for song in found for note in song.notes]
    assert notes == ["album/closed cannot be opened: Permission denied; its files were skipped"]
    with pytest.raises(InputError, match="album/closed cannot be opened: Permission denied"):
        find_songs(["album/closed"], recursive=True)


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
