"""A live session: the loop between two devices, which may vanish and come back."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, TfswaError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.overlap_add import Samples
from tfswa_sep.live import devices
from tfswa_sep.live.loop import OUTPUT_BUFFER, LiveLoop
from tfswa_sep.live.recorder import Recorder
from tfswa_sep.options import LiveTiming

BLOCK = 256  # samples per callback
_SILENT_SECONDS = 2.0  # without a callback, after which a device is taken for lost
_RETRY_SECONDS = 1.0
_SWITCH_SECONDS = 0.0005  # Python's threads take turns this often, so that callbacks do not wait for NumPy


class LiveSession:
    """Runs a LiveLoop with real devices; a context manager.

    Args:
        model: The loaded model.
        timing: Window, hop and look-ahead.
        weights: See LiveLoop.
        input_name: See devices.find_device.
        output_name: Likewise.
        silent: See LiveLoop.
        recorder: Where the stems go.

    Raises:
        DeviceError: A device is missing or cannot be opened.
        UsageError: A name fits several devices, or the model is too slow.
    """

    def __init__(
        self,
        model: Backend,
        timing: LiveTiming,
        weights: NDArray[np.float32],
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        silent: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self._names = {devices.INPUT: input_name, devices.OUTPUT: output_name}
        self._model, self._timing, self._silent = model, timing, silent
        self._recorder = recorder
        self._streams: dict[str, Any] = {}
        self._called: dict[str, float] = {}
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._lost_since = 0.0
        self._retried = 0.0
        self._weights = weights
        self._loop: LiveLoop | None = None
        self.devices: dict[str, devices.Device] = {}

    def __enter__(self) -> LiveSession:
        gc.collect()
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            self._open()
        except BaseException:
            self._stop_streams()
            sys.setswitchinterval(self._switch)
            raise
        gc.freeze()  # no thread runs while garbage is looked for: 67 ms on a busy machine (measured)
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self.loop.arrived.set()
        self._thread.join(timeout=10)
        self._stop_streams()
        sys.setswitchinterval(self._switch)
        gc.unfreeze()

    @property
    def loop(self) -> LiveLoop:
        """The loop. It is another one after a device with another rate has come back."""
        assert self._loop is not None
        return self._loop

    @property
    def lost(self) -> bool:
        """Whether a device is missing."""
        return self._lost_since > 0

    def set_weights(self, weights: NDArray[np.float32]) -> None:
        """Change the gains; see LiveLoop."""
        self._weights = self.loop.weights = weights

    def poll(self) -> list[str]:
        """Look after the devices; call it a few times per second. Returns lines for the user.

        Raises:
            TfswaError: The network or the disk failed.
        """
        if self._error is not None:
            raise self._error
        news, self.loop.news = self.loop.news, []
        now = time.monotonic()
        if not self.lost:
            gone = [kind for kind in self._streams if not self._alive(kind, now)]
            if gone:
                self._lost_since = now
                names = " and ".join(f"{kind} {self.devices[kind].name}" for kind in gone)
                news.append(f"lost the {names}: waiting for {'them' if len(gone) > 1 else 'it'} to come back")
                self._stop_streams()
        elif now - self._retried >= _RETRY_SECONDS:
            try:
                devices.refresh()
                self._open()
                news.append(f"the devices are back after {now - self._lost_since:.0f} s")
                self._lost_since = 0.0
            except TfswaError:
                self._stop_streams()
            self._retried = time.monotonic()
        return news

    def _alive(self, kind: str, now: float) -> bool:
        return self._streams[kind].active and now - self._called[kind] < _SILENT_SECONDS

    def _open(self) -> None:
        found = devices.list_devices()
        chosen = {kind: devices.find_device(name, kind, found) for kind, name in self._names.items()}
        if chosen[devices.INPUT].name == f"{chosen[devices.OUTPUT].name}.monitor":
            raise DeviceError(
                f"{chosen[devices.INPUT].name} would hear what the program itself plays: choose another --output"
            )
        self.devices = chosen
        rate = float(self._model.sample_rate)
        # The loop needs the rates before the callbacks run: until then they do nothing.
        target: list[LiveLoop] = []
        for kind, callback, latency in (
            (devices.INPUT, self._on_input(target), 0.0),
            (devices.OUTPUT, self._on_output(target), OUTPUT_BUFFER),
        ):
            self._called[kind] = time.monotonic()
            self._streams[kind], _ = devices.open_stream(
                chosen[kind], rate, self._model.channels, BLOCK, callback, latency=latency
            )
        rates = {kind: float(stream.samplerate) for kind, stream in self._streams.items()}
        loop = self._loop
        if loop is None or (loop.input_rate, loop.output_rate) != (
            rates[devices.INPUT],
            rates[devices.OUTPUT],
        ):
            loop = LiveLoop(
                self._model,
                self._timing,
                self._weights,
                input_rate=rates[devices.INPUT],
                output_rate=rates[devices.OUTPUT],
                block=BLOCK,
                silent=self._silent,
                on_stems=self._record,
            )
            self._loop = loop
        target.append(loop)

    def _on_input(self, target: list[LiveLoop]) -> Callable[..., None]:
        def callback(data: Samples, frames: int, when: Any, status: Any) -> None:
            self._called[devices.INPUT] = time.monotonic()
            if target:
                began = when.inputBufferAdcTime or when.currentTime
                target[0].feed(data, began + frames / target[0].input_rate)

        return callback

    def _on_output(self, target: list[LiveLoop]) -> Callable[..., None]:
        stereo = np.zeros((1 << 14, self._model.channels), np.float32)

        def callback(data: Samples, frames: int, when: Any, status: Any) -> None:
            self._called[devices.OUTPUT] = time.monotonic()
            if not target:
                data[:] = 0
                return
            out = data if data.shape[1] == stereo.shape[1] else stereo[:frames]
            played = when.outputBufferDacTime or when.currentTime
            target[0].fill(out, played, after_gap=bool(status.output_underflow))
            if out is not data:  # a mono device
                np.mean(out, axis=1, keepdims=True, out=data)

        return callback

    def _record(self, song: Samples, stems: Samples) -> None:
        if self._recorder is not None:
            self._recorder.write(song, stems)

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                loop = self.loop
                loop.arrived.clear()
                if not loop.step():
                    loop.arrived.wait(timeout=0.5)
        except BaseException as error:
            self._error = error

    def _stop_streams(self) -> None:
        """Close the streams. A stream whose server has died may never return, so each gets a second of its own."""
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            closing = threading.Thread(target=_close, args=(stream,), daemon=True)
            closing.start()
            closing.join(timeout=1)


def _close(stream: Any) -> None:
    try:
        stream.abort(ignore_errors=True)
        stream.close(ignore_errors=True)
    except Exception:  # it is gone
        return
