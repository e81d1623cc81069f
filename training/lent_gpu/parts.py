"""Checkpoints in parts, to come back from there: `python -m training.lent_gpu.parts split|join FROM TO`.

`split` writes FROM's last.ckpt and best.ckpt as parts of 15 MiB into TO, with their SHA-256 in parts.json, in
place of older parts there; `join` puts them together again. At most 16 MiB a file, 8 files and 64 MiB come
back: 60 MiB of checkpoints, which leaves room for parts.json and the log. Where both have more than that,
last.ckpt comes alone; where it alone has, it is refused.
"""

import hashlib
import json
import sys
from pathlib import Path

from tfswa_sep.audio.atomic_file import atomic_write

PART = 15 * 2**20  # bytes
MOST = 60 * 2**20  # bytes of all checkpoints together: at most 5 parts
FILES = ("last.ckpt", "best.ckpt")  # the more important one first


def split(folder: Path, out: Path) -> list[str]:
    """Cut the checkpoints that are in `folder` into parts, in place of those of an earlier cut in `out`.

    Returns the names of those that stay behind, since all have more than MOST bytes.
    Raises ValueError, and writes nothing, where the first one alone has.
    """
    names, left, room = list[str](), list[str](), MOST
    for name in FILES:
        if not (folder / name).is_file():
            continue
        size = (folder / name).stat().st_size
        if size > room and not names:
            raise ValueError(
                f"{folder}: {name} has {size / 2**20:.0f} MiB, and no more than {MOST / 2**20:.0f} come home:"
                " train a smaller model"
            )
        if size <= room:
            names.append(name)
            room -= size
        else:
            left.append(name)
    out.mkdir(parents=True, exist_ok=True)
    for old in (path for name in FILES for path in out.glob(f"{name}.*")):
        old.unlink()
    digests = {}
    for name in names:
        content = (folder / name).read_bytes()
        digests[name] = hashlib.sha256(content).hexdigest()
        for number, start in enumerate(range(0, len(content), PART)):
            (out / f"{name}.{number}").write_bytes(content[start : start + PART])
    (out / "parts.json").write_text(json.dumps(digests))
    return left


def join(folder: Path, out: Path) -> list[Path]:
    """Put parts together. Raises ValueError, and writes nothing, for a file that is not as it was."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, digest in json.loads((folder / "parts.json").read_text()).items():
        if name not in FILES:
            raise ValueError(f"{folder / 'parts.json'}: {name!r} is none of {', '.join(FILES)}")
        parts = sorted(folder.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
        content = b"".join(path.read_bytes() for path in parts)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{folder}: the {len(parts)} parts of {name} do not make the file that was sent")
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(content)
        written.append(out / name)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 3 or words[0] not in ("split", "join"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if words[0] == "split":
            for name in split(Path(words[1]), Path(words[2])):
                print(f"{name} stays behind: there is no room for it beside {FILES[0]}")
        else:
            print(*join(Path(words[1]), Path(words[2])), sep="\n")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
