"""Export a checkpoint: `python -m training.release.export CHECKPOINT --torch`.

Writes NAME.onnx next to the checkpoint or to --out, and checks that its stems match PyTorch's on noise. The graph
maps features to masks (training/release/onnx_graph.py), for any batch size and the frames of one segment. --torch
also writes NAME.safetensors for the torch backend. For other formats see training/release/programs.py.

`--out tfswa_sep/weights --registry models.toml` replaces the bundled weights, and updates their sizes and hashes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

from tfswa_sep.audio.atomic_file import atomic_write
from tfswa_sep.inference.metadata import FORMAT, KEY
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.torch_backend import load_network
from tfswa_sep.model.config import PRESETS, ModelConfig
from tfswa_sep.model.stft_torch import separate_waveform
from tfswa_sep.model.unet import TfswaUNet
from tfswa_sep.registry.integrity import digest
from training.checkpoint import read
from training.release.onnx_graph import MaskNetwork, compute_features

TOLERANCE = 1e-4  # maximum difference between torch and an export, relative to the peak
LICENSE = "GPL-3.0-or-later"


def load_checkpoint(path: Path) -> tuple[TfswaUNet, dict[str, Any]]:
    """Load the averaged network of a training checkpoint, and the checkpoint itself."""
    checkpoint = read(path)
    network = TfswaUNet(ModelConfig.from_json(checkpoint["shape"])).eval()
    network.load_state_dict(checkpoint["average"])
    return network, checkpoint


def load_model(path: Path) -> TfswaUNet:
    """Load the network of a checkpoint or a .safetensors file. Raises TfswaError if it is damaged."""
    network = load_network(path)[0] if path.suffix == ".safetensors" else load_checkpoint(path)[0]
    return network.eval()


def round_to_half(network: TfswaUNet) -> None:
    """Round the weights to float16, so that the files of both backends hold the same values."""
    network.load_state_dict({k: v.half().to(v.dtype) for k, v in network.state_dict().items()})


def build_metadata(config: ModelConfig, *, name: str, license_name: str = LICENSE) -> dict[str, Any]:
    """Build the metadata of a model file; see tfswa_sep/inference/metadata.py."""
    return {
        "format": FORMAT,
        "name": name,
        "architecture": "tfswa-unet",
        "license": license_name,
        "config": config.to_json(),
        "stems": list(config.stems),
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "n_fft": config.n_fft,
        "hop": config.hop,
        "segment_samples": config.segment_samples,
        "margin_samples": config.margin_samples,
    }


def export_onnx(network: TfswaUNet, path: Path, *, name: str, license_name: str = LICENSE) -> float:
    """Write an ONNX file with float32 weights, and `compare` it with torch."""
    config = network.config
    noise = [_pink_noise(config.channels, config.segment_samples, seed=i) for i in (0, 1)]
    example = compute_features(np.stack(noise), config)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    convert_to_onnx(
        MaskNetwork(network),
        path,
        build_metadata(config, name=name, license_name=license_name),
        **band_names(len(config.bands)),
        args=tuple(example),
        dynamic_shapes=(tuple(batch for _ in example),),
    )
    return compare(network, path)


def band_names(bands: int) -> dict[str, list[str]]:
    """What torch.onnx.export is to call the inputs and outputs of a MaskNetwork."""
    return {
        "input_names": [f"features_{i}" for i in range(bands)],
        "output_names": [f"masks_{i}" for i in range(bands)],
    }


def convert_to_onnx(
    model: torch.nn.Module | torch.export.ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    **options: Any,
) -> None:
    """Write a network as an ONNX file. `options` are passed to torch.onnx.export."""
    # It warns that torchvision, which nothing here needs, is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's own: deprecated names that the exporter still uses, and bands that share one batch dimension
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        program = torch.onnx.export(model, dynamo=True, verbose=False, **options)
    assert program is not None  # dynamo=True
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "raw.onnx"
        program.save(str(raw), external_data=False)
        graph = onnx.load(raw)
    for node in graph.graph.node:  # the exporter stores source paths in every node
        del node.metadata_props[:]
        node.doc_string = ""
    save_graph(graph, path, json.dumps(metadata))


def save_graph(graph: onnx.ModelProto, path: Path, metadata: str) -> None:
    """Check an ONNX graph and write it atomically, with this metadata only."""
    del graph.metadata_props[:]
    graph.metadata_props.add(key=KEY, value=metadata)
    onnx.checker.check_model(graph)
    with atomic_write(path) as temporary:
        onnx.save(graph, temporary)


def compare(network: TfswaUNet, path: Path) -> float:
    """Return the maximum difference between the stems of torch and an ONNX file, relative to the peak.

    Raises:
        ValueError: The difference exceeds TOLERANCE.
    """
    config = network.config
    mixture = _pink_noise(config.channels, config.segment_samples)[None]
    with torch.inference_mode():
        expected = separate_waveform(network.eval(), mixture, n_fft=config.n_fft, hop=config.hop).numpy()
    stems = OnnxBackend(path)(mixture.numpy())
    difference = float(np.abs(stems - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{path}: ONNX Runtime differs from torch by {difference:.1e} of the peak")
    return difference


def export_safetensors(network: TfswaUNet, path: Path, *, name: str, license_name: str = LICENSE) -> None:
    """Write the weights in float16 as a .safetensors file."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    metadata = build_metadata(network.config, name=name, license_name=license_name)
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(metadata)})
        temporary.chmod(0o644)  # safetensors makes files readable only by their owner


