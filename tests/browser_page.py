"""What a musician does on the page, with or without a server, and whether what is heard is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from waiting import wait_for

# Records what is heard, in buffers that are whole even if the browser drops others.
TAP = """
const { context, output } = tfswa.player().engine;
globalThis.heard = [];
globalThis.tap = context.createScriptProcessor(8192, 2, 1);
tap.onaudioprocess = ({ inputBuffer }) => heard.push([...inputBuffer.getChannelData(0)]);
output.connect(tap);
tap.connect(context.destination);
"""


class Page:
    """A browser with the page at an address."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.script = driver.execute_script
        driver.get(address)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def set(self, selector: str, value: float) -> None:
        self.script(
            "const it = document.querySelector(arguments[0]); it.value = arguments[1];"
            "it.dispatchEvent(new Event('input', { bubbles: true }))",
            selector,
            value,
        )

    def wait_until_done(self, songs: int) -> None:
        states = "return [...tfswa.rows.values()].map(row => row.job.state)"
        wait_for(lambda: self.script(states) == ["done"] * songs)

    def open(self, name: str) -> None:
        self.script(
            "for (const row of tfswa.rows.values())"
            " if (row.job.name === arguments[0]) row.element.querySelector('.open').click()",
            name,
        )
        wait_for(lambda: self.script("return tfswa.player() !== undefined"))

    def listen(self, buffers: int = 2) -> list[NDArray[np.float32]]:
        """Play until something was heard, and stop: its buffers of one channel."""
        self.script("heard.length = 0")
        self.click(".play")
        loud = f"return heard.filter(each => each[0] !== 0 && each.at(-1) !== 0).length >= {buffers}"
        wait_for(lambda: self.script(loud))
        self.click(".play")
        heard = [np.array(each, np.float32) for each in self.script("return heard")]
        return [each for each in heard if each[0] and each[-1]]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def place_of(heard: NDArray[np.float32], mix: NDArray[np.float32]) -> int:
    """Where a buffer lies in the mix, to the sample; fails if it differs from it anywhere."""
    windows = np.lib.stride_tricks.sliding_window_view(mix, 16)
    start = int(np.argmin(np.abs(windows - heard[:16]).max(axis=1)))
    np.testing.assert_allclose(heard, mix[start : start + len(heard)], atol=1e-6)
    return start
