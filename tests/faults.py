"""The machinery for the tables of faults: each row runs the real command.

A row says what lies in the folder, what is typed, and what must come of it: the exit code, exactly one line
on stderr, and which files are new. Everything that was there before must be there afterwards, to the byte.
Rows that have to do with the process itself (its standard streams, its rights, its death) start one; the others call
the command in the process of the tests, which saves its start.

    @pytest.mark.parametrize("fault", ROWS, ids=str)
    def test_a_fault_is_reported_in_one_line(fault: Fault, tmp_path: Path, call: Call) -> None:
        fault.check(tmp_path, call)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

from fakes import write_song

COMMAND = (sys.executable, "-m", "tfswa_sep")
IN_A_SHELL = 'exec "$@"'
Undo = Callable[[], object]
Call = Callable[[Path, Sequence[str], Mapping[str, str]], tuple[int, str]]  # the fixture `call`


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of a table."""

    name: str
    prepare: Callable[[Path], Undo | None]  # fills the folder; what it returns is called at the end
    typed: Sequence[str]  # the words after `tfswa-sep`
    code: int
    says: Sequence[str]  # parts of the one line on stderr, () for no line at all
    new: Sequence[str] = ()  # patterns of the files that appear, one for each
    stdin: bytes | None = None
    shell: str = IN_A_SHELL  # what a shell does with the command, such as closing its stdout
    env: Mapping[str, str] = field(default_factory=dict)
    meanwhile: Callable[[subprocess.Popen[bytes], Path], object] | None = None  # while the command runs

    def __str__(self) -> str:
        return self.name

    @property
    def needs_a_process(self) -> bool:
        return self.shell != IN_A_SHELL or self.stdin is not None or self.meanwhile is not None

    def check(self, folder: Path, call: Call | None = None) -> None:
        """Run the row in `folder`, which is empty, and assert all that it says; without `call` as a process."""
        undo = self.prepare(folder)
        try:
            before = listing(folder)
            if call is None or self.needs_a_process:
                code, err = self._run(folder)
            else:
                code, err = call(folder, self.typed, self.env)
            after = listing(folder)
        finally:
            if undo:
                undo()
        assert code == self.code, err
        lines = [line for line in err.splitlines() if not re.search(r": \d+%, ", line)]  # no progress
        assert len(lines) == (1 if self.says else 0), err
        for part in self.says:
            assert lines[0].startswith("tfswa-sep: ") and part in lines[0], err
        assert {name: after.get(name) for name in before} == before, "what was there has changed"
        new = sorted(set(after) - set(before))
        unmatched = [name for name in new if not any(fnmatchcase(name, pattern) for pattern in self.new)]
        assert not unmatched and len(new) == len(self.new), f"new: {new}, expected: {self.new}"

    def _run(self, folder: Path, *, timeout: float = 300) -> tuple[int, str]:
        process = subprocess.Popen(
            ["sh", "-c", self.shell, "sh", *COMMAND, *self.typed],
            cwd=folder,
            env={**os.environ, "COLUMNS": "80", **self.env},
            stdin=subprocess.DEVNULL if self.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                if self.meanwhile:
                    self.meanwhile(process, folder)
                _, err = process.communicate(self.stdin, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return process.returncode, err.decode()


def listing(folder: Path) -> dict[str, str]:
    """Every file, link and empty folder below `folder`: its path and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir() or not any(path.iterdir()):
            found[name + "/"] = ""
    return found


def song(name: str = "song.wav", **options: object) -> Callable[[Path], None]:
    """A row's `prepare` that writes one song; options: see write_song."""

    def prepare(folder: Path) -> None:
        write_song(folder / name, **options)  # type: ignore[arg-type]

    return prepare


def nothing(folder: Path) -> None:
    """A row's `prepare` that leaves the folder empty."""
