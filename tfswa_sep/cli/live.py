"""`tfswa-sep live`: separate what a sound device hears while it plays."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tfswa_sep.cli.default_command import RunByDefault
from tfswa_sep.cli.help import HARDWARE, OUTPUT, STEMS, Command, option
from tfswa_sep.cli.shared_options import Debug, Json, Model, Offline, Quiet
from tfswa_sep.cli.terminal import print_error, say
from tfswa_sep.errors import UsageError
from tfswa_sep.options import LATENCIES, Runtime

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tfswa_sep.live.loop import LiveStatus
    from tfswa_sep.live.osc import OscPort
    from tfswa_sep.live.session import LiveSession

DEVICES = "Sound devices"
_LOOKS_PER_SECOND = 10
_STEP_DB, _LEAST_DB, _MOST_DB = 3.0, -100.0, 12.0
_GAIN = re.compile(r"([a-z0-9_+-]+)=([+-]?\d+(?:\.\d+)?|off)", re.IGNORECASE)

app = typer.Typer(cls=RunByDefault, rich_markup_mode=None, epilog="All options: tfswa-sep live run --help")


@app.callback()
def _live() -> None:
    """Separate what a sound device hears while it plays."""


@app.command("run", cls=Command)
def live(
    stems: Annotated[
        str | None,
        option(
            STEMS,
            "Stems to play: vocals, drums, bass, other, accompaniment (all but the vocals).  [default: all]",
            metavar="LIST",
        ),
    ] = None,
    gain: Annotated[
        list[str] | None,
        option(STEMS, "Gain of a stem, such as vocals=-20 or drums=off; repeatable.", metavar="STEM=DB"),
    ] = None,
    latency: Annotated[
        Literal["low", "normal", "high"], option(HARDWARE, "Lower latency costs quality.")
    ] = "normal",
    input_name: Annotated[
        str | None,
        option(DEVICES, "Where sound comes from; see `live devices`.", "--input", metavar="DEVICE"),
    ] = None,
    output_name: Annotated[
        str | None, option(DEVICES, "Where the stems are played.", "--output", metavar="DEVICE")
    ] = None,
    record: Annotated[
        Path | None, option(OUTPUT, "Record the stems here, as FLAC.", metavar="FOLDER")
    ] = None,
    port: Annotated[
        int | None,
        option(
            STEMS,
            "Let other programs change the gains by OSC at this UDP port; 0 for any free one.",
            min=0,
            max=65_535,
            metavar="N",
        ),
    ] = None,
    model: Model = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Separate what a sound device hears while it plays.

    Plays a mix of the stems until q or Ctrl-C is pressed. Keys change the gains meanwhile; the screen lists them.
    """
    gains = _parse_gains(gain or [])
    from tfswa_sep.live.devices import portaudio

    portaudio()  # before the model is loaded
    from tfswa_sep.inference.stem_matrix import parse_stems
    from tfswa_sep.live.osc import OscPort
    from tfswa_sep.live.recorder import Recorder
    from tfswa_sep.live.session import LiveSession
    from tfswa_sep.separator import Separator

    backend = Separator(model, runtime=Runtime(threads=1)).network
    _, matrix = parse_stems(stems, backend.stems)
    mixer = Mixer(backend.stems, matrix.sum(axis=0).tolist(), gains)
    status, recorder = None, None
    try:
        with ExitStack() as opened:
            remote = None if port is None else opened.enter_context(OscPort(port))
            if record is not None:
                recorder = Recorder(record, backend.stems, backend.sample_rate, backend.channels)
                opened.callback(recorder.close)
            session = opened.enter_context(
                LiveSession(
                    backend,
                    LATENCIES[latency],
                    mixer.weights(),
                    input_name=input_name,
                    output_name=output_name,
                    silent=not all(mixer.weights()),
                    recorder=recorder,
                )
            )
            began, used = time.monotonic(), time.process_time()
            show = opened.enter_context(_screen(remote, shown=not quiet and not as_json))
            keys = opened.enter_context(_keys())
            for status in _run(session, mixer, keys, remote):
                show(session, mixer, status, (time.process_time() - used) / (time.monotonic() - began))
    finally:
        if status is not None:
            seconds = time.monotonic() - began
            _report(
                status, seconds, (time.process_time() - used) / seconds, record, as_json=as_json, quiet=quiet
            )


