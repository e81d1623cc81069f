"""The one thing about Ogg files that libsndfile does not tell: whether the last page is there.

Layout of a page: RFC 3533, section 6.
"""

from __future__ import annotations

from pathlib import Path

_LARGEST_PAGE = 27 + 255 + 255 * 255  # bytes
_END_OF_STREAM = 4  # a bit of a page's sixth byte


def is_cut_short(path: Path) -> bool:
    """Whether an Ogg file's last page is cut, or does not say that it is the last one. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * _LARGEST_PAGE))
        end = file.read()
    page = end[end.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & _END_OF_STREAM:
        return True
    segments = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(segments)
