"""The page without a server, in a real browser: its stems are the command's, and it works offline (make test-web)."""

from __future__ import annotations

import io
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser_page import TAP, Page, place_of
from fakes import write_song
from numpy.typing import NDArray
from waiting import wait_for

from tfswa_sep import separate

pytestmark = [pytest.mark.proof, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "web" / "dist"
DEMO = ROOT / "examples" / "demo" / "demo.ogg"
RATE = 44_100
STEMS = ("vocals", "drums", "bass", "other")
Audio = NDArray[np.float32]


class PlainHost(SimpleHTTPRequestHandler):
    """Sends files without any special header, as the simplest hosts do."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[ThreadingHTTPServer]:
    if not (DIST / "index.html").is_file():
        pytest.skip("the page is not built: make web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(PlainHost, directory=DIST))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_page(host: ThreadingHTTPServer, browser: Any) -> Callable[..., Page]:
    """open_page(threads): the page, reloaded by its service worker so that threads work."""

    def open_it(threads: int = 1) -> Page:
        page = Page(browser, f"http://127.0.0.1:{host.server_port}/?threads={threads}")
        wait_for(lambda: page.script("return crossOriginIsolated && Boolean(globalThis.tfswa)"))
        wait_for(lambda: page.script("return document.querySelectorAll('#model option').length") > 0)
        return page

    return open_it


def choose(page: Page, selector: str, text: str) -> None:
    page.script(
        "const list = document.querySelector(arguments[0]);"
        "list.selectedIndex = [...list.options].findIndex(each => each.text === arguments[1]);"
        "list.dispatchEvent(new Event('change'))",
        selector,
        text,
    )


def wait_until_listed(page: Page, songs: int) -> None:
    wait_for(lambda: page.script("return document.querySelectorAll('.song').length") == songs)


def download(page: Page, selector: str, file: Path) -> Path:
    file.unlink(missing_ok=True)
    page.click(selector)
    return wait_for(lambda: file.is_file() and file.stat().st_size > 0 and file)  # type: ignore[no-any-return]


def title(song: Path) -> str:
    """A song's name in those of its downloads, as the browser makes it safe."""
    return song.stem.replace("<", "_").replace(">", "_")


def zipped_stems(page: Page, song: Path, folder: Path) -> dict[str, Audio]:
    """The stems of a song as the page gives them; it stays open."""
    page.open(song.name)
    choose(page, ".format", "wav")
    with zipfile.ZipFile(download(page, ".zip", folder / f"{title(song)}.zip")) as archive:
        return {
            name.removesuffix(".wav").rpartition(" - ")[2]: soundfile.read(
                io.BytesIO(archive.read(name)), dtype="float32"
            )[0]
            for name in archive.namelist()
        }


def commands_stems(song: Path, folder: Path, precision: str, stems: str = "") -> dict[str, Audio]:
    result = separate(
        song, out=folder, backend="onnx", precision=precision, threads=1, stems=stems or None, overwrite=True
    )
    return {stem: soundfile.read(file, dtype="float32")[0] for stem, file in result.files.items()}


def snr(estimate: Audio, reference: Audio) -> float:
    assert estimate.shape == reference.shape
    error = np.sum((estimate.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / max(error, 1e-20)))


def worst_snr(found: Mapping[str, Audio], wanted: Mapping[str, Audio]) -> float:
    assert found.keys() == wanted.keys()
    return min(snr(found[stem], wanted[stem]) for stem in wanted)


def test_stems_are_the_commands(open_page: Callable[..., Page], tmp_path: Path) -> None:
    mono = write_song(tmp_path / "mono.wav", seconds=6, channels=1)
    page = open_page()
    choose(page, "#model", "small, float32")
    page.find("#files").send_keys(str(DEMO))
    page.find("#files").send_keys(str(mono))
    page.wait_until_done(2)
    downloads = tmp_path / "downloads"
    for song in (DEMO, mono):
        worst = worst_snr(zipped_stems(page, song, downloads), commands_stems(song, tmp_path / "out", "fp32"))
        print(f"{song.name}, float32: the worst stem's SNR is {worst:.1f} dB")
        assert worst > 60
    assert not page.errors()


def test_int8_and_accompaniment(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    choose(page, "#stems", "vocals and accompaniment")
    page.find("#files").send_keys(str(DEMO))
    page.wait_until_done(1)
    wanted = commands_stems(DEMO, tmp_path / "out", "int8", "vocals,accompaniment")
    stems = zipped_stems(page, DEMO, tmp_path / "downloads")
    worst = worst_snr(stems, wanted)
    print(f"int8: the worst stem's SNR is {worst:.1f} dB")
    assert worst > 25  # rounding to 8 bits tips over at other samples
    floats = commands_stems(DEMO, tmp_path / "out", "fp32", "vocals,accompaniment")
    assert worst_snr(stems, floats) < 60  # it is not the other model
    assert not page.errors()


def test_what_a_musician_does(open_page: Callable[..., Page], tmp_path: Path) -> None:
    song = write_song(tmp_path / "<b>noise</b>.wav".replace("/", ""), seconds=5)
    broken = tmp_path / "notes.mp3"
    broken.write_text("not a song")
    page = open_page()
    page.find("#files").send_keys(f"{song}\n{broken}")
    state = "return [...tfswa.rows.values()].map(row => row.job.state).sort().join()"
    wait_for(lambda: page.script(state) == "done,failed")
    assert page.script("return document.querySelectorAll('.name b').length") == 0
    downloads = tmp_path / "downloads"
    stems = {name: samples[:, 0] for name, samples in zipped_stems(page, song, downloads).items()}

    # What is heard is the sum of the stems, without what is muted; so is the mix that is saved.
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    page.script(TAP)
    assert place_of(page.listen()[0], np.sum(list(stems.values()), axis=0)) >= RATE
    page.click(".track:nth-of-type(2) .mute")  # the overlay is the first
    page.set(".track:nth-of-type(4) .volume", 0.5)
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    mix = stems["drums"] + np.float32(0.5) * stems["bass"] + stems["other"]
    place_of(page.listen(1)[-1], mix)
    choose(page, ".format", "flac")
    saved, rate = soundfile.read(download(page, ".mix", downloads / f"{title(song)} - mix.flac"))
    assert rate == RATE
    np.testing.assert_allclose(saved[:, 0], np.clip(mix, -1, 1), atol=1e-6)
    page.click(".track:nth-of-type(3) .solo")
    choose(page, ".format", "mp3")
    saved, _ = soundfile.read(
        download(page, ".track:nth-of-type(3) .download", downloads / f"{title(song)} - drums.mp3")
    )
    assert abs(len(saved) - 5 * RATE) < 3000
    assert not page.errors()

    # The waveform is known, cancelled songs can be retried, and songs can be deleted.
    found = page.driver.execute_async_script(
        "const row = [...tfswa.rows.values()].find(row => row.player);"
        "row.player.server.source(row.job).peaks('drums', 0).then(arguments[0])"
    )
    assert len(found) == 2 * -(-5 * RATE // 1024)
    page.find("#files").send_keys(str(write_song(tmp_path / "long.wav", seconds=60)))
    wait_for(lambda: page.script(state) == "done,failed,running")
    page.script("[...tfswa.rows.values()].find(row => row.job.state === 'running').cancel()")
    wait_for(lambda: page.script(state) == "cancelled,done,failed")
    for remaining in (2, 1, 0):
        page.click(".song .delete")
        page.click(".song .delete")
        wait_until_listed(page, remaining)
    left = (
        "navigator.storage.getDirectory().then(r => r.getDirectoryHandle('tfswa-sep')).then(async folder => {"
    )
    left += (
        "const names = []; for await (const name of folder.keys()) names.push(name); arguments[0](names) })"
    )
    assert page.driver.execute_async_script(left) == ["downloads"]
    assert not page.errors()


def test_offline_after_the_first_visit(
    host: ThreadingHTTPServer, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    song = write_song(tmp_path / "song.wav", seconds=3)
    page = open_page()
    page.find("#files").send_keys(str(song))
    page.wait_until_done(1)
    host.shutdown()
    host.server_close()
    page = open_page()
    wait_for(lambda: page.script("return tfswa.rows.size === 1"))
    page.find("#files").send_keys(str(song))
    page.wait_until_done(2)
    page.open(song.name)
    page.driver.execute_async_script("tfswa.player().seek(1).then(arguments[0])")
    page.script(TAP)
    assert page.listen(1)
    assert not page.errors()


def test_other_sample_rates(open_page: Callable[..., Page], tmp_path: Path) -> None:
    import soxr

    random = np.random.default_rng(0)
    noise = random.uniform(-0.3, 0.3, (3 * 48_000, 2))
    noise = soxr.resample(soxr.resample(noise, 48_000, 36_000), 36_000, 48_000)  # nothing above 18 kHz
    song = tmp_path / "studio.wav"
    soundfile.write(song, noise, 48_000, "FLOAT")
    page = open_page()
    page.find("#files").send_keys(str(song))
    page.wait_until_done(1)
    total = np.sum(list(zipped_stems(page, song, tmp_path / "downloads").values()), axis=0)
    wanted = soxr.resample(noise, 48_000, RATE, quality="VHQ").astype(np.float32)
    assert len(total) == len(wanted)
    inside = slice(200, -200)  # resamplers round off the ends in different ways
    assert snr(total[inside], wanted[inside]) > 60


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model", ["small, int8", "small, float32"])
def test_speed_and_memory(open_page: Callable[..., Page], tmp_path: Path, threads: int, model: str) -> None:
    """Prints figures for a song of MINUTES, one by default."""
    samples, _ = soundfile.read(DEMO, dtype="float32")
    minutes = float(os.environ.get("MINUTES", "1"))
    song = tmp_path / "song.wav"
    soundfile.write(song, np.tile(samples, (round(3 * minutes), 1)), RATE, "PCM_16")
    page = open_page(threads)
    choose(page, "#model", model)
    pages = renderers(tmp_path / "profile")
    page.find("#files").send_keys(str(song))
    job = "const { state, playable } = tfswa.rows.values().next().value.job; return [state, playable]"
    state, peak, at = "", 0, [(time.monotonic(), 0.0)]
    while state != "done":
        state, playable = page.script(job)
        assert state in ("queued", "running", "done")
        peak = max(peak, sum(each.memory_full_info().pss for each in pages))
        if playable > at[-1][1]:
            if playable // 60 > at[-1][1] // 60:
                print(f"{playable // 60:.0f} min separated: {peak / 1e6:.0f} MB at most", flush=True)
            at.append((time.monotonic(), playable))
        time.sleep(0.5)
    seconds, steps = at[-1][0] - at[0][0], np.diff(at, axis=0)[1:]  # without the first, which loads
    factors = steps[:, 0] / steps[:, 1]
    print(
        f"{model}, {threads} threads: real-time factor {seconds / 60 / minutes:.3f}, "
        f"median of segments {np.median(factors):.3f}, least {factors.min():.3f}; at most {peak / 1e6:.0f} MB"
    )


def renderers(profile: Path) -> list[Any]:
    """The processes that hold the pages of the browser with this profile."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--type=renderer" in words and any(
            str(profile) in " ".join(parent.cmdline()) for parent in process.parents()
        ):
            found.append(process)
    return found
