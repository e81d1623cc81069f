"""What works on this machine, how fast, and the exact line that installs what is missing.

Nothing here raises for what it finds: a finding says whether it is right, and what to type if it is not.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tfswa_sep import registry
from tfswa_sep.errors import TfswaError

CLIP_SECONDS = 5
_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# PyPI's torch for Linux is built for CUDA 13; drivers of an older CUDA need the wheels of another index.
_CUDA_WHEELS = (((13, 0), None), ((12, 6), "https://download.pytorch.org/whl/cu126"))
_FFMPEG = {"darwin": "brew install ffmpeg", "win32": "winget install ffmpeg"}
_LINUX_INSTALLERS = (
    ("apt-get", "sudo apt-get install ffmpeg"),
    ("dnf", "sudo dnf install ffmpeg-free"),
    ("pacman", "sudo pacman -S ffmpeg"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    about: str
    right: bool
    text: str
    install: str = ""  # what to type to get it, where it can be had
    exit_code: int = 0  # of the error that a separation would meet


def examine() -> Iterator[Finding]:
    """Look at everything; what takes long comes last.

    Separation works if a finding about a backend is right: see `works`.
    """
    yield _version("tfswa-sep")
    yield Finding(
        about="Python", right=True, text=f"{platform.python_version()} on {platform.platform(terse=True)}"
    )
    yield _version("onnxruntime", "onnxruntime-gpu")
    for package in ("torch", "soundfile", "huggingface_hub"):
        yield _version(package)
    yield _ffmpeg()
    yield _folder("cache", registry.cache_folder())
    yield _folder("settings", registry.config_folder())
    yield from _graphics_cards()
    for backend in ("onnx", "torch"):
        yield _try_backend(backend)


def works(findings: list[Finding]) -> int:
    """The exit code: 0 if some backend separates, else that of the error that the default one met."""
    tried = [finding for finding in findings if finding.about.startswith("backend ")]
    return 0 if any(finding.right for finding in tried) else tried[0].exit_code


def torch_install_line(platform_name: str, cuda: tuple[int, int] | None) -> str:
    """What installs the PyTorch backend that is right for a machine.

    platform_name: as sys.platform.  cuda: the CUDA that an Nvidia driver is for, None without such a card.
    "" where the driver is too old for any torch of today.
    """
    packages = [re.split(r"[;\s]", need)[0] for need in importlib.metadata.requires("tfswa-sep") or []
                if re.search(r"extra\s*==\s*['\"]torch['\"]", need)]  # fmt: skip
    index: str | None = None
    if cuda:
        fitting = [wheels for least, wheels in _CUDA_WHEELS if cuda >= least]
        if not fitting:
            return ""
        index = fitting[0]
        if platform_name == "win32" and index is None:  # PyPI's torch for Windows is for the processor
            index = "https://download.pytorch.org/whl/cu130"
    elif platform_name == "linux":  # PyPI's is a CUDA build of several GB
        index = _CPU_WHEELS
    return _pip_line(*packages, index=index)


def _version(package: str, *in_its_place: str) -> Finding:
    for name in (package, *in_its_place):
        with suppress(importlib.metadata.PackageNotFoundError):
            return Finding(about=name, right=True, text=importlib.metadata.version(name))
    install = torch_install_line(sys.platform, _nvidia_cuda()) if package == "torch" else _pip_line(package)
    text = "not installed; needed only to run on a GPU" if package == "torch" else "not installed"
    return Finding(about=package, right=package == "torch", text=text, install=install)


def _pip_line(*packages: str, index: str | None = None) -> str:
    extra = ["--extra-index-url", index] if index else []
    if "pipx" in Path(sys.prefix).parts:
        options = [f"--pip-args={shlex.join(extra)}"] if extra else []
        return shlex.join(["pipx", "inject", "tfswa-sep", *packages, *options])
    return shlex.join([sys.executable, "-m", "pip", "install", *packages, *extra])


def _ffmpeg() -> Finding:
    from tfswa_sep.audio.ffmpeg import find_ffmpeg

    program = find_ffmpeg()
    if program:
        return Finding(about="ffmpeg", right=True, text=str(program))
    line = _FFMPEG.get(sys.platform) or next(
        (line for tool, line in _LINUX_INSTALLERS if shutil.which(tool)), ""
    )
    text = "not found; needed only for m4a, video and rare formats"
    return Finding(about="ffmpeg", right=True, text=text, install=line or _pip_line("imageio-ffmpeg"))


def _folder(about: str, folder: Path) -> Finding:
    try:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    except OSError as error:
        return Finding(about=about, right=False, text=f"{folder}: {error.strerror}")
    return Finding(about=about, right=True, text=f"{folder}: {size:.1f} MB used, {free:.0f} GB free")


def _nvidia_cuda() -> tuple[int, int] | None:
    """The CUDA version that the Nvidia driver of this machine is for; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        told = subprocess.run([program], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", told)
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
