"""Live sessions with streams driven by hand: no device, and no waiting."""

from __future__ import annotations

import gc
import importlib
import io
import itertools
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import STEMS, FakeBackend
from numpy.typing import NDArray
from rich.console import Console

from tfswa_sep import Separator
from tfswa_sep.cli import live as command
from tfswa_sep.cli.main import run
from tfswa_sep.errors import DeviceError, OutputError, UsageError
from tfswa_sep.inference.live_windows import LiveWindows
from tfswa_sep.live import devices, session
from tfswa_sep.live.devices import Device, find_device
from tfswa_sep.live.loop import OUTPUT_BUFFER, LiveLoop
from tfswa_sep.live.osc import OscPort
from tfswa_sep.live.recorder import Recorder
from tfswa_sep.live.ring import Ring
from tfswa_sep.options import LATENCIES, LiveTiming, Runtime

RATE = 44_100
TIMING = LiveTiming(window=0.09, hop=0.02, lookahead=0.01)
ALL = np.array([1, 1, 1, 1, 0], np.float32)
BLOCK = 256
SECOND = 172 * BLOCK  # about
Floats = NDArray[np.float32]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowBackend(FakeBackend):
    """Takes `seconds` of a clock per call."""

    clock: Clock
    seconds = 0.0

    def __call__(self, segments: Floats, *, stem_matrix: Floats | None = None) -> Floats:
        self.clock.now += self.seconds
        return super().__call__(segments, stem_matrix=stem_matrix)


def slow_backend(clock: Clock, seconds: float = 0.0) -> SlowBackend:
    backend = SlowBackend(segment_samples=4096)
    backend.clock, backend.seconds = clock, seconds
    return backend


def make_loop(backend: FakeBackend | None = None, **options: Any) -> LiveLoop:
    options = dict[str, Any](input_rate=RATE, output_rate=RATE, block=BLOCK, clock=Clock()) | options
    weights = options.pop("weights", ALL)
    return LiveLoop(backend or FakeBackend(segment_samples=4096), TIMING, weights, **options)


def tone(samples: int, *, rate: float = RATE, frequency: float = 441.0) -> Floats:
    wave = 0.5 * np.sin(2 * np.pi * frequency / rate * np.arange(samples))
    return np.repeat(wave[:, None], 2, axis=1).astype(np.float32)


def play(
    loop: LiveLoop,
    song: Floats,
    *,
    ahead: float = 1.0,
    works: Callable[[int], bool] = lambda i: True,
    pulls: Callable[[int], int] = lambda i: 1,
) -> Floats:
    """Drive a loop in steps of one output block.

    `ahead`: by what factor the input's clock is faster; `works`: whether the worker has time in a step; `pulls`: the
    blocks that the output takes in a step.
    """
    played = []
    fed = 0
    for i in range(int(len(song) / ahead / BLOCK)):
        until = int((i + 1) * BLOCK * ahead * loop.input_rate / loop.output_rate)
        now = (i + 1) * BLOCK / loop.output_rate
        loop.feed(song[fed:until], now)
        fed = until
        while works(i) and loop.step():
            pass
        for _ in range(pulls(i)):
            out = np.empty((BLOCK, 2), np.float32)
            loop.fill(out, now)
            played.append(out)
        if fed >= len(song):
            break
    return np.concatenate(played)


def lag(song: Floats, played: Floats) -> int:
    """Samples, of an aperiodic song."""
    a, b = song[:, 0], played[: len(song), 0]
    n = len(a) + len(b)
    correlation = np.fft.irfft(np.conj(np.fft.rfft(a, n)) * np.fft.rfft(b, n), n)
    return int(correlation[: len(b)].argmax())


def smooth_noise(samples: int) -> Floats:
    noise = np.random.default_rng(0).standard_normal((samples, 2)).cumsum(axis=0)
    noise -= np.apply_along_axis(lambda x: np.convolve(x, np.ones(501) / 501, "same"), 0, noise)
    return np.asarray(0.3 * noise / np.abs(noise).max(), np.float32)


