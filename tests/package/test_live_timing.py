"""Live separation in virtual time: machines that pause, networks that are slow, and what is heard of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import FakeBackend
from numpy.typing import NDArray

from tfswa_sep.live.loop import OUTPUT_BUFFER, LiveLoop
from tfswa_sep.options import LATENCIES, LiveTiming

RATE, BLOCK = 8_000, 48
Floats = NDArray[np.float32]
Pauses = Sequence[tuple[float, float]]  # when they begin and how long they are, in seconds


class Computer(FakeBackend):
    """Two sound devices and a worker, whose network takes its time.

    Args:
        timing: Window, hop and look-ahead.
        load: Share of the hop that the network takes.
        pauses: When nothing runs but the converters.
        worker_pauses: When the worker does not.
        catches_up: After a gap, the output takes what it missed at once, instead of playing on from there.
    """

    def __init__(
        self,
        timing: LiveTiming,
        *,
        load: float = 0.5,
        pauses: Pauses = (),
        worker_pauses: Pauses = (),
        catches_up: bool = False,
    ) -> None:
        window = round(timing.window * RATE)
        super().__init__(segment_samples=window, margin_samples=window // 4, sample_rate=RATE)
        self.now, self._cost = 0.0, 0.0
        self._pauses, self._worker_pauses = pauses, worker_pauses
        self._catches_up = catches_up
        self._captured = 0  # blocks
        self._empty_at = 0.0  # when the output device will have played all it has
        self.gaps = 0  # times that it had
        self._song = np.full((BLOCK, 2), 0.1, np.float32)
        self.loop = LiveLoop(
            self,
            timing,
            np.array([1, 1, 1, 1, 0], np.float32),
            input_rate=RATE,
            output_rate=RATE,
            block=BLOCK,
            clock=lambda: self.now,
        )
        self._cost = self.loop._cost = load * timing.hop

    def __call__(self, segments: Floats, *, stem_matrix: Floats | None = None) -> Floats:
        if self._cost:  # else it is being measured
            self._compute(self._cost)
        return super().__call__(segments, stem_matrix=stem_matrix)

    def run(self, until: float) -> None:
        while self.now < until:
            self._sleep_until(_end_of_pause(self._worker_pauses, _end_of_pause(self._pauses, self.now)))
            if not self.loop.step():
                self._sleep_until(max(self._next_captured(), self.now + 1e-6))

    def _next_captured(self) -> float:
        return (self._captured + 1) * BLOCK / RATE

    def _compute(self, seconds: float) -> None:
        begin, end = self.now, self.now + seconds
        for start, length in sorted([*self._pauses, *self._worker_pauses]):
            if begin < start + length and start < end:
                end += start + length - max(start, begin)
        self._sleep_until(end)

    def _sleep_until(self, end: float) -> None:
        """Let the devices' callbacks run."""
        while True:
            room = self._empty_at - OUTPUT_BUFFER  # when the device has room for a block
            due = min(self._next_captured(), room)
            if (then := _end_of_pause(self._pauses, due)) > end:
                break
            self.now = max(self.now, then)
            if due != room:
                self._captured += 1
                self.loop.feed(self._song, self._captured * BLOCK / RATE)
                continue
            gap = self.now - self._empty_at
            after_gap = gap > 1e-6 and self._empty_at > 0
            self.gaps += after_gap
            if gap > 0:
                self._empty_at = self.now
            if after_gap:  # devices say so more than once
                self._play(after_gap=True)
                self._empty_at += BLOCK / RATE
            for _ in range(round(gap * RATE / BLOCK) if after_gap and self._catches_up else 0):
                self._play()
            self._play(after_gap=after_gap and not self._catches_up)
            self._empty_at += BLOCK / RATE
        self.now = max(self.now, end)

    def _play(self, *, after_gap: bool = False) -> None:
        self.loop.fill(np.empty((BLOCK, 2), np.float32), self._empty_at, after_gap=after_gap)


