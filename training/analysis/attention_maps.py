"""Draw attention weights: `python -m training.analysis.attention_maps MODEL SONG --at 42.5 --out maps.png`.

Shows, for one frame of a song, the attention weights of the last block that has any, averaged over heads:

    mixture   the spectrogram, with the frame marked
    TSA       for each frequency, the frames it attends to
    FSA       for each frequency (rows), the frequencies it attends to (columns)
    SW-MSA    the positions, each within its own window, that the frame's frequencies attend to

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
SECONDS = 5.9  # of song around the moment


def attention_weights(network: TfswaUNet, spectrum: Tensor, frame: float) -> dict[str, Tensor]:
    """{"TSA": (f, t), "FSA": (f, f), "SW-MSA": (f, t)} of the last block with attentions.

    spectrum (1, 2c, bins, t) of the song, frame: the moment as a share of its length, 0 to 1. Rows of TSA and
    FSA sum to one; of SW-MSA every window's part does, once for each of the frame's positions in it.
    Raises ValueError for a network without attentions.
    """
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(_keeper(found, frame))
        for module in network.modules()
        if isinstance(module, TimeAttention | FrequencyAttention | ShiftedWindowAttention)
    ]
    try:
        with torch.inference_mode():
            network(spectrum)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("this network has no attention layers")
    return found


def _keeper(found: dict[str, Tensor], frame: float) -> Callable[..., None]:
    """A hook that keeps the weights of an attention; later blocks replace those of earlier ones."""

    def keep(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        at = min(int(frame * x.shape[2]), x.shape[2] - 1)
        if isinstance(module, TimeAttention):
            q, k = _queries_and_keys(module, x[0])  # (h, f, t, e)
            found["TSA"] = _softmax(q[:, :, at, None], k)[:, :, 0].mean(dim=0)
        elif isinstance(module, FrequencyAttention):
            q, k = _queries_and_keys(module, x[0, :, at])  # (h, f, e)
            found["FSA"] = _softmax(q, k).mean(dim=0)
        elif isinstance(module, ShiftedWindowAttention):
            found["SW-MSA"] = _window_weights(module, x, at)

    return keep


def _queries_and_keys(module: TimeAttention | FrequencyAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, _ = (rearrange(y, "... (h e) -> h ... e", h=module.heads) for y in module.qkv(x))
    return q, k


def _softmax(q: Tensor, k: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    weights: Tensor = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(dim=-1)
    return weights


def _window_weights(module: ShiftedWindowAttention, x: Tensor, at: int) -> Tensor:
    """(f, t): what the positions of frame `at` look at, each within its own window."""
    _, f, t, _ = x.shape
    (wf, wt), (sf, st), h = module.window, module.shift, module.heads
    rolled = torch.roll(x, (-sf, -st), dims=(1, 2))
    pattern = "(nf wf) (nt wt) (h e) -> (nf nt) h (wf wt) e"
    q, k, _ = (rearrange(y, pattern, h=h, wf=wf, wt=wt) for y in module.qkv(rolled[0]))
    bias = rearrange(module.bias_table[module.relative_index], "i j h -> h i j")
    weights = _softmax(q, k, bias + module._mask(f, t, q)[:, None] if sf or st else bias).mean(dim=1)
    # Of a window's positions, those at the frame ask; what they look at is summed.
    column = (at - st) % t
    asks = (torch.arange(t, device=x.device) == column).to(weights).expand(f, t)
    asks = rearrange(asks, "(nf wf) (nt wt) -> (nf nt) (wf wt)", wf=wf, wt=wt)
    looked = torch.einsum("wi,wij->wj", asks, weights)
    looked = rearrange(looked, "(nf nt) (wf wt) -> (nf wf) (nt wt)", nf=f // wf, wf=wf)
    return torch.roll(looked, (sf, st), dims=(0, 1))


def draw(spectrum: Tensor, weights: dict[str, Tensor], frame: float) -> Image.Image:
    """The panels, each from its least (black) to its most; low frequencies are at the bottom."""
    level = 10 * torch.log10(spectrum[0].square().sum(dim=0) + 1e-10)
    panels = {"mixture": ((level - level.max()) / 80 + 1).clamp(0, 1)} | {
        name: (value - value.min()) / (value.max() - value.min()).clamp(min=1e-12)
        for name, value in weights.items()
    }
    width, height = PANEL
    picture = Image.new("RGB", (width, (height + 18) * len(panels)), "white")
    pen = ImageDraw.Draw(picture)
    for i, (name, values) in enumerate(panels.items()):
        top = i * (height + 18)
        pixels = np.asarray(values.flip(0).cpu() * 255, np.uint8)
        picture.paste(Image.fromarray(pixels).resize(PANEL, Image.Resampling.NEAREST), (0, top + 18))
        pen.text((4, top + 3), name, fill="black")
        if name != "FSA":
            pen.line([(frame * width, top + 18), (frame * width, top + 18 + height)], fill="red")
    return picture


def read_around(song: Path, at: float, network: TfswaUNet) -> tuple[Tensor, float]:
    """The spectrum (1, 2c, bins, t) around second `at`, and where in it that second is, 0 to 1.

    Raises InputError for a song that cannot be read, or has no such second.
    """
    config = network.config
    with open_audio(song) as reader:
        samples = np.concatenate(list(reader.blocks(config.sample_rate, config.channels)), axis=1)
    moment, half = round(at * config.sample_rate), round(SECONDS / 2 * config.sample_rate)
    if not 0 <= moment < samples.shape[1]:
        raise InputError(
            f"--at {at:g} is past the end of {song}, which is {samples.shape[1] / config.sample_rate:.1f} s long"
        )
    start = max(min(moment - half, samples.shape[1] - 2 * half), 0)
    part = torch.from_numpy(np.ascontiguousarray(samples[:, start : start + 2 * half]))
    return stft(part[None], n_fft=config.n_fft, hop=config.hop), (moment - start) / part.shape[1]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, and draw."""
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