def test_a_ring_gives_back_what_it_still_has() -> None:
    ring = Ring(2, 10)
    out = np.full((4, 2), 9, np.float32)
    ring.read(0, out)
    assert not out.any()
    stream = np.arange(1, 36, dtype=np.float32)[:, None]
    for start in range(0, 35, 7):
        ring.write(stream[start : start + 7])
        ring.read(ring.written - 4, out)
        np.testing.assert_array_equal(out, np.repeat(stream[start + 3 : start + 7], 2, axis=1))
    ring.read(33, out)  # the end is not there yet
    np.testing.assert_array_equal(out[:, 0], [34, 35, 0, 0])
    ring.read(23, out)  # the beginning is gone
    np.testing.assert_array_equal(out[:, 1], [0, 0, 26, 27])
    ring.write(stream)
    assert ring.written == 70
    ring.read(66, out)
    np.testing.assert_array_equal(out[:, 0], [32, 33, 34, 35])


def test_the_stems_are_played_with_the_latency_that_is_stated() -> None:
    loop = make_loop()
    song = smooth_noise(RATE)
    played = play(loop, song)
    delay = lag(song, played)
    assert abs((delay + BLOCK) / RATE - loop.latency) < 0.0005  # a block is played when it is fed
    expected = np.pad(song, ((delay, 0), (0, 0)))[: len(played)]
    start = delay + 2_000
    np.testing.assert_allclose(played[start:], expected[start:], atol=6e-3)
    assert loop.dropouts == loop.late == 0
    status = loop.status
    assert status.hop == 0.02 and status.levels["vocals"] > status.levels["bass"] > -60


@pytest.mark.slow
def test_the_stems_are_those_of_the_same_windows_offline() -> None:
    network, timing = Separator("small", runtime=Runtime(threads=1)).network, LATENCIES["low"]
    heard, given = list[Floats](), list[Floats]()

    def keep(song: Floats, stems: Floats) -> None:
        heard.append(song)
        given.append(stems)

    loop = LiveLoop(network, timing, ALL, input_rate=48_000, output_rate=RATE, clock=Clock(), on_stems=keep)
    play(loop, smooth_noise(40_000))
    offline = LiveWindows(
        network,
        np.eye(4, 5, dtype=np.float32),
        window=round(timing.window * RATE),
        lookahead=round(timing.lookahead * RATE),
    )
    song, hop = np.concatenate(heard, axis=1)[:, offline.lookahead :], given[0].shape[-1]
    assert loop.late == 0 and np.abs(given[-1]).max() > 0.001
    for i, stems in enumerate(given[:-1]):
        expected = offline.advance(song[:, i * hop : (i + 1) * hop])
        np.testing.assert_allclose(stems, expected, atol=1e-5)


