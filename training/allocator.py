"""How memory is handed out to a process that trains."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the next step; True where that could be arranged.

    A step on a processor takes and frees the same gigabytes as the one before. Given back to the system in
    between, they come as new pages, which it has to clear and map one by one: a step of `small` then takes
    1.3 times as long (measured). Other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Nothing in a mapping of its own, which goes back when it is freed, and nothing cut off the heap's end.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
