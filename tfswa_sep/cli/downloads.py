"""Fetch models, with a progress bar, and with a note before the first download of one that states no licence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa_sep.cli.progress import Progress, show_progress
from tfswa_sep.cli.terminal import Interrupted, print_error
from tfswa_sep.options import Runtime, kind_of_file

if TYPE_CHECKING:
    from tfswa_sep.registry import ModelFile, ModelInfo


def fetch_early(info: ModelInfo, runtime: Runtime, *, shown: bool) -> None:
    """Fetch what a run needs, before anything heavy is loaded.

    A model with files for several backends is downloaded later, when the backend is chosen; bundled files are checked.

    Args:
        info: The model, or an ensemble.
        runtime: The user's choice of a backend.
        shown: Whether to show the progress.

    Raises:
        TfswaError: See registry.fetch.
    """
    for model in info.members or (info,):
        backends = list(dict.fromkeys(file.backend for file in model.files))
        if runtime.backend != "auto":
            needed = [kind_of_file(runtime.backend)]
        elif len(backends) == 1:
            needed = backends
        else:
            needed = [file.backend for file in model.files if file.where.startswith("bundled:")]
        for backend in dict.fromkeys(needed):
            fetch_for_backend(model, backend, shown=shown)


def fetch_for_backend(info: ModelInfo, backend: str, *, shown: bool) -> list[Path]:
    """The local paths of the files that a backend loads, downloaded if necessary; see fetch_files."""
    from tfswa_sep import registry

    files = registry.files_for(info, backend)
    if not files:
        registry.fetch(info, backend)  # raises an error that names the available backends
    return list(fetch_files(info, files, shown=shown))


def fetch_files(info: ModelInfo, files: Sequence[ModelFile], *, shown: bool) -> Iterator[Path]:
    """Yield the local paths of some of a model's files, each downloaded if necessary.

    Args:
        info: The model.
        files: The files.
        shown: Whether to show the progress.

    Raises:
        TfswaError: See registry.fetch_file.
    """
    from tfswa_sep import registry

    if info.license == registry.NO_LICENSE and registry.is_first_download(files):
        print_error(
            f"note: the publisher of {info.name} states no licence for its weights; what you may do with them is "
            "unclear"
        )
    for number, file in enumerate(files, 1):
        label = f"{info.name} ({number} of {len(files)})" if len(files) > 1 else info.name
        yield _fetch(info, file, label, shown=shown)


def _fetch(info: ModelInfo, file: ModelFile, label: str, *, shown: bool) -> Path:
    from tfswa_sep import registry

    progress: Progress | None = None
    with ExitStack() as opened:

        def on_progress(done: int, total: int) -> None:
            nonlocal progress
            if progress is None:
                progress = opened.enter_context(show_progress(shown=shown, downloads=True))
            progress.update(label, done, total or None)

        try:
            return registry.fetch_file(info, file, on_progress=on_progress)
        except KeyboardInterrupt:
            if progress is None:  # nothing was downloaded
                raise
            raise Interrupted("run again to resume the download") from None