def test_gains_change_while_it_plays_without_a_click() -> None:
    loop = make_loop(weights=np.array([0, 1, 1, 1, 0], np.float32))
    song = tone(RATE)
    before = play(loop, song[: SECOND // 2])
    loop.weights = ALL
    after = play(loop, song[SECOND // 2 :])
    assert np.abs(before[-2000:]).max() == pytest.approx(0.25, abs=0.01)  # vocals are half of it
    assert np.abs(after[-2000:]).max() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.diff(np.concatenate([before, after])[8_000:, 0])).max() < 0.04


@pytest.mark.parametrize("drift", [0.0003, -0.0003])
@pytest.mark.slow
def test_clocks_that_differ_are_followed(drift: float) -> None:
    loop = make_loop()
    song = smooth_noise(40 * RATE)
    play(loop, song[: 25 * SECOND], ahead=1 + drift)
    early = loop.latency
    play(loop, song[25 * SECOND :], ahead=1 + drift)
    assert loop.drift == pytest.approx(drift, abs=0.0002)
    assert loop.dropouts == loop.late == 0 and abs(loop.latency - early) < 0.005


@pytest.mark.parametrize(
    ("input_rate", "output_rate"),
    [
        (48_000, 44_100),
        (44_100, 48_000),
        (16_000, 32_000),
        (8_000, 44_100),
        (44_100, 8_000),
        (192_000, 192_000),
    ],
)
def test_devices_may_have_other_rates(input_rate: int, output_rate: int) -> None:
    loop = make_loop(input_rate=input_rate, output_rate=output_rate)
    played = play(loop, tone(input_rate, rate=input_rate, frequency=1_000))[:, 0]
    steady = played[len(played) // 2 :]
    spectrum = np.abs(np.fft.rfft(steady * np.hanning(len(steady))))
    assert spectrum.argmax() * output_rate / len(steady) == pytest.approx(1_000, abs=5)
    assert np.abs(steady).max() == pytest.approx(0.5, abs=0.01) and loop.dropouts == 0


@pytest.mark.parametrize("silent", [False, True])
def test_a_hop_that_would_be_late_is_the_song_or_silence(silent: bool) -> None:
    clock = Clock()
    backend = slow_backend(clock)
    loop = make_loop(backend, silent=silent, clock=clock, weights=np.array([0, 1, 1, 1, 0], np.float32))
    song = tone(3 * RATE)
    steady = play(loop, song[:SECOND])
    backend.seconds = 1.0  # as if another program had the CPU
    loop._cost = 1.0
    late = play(loop, song[SECOND : SECOND + 5 * BLOCK])
    backend.seconds, loop._cost = 0.0, 0.0
    after = play(loop, song[SECOND + 5 * BLOCK :])
    assert loop.late >= 1 and loop.dropouts == 0
    whole = np.concatenate([steady, late, after])
    levels = np.abs(whole[SECOND : SECOND + 44_000]).reshape(-1, 100, 2).max(axis=(1, 2))
    assert levels.min() < 0.01 if silent else levels.max() > 0.45
    assert np.abs(after[-2000:]).max() == pytest.approx(0.25, abs=0.01)
    assert np.abs(np.diff(whole[8_000:, 0])).max() < 0.06  # faded


@pytest.mark.parametrize("silent", [False, True])
def test_the_callback_goes_on_without_the_worker(silent: bool) -> None:
    loop = make_loop(silent=silent, weights=np.array([0, 1, 1, 1, 0], np.float32))
    song = tone(2 * RATE)
    away = range(100, 110)
    played = play(loop, song, works=lambda i: i not in away)
    assert loop.dropouts >= 1
    assert np.abs(np.diff(played[8_000:, 0])).max() < 0.06
    assert np.abs(played[-2000:]).max() == pytest.approx(0.25, abs=0.01)


def test_an_output_that_pauses_and_catches_up_costs_no_dropout() -> None:
    """Sound servers do so: nothing is left out when they pause, which would have to be repeated afterwards."""
    loop = make_loop()
    pauses, catches_up = range(700, 704), range(860, 864)
    play(loop, smooth_noise(7 * SECOND), pulls=lambda i: 0 if i in pauses else 2 if i in catches_up else 1)
    assert loop.dropouts == 0


def test_a_pause_of_the_output_is_made_up_for_without_a_dropout() -> None:
    loop = make_loop()
    pauses = range(700, 704)  # 23 ms
    play(loop, smooth_noise(30 * SECOND), pulls=lambda i: i not in pauses)
    early = loop.latency
    play(loop, smooth_noise(10 * SECOND))
    assert loop.dropouts == 0 and loop.latency <= early + 0.001


def test_seconds_without_input_begin_anew() -> None:
    loop = make_loop()
    song = smooth_noise(3 * RATE)
    play(loop, song[:SECOND])
    first, silence = loop.latency, np.empty((BLOCK, 2), np.float32)
    for i in range(400):
        loop.fill(silence, i * BLOCK / RATE)
    assert not silence.any() and math.isnan(loop.latency)
    played = play(loop, song[SECOND:])
    assert abs(loop.latency - first) < 0.02 and np.abs(played[-1000:]).max() > 0.01
    assert abs((lag(song[SECOND:], played) + BLOCK) / RATE - loop.latency) < 0.0005


def test_a_model_that_is_too_slow_for_the_hop_begins_with_a_longer_one() -> None:
    clock = Clock()
    loop = make_loop(slow_backend(clock, 0.04), clock=clock, cpu_clock=clock)
    assert loop.status.hop == pytest.approx(0.045, abs=1e-3)
    assert loop.news == ["the CPU is too slow for a hop of 20 ms: now 45 ms, with more latency"]
    play(loop, smooth_noise(RATE))
    assert loop.dropouts == 0


def test_a_model_that_is_too_slow_for_any_hop_is_refused() -> None:
    clock = Clock()
    with pytest.raises(
        UsageError, match=r"takes 0\.6 s per window here, .* every 0\.1 s: choose another --model"
    ):
        make_loop(slow_backend(clock, 0.6), clock=clock, cpu_clock=clock)


def test_other_programs_do_not_count_against_a_model() -> None:
    clock = Clock()
    loop = make_loop(slow_backend(clock, 0.6), clock=clock)
    assert loop.status.hop == pytest.approx(0.02) and not loop.news


def test_the_recorder_leaves_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "take 1"
    loop_stems = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 2, 500)).astype(np.float32)
    song = np.full((2, 500), 2, np.float32)
    recorder = Recorder(folder, STEMS, RATE, 2)
    for _ in range(3):
        recorder.write(song, loop_stems)
    recorder.close()
    for stem, expected in zip(STEMS, loop_stems, strict=True):
        samples, rate = soundfile.read(folder / f"{stem}.flac", dtype="float32")
        assert rate == RATE and len(samples) == 1500
        np.testing.assert_allclose(samples[500:1000].T, expected, atol=2e-7)
    assert np.abs(soundfile.read(folder / "mixture.flac")[0]).max() <= 1  # clipped, not wrapped
    with pytest.raises(OutputError, match="exists: choose another folder"):
        Recorder(folder, STEMS, RATE, 2)


def test_a_recording_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot record to"):
        Recorder(tmp_path / "file", STEMS, RATE, 2)
    recorder = Recorder(tmp_path / "ok", STEMS, RATE, 2)
    recorder._error = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match=r"No space left on device\): free up space"):
        recorder.write(np.zeros((2, 5), np.float32), np.zeros((4, 2, 5), np.float32))
    with pytest.raises(OutputError, match="No space"):
        recorder.close()


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits on files")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 2, 4_000)).astype(np.float32)
    recorder = Recorder(tmp_path / "take", STEMS, RATE, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for _ in range(10):
            recorder.write(noise[0], noise)
        with pytest.raises(OutputError, match=r"the disk may be full\): free up space"):
            recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(OutputError, match="the disk may be full"):
        recorder.write(noise[0], noise)


def device(name: str, kind: str = "input", **fields: Any) -> Device:
    values: dict[str, Any] = {
        "description": "",
        "channels": 2,
        "rate": RATE,
        "loopback": False,
        "default": False,
        "number": 0,
    }
    return Device(**(values | {"name": name, "kind": kind, "pulse": False} | fields))


def test_a_device_is_found_by_part_of_its_name() -> None:
    known = [
        device("Built-in Microphone", default=True),
        device("BlackHole 2ch"),
        device("alsa_output.usb.monitor", description="Monitor of USB Headset"),
        device("Built-in Output", "output"),
    ]
    assert find_device(None, "input", known).name == "Built-in Microphone"
    assert find_device("blackhole", "input", known).name == "BlackHole 2ch"
    assert find_device("usb headset", "input", known).name == "alsa_output.usb.monitor"
    assert find_device(None, "output", known).name == "Built-in Output"
    with pytest.raises(UsageError, match="several input devices"):
        find_device("b", "input", known)
    with pytest.raises(DeviceError, match="no output device 'blackhole'"):
        find_device("blackhole", "output", known)
    with pytest.raises(DeviceError, match="no sound output"):
        find_device(None, "output", known[:1])


class FakeStream:
    def __init__(self, sd: FakePortAudio, kind: str, **options: Any) -> None:
        if kind in sd.broken or options["samplerate"] not in sd.rates:
            raise sd.PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        self.kind, self.active, self.samplerate = kind, True, options["samplerate"]
        self.callback, self.channels = options["callback"], options["channels"]
        self.latency = options["latency"]
        self.source = sd.environment()
        sd.streams.append(self)

    def start(self) -> None:
        pass

    def abort(self, ignore_errors: bool = True) -> None:
        self.active = False

    close = abort


class FakePortAudio:
    """As much of sounddevice as is used."""

    class PortAudioError(Exception):
        pass

    def __init__(self, names: tuple[str, ...] = ("mic", "speaker", "BlackHole 2ch")) -> None:
        self.names, self.broken, self.rates = names, set[str](), {44_100.0, 48_000.0}
        self.streams: list[FakeStream] = []
        self.channels = 2
        self.default = SimpleNamespace(device=[0, 1])

    def query_devices(self, number: int | None = None) -> Any:
        found = [
            {
                "name": name,
                "index": i,
                "hostapi": 0,
                "max_input_channels": 0 if name == "speaker" else self.channels,
                "max_output_channels": 0 if name == "mic" else self.channels,
                "default_samplerate": 48_000.0,
                "default_low_input_latency": 0.01,
                "default_low_output_latency": 0.01,
            }
            for i, name in enumerate(self.names)
        ]
        return found if number is None else found[number]

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "Fake Audio"}]

    def environment(self) -> tuple[str | None, str | None]:
        import os

        return os.environ.get("PULSE_SOURCE"), os.environ.get("PULSE_SINK")

    def InputStream(self, **options: Any) -> FakeStream:
        return FakeStream(self, "input", **options)

    def OutputStream(self, **options: Any) -> FakeStream:
        return FakeStream(self, "output", **options)

    def _terminate(self) -> None:
        pass

    _initialize = _terminate


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio()
    monkeypatch.setattr(devices, "portaudio", lambda: fake)
    monkeypatch.setattr(devices, "_pactl", lambda *arguments: None)
    return fake


