"""Fetch the Debian packages of the corpus: `python -m training.corpus.fetch --shared DATA --out PACKAGES`.

Downloads with apt-get and unpacks with dpkg, without installing anything. On Debian 12 the result is all that
`--debian PACKAGES` of training.corpus.build needs. Packages that are already unpacked are kept.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from training.corpus.recorded.catalogue import NO_MUSIC, SPEECH, WITH_SINGER
from training.corpus.recorded.sources import read_tsv
from training.corpus.speech.synthesize import SYNTHESIZERS
from training.corpus.tracker.songs import MODULE_PACKAGES

INSTRUMENTS = (
    "avldrums.lv2-soundfont", "hydrogen-drumkits", "fretsonfire-songs-muldjord", "fretsonfire-songs-sectoid",
)  # fmt: skip


def packages(shared: Path) -> list[str]:
    """Names of all packages that the catalogue reads, each once."""
    libraries = [name for needed in SYNTHESIZERS.values() for name in needed]
    music = [row["package"] for row in read_tsv(shared / "debian_music.tsv")]
    return list(
        dict.fromkeys([*INSTRUMENTS, *NO_MUSIC, *SPEECH, *WITH_SINGER, *libraries, *MODULE_PACKAGES, *music])
    )


def missing(shared: Path, out: Path) -> list[str]:
    """Those of them that are not unpacked in `out`."""
    return [name for name in packages(shared) if not (out / name).is_dir()]


def fetch(name: str, out: Path) -> None:
    """Download and unpack one package to out/name, which appears when it is whole.

    Raises ValueError with the reason when apt-get or dpkg fails.
    """
    work = out / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for command in (["apt-get", "download", "-q", name], ["dpkg", "-x", "PACKAGE", "root"]):
            found = [str(p.name) for p in work.glob("*.deb")]
            done = subprocess.run(
                [(found or [c])[0] if c == "PACKAGE" else c for c in command],
                cwd=work, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["unknown error"])[-1]
                raise ValueError(f"{name}: {command[0]} failed: {reason}")
        (work / "root").rename(out / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1 when a package could not be fetched)."""
    parser = argparse.ArgumentParser(prog="python -m training.corpus.fetch", description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the raw material")
    parser.add_argument("--out", type=Path, required=True, help="output folder, with one folder per package")
    options = parser.parse_args(arguments)
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed: this needs Debian or Ubuntu")
    wanted = missing(options.shared, options.out)
    failed, console = 0, Console()
    for name in track(wanted, "packages", console=console):
        try:
            fetch(name, options.out)
        except ValueError as error:
            failed += 1
            console.print(f"[red]{error}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
