"""Draw attention weights: `python -m training.analysis.attention_maps MODEL SONG --at 42.5 --out maps.png`.

Shows, for one frame of a song, the attention weights of the last block that has any, averaged over heads:

    mixture   spectrogram, with the frame marked
    TSA       time attention: for each frequency, the frames it attends to
    FSA       frequency attention: for each frequency (rows), the frequencies it attends to (columns)
    SW-MSA    shifted-window attention: what the frame's positions attend to, each within its window

MODEL is a training checkpoint or a .safetensors file from `training.release.export`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.errors import InputError
from tfswa_sep.model.attention import FrequencyAttention, ShiftedWindowAttention, TimeAttention
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training.release.export import load_model

PANEL = (900, 260)  # pixels
SECONDS = 5.9  # of the excerpt around --at


def attention_weights(network: TfswaUNet, spectrum: Tensor, frame: float) -> dict[str, Tensor]:
    """Compute the attention weights of one frame in the last block that has any.

    Args:
        network: The network.
        spectrum: Its input, (1, 2c, bins, t).
        frame: Position of the frame, as a share of the length (0 to 1).

    Returns:
        {"TSA": (f, t), "FSA": (f, f), "SW-MSA": (f, t)}. The rows of TSA and FSA sum to 1.

    Raises:
        ValueError: The network has no attention layers.
    """
    weights: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(_make_hook(weights, frame))
        for module in network.modules()
        if isinstance(module, TimeAttention | FrequencyAttention | ShiftedWindowAttention)
    ]
    try:
        with torch.inference_mode():
            network(spectrum)
    finally:
        for hook in hooks:
            hook.remove()
    if not weights:
        raise ValueError("this network has no attention layers")
    return weights


def _make_hook(weights: dict[str, Tensor], frame: float) -> Callable[..., None]:
    """Make a hook that stores the weights of an attention layer; later blocks overwrite earlier ones."""

    def hook(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        at = min(int(frame * x.shape[2]), x.shape[2] - 1)
        if isinstance(module, TimeAttention):
            q, k = _queries_and_keys(module, x[0])  # (h, f, t, e)
            weights["TSA"] = _softmax(q[:, :, at, None], k)[:, :, 0].mean(dim=0)
        elif isinstance(module, FrequencyAttention):
            q, k = _queries_and_keys(module, x[0, :, at])  # (h, f, e)
            weights["FSA"] = _softmax(q, k).mean(dim=0)
        elif isinstance(module, ShiftedWindowAttention):
            weights["SW-MSA"] = _window_weights(module, x, at)

    return hook


def _queries_and_keys(module: TimeAttention | FrequencyAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, _ = (rearrange(y, "... (h e) -> h ... e", h=module.heads) for y in module.qkv(x))
    return q, k


def _softmax(q: Tensor, k: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    weights: Tensor = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(dim=-1)
    return weights


def _window_weights(module: ShiftedWindowAttention, x: Tensor, at: int) -> Tensor:
    """Sum what the positions of frame `at` attend to, each within its window: (f, t)."""
    _, f, t, _ = x.shape
    (wf, wt), (sf, st), h = module.window, module.shift, module.heads
    rolled = torch.roll(x, (-sf, -st), dims=(1, 2))
    pattern = "(nf wf) (nt wt) (h e) -> (nf nt) h (wf wt) e"
    q, k, _ = (rearrange(y, pattern, h=h, wf=wf, wt=wt) for y in module.qkv(rolled[0]))
    bias = rearrange(module.bias_table[module.relative_index], "i j h -> h i j")
    weights = _softmax(q, k, bias + module._mask(f, t, q)[:, None] if sf or st else bias).mean(dim=1)
    queries = (torch.arange(t, device=x.device) == (at - st) % t).to(weights).expand(f, t)
    queries = rearrange(queries, "(nf wf) (nt wt) -> (nf nt) (wf wt)", wf=wf, wt=wt)
    attended = torch.einsum("wi,wij->wj", queries, weights)
    attended = rearrange(attended, "(nf nt) (wf wt) -> (nf wf) (nt wt)", nf=f // wf, wf=wf)
    return torch.roll(attended, (sf, st), dims=(0, 1))


def draw(spectrum: Tensor, weights: dict[str, Tensor], frame: float) -> Image.Image:
    """Draw the panels, each scaled to its own range, with low frequencies at the bottom."""
    level = 10 * torch.log10(spectrum[0].square().sum(dim=0) + 1e-10)
    panels = {"mixture": ((level - level.max()) / 80 + 1).clamp(0, 1)} | {
        name: (value - value.min()) / (value.max() - value.min()).clamp(min=1e-12)
        for name, value in weights.items()
    }
    width, height = PANEL
    image = Image.new("RGB", (width, (height + 18) * len(panels)), "white")
    drawing = ImageDraw.Draw(image)
    for i, (name, values) in enumerate(panels.items()):
        top = i * (height + 18)
        pixels = np.asarray(values.flip(0).cpu() * 255, np.uint8)
        image.paste(Image.fromarray(pixels).resize(PANEL, Image.Resampling.NEAREST), (0, top + 18))
        drawing.text((4, top + 3), name, fill="black")
        if name != "FSA":
            drawing.line([(frame * width, top + 18), (frame * width, top + 18 + height)], fill="red")
    return image


def read_around(song: Path, at: float, network: TfswaUNet) -> tuple[Tensor, float]:
    """Read the spectrum (1, 2c, bins, t) around second `at`, and the position of `at` in it (0 to 1).

    Raises:
        InputError: The song cannot be read, or is too short.
    """
    config = network.config
    with open_audio(song) as reader:
        samples = np.concatenate(list(reader.blocks(config.sample_rate, config.channels)), axis=1)
    centre, half = round(at * config.sample_rate), round(SECONDS / 2 * config.sample_rate)
    if not 0 <= centre < samples.shape[1]:
        raise InputError(
            f"--at {at:g} is past the end of {song}, which is {samples.shape[1] / config.sample_rate:.1f} s long"
        )
    start = max(min(centre - half, samples.shape[1] - 2 * half), 0)
    excerpt = torch.from_numpy(np.ascontiguousarray(samples[:, start : start + 2 * half]))
    return stft(excerpt[None], n_fft=config.n_fft, hop=config.hop), (centre - start) / excerpt.shape[1]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("song", type=Path)
    parser.add_argument("--at", type=float, required=True, help="time in the song, in seconds")
    parser.add_argument("--out", type=Path, default=Path("attention.png"))
    options = parser.parse_args(arguments)
    network = load_model(options.model)
    try:
        spectrum, frame = read_around(options.song, options.at, network)
        draw(spectrum, attention_weights(network, spectrum, frame), frame).save(options.out)
    except (InputError, ValueError) as error:
        parser.exit(3, f"{error}\n")
    print(options.out)


if __name__ == "__main__":
    main()
