"""Download model files from a web server or Hugging Face, verify them, and cache them.

A file in the cache is used without touching the network. An interrupted download resumes, in this run or a later one;
a file with the wrong hash is moved to quarantine/, unopened, and downloaded once more. Concurrent requests for a file
download it once.

Files from Hugging Face are saved where huggingface_hub looks for them. Its own download function is not used, because
after an interruption it begins again.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tfswa_sep.errors import ModelError, OutputError, TfswaError
from tfswa_sep.registry import folders
from tfswa_sep.registry.integrity import MAX_BYTES, damage, digest
from tfswa_sep.registry.models_toml import HUGGING_FACE, ModelFile
from tfswa_sep.registry.web import credentials, guarded_client, network_errors

Progress = Callable[[int, int], None]  # bytes so far, and the file's (0 if unknown)

MAX_FAILURES = 3  # attempts in a row without a single byte
PAUSE_SECONDS = 1.0  # between attempts
# Errors by name, since huggingface_hub's versions use HTTP clients from different packages.
_DISCONNECTED = ("RemoteProtocolError", "ReadError", "WriteError")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_remote(where: str) -> bool:
    """Whether `where` of a ModelFile is a URL."""
    return "://" in where


def cached_path(file: ModelFile) -> Path:
    """Where a file with a known hash is, or will be, in the cache."""
    if match := HUGGING_FACE.fullmatch(file.where):  # huggingface_hub's documented layout
        return _repository(file) / "snapshots" / match["commit"] / match["file"]
    return folders.cache_folder() / f"{file.sha256[:16]}-{_file_name(file.where)}"


def is_new(file: ModelFile) -> bool:
    """Whether a remote file is neither in the cache nor partly downloaded."""
    return not _part(file).exists() and not (_is_pinned(file) and cached_path(file).exists())


def fetch(file: ModelFile, *, name: str = "", on_progress: Progress | None = None) -> Path:
    """The local path of a remote file, verified by its size and SHA-256 if they are known.

    Args:
        file: The file.
        name: What the user calls its model, for advice.
        on_progress: Called as bytes arrive, in this thread.

    Raises:
        ModelError: Offline, no network, not found, cut off, or not the recorded file.
        OutputError: The cache cannot be written, or the disk is full.
    """
    path = cached_path(file)
    if _is_pinned(file) and damage(path, size=file.bytes, sha256=file.sha256) is None:
        return path
    if folders.is_offline():
        raise ModelError(_offline_message(file, name))
    try:
        with lock(folders.cache_folder() / ".locks" / f"{_key(file.where)}.lock"):
            return _fetch_locked(file, on_progress)
    except OSError as error:
        raise _cache_error(error, file) from error


def list_repository(repo: str, revision: str) -> tuple[str, list[tuple[str, int, str]]]:
    """A Hugging Face repository's current commit at `revision`, and its files.

    Returns:
        The commit, and (path, bytes, SHA-256) of each file; "" for the hash of a file outside LFS.

    Raises:
        ModelError: Offline, no network, or no such repository.
    """
    if folders.is_offline():
        raise ModelError(f"{repo} is not in the cache and offline mode is on (--offline or HF_HUB_OFFLINE)")
    from huggingface_hub import HfApi, constants

    with network_errors(f"{repo} on Hugging Face"), guarded_client(constants.ENDPOINT, limit=16 << 20):
        info = HfApi().model_info(
            repo,
            revision=revision,
            files_metadata=True,
            token=False,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    siblings = info.siblings or []
    return str(info.sha), [(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else "") for f in siblings]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, against other processes and threads. Raises OSError."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield


def remove(file: ModelFile) -> list[Path]:
    """Delete a file from the cache, whether complete, partial or in quarantine. Returns the deleted paths."""
    path = cached_path(file)
    kept = [path, path.resolve(), _part(file), _quarantine_path(file)]
    try:
        _version_path(file).unlink(missing_ok=True)
        removed = [entry for entry in dict.fromkeys(kept) if entry.is_file() or entry.is_symlink()]
        for entry in removed:
            entry.unlink(missing_ok=True)
    except OSError as error:
        raise _cache_error(error, file) from error
    return removed


def _fetch_locked(file: ModelFile, on_progress: Progress | None) -> Path:
    """`fetch` under the lock. Raises OSError too."""
    path = cached_path(file)
    if _is_pinned(file) and path.exists():
        if (
            damage(path, size=file.bytes, sha256=file.sha256) is None
        ):  # downloaded by another process meanwhile
            return path
        _quarantine(path, file)
    for _ in range(2):
        part = _download(file, on_progress)
        problem = damage(part, size=file.bytes, sha256=file.sha256)
        if problem is None:
            path = cached_path(file if _is_pinned(file) else replace(file, sha256=digest(part)))
            path.parent.mkdir(parents=True, exist_ok=True)
            _version_path(file).unlink(missing_ok=True)
            return part.replace(path)
        quarantined = _quarantine(part, file)
    raise ModelError(
        f"{file.where} {problem}, twice; the rejected file was moved, unopened, to {quarantined}"
    )


def _download(file: ModelFile, on_progress: Progress | None) -> Path:
    """Download a file, resuming what an earlier run downloaded; not yet verified."""
    part = _part(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    url = _url(file)
    failures = 0
    try:
        with (
            network_errors(file.where),
            guarded_client(url, limit=file.bytes or MAX_BYTES) as session,
            part.open("ab") as out,
        ):
            _check_free_space(file, out.tell())
            while True:
                before = out.tell()
                reason = _receive(session, url, file, out, on_progress)
                if not reason and not out.tell():
                    raise ModelError(f"cannot download {file.where}: the server sent an empty file")
                if not reason:
                    return part
                failures = 0 if out.tell() > before else failures + 1
                if failures == MAX_FAILURES:
                    raise ModelError(
                        f"the download of {file.where} was cut off at {out.tell()} bytes ({reason}): "
                        "run again to resume"
                    )
                time.sleep(PAUSE_SECONDS)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
            _version_path(file).unlink(missing_ok=True)


def _receive(
    session: Any, url: str, file: ModelFile, out: BinaryIO, on_progress: Progress | None
) -> str | None:
    """Request the bytes that `out` lacks, once. Returns None when it is complete, else why it was cut off."""
    from huggingface_hub import constants

    headers = {"User-Agent": "tfswa-sep", "Accept-Encoding": "identity", "Range": f"bytes={out.tell()}-"}
    options: dict[str, Any] = {"follow_redirects": True, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    if known := credentials(url):
        options["auth"] = known
    try:
        with session.stream("GET", url, headers=headers, **options) as response:
            if response.status_code == 416:  # complete, or the server's file has changed
                return None
            if reason := _refusal(response, file):
                return reason
            if not _continues(response, file, out):
                out.seek(0)
                out.truncate()
                if _range_start(response):
                    return "the file has changed on the server"
            size = _check_announced(response, file)
            for block in response.iter_raw():
                out.write(block)
                if out.tell() > (file.bytes or MAX_BYTES):
                    out.truncate(0)
                    raise ModelError(
                        f"{file.where} is larger than the expected {file.bytes or MAX_BYTES} bytes"
                    )
                if on_progress:
                    on_progress(out.tell(), size)
    except (OSError, TfswaError):
        raise
    except Exception as error:  # from the HTTP client
        # An unreachable server is reported at once. One that disconnects without a response may only have closed a
        # connection kept alive from an earlier file.
        if out.tell() == 0 and type(error).__name__ not in _DISCONNECTED:
            raise
        return str(error) or type(error).__name__
    return None


def _refusal(response: Any, file: ModelFile) -> str | None:
    """The reply of a server that is temporarily broken, else None. Raises ModelError if it refuses for good."""
    status: int = response.status_code
    if status < 400:
        return None
    reason = f"{status} {response.reason_phrase}".strip()
    wait = response.headers.get("Retry-After", "")
    if status == 429 or (status == 503 and wait):
        when = f"in {wait} s" if wait.isdecimal() else f"after {wait}" if wait else "later"
        raise ModelError(f"cannot download {file.where}: the server is busy ({reason}): try again {when}")
    if status < 500:
        raise ModelError(f"cannot download {file.where}: the server replied {reason}")
    return f"the server replied {reason}"


def _continues(response: Any, file: ModelFile, out: BinaryIO) -> bool:
    """Whether a response continues what was downloaded so far; its version is recorded.

    If the file's hash or size is known, a wrong continuation is detected later; otherwise the ETag must be the same.
    """
    if file.sha256 or file.bytes:
        return _range_start(response) == out.tell()
    path, version = _version_path(file), response.headers.get("ETag", "")
    same = bool(version) and path.exists() and path.read_text(encoding="utf-8") == version
    path.write_text(version, encoding="utf-8")
    return _range_start(response) == out.tell() and (same or out.tell() == 0)


def _range_start(response: Any) -> int:
    """The position of a response's first byte in the file: 0 if the server sends all of it."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else 0


