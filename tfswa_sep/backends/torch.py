"""The PyTorch backend: CUDA, MPS, or the CPU (in bf16 where the processor multiplies it itself).

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from tfswa_sep.backends.metadata import KEY, ModelMetadata, contradicts, parse_metadata
from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.transform import istft, stft
from tfswa_sep.model.unet import TfswaUNet


class TorchBackend:
    """A model in a safetensors file; see backends.Backend.

    Raises ModelError if the file is damaged or no model of tfswa-sep, DeviceError if the device is not there.
    """

    name = "torch"
    workers = 1  # torch and GPUs spread one segment over all they have

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        self._device = _pick_device(device)
        self.device = str(self._device)
        if threads and self._device.type == "cpu":
            torch.set_num_threads(threads)
        self._path = path
        network, self.metadata = load_network(path)
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stems = self.metadata.stems
        self.sample_rate = self.metadata.sample_rate
        self.channels = self.metadata.channels
        self.segment_samples = self.metadata.segment_samples
        self.margin_samples = self.metadata.margin_samples

    def __call__(
        self, segment: NDArray[np.float32], *, mix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate (b, c, n) into (b, s, c, n), or into (b, k, c, n) with a (k, s) mix; see Backend."""
        n_fft, hop = self.metadata.n_fft, self.metadata.hop
        try:
            with torch.inference_mode(), self._autocast():
                mixture = torch.from_numpy(np.ascontiguousarray(segment)).to(self._device)
                stems = self._network(stft(mixture, n_fft=n_fft, hop=hop)).float()
                if mix is not None:
                    stems = torch.einsum("ks,bs...->bk...", torch.from_numpy(mix).to(self._device), stems)
                waves = istft(stems, n_fft=n_fft, hop=hop, length=segment.shape[-1])
                return waves.cpu().numpy()
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"memory of {self.device} ran out while separating: close other programs or use --device cpu"
            ) from None
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{self._path} cannot be run ({reason}): fetch it again") from None

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        # Emulated bf16 is many times slower than float32: only where the processor has AMX tiles.
        if self._device.type == "cpu" and torch.cpu._is_amx_tile_supported():
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()


def load_network(path: Path) -> tuple[TfswaUNet, ModelMetadata]:
    """Build the network that a safetensors file describes, and fill in its weights (of any float type).

    A hostile file costs no more time or memory than its own size is worth: nothing of the size that it claims
    is made before its weights have been found to fit.
    Raises ModelError if the file is damaged, or its weights do not fit its own configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = parse_metadata((file.metadata() or {}).get(KEY), file=str(path))
            config = ModelConfig.from_json(metadata.config)
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
            if not _fits(config, metadata, shapes):
                raise ModelError(f"{path} is damaged: its weights do not fit the model that it describes")
            weights = {key: file.get_tensor(key) for key in shapes}
    except ModelError:
        raise
    except Exception as error:  # what a hostile configuration makes torch raise can be anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is damaged or no safetensors model ({reason}): fetch it again") from None
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise ModelError(f"{path} is damaged: it has weights that are not finite numbers")
    network = TfswaUNet(config)
    types = {key: value.dtype for key, value in network.state_dict().items()}
    network.load_state_dict({key: value.to(types[key]) for key, value in weights.items()})
    return network, metadata


def _fits(config: ModelConfig, metadata: ModelMetadata, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether weights of these shapes are those of the network that a file describes."""
    if contradicts(metadata, config):
        return False
    layers = sum(config.convs) + sum(config.attentions) + len(config.dims) + len(config.bands)
    if layers > len(shapes):  # each has a weight at least
        return False
    with torch.device("meta"):  # shapes only, no memory
        expected = TfswaUNet(config).state_dict()
    return shapes == {key: tuple(value.shape) for key, value in expected.items()}


def _pick_device(wanted: str) -> torch.device:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "this PyTorch sees no CUDA device: use --device cpu, or install the CUDA build of torch"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no {wanted}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("MPS needs a Mac with Apple's own processor: use --device cpu")
    return device
