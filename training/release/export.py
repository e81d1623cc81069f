"""Export a checkpoint: `python -m training.release.export CHECKPOINT --torch`.

Writes NAME.onnx next to the checkpoint or to --out, and checks that its stems match PyTorch's on music-like noise.
The graph maps features to masks (see training/release/onnx_graph.py) for any batch size and the frames of one
segment; training/release/programs.py exports other formats, with any number of frames. --torch also writes
NAME.safetensors for the torch backend. `--out tfswa_sep/weights --registry models.toml` replaces the bundled
weights and updates their sizes and hashes in models.toml; bundled files that do not match these are rejected.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import tempfile
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
from training.checkpoint import read
from training.release.onnx_graph import MaskNetwork, features_of

TOLERANCE = 1e-4  # of the loudest sample, between torch and ONNX Runtime in float32
LICENSE = "GPL-3.0-or-later"


def load_checkpoint(path: Path) -> tuple[TfswaUNet, dict[str, Any]]:
    """The averaged network of a training checkpoint, and the checkpoint itself."""
    checkpoint = read(path)
    network = TfswaUNet(ModelConfig.from_json(checkpoint["shape"])).eval()
    network.load_state_dict(checkpoint["average"])
    return network, checkpoint


def load_model(path: Path) -> TfswaUNet:
    """The network of a checkpoint or of a .safetensors file.

    Raises InputError for a damaged checkpoint, ModelError for a damaged .safetensors file.
    """
    network = load_network(path)[0] if path.suffix == ".safetensors" else load_checkpoint(path)[0]
    return network.eval()


def round_to_half(network: TfswaUNet) -> None:
    """Round the weights to what float16 holds: the files of both backends then carry the same numbers."""
    network.load_state_dict({k: v.half().to(v.dtype) for k, v in network.state_dict().items()})


def metadata(config: ModelConfig, *, name: str, license_name: str = LICENSE) -> dict[str, Any]:
    """What travels in the file: see tfswa_sep/inference/metadata.py."""
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
    """Write the graph with float32 weights, and return how far its stems are from torch's.

    Raises ValueError where the two differ by more than TOLERANCE.
    """
    config, masks = network.config, MaskNetwork(network)
    noise = [_musical_noise(config.channels, config.segment_samples, seed=i) for i in (0, 1)]
    example = features_of(np.stack(noise), config)
    names = [[f"{kind}_{i}" for i in range(len(config.bands))] for kind in ("features", "masks")]
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.onnx.export(
        masks,
        tuple(example),
        input_names=names[0],
        output_names=names[1],
        dynamic_shapes=(tuple(batch for _ in example),),
        dynamo=True,
        verbose=False,
    )
    save_onnx(program, path, metadata(config, name=name, license_name=license_name))
    return compare(network, path)


def save_onnx(program: torch.onnx.ONNXProgram | None, path: Path, told: dict[str, Any]) -> None:
    """Write a graph with its weights, and with `told` as its metadata."""
    assert program is not None  # dynamo=True
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "raw.onnx"
        program.save(str(raw), external_data=False)
        graph = onnx.load(raw)
    del graph.metadata_props[:]
    entry = graph.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(told)
    for node in graph.graph.node:  # the exporter leaves source paths of this machine in every node
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(graph)
    with atomic_write(path) as temporary:
        onnx.save(graph, temporary)


def compare(network: TfswaUNet, path: Path) -> float:
    """Difference between the stems of torch and of the exported file, of the loudest sample.

    Raises ValueError above TOLERANCE.
    """
    config = network.config
    mixture = _musical_noise(config.channels, config.segment_samples)[None]
    with torch.inference_mode():
        expected = separate_waveform(network.eval(), mixture, n_fft=config.n_fft, hop=config.hop).numpy()
    found = OnnxBackend(path)(mixture.numpy())
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{path}: ONNX Runtime differs from torch by {difference:.1e} of the loudest sample")
    return difference


def export_safetensors(network: TfswaUNet, path: Path, *, name: str, license_name: str = LICENSE) -> None:
    """Write the weights in float16; counters and the tables that the network makes itself stay out."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    told = metadata(network.config, name=name, license_name=license_name)
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(told)})
        temporary.chmod(0o644)  # safetensors keeps its files to the owner


def update_registry(registry: Path, *, name: str, files: dict[str, Path]) -> None:
    """Set sha256 and bytes of bundled files in models.toml, the rest of the text untouched.

    Raises ValueError where the entry has no such file.
    """
    text = registry.read_text()
    for backend, path in files.items():
        content = path.read_bytes()
        pattern = re.compile(
            rf'(\[\[models\.{re.escape(name)}\.files\]\]\nbackend = "{backend}"\n'
            r'(?:precision = "\w+"\n)?'
            rf'where = "bundled:{re.escape(path.name)}"\n)'
            r'sha256 = "[0-9a-f]*"\nbytes = \d+'
        )
        entry = f'\\g<1>sha256 = "{hashlib.sha256(content).hexdigest()}"\nbytes = {len(content)}'
        text, count = pattern.subn(entry, text)
        if count != 1:
            raise ValueError(f"{registry} has no bundled {backend} file {path.name} under models.{name}")
    with atomic_write(registry) as temporary:
        temporary.write_text(text)


def _musical_noise(channels: int, samples: int, *, seed: int = 0) -> torch.Tensor:
    """(c, n): noise that falls by 6 dB an octave, as loud music does, peaks at half of full scale."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(channels, samples, generator=generator))
    slope = torch.arange(1, spectrum.shape[1] + 1).clamp(min=samples // 1000)
    noise: torch.Tensor = torch.fft.irfft(spectrum / slope, samples)
    return noise * (0.5 / noise.abs().max())


def main() -> None:
    """Parse the command line, and export."""
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
    parser.add_argument("--name", help="model name (default: the --untrained preset, or small)")
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
        network, step = TfswaUNet(PRESETS[options.untrained]).eval(), 0
    else:
        network, checkpoint = load_checkpoint(options.checkpoint)
        step = checkpoint["step"]
    name = options.name or options.untrained or "small"
    config = network.config  # segment length and margin do not depend on the training
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
