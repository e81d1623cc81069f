"""Find out what works on this machine, how fast, and the commands that install what is missing.

Nothing here raises: a problem is a Finding.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tfswa_sep import registry
from tfswa_sep.errors import DeviceError, TfswaError, ffmpeg_install_command, install_command

CLIP_SECONDS = 5
SERVER_PACKAGES = ("fastapi", "filelock", "python_multipart", "uvicorn")
_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# PyPI's torch for Linux is built for CUDA 13; older drivers need wheels from another index.
_CUDA_WHEELS = (((13, 0), None), ((12, 6), "https://download.pytorch.org/whl/cu126"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    about: str
    right: bool
    text: str
    install: str = ""  # the command that installs it
    optional: bool = False  # tfswa-sep works without it
    exit_code: int = 0  # of the error that a separation would raise


def examine() -> Iterator[Finding]:
    """Examine everything, the slow checks last."""
    yield _version("tfswa-sep")
    yield Finding(
        about="Python", right=True, text=f"{platform.python_version()} on {platform.platform(terse=True)}"
    )
    yield _version("onnxruntime", "onnxruntime-gpu")
    for package in ("torch", "soundfile", "huggingface_hub"):
        yield _version(package)
    yield _ffmpeg()
    yield _server()
    yield _sound_devices()
    yield _folder("cache", registry.cache_folder())
    yield _folder("settings", registry.config_folder())
    yield from _graphics_cards()
    yield _try_backend("onnx")
    if importlib.util.find_spec("torch"):  # else its own line above says enough
        yield _try_backend("torch")
    if importlib.util.find_spec("openvino"):
        yield _try_backend("openvino")


def works(findings: list[Finding]) -> int:
    """The exit code: 0 if any backend works, else that of the default backend's error."""
    tried = [finding for finding in findings if finding.about.startswith("backend ")]
    return 0 if any(finding.right for finding in tried) else tried[0].exit_code


def torch_install_line(platform_name: str, cuda: tuple[int, int] | None) -> str:
    """The command that installs the right build of PyTorch; "" if the driver is too old for any.

    Args:
        platform_name: As sys.platform.
        cuda: The CUDA version of the Nvidia driver; None without such a GPU.
    """
    index: str | None = None
    if cuda:
        suitable = [wheels for least, wheels in _CUDA_WHEELS if cuda >= least]
        if not suitable:
            return ""
        index = suitable[0]
        if platform_name == "win32" and index is None:  # PyPI's torch for Windows is a CPU build
            index = "https://download.pytorch.org/whl/cu130"
    elif platform_name == "linux":  # PyPI's is a CUDA build of several GB
        index = _CPU_WHEELS
    return install_command(extra="torch", index=index)


def _version(package: str, *alternatives: str) -> Finding:
    for name in (package, *alternatives):
        with suppress(importlib.metadata.PackageNotFoundError):
            return Finding(about=name, right=True, text=importlib.metadata.version(name))
    if package == "torch":
        install = torch_install_line(sys.platform, _nvidia_cuda())
        text = "not installed; needed only for GPUs"
        return Finding(about=package, right=True, text=text, install=install, optional=True)
    return Finding(about=package, right=False, text="not installed", install=install_command(package))


def _ffmpeg() -> Finding:
    from tfswa_sep.audio.ffmpeg import find_ffmpeg

    program = find_ffmpeg()
    if program:
        return Finding(about="ffmpeg", right=True, text=str(program))
    text = "not found; needed only for m4a, video and rare formats"
    return Finding(about="ffmpeg", right=True, text=text, install=ffmpeg_install_command(), optional=True)


def _server() -> Finding:
    if all(importlib.util.find_spec(package) for package in SERVER_PACKAGES):
        return Finding(about="serve", right=True, text="the page can be served: tfswa-sep serve")
    text = "not installed; needed only for the page"
    return Finding(
        about="serve", right=True, text=text, install=install_command(extra="serve"), optional=True
    )


def _sound_devices() -> Finding:
    from tfswa_sep.live.devices import list_devices

    if not importlib.util.find_spec("sounddevice"):
        text = "not installed; needed only for live separation"
        return Finding(
            about="live", right=True, text=text, install=install_command(extra="live"), optional=True
        )
    try:
        found = list_devices()
    except DeviceError as error:
        return Finding(about="live", right=False, text=str(error), optional=True)
    counts = [sum(each.kind == kind for each in found) for kind in ("input", "output")]
    loopback = sum(each.loopback for each in found)
    text = f"{counts[0]} sound inputs, {loopback} of which hear other programs, {counts[1]} outputs"
    return Finding(about="live", right=True, text=text)


def _folder(about: str, folder: Path) -> Finding:
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 1e9
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    except OSError as error:
        return Finding(about=about, right=False, text=f"{folder}: {error.strerror}")
    return Finding(about=about, right=True, text=f"{folder}: {size:.1f} MB used, {free:.0f} GB free")


def _nvidia_cuda() -> tuple[int, int] | None:
    """The CUDA version that this machine's Nvidia driver supports; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        output = subprocess.run(
            [program], capture_output=True, text=True, errors="replace", timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def _graphics_cards() -> Iterator[Finding]:
    cuda = _nvidia_cuda()
    if cuda is not None:
        usable = bool(torch_install_line(sys.platform, cuda))
        text = f"Nvidia, driver for CUDA {cuda[0]}.{cuda[1]}" + (
            "" if usable else ": too old; update the driver"
        )
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        text = "Apple (mps)"
    else:
        text = "none usable; running on the CPU"
    yield Finding(about="graphics", right=True, text=text)


def _try_backend(backend: str) -> Finding:
    """Separate a clip with the default model; the first run, which also warms up, does not count."""
    about = f"backend {backend}"
    try:
        import numpy as np

        from tfswa_sep.constants import MODEL_CHANNELS, SAMPLE_RATE
        from tfswa_sep.separator import Separator

        separator = Separator(backend=backend)
        clip = (
            np.random.default_rng(0)
            .uniform(-0.1, 0.1, (MODEL_CHANNELS, CLIP_SECONDS * SAMPLE_RATE))
            .astype(np.float32)
        )
        separator.separate(clip, SAMPLE_RATE)
        began = time.perf_counter()
        separator.separate(clip, SAMPLE_RATE)
        spent = time.perf_counter() - began
    except TfswaError as error:
        return Finding(about=about, right=False, text=str(error), exit_code=error.exit_code)
    except Exception as error:  # a broken installation fails in its own ways
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(about=about, right=False, text=text[:300], exit_code=6)
    device, precision = separator.backend.device, separator.backend.precision
    pace = f"{CLIP_SECONDS} s of audio in {spent:.2f} s, real-time factor {spent / CLIP_SECONDS:.3f}"
    return Finding(about=about, right=True, text=f"works on {device} in {precision}: {pace}")
