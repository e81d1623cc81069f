"""The PyTorch backend: CUDA, MPS, or the CPU.

What goes wrong on the way is mended, and noted: where 16 bits give numbers that are not finite the segment is
computed again in 32; where memory runs out, with half as many segments a call, then with shorter ones.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference.features import Floats, band_features
from tfswa_sep.inference.hardware import choose_workers, count_cores
from tfswa_sep.inference.mask_apply import apply_masks
from tfswa_sep.inference.metadata import KEY, ModelMetadata, contradicts, parse_metadata
from tfswa_sep.inference.overlap_add import overlap_add, plan_segments
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.model import stft_torch
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet, with_current_names

MAX_BATCH_SIZE = 16  # segments: more fill any GPU, and make the first stem wait
# What torch, CUDA's libraries, Metal and C++ say when memory runs out, in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc")
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchBackend:
    """A model in a safetensors file; see backend.Backend.

    precision: "auto" computes in bfloat16 or float16 where the device is faster with them, else "fp32".
    threads: of the CPU; each of `workers` calls at once gets its share: on two cores 3 minutes took 0.77 of
    the time that one segment after the other took on both, in bfloat16 0.66 (measured).
    Raises ModelError if the file is damaged or no model of tfswa-sep, DeviceError if the device is not there
    or cannot compute.
    """

    name = "torch"

    def __init__(
        self, path: Path, *, device: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> None:
        self._device = _pick_device(device)
        self.device = str(self._device)
        self.workers = 1  # a GPU spreads one call over all it has
        self._threads = 1  # of a call, on a CPU
        if self._device.type == "cpu":
            count = threads or count_cores() or torch.get_num_threads()
            self.workers = choose_workers(count)
            self._threads = count // self.workers
        self._path = path
        network, self.metadata = load_network(path)
        network = _fold_following_norms(network.eval())
        try:
            _probe(self._device)
            self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        except RuntimeError as error:
            raise DeviceError(f"{self.device} cannot be used ({_reason(error)}): use --device cpu") from None
        self.stems = self.metadata.stems
        self.sample_rate = self.metadata.sample_rate
        self.channels = self.metadata.channels
        self.segment_samples = self.metadata.segment_samples
        self.margin_samples = self.metadata.margin_samples
        self._half = _half_precision(self._device) if precision == "auto" else None
        self.precision = "fp32" if self._half is None else _NAMES[self._half]
        self._most = MAX_BATCH_SIZE  # segments at once that memory bears, as far as is known
        self._longest = self.segment_samples  # likewise, samples of a segment
        self._redone = 0  # calls that 16 bits were too few for

    @cached_property
    def batch_size(self) -> int:
        """Segments that the memory of a GPU holds at once; one on a CPU, which gains nothing by more."""
        if self._device.type != "cuda":
            return 1
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self(np.zeros((1, self.channels, self.segment_samples), np.float32))
        needed = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        return fitting(torch.cuda.mem_get_info(self._device)[0], needed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended so far."""
        found = []
        if self._most < MAX_BATCH_SIZE or self._longest < self.segment_samples:
            seconds = self._longest / self.sample_rate
            found.append(
                f"{self.device} ran out of memory, so the load was reduced to segments of {seconds:.1f} s, "
                f"at most {self._most} per call"
            )
        if self._redone:
            found.append(
                f"{self.precision} gave NaN or infinite values, "
                f"so fp32 was used instead ({self._redone} times)"
            )
        return tuple(found)

    def __call__(self, segments: Floats, *, stem_matrix: Floats | None = None) -> Floats:
        """Separate (b, c, n) into (b, s, c, n), or into (b, k, c, n) with a (k, s) matrix; see Backend."""
        if len(segments) > self._most:
            parts = [segments[i : i + self._most] for i in range(0, len(segments), self._most)]
            return np.concatenate([self(part, stem_matrix=stem_matrix) for part in parts])
        if segments.shape[-1] > self._longest:
            plan = plan_segments(segment=self._longest, margin=self.margin_samples)
            run = partial(self, stem_matrix=stem_matrix)
            return np.stack([np.concatenate([*overlap_add([item], run, plan)], axis=-1) for item in segments])
        try:
            return self._separate(segments, stem_matrix)
        except (RuntimeError, ValueError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise ModelError(
                    f"{self._path} cannot be run ({_reason(error)}): download it again"
                ) from None
        self._reduce_load(*segments.shape[::2])  # not in the handler, whose traceback holds the memory
        return self(segments, stem_matrix=stem_matrix)

    def _separate(self, segments: Floats, stem_matrix: Floats | None) -> Floats:
        waves = self._compute(segments, stem_matrix, self._half)
        if self._half is not None and not np.isfinite(waves.sum()):
            self._redone += 1
            waves = self._compute(segments, stem_matrix, None)
        return waves

    def _compute(self, segments: Floats, stem_matrix: Floats | None, half: torch.dtype | None) -> Floats:
        if self._device.type == "cpu":
            # What lies around the network in NumPy, a tile after the other: a segment takes 0.88 of the time
            # that torch's operations on whole maps took, with 16 bits 0.80 (measured).
            config = self._network.config
            spectrum = stft(segments, n_fft=config.n_fft, hop=config.hop)
            masks = self._raw_masks(band_features(spectrum, config), half=half)
            return apply_masks(masks, spectrum, segments, config, stem_matrix)
        return self._compute_on_device(segments, stem_matrix, half)

    def _compute_on_device(
        self, segments: Floats, stem_matrix: Floats | None, half: torch.dtype | None
    ) -> Floats:
        """All of it on the device, so that only waves travel."""
        n_fft, hop = self.metadata.n_fft, self.metadata.hop
        with torch.inference_mode(), _current(self._device):
            mixture = torch.from_numpy(np.ascontiguousarray(segments)).to(self._device)
            spectrum = stft_torch.stft(mixture, n_fft=n_fft, hop=hop)
            # The network alone: transforms and sums of stems take no 16 bits.
            with torch.autocast(self._device.type, dtype=half, enabled=half is not None):
                stems = self._network(spectrum)
            stems = stems.float()
            if stem_matrix is not None:
                stems = torch.einsum("ks,bs...->bk...", torch.from_numpy(stem_matrix).to(self._device), stems)
            waves = stft_torch.istft(stems, n_fft=n_fft, hop=hop, length=segments.shape[-1])
            return waves.cpu().numpy()

    def _raw_masks(self, bands: list[Floats], *, half: torch.dtype | None) -> list[Floats]:
        autocast = torch.autocast("cpu", dtype=half, enabled=half is not None)
        with torch.inference_mode(), _threads(self._threads), autocast:
            found = self._network.raw_masks([torch.from_numpy(band) for band in bands])
        return [masks.contiguous().numpy() for masks in found]

    def _reduce_load(self, batch: int, samples: int) -> None:
        """Halve the batch, or the segments. Raises DeviceError where they would become too short."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        if batch > 1:  # another thread may know of less already
            self._most = min(self._most, batch // 2)
            return
        shorter = samples // 2 // self.metadata.hop * self.metadata.hop
        if shorter <= 4 * self.margin_samples:  # most of the work would go into context
            raise DeviceError(
                f"{self.device} ran out of memory while separating: close other programs or use --device cpu"
            )
        self._longest = min(self._longest, shorter)


def fitting(free: int, needed: int) -> int:
    """How many segments that take `needed` bytes each to compute at once in `free` bytes, at least one.

    A fifth of the memory is left to what else happens there.
    """
    return max(1, min(MAX_BATCH_SIZE, int(0.8 * free / max(needed, 1))))


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make it the one that torch asks about: of several CUDA cards that is the first, whichever is used."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in this one; others, the caller's own work too, keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(device: torch.device) -> None:
    """Compute a little: a card can be seen and yet be too old for this build. Raises RuntimeError."""
    torch.ones(1, device=device).add(1).item()


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(sign in text for sign in _OUT_OF_MEMORY)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit numbers that a device is faster with than with float32."""
    if device.type == "cuda":
        with _current(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if device.type == "cpu" and processor_multiplies_bf16() else None


def processor_multiplies_bf16() -> bool:
    """Whether it does so itself (AMX, AVX512-BF16): emulated, bfloat16 is many times slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


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
            if not _fits(config, metadata, with_current_names(shapes)):
                raise ModelError(f"{path} is damaged: its weights do not match the model that it describes")
            weights = with_current_names({key: file.get_tensor(key) for key in shapes})
    except ModelError:
        raise
    except Exception as error:  # what a hostile configuration makes torch raise can be anything
        raise ModelError(
            f"{path} is damaged or not a safetensors model ({_reason(error)}): download it again"
        ) from None
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise ModelError(f"{path} is damaged: it has NaN or infinite weights")
    network = TfswaUNet(config)
    types = {key: value.dtype for key, value in network.state_dict().items()}
    network.load_state_dict({key: value.to(types[key]) for key, value in weights.items()})
    return network, metadata


def _fold_following_norms(network: TfswaUNet) -> TfswaUNet:
    """Let convolutions do the work of the batch norms that follow them: a twentieth less time (measured)."""
    for layers in network.modules():
        if isinstance(layers, nn.Sequential):
            for i, (conv, norm) in enumerate(pairwise(layers)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


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
        raise DeviceError("PyTorch found no CUDA device: use --device cpu, or install a CUDA build of torch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{wanted} does not exist: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("MPS needs a Mac with Apple silicon: use --device cpu")
    return device
