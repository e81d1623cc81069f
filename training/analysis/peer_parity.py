"""Compare our command with the peers' own separation, with random weights in the peers' networks.

In an environment with torch, unblend 1.0.0, demucs 4.1.0, demucs-onnx 0.3.4 and audio-separator 0.47.1 (the last two
without their dependencies), which writes the network as NAME.onnx and the peer's stems as NAME.npy:

    python training/analysis/peer_parity.py make htdemucs mixture.npy

In ours:

    python -m training.analysis.peer_parity compare htdemucs mixture.npy

mixture.npy holds a song, (2, n) float32 at 44.1 kHz. The peer exports the network with its own exporter and separates
the song with its own program, in PyTorch. Norms, running statistics, layer scales and biases are random too. With
--parts, `make` raises the weights of parts of the network that could be left out without changing the stems by one
per cent; `compare` fails if a stem is more than 20 dB quieter or louder than the song.

    htdemucs, htdemucs_6s, scnet_small, melband_roformer_kim, bs_roformer_sw    of unblend
    htdemucs_ft    of demucs, four networks exported by demucs-onnx, as htdemucs_ft_0.onnx and so on
    mdx_net        of audio-separator, which runs ONNX files itself; at a song's end it shortens its windows, so use
                   1,024,000 samples, whose end they do not reach

`--config depth=1` replaces settings of the published network, to be quicker.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

TOLERANCE = {  # of the peak
    "scnet_small": 3e-3,  # its exported graph differs from its network
    "htdemucs": 3e-3,  # ONNX Runtime sums the millions of samples of its group norms in 32 bits
    # Their norms amplify what is rounded in quiet bands: with spectra that were computed in 64 bits, unblend's own
    # stems change by almost as much.
    "melband_roformer_kim": 3e-3,
    "bs_roformer_sw": 3e-3,
}
DEFAULT_TOLERANCE = 1e-3
ROFORMER_LEVEL = 0.25  # of a stem, relative to the song's
LEAST_CHANGE = 0.01  # of the stems, when a part of the network is left out
MOST_DECIBELS = 20  # between a stem and the song
BAG = "htdemucs_ft"
BAG_STEMS = ("drums", "bass", "other", "vocals")
MDX_NET = {"dim_f": 2560, "dim_t": 256, "n_fft": 5120, "hop_length": 1024}  # of UVR-MDX-NET-Inst_HQ_5
MDX_GAIN = 1.01
MDX_SETTINGS = f"n_fft={MDX_NET['n_fft']} stems=instrumental,vocals gain={MDX_GAIN}"


def make(name: str, mixture: Path, changes: dict[str, Any]) -> None:
    """Write NAME.onnx and NAME.npy in the current folder; runs where the peers are installed."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    makers = {BAG: make_bag, "mdx_net": make_mdx_net}
    song = torch.from_numpy(np.load(mixture))
    stems = makers[name](song, changes) if name in makers else make_unblend(name, song, changes)
    np.save(f"{name}.npy", stems)


def make_unblend(name: str, song: Any, changes: dict[str, Any]) -> Any:
    """Export a network of unblend, and separate with it."""
    # unblend reads and writes audio with torchaudio, which is not needed here and may not load.
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))
    import torch
    from unblend import backends, onnx
    from unblend.apply import apply_model
    from unblend.htdemucs import HTDemucs
    from unblend.repo import ModelRepository

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
    randomize(model)
    if "roformer" in name:
        set_levels(model, song[None, :, :88_200])
    strengthen_parts(model, song[None, :, :88_200])
    onnx.ModelRepository.get_model = lambda *_: model
    onnx.export_to_onnx(name, f"{name}.onnx", precision="fp32")
    with torch.inference_mode():
        return apply_model(model, song).reshape(len(info["sources"]), 2, -1).numpy()


