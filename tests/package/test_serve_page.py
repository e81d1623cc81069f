"""The server's page in a real browser: what it plays is what the stems hold."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser_page import TAP, Page, place_of
from fakes import write_song
from numpy.typing import NDArray
from serve_process import Server
from waiting import wait_for

pytest.importorskip("fastapi")

RATE = 44_100
TONE = 440.0  # Hz
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def pitch_of(heard: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    return float(np.argmax(spectrum)) * RATE / len(heard)


@pytest.mark.slow
@pytest.mark.longest
def test_two_songs_from_drop_to_download(serve: Callable[..., Server], browser: Any, tmp_path: Path) -> None:
    song = write_song(tmp_path / "<b>noise</b>.wav".replace("/", ""), seconds=3)
    tone = tmp_path / "tone.wav"
    soundfile.write(tone, 0.5 * np.sin(2 * np.pi * TONE / RATE * np.arange(8 * RATE)), RATE, "FLOAT")
    server = serve()
    page = Page(browser, server.address)
    page.find("#files").send_keys(f"{song}\n{tone}")
    page.wait_until_done(2)
    assert page.script("return document.querySelectorAll('.name b').length") == 0  # titles are text
    page.open(song.name)
    job = page.script("return [...tfswa.rows.values()].find(row => row.player).job")
    at = f"/v1/jobs/{job['id']}"
    stems = {
        stem: soundfile.read(io.BytesIO(server.curl(f"{at}/stems/{stem}")), dtype="float32")[0][:, 0]
        for stem in job["stems"]
    }

    # What is heard is the sum of the stems; from where it was sought; without what is muted.
    page.driver.execute_async_script("tfswa.player().seek(0.5).then(arguments[0])")
    page.script(TAP)
    assert place_of(page.listen()[0], np.sum(list(stems.values()), axis=0)) >= RATE // 2
    page.click(".track:nth-of-type(2) .mute")  # the overlay is the first
    page.set(".track:nth-of-type(4) .volume", 0.5)
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    mix = stems["drums"] + np.float32(0.5) * stems["bass"] + stems["other"]
    assert place_of(page.listen(1)[-1], mix) >= RATE
    page.click(".track:nth-of-type(3) .solo")
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    place_of(page.listen(1)[-1], stems["drums"])

    # The mix as set, and everything as zip.
    page.script("document.querySelector('.format').value = 'flac'")
    page.script("document.querySelector('.format').dispatchEvent(new Event('change'))")
    downloads = tmp_path / "downloads"
    for selector, name in ((".mix", f"{song.stem} - mix.flac"), (".zip", f"{song.stem}.zip")):
        page.click(selector)
        name = name.replace("<", "_").replace(">", "_")  # by the browser
        file = wait_for(lambda name=name: (downloads / name).exists() and downloads / name)  # type: ignore[misc]
        if selector == ".mix":
            np.testing.assert_allclose(soundfile.read(file)[0][:, 0], stems["drums"], atol=1e-6)
        else:
            assert len(zipfile.ZipFile(file).namelist()) == 4

    # Speed keeps the pitch, and the pitch can be changed. The stems of a tone add up to it.
    page.open(tone.name)
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    page.script(TAP)
    assert pitch_of(page.listen()[-1]) == pytest.approx(TONE, abs=6)
    page.set(".speed", 0.5)
    assert pitch_of(page.listen(4)[-1]) == pytest.approx(TONE, abs=6)
    page.set(".speed", 1)
    page.set(".pitch", 12)
    assert pitch_of(page.listen(4)[-1]) == pytest.approx(2 * TONE, abs=12)

    assert not page.errors()


@pytest.mark.proof
@pytest.mark.slow
def test_songs_outlive_the_server_until_they_are_deleted(
    serve: Callable[..., Server], browser: Any, tmp_path: Path
) -> None:
    song = write_song(tmp_path / "song.wav", seconds=1)
    server = serve()
    page = Page(browser, server.address)
    page.find("#files").send_keys(f"{song}\n{write_song(tmp_path / 'other.wav', seconds=1)}")
    page.wait_until_done(2)
    page.open(song.name)
    server.end(signal.SIGTERM)
    assert wait_for(lambda: page.find("#banner").text)
    again = serve("--port", str(server.port))
    page.driver.get(again.address)
    page.wait_until_done(2)
    errors = [each for each in page.errors() if "net::ERR" not in each]
    page.click(".song .delete")
    page.click(".song .delete")
    wait_for(lambda: len(again.get("/v1/jobs")["jobs"]) == 1)
    wait_for(lambda: len(page.script("return [...document.querySelectorAll('.song')]")) == 1)
    assert not errors and not page.errors()


@pytest.mark.proof
@pytest.mark.slow
def test_nothing_serious_for_axe_and_pictures_for_the_documentation(
    serve: Callable[..., Server], browser: Any, tmp_path: Path
) -> None:
    from PIL import Image

    subprocess.run(["npm", "pack", "--silent", "axe-core@4"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["tar", "xzf", str(next(tmp_path.glob("axe-core*.tgz")))], cwd=tmp_path, check=True)
    axe = (tmp_path / "package" / "axe.min.js").read_text("utf-8")
    demo = IMAGES.parents[1] / "examples" / "demo" / "demo.ogg"
    broken = tmp_path / "notes.mp3"
    broken.write_text("not a song")
    server = serve()
    page = Page(browser, server.address)
    page.find("#files").send_keys(f"{demo}\n{broken}")
    done = "return [...tfswa.rows.values()].map(row => row.job.state).sort().join()"
    wait_for(lambda: page.script(done) == "done,failed")
    page.open("demo.ogg")
    page.driver.execute_async_script("tfswa.player().seek(7).then(arguments[0])")
    page.click(".track:nth-of-type(2) .mute")
    for theme in ("light", "dark"):
        for width, height in ((1200, 1040), (400, 1350)):
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            features = [{"name": "prefers-color-scheme", "value": theme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            page.script("window.scrollTo(0, 0); document.activeElement.blur()")
            page.driver.execute_async_script(
                "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
            )
            run = f"{axe}; axe.run().then(({{violations}}) => arguments[arguments.length - 1](violations))"
            found = page.driver.execute_async_script(run)
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert not serious, [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]
            assert page.script("return document.documentElement.scrollWidth") <= width
            picture = Path(os.environ.get("PICTURES", tmp_path)) / f"serve-{theme}-{width}.png"
            page.driver.save_screenshot(str(picture))
            Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
    assert not page.errors()
