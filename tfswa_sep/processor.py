"""What this machine's processor can do."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOST_WORKERS = 4  # segments computed at once: each holds 100 to 150 MB
# Instructions that sum products of bytes: with them INT8 is worth it (their names in Linux' /proc/cpuinfo).
_BYTE_PRODUCTS = re.compile(r"\b(avx512_vnni|avx_vnni|amx_int8|asimddp)\b")


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


def multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of 8-bit numbers; False where that is unknown."""
    try:
        return bool(_BYTE_PRODUCTS.search(Path("/proc/cpuinfo").read_text()))
    except OSError:
        return False