def test_loopback_devices_are_named(sound: FakePortAudio, capsys: pytest.CaptureFixture[str]) -> None:
    found = devices.list_devices()
    assert [(each.name, each.kind, each.loopback, each.default) for each in found] == [
        ("mic", "input", False, True),
        ("BlackHole 2ch", "input", True, False),
        ("speaker", "output", False, True),
        ("BlackHole 2ch", "output", False, False),
    ]
    assert run(["live", "devices"]) == 0
    assert "hears what other programs play" in capsys.readouterr().out


def test_pulse_sources_and_their_monitors_are_listed(
    sound: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound.names = ("pulse", "default")
    listed = {
        "info": {"default_source_name": "mic", "default_sink_name": "usb"},
        "sources": [
            {"name": "mic", "description": "Microphone", "sample_specification": "s16le 1ch 48000Hz"},
            {"name": "usb.monitor", "description": "Monitor of USB", "monitor_source": "usb",
             "sample_specification": "s16le 2ch 44100Hz"},
        ],
        "sinks": [{"name": "usb", "description": "USB", "sample_specification": "s16le 2ch 44100Hz"}],
    }  # fmt: skip
    monkeypatch.setattr(devices, "_pactl", lambda *arguments: listed[arguments[-1]])
    found = devices.list_devices()
    assert [
        (each.name, each.kind, each.channels, each.rate, each.loopback, each.default) for each in found
    ] == [
        ("mic", "input", 1, 48_000, False, True),
        ("usb.monitor", "input", 2, 44_100, True, False),
        ("usb", "output", 2, 44_100, False, True),
    ]
    monitor, _ = devices.open_stream(find_device("monitor of", "input", found), 44_100, 2, 256, print)
    assert monitor.source == ("usb.monitor", None)
    speaker, _ = devices.open_stream(found[2], 44_100, 2, 256, print)
    assert speaker.source == (None, "usb") and sound.environment() == (None, None)


def test_a_device_that_cannot_have_the_rate_is_opened_with_its_own(sound: FakePortAudio) -> None:
    sound.rates = {48_000.0}
    assert devices.open_stream(devices.list_devices()[0], 44_100, 2, 256, print)[1] == 48_000
    sound.broken = {"input"}
    with pytest.raises(DeviceError, match="cannot open the input mic"):
        devices.open_stream(devices.list_devices()[0], 44_100, 2, 256, print)


@pytest.fixture
def running(sound: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> Iterator[session.LiveSession]:
    monkeypatch.setattr(session, "_RETRY_SECONDS", 0.0)
    with session.LiveSession(FakeBackend(segment_samples=4096), TIMING, ALL) as opened:
        yield opened


def drive(sound: FakePortAudio, blocks: int = 1) -> Floats:
    """Call the callbacks of the streams opened last, as PortAudio would."""
    source, target = sound.streams[-2:]
    out = np.ones((BLOCK, target.channels), np.float32)
    fine = SimpleNamespace(output_underflow=False)
    when = SimpleNamespace(inputBufferAdcTime=1.0, outputBufferDacTime=1.1, currentTime=1.0)
    for _ in range(blocks):
        source.callback(np.full((BLOCK, source.channels), 0.25, np.float32), BLOCK, when, fine)
        target.callback(out, BLOCK, when, fine)
    return out


def test_a_lost_device_is_waited_for(sound: FakePortAudio, running: session.LiveSession) -> None:
    drive(sound)
    assert running.poll() == [] and not running.lost
    sound.streams[-1].active = False
    sound.broken = {"output"}
    assert running.poll() == ["lost the output speaker: waiting for it to come back"]
    assert running.poll() == [] and running.lost and not any(stream.active for stream in sound.streams)
    sound.broken = set()
    (line,) = running.poll()
    assert line.startswith("the devices are back after") and not running.lost
    loop = running.loop
    drive(sound)
    assert running.poll() == [] and running.loop is loop


def test_the_output_holds_more_than_the_input_and_says_when_it_ran_dry(
    sound: FakePortAudio, running: session.LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sound.streams[-1].latency == OUTPUT_BUFFER > sound.streams[-2].latency == 0.01
    gaps = list[bool]()
    monkeypatch.setattr(running.loop, "fill", lambda out, played, *, after_gap: gaps.append(after_gap))
    for dry in (False, True):
        status, when = SimpleNamespace(output_underflow=dry), SimpleNamespace(outputBufferDacTime=1.1)
        sound.streams[-1].callback(np.empty((BLOCK, 2), np.float32), BLOCK, when, status)
    assert gaps == [False, True]


def test_mono_devices_hear_and_play_both_channels(sound: FakePortAudio) -> None:
    sound.channels = 1
    with session.LiveSession(FakeBackend(segment_samples=4096), TIMING, ALL) as opened:
        deadline = time.monotonic() + 5
        while np.abs(out := drive(sound)).max() < 0.24 and time.monotonic() < deadline:
            opened._thread.join(timeout=0.001)  # its turn
    assert out.shape == (BLOCK, 1) and np.abs(out).max() < 0.4  # 0.25, and the ringing at its start


def test_two_lost_devices_share_a_line(sound: FakePortAudio, running: session.LiveSession) -> None:
    for stream in sound.streams:
        stream.active = False
    assert running.poll() == ["lost the input mic and output speaker: waiting for them to come back"]


def test_a_device_that_comes_back_with_another_rate_gets_a_new_loop(
    sound: FakePortAudio, running: session.LiveSession
) -> None:
    loop = running.loop
    running.set_weights(2 * ALL)
    sound.streams[-2].active = False
    running.poll()
    sound.rates = {48_000.0}
    running.poll()
    assert running.loop is not loop and running.loop.input_rate == 48_000
    assert running.loop.weights[0] == 2


def test_the_session_does_not_listen_to_itself(sound: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    sound.names = ("speaker.monitor", "speaker")
    with pytest.raises(DeviceError, match="would hear what the program itself plays"):
        session.LiveSession(FakeBackend(), TIMING, ALL, input_name="speaker.monitor").__enter__()


def test_garbage_is_not_looked_for_among_what_is_loaded(sound: FakePortAudio) -> None:
    with session.LiveSession(FakeBackend(segment_samples=4096), TIMING, ALL):
        assert gc.get_freeze_count() > 1_000
    assert gc.get_freeze_count() == 0


def test_an_error_of_the_worker_ends_the_session(sound: FakePortAudio) -> None:
    backend = FakeBackend(segment_samples=4096, fail_at=4, failure=DeviceError)
    with (
        pytest.raises(DeviceError, match="asked to fail"),
        session.LiveSession(backend, TIMING, ALL) as opened,
    ):
        for _ in itertools.count():
            drive(sound, 4)
            opened._thread.join(timeout=0.01)
            opened.poll()


def test_keys_change_the_gains() -> None:
    mixer = command.Mixer(STEMS, [0, 1, 1, 1, 0], {"drums": -6.0})
    assert mixer.weights() == pytest.approx([0, 10 ** (-6 / 20), 1, 1, 0])
    assert mixer.press("1") and mixer.weights()[0] == 1
    assert mixer.press("+") and mixer.weights()[0] == pytest.approx(10 ** (3 / 20))
    assert mixer.press("3") and mixer.weights()[2] == 0
    assert mixer.press("-") and not mixer.press("x") and not mixer.press("9")
    assert mixer.press("0") and mixer.weights() == pytest.approx([0, 10 ** (-6 / 20), 1, 1, 0])
    with pytest.raises(UsageError, match="unknown stem 'singer'"):
        command.Mixer(STEMS, [1, 1, 1, 1, 0], {"singer": 1})


@pytest.fixture
def remote() -> Iterator[OscPort]:
    pytest.importorskip("pythonosc")
    with OscPort(0) as opened:
        yield opened


def send(remote: OscPort, address: str, *values: object) -> None:
    from pythonosc.udp_client import SimpleUDPClient

    client = SimpleUDPClient("127.0.0.1", remote.number)
    with client:
        client.send_message(address, list(values))


def test_osc_messages_change_the_gains(
    running: session.LiveSession, remote: OscPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    mixer = command.Mixer(STEMS, [0, 1, 1, 1, 0], {"drums": -6.0})
    looks = command._run(running, mixer, lambda: "", remote)

    def weights(*messages: tuple[object, ...]) -> list[float]:
        for address, *values in messages:
            send(remote, str(address), *values)
        next(looks)
        return list(running.loop.weights)

    assert weights(("/gain/bass", -20), ("/mute/vocals", 0.0)) == pytest.approx(
        [1, 0.5012, 0.1, 1, 0], rel=1e-4
    )
    assert weights(("/mute/other", True), ("/gain/drums", 99.0))[1:4] == pytest.approx(
        [3.981, 0.1, 0], rel=1e-3
    )
    console = Console(width=100, file=io.StringIO())
    console.print(command._table(running, mixer, running.loop.status, 0.1, f", OSC at {remote.address}"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+12 dB" in shown and "-20 dB" in shown and shown.count(" off") == 1 and remote.address in shown
    assert weights(("/reset",)) == pytest.approx([0, 0.5012, 1, 1, 0], rel=1e-4)


@pytest.mark.parametrize(
    ("address", "values", "line"),
    [
        (
            "/level/vocals",
            [1],
            "/level/vocals: expected /gain/STEM, /mute/STEM or /reset, where STEM is one of",
        ),
        ("/gain/singer", [1], "STEM is one of vocals, drums, bass, other"),
        ("/gain/vocals", [], "/gain/vocals: expected one number: dB"),
        ("/gain/vocals", [math.nan], "one number"),
        ("/gain/vocals", ["loud"], "one number"),
        ("/mute/vocals", [1, 2], "/mute/vocals: expected one number: 1 for off, 0 for on"),
    ],
    ids=["address", "stem", "no value", "NaN", "text", "two values"],
)
def test_an_osc_message_that_means_nothing_is_ignored_with_a_line(
    remote: OscPort, address: str, values: list[object], line: str
) -> None:
    mixer = command.Mixer(STEMS, [1, 1, 1, 1, 0], {})
    send(remote, address, *values)
    (ignored,) = remote.receive(mixer.obey)
    assert line in ignored and mixer.weights().tolist() == [1, 1, 1, 1, 0]


def test_what_is_not_osc_is_ignored_with_a_line(remote: OscPort, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    empty = b"#bundle\0" + bytes(8)
    packets = [
        b"",
        b"/",
        b"/gain\xff",
        b"/gain/vocals\0\0\0\0,c\0\0\0\0\0\1",
        empty + b"\xff\xff\xff\xfc/a",
        empty * 9,
    ]
    packets += [b"/gain/vocals\0\0\0\0,f" + random.bytes(n) for n in range(40)]
    obeyed = list[str]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in packets:
            sender.sendto(packet, ("127.0.0.1", remote.number))
            remote.receive(lambda address, values: obeyed.append(address))
        sender.sendto(b"nothing", ("127.0.0.1", remote.number))
    assert remote.receive(print) == [f"ignored what came to port {remote.number}: it is not an OSC message"]
    assert set(obeyed) <= {"/", "/gain/vocals"} and capfd.readouterr() == ("", "")


def test_bundles_of_osc_messages_are_taken_apart(remote: OscPort) -> None:
    from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
    from pythonosc.osc_message_builder import build_msg

    inner, outer = OscBundleBuilder(IMMEDIATELY), OscBundleBuilder(IMMEDIATELY)
    inner.add_content(build_msg("/a", [1]))
    inner.add_content(build_msg("/b", [2.0]))
    outer.add_content(inner.build())
    outer.add_content(build_msg("/c", [True]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(outer.build().dgram, ("127.0.0.1", remote.number))
    obeyed = list[tuple[object, ...]]()
    assert remote.receive(lambda address, values: obeyed.append((address, *values))) == []
    assert obeyed == [("/a", 1), ("/b", 2.0), ("/c", True)]


def test_only_this_machine_can_send_osc_and_only_to_a_free_port(remote: OscPort) -> None:
    assert remote.address == f"127.0.0.1:{remote.number}" and remote.receive(print) == []
    with pytest.raises(OutputError, match=f"port {remote.number}: .* choose another --port"):
        OscPort(remote.number)


def test_without_python_osc_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonosc.osc_message", None)
    with pytest.raises(DeviceError, match=r"needs the package python-osc: .*\[live\]"):
        OscPort(0)


def test_gains_are_parsed() -> None:
    assert command._parse_gains(["vocals=-20", "drums=off"]) == {"vocals": -20, "drums": -math.inf}
    assert run(["live", "--gain", "vocals"]) == 2


def test_without_portaudio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run(["live", "--stems", "accompaniment"]) == 6
    assert "sounddevice" in capsys.readouterr().err

    def broken(name: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert run(["live", "devices"]) == 6
    assert "libportaudio2" in capsys.readouterr().err
