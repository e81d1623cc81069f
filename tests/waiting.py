"""Wait for what happens in another process, thread or browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], *, seconds: float = 300) -> Any:
    """Wait until `condition` returns something true, and return it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {seconds} s"
        time.sleep(0.02)
    return found
