"""Gains by OSC, which mixing desks, tablets and live-coding programs send."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from tfswa_sep.errors import DeviceError, OutputError, UsageError, install_command

ADDRESS = "127.0.0.1"
_BUNDLE = b"#bundle\0"
_HEADER = 16  # bytes: the name above and a time
_MOST_PACKETS = 500  # per call, so that a flood of them cannot hold up the caller


class OscPort:
    """A UDP port of this machine that takes OSC messages, alone or in bundles; a context manager.

    Args:
        number: The port; 0 for any free one.

    Attributes:
        number: The port.
        address: Where to send messages, as "host:port".

    Raises:
        DeviceError: The package python-osc is missing.
        OutputError: The port is in use.
    """

    def __init__(self, number: int) -> None:
        try:
            from pythonosc.osc_message import OscMessage
        except ImportError:
            raise DeviceError(
                f"--port needs the package python-osc: {install_command(extra='live')}"
            ) from None
        self._parse: Callable[[bytes], Any] = OscMessage
        logging.getLogger().addFilter(_is_ours)  # the parser logs what `receive` reports
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((ADDRESS, number))
        except OSError as error:
            self._socket.close()
            reason = error.strerror or error
            raise OutputError(
                f"cannot listen on {ADDRESS}, port {number}: {reason}: choose another --port"
            ) from None
        self._socket.setblocking(False)
        self.number: int = self._socket.getsockname()[1]
        self.address = f"{ADDRESS}:{self.number}"

    def __enter__(self) -> OscPort:
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()
        logging.getLogger().removeFilter(_is_ours)

    def receive(self, obey: Callable[[str, Sequence[object]], None]) -> list[str]:
        """Pass on the address and the values of each message that has come; never waits.

        Args:
            obey: Raises UsageError for a message that makes no sense.

        Returns:
            Lines for the user about messages that were ignored.
        """
        ignored = []
        for _ in range(_MOST_PACKETS):
            try:
                packet = self._socket.recv(1 << 16)
            except OSError:  # no more
                break
            for part in _messages(packet):
                try:
                    message = self._parse(part)
                    address, values = str(message.address), list(message)
                except Exception:  # the parser's errors are of many kinds
                    ignored.append(f"ignored what came to port {self.number}: it is not an OSC message")
                    continue
                try:
                    obey(address, values)
                except UsageError as error:
                    ignored.append(f"ignored the OSC message {address[:60]}: {error}")
        return list(dict.fromkeys(ignored))


def _messages(packet: bytes) -> list[bytes]:
    """The messages of a packet. python-osc's own parser never returns from a bundle with a negative size."""
    found, waiting = [], [packet]
    while waiting:
        part = waiting.pop()
        if not part.startswith(_BUNDLE):
            found.append(part)
            continue
        start, parts = _HEADER, []
        while start < len(part):
            end = start + 4 + int.from_bytes(part[start : start + 4])
            parts.append(part[start + 4 : end])
            start = end
        waiting += parts[::-1]
    return found


def _is_ours(record: logging.LogRecord) -> bool:
    return not record.pathname.endswith("osc_message.py")
