"""Export a model for use in other programs: `python -m training.release.programs MODEL --out FOLDER [--formats ...]`.

MODEL is a training checkpoint or a .safetensors file. Each export holds the network from features to masks
(training/release/onnx_graph.py) and its metadata (tfswa_sep/inference/metadata.py); see
tfswa_sep/inference/mask_apply.py for the processing around it. The batch size is free, and so is the number of
frames in multiples of the network's own (32 for `small`).

    onnx         NAME.dynamic.onnx      ONNX; `tfswa-sep --model` reads it too
    pt2          NAME.pt2               a torch.export program, to run or compile in any PyTorch
    aoti         NAME.aoti.pt2          the same, compiled for this machine's CPU by AOTInductor (needs a
                                        C++ compiler), for C++: examples/masks.cpp
    torchscript  NAME.torchscript.pt    traced; PyTorch has deprecated TorchScript and will remove it

Each export's stems of a song are compared with PyTorch's: no sample may differ by more than 1e-4 of the peak.
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
from training.release.export import TOLERANCE, load_model, metadata, save_onnx
from training.release.onnx_graph import MaskNetwork, features_of

FORMATS = {
    "onnx": ".dynamic.onnx",
    "pt2": ".pt2",
    "aoti": ".aoti.pt2",
    "torchscript": ".torchscript.pt",
}
MOST_FRAMES = 1 << 14  # of a segment: 3 minutes at 44.1 kHz
Run = Callable[..., Sequence[Tensor]]  # features of each band -> masks of each band


def export_program(network: TfswaUNet) -> torch.export.ExportedProgram:
    """The network as torch.export's program, of any batch and any multiple of `frame_multiple` frames."""
    config = network.config
    frames = config.frame_multiple * torch.export.Dim(
        "blocks", min=1, max=MOST_FRAMES // config.frame_multiple
    )
    shape = {0: torch.export.Dim("batch", min=1, max=64), 3: frames}
    example = features_of(_noise(config, batch=2, frames=3 * config.frame_multiple), config)
    return torch.export.export(
        MaskNetwork(network), tuple(example), dynamic_shapes=(tuple(shape for _ in example),)
    )


def write(
    program: torch.export.ExportedProgram, kind: str, path: Path, *, config: ModelConfig, name: str
) -> None:
    """Write a program as one of "onnx", "pt2" and "aoti"."""
    told = metadata(config, name=name)
    if kind == "pt2":
        torch.export.save(program, path, extra_files={KEY: json.dumps(told)})
    elif kind == "aoti":
        settings = {"aot_inductor.metadata": {KEY: json.dumps(told)}}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    else:
        names = [[f"{part}_{i}" for i in range(len(config.bands))] for part in ("features", "masks")]
        save_onnx(
            torch.onnx.export(
                program, input_names=names[0], output_names=names[1], dynamo=True, verbose=False
            ),
            path,
            told,
        )


def write_torchscript(network: TfswaUNet, path: Path, *, name: str) -> None:
    """Trace the network, and write it. torch warns (DeprecationWarning) that TorchScript is deprecated."""
    config = network.config
    example = features_of(_noise(config, batch=2, frames=3 * config.frame_multiple), config)
    with warnings.catch_warnings():
        # Shapes are traced as such wherever they matter: `compare` tries others.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(MaskNetwork(network), tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
    told = json.dumps(metadata(config, name=name))
    torch.jit.save(traced, str(path), _extra_files={KEY: told})


def read(kind: str, path: Path) -> Run:
    """What a written file computes, run by its own runtime."""
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


def compare(run: Run, network: TfswaUNet, song: NDArray[np.float32]) -> float:
    """The largest difference between a file's stems of a song and torch's, of the loudest sample.

    song: (c, n), of which the middle is used, as one segment and as two short ones.
    Raises ValueError above TOLERANCE.
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
            found = _separate(run, mixture, config)
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    if not worst <= TOLERANCE:
        raise ValueError(f"the stems differ from torch's by {worst:.1e} of the peak")
    return worst


def write_sample(network: TfswaUNet, song: NDArray[np.float32], folder: Path) -> list[int]:
    """Write a segment's features and torch's masks of it as raw float32, band after band.

    Returns what examples/masks.cpp wants to know: frames, and the features and bins of each band.
    """
    config = network.config
    features = features_of(_middle(song, config, batch=1, frames=4 * config.frame_multiple), config)
    with torch.inference_mode():
        masks = MaskNetwork(network)(*features)
    for name, bands in (("features", features), ("masks", masks)):
        (folder / f"{name}.f32").write_bytes(b"".join(band.numpy().tobytes() for band in bands))
    return [features[0].shape[3], *(size for band in features for size in band.shape[1:3])]


def _separate(run: Run, mixture: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """(b, c, n) to stems (b, s, c, n), with all but the network in NumPy."""
    spectrum = stft(mixture, n_fft=config.n_fft, hop=config.hop)
    features = band_features(spectrum, config)
    masks = [masks.numpy() for masks in run(*map(torch.from_numpy, features))]
    return apply_masks(masks, spectrum, mixture, config)


def _middle(
    song: NDArray[np.float32], config: ModelConfig, *, batch: int, frames: int
) -> NDArray[np.float32]:
    """(b, c, n) from the middle of a song (c, n), which is repeated if it is too short."""
    length = (frames - 1) * config.hop
    song = np.tile(song, -(-batch * length // song.shape[1]))
    start = (song.shape[1] - batch * length) // 2
    pieces = song[:, start : start + batch * length].reshape(len(song), batch, length)
    return np.ascontiguousarray(pieces.swapaxes(0, 1))


def _noise(config: ModelConfig, *, batch: int, frames: int) -> NDArray[np.float32]:
    shape = (batch, config.channels, (frames - 1) * config.hop)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, export and compare; returns the exit code."""
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
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)  # said here, in our words
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
