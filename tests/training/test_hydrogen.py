"""Drum kits of Hydrogen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("soxr")

from training.corpus.rendered.hydrogen import find_note, load_hydrogen

LAYER = "<layer><filename>{}</filename><min>{}</min><max>1</max></layer>"


@pytest.mark.parametrize(
    ("name", "note"),
    [("Kick 1", 36), ("BassDrum", 36), ("Snare Jazz", 38), ("Stick", 37), ("Hand Clap", 39),
     ("Snare (Pearl Free Floating)", 38), ("Closed HH", 42), ("Open HH", 46), ("Pedal HH", 44),
     ("Sabian Hat Open", 46), ("hi-hat closed", 42), ("Floor Tom", 43), ("Tom Low", 43), ("Tom Mid", 45),
     ("Tom Hi", 48), ("Crash Left", 49), ("Ride Bell", 53), ("Ride", 51), ("VariBreaks Hat 1 Cl", 42),
     ("Zap 1", None), ("19", None)],
)  # fmt: skip
def test_notes_are_found_by_name(name: str, note: int | None) -> None:
    assert find_note(name) == note


def write_kit(folder: Path, instruments: dict[str, list[float]]) -> str:
    parts = []
    for number, (name, starts) in enumerate(instruments.items()):
        layers = ""
        for start in starts:
            file = f"{number}-{start}.wav"
            soundfile.write(folder / file, np.full(100, (1 + start) / 4), 44_100, subtype="FLOAT")
            layers += LAYER.format(file, start)
        parts.append(f"<instrument><name>{name}</name>{layers}</instrument>")
    head = '<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit"><instrumentList>'
    path = folder / "drumkit.xml"
    path.write_text(f"{head}{''.join(parts)}</instrumentList></drumkit_info>")
    return str(path)


def test_layers_are_ordered_from_soft_to_loud(tmp_path: Path) -> None:
    kit = load_hydrogen(
        write_kit(tmp_path, {"Kick": [0.5, 0.0], "Snare": [0.0], "Closed HH": [0.0], "FX": [0.0]})
    )
    assert sorted(kit.hits) == [36, 38, 42]
    assert [float(hit[0, 0]) for hit in kit.hits[36]] == [0.25, 0.375]
    assert kit.hits[38][0].shape == (100, 2)


def test_a_kit_without_a_snare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no kick, snare and hi-hat"):
        load_hydrogen(write_kit(tmp_path, {"Kick": [0.0], "Closed HH": [0.0]}))