def _check_announced(response: Any, file: ModelFile) -> int:
    """Compare what the server says of a file with the record, before downloading it.

    Returns:
        Its size; 0 if unknown.

    Raises:
        ModelError: The size or hash differs.
    """
    headers = response.headers
    described = [reply.headers for reply in response.history]  # by Hugging Face, which redirects to the file
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    sizes = [
        text for text in (*(known.get("X-Linked-Size", "") for known in described), total) if text.isdecimal()
    ]
    for size in map(int, sizes):
        if file.bytes and size != file.bytes:
            raise ModelError(
                f"on the server, {file.where} has {size} bytes instead of {file.bytes}: it was not downloaded"
            )
    for known in described:
        sha256 = known.get("X-Linked-Etag", "").strip('"')
        if file.sha256 and re.fullmatch(r"[0-9a-f]{64}", sha256) and sha256 != file.sha256:
            raise ModelError(
                f"on the server, {file.where} has SHA-256 {sha256[:12]}... instead of {file.sha256[:12]}...: "
                "it was not downloaded"
            )
    return int(sizes[-1]) if sizes else file.bytes


def _check_free_space(file: ModelFile, done: int) -> None:
    """Raise OutputError if the disk has no space for the rest of a file of known size."""
    folder = _part(file).parent
    free, needed = shutil.disk_usage(folder).free, file.bytes - done
    if needed > free:
        raise OutputError(
            f"{file.where} needs {_megabytes(needed)}, but {folder} has only {_megabytes(free)} left: "
            "free up space, or set TFSWA_CACHE to another folder"
        )


