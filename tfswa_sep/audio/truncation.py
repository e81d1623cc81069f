"""Whether an MP3 or Ogg file is cut short: libsndfile does not tell.

Layout of the Xing/Info header: Gabriel Bouvigne, "MP3 Info Tag revision 1"; of ID3v2: id3.org, ID3v2.4, 3.1;
of an Ogg page: RFC 3533, section 6.
"""

from __future__ import annotations

from pathlib import Path

_MISSING_SHARE = 0.01  # encoders count the last frame differently: a cut of more than 1 % is a cut
_LARGEST_PAGE = 27 + 255 + 255 * 255  # bytes of an Ogg page
_END_OF_STREAM = 4  # a bit of a page's sixth byte


def missing_mp3_bytes(path: Path) -> int | None:
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


def is_ogg_cut_short(path: Path) -> bool:
    """Whether an Ogg file's last page is cut, or does not say that it is the last one. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * _LARGEST_PAGE))
        end = file.read()
    page = end[end.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & _END_OF_STREAM:
        return True
    segments = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(segments)