@app.command("devices", cls=Command)
def list_devices(as_json: Json = False, debug: Debug = False) -> None:
    """List sound devices, and the inputs that hear other programs."""
    from tfswa_sep.live import devices

    found = devices.list_devices()
    if as_json:
        say(json.dumps({"devices": [asdict(device) for device in found]}, indent=2))
        return
    for kind in (devices.INPUT, devices.OUTPUT):
        say(f"{kind}s (--{kind} NAME)")
        for device in (each for each in found if each.kind == kind):
            marks = [f"{device.channels} channels, {device.rate} Hz"]
            marks += ["default"] if device.default else []
            marks += ["hears what other programs play"] if device.loopback else []
            say(f"  {device.name}")
            say(f"      {', '.join(filter(None, [device.description, *marks]))}")
    if not any(device.loopback for device in found):
        say()
        say(_loopback_advice())


class Mixer:
    """The gains of the stems, as keys and OSC messages change them.

    Args:
        stems: The model's.
        weights: (s + 1,), of the chosen stems and of the song.
        gains: dB by stem.
    """

    def __init__(self, stems: tuple[str, ...], weights: list[float], gains: dict[str, float]) -> None:
        self.stems, self._weights = stems, weights
        if unknown := sorted(set(gains) - set(stems)):
            raise UsageError(f"unknown stem '{unknown[0]}' in --gain: choose from {', '.join(stems)}")
        self._first = [gains.get(stem, 0.0) for stem in stems]
        self._first_on = [weight != 0 or stem in gains for stem, weight in zip(stems, weights, strict=False)]
        self.gains, self.on, self.chosen = list(self._first), list(self._first_on), 0

    def weights(self) -> Any:
        """(s + 1,), for LiveSession."""
        import numpy as np

        linear = [
            on * (weight or 1.0) * 10 ** (gain / 20)
            for on, weight, gain in zip(self.on, self._weights, self.gains, strict=False)
        ]
        return np.array([*linear, self._weights[-1]], np.float32)

    def press(self, key: str) -> bool:
        """Do what a key means; False for one that means nothing."""
        if key.isdigit() and 1 <= int(key) <= len(self.stems):
            self.chosen = int(key) - 1
            self.on[self.chosen] = not self.on[self.chosen]
        elif key in "+=":
            self.gains[self.chosen] = min(max(self.gains[self.chosen], -60.0) + _STEP_DB, _MOST_DB)
        elif key in "-_":
            self.gains[self.chosen] -= _STEP_DB
        elif key == "0":
            self.gains, self.on = list(self._first), list(self._first_on)
        else:
            return False
        return True

    def obey(self, address: str, values: Sequence[object]) -> None:
        """Do what an OSC message means. Raises UsageError for one that means nothing."""
        match address.split("/"):
            case ["", "reset"]:
                self.press("0")
                return
            case ["", "gain" | "mute" as what, stem] if stem in self.stems:
                number = self.stems.index(stem)
            case _:
                stems = ", ".join(self.stems)
                raise UsageError(f"expected /gain/STEM, /mute/STEM or /reset, where STEM is one of {stems}")
        value = values[0] if len(values) == 1 else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError("expected one number: " + ("dB" if what == "gain" else "1 for off, 0 for on"))
        if what == "gain":
            self.gains[number] = min(max(float(value), _LEAST_DB), _MOST_DB)
        else:
            self.on[number] = not value


def _run(
    session: LiveSession, mixer: Mixer, keys: Callable[[], str], remote: OscPort | None
) -> Iterator[LiveStatus]:
    """Look after a session until q is pressed; yields its status a few times per second."""
    weights = mixer.weights()
    while True:
        for line in session.poll():
            print_error(line)
        key = keys()
        if key == "q":
            return
        if key:
            mixer.press(key)
        for line in remote.receive(mixer.obey) if remote else ():
            print_error(line)
        if (changed := mixer.weights()).tolist() != weights.tolist():
            session.set_weights(weights := changed)
        yield session.loop.status
        time.sleep(1 / _LOOKS_PER_SECOND)


