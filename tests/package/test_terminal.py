"""What reaches the terminal: no control characters of file names, and progress where there is no terminal."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SLOW_COMMAND, write_song
from rich.table import Table

from tfswa_sep.cli import progress
from tfswa_sep.cli.terminal import one_line, print_tables, printable
from tfswa_sep.errors import advice


def test_what_is_printable_stays_and_the_rest_is_escaped() -> None:
    for text in (
        "Beyonc\u00e9 \u2013 \u30ab\u30e9\u30aa\u30b1\u3000x.wav",
        "\u0645\u06cc\u200c\u062e",
        "a  b",
    ):
        assert printable(text) == text
    assert printable("a\x1b[31m\u202egpj.wav\x85\x9b\n") == r"a\x1b[31m\u202egpj.wav\x85\x9b\n"
    assert one_line("a \n  b\t") == "a b"
    assert printable("see https://me:pass@host/x@1 and hf://org/repo@main") == (
        "see https://***@host/x@1 and hf://org/repo@main"
    )


def test_no_control_character_of_a_file_name_reaches_a_terminal(tmp_path: Path) -> None:
    names = ["a\x1b]0;title\x07\u202e.wav", "b\x1b[2J.wav"]
    for name in names:
        write_song(tmp_path / name)
    (tmp_path / "c\x1b[31m.mp3").write_text("no song")
    command = [sys.executable, "-c", SLOW_COMMAND, *names, "c\x1b[31m.mp3", "--debug"]
    parent, child = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdout=child, stderr=child) as process:
        os.close(child)
        printed = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError as error:  # Linux's way to say that the other end was closed
                assert error.errno == errno.EIO
                break
            printed += block
            if not block:
                break
    os.close(parent)
    assert process.returncode == 7
    for sequence in (b"\x1b]0;", b"\x07", "\u202e".encode(), b"\x1b[2J", b"\x1b[31m.mp3"):
        assert sequence not in printed
    assert rb"a\x1b]0;title\x07\u202e" in printed and b"vocals.wav" in printed


def test_tables_of_eval_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("song", "SDR")
    table.add_row("a\x1b[2J\u202eb", "7.0")
    print_tables(table)
    out = capsys.readouterr().out
    assert r"a\x1b[2J\u202eb" in out and "\x1b" not in out


def test_bars_leave_room_for_what_the_terminal_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bars = progress.ProgressBars()
    try:
        bars.update("a song with a long name" * 9, 3.0, 60.0)
        lines = bars._bars.console.render_lines(bars._bars.get_renderable(), pad=False)
    finally:
        bars.stop()
    (width,) = (sum(segment.cell_length for segment in line) for line in lines)
    assert width == 77  # "^C" fits


def test_the_songs_are_counted_above_the_bars_and_tables_stand_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bars = progress.ProgressBars(songs=20)
    try:
        bars.update("a.wav: small", 3.0, 60.0)
        bars.count(3, lambda width: [f"{width} columns"])
        rendered = bars._bars.console.render_lines(bars._bars.get_renderable(), pad=False)
        count, song, table = ("".join(segment.text for segment in line) for line in rendered)
        bars.remove("a.wav: small")
        assert len(bars._bars.console.render_lines(bars._bars.get_renderable())) == 2
    finally:
        bars.stop()
    assert count.startswith("songs ") and "3 of 20" in count
    assert song.startswith("a.wav: small") and "separating" in song and table.rstrip() == "77 columns"


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress.show_progress(shown=True) as shown:
        for done in range(101):
            now += 0.3  # a song in 30 s: every 10 s
            shown.update("[1/3] a.wav", float(done), 100.0)
        for done in range(201):
            now += 5.0  # in 1000 s: every 10 %
            shown.update("b.wav", float(done), 200.0)
        for done in range(7):
            now += 5.0
            shown.update("c.wav", float(done * 20), None)
    first, second, *others = capsys.readouterr().err.splitlines()
    assert first == "tfswa-sep: [1/3] a.wav: 34%, 34.0 s of 1:40"
    assert second == "tfswa-sep: [1/3] a.wav: 68%, 1:08 of 1:40"
    assert others[:9] == [
        f"tfswa-sep: b.wav: {p}%, {progress.clock(2 * p)} of 3:20" for p in range(10, 100, 10)
    ]
    assert others[9:] == [f"tfswa-sep: c.wav: {clock} separated" for clock in ("40.0 s", "1:20", "2:00")]
    lines = progress.ProgressLines(songs=50)
    for done in range(50):
        now += 3.0
        lines.update("a.wav", now, 1e6)  # which is counted
        lines.count(done)
    assert capsys.readouterr().err.splitlines() == [
        f"tfswa-sep: {done} of 50 songs: {done * 2}%" for done in range(5, 50, 5)
    ]
    with progress.show_progress(shown=False) as hidden:
        for _ in range(9):
            now += 99.0
            hidden.update("a.wav", now, 1e6)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EACCES, "permissions"), (errno.ENOSPC, "free up space"), (errno.EMFILE, "ulimit -n"),
        (errno.E2BIG, "tags"), (errno.EROFS, "read-only"), (errno.ENOENT, "check the disk"),
    ],
)  # fmt: skip
def test_advice_fits_the_error(code: int, hint: str) -> None:
    text = advice(OSError(code, os.strerror(code)))
    assert hint in text and (code == errno.ENOSPC) == ("space" in text)
