"""Check that an MP4 file from ffmpeg is complete, and read and write MP4 boxes.

Boxes: ISO/IEC 14496-12, 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tfswa_sep.audio.ffmpeg import find_ffmpeg, last_error
from tfswa_sep.audio.ffmpeg_process import FfmpegProcess


def check_mp4(path: Path, tracks: int, frames: int, *, messages: str = "") -> None:
    """Check that an MP4 file is complete, by reading its boxes and packets without decoding them.

    Args:
        path: The file.
        tracks: The number of audio tracks it must have.
        frames: The minimum number of samples per channel in each.
        messages: ffmpeg's messages when it wrote the file: on a full disk it may still exit with 0.

    Raises:
        OSError: Something is missing.
    """
    program = find_ffmpeg()
    assert program is not None
    command = [program, "-nostdin", "-hide_banner", "-loglevel", "level+error"]
    command += ["-protocol_whitelist", "file,pipe", "-i", f"file:{path.resolve()}"]
    command += ["-map", "0:a", "-c", "copy", "-f", "framecrc", "-"]
    counts = [0] * tracks
    with FfmpegProcess(command, stdout=True) as child:
        rest = ""
        while data := child.read(1 << 16):  # a million lines for hours of audio
            *lines, rest = (rest + data.decode("ascii", errors="replace")).split("\n")
            for line in lines:
                if not line.startswith("#"):
                    track, _, start, length = (int(field) for field in line.split(",")[:4])
                    if start >= 0:  # earlier packets only prime the decoder
                        counts[track] += length
        failed = child.wait() != 0
        why = messages or (child.messages() if failed else "")
    if failed or min(counts) < frames:
        raise OSError(0, last_error(why) if why else f"only {min(counts)} of {frames} samples were written")
    with path.open("rb") as file:
        list(read_boxes(file))


def read_boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length in bytes of each box. Raises OSError unless the boxes fill the file exactly."""
    size = file.seek(0, 2)
    start = 0
    while start < size:
        file.seek(start)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        elif length == 0:  # extends to the end of the file
            length = size - start
        if length < 8 or start + length > size:
            raise OSError(0, "the MP4 file is damaged")
        yield kind, start, length
        start += length


def make_box(kind: bytes, content: bytes) -> bytes:
    """The bytes of a box."""
    return (len(content) + 8).to_bytes(4, "big") + kind + content