def _report(
    status: LiveStatus, seconds: float, cpu: float, record: Path | None, *, as_json: bool, quiet: bool
) -> None:
    known = not math.isnan(status.latency)
    if as_json:
        fields = {
            "seconds": round(seconds, 1),
            "latency": round(status.latency, 4) if known else None,
            "late": status.late,
            "dropouts": status.dropouts,
            "hop": round(status.hop, 4),
            "cpu": round(cpu, 3),
            "drift": round(status.drift, 6),
            "recorded": str(record) if record else None,
        }
        say(json.dumps(fields))
    elif not quiet:
        parts = [f"{int(seconds) // 60}:{int(seconds) % 60:02d}"]
        parts += [f"latency {1000 * status.latency:.0f} ms"] if known else []
        parts += [f"{status.late} late", f"{status.dropouts} dropouts", f"CPU {cpu:.0%} of one core"]
        parts += [f"recorded in {record}"] if record else []
        say(", ".join(parts))


def _parse_gains(texts: list[str]) -> dict[str, float]:
    gains: dict[str, float] = {}
    for text in texts:
        match = _GAIN.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"invalid --gain '{text}': expected STEM=DB, such as vocals=-20 or drums=off")
        gains[match[1].lower()] = -math.inf if match[2].lower() == "off" else float(match[2])
    return gains


def _loopback_advice() -> str:
    if sys.platform == "darwin":
        return "To hear what other programs play, install BlackHole: brew install blackhole-2ch (see docs/live.md)."
    if sys.platform == "win32":
        return "To hear what other programs play, enable Stereo Mix or install VB-CABLE (see docs/live.md)."
    return "To hear what other programs play, install pactl: sudo apt-get install pulseaudio-utils (see docs/live.md)."


@contextmanager
def _screen(
    remote: OscPort | None, *, shown: bool
) -> Iterator[Callable[[LiveSession, Mixer, LiveStatus, float], None]]:
    """What shows a session's status: a table on a terminal, else one line once the latency is known."""
    osc = f", OSC at {remote.address}" if remote else ""
    if not shown or not sys.stderr.isatty():
        told = not shown

        def tell(session: LiveSession, mixer: Mixer, status: LiveStatus, cpu: float) -> None:
            nonlocal told
            if not told and not math.isnan(status.latency):
                print_error(f"{_route(session)}, latency {1000 * status.latency:.0f} ms{osc}")
                told = True

        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as screen:
        yield lambda session, mixer, status, cpu: screen.update(
            _table(session, mixer, status, cpu, osc), refresh=True
        )


def _route(session: LiveSession) -> str:
    return f"{session.devices['input'].name} to {session.devices['output'].name}"


def _table(session: LiveSession, mixer: Mixer, status: LiveStatus, cpu: float, osc: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for number, (stem, gain, on) in enumerate(zip(mixer.stems, mixer.gains, mixer.on, strict=True), 1):
        mark = ">" if number - 1 == mixer.chosen else " "
        state = f"{gain:+.0f} dB" if on and not math.isinf(gain) else "off"
        table.add_row(f"{mark}{number} {stem}", _bar(status.levels[stem]), state)
    for name in ("input", "output"):
        table.add_row(f"   {name}", _bar(status.levels[name]), "")
    delay = "no sound yet" if math.isnan(status.latency) else f"latency {1000 * status.latency:.0f} ms"
    facts = f"{delay}   late {status.late}   dropouts {status.dropouts}   CPU {cpu:.0%} of one core"
    keys = f"1-{len(mixer.stems)} on/off   + - gain of >   0 reset   q quit"
    title = ("waiting for the device" if session.lost else _route(session)) + osc
    return Group(Text(title), table, Text(facts), Text(keys, style="dim"))


def _bar(level: float, *, width: int = 30, bottom: float = -60.0) -> str:
    filled = round(width * min(max(1 - level / bottom, 0), 1))
    return "█" * filled + "·" * (width - filled)


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """What returns the key that was pressed last, "" for none; never waits."""
    if not sys.stdin.isatty():
        yield lambda: ""
        return
    if sys.platform == "win32":
        import msvcrt

        yield lambda: msvcrt.getwch() if msvcrt.kbhit() else ""
        return
    import select
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield lambda: sys.stdin.read(1) if select.select([sys.stdin], [], [], 0)[0] else ""
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
