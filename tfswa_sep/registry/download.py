"""Model files from a web server or Hugging Face: verified, and each downloaded once however many ask for it.

A file that lies whole in the cache is never asked for again: the network is not touched. Otherwise a download
that breaks off goes on where it stopped; one that has the wrong hash is put into quarantine/, unopened, and
tried once more.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
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

PATIENCE = 3  # attempts in a row that bring not one byte
PAUSE_SECONDS = 1.0  # between attempts
# Errors of the web client, by name: huggingface_hub's versions have clients of several packages.
_DISCONNECTED = ("RemoteProtocolError", "ReadError", "WriteError")


def is_remote(where: str) -> bool:
    """Whether `where` of a ModelFile is in the network."""
    return "://" in where


def cached_path(file: ModelFile) -> Path:
    """Where a downloaded file lies, or would lie, in the cache; its hash is on record."""
    if match := HUGGING_FACE.fullmatch(file.where):  # the layout that huggingface_hub documents
        repo = folders.hub_cache_folder() / f"models--{match['repo'].replace('/', '--')}"
        return repo / "snapshots" / match["commit"] / match["file"]
    return folders.cache_folder() / f"{file.sha256[:16]}-{_file_name(file.where)}"


def fetch(file: ModelFile) -> Path:
    """A file of the network, here, with its recorded size and SHA-256 where it has them.

    Raises ModelError (offline, no network, not found, cut off, wrong hash), OutputError (no room for it).
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
            return _fetch_locked(file)
    except OSError as error:
        raise _cache_error(error) from error


def list_repository(repo: str, revision: str) -> tuple[str, list[tuple[str, int, str]]]:
    """What a Hugging Face repository is now, at `revision`: its commit, and its files.

    A file is (path, bytes, SHA-256), with "" for a small one whose SHA-256 the hub does not tell.
    Raises ModelError: offline, no network, or no such repository.
    """
    if folders.is_offline():
        raise ModelError(f"{repo} is not in the cache and offline mode is on (--offline or HF_HUB_OFFLINE)")
    from huggingface_hub import HfApi, constants

    with network_errors(f"{repo} on Hugging Face"), guarded_client(constants.ENDPOINT, limit=16 << 20):
        found = HfApi().model_info(
            repo,
            revision=revision,
            files_metadata=True,
            token=False,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    siblings = found.siblings or []
    return str(found.sha), [(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else "") for f in siblings]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process and one thread at a time. Raises OSError."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield


def remove(file: ModelFile) -> list[Path]:
    """Delete what is kept of a file: whole, in part, in quarantine. Returns what was there."""
    path = cached_path(file)
    kept = [path, path.resolve(), _part(file), _quarantine_path(file)]
    try:
        removed = [entry for entry in dict.fromkeys(kept) if entry.is_file() or entry.is_symlink()]
        for entry in removed:
            entry.unlink(missing_ok=True)
    except OSError as error:
        raise _cache_error(error) from error
    return removed


def _fetch_locked(file: ModelFile) -> Path:
    """`fetch` while no other does it. Raises OSError too."""
    from_hub = file.where.startswith("hf://")
    path = cached_path(file)
    if file.sha256 and path.exists():
        if damage(path, size=file.bytes, sha256=file.sha256) is None:  # another process was quicker
            return path
        _quarantine(path, file)
    for _ in range(2):
        got = _from_hugging_face(file) if from_hub else _from_url(file)
        problem = damage(got, size=file.bytes, sha256=file.sha256)
        if problem is None:
            return got if from_hub else got.replace(cached_path(replace(file, sha256=digest(got))))
        aside = _quarantine(got, file)
    raise ModelError(f"{file.where} {problem}, twice; the rejected file was moved, unopened, to {aside}")


def _from_hugging_face(file: ModelFile) -> Path:
    """The file, fetched into its own cache by huggingface_hub, which resumes but compares sizes only."""
    from huggingface_hub import constants, hf_hub_download  # half a second: only when it is needed
    from huggingface_hub.utils.tqdm import disable_progress_bars

    match = HUGGING_FACE.fullmatch(file.where)
    assert match  # the registry and addresses.py let nothing else through
    disable_progress_bars()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that it resumes is nobody's concern
    try:
        limit = file.bytes or MAX_BYTES
        with network_errors(file.where), guarded_client(constants.ENDPOINT, limit=limit):
            # token=False: the files are public, and an expired token of the user would only be refused.
            # force_download: tells at once that the network is down.
            got = hf_hub_download(
                match["repo"],
                match["file"],
                revision=match["commit"],
                cache_dir=folders.hub_cache_folder(),
                token=False,
                force_download=True,
            )
    finally:
        logger.setLevel(level)
    return Path(got)


def _from_url(file: ModelFile) -> Path:
    """The file at an address, whole but not yet checked; what an earlier run got of it is kept."""
    part, limit = _part(file), file.bytes or MAX_BYTES
    part.parent.mkdir(parents=True, exist_ok=True)
    if not file.sha256:  # nobody could tell whether two halves belong together
        part.unlink(missing_ok=True)
    fruitless = 0
    try:
        with (
            network_errors(file.where),
            guarded_client(file.where, limit=limit) as session,
            part.open("ab") as out,
        ):
            while True:
                before = out.tell()
                reason = _receive(session, file.where, out, limit)
                if not reason:
                    return part
                fruitless = 0 if out.tell() > before else fruitless + 1
                if fruitless == PATIENCE:
                    raise ModelError(
                        f"the download of {file.where} was cut off at {out.tell()} bytes ({reason}): "
                        "run again to resume"
                    )
                time.sleep(PAUSE_SECONDS)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def _receive(session: Any, url: str, out: BinaryIO, limit: int) -> str | None:
    """Ask once for what is missing in `out`; None when there is no more, else why it broke off."""
    from huggingface_hub import constants

    headers = {"User-Agent": "tfswa-sep", "Accept-Encoding": "identity", "Range": f"bytes={out.tell()}-"}
    options: dict[str, Any] = {"follow_redirects": True, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    if known := credentials(url):
        options["auth"] = known
    try:
        with session.stream("GET", url, headers=headers, **options) as answer:
            if answer.status_code == 416:  # nothing is missing, or the server has another file by now
                return None
            if answer.status_code >= 400:
                reason = f"{answer.status_code} {answer.reason_phrase}"
                raise ModelError(f"cannot download {url}: the server replied {reason}")
            if answer.headers.get("Content-Range", "").partition("-")[0] != f"bytes {out.tell()}":
                out.seek(0)  # the server sends it all again
                out.truncate()
            for block in answer.iter_raw():
                out.write(block)
                if out.tell() > limit:
                    out.truncate(0)
                    raise ModelError(f"{url} is larger than the expected {limit} bytes")
    except (OSError, TfswaError):
        raise
    except Exception as error:  # the web client's
        # No such server, or none that answers, is told at once. But one that hangs up without a word may only
        # have closed a connection that was kept from the file before.
        if out.tell() == 0 and type(error).__name__ not in _DISCONNECTED:
            raise
        return str(error) or type(error).__name__
    return None


def _quarantine(path: Path, file: ModelFile) -> Path:
    """Move a wrong file into quarantine/, and the link of huggingface_hub's cache out of the way."""
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
