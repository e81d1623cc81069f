"""All stems in one Native Instruments file, `song.stem.mp4`, for Traktor and other DJ programs.

An MP4 with five AAC streams, the mix first, and a box `stem` in moov/udta with JSON that names and colours
the other four. ffmpeg writes the streams; the box is ours: no library writes it without MP4Box.
Format: Native Instruments, "Stem file specification"; boxes: ISO/IEC 14496-12, 4.2.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tfswa_sep.audio.ffmpeg import INSTALL, find_ffmpeg, last_error
from tfswa_sep.errors import UsageError

ORDER = {"drums": "#009E73", "bass": "#D55E00", "other": "#CC79A7", "vocals": "#56B4E9"}  # and their colours
EXTENSION = ".stem.mp4"
_RATES = (44_100, 48_000)  # Hz that players take
_BITRATE = "256k"
# What a player does to the sum of the stems: nothing, until the listener turns it on.
_NO_MASTERING = {
    "compressor": {
        "enabled": False,
        "ratio": 2,
        "output_gain": 0,
        "release": 0.3,
        "attack": 0.003,
        "input_gain": 0,
        "threshold": 0,
        "hp_cutoff": 20,
        "dry_wet": 50,
    },
    "limiter": {"enabled": False, "release": 0.05, "threshold": 0, "ceiling": 0},
}


def check_stem_file(stems: tuple[str, ...]) -> None:
    """Raise UsageError if these stems cannot make a stem file, or there is no ffmpeg to write it."""
    if set(stems) != set(ORDER):
        raise UsageError(f"a stem file needs {', '.join(ORDER)}: remove --stems or --stem-file")
    if find_ffmpeg() is None:
        raise UsageError(f"--stem-file needs ffmpeg: {INSTALL}")


def write_stem_file(path: Path, stems: Mapping[str, Path], rate: int, *, title: str | None = None) -> None:
    """Write the audio files `stems` (by the names in ORDER), and their sum in front, to `path`.

    rate: Hz, of the stems.  title: of the song; all other tags are those of the first stem.
    Raises OSError with a reason.
    """
    program = find_ffmpeg()
    assert program is not None  # check_stem_file has seen to it
    command = [program, "-nostdin", "-hide_banner", "-loglevel", "level+error", "-y"]
    for stem in ORDER:
        command += ["-protocol_whitelist", "file", "-i", f"file:{stems[stem].resolve()}"]
    command += ["-filter_complex", f"amix=inputs={len(ORDER)}:normalize=0[mix]", "-map", "[mix]"]
    for index in range(len(ORDER)):
        command += ["-map", f"{index}:a"]
    command += [
        "-c:a",
        "aac",
        "-b:a",
        _BITRATE,
        "-ac",
        "2",
        "-ar",
        str(rate if rate in _RATES else _RATES[0]),
    ]
    # Only the mix plays where a program knows nothing of stems.
    command += ["-disposition:a", "0", "-disposition:a:0", "default"]
    command += ["-map_metadata", "0", *(["-metadata", f"title={title}"] if title else [])]
    command += ["-f", "mp4", f"file:{path.resolve()}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise OSError(0, last_error(done.stderr))
    described = {
        "mastering_dsp": _NO_MASTERING,
        "stems": [{"name": stem.capitalize(), "color": color} for stem, color in ORDER.items()],
        "version": 1,
    }
    with path.open("rb+") as file:
        _add_box(file, json.dumps(described).encode())


def _add_box(file: IO[bytes], content: bytes) -> None:
    """Put the box `stem` into moov/udta. moov must be the last box: then no offset in the file changes."""
    size = file.seek(0, 2)
    at, length, kind = 0, 0, b""
    while at + length < size:
        at += length
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(file.read(8), "big")
    if kind != b"moov" or at + length != size:
        raise OSError(0, "ffmpeg wrote an MP4 of an unexpected layout")
    file.seek(at + 8)
    children = file.read(length - 8)
    stem = _box(b"stem", content)
    start = 0
    while start < len(children):
        child, kind = struct.unpack_from(">I4s", children, start)
        if kind == b"udta":
            udta = _box(b"udta", children[start + 8 : start + child] + stem)
            children = children[:start] + udta + children[start + child :]
            break
        start += child
    else:
        children += _box(b"udta", stem)
    file.seek(at)
    file.write(_box(b"moov", children))


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content
