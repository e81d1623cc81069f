"""What this machine's processor can do."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOST_WORKERS = 4  # segments computed at once: each holds 100 to 150 MB
# Instructions that sum products of bytes (their names in Linux' /proc/cpuinfo).
_BYTE_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}


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


def share_threads(threads: int) -> int:
    """Workers that leave the fewest of the threads idle when each has an equal share: 6 are 3 times 2.

    Two where ONNX Runtime chooses the threads (0) and the workers share them all: 18 % faster than one.
    """
    if not threads:
        return 2
    return max(range(1, MOST_WORKERS + 1), key=lambda workers: (threads // workers * workers, workers))


def faster_on_bytes(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a network in 8 bits takes less time here than one in float32; False where that is unknown.

    It does with instructions for sums of products of bytes, and with AVX2, which makes 32 such products where
    it makes 8 of float32: the whole command takes 0.73 of the time (measured). AVX-512 without such
    instructions makes 16 of float32, and gained nothing (measured).

    cpuinfo: what Linux tells of the processor; other systems have no such file.
    """
    try:
        told = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return False
    found = set(told[1].split()) if told else set()
    return bool(_BYTE_PRODUCTS & found) or ("avx2" in found and "avx512f" not in found)
