"""The doctor: what it finds on this machine is so, and its install lines are those of each platform."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfswa_sep import registry
from tfswa_sep.cli import diagnostics, main
from tfswa_sep.errors import DeviceError


@pytest.mark.parametrize(
    ("platform", "cuda", "index"),
    [
        ("linux", None, "https://download.pytorch.org/whl/cpu"),
        ("linux", (13, 2), None),
        ("linux", (12, 8), "https://download.pytorch.org/whl/cu126"),
        ("darwin", None, None),
        ("win32", None, None),
        ("win32", (13, 0), "https://download.pytorch.org/whl/cu130"),
    ],
)
def test_the_right_torch_for_each_machine(
    platform: str, cuda: tuple[int, int] | None, index: str | None
) -> None:
    line = diagnostics.torch_install_line(platform, cuda)
    assert ' install "tfswa-sep[torch]"' in line
    assert line.endswith(f"--extra-index-url {index}") if index else "index" not in line


def test_an_old_driver_gets_no_line() -> None:
    assert diagnostics.torch_install_line("linux", (11, 8)) == ""


def test_the_drivers_cuda_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8 |'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert diagnostics._nvidia_cuda() == (12, 8)
    program.write_text("#!/bin/sh\nexit 9\n")  # no driver
    assert diagnostics._nvidia_cuda() is None


def test_without_ffmpeg_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfswa_sep.audio.ffmpeg.find_ffmpeg", lambda: None)
    for platform, line in (("darwin", "brew install ffmpeg"), ("win32", "winget install ffmpeg")):
        monkeypatch.setattr(sys, "platform", platform)
        assert diagnostics._ffmpeg().install == line


def test_a_folder_that_may_not_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    found = diagnostics._folder("settings", Path("/root/.config"))
    assert (found.right, found.text) == (False, "/root/.config: Permission denied")


@pytest.mark.slow
def test_a_missing_optional_package_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(package: str) -> str:
        if package == "torch":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "torch" and find_spec(name))
    monkeypatch.setattr("tfswa_sep.audio.ffmpeg.find_ffmpeg", lambda: None)
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "--  torch            not installed; needed only for GPUs\n" in out
    assert "ok  serve            the page can be served" in out
    assert "--  ffmpeg " in out and "ok  backend onnx" in out and "NO" not in out


@pytest.mark.slow
def test_the_doctor_examines_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {finding["about"]: finding for finding in report["findings"]}
    assert report["works"] and found["backend onnx"]["right"] and found["backend torch"]["right"]
    assert "real-time factor" in found["backend onnx"]["text"]
    assert found["Python"]["text"].startswith(".".join(map(str, sys.version_info[:3])))
    assert str(registry.cache_folder()) in found["cache"]["text"]


def test_a_machine_where_nothing_works_gets_the_errors_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)  # as if half of the package were missing
    assert main.run(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "NO  backend onnx" in out and "reinstall tfswa-sep" in out
    assert out.endswith("Separation does not work on this machine.\n")


def test_the_doctor_says_what_live_separation_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfswa_sep.live import devices

    kinds = [("mic", "input", False), ("usb.monitor", "input", True), ("usb", "output", False)]
    found = [SimpleNamespace(name=name, kind=kind, loopback=loopback) for name, kind, loopback in kinds]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(devices, "list_devices", lambda: found)
    text = diagnostics._sound_devices().text
    assert text == "2 sound inputs, 1 of which hear other programs, 1 outputs"

    def broken() -> None:
        raise DeviceError("live separation needs PortAudio: sudo apt-get install libportaudio2")

    monkeypatch.setattr(devices, "list_devices", broken)
    assert diagnostics._sound_devices().optional and "libportaudio2" in diagnostics._sound_devices().text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "live" in diagnostics._sound_devices().install