def update_registry(registry: Path, *, name: str, files: dict[str, Path]) -> None:
    """Update sha256 and bytes of bundled files in models.toml, and leave the rest of the text unchanged.

    Raises:
        ValueError: The model has no such file.
    """
    text = registry.read_text()
    for backend, path in files.items():
        pattern = re.compile(
            rf'(\[\[models\.{re.escape(name)}\.files\]\]\nbackend = "{backend}"\n'
            r'(?:precision = "\w+"\n)?'
            rf'where = "bundled:{re.escape(path.name)}"\n)'
            r'sha256 = "[0-9a-f]*"\nbytes = \d+'
        )
        entry = f'\\g<1>sha256 = "{digest(path)}"\nbytes = {path.stat().st_size}'
        text, count = pattern.subn(entry, text)
        if count != 1:
            raise ValueError(f"{registry} has no bundled {backend} file {path.name} under models.{name}")
    with atomic_write(registry) as temporary:
        temporary.write_text(text)


def _pink_noise(channels: int, samples: int, *, seed: int = 0) -> torch.Tensor:
    """Make noise (c, n) that falls by 6 dB per octave like loud music, with a peak of half full scale."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(channels, samples, generator=generator))
    slope = torch.arange(1, spectrum.shape[1] + 1).clamp(min=samples // 1000)
    noise: torch.Tensor = torch.fft.irfft(spectrum / slope, samples)
    return noise * (0.5 / noise.abs().max())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", type=Path, nargs="?", help="training checkpoint")
    source.add_argument(
        "--untrained",
        metavar="PRESET",
        choices=list(PRESETS),
        help="export random weights, to measure speed and size",
    )
    parser.add_argument("--name", help="model name (default: the preset)")
    parser.add_argument(
        "--out", type=Path, help="output folder (default: the checkpoint's, or exported/ with --untrained)"
    )
    parser.add_argument("--frames", type=int, help="frames per segment (default: as in the checkpoint)")
    parser.add_argument(
        "--margin",
        type=int,
        help="samples discarded on each side of a segment (default: as in the checkpoint)",
    )
    parser.add_argument("--registry", type=Path, help="models.toml in which to update sizes and hashes")
    parser.add_argument("--torch", action="store_true", help="also write NAME.safetensors")
    options = parser.parse_args()
    if options.registry and not options.out:
        parser.error("--registry is for bundled files: add --out tfswa_sep/weights")
    if options.untrained:
        torch.manual_seed(0)
        network, step, preset = TfswaUNet(PRESETS[options.untrained]).eval(), 0, options.untrained
    else:
        network, checkpoint = load_checkpoint(options.checkpoint)
        step = checkpoint["step"]
        trained = json.loads(checkpoint.get("config", "{}"))
        preset = trained.get("model", {}).get("preset", "small")
    name = options.name or preset
    config = network.config  # segment length and margin are independent of training
    network.config = dataclasses.replace(
        config,
        segment_samples=(options.frames - 1) * config.hop if options.frames else config.segment_samples,
        margin_samples=config.margin_samples if options.margin is None else options.margin,
    )
    round_to_half(network)
    out = options.out or (Path("exported") if options.untrained else options.checkpoint.parent)
    out.mkdir(parents=True, exist_ok=True)
    files = {"onnx": out / f"{name}.onnx"}
    difference = export_onnx(network, files["onnx"], name=name)
    print(f"{files['onnx']}: step {step}, differs from torch by {difference:.1e}")
    if options.torch:
        files["torch"] = out / f"{name}.safetensors"
        export_safetensors(network, files["torch"], name=name)
        print(f"{files['torch']}: {files['torch'].stat().st_size} bytes")
    if options.registry:
        update_registry(options.registry, name=name, files=files)


if __name__ == "__main__":
    main()