def make_bag(song: Any, changes: dict[str, Any]) -> Any:
    """Export four networks of demucs, and separate with them as with htdemucs_ft."""
    import torch
    from demucs.apply import BagOfModels, apply_model
    from demucs.htdemucs import HTDemucs
    from demucs_onnx.export import exporter

    settings = {"bottom_channels": 512, "segment": 39 / 5, **changes}
    networks = [HTDemucs(list(BAG_STEMS), **settings) for _ in BAG_STEMS]
    for index, network in enumerate(networks):
        randomize(network)
        if index == 0:
            strengthen_parts(network, song[None, :, :88_200])
        patched = exporter.patch_htdemucs_for_onnx(deepcopy(network))
        samples = int(network.segment * network.samplerate)
        exporter._export_one(patched, Path(f"{BAG}_{index}.onnx"), n_samples=samples, opset=17, verbose=False)
    bag = BagOfModels(networks, np.eye(len(BAG_STEMS)).tolist())
    reference = song.mean(dim=0)  # as demucs.api does
    mean, deviation = reference.mean(), reference.std() + 1e-8
    with torch.inference_mode():
        stems = apply_model(bag, (song - mean)[None] / deviation, shifts=0)[0]
    return (stems * deviation + mean).to(torch.float32).numpy()


def make_mdx_net(song: Any, changes: dict[str, Any]) -> Any:
    """Write an MDX-Net, and separate with it in audio-separator."""
    import torch
    from torch import nn

    # Without the modules that read files and train, and what they import.
    package = ModuleType("audio_separator.separator")
    package.__path__ = [str(Path(next(iter(import_module("audio_separator").__path__)), "separator"))]
    sys.modules[package.__name__] = package
    for module, stub in (
        ("onnx2torch", MagicMock()),
        ("pytorch_lightning", MagicMock(LightningModule=nn.Module)),
        (f"{package.__name__}.common_separator", MagicMock(CommonSeparator=object)),
        (f"{package.__name__}.uvr_lib_v5.spec_utils", MagicMock()),
    ):
        sys.modules[module] = stub
    from audio_separator.separator.architectures.mdx_separator import MDXSeparator
    from audio_separator.separator.uvr_lib_v5.mdxnet import ConvTDFNet

    settings = {"num_blocks": 11, "l": 3, "g": 32, "k": 3, "bn": 8, "bias": False, **MDX_NET, **changes}
    network = ConvTDFNet("vocals", 0, "rmsprop", dim_c=4, overlap=0, **settings)
    # Running statistics of real spectra, from the song's middle, from which `randomize` departs.
    window, length = torch.hann_window(settings["n_fft"]), settings["hop_length"] * (settings["dim_t"] - 1)
    middle = (song.shape[1] - length) // 2
    spectrum = torch.stft(
        song[:, middle : middle + length],
        settings["n_fft"],
        settings["hop_length"],
        window=window,
        return_complex=True,
    )
    packed = torch.view_as_real(spectrum).permute(0, 3, 1, 2).flatten(0, 1)
    example = packed[None, :, : settings["dim_f"]]
    short = example[..., :64]  # quicker: any multiple of 32 will do
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        network.train()(short)
    randomize(network)
    strengthen_parts(network, short)
    with torch.no_grad():  # the level of the song
        network.final_conv[0].weight.mul_(example.std() / network(example).std())
    torch.onnx.export(
        network, (example,), "mdx_net.onnx", input_names=["input"], output_names=["output"], dynamo=False
    )
    separator = MDXSeparator.__new__(MDXSeparator)
    for key, value in (
        ("logger", logging.getLogger("audio_separator")),
        ("log_level", logging.WARNING),
        ("model_path", "mdx_net.onnx"),
        ("onnx_execution_provider", ["CPUExecutionProvider"]),
        ("torch_device", torch.device("cpu")),
        ("segment_size", settings["dim_t"]),
        ("overlap", 0.25),
        ("batch_size", 1),
        ("enable_denoise", False),
        *((each, settings[each]) for each in MDX_NET),
    ):
        setattr(separator, key, value)
    separator.load_model()
    first = np.asarray(separator.demix(song.numpy()))
    return np.stack([first, song.numpy() - MDX_GAIN * first])


def randomize(model: Any) -> None:
    """Make norms, running statistics, layer scales and biases random, so that no part of a network is idle."""
    import torch

    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                if parameter.abs().max() < 0.01 and parameter.std() == 0 and parameter.abs().max() > 0:
                    parameter.fill_(0.5)  # a layer scale
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))


