"""Export a model for other programs: `python -m training.release.programs MODEL --out FOLDER [--formats ...]`.

MODEL is a training checkpoint or a .safetensors file. Each export maps features to masks
(training/release/onnx_graph.py), for any batch size and any multiple of the network's frame count (32 for `small`),
and includes metadata (tfswa_sep/inference/metadata.py). tfswa_sep/inference/mask_apply.py applies the masks.

    onnx         NAME.dynamic.onnx      ONNX; `tfswa-sep --model` reads it too
    pt2          NAME.pt2               a torch.export program, to run or compile in any PyTorch
    aoti         NAME.aoti.pt2          compiled by AOTInductor for this machine's CPU, for C++
                                        (examples/masks.cpp); needs a C++ compiler
    torchscript  NAME.torchscript.pt    traced; deprecated, PyTorch will remove TorchScript

The stems of a song are compared with PyTorch's; a difference of more than 1e-4 of the peak is an error.
`--sample` also writes features.f32 and masks.f32 for examples/masks.cpp.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfswa_sep.inference.features import band_features
from tfswa_sep.inference.mask_apply import apply_masks
from tfswa_sep.inference.metadata import KEY
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.stft_torch import separate_waveform
from tfswa_sep.model.unet import TfswaUNet
from training.release.export import TOLERANCE, band_names, build_metadata, convert_to_onnx, load_model
from training.release.onnx_graph import MaskNetwork, compute_features

FORMATS = {"onnx": ".dynamic.onnx", "pt2": ".pt2", "aoti": ".aoti.pt2", "torchscript": ".torchscript.pt"}
MAX_FRAMES = 1 << 14  # per segment: 3 minutes at 44.1 kHz
MaskFunction = Callable[..., Sequence[Tensor]]  # features of each band -> masks of each band


def export_program(network: TfswaUNet) -> torch.export.ExportedProgram:
    """Export the network with torch.export, for any batch size and any multiple of `frame_multiple` frames."""
    config = network.config
    frames = config.frame_multiple * torch.export.Dim(
        "blocks", min=1, max=MAX_FRAMES // config.frame_multiple
    )
    shape = {0: torch.export.Dim("batch", min=1, max=64), 3: frames}
    example = _example(config)
    return torch.export.export(MaskNetwork(network), example, dynamic_shapes=(tuple(shape for _ in example),))


def write(
    program: torch.export.ExportedProgram, kind: str, path: Path, *, config: ModelConfig, name: str
) -> None:
    """Write a program as "onnx", "pt2" or "aoti"."""
    metadata = build_metadata(config, name=name)
    if kind == "pt2":
        torch.export.save(program, path, extra_files={KEY: json.dumps(metadata)})
    elif kind == "aoti":
        settings = {"aot_inductor.metadata": {KEY: json.dumps(metadata)}}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    else:
        convert_to_onnx(program, path, metadata, **band_names(len(config.bands)))


def write_torchscript(network: TfswaUNet, path: Path, *, name: str) -> None:
    """Trace the network and write it as TorchScript, which raises torch's DeprecationWarning."""
    config = network.config
    with warnings.catch_warnings():
        # `compare` tests other shapes than the traced one.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(MaskNetwork(network), _example(config), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={KEY: json.dumps(build_metadata(config, name=name))})


