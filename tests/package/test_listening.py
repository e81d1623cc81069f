"""The page for listening, in a real browser: it plays, keeps the answers, and hands them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from waiting import wait_for

from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.listening.answers import read_answers
from tfswa_sep.evaluation.listening.page import _excerpts, listening_page

RATE = 44_100


def write(path: Path, *, level: float, seed: int = 0, seconds: float = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, level, (round(seconds * RATE), 2))
    samples[: RATE // 2] = 0
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def test_both_sides_are_equally_loud_and_of_the_same_place(tmp_path: Path) -> None:
    loud, quiet = write(tmp_path / "a.wav", level=0.2), write(tmp_path / "b.wav", level=0.02)
    found = _excerpts({"a": loud, "b": quiet}, 1)
    assert found["a"].shape == found["b"].shape == (2, RATE)
    np.testing.assert_allclose(found["a"], found["b"], atol=1e-3)
    assert np.abs(found["a"][:, :100]).max() > 0.01  # not from the silence at the beginning


def test_silence_is_reported(tmp_path: Path) -> None:
    silence = write(tmp_path / "silence.wav", level=0)
    with pytest.raises(UsageError, match="silent or too short"):
        listening_page(silence, silence)
    with pytest.raises(UsageError, match="two files or two folders"):
        listening_page(silence, tmp_path)
    sound = write(tmp_path / "sound.wav", level=0.1)
    for sides, reference in (((sound, sound), tmp_path / "typo"), ((sound, tmp_path / "typo"), sound)):
        with pytest.raises(InputError, match="typo does not exist"):
            listening_page(*sides, reference=reference)


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path, browser: Any) -> None:
    for side, level in (("ours", 0.1), ("theirs", 0.05)):
        for seed, stem in enumerate(("vocals", "drums")):
            write(tmp_path / side / "song" / f"{stem}.wav", level=level, seed=seed)
    page = tmp_path / "listen.html"
    page.write_text(listening_page(tmp_path / "ours", tmp_path / "theirs", seconds=1), encoding="utf-8")
    assert "http" not in page.read_text("utf-8")
    browser.get(page.as_uri())

    def click(selector: str) -> None:
        browser.find_element("css selector", selector).click()

    visible = browser.find_element("css selector", "body").text
    assert "ours" not in visible and "theirs" not in visible  # blind
    assert "Pair 1 of 2" in visible
    click("#play")
    wait_for(lambda: browser.execute_script("return sources.length") == 2)
    assert browser.execute_script("return gains['0'].gain.value") == 1
    click("[data-side='1']")
    wait_for(
        lambda: browser.execute_script("return gains['1'].gain.value > .99 && gains['0'].gain.value < .01")
    )
    wait_for(lambda: browser.execute_script("return audio.currentTime - began") > 0)
    click("[data-answer='1']")
    click("#next")
    click("[data-answer='none']")
    browser.refresh()
    assert "2 answered" in browser.find_element("css selector", "body").text
    chosen = browser.execute_script("return saved.swapped[saved.order[0]] ? 'ours' : 'theirs'")
    click("#export")
    file = wait_for(lambda: next((tmp_path / "downloads").glob("*.json"), None))
    told = json.loads(file.read_text("utf-8"))
    assert told["totals"][chosen] == 1
    assert told["totals"]["no difference"] == 1
    assert {answer["trial"] for answer in told["answers"]} == {"song/vocals", "song/drums"}
    found = {(each.stem, each.method): each for each in read_answers([file]).preferences}
    assert {stem for stem, _ in found} == {"drums", "vocals", "all"}
    assert (found["all", chosen].better, found["all", chosen].ties, found["all", chosen].share) == (
        1,
        1,
        0.75,
    )
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
