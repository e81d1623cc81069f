"""The sound devices of this machine, and streams to them.

PortAudio, through sounddevice, is the way to all of them. Debian's speaks ALSA alone, so on PulseAudio and PipeWire it
knows one device, "pulse": which source or sink that is, libpulse takes from the environment. `pactl` names them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tfswa_sep.errors import DeviceError, UsageError, install_command

# What plays back what other programs play, by name: monitors, BlackHole and the like on macOS, WASAPI and cables.
_LOOPBACK = re.compile(
    r"monitor of|\.monitor$|blackhole|loopback|soundflower|stereo mix|cable output|what u hear", re.IGNORECASE
)
_PULSE = re.compile(r"pulse|pipewire")
_ENVIRONMENT = {"input": "PULSE_SOURCE", "output": "PULSE_SINK"}
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device in one direction."""

    name: str
    kind: str  # INPUT or OUTPUT
    description: str  # as the system shows it; "" if it is the name
    channels: int
    rate: int  # Hz, its own
    loopback: bool  # gives what other programs play
    default: bool
    number: int  # PortAudio's
    pulse: bool  # `name` is a source or a sink of PulseAudio or PipeWire


def portaudio() -> Any:
    """The sounddevice module. Raises DeviceError if it or PortAudio is missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise DeviceError(
            f"live separation needs the package sounddevice: {install_command(extra='live')}"
        ) from None
    except OSError:
        raise DeviceError(
            "live separation needs PortAudio: sudo apt-get install libportaudio2 libasound2-plugins"
        ) from None


def list_devices() -> list[Device]:
    """All devices, inputs first. Raises DeviceError if PortAudio is missing or has failed."""
    sd = portaudio()
    try:
        found, defaults = list(sd.query_devices()), list(sd.default.device)
        hosts = sd.query_hostapis()
    except sd.PortAudioError as error:
        raise DeviceError(f"PortAudio cannot list the sound devices ({_reason(error)})") from None
    devices: list[Device] = []
    for index, kind in enumerate((INPUT, OUTPUT)):
        able = [each for each in found if each[f"max_{kind}_channels"] > 0]
        pulse = next((each for each in able if _PULSE.fullmatch(each["name"])), None)
        if pulse is not None:
            devices += _pulse_devices(kind, pulse["index"])
        for each in able:
            if pulse is not None and (each is pulse or each["name"] == "default"):
                continue
            devices.append(
                Device(
                    name=each["name"],
                    kind=kind,
                    description=hosts[each["hostapi"]]["name"],
                    channels=each[f"max_{kind}_channels"],
                    rate=round(each["default_samplerate"]),
                    loopback=kind == INPUT and bool(_LOOPBACK.search(each["name"])),
                    default=pulse is None and each["index"] == defaults[index],
                    number=each["index"],
                    pulse=False,
                )
            )
    return devices


def _pulse_devices(kind: str, number: int) -> list[Device]:
    """The sources or sinks that pactl lists; the default one alone, as "pulse", without pactl."""
    of = "source" if kind == INPUT else "sink"
    info = _pactl("info")
    default = info.get(f"default_{of}_name", "") if isinstance(info, dict) else ""
    listed = _pactl("list", f"{of}s")
    devices = []
    for each in listed if isinstance(listed, list) else []:
        channels, rate = _specification(str(each.get("sample_specification", "")))
        name = str(each["name"])
        devices.append(
            Device(
                name=name,
                kind=kind,
                description=str(each.get("description", "")),
                channels=channels,
                rate=rate,
                loopback=kind == INPUT and bool(each.get("monitor_source") or _LOOPBACK.search(name)),
                default=name == default,
                number=number,
                pulse=True,
            )
        )
    return devices


def _specification(text: str) -> tuple[int, int]:
    """Channels and rate of "s16le 2ch 48000Hz"."""
    found = re.search(r"(\d+)ch (\d+)Hz", text)
    return (int(found[1]), int(found[2])) if found else (2, 44_100)


def _pactl(*arguments: str) -> Any:
    """The JSON that pactl prints; None without pactl or a server."""
    program = shutil.which("pactl")
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, "--format=json", *arguments], capture_output=True, text=True, timeout=5, check=True
        )
        return json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_device(wanted: str | None, kind: str, devices: Sequence[Device]) -> Device:
    """The device that is meant: by name, by part of its name or description, or the default.

    Raises:
        UsageError: The name fits several devices.
        DeviceError: It fits none.
    """
    able = [device for device in devices if device.kind == kind]
    advice = "see tfswa-sep live devices"
    if wanted is None:
        chosen = next((device for device in able if device.default), able[0] if able else None)
        if chosen is None:
            raise DeviceError(f"this machine has no sound {kind}: {advice}")
        return chosen
    text = wanted.lower()
    for fits in (
        lambda device: device.name.lower() == text,
        lambda device: text in device.name.lower() or text in device.description.lower(),
    ):
        found = [device for device in able if fits(device)]
        if len({device.name for device in found}) > 1:
            names = ", ".join(device.name for device in found)
            raise UsageError(f"several {kind} devices match '{wanted}' ({names}): name one of them")
        if found:
            return found[0]
    raise DeviceError(f"there is no {kind} device '{wanted}': {advice}")


def open_stream(
    device: Device,
    rate: float,
    channels: int,
    block: int,
    callback: Callable[..., None],
    *,
    latency: float = 0.0,
) -> tuple[Any, float]:
    """Start a stream, at `rate` if the device can, else at its own.

    Args:
        device: The device.
        rate: Hz.
        channels: At most.
        block: Samples per callback.
        callback: sounddevice's.
        latency: Seconds that the device's buffer holds, if its own lowest latency is not longer.

    Returns:
        The stream and its rate in Hz.

    Raises:
        DeviceError: The device cannot be opened.
    """
    sd = portaudio()
    latency = max(latency, sd.query_devices(device.number)[f"default_low_{device.kind}_latency"])
    kind = sd.InputStream if device.kind == INPUT else sd.OutputStream
    before = os.environ.get(_ENVIRONMENT[device.kind])
    if device.pulse:
        os.environ[_ENVIRONMENT[device.kind]] = device.name
    try:
        for tried in dict.fromkeys((rate, float(device.rate))):
            try:
                stream = kind(
                    device=device.number,
                    samplerate=tried,
                    channels=min(channels, device.channels),
                    blocksize=block,
                    dtype="float32",
                    latency=latency,
                    callback=callback,
                )
                stream.start()
                return stream, tried
            except sd.PortAudioError as error:
                reason = _reason(error)
    finally:
        if device.pulse:
            if before is None:
                del os.environ[_ENVIRONMENT[device.kind]]
            else:
                os.environ[_ENVIRONMENT[device.kind]] = before
    raise DeviceError(f"cannot open the {device.kind} {device.name} ({reason}): is another program using it?")


def refresh() -> None:
    """Let PortAudio look for devices again. All streams must be closed."""
    sd = portaudio()
    sd._terminate()
    sd._initialize()


def _reason(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())