def set_levels(model: Any, example: Any) -> None:
    """Give the stems of a RoFormer the usual level, by what its last layers put into the masks."""
    import torch
    from torch import nn

    with torch.no_grad():
        stems = model(example)[0]
        for head, stem in zip(model.mask_estimators, stems, strict=False):  # what they leave has none
            gain = ROFORMER_LEVEL * example.std() / stem.std()
            for band in head.to_freqs:
                last = [part for part in band.modules() if isinstance(part, nn.Linear)][-1]
                half = len(last.weight) // 2  # the rest is the gate of a gated linear unit
                last.weight[:half] *= gain
                last.bias[:half] *= gain


def strengthen_parts(model: Any, example: Any) -> None:
    """With --parts, raise the weights of parts without which the output hardly changes.

    Raises:
        SystemExit: A part can still be left out.
    """
    import torch

    if "--parts" not in sys.argv:
        return
    with torch.no_grad():
        for name, part in parts_of(model):
            for _ in range(5):
                change = _change_without(part, model, example)
                if change is None or change > LEAST_CHANGE:
                    break
                for parameter in part.parameters():
                    parameter.mul_(2)
            if change is not None:
                print(f"without {name}: the stems change by {100 * change:.1f} %", flush=True)
                if not change > LEAST_CHANGE:
                    raise SystemExit(f"{name} can be left out")


def _change_without(part: Any, model: Any, example: Any) -> float | None:
    """How much of the output changes when a part returns zeros, None if it is not called."""
    import torch

    called = []

    def silence(module: Any, inputs: Any, output: Any) -> Any:
        called.append(True)
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    whole = model(example)
    hook = part.register_forward_hook(silence)
    try:
        change = float((model(example) - whole).norm() / whole.norm())
    finally:
        hook.remove()
    return change if called else None


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a network and their parts, without the bare lists of such."""
    for name, part in model.named_children():
        is_list = type(part).__name__ in ("ModuleList", "ModuleDict", "Sequential")
        if not is_list:
            yield name, part
        for inner, child in part.named_children():
            if type(child).__name__ not in ("ModuleList", "ModuleDict"):
                yield f"{name}.{inner}", child


def compare(name: str, mixture: Path) -> bool:
    """Print how far our stems are from NAME.npy; return whether that and their levels are within the limits."""
    from tfswa_sep import Separator
    from tfswa_sep.registry import find_model

    song, expected = np.load(mixture), np.load(f"{name}.npy")
    info = find_model(f"{name}_0.onnx" if name == BAG else f"{name}.onnx")
    if name == BAG:
        weights = np.eye(len(BAG_STEMS)).tolist()
        files = [find_model(f"{name}_{index}.onnx").files[0] for index in range(len(weights))]
        bag = (replace(file, weights=tuple(row)) for file, row in zip(files, weights, strict=True))
        info = replace(info, files=tuple(bag))
    settings = MDX_SETTINGS if name == "mdx_net" else ""
    stems = Separator(info, device="cpu", model_settings=settings).separate(song, 44_100)
    found = np.stack(list(stems.values()))
    peak = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max()) / peak
    typical = float(np.sqrt(np.square(found - expected).mean())) / peak
    levels = 20 * np.log10(np.sqrt(np.square(expected).mean(axis=(1, 2)) / np.square(song).mean()))
    listed = ", ".join(f"{stem} {level:.1f} dB" for stem, level in zip(stems, levels, strict=True))
    print(f"{name}: differs by {difference:.1e} of the peak, RMS {typical:.1e}")
    print(f"levels relative to the mixture: {listed}")
    tolerance = TOLERANCE.get(name, DEFAULT_TOLERANCE)
    return difference <= tolerance and bool((np.abs(levels) < MOST_DECIBELS).all())


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("make", "compare"))
    parser.add_argument("name", help="htdemucs, htdemucs_ft, mdx_net, ...")
    parser.add_argument("mixture", type=Path, help="song as .npy")
    parser.add_argument(
        "--config", action="append", default=[], metavar="KEY=JSON", help="setting to replace"
    )
    parser.add_argument("--parts", action="store_true", help="check that each part of the network matters")
    options = parser.parse_args()
    if options.step == "compare":
        return 0 if compare(options.name, options.mixture) else 1
    pairs = (text.partition("=") for text in options.config)
    make(options.name, options.mixture, {key: json.loads(value) for key, _, value in pairs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
