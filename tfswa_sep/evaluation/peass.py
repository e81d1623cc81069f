"""PEASS (Emiya et al. 2011) by the python-peass package, which runs in a process of its own: it is under GPL-3.0.

OPS, TPS, IPS, APS   predicted ratings by listeners, 0 to 100: of the whole, and of how well the stem is preserved,
                     other stems are suppressed and artefacts are avoided
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import UsageError, install_command

Signal = NDArray[np.float64]

NAMES = {
    "ops": "overall_perceptual_score",
    "tps": "target_perceptual_score",
    "ips": "interference_perceptual_score",
    "aps": "artifact_perceptual_score",
}


def check_installed() -> None:
    """Raise UsageError if python-peass is not installed."""
    if importlib.util.find_spec("peass") is None:
        raise UsageError(f"--metrics peass needs python-peass: {install_command(extra='peass')}")


def peass_scores(
    reference: Signal, others: Sequence[Signal], estimate: Signal, rate: int
) -> dict[str, float | None]:
    """{"ops", "tps", "ips", "aps"}, 0 to 100; all None if a signal is silent.

    Args:
        reference: The true stem, (n, c).
        others: The other true stems, (n, c) each, of which silent ones are left out.
        estimate: The estimate, (n, c).
        rate: In Hz.

    Raises:
        UsageError: python-peass is not installed, or fails.
    """
    check_installed()
    sources = [reference, *(other for other in others if other.any())]
    if len(sources) == 1 or not reference.any() or not estimate.any():
        return dict.fromkeys(NAMES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "signals.npz")
        np.savez(file, *sources, estimate=estimate, rate=rate)
        command = [sys.executable, "-m", __name__, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"python-peass failed: {(done.stderr.strip() or 'without a message').splitlines()[-1]}"
        )
    scores: dict[str, float | None] = json.loads(done.stdout)
    return scores


def _main(file: Path) -> None:
    """Print the scores of the signals in `file` as JSON; runs in the process of python-peass."""
    import peass

    with np.load(file, allow_pickle=False) as signals:
        sources = [signals[name] for name in signals.files if name.startswith("arr_")]
        found = peass.predict_perceptual_evaluation_scores(
            sources,
            signals["estimate"],
            peass.DecompositionConfiguration(destination_directory=str(file.parent)),
            sampling_frequency_hz=float(signals["rate"]),
        )
    sys.stdout.write(json.dumps({name: float(getattr(found, long)) for name, long in NAMES.items()}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
