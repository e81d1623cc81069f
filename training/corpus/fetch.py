"""Fetch the Debian packages of the corpus: `python -m training.corpus.fetch --shared DATA --out PACKAGES`.

Downloads with apt-get and unpacks with dpkg, without installing anything. On Debian 12 the result is complete for
`--debian PACKAGES` of training.corpus.build. Packages that are already unpacked are kept.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from training.corpus.recorded.catalogue import PACKAGES_WITHOUT_MUSIC, SPEECH, SUNG_PACKAGES
from training.corpus.recorded.sources import read_tsv
from training.corpus.speech.synthesize import SYNTHESIZERS
from training.corpus.tracker.songs import MODULE_PACKAGES
from training.progress import progress_bar

INSTRUMENTS = (
    "avldrums.lv2-soundfont", "hydrogen-drumkits", "fretsonfire-songs-muldjord", "fretsonfire-songs-sectoid",
)  # fmt: skip


def packages(shared: Path) -> list[str]:
    """Names of all packages that the corpus needs, without duplicates."""
    libraries = [name for needed in SYNTHESIZERS.values() for name in needed]
    music = [row["package"] for row in read_tsv(shared / "debian_music.tsv")]
    groups = (INSTRUMENTS, PACKAGES_WITHOUT_MUSIC, SPEECH, SUNG_PACKAGES, libraries, MODULE_PACKAGES, music)
    return list(dict.fromkeys(name for group in groups for name in group))


def missing(shared: Path, out: Path) -> list[str]:
    """Names of the packages that are not unpacked in `out`."""
    return [name for name in packages(shared) if not (out / name).is_dir()]


def fetch(name: str, out: Path) -> None:
    """Download and unpack one package to out/name, which appears only when it is complete.

    Raises ValueError if apt-get or dpkg fails.
    """
    work = out / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _run(["apt-get", "download", "-q", name], work)
        _run(["dpkg", "-x", *(path.name for path in work.glob("*.deb")), "root"], work)
        (work / "root").rename(out / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str], work: Path) -> None:
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["unknown error"])[-1]
        raise ValueError(f"{work.name.removeprefix('.')}: {command[0]} failed: {reason}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1 if a package cannot be fetched)."""
    parser = argparse.ArgumentParser(prog="python -m training.corpus.fetch", description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the raw material")
    parser.add_argument("--out", type=Path, required=True, help="output folder, with one folder per package")
    options = parser.parse_args(arguments)
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed: this needs Debian or Ubuntu")
    names, failed = missing(options.shared, options.out), False
    with progress_bar("packages", total=len(names)) as advance:
        for name in names:
            try:
                fetch(name, options.out)
            except ValueError as error:
                failed = True
                print(error)
            advance()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
