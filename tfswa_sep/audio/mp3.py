"""The one thing about MP3 files that libsndfile does not tell: whether their length is known, and all there.

Layout of the Xing/Info header: Gabriel Bouvigne, "MP3 Info Tag revision 1"; of ID3v2: id3.org, ID3v2.4, 3.1.
"""

from __future__ import annotations

from pathlib import Path

_MISSING_SHARE = 0.01  # encoders count the last frame differently: a cut of more than 1 % is a cut


def read_length_header(path: Path) -> int | None:
    """How many bytes of music an MP3's length header announces beyond what the file holds (0 if it is whole).

    None if there is no such header (or no MP3): then nothing says how long the song is.
    Raises OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while (tag := file.read(10))[:3] == b"ID3" and len(tag) == 10:
            start += 10 + sum(
                (byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)
            )
            file.seek(start)
        file.seek(start)
        head = file.read(4096)  # the header lies in the first frame, which has at most 1441 bytes
    if b"VBRI" in head:
        return 0
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or head[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM"):
        return None
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    if not flags & 1:  # no number of frames
        return None
    if not flags & 2:  # no number of bytes
        return 0
    announced = int.from_bytes(head[at + 12 : at + 16], "big")  # from the frame that holds the header on
    missing = announced - (size - start - max(0, at - 36))  # the header stands 13 to 36 bytes into its frame
    return missing if missing > _MISSING_SHARE * announced else 0
