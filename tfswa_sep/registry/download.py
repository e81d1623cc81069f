"""Download model files from a web server or Hugging Face, verify them, and cache them.

A file in the cache is used without touching the network. An interrupted download resumes; a file with the wrong hash
is moved to quarantine/, unopened, and downloaded once more. Concurrent requests for a file download it once.
"""

from __future__ import annotations

import hashlib
import logging
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

MAX_FAILURES = 3  # attempts in a row without a single byte
PAUSE_SECONDS = 1.0  # between attempts
# Errors by name, since huggingface_hub's versions use HTTP clients from different packages.
_DISCONNECTED = ("RemoteProtocolError", "ReadError", "WriteError")


def is_remote(where: str) -> bool:
    """Whether `where` of a ModelFile is a URL."""
    return "://" in where


def cached_path(file: ModelFile) -> Path:
    """Where a file with a known hash is, or will be, in the cache."""
    if match := HUGGING_FACE.fullmatch(file.where):  # huggingface_hub's documented layout
        repo = folders.hub_cache_folder() / f"models--{match['repo'].replace('/', '--')}"
        return repo / "snapshots" / match["commit"] / match["file"]
    return folders.cache_folder() / f"{file.sha256[:16]}-{_file_name(file.where)}"


def fetch(file: ModelFile, *, on_bytes: Callable[[int], None] | None = None) -> Path:
    """The local path of a remote file, verified by its size and SHA-256 if they are known.

    Args:
        file: The file.
        on_bytes: Called with the number of bytes received so far, for files from a web server.

    Raises:
        ModelError: Offline, no network, not found, cut off, or the wrong hash.
        OutputError: The cache cannot be written.
    """
    path = cached_path(file)
    if file.sha256 and damage(path, size=file.bytes, sha256=file.sha256) is None:
        return path
    if folders.is_offline():
        raise ModelError(
            f"{file.where} is not in the cache and offline mode is on (--offline or HF_HUB_OFFLINE)"
        )
    try:
        with lock(folders.cache_folder() / ".locks" / f"{_key(file.where)}.lock"):
            return _fetch_locked(file, on_bytes)
    except OSError as error:
        raise _cache_error(error) from error


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
        removed = [entry for entry in dict.fromkeys(kept) if entry.is_file() or entry.is_symlink()]
        for entry in removed:
            entry.unlink(missing_ok=True)
    except OSError as error:
        raise _cache_error(error) from error
    return removed


def _fetch_locked(file: ModelFile, on_bytes: Callable[[int], None] | None) -> Path:
    """`fetch` under the lock. Raises OSError too."""
    from_hub = file.where.startswith("hf://")
    path = cached_path(file)
    if file.sha256 and path.exists():
        if (
            damage(path, size=file.bytes, sha256=file.sha256) is None
        ):  # another process has downloaded it meanwhile
            return path
        _quarantine(path, file)
    for _ in range(2):
        downloaded = _from_hugging_face(file) if from_hub else _from_url(file, on_bytes)
        problem = damage(downloaded, size=file.bytes, sha256=file.sha256)
        if problem is None:
            if from_hub:
                return downloaded
            return downloaded.replace(cached_path(replace(file, sha256=digest(downloaded))))
        quarantined = _quarantine(downloaded, file)
    raise ModelError(
        f"{file.where} {problem}, twice; the rejected file was moved, unopened, to {quarantined}"
    )


def _from_hugging_face(file: ModelFile) -> Path:
    """Download with huggingface_hub into its cache; it resumes, but verifies only sizes."""
    from huggingface_hub import constants, hf_hub_download  # takes half a second, so only when needed
    from huggingface_hub.utils.tqdm import disable_progress_bars

    match = HUGGING_FACE.fullmatch(file.where)
    assert match  # checked by models_toml.py and addresses.py
    disable_progress_bars()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # hides its warning when it resumes
    try:
        limit = file.bytes or MAX_BYTES
        with network_errors(file.where), guarded_client(constants.ENDPOINT, limit=limit):
            # token=False: the files are public, and an expired token would be refused.
            # force_download: fails at once if the network is down.
            downloaded = hf_hub_download(
                match["repo"],
                match["file"],
                revision=match["commit"],
                cache_dir=folders.hub_cache_folder(),
                token=False,
                force_download=True,
            )
    finally:
        logger.setLevel(level)
    return Path(downloaded)


def _from_url(file: ModelFile, on_bytes: Callable[[int], None] | None) -> Path:
    """Download from a web server, resuming what an earlier run downloaded; not yet verified."""
    part, limit = _part(file), file.bytes or MAX_BYTES
    part.parent.mkdir(parents=True, exist_ok=True)
    if not file.sha256 and not file.bytes:  # two halves of different files would pass
        part.unlink(missing_ok=True)
    failures = 0
    try:
        with (
            network_errors(file.where),
            guarded_client(file.where, limit=limit) as session,
            part.open("ab") as out,
        ):
            while True:
                before = out.tell()
                reason = _receive(session, file.where, out, limit, on_bytes)
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


def _receive(
    session: Any, url: str, out: BinaryIO, limit: int, on_bytes: Callable[[int], None] | None
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
            if response.status_code >= 400:
                reason = f"{response.status_code} {response.reason_phrase}"
                raise ModelError(f"cannot download {url}: the server replied {reason}")
            if response.headers.get("Content-Range", "").partition("-")[0] != f"bytes {out.tell()}":
                out.seek(0)  # the server sends the whole file
                out.truncate()
            for block in response.iter_raw():
                out.write(block)
                if on_bytes is not None:
                    on_bytes(out.tell())
                if out.tell() > limit:
                    out.truncate(0)
                    raise ModelError(f"{url} is larger than the expected {limit} bytes")
    except (OSError, TfswaError):
        raise
    except Exception as error:  # from the HTTP client
        # An unreachable server is reported at once. One that disconnects without a response may only have closed a
        # connection kept alive from an earlier file.
        if out.tell() == 0 and type(error).__name__ not in _DISCONNECTED:
            raise
        return str(error) or type(error).__name__
    return None


def _quarantine(path: Path, file: ModelFile) -> Path:
    """Move a rejected file to quarantine/, and delete huggingface_hub's link to it."""
    target = _quarantine_path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path.resolve(), target)
    path.unlink(missing_ok=True)
    return target


def _part(file: ModelFile) -> Path:
    return folders.cache_folder() / "parts" / f"{_key(file.where)}.part"


def _quarantine_path(file: ModelFile) -> Path:
    return folders.cache_folder() / "quarantine" / f"{_key(file.where)}-{_file_name(file.where)}"


def _key(where: str) -> str:
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _file_name(where: str) -> str:
    return Path(urlsplit(where).path).name


def _cache_error(error: OSError) -> OutputError:
    folder, reason = folders.cache_folder(), error.strerror or error
    return OutputError(f"cannot write models to {folder}: {reason}; set TFSWA_CACHE to another folder")
