"""Where drums or bass rest in mixed music: stretches of it in which more than the voice is known.

A voice over mixed music supervises its vocals alone. Where the drums rest, drums of another pool can be
mixed in, and are known as well; where neither drums nor bass play, what is left is `other`, and all is known.
Nothing is copied: the pools DRUMLESS, BASSLESS and NEITHER are rows of the manifest that point into the
accompaniment's arrays. The rests are in rests_found.tsv, which find_rests.py wrote.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.corpus.recorded.sources import SAMPLE_RATE, read_tsv

RESTS_FOUND = Path(__file__).with_name("rests_found.tsv")
SHORTEST = 4  # s of a rest, at least
# Which stems rest in a pool's music.
RESTING = {"drumless": ("drums",), "bassless": ("bass",), "neither": ("drums", "bass")}

Spans = list[tuple[int, int]]
Rests = dict[tuple[str, str, str], Spans]  # (source, piece, stem) -> s from the beginning of the piece


def read_rests(path: Path = RESTS_FOUND) -> Rests:
    """The table: a row a source, piece and stem, its spans as `begin-end begin-end ...`."""
    return {
        (row["source"], row["piece"], row["stem"]): [
            (int(begin), int(end)) for begin, end in (span.split("-") for span in row["spans"].split())
        ]
        for row in read_tsv(path)
    }


def common(one: Spans, other: Spans) -> Spans:
    """What two lists of spans have in common, as far as it lasts SHORTEST."""
    both = [(max(a, b), min(c, d)) for a, c in one for b, d in other]
    return [(begin, end) for begin, end in both if end - begin >= SHORTEST]


def resting_rows(rows: Iterable[dict[str, Any]], rests: Rests) -> Iterator[dict[str, Any]]:
    """For every accompaniment row of a manifest: rows of the pools of RESTING, where there is such a rest."""
    for row in rows:
        if row["pool"] != "accompaniment" or not row["array"]:
            continue
        for pool, stems in RESTING.items():
            segments: Spans = []
            labels: list[str] = []
            for (start, end), piece in zip(row["segments"], row["labels"], strict=True):
                spans = [(0, (end - start) // SAMPLE_RATE)]
                for stem in stems:
                    spans = common(spans, rests.get((row["source"], piece, stem), []))
                segments += [(start + a * SAMPLE_RATE, start + b * SAMPLE_RATE) for a, b in spans]
                labels += [piece] * len(spans)
            if segments:
                key = json.dumps([row["fingerprint"], pool, segments])
                yield {
                    **row,
                    "pool": pool,
                    "minutes": round(sum(end - start for start, end in segments) / SAMPLE_RATE / 60, 3),
                    "fingerprint": hashlib.sha256(key.encode()).hexdigest()[:16],
                    "seconds_to_build": 0.0,
                    "segments": segments,
                    "labels": labels,
                }
