"""Model files from the network: verified while they stream in, renamed into place only when whole.

A file that lies whole in the cache is never asked for again: the network is not touched.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfswa_sep.errors import ModelError, OutputError

if TYPE_CHECKING:
    from http.client import HTTPResponse

BLOCK_BYTES = 1 << 20  # read, hashed and written at a time
TIMEOUT_SECONDS = 30  # without a single byte


def damage(path: Path, *, size: int, sha256: str) -> str | None:
    """What is wrong with the file at `path`, as the rest of a sentence; None: size and SHA-256 are right."""
    try:
        there = path.stat().st_size
        if there != size:
            return f"has {there} bytes instead of {size}"
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == sha256 else _wrong_hash(digest, sha256)


def is_allowed_url(url: str) -> bool:
    """https:// to anywhere; http:// only to this machine itself, where nobody can listen in."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def from_url(url: str, *, into: Path, size: int, sha256: str) -> Path:
    """The file at `url`, from the cache folder `into` if it lies there whole, else downloaded.

    Raises ModelError (no network, not found, cut off, wrong hash) and OutputError (no room in the cache).
    """
    import tempfile

    target = into / f"{sha256[:16]}-{Path(urlsplit(url).path).name}"
    if damage(target, size=size, sha256=sha256) is None:
        return target
    digest, got = hashlib.sha256(), 0
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as folder:
            temporary = Path(folder) / target.name
            with temporary.open("wb") as out:
                for block in _blocks(url):
                    out.write(block)
                    digest.update(block)
                    got += len(block)
                    if got > size:
                        raise ModelError(f"{url} is longer than the {size} bytes on record")
            if got < size:
                raise ModelError(f"the download of {url} was cut off at {got} of {size} bytes; try again")
            if digest.hexdigest() != sha256:
                raise ModelError(f"{url} {_wrong_hash(digest.hexdigest(), sha256)}; it was thrown away")
            temporary.replace(target)
    except OSError as error:
        raise _cache_error(into, error) from error
    return target


def from_hugging_face(repo: str, commit: str, file: str, *, into: Path, size: int, sha256: str) -> Path:
    """`file` of the repository `repo` at `commit` (40 digits), from the cache under `into`, else downloaded.

    huggingface_hub compares sizes only, so the recorded hash is checked on top. Raises like `from_url`.
    """
    import huggingface_hub  # half a second: only when it is needed
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()

    def get(**options: Any) -> Path:
        # token=False: the files are public, and an expired token of the user would only be refused.
        options |= {"revision": commit, "cache_dir": into / "huggingface", "token": False}
        return Path(huggingface_hub.hf_hub_download(repo, file, **options))

    try:
        try:
            path = get(local_files_only=True)
            whole = damage(path, size=size, sha256=sha256) is None
        except LocalEntryNotFoundError:
            whole = False
        if not whole:  # force_download: replaces a damaged file, and tells at once that the network is down
            path = get(force_download=True)
    except Exception as error:  # the client's many kinds have no common base
        if isinstance(error, OSError) and error.filename:
            raise _cache_error(into, error) from error
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        where = f"{file} of {repo} from Hugging Face"
        raise ModelError(f"cannot download {where}: {reason} (is this machine online?)") from error
    if problem := damage(path, size=size, sha256=sha256):
        path.resolve().unlink(missing_ok=True)
        raise ModelError(f"{file} of {repo} from Hugging Face {problem}; it was thrown away")
    return path


def _blocks(url: str) -> Iterator[bytes]:
    """The body of `url`, block by block; a connection that breaks off just ends it."""
    import http.client  # 40 ms with urllib.request: only when it is needed
    import urllib.error

    try:
        with _open(url) as response:
            while block := response.read(BLOCK_BYTES):
                yield block
    except urllib.error.HTTPError as error:
        raise ModelError(f"cannot download {url}: the server says {error.code} {error.reason}") from error
    except http.client.IncompleteRead as error:
        yield error.partial
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"cannot download {url}: {reason} (is this machine online?)") from error


def _open(url: str) -> HTTPResponse:
    """GET `url`; no redirection leads out of https."""
    import urllib.request

    class CarefulRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if not is_allowed_url(newurl):
                raise ModelError(f"cannot download {url}: it leads to {newurl}, which is not https")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    request = urllib.request.Request(url, headers={"User-Agent": "tfswa-sep"})
    opener = urllib.request.build_opener(CarefulRedirects)
    response: HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    return response


def _wrong_hash(digest: str, sha256: str) -> str:
    return f"has the SHA-256 {digest[:12]}... instead of {sha256[:12]}..."


def _cache_error(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot keep models in {folder}: {error.strerror}; set TFSWA_CACHE to another folder")
