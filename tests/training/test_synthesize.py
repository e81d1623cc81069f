"""Speech synthesizers; a fake one writes the text instead of speaking it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("soxr")

from training.corpus.recorded.catalogue import speech_sources
from training.corpus.speech.synthesize import ESPEAK, FLITE, LINES, SYNTHESIZERS, synthesize


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    program = tmp_path / "flite/usr/bin/flite"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\n[ "$2" = rms ] && { echo "no such voice" >&2; exit 1; }\necho "$4" >"$6"\n'
    )
    program.chmod(0o755)
    (tmp_path / "libflite1").mkdir()
    return tmp_path


def test_every_voice_is_synthesized_once(packages: Path) -> None:
    problems = synthesize(packages)
    assert [line for line in problems if line.startswith("flite")] == [
        "flite cannot speak as rms: no such voice"
    ]
    clips = packages / "flite/clips"
    assert sorted(path.name for path in clips.iterdir()) == sorted({*FLITE} - {"rms"})
    assert (clips / "slt/03.wav").read_text().strip() == LINES["en"][3]
    before = (clips / "slt").stat().st_mtime_ns
    synthesize(packages)
    assert (clips / "slt").stat().st_mtime_ns == before


def test_missing_packages_are_named(packages: Path) -> None:
    (line,) = [line for line in synthesize(packages) if line.startswith("espeak-ng")]
    for name in ("espeak-ng", *SYNTHESIZERS["espeak-ng"]):
        assert name in line


def test_voices_become_sources(packages: Path) -> None:
    synthesize(packages)
    sources = [s for s in speech_sources(packages, packages) if s.name.startswith("flite")]
    assert [(s.name, s.licence_class, s.extra["speakers"]) for s in sources] == [
        (f"flite-{voice}", "permissive", 1) for voice in sorted({*FLITE} - {"rms"})
    ]


def test_every_language_has_lines() -> None:
    assert {language[:2] for language, *_ in ESPEAK} <= LINES.keys()
    assert all(len(lines) >= 10 for lines in LINES.values())  # fewer are not set to melodies
