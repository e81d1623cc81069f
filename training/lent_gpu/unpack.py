"""There: make pools of the pieces that came: `python -m training.lent_gpu.unpack --out POOLS PIECE...`.

Decodes on all cores. Pieces that came with earlier calls, while the machine stayed warm, are still there: a
source's array holds all its helpings so far.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tfswa_sep.audio.atomic_file import atomic_write

SAMPLE_RATE = 44_100  # Hz


def decode(path: Path, samples: int) -> NDArray[np.int16]:
    """A helping as int16 (samples, c) at 44.1 kHz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    audio = soxr.resample(audio, rate, SAMPLE_RATE)[:samples]
    audio = np.pad(audio, ((0, samples - len(audio)), (0, 0)))
    return np.asarray(np.clip(np.rint(audio * 32767), -32768, 32767), np.int16)


def write_source(rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Decode the helpings of one source into its array; returns its row in the manifest."""
    rows = sorted(rows, key=lambda row: row["number"])
    parts = [decode(Path(row["path"]), sum(row["lengths"])) for row in rows]
    ends = np.cumsum([length for row in rows for length in row["lengths"]]).tolist()
    array = f"{rows[0]['pool']}/{rows[0]['source']}.npy"
    (out / array).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / array) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    segments = list(zip([0, *ends[:-1]], ends, strict=True))
    kept = {key: rows[0][key] for key in rows[0] if key not in ("path", "file", "lengths", "number")}
    minutes = round(ends[-1] / SAMPLE_RATE / 60, 3)
    return {**kept, "minutes": minutes, "array": array, "segments": segments, "parts": len(rows)}


def unpack(pieces: Iterable[Path], out: Path, *, processes: int | None = None) -> float:
    """Add the pieces to the pools in `out`. Returns all minutes that are there now."""
    arrived = out / "pieces"
    arrived.mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        shutil.copytree(piece, arrived / piece.name, dirs_exist_ok=True)
        if (piece / "valid").is_dir():
            shutil.copytree(piece / "valid", out / "valid", dirs_exist_ok=True)
    sources: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for table in sorted(arrived.glob("*/piece.json")):
        for row in json.loads(table.read_text()):
            row["path"] = str(table.parent / row["file"])
            sources.setdefault((row["pool"], row["source"]), []).append(row)
    manifest = out / "manifest.json"
    rows = json.loads(manifest.read_text())["sources"] if manifest.is_file() else []
    done = {(row["pool"], row["source"]): row for row in rows}
    changed = {s: r for s, r in sources.items() if s not in done or done[s]["parts"] != len(r)}
    with ProcessPoolExecutor(processes) as pool:
        written = pool.map(write_source, changed.values(), [out] * len(changed))
        done.update(zip(changed, written, strict=True))
    with atomic_write(manifest) as temporary:
        temporary.write_text(
            json.dumps({"format": 1, "sample_rate": SAMPLE_RATE, "sources": list(done.values())})
        )
    return sum(float(row["minutes"]) for row in done.values())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.lent_gpu.unpack", description="Decode pieces into pools."
    )
    parser.add_argument("pieces", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    print(f"{unpack(options.pieces, options.out):.0f} min in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
