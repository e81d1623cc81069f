"""Plan a batch: no two songs write the same files, and finished songs are skipped."""

from __future__ import annotations

import difflib
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa_sep.batch import manifest
from tfswa_sep.batch.inputs import STDIN, STDIN_NAME, FoundSong, unique
from tfswa_sep.errors import InputError, OutputError, TfswaError, UsageError
from tfswa_sep.options import OutputOptions, Runtime

if TYPE_CHECKING:
    from tfswa_sep.pipeline import Progress, SeparationResult
    from tfswa_sep.registry import ModelInfo
    from tfswa_sep.separator import Separator


@dataclass(frozen=True)
class PlannedSong:
    """A song of a batch."""

    path: Path
    name: str  # in messages
    track: str  # in the paths of its stems
    folder: Path  # below --out
    notes: tuple[str, ...] = ()  # for the user, one line each
    problem: str = ""  # why it cannot be separated, if that is already clear


@dataclass(frozen=True)
class Outcome:
    """The outcome of a song."""

    song: PlannedSong
    status: str  # "done", "skipped" or "failed"
    result: Mapping[str, Any] = field(default_factory=dict)  # a SeparationResult, as JSON
    took: float = 0.0  # seconds
    error: BaseException | None = None
    trace: str = ""  # the error's traceback

    @property
    def warnings(self) -> list[str]:
        """One line each."""
        return [*self.song.notes, *self.result.get("warnings", ())]

    @property
    def files(self) -> list[str]:
        """All files that were written."""
        stem_file = self.result.get("stem_file")
        return [*self.result.get("files", {}).values(), *([stem_file] if stem_file else [])]

    def as_json(self) -> dict[str, Any]:
        """As a JSON object, without the error."""
        document = {"song": self.song.name, "status": self.status, **self.result}
        return {**document, "warnings": self.warnings} if self.error is None else document


@dataclass(frozen=True, kw_only=True)
class Work:
    """How each song of a batch is separated. Can be sent to another process."""

    model: ModelInfo
    runtime: Runtime
    options: OutputOptions
    overwrite: bool | None  # None: finished songs are skipped; only files from earlier runs are replaced
    keep: frozenset[str] = frozenset()  # real paths of all songs: no stem of another may replace one
    loaded: list[Separator] = field(default_factory=list, compare=False)  # filled on first use

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaded": []}

    @property
    def separator(self) -> Separator:
        """The model, loaded when it is first needed."""
        if not self.loaded:
            from tfswa_sep.separator import Separator

            self.loaded.append(Separator(self.model, runtime=self.runtime))
        return self.loaded[0]

    def separate(self, song: PlannedSong, on_progress: Progress | None = None) -> Outcome:
        """Separate one song, unless it is finished already. Raises any error that a song can cause."""
        from tfswa_sep.audio.stem_paths import song_folder, target_paths

        began = time.perf_counter()
        out, name = Path(self.options.out) / song.folder, self.options.name
        target_paths(song.path, (), out=out, extension="", template=name)  # checks the template
        record = manifest.manifest_path(out / song_folder(name, song.track), song.track)
        try:
            work = self._describe(song)
            if not self.overwrite and (result := manifest.finished_work(record, work)):
                return Outcome(song, "skipped", result)
            mixed = manifest.has_stems_of_another_song(record, work)
            if mixed and not self.overwrite:
                raise OutputError(
                    f"{record.parent} has the stems of another recording, or of {song.path} before it was changed: "
                    "use --overwrite to replace them, or choose another folder with --out"
                )
            written = self.separator.separate_file(
                song.path,
                replace(self.options, out=out, overwrite=bool(self.overwrite)),
                track_name=song.track,
                keep=self.keep,
                record=manifest.Record(record, work, replace=self.overwrite is None),
                on_progress=on_progress,
            )
        except TfswaError as error:
            raise type(error)(str(error).replace(str(song.path), song.name)) from error
        result = _describe(song, written)
        joined = [written.stem_file] if written.stem_file else []
        manifest.write_manifest(record, work, [*written.files.values(), *joined], result)
        if mixed:
            result["warnings"].append(
                f"the stems of {song.name} replaced those of another recording in {record.parent}"
            )
        return Outcome(song, "done", result, took=time.perf_counter() - began)

    def _describe(self, song: PlannedSong) -> dict[str, Any]:
        """All that determines the song's stems; see manifest.describe_work. Raises InputError."""
        from tfswa_sep.audio.decode import check_file

        check_file(song.path)  # reading a pipe would block forever
        try:
            return manifest.describe_work(song.path, self.model, describe_options(self.options, self.runtime))
        except OSError as error:
            raise InputError(f"{song.path} cannot be read: {error.strerror or error}") from None


def describe_options(options: OutputOptions, runtime: Runtime) -> dict[str, Any]:
    """The options that determine the stems.

    What earlier versions did not have is left out if it is not used, so that their manifests stay valid.
    """
    described = {**asdict(options), "precision": runtime.precision}
    if runtime.shifts != 1:
        described["shifts"] = runtime.shifts
    if runtime.model_settings:
        described["model_settings"] = runtime.model_settings
    if described["track"] is None:
        del described["track"]
    for unimportant in ("out", "overwrite"):
        del described[unimportant]
    return described


def _describe(song: PlannedSong, written: SeparationResult) -> dict[str, Any]:
    described = asdict(written)
    described["files"] = {stem: str(path) for stem, path in written.files.items()}
    described["stem_file"] = str(written.stem_file) if written.stem_file else None
    described["warnings"] = [text.replace(str(song.path), song.name) for text in written.warnings]
    return described


def plan_songs(songs: Sequence[FoundSong], pattern: str) -> list[PlannedSong]:
    """Plan each song once, with a unique track name: a second `song` becomes `song_2`.

    Raises UsageError for several songs and a pattern without {track}.
    """
    from tfswa_sep.audio.stem_paths import default_track_name

    planned: list[PlannedSong] = []
    taken: set[str] = set()
    for song in unique(songs):
        name, plain = str(song.path), default_track_name(song.path)
        if name == STDIN:
            name, plain = STDIN_NAME, "stdin"
        track, number = plain, 1
        while (key := file_system_key(song.folder / track)) in taken:
            number += 1
            track = f"{plain}_{number}"
        taken.add(key)
        note = f"another song is also named {plain}: the stems of {name} are named {track}"
        notes = (*song.notes, note) if number > 1 else song.notes
        planned.append(PlannedSong(song.path, name, track, song.folder, notes, song.problem))
    if len(planned) > 1 and "{track}" not in pattern:
        raise UsageError("with several songs --name needs {track}, or they would overwrite each other")
    return planned


def file_system_key(path: Path) -> str:
    """The same key for names that macOS or Windows consider equal: a and A, or two encodings of an accent."""
    return unicodedata.normalize("NFC", str(path).casefold())


def check_song(song: PlannedSong, commands: Sequence[str], *, alone: bool) -> None:
    """Check that a song exists.

    Args:
        song: The song.
        commands: Names of commands, for a hint if one of them was misspelt.
        alone: Whether it is the only song; else a name without extension may be meant as the output folder.

    Raises:
        InputError: The song does not exist, or has a `problem`.
    """
    if song.problem:
        raise InputError(song.problem)
    try:
        song.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:  # open_audio says why
        return
    else:
        return
    near = difflib.get_close_matches(song.name, commands, n=1, cutoff=0.7)
    hint = f" (did you mean the command {near[0]!r}?)" if near else ""
    if not near and not alone and not song.path.suffix:
        hint = f" (for the output folder, use --out {song.name})"
    raise InputError(f"no such file: {song.name}{hint}")