def read(kind: str, path: Path) -> MaskFunction:
    """Load an export in its runtime."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(*bands: Tensor) -> Sequence[Tensor]:
            inputs = {f"features_{i}": band.numpy() for i, band in enumerate(bands)}
            return [torch.from_numpy(masks) for masks in session.run(None, inputs)]

        return run
    if kind == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    if kind == "pt2":
        return torch.export.load(path).module()
    return torch.jit.load(str(path))  # type: ignore[no-any-return, no-untyped-call]


def compare(run: MaskFunction, network: TfswaUNet, song: NDArray[np.float32]) -> float:
    """Return the maximum difference between the stems of an export and of torch, relative to the peak.

    Args:
        run: The export.
        network: The exported network.
        song: (c, n); its middle is separated, as one segment and as a batch of two short ones.

    Raises:
        ValueError: The difference exceeds TOLERANCE.
    """
    config, worst = network.config, 0.0
    segment = config.segment_samples // config.hop + 1
    longest = -(-segment // config.frame_multiple) * config.frame_multiple
    for batch, frames in ((1, longest), (2, 2 * config.frame_multiple)):
        mixture = _middle(song, config, batch=batch, frames=frames)
        with torch.inference_mode():
            expected = separate_waveform(
                network, torch.from_numpy(mixture), n_fft=config.n_fft, hop=config.hop
            ).numpy()
            stems = _separate(run, mixture, config)
        worst = max(worst, float(np.abs(stems - expected).max() / np.abs(expected).max()))
    if not worst <= TOLERANCE:
        raise ValueError(f"the stems differ from torch's by {worst:.1e} of the peak")
    return worst


def write_sample(network: TfswaUNet, song: NDArray[np.float32], folder: Path) -> list[int]:
    """Write a segment's features and masks as raw float32, band by band.

    Returns:
        The shape arguments of examples/masks.cpp: frames, then the features and bins of each band.
    """
    config = network.config
    features = compute_features(_middle(song, config, batch=1, frames=4 * config.frame_multiple), config)
    with torch.inference_mode():
        masks = MaskNetwork(network)(*features)
    for name, bands in (("features", features), ("masks", masks)):
        (folder / f"{name}.f32").write_bytes(b"".join(band.numpy().tobytes() for band in bands))
    return [features[0].shape[3], *(size for band in features for size in band.shape[1:3])]


def _separate(run: MaskFunction, mixture: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """Separate with an export, and NumPy for everything else. (b, c, n) -> (b, s, c, n)"""
    spectrum = stft(mixture, n_fft=config.n_fft, hop=config.hop)
    features = band_features(spectrum, config)
    masks = [masks.numpy() for masks in run(*map(torch.from_numpy, features))]
    return apply_masks(masks, spectrum, mixture, config)


def _middle(
    song: NDArray[np.float32], config: ModelConfig, *, batch: int, frames: int
) -> NDArray[np.float32]:
    """Cut segments (b, c, n) from the middle of a song (c, n), which is repeated if it is too short."""
    length = (frames - 1) * config.hop
    song = np.tile(song, -(-batch * length // song.shape[1]))
    start = (song.shape[1] - batch * length) // 2
    pieces = song[:, start : start + batch * length].reshape(len(song), batch, length)
    return np.ascontiguousarray(pieces.swapaxes(0, 1))


def _example(config: ModelConfig) -> tuple[Tensor, ...]:
    """Compute the features of two segments of noise."""
    shape = (2, config.channels, (3 * config.frame_multiple - 1) * config.hop)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
    return tuple(compute_features(noise, config))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release.programs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="training checkpoint or .safetensors file")
    parser.add_argument("--name", help="model name (default: that of the file)")
    parser.add_argument("--out", type=Path, default=Path("exported"))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument(
        "--song", type=Path, default=Path("examples/demo/demo.ogg"), help="song for the comparison"
    )
    parser.add_argument("--sample", action="store_true", help="also write features.f32 and masks.f32")
    options = parser.parse_args(arguments)
    network, name = load_model(options.model), options.name or options.model.stem
    song = soundfile.read(options.song, dtype="float32", always_2d=True)[0].T
    options.out.mkdir(parents=True, exist_ok=True)
    program = export_program(network) if set(options.formats) - {"torchscript"} else None
    for kind in options.formats:
        path = options.out / f"{name}{FORMATS[kind]}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)  # reported below
            if program is None or kind == "torchscript":
                print("TorchScript is deprecated and PyTorch will remove it; prefer pt2 or aoti.")
                write_torchscript(network, path, name=name)
            else:
                write(program, kind, path, config=network.config, name=name)
            try:
                difference = compare(read(kind, path), network, song)
            except ValueError as error:
                print(f"{path}: {error}", file=sys.stderr)
                path.unlink()
                return 1
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs from torch by {difference:.1e}", flush=True
        )
    if options.sample:
        shape = " ".join(map(str, write_sample(network, song, options.out)))
        print(f"{options.out}/features.f32, masks.f32: pass their shape to examples/masks.cpp: {shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
