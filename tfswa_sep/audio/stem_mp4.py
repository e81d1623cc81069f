"""Write all stems to one Native Instruments file, `song.stem.mp4`, for Traktor and other DJ software.

An MP4 with five AAC tracks, the mix first, and a box `stem` in moov/udta with JSON that gives the other four names and
colours. ffmpeg writes the tracks and the box is added here, since no library does so without MP4Box.
Format: Native Instruments, "Stem file specification".
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tfswa_sep.audio.encode import AAC
from tfswa_sep.audio.ffmpeg import find_ffmpeg, last_error
from tfswa_sep.audio.ffmpeg_process import FfmpegProcess
from tfswa_sep.audio.mp4 import check_mp4, make_box, read_boxes
from tfswa_sep.audio.tags import ffmpeg_options, write_cover
from tfswa_sep.errors import UsageError, ffmpeg_install_command

ORDER = {"drums": "#009E73", "bass": "#D55E00", "other": "#CC79A7", "vocals": "#56B4E9"}  # and their colours
EXTENSION = ".stem.mp4"
_RATES = (44_100, 48_000)  # Hz that players support
_BITRATE = "256k"
# Effects on the sum of the stems, all off.
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
        raise UsageError(
            f"a stem file needs exactly the stems {', '.join(ORDER)}, not {', '.join(stems)}: "
            "change --stems or --model, or remove --stem-file"
        )
    if find_ffmpeg() is None:
        raise UsageError(f"--stem-file needs ffmpeg: {ffmpeg_install_command()}")


def write_stem_file(
    path: Path,
    stems: Mapping[str, Path],
    rate: int,
    frames: int,
    *,
    tags: Mapping[str, str],
    cover: bytes | None = None,
) -> None:
    """Write the audio files `stems` (by the names in ORDER), preceded by their sum, to `path`.

    Args:
        path: The file to write.
        stems: Stem -> file.
        rate: Hz, of the stems.
        frames: Samples per channel of each stem.
        tags: The song's, see tags.py.
        cover: An image file's content.

    Raises:
        OSError: With a reason.
    """
    program = find_ffmpeg()
    assert program is not None  # check_stem_file has checked
    command = [program, "-nostdin", "-hide_banner", "-loglevel", "level+error", "-y"]
    for stem in ORDER:
        command += ["-protocol_whitelist", "file", "-i", f"file:{stems[stem].resolve()}"]
    inputs = "".join(f"[{index}:a]" for index in range(len(ORDER)))  # ffmpeg 7 and later require the labels
    command += ["-filter_complex", f"{inputs}amix=inputs={len(ORDER)}:normalize=0[mix]", "-map", "[mix]"]
    for index in range(len(ORDER)):
        command += ["-map", f"{index}:a"]
    rate_there = rate if rate in _RATES else _RATES[0]
    command += [*AAC, "-b:a", _BITRATE, "-ac", "2", "-ar", str(rate_there)]
    # Programs without stem support play only the mix.
    command += ["-disposition:a", "0", "-disposition:a:0", "default"]
    command += ["-map_metadata", "-1", *ffmpeg_options(tags)]
    command += ["-f", "mp4", f"file:{path.resolve()}"]
    with FfmpegProcess(command) as child:
        failed = child.wait() != 0
        messages = child.messages()
    if failed:
        raise OSError(0, last_error(messages))
    least = frames * rate_there // rate - rate_there // 100  # ffmpeg may lose a few ms at the end
    check_mp4(path, 1 + len(ORDER), least, messages=messages)
    if cover:
        write_cover(path, ".m4a", cover)
    described = {
        "mastering_dsp": _NO_MASTERING,
        "stems": [{"name": stem.capitalize(), "color": color} for stem, color in ORDER.items()],
        "version": 1,
    }
    with path.open("rb+") as file:
        _add_box(file, json.dumps(described).encode())
        file.flush()
        os.fsync(file.fileno())


def _add_box(file: IO[bytes], content: bytes) -> None:
    """Add the box `stem` to moov/udta. moov must be the last box, so that no offsets in the file change."""
    *_, (kind, start, length) = read_boxes(file)
    if kind != b"moov":
        raise OSError(0, "ffmpeg wrote an MP4 with an unexpected layout")
    file.seek(start + 8)
    children = file.read(length - 8)
    found = [box for box in read_boxes(io.BytesIO(children)) if box[0] == b"udta"]
    _, at, size = found[0] if found else (b"", len(children), 0)
    udta = make_box(b"udta", children[at + 8 : at + size] + make_box(b"stem", content))
    file.seek(start)
    file.write(make_box(b"moov", children[:at] + udta + children[at + size :]))
