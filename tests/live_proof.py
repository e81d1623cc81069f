"""Prove live separation on PulseAudio's null sinks: no sound card is needed. `make test-live`, on Linux.

    python tests/live_proof.py [SONG] [--seconds 300] [--latency low normal high] [--busy 1] [--faults]

Needs pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2. A server of its own has one null sink of four
channels: the song is played to the first two, which `live` hears, and `live` plays to the other two, so that one
recording of all four shows the latency. It is compared with what the program says, and the recorded stems with the
same windows of the recorded song. `--busy 1` keeps a core busy meanwhile. `--faults` pulls the device, restarts the
server, starves the CPU and interrupts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.inference.live_windows import LiveWindows
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.options import LATENCIES

RATE = 44_100
MOST_ERROR = 0.005  # seconds, of the latency
MOST_DIFFERENCE = 1e-5  # of the stems
FP32 = (
    Path(__file__).parents[1] / "tfswa_sep" / "weights" / "small.onnx"
)  # int8 would amplify the recording's rounding
LEFT, RIGHT = "front-left,front-right", "rear-left,rear-right"
STEREO = "channels=2 channel_map=front-left,front-right remix=no"


class Server:
    """A PulseAudio server in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "native"
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{self.socket}",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.modules = [
            f"module-native-protocol-unix socket={self.socket} auth-anonymous=1",
            f"module-null-sink sink_name=quad channels=4 channel_map={LEFT},{RIGHT} rate={RATE} format=float32le",
            f"module-remap-sink sink_name=song master=quad master_channel_map={LEFT} {STEREO}",
            f"module-remap-sink sink_name=stems master=quad master_channel_map={RIGHT} {STEREO}",
            f"module-remap-source source_name=heard master=quad.monitor master_channel_map={LEFT} {STEREO}",
        ]

    def start(self) -> None:
        command = [
            "pulseaudio",
            "-n",
            "--system=no",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--log-target=stderr",
        ]
        for module in self.modules:
            command += ["-L", module]
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while self.pactl("info").returncode and time.monotonic() < deadline:
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)

    def pactl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["pactl", *arguments], env=self.environment, capture_output=True, text=True)

    def run(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*command], env=self.environment, text=True, **options)

    def play(self, song: Path) -> subprocess.Popen[str]:
        return self.run("paplay", "--device=song", str(song), stderr=subprocess.DEVNULL)

    def record(self, path: Path) -> subprocess.Popen[str]:
        return self.run(
            "parecord", "--device=quad.monitor", "--file-format=wav", "--format=float32le", f"--rate={RATE}",
            "--channels=4", f"--channel-map={LEFT},{RIGHT}", str(path), stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def live(self, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "tfswa_sep",
            "live",
            "--input",
            "heard",
            "--output",
            "stems",
            *options,
        ]
        return self.run(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def measured_latencies(recording: Path, *, seconds: float = 8, skip: float = 8) -> list[float]:
    """By cross-correlation of the song with what was played, every few seconds."""
    samples, rate = soundfile.read(recording, dtype="float32")
    song, played = samples[:, 0], samples[:, 2]
    n = round(seconds * rate)
    found = []
    for start in range(round(skip * rate), len(song) - n, n):
        a, b = song[start : start + n], played[start : start + n]
        scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
        if scale == 0:
            continue
        spectrum = np.conj(np.fft.rfft(a, 2 * n)) * np.fft.rfft(b, 2 * n)
        correlation = np.fft.irfft(spectrum)[: 3 * rate]
        if correlation.max() > 0.3 * scale:
            found.append(int(correlation.argmax()) / rate)
    return found


def difference_from_offline(folder: Path, latency: str, model: Path) -> float:
    """The recorded stems' largest difference from the same windows of the recorded song."""
    backend = OnnxBackend(model, threads=1)
    timing = LATENCIES[latency]
    windows = LiveWindows(
        backend,
        np.eye(4, 5, dtype=np.float32),
        window=round(timing.window * RATE),
        lookahead=round(timing.lookahead * RATE),
    )
    song = _read(folder / "mixture.flac")[:, windows.lookahead :]  # it was recorded as late as the stems
    hop, worst = round(timing.hop * RATE), 0.0
    stems = np.stack([_read(folder / f"{stem}.flac") for stem in backend.stems])
    for start in range(0, song.shape[1] - hop + 1, hop):
        expected = np.clip(windows.advance(song[:, start : start + hop]), -1, 1)
        worst = max(worst, float(np.abs(stems[..., start : start + hop] - expected).max()))
    return worst


def _read(path: Path) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return samples


def session(
    server: Server, song: Path, latency: str, seconds: float, folder: Path, *options: str
) -> dict[str, Any]:
    """Run `live` for some seconds while the song plays; what it reports, and what was measured."""
    recording, stems = folder / f"{latency}.wav", folder / latency
    with ExitStack() as stack:
        for process in (server.play(song), server.record(recording)):
            stack.callback(process.wait)
            stack.callback(process.terminate)
        live = server.live("--latency", latency, "--record", str(stems), "--json", *options)
        while not stems.exists() and live.poll() is None:  # the model is being loaded
            time.sleep(0.1)
        time.sleep(seconds)
        live.send_signal(signal.SIGINT)
        out, err = live.communicate(timeout=60)
    result: dict[str, Any] = json.loads(out.splitlines()[0])
    measured = measured_latencies(recording)
    result["measured"] = [round(each, 4) for each in measured]
    result["messages"] = err.strip().splitlines()
    return result


def prove(server: Server, song: Path, latencies: list[str], seconds: float, folder: Path) -> bool:
    """Latency and dropouts for each preset, then the stems; prints one line each."""
    fine = True
    for latency in latencies:
        result = session(server, song, latency, seconds, folder)
        measured = result.pop("measured")
        middle = float(np.median(measured)) if measured else float("nan")
        right = (
            abs(middle - result["latency"]) <= MOST_ERROR and not result["dropouts"] and not result["late"]
        )
        spread = (max(measured) - min(measured)) if measured else float("nan")
        print(
            f"{latency}: {'ok' if right else 'WRONG'}, measured {1000 * middle:.1f} ms (spread {1000 * spread:.1f}), "
            f"{result}",
            flush=True,
        )
        fine &= right
    result = session(server, song, "high", 20, folder / "exact", "--model", str(FP32))
    difference = difference_from_offline(folder / "exact" / "high", "high", FP32)
    right = difference <= MOST_DIFFERENCE or bool(result["late"])
    print(
        f"stems: {'ok' if right else 'WRONG'}, differ from offline by {difference:.1e}, {result}", flush=True
    )
    return fine and right


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Processes that never rest."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def faults(server: Server, song: Path, folder: Path) -> bool:
    """Pull the device, restart the server, starve the CPU, interrupt; prints what the program said."""
    stems = folder / "faults"
    with ExitStack() as stack:
        player = server.play(song)
        stack.callback(player.terminate)
        live = server.live("--latency", "normal", "--record", str(stems), "--json")
        while not stems.exists() and live.poll() is None:
            time.sleep(0.1)
        time.sleep(6)
        server.pactl("unload-module", "module-null-sink")  # with all that depends on it
        time.sleep(6)
        for module in server.modules[1:]:
            server.pactl("load-module", *module.split())
        player = server.play(song)
        stack.callback(player.terminate)
        time.sleep(8)
        server.stop()
        time.sleep(4)
        server.start()
        time.sleep(8)
        again = server.play(song)
        stack.callback(again.terminate)
        with busy_cores(8):
            time.sleep(12)
        time.sleep(3)
        live.send_signal(signal.SIGINT)
        out, err = live.communicate(timeout=60)
    lengths = {path.stem: soundfile.info(path).frames for path in sorted(stems.glob("*.flac"))}
    whole = len(lengths) == 5 and len(set(lengths.values())) == 1 and min(lengths.values()) > 0
    lost = err.count("lost the"), err.count("are back")
    right = whole and lost == (2, 2) and live.returncode == 130 and "Traceback" not in err
    print(f"faults: {'ok' if right else 'WRONG'}, exit code {live.returncode}, {lengths}, {out.strip()}")
    print(*err.strip().splitlines(), sep="\n", flush=True)
    return right


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("song", type=Path, nargs="?", default=Path("examples/demo/demo.ogg"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--latency", nargs="*", default=["low", "normal", "high"], choices=list(LATENCIES))
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="cores to keep busy meanwhile")
    parser.add_argument("--faults", action="store_true", help="also pull devices and starve the CPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "exact").mkdir()
        samples, rate = soundfile.read(options.song, dtype="float32", always_2d=True)
        song = folder / "song.wav"
        repeats = int((options.seconds + 60) * rate / len(samples)) + 1
        soundfile.write(song, np.tile(samples[:, :2], (repeats, 1)), rate)
        server = Server(folder)
        server.start()
        try:
            with busy_cores(options.busy):
                fine = prove(server, song, options.latency, options.seconds, folder)
            if options.faults:
                fine &= faults(server, song, folder)
        finally:
            server.stop()
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
