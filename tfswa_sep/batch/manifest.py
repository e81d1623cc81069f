"""The manifest of a song: a hidden JSON file next to its stems, written last.

It names the song and the model by their SHA-256, the options, and the stems by size and modification time:
hashing them took a tenth of a run's time (measured). If nothing has changed, the song need not be separated
again. It also identifies the files that tfswa-sep wrote; others are never replaced unless requested. So it is
written twice: without a result before the stems are renamed, and with the result afterwards. If a run is killed
in between, each stem matches either the old or the new record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfswa_sep.audio.atomic_file import write_text
from tfswa_sep.errors import OutputError
from tfswa_sep.registry import ModelFile, ModelInfo, digest, local_path

_FORMAT = 3
_SUFFIX = ".tfswa-sep.json"
_TIME_STEP = 2 * 10**9  # ns, the resolution of times on a FAT disk


def manifest_path(folder: Path, track: str) -> Path:
    """The path of the manifest of a song's stems; `folder` is the one that contains all of them."""
    return folder / f".{track}{_SUFFIX}"


def describe_work(song: Path, model: ModelInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the stems. Raises OSError."""
    hashes: dict[str, str] = {}
    for number, file in enumerate(model.files, 1):  # a model may have several files of one kind
        label = file.label if file.label not in hashes else f"{file.label} {number}"
        hashes[label] = file.sha256 or _hash_here(file)
    return {
        "format": _FORMAT,
        "song": {"name": song.name, "sha256": digest(song)},
        "model": {"name": model.name, "sha256": hashes},
        "options": dict(options),
    }


def _hash_here(file: ModelFile) -> str:
    path = local_path(file)
    return digest(path) if path.is_file() else ""  # not downloaded: another of the model's files is used


@dataclass(frozen=True)
class Record:
    """The manifest of a song, for StemWriter: it knows which stems there are ours.

    path: The manifest.
    work: See describe_work.
    replace: Whether stems of earlier runs may be replaced.
    """

    path: Path
    work: Mapping[str, Any]
    replace: bool = True

    def owns(self, output: Path) -> bool:
        """Whether an earlier run of this song wrote this file and it has not changed since: it may be replaced."""
        document = _read(self.path)
        # A run of another song may have ended in the same folder after this one began.
        return (
            self.replace and not _is_of_another(document, self.work) and _is_ours(output, document, self.path)
        )

    def announce(self, files: Mapping[Path, Path]) -> None:
        """Record complete temporary files that are about to be renamed, in case the run is killed meanwhile.

        Raises OutputError.
        """
        try:
            marks = {target: _fingerprint(temporary) for temporary, target in files.items()}
            document = _read(self.path)
            earlier = {
                output: _fingerprint(output) if _is_ours(output, document, self.path) else mark
                for output, mark in _existing_outputs(self.path).items()
            }
            _write(self.path, self.work, marks, earlier)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path} ({error.strerror or error}): "
                "free up space, or choose another folder with --out"
            ) from None


def write_manifest(
    path: Path, work: Mapping[str, Any], outputs: list[Path], result: Mapping[str, Any]
) -> None:
    """Record that `work` produced `outputs`, with further details in `result`. Raises OutputError.

    Existing files from earlier runs with other options stay on record: outputs_in returns them.
    """
    try:
        marks = {output: _fingerprint(output) for output in outputs}
        earlier = {output: mark for output, mark in _existing_outputs(path).items() if output not in outputs}
        _write(path, work, marks, earlier, result)
    except OSError as error:
        raise OutputError(f"the stems were written, but not {path} ({error.strerror or error})") from None


def finished_work(path: Path, work: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recorded result if exactly this work was done and all its outputs exist, unchanged; else None."""
    document = _read(path)
    if any(document.get(key) != value for key, value in json.loads(json.dumps(work)).items()):
        return None
    outputs = _outputs(path, document)
    try:
        whole = outputs and all(_matches(_fingerprint(output), known) for output, known in outputs.items())
    except OSError:
        return None
    result = document.get("result")
    if not whole or not isinstance(result, dict) or not isinstance(result.get("files"), dict):
        return None
    if not isinstance(result.get("warnings"), list) or not isinstance(result.get("seconds"), int | float):
        return None
    paths = [str(output) for output in outputs]  # the stems, then the stem file; their folder may have moved
    stem_file = paths[-1] if result.get("stem_file") else None
    return {**result, "files": dict(zip(result["files"], paths, strict=False)), "stem_file": stem_file}


def has_stems_of_another_song(path: Path, work: Mapping[str, Any]) -> bool:
    """Whether there are stems of another song, or of this one before it was changed."""
    return _is_of_another(_read(path), work) and bool(_existing_outputs(path))


def _is_of_another(document: Mapping[str, Any], work: Mapping[str, Any]) -> bool:
    song = document.get("song")
    return isinstance(song, dict) and song.get("sha256") != work["song"]["sha256"]


def _is_ours(output: Path, document: Mapping[str, Any], path: Path) -> bool:
    known = [_outputs(path, document, key).get(output) for key in ("outputs", "earlier")]
    try:
        mark = _fingerprint(output)
    except OSError:
        return False
    return any(_matches(mark, one) for one in known)


def outputs_in(folder: Path) -> set[Path]:
    """The stems listed by manifests in this folder, which are not songs to separate."""
    return {output for path in folder.glob(f".*{_SUFFIX}") for output in _existing_outputs(path)}


def _write(
    path: Path,
    work: Mapping[str, Any],
    outputs: Mapping[Path, Any],
    earlier: Mapping[Path, Any],
    result: Mapping[str, Any] | None = None,
) -> None:
    """Without a result, the work is in progress. Raises OSError."""

    def by_name(marks: Mapping[Path, Any]) -> dict[str, Any]:
        return {os.path.relpath(output, path.parent): mark for output, mark in marks.items()}

    document = {**work, "outputs": by_name(outputs), "earlier": by_name(earlier), "result": result}
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _fingerprint(output: Path) -> list[int]:
    """A file's size in bytes and modification time in ns, which show whether it was changed. Raises OSError."""
    status = output.stat()
    return [status.st_size, status.st_mtime_ns]


def _matches(mark: list[int], known: object) -> bool:
    """Whether a fingerprint is on record. FAT and exFAT disks round times, some only once they are unmounted."""
    if not isinstance(known, list) or [type(number) for number in known] != [int, int]:
        return False
    (size, time), (known_size, known_time) = mark, known
    return bool(size == known_size and abs(time - known_time) <= _TIME_STEP)


def _existing_outputs(path: Path) -> dict[Path, Any]:
    document = _read(path)
    known = _outputs(path, document, "earlier") | _outputs(path, document)
    return {output: mark for output, mark in known.items() if os.path.exists(output)}


def _outputs(path: Path, document: Mapping[str, Any], key: str = "outputs") -> dict[Path, Any]:
    outputs = document.get(key)
    if not isinstance(outputs, dict):
        return {}
    return {path.parent / str(name): mark for name, mark in outputs.items()}
