"""What scores depend on besides the method: the machine and the versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = (
    "tfswa-sep", "numpy", "scipy", "soundfile", "soxr", "onnxruntime", "onnxruntime-gpu", "torch", "museval",
    "musdb", "stempeg", "fast_bss_eval",
)  # fmt: skip


def machine() -> str:
    """One line: processor, cores available to this process, operating system, Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return (
        f"{name}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """{package: version} of the installed packages that scores depend on."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