def _quarantine(path: Path, file: ModelFile) -> Path:
    """Move a rejected file to quarantine/, and delete huggingface_hub's link to it."""
    target = _quarantine_path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path.resolve(), target)
    path.unlink(missing_ok=True)
    return target


def _is_pinned(file: ModelFile) -> bool:
    """Whether the content of a file is known from its record."""
    return bool(file.sha256) or file.where.startswith("hf://")


def _url(file: ModelFile) -> str:
    if match := HUGGING_FACE.fullmatch(file.where):
        from huggingface_hub import hf_hub_url  # takes half a second, so only when needed

        return hf_hub_url(match["repo"], match["file"], revision=match["commit"])
    return file.where


def _repository(file: ModelFile) -> Path:
    """The folder of a file's repository in huggingface_hub's cache."""
    match = HUGGING_FACE.fullmatch(file.where)
    assert match  # checked by models_toml.py and addresses.py
    return folders.hub_cache_folder() / f"models--{match['repo'].replace('/', '--')}"


def _part(file: ModelFile) -> Path:
    """Where a partial download is, on the same disk as the complete one will be."""
    if file.where.startswith("hf://"):
        return _repository(file) / "blobs" / f"{_key(file.where)}.incomplete"
    return folders.cache_folder() / "parts" / f"{_key(file.where)}.part"


def _version_path(file: ModelFile) -> Path:
    """Where the ETag of a partial download is."""
    return _part(file).with_suffix(".etag")


def _quarantine_path(file: ModelFile) -> Path:
    return folders.cache_folder() / "quarantine" / f"{_key(file.where)}-{_file_name(file.where)}"


def _key(where: str) -> str:
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _file_name(where: str) -> str:
    return Path(urlsplit(where).path).name


def _offline_message(file: ModelFile, name: str) -> str:
    """What to type on another machine, and which folder or file to copy."""
    here = f"{name or file.where} is not downloaded and offline mode is on (--offline or HF_HUB_OFFLINE)"
    if not name:
        return here
    if file.where.startswith("hf://"):
        folder = _repository(file)
        copy = f"copy the folder {folder.name} from its cache to {folder.parent}"
    elif file.sha256:
        path = cached_path(file)
        copy = f"copy {path.name} from its cache to {path.parent}"
    else:
        copy = "copy the file whose path it prints, and use that: --model FILE"
    return f"{here}: on another machine, type `tfswa-sep models pull {name}`; then {copy}"


def _cache_error(error: OSError, file: ModelFile) -> OutputError:
    from_hub = file.where.startswith("hf://")
    folder = folders.hub_cache_folder() if from_hub else folders.cache_folder()
    reason = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        reason += " (free up space and run again to resume)"
    return OutputError(f"cannot write models to {folder}: {reason}; set TFSWA_CACHE to another folder")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
