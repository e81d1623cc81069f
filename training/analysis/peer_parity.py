"""Compare our command with unblend's own separation, with random weights in unblend's networks.

In an environment with unblend 1.0.0 (its pins contradict ours), which writes NAME.onnx and NAME.npy:

    python training/analysis/peer_parity.py make htdemucs mixture.npy

In ours:

    python -m training.analysis.peer_parity compare htdemucs mixture.npy

mixture.npy holds a song, (2, n) float32 at 44.1 kHz. unblend exports the network with its own exporter, and separates
the song with its PyTorch network. Norms, layer scales and biases are random too, so that no part of the network is
idle. `--config depth=1` replaces settings of the published network, to be quicker.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TOLERANCE = {"scnet_small": 3e-3}  # of the peak: its exported graph differs from its network
DEFAULT_TOLERANCE = 1e-3


def make(name: str, mixture: Path, changes: dict[str, Any]) -> None:
    """Write NAME.onnx and NAME.npy in the current folder; runs where unblend is installed."""
    # unblend reads and writes audio with torchaudio, which is not needed here and may not load.
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))
    import torch
    from unblend import backends, onnx
    from unblend.apply import apply_model
    from unblend.htdemucs import HTDemucs
    from unblend.repo import ModelRepository

    torch.manual_seed(0)
    info = ModelRepository().list_models()[name]
    config = {**info["config"], **changes}
    if info["architecture"] == "htdemucs":
        model = HTDemucs(**config)
    else:
        kind = "scnet" if info["architecture"].startswith("scnet") else "roformer"
        model = backends.build(
            kind,
            info["architecture"],
            config,
            sources=info["sources"],
            samplerate=info["samplerate"],
            segment_samples=info["segment_samples"],
        )
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:  # norms, layer scales and biases
                parameter.add_(0.1 * torch.randn_like(parameter))
    onnx.ModelRepository.get_model = lambda *_: model
    onnx.export_to_onnx(name, f"{name}.onnx", precision="fp32")
    with torch.inference_mode():
        stems = apply_model(model, torch.from_numpy(np.load(mixture)))
    np.save(f"{name}.npy", stems.reshape(len(info["sources"]), 2, -1).numpy())


def compare(name: str, mixture: Path) -> bool:
    """Print how far our stems are from NAME.npy; return whether that is within the tolerance."""
    from tfswa_sep import Separator

    song, expected = np.load(mixture), np.load(f"{name}.npy")
    stems = Separator(f"{name}.onnx", device="cpu").separate(song, 44_100)
    found = np.stack(list(stems.values()))
    peak = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max()) / peak
    levels = 20 * np.log10(np.sqrt(np.square(expected).mean(axis=(1, 2)) / np.square(song).mean()))
    listed = ", ".join(f"{stem} {level:.1f} dB" for stem, level in zip(stems, levels, strict=True))
    print(f"{name}: differs by {difference:.1e} of the peak; levels relative to the mixture: {listed}")
    return difference <= TOLERANCE.get(name, DEFAULT_TOLERANCE)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("make", "compare"))
    parser.add_argument("name", help="htdemucs, htdemucs_6s, scnet_small, melband_roformer_kim, ...")
    parser.add_argument("mixture", type=Path, help="song as .npy")
    parser.add_argument(
        "--config", action="append", default=[], metavar="KEY=JSON", help="setting to replace"
    )
    options = parser.parse_args()
    if options.step == "compare":
        return 0 if compare(options.name, options.mixture) else 1
    pairs = (text.partition("=") for text in options.config)
    make(options.name, options.mixture, {key: json.loads(value) for key, _, value in pairs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
