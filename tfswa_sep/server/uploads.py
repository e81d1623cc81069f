"""The body of an upload, multipart/form-data -> files and fields, within the limits while it arrives."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_LONGEST_FIELD = 1000  # bytes
_MOST_FIELDS = 20
_PAUSE = 30.0  # seconds without a byte, after which the client is dropped
_SLOWEST = 10_000  # bytes per second, on average after the first _PAUSE


class UploadError(Exception):
    """A body that is refused: status code of the answer, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Upload:
    """What an upload held."""

    files: list[tuple[str, Path]] = field(default_factory=list)  # (name as sent, file)
    fields: dict[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove the files that were not moved elsewhere."""
        for _, path in self.files:
            path.unlink(missing_ok=True)


async def receive_upload(
    request: Request, folder: Path, *, largest: float, check_room: Callable[[int, int], None]
) -> Upload:
    """Receive the body of `request`.

    Args:
        request: The request.
        folder: For the files.
        largest: Bytes of one file.
        check_room: Called with the number of files and bytes so far, whenever these grow; raises if there is no room.

    Raises:
        UploadError: The body is refused; nothing is left in `folder`.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UploadError(415, "send songs as multipart/form-data, in the field 'file'")
    receiver = _Receiver(folder, largest, check_room)
    try:
        parser = MultipartParser(options[b"boundary"], receiver.callbacks())
        began, received = time.monotonic(), 0
        chunks = request.stream().__aiter__()
        while True:
            try:
                async with asyncio.timeout(_PAUSE):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise UploadError(408, "the upload stopped") from None
            received += len(chunk)
            if received < (time.monotonic() - began - _PAUSE) * _SLOWEST:
                raise UploadError(408, "the upload is too slow")
            parser.write(chunk)
        if not receiver.complete:
            raise UploadError(400, "the upload is incomplete")
    except BaseException as error:  # also if the client has gone
        receiver.close()
        receiver.upload.discard()
        if isinstance(error, FormParserError):
            raise UploadError(400, "the upload is not valid multipart/form-data") from None
        raise
    return receiver.upload


class _Receiver:
    """Takes the parser's callbacks, part by part."""

    def __init__(self, folder: Path, largest: float, check_room: Callable[[int, int], None]) -> None:
        self.upload = Upload()
        self.complete = False
        self._folder = folder
        self._largest = largest
        self._check_room = check_room
        self._file: IO[bytes] | None = None
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._text = b""
        self._size = 0  # of the current file
        self._total = 0  # of all files

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._write,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._text, self._size = b"", 0
        name = options.get(b"filename")
        if name is None:
            if len(self.upload.fields) >= _MOST_FIELDS:
                raise UploadError(400, "too many fields")
            return
        if self._field != "file":
            raise UploadError(400, "songs belong in the field 'file'")
        self._check_room(len(self.upload.files) + 1, self._total)
        path = self._folder / secrets.token_hex(8)
        self._file = path.open("xb")
        self.upload.files.append((name.decode("utf-8", "replace"), path))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._text += data[start:end]
            if len(self._text) > _LONGEST_FIELD:
                raise UploadError(413, f"the field {self._field[:50]!r} is too long")
            return
        self._size += end - start
        self._total += end - start
        if self._size > self._largest:
            raise UploadError(413, f"the song is larger than {self._largest / 1e6:g} MB, the limit here")
        self._check_room(len(self.upload.files), self._total)
        self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        if self._file:
            self.close()
        else:
            self.upload.fields[self._field] = self._text.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True
