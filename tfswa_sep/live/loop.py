"""From the input's callback to the output's, without devices: everything here can be driven by hand.

    input callback -> ring -> resampler on the output's clock -> hops -> network, gains -> ring -> output callback
                                   |                                                    |
                                   +--------- the song, for stems that come late -------+

The callbacks only copy. `step`, called by a worker thread, does the rest. It skips the network for a hop that could
not be ready in time. If the output runs dry nevertheless, the callback itself takes the song, or silence, until the
worker has caught up; every change is faded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from tfswa_sep.errors import UsageError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.live_windows import LiveWindows
from tfswa_sep.inference.overlap_add import Samples
from tfswa_sep.live.ring import Ring
from tfswa_sep.options import LiveTiming

SECONDS = 4.0  # of the rings
FADE = 0.005  # seconds
OUTPUT_BUFFER = 0.04  # seconds that the output device holds: it plays on while the whole machine pauses
# Hops of sound that wait for the output, beyond what a punctual worker needs; at least OUTPUT_BUFFER, as the device
# takes so much at once after a pause.
SPARE = 0.5
MOST_DRIFT = 0.003  # largest stretch of the input: 5 cents, ten times the drift between sound cards
SETTLING = 10.0  # seconds in which the buffer's length is corrected
MOST_LATE = 0.05  # of a second's hops
SLOW_SECONDS = 3  # in a row with more late hops: the CPU is too slow for the hop; a pause is over sooner
LONGEST_HOP = 0.5  # seconds
MOST_MISSING = 0.25  # seconds; if the buffer is off by more, it is filled anew
MOST_STRETCHED = 0.02  # seconds by which it may be too short to be corrected little by little, not by a jump
MOST_SURPLUS = 0.1  # likewise too long, which costs latency, but no dropout
PATIENCE = 3  # seconds that a larger error must last before a jump
MOST_BACKLOG = 3  # hops that may wait for the network
QUIETEST = -90.0  # dBFS: the bottom of the meters


@dataclass(frozen=True, kw_only=True)
class LiveStatus:
    """How a loop is doing."""

    levels: Mapping[
        str, float
    ]  # dBFS, RMS of the last hop, per stem before its gain, and of "input" and "output"
    latency: float  # seconds from the input's converter to the output's, as the devices report their times
    late: int  # hops whose stems came too late
    dropouts: int  # times that the output, or the buffer for it, ran dry
    hop: float  # seconds
    load: float  # share of the hop that the network takes
    drift: float  # relative difference of the clocks that is being corrected


class LiveLoop:
    """Separates the samples given to `feed`; `fill` returns the mix of stems.

    Args:
        model: The loaded model.
        timing: Window, hop and look-ahead.
        weights: (s + 1,), the gain of each of the model's stems and, last, of the song.
        input_rate: Hz.
        output_rate: Hz.
        block: Samples per callback, at most, at the higher of the rates.
        silent: Replace late stems by silence instead of the song.
        on_stems: Called by `step` with each hop's song (c, n) and stems (s, c, n), silent where they were late.
        clock: Seconds.
        cpu_clock: Seconds of the CPU that this thread has used.

    Raises:
        UsageError: The model is too slow, whatever the hop.
    """

    def __init__(
        self,
        model: Backend,
        timing: LiveTiming,
        weights: NDArray[np.float32],
        *,
        input_rate: float,
        output_rate: float,
        block: int = 512,
        silent: bool = False,
        on_stems: Callable[[Samples, Samples], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.stems, self.rate = model.stems, model.sample_rate
        self.input_rate, self.output_rate = input_rate, output_rate
        self._channels, self._block, self._silent = model.channels, block, silent
        self._on_stems, self._clock = on_stems, clock
        self._model, self._matrix = model, np.eye(len(model.stems), len(model.stems) + 1, dtype=np.float32)
        self._windows = LiveWindows(
            model,
            self._matrix,
            window=round(timing.window * self.rate),
            lookahead=round(timing.lookahead * self.rate),
        )
        self.news: list[str] = []  # lines for the user
        self._longest_hop = min(round(LONGEST_HOP * self.rate), self._windows.longest)
        self._set_hop(round(timing.hop * self.rate))
        self._cost, needed = self._measure_cost(cpu_clock)  # the former in seconds, smoothed
        if needed * self.rate > self._longest_hop:
            raise UsageError(
                f"this model takes {needed:.1f} s per window here, but would have to run every "
                f"{self._longest_hop / self.rate:.1f} s: choose another --model"
            )
        if needed * self.rate > self._hop:
            self._lengthen_hop(needed)
        self.weights = weights  # may be replaced at any time
        self._played_weights = weights
        self._was_late = False

        # What the input callback writes, and what has become of it.
        self._incoming = Ring(self._channels, round(SECONDS * input_rate))
        self._captured = (0, 0.0)  # samples fed, and when the last of them was captured
        self._taken = 0  # samples of `_incoming` that were resampled
        trial, self._follow = self._input_resampler(), self._input_resampler()
        silence = np.zeros((8192, self._channels), np.float32)
        # Samples at the model's rate that the resampler holds back, always; its own `delay` is something else.
        self._held = len(silence) * self.rate / input_rate - len(trial.resample_chunk(silence))
        self._pending = np.zeros((self._channels, 0), np.float32)
        self._heard = 0  # samples at the model's rate
        self.drift, self._drift_sum, self._errors = 0.0, 0.0, list[int]()

        # What the output callback reads: the stems' mix, and the song for when there is none.
        capacity = round(SECONDS * output_rate)
        self._mix, self._song = Ring(self._channels, capacity), Ring(self._channels, capacity)
        self._to_output = [self._output_resampler() for _ in range(2)]
        self._write(self._song, 1, np.zeros((self._channels, self._windows.lookahead), np.float32))
        self._read, self._playing = 0, False  # the position in `_mix` that is played next
        self._begin_at = self._target  # samples in `_mix` from which on it is played: the buffer is full
        self._settled, self._seconds_off = False, 0
        self._jump = 0  # samples to leave out, or to repeat, once
        self._rebuffer = False  # the output is to fade out, and to wait until the buffer is full again
        self._in_gap = False  # what the last block was said to follow
        self._song_ended = True  # the last block ended without the song
        self._replaced = True  # the last block did not end with the stems
        self._played = (0, 0.0)  # the position that the last block began with, and when it is played
        fade = max(1, round(FADE * output_rate))
        self._fade_in = ((np.arange(fade) + 0.5) / fade).astype(np.float32)[:, None]
        self._spare_block = np.zeros((1 << 14, self._channels), np.float32)  # of the output callback

        self._hops, self._late_hops, self._slow_seconds = 0, 0, 0  # the first two in this second
        self.late = self.dropouts = 0
        self._levels = dict.fromkeys((*self.stems, "input", "output"), QUIETEST)
        self._latencies = deque[float](maxlen=11)  # after the last hops
        self.arrived = threading.Event()  # set by `feed`

    # The callbacks' side.

    def feed(self, block: Samples, captured: float) -> None:
        """Take samples (n, channels or 1) from the input.

        Args:
            block: Its buffer, which is copied.
            captured: When the converter had the last of them, in seconds of the devices' clock.
        """
        self._incoming.write(block)
        self._captured = (self._incoming.written, captured)
        self.arrived.set()

    def fill(self, out: Samples, played: float, *, after_gap: bool = False) -> None:
        """Fill the output's buffer (n, channels).

        Args:
            out: The buffer.
            played: When the converter will have the first of them, in seconds of the devices' clock.
            after_gap: The device had nothing to play before them, as the callback came too late; devices may say so
                several times in a row.
        """
        n, fade = len(out), self._fade_in
        self.dropouts += after_gap and self._playing and not self._in_gap
        self._in_gap = after_gap
        if not self._playing:
            written = self._mix.written
            if written < self._begin_at:
                out[:] = 0
                return
            self._read, self._playing, self._replaced = written - self._target, True, True
            self._settled, self._seconds_off, self._jump = False, 0, 0
            self._latencies.clear()
        ready = self._mix.written - self._read
        self._played = (self._read, played)
        if ready >= n + len(fade) and not self._rebuffer:
            self._mix.read(self._read, out)
            if self._jump and min(n, ready - self._jump) >= len(fade):
                self._read += self._jump
                self._jump = 0
                other = self._spare_block[: len(fade)]
                other[:] = out[: len(fade)]
                self._mix.read(self._read, out)
                out[: len(fade)] *= fade
                out[: len(fade)] += other * fade[::-1]
                self._played = (self._read, played)
            if self._replaced:
                m = min(n, len(fade))
                out[:m] *= fade[:m]
                out[:m] += self._replacement(m) * (1 - fade[:m])
            self._replaced = False
            self._read += n
            return
        other = self._replacement(n)
        if not self._replaced:  # fade from what there is of the stems
            m = min(max(ready, 0), len(fade), n)
            self._mix.read(self._read, out[:m])
            out[:m] *= fade[:m][::-1]
            other[:m] *= fade[:m]
            other[:m] += out[:m]
            self.dropouts += not self._rebuffer
        out[:] = other
        self._replaced = True
        self._read += n
        if self._rebuffer or ready < -MOST_MISSING * self.output_rate:
            self._playing = self._rebuffer = False
            self._begin_at = self._mix.written + self._target

    def _replacement(self, n: int) -> Samples:
        """What is played in place of the stems' next n samples, in a buffer of the callback's own."""
        other, fade = self._spare_block[:n], self._fade_in
        there = 0 if self._silent or self._rebuffer else max(self._song.written - self._read, 0)
        ends = there < n + len(fade)  # as the worker is away for longer than the song lasts
        there = min(there, n, len(fade)) if ends and not self._song_ended else 0 if ends else n
        self._song.read(self._read, other[:there])
        other[there:] = 0
        if ends:
            other[:there] *= fade[:there][::-1]
        elif self._song_ended:
            m = min(there, len(fade))
            other[:m] *= fade[:m]
        self._song_ended = ends
        return other

    # The worker's side.

    def step(self) -> bool:
        """Separate one hop if enough has come, and say whether it has.

        Raises:
            ModelError: The network fails.
            DeviceError: Out of memory.
        """
        self._take_input()
        hop = self._hop
        if self._pending.shape[1] < hop:
            return False
        block, self._pending = self._pending[:, :hop], self._pending[:, hop:]
        began = self._clock()
        left = (self._mix.written - self._read - len(self._fade_in) - self._block) / self.output_rate
        late = (self._playing and left < self._cost) or self._pending.shape[1] > MOST_BACKLOG * hop
        if late:
            stems = self._windows.skip(block)
            self._cost *= 0.8  # or one slow hop would be the last
            self.late += 1
        else:
            stems = self._windows.advance(block)
            spent = self._clock() - began
            self._cost += 0.2 * (spent - self._cost)
        song = self._windows.song(hop)
        mix = self._mixed(song, stems, late=late)
        self._write(self._mix, 0, mix)
        for name, samples in (*zip(self.stems, stems, strict=True), ("input", song), ("output", mix)):
            self._levels[name] = _decibels(samples)
        if self._on_stems:
            self._on_stems(song, stems)
        if self._playing and self._played[1] and self._captured[1]:
            self._latencies.append(self._latency_now())
        if not late:
            self._follow_clock()
        self._judge_speed(late=late)
        return True

    def _take_input(self) -> None:
        fed = self._incoming.written
        lost = fed - self._incoming.capacity // 2 - self._taken
        if lost > 0:  # the worker was away for seconds: silence instead of what is gone
            self._taken += lost
        if fed == self._taken:
            return
        raw = np.empty((fed - self._taken, self._channels), np.float32)
        self._incoming.read(self._taken, raw)
        self._taken = fed
        got = np.ascontiguousarray(self._follow.resample_chunk(raw).T)
        self._heard += got.shape[1]
        self._pending = np.concatenate([self._pending, got], axis=1)
        self._write(self._song, 1, got)

    def _mixed(self, song: Samples, stems: Samples, *, late: bool) -> Samples:
        """The stems by their gains, and the song by its; in place of late stems the song or silence. (c, n)."""
        before, after = self._played_weights, self.weights
        self._played_weights = after
        sounds = np.concatenate([stems, song[None]])  # late stems fade out, those after them fade in
        mix = np.tensordot(after, sounds, axes=1)
        ramp = np.ones(song.shape[1], np.float32)
        fade = self._windows.fade_in[: len(ramp)]
        ramp[: len(fade)] = fade
        if before is not after:
            mix = np.tensordot(before, sounds, axes=1) * (1 - ramp) + mix * ramp
        if (late or self._was_late) and not self._silent:
            mix = mix + song * (ramp if not self._was_late else 1 if late else 1 - ramp)
        self._was_late = late
        return np.clip(mix, -1, 1).astype(np.float32)

    def _write(self, ring: Ring, number: int, samples: Samples) -> None:
        resampler = self._to_output[number]
        block = np.ascontiguousarray(samples.T, np.float32)
        ring.write(resampler.resample_chunk(block) if resampler else block)

    def _input_resampler(self) -> soxr.ResampleStream:
        resampler = soxr.ResampleStream(
            self.input_rate * (1 + MOST_DRIFT), self.rate, self._channels, dtype="float32", vr=True
        )
        resampler.set_io_ratio(self.input_rate, self.rate, 0)
        return resampler

    def _output_resampler(self) -> soxr.ResampleStream | None:
        if self.output_rate == self.rate:
            return None
        # Variable-rate resamplers return every sample as soon as they can, others in bursts.
        resampler = soxr.ResampleStream(
            self.rate * (1 + MOST_DRIFT), self.output_rate, self._channels, dtype="float32", vr=True
        )
        resampler.set_io_ratio(self.rate, self.output_rate, 0)
        return resampler

    def _follow_clock(self) -> None:
        """Stretch the input a little if the output's buffer grows or shrinks: the devices' clocks differ."""
        if not self._playing:
            return
        self._errors.append(self._mix.written - self._read - self._target)
        if len(self._errors) * self._hop < self.rate:  # a second: callbacks come in blocks
            return
        error = sum(self._errors) / len(self._errors) / self.output_rate
        self._errors.clear()
        if abs(error) > MOST_MISSING:
            self._rebuffer = True
            self.dropouts += 1
            return
        if not self._settled or not -MOST_STRETCHED <= error <= MOST_SURPLUS:
            # Devices fill buffers of their own at first; later they pause now and then, and may catch up.
            self._seconds_off += 1
            if self._settled and self._seconds_off < PATIENCE:
                return
            self.dropouts += self._settled
            self._jump, self._settled, self._seconds_off = round(error * self.output_rate), True, 0
            return
        self._seconds_off = 0
        if abs(error) <= MOST_STRETCHED:  # more is a pause, and says nothing about the clocks
            self._drift_sum += error / SETTLING / (4 * SETTLING)
        self._drift_sum = float(np.clip(self._drift_sum, -MOST_DRIFT, MOST_DRIFT))
        self.drift = float(np.clip(error / SETTLING + self._drift_sum, -MOST_DRIFT, MOST_DRIFT))
        self._follow.set_io_ratio(self.input_rate * (1 + self.drift), self.rate, round(0.1 * self.input_rate))

    def _measure_cost(self, cpu_clock: Callable[[], float]) -> tuple[float, float]:
        """How long the network takes for a hop, and how long without other programs, in seconds.

        The first run, which warms up, does not count.
        """
        trial = LiveWindows(
            self._model, self._matrix, window=self._windows.window, lookahead=self._windows.lookahead
        )
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (self._channels, self._hop)).astype(np.float32)
        costs = []
        for _ in range(3):
            began = self._clock(), cpu_clock()
            trial.advance(noise)
            costs.append((self._clock() - began[0], cpu_clock() - began[1]))
        cost = min(wall for wall, _ in costs[1:])
        return cost, min(cost, *(cpu for _, cpu in costs[1:]))

    def _set_hop(self, hop: int) -> None:
        self._hop = max(1, min(hop, self._windows.longest))
        fade = round(FADE * self.output_rate)
        played = self._hop * self.output_rate / self.rate
        spare = max(SPARE * played, OUTPUT_BUFFER * self.output_rate)
        self._target = 2 * self._block + fade + round(played + spare)

    def _judge_speed(self, *, late: bool) -> None:
        """Lengthen the hop if many were late for seconds."""
        self._hops += 1
        self._late_hops += late
        if self._hops * self._hop < self.rate:
            return
        slow = self._late_hops > MOST_LATE * self._hops
        self._slow_seconds = self._slow_seconds + 1 if slow else 0
        self._hops = self._late_hops = 0
        if self._slow_seconds >= SLOW_SECONDS:
            self._slow_seconds = 0
            self._lengthen_hop()

    def _lengthen_hop(self, needed: float = 0.0) -> None:
        """Make the hop half as long again, more than once if the network needs still more seconds."""
        before = hop = self._hop
        while hop < self._longest_hop and (hop == before or hop < needed * self.rate):
            hop = min(round(1.5 * hop), self._longest_hop)
        if hop == before:
            return
        self._set_hop(hop)
        self._rebuffer = True
        was, now = (round(1000 * each / self.rate) for each in (before, hop))
        self.news.append(f"the CPU is too slow for a hop of {was} ms: now {now} ms, with more latency")

    # For the screen.

    @property
    def latency(self) -> float:
        """Seconds from the input's converter to the output's; NaN before anything is played.

        The median after the last hops: devices report their times with errors of milliseconds.
        """
        recent = list(self._latencies)
        return float(np.median(recent)) if recent and self._playing else float("nan")

    def _latency_now(self) -> float:
        fed, captured = self._captured
        read, played = self._played
        taken, heard = self._taken, self._heard + self._held
        when_captured = captured - (fed - taken) / self.input_rate
        position = (heard + self._windows.lookahead) * self.output_rate / self.rate
        return played + (position - read) / self.output_rate - when_captured

    @property
    def status(self) -> LiveStatus:
        """How the loop is doing."""
        return LiveStatus(
            levels=dict(self._levels),
            latency=self.latency,
            late=self.late,
            dropouts=self.dropouts,
            hop=self._hop / self.rate,
            load=self._cost * self.rate / self._hop,
            drift=self.drift,
        )


def _decibels(samples: Samples) -> float:
    power = float(np.square(samples).mean())
    return max(QUIETEST, 10 * float(np.log10(power))) if power > 0 else QUIETEST
