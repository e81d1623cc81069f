"""Print a line when `Separator.stream` yields its first samples: first_sample.py SONG BACKEND [OPTION=VALUE...].

This runs in the environment of the installed command, and feeds blocks like a recording program would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import soundfile
from numpy.typing import NDArray

from tfswa_sep import Separator

BLOCK = 16_384  # samples


def blocks(song: str) -> Iterator[NDArray[Any]]:
    """Read a song in blocks (c, n)."""
    with soundfile.SoundFile(song) as file:
        while len(samples := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield samples.T


def main(song: str, backend: str, *settings: str) -> None:
    """Separate until the first samples."""
    options: dict[str, Any] = {}
    for name, value in (setting.split("=") for setting in settings):
        options[name] = int(value) if name == "threads" else value
    separator = Separator(backend=backend, **options)
    for stems in separator.stream(blocks(song), soundfile.info(song).samplerate):
        if stems.samples:
            print(f"{stems.samples} samples", flush=True)
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
