"""Drum kits of the Hydrogen drum machine: drumkit.xml and one-shots, identified by their names."""

import functools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from training.corpus.recorded.sources import Audio, read_audio, stereo
from training.corpus.rendered.sampler import Kit

# General MIDI drum notes by patterns of instrument names; the first match counts.
NAMES = (
    (37, r"side ?stick|rim ?click|\bstick\b"), (39, r"clap"), (54, r"tambourine"), (56, r"cowbell"),
    (46, r"(hat|hh).*op|open.*(hat|hh)|hat.*free"), (44, r"(hat|hh).*pe?d|pedal.*(hat|hh)"),
    (42, r"\bhat\b|\bhh\b"),
    (53, r"ride.*(bell|cup)|\bbell"), (51, r"ride"), (55, r"splash"), (49, r"crash|cymbal"),
    (43, r"floor|low.*tom|tom.*(low|floor)"), (45, r"mid.*tom|tom.*(mid|2)"), (48, r"tom"),
    (40, r"snare.*(rock|rim|2)"), (38, r"snare"), (36, r"kick|bass ?drum"),
)  # fmt: skip


def find_note(name: str) -> int | None:
    """The General MIDI drum note of an instrument's name, or None."""
    return next((note for note, pattern in NAMES if re.search(pattern, name, re.I)), None)


@functools.lru_cache(maxsize=2)
def load_hydrogen(path: str) -> Kit:
    """Read a kit from its drumkit.xml, with layers from soft to loud; the first instrument per note counts.

    Raises ValueError if the kit lacks kick, snare or hi-hat.
    """
    root = ElementTree.parse(path).getroot()
    for element in root.iter():  # newer files have a namespace
        element.tag = element.tag.split("}")[-1]
    hits: dict[int, list[Audio]] = {}
    for instrument in root.iter("instrument"):
        note = find_note(instrument.findtext("name", ""))
        if note is None or note in hits:
            continue
        layers = [
            (float(layer.findtext("min", "0")), layer.findtext("filename", ""))
            for layer in instrument.iter("layer")
        ] or [(0.0, instrument.findtext("filename", ""))]
        files = [Path(path).parent / name for _, name in sorted(layers) if name]
        if sounds := [stereo(read_audio(str(file))) for file in files if file.is_file()]:
            hits[note] = sounds
    if not ({36} <= set(hits) and {38, 40} & set(hits) and {42, 46} & set(hits)):
        raise ValueError(f"{path}: no kick, snare and hi-hat")
    return Kit(hits, layered=True)