def _end_of_pause(pauses: Pauses, now: float) -> float:
    return next((start + length for start, length in pauses if start <= now < start + length), now)


def at_all_phases(timing: LiveTiming, length: float, *, begin: float = 5.0) -> list[tuple[float, float]]:
    """Pauses a second or more apart, one at each eighth of the hop."""
    apart = timing.hop * math.ceil(1 / timing.hop)
    return [(begin + i * (apart + timing.hop / 8), length) for i in range(8)]


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("worker_alone", [False, True])
def test_short_pauses_are_not_heard(latency: str, worker_alone: bool) -> None:
    timing = LATENCIES[latency]
    pauses = at_all_phases(timing, 0.035)
    computer = Computer(timing, **{"worker_pauses" if worker_alone else "pauses": pauses})  # type: ignore[arg-type]
    computer.run(5)
    before = computer.loop.latency
    computer.run(pauses[-1][0] + 2)
    assert computer.loop.dropouts == computer.loop.late == computer.gaps == 0
    assert computer.loop.latency == pytest.approx(before, abs=0.007)  # a block


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("pauses", ["pauses", "worker_pauses"])
def test_a_long_pause_is_heard_and_then_made_up_for(latency: str, pauses: str) -> None:
    """And the hop stays as it is: the CPU is fast enough, but for once it was away."""
    timing = LATENCIES[latency]
    computer = Computer(timing, **{pauses: [(5.0, 0.3)]})  # type: ignore[arg-type]
    computer.run(4.9)
    before = computer.loop.latency
    computer.run(12)
    heard = computer.loop.dropouts
    assert heard <= 2 and computer.loop.late <= 0.3 / timing.hop
    computer.run(60)
    assert computer.loop.dropouts == heard and not computer.loop.news
    assert computer.loop.latency == pytest.approx(before, abs=0.007)


@pytest.mark.parametrize("catches_up", [False, True])
def test_a_pause_of_a_tenth_of_a_second_is_heard_once(catches_up: bool) -> None:
    """The device counts, and with it, at the same moment, the buffer that must make up for it."""
    timing = LATENCIES["low"]
    computer = Computer(timing, pauses=[(5.0, 0.1)], catches_up=catches_up)
    computer.run(4.9)
    before = computer.loop.latency
    computer.run(40)
    assert computer.gaps == 1 and computer.loop.dropouts == 1 + catches_up
    assert computer.loop.latency == pytest.approx(before, abs=0.007)


def test_a_device_that_runs_dry_is_counted() -> None:
    computer = Computer(LATENCIES["high"], pauses=[(5.0 + i, 0.07) for i in range(4)])
    computer.run(10)
    assert computer.gaps == computer.loop.dropouts == 4 and computer.loop.late == 0


@pytest.mark.parametrize("load", [1.1, 1.3, 2.0, 4.0])
def test_a_network_that_is_too_slow_gets_longer_hops(load: float) -> None:
    timing = LATENCIES["low"]
    computer = Computer(timing, load=load)
    computer.run(30)
    assert (
        computer.loop.status.hop > load * timing.hop
        and "too slow for a hop of 46 ms" in computer.loop.news[0]
    )
    late, dropouts = computer.loop.late, computer.loop.dropouts
    computer.run(40)
    assert (computer.loop.late, computer.loop.dropouts) == (late, dropouts)


def test_pauses_every_second_cost_nothing_for_a_minute() -> None:
    """As some kernels' housekeeping makes them, on top of a network that now and then takes twice as long."""
    pauses = [(3 + 1.03 * i, 0.025) for i in range(60)]
    slow = [(3.4 + 1.7 * i, 0.02) for i in range(36)]
    computer = Computer(LATENCIES["low"], pauses=pauses, worker_pauses=slow)
    computer.run(64)
    assert computer.loop.dropouts == computer.loop.late == computer.gaps == 0
