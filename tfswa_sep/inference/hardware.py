"""What this machine's processor can do."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

MAX_WORKERS = 4  # segments computed at once: each holds 100 to 150 MB
_CPUINFO = Path("/proc/cpuinfo")
# Instructions for sums of products of bytes, by Linux' names, and what macOS' sysctl and Windows'
# IsProcessorFeaturePresent call them and AVX: neither tells of VNNI and AMX.
_INT8_INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
_MACOS = {"FEAT_DotProd": "asimddp", "avx2_0": "avx2", "avx512f": "avx512f"}
_WINDOWS = {40: "avx2", 41: "avx512f", 43: "asimddp"}


def count_cores() -> int:
    """Physical cores that this process may use; 0, for a library's own choice, where that is unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    siblings = set()
    for processor in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text().strip())
        except OSError:
            siblings.add(str(processor))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # what a container is granted
        granted = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        granted = len(siblings)
    return min(len(siblings), granted)


def choose_workers(threads: int) -> int:
    """Workers that leave the fewest of the threads idle when each has an equal share: 6 are 3 times 2.

    Two where ONNX Runtime chooses the threads (0) and the workers share them all: 18 % faster than one.
    """
    if not threads:
        return 2
    return max(range(1, MAX_WORKERS + 1), key=lambda workers: (threads // workers * workers, workers))


def prefers_int8(device: str = "auto") -> bool:
    """Whether the int8 file of a model is the faster one on `device`: on a CPU that is made for it."""
    return (device == "cpu" or (device == "auto" and not _onnx_uses_gpu())) and faster_in_int8()


def _onnx_uses_gpu() -> bool:
    """Whether the ONNX Runtime that is installed is the one for Nvidia's cards.

    It takes one where it finds it, and computes no convolutions in 8 bits there. Its files are looked at:
    importlib.metadata, which knows packages' names, is needed for nothing else and takes 38 ms to load.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = (spec and spec.submodule_search_locations) or []
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders)


def faster_in_int8() -> bool:
    """Whether a network in 8 bits takes less time here than one in float32; False where that is unknown.

    It does with instructions for sums of products of bytes (with VNNI 0.6 of the time, measured), and with
    AVX2, which makes 32 such products where it makes 8 of float32 (0.73 of the time, measured). AVX-512
    without such instructions makes 16 of float32, and gained nothing (measured). Not measured on Arm.
    """
    found = _instructions()
    return bool(_INT8_INSTRUCTIONS & found) or ("avx2" in found and "avx512f" not in found)


@cache
def _instructions() -> frozenset[str]:
    """What the processor has of the instructions that matter here, by Linux' names; empty where unknown."""
    try:
        if sys.platform == "win32":
            has = ctypes.windll.kernel32.IsProcessorFeaturePresent
            return frozenset(name for number, name in _WINDOWS.items() if has(number))
        if sys.platform == "darwin":
            asked = subprocess.run(["sysctl", "hw.optional"], capture_output=True, text=True, check=True)
            there = re.findall(r"(\w+): 1$", asked.stdout, re.MULTILINE)
            translated = platform.machine() != "arm64"  # a Python for Intel cannot use what Apple's has
            return frozenset(
                _MACOS[name] for name in there if name in _MACOS and not (translated and "FEAT" in name)
            )
        told = re.search(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
        return frozenset(told[1].split() if told else ())
    except (OSError, subprocess.SubprocessError):
        return frozenset()
