"""Bad songs, bad options and a hostile world: what the real command does about each. See faults.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import Fault, nothing, song

ROWS = [
    Fault(name="missing", prepare=nothing, typed=["none.mp3"], code=3, says=["none.mp3", "no such file"]),
    Fault(name="unknown stem", prepare=song(), typed=["song.wav", "--stems", "harp"], code=2, says=["harp"]),
]


@pytest.mark.parametrize("fault", ROWS, ids=str)
def test_a_fault_is_told_in_one_line(fault: Fault, tmp_path: Path) -> None:
    fault.check(tmp_path)
