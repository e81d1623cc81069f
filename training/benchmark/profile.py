"""Profile a separation: `python -m training.benchmark.profile SONG [--minutes M]`.

Separates a song into files with the ONNX backend and one thread, and prints the CPU time of each step; "rest" is
decoding, resampling, cross-fading and encoding. With several workers, the wall time is divided differently.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from tfswa_sep import Separator
from tfswa_sep.inference.families import band_masks
from tfswa_sep.inference.onnx_backend import OnnxBackend
from training.benchmark.__main__ import make_song

STEPS = {
    "stft": "STFT",
    "band_features": "features",
    "_run_network": "network",
    "apply_masks": "masks and inverse STFT",
}


def profile(song: Path, out: Path, *, model: str | None = None, precision: str = "fp32") -> dict[str, float]:
    """Return the CPU seconds of each step, including "rest" and "all".

    Functions of the package are patched meanwhile: no other thread may use it.
    """
    spent = dict.fromkeys(STEPS.values(), 0.0)

    def timed(function: Callable[..., Any], step: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()  # with one thread, ONNX Runtime computes in the calling thread
            try:
                return function(*arguments, **options)
            finally:
                spent[step] += time.thread_time() - began

        return call

    separator = Separator(model, backend="onnx", precision=precision, threads=1)
    _ = separator.backend  # loaded before the clock starts
    with ExitStack() as patches:
        for name, step in STEPS.items():
            owner = OnnxBackend if name == "_run_network" else band_masks
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), step)))
        began = time.process_time()
        separator.separate_file(song, out=out)
        spent["all"] = time.process_time() - began
    spent["rest"] = spent["all"] - sum(spent[step] for step in STEPS.values())
    return spent


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark.profile", description=__doc__)
    parser.add_argument(
        "song", type=Path, nargs="?", default=Path("examples/demo/demo.ogg"), help="song to loop"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="length in minutes (default: %(default)s)")
    parser.add_argument("--model", help="model name or file (default: the default model)")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    options = parser.parse_args(arguments)
    if not options.song.is_file():
        parser.error(f"no such song: {options.song}")
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-profile-") as folder:
        song = Path(folder) / "song.wav"
        make_song(options.song, song, minutes=options.minutes)
        spent = profile(song, Path(folder) / "out", model=options.model, precision=options.precision)
    table = Table("step", "seconds", "share", title=f"{options.minutes:g} min on one core")
    for step in (*STEPS.values(), "rest", "all"):
        table.add_row(step, f"{spent[step]:.2f}", f"{spent[step] / spent['all']:.1%}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
