"""The CPU: its cores, and the precision that suits it."""

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

from tfswa_sep.options import Runtime

MAX_WORKERS = 4  # concurrent segments: each takes 100 to 150 MB
_CPUINFO = Path("/proc/cpuinfo")
# CPU flags as Linux names them: the int8 dot products, and what macOS's sysctl and Windows's
# IsProcessorFeaturePresent report, neither of which covers VNNI and AMX.
_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
_MACOS_FLAGS = {"FEAT_DotProd": "asimddp", "avx2_0": "avx2", "avx512f": "avx512f"}
_WINDOWS_FLAGS = {40: "avx2", 41: "avx512f", 43: "asimddp"}


def count_cores() -> int:
    """Physical cores that this process may use; 0 if unknown, which leaves the choice to the library."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = set()
    for processor in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(processor))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # a container's limit
        limit = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        limit = len(cores)
    return min(len(cores), limit)


def choose_workers(threads: int) -> int:
    """The number of workers that leaves the fewest threads idle when each gets an equal share: 3 for 6 threads.

    With `threads` 0, ONNX Runtime chooses and all workers share its threads: two are 18 % faster than one.
    """
    if not threads:
        return 2
    return max(range(1, MAX_WORKERS + 1), key=lambda workers: (threads // workers * workers, workers))


def prefers_int8(runtime: Runtime) -> bool:
    """Whether a model's int8 file is the fastest one here."""
    device = runtime.device
    on_cpu = device == "cpu" or (device == "auto" and not _has_onnxruntime_gpu())
    return on_cpu and not prefers_openvino(runtime) and faster_in_int8()


def prefers_openvino(runtime: Runtime) -> bool:
    """Whether OpenVINO was chosen, or is installed and faster than ONNX Runtime.

    It is on CPUs with AMX, where its bf16 takes 0.76 of the time of ONNX Runtime's int8; in float32 and int8 it is
    the slower one (measured).
    """
    if runtime.backend != "auto":
        return runtime.backend == "openvino"
    left_to_us = runtime.device in ("auto", "cpu") and runtime.precision == "auto"
    return left_to_us and "amx_bf16" in cpu_flags() and importlib.util.find_spec("openvino") is not None


def _has_onnxruntime_gpu() -> bool:
    """Whether onnxruntime-gpu is installed, which uses the GPU where it can and has no int8 convolutions there.

    Looks at its files, since loading importlib.metadata takes 38 ms.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = (spec and spec.submodule_search_locations) or []
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders)


def faster_in_int8() -> bool:
    """Whether this CPU runs a network faster in int8 than in fp32; False if unknown.

    Measured: int8 takes 0.6 of the time with VNNI and 0.73 with AVX2, which multiplies 32 bytes at once but only
    8 floats; AVX-512 without VNNI multiplies 16 floats and gains nothing. Not measured on Arm.
    """
    flags = cpu_flags()
    return bool(_INT8_FLAGS & flags) or ("avx2" in flags and "avx512f" not in flags)


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU's flags that matter here, as Linux names them; empty if unknown."""
    try:
        if sys.platform == "win32":
            is_present = ctypes.windll.kernel32.IsProcessorFeaturePresent
            return frozenset(flag for number, flag in _WINDOWS_FLAGS.items() if is_present(number))
        if sys.platform == "darwin":
            sysctl = subprocess.run(
                ["sysctl", "hw.optional"], capture_output=True, text=True, errors="replace", check=True
            )
            names = re.findall(r"(\w+): 1$", sysctl.stdout, re.MULTILINE)
            if (
                platform.machine() != "arm64"
            ):  # an Intel Python, perhaps under Rosetta, cannot use Arm's features
                names = [name for name in names if not name.startswith("FEAT")]
            return frozenset(_MACOS_FLAGS[name] for name in names if name in _MACOS_FLAGS)
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
        return frozenset(flags[1].split() if flags else ())
    except (OSError, subprocess.SubprocessError):
        return frozenset()
