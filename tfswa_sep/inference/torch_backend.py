"""The PyTorch backend: CUDA, MPS, or the CPU.

It recovers from two failures and reports them in `notes`: a segment for which 16 bits overflow is repeated in fp32,
and one for which memory runs out with half the batch, then with half its length.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples.
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

MAX_BATCH_SIZE = 16  # segments per call: more gain nothing on any GPU, and delay the first samples
# How torch, CUDA's libraries, Metal and C++ report it, in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc")
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchBackend:
    """A model in a safetensors file; see backend.Backend.

    On a CPU, `workers` concurrent calls share the threads: with two workers on two cores a song of 3 minutes took
    0.77 of the time of one worker on both, in bfloat16 0.66 (measured).

    Args:
        path: The file.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps".
        precision: "fp32", or "auto": bfloat16 or float16 if the device is faster with them.
        threads: CPU threads; None for one per physical core.

    Raises:
        ModelError: The file is damaged or not a tfswa-sep model.
        DeviceError: The device is missing or cannot compute.
    """

    name = "torch"

    def __init__(
        self, path: Path, *, device: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> None:
        self._device = _select_device(device)
        self.device = str(self._device)
        self.workers = 1  # one call keeps a whole GPU busy
        self._threads = 1  # per call, on a CPU
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
        self.plan = plan_segments(segment=self.segment_samples, margin=self.margin_samples)
        self._half = _half_precision(self._device) if precision == "auto" else None
        self.precision = "fp32" if self._half is None else _PRECISIONS[self._half]
        self._max_batch = MAX_BATCH_SIZE  # segments per call, reduced when memory runs out
        self._max_samples = self.segment_samples  # per segment, likewise
        self._fp32_calls = 0  # calls repeated in fp32 because 16 bits overflowed

    @cached_property
    def batch_size(self) -> int:
        """As many segments as fit into a GPU's memory; one on a CPU, where more gain nothing."""
        if self._device.type != "cuda":
            return 1
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self(np.zeros((1, self.channels, self.segment_samples), np.float32))
        needed = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        return segments_that_fit(torch.cuda.mem_get_info(self._device)[0], needed)

    @property
    def notes(self) -> tuple[str, ...]:
        """See Backend."""
        notes = []
        if self._max_batch < MAX_BATCH_SIZE or self._max_samples < self.segment_samples:
            seconds = self._max_samples / self.sample_rate
            notes.append(
                f"{self.device} ran out of memory, so the load was reduced to segments of {seconds:.1f} s, "
                f"at most {self._max_batch} per call"
            )
        if self._fp32_calls:
            notes.append(
                f"{self.precision} gave NaN or infinite values, "
                f"so fp32 was used instead ({self._fp32_calls} times)"
            )
        return tuple(notes)

    def __call__(self, segments: Floats, *, stem_matrix: Floats | None = None) -> Floats:
        """See Backend."""
        if len(segments) > self._max_batch:
            parts = [segments[i : i + self._max_batch] for i in range(0, len(segments), self._max_batch)]
            return np.concatenate([self(part, stem_matrix=stem_matrix) for part in parts])
        if segments.shape[-1] > self._max_samples:
            plan = plan_segments(segment=self._max_samples, margin=self.margin_samples)
            run = partial(self, stem_matrix=stem_matrix)
            return np.stack([np.concatenate([*overlap_add([item], run, plan)], axis=-1) for item in segments])
        try:
            return self._separate(segments, stem_matrix)
        except (RuntimeError, ValueError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise ModelError(
                    f"{self._path} cannot be run ({_reason(error)}): download it again"
                ) from None
        self._reduce_load(*segments.shape[::2])  # outside the handler, whose traceback keeps memory alive
        return self(segments, stem_matrix=stem_matrix)

    def fit_segment(self, samples: int) -> int:
        """See AnyLength."""
        config: ModelConfig = self._network.config
        return min(config.unpadded_samples(samples), self.plan.segment)

    def newest(self, segments: Floats, samples: int, *, stem_matrix: Floats | None = None) -> Floats:
        """See AnyLength."""
        return self(segments, stem_matrix=stem_matrix)[..., -samples:]

    def _separate(self, segments: Floats, stem_matrix: Floats | None) -> Floats:
        waves = self._compute(segments, stem_matrix, self._half)
        if self._half is not None and not np.isfinite(waves.sum()):
            self._fp32_calls += 1
            waves = self._compute(segments, stem_matrix, None)
        return waves

    def _compute(self, segments: Floats, stem_matrix: Floats | None, half: torch.dtype | None) -> Floats:
        if self._device.type == "cpu":
            # Features and masks in NumPy, tile by tile: a segment takes 0.88 of the time it took with torch's
            # operations on whole maps, in bfloat16 0.80 (measured).
            config = self._network.config
            spectrum = stft(segments, n_fft=config.n_fft, hop=config.hop)
            masks = self._run_network(band_features(spectrum, config), half=half)
            return apply_masks(masks, spectrum, segments, config, stem_matrix)
        return self._compute_on_device(segments, stem_matrix, half)

    def _compute_on_device(
        self, segments: Floats, stem_matrix: Floats | None, half: torch.dtype | None
    ) -> Floats:
        """STFT and masks on the device too, so that only waveforms are copied."""
        n_fft, hop = self.metadata.n_fft, self.metadata.hop
        with torch.inference_mode(), _current_device(self._device):
            mixture = torch.from_numpy(np.ascontiguousarray(segments)).to(self._device)
            spectrum = stft_torch.stft(mixture, n_fft=n_fft, hop=hop)
            # Only the network: the STFT and the sums of stems need fp32.
            with torch.autocast(self._device.type, dtype=half, enabled=half is not None):
                stems = self._network(spectrum)
            stems = stems.float()
            if stem_matrix is not None:
                stems = torch.einsum("ks,bs...->bk...", torch.from_numpy(stem_matrix).to(self._device), stems)
            waves = stft_torch.istft(stems, n_fft=n_fft, hop=hop, length=segments.shape[-1])
            return waves.cpu().numpy()

    def _run_network(self, bands: list[Floats], *, half: torch.dtype | None) -> list[Floats]:
        autocast = torch.autocast("cpu", dtype=half, enabled=half is not None)
        with torch.inference_mode(), _limit_threads(self._threads), autocast:
            bands_masks = self._network.raw_masks([torch.from_numpy(band) for band in bands])
        return [masks.contiguous().numpy() for masks in bands_masks]

    def _reduce_load(self, batch: int, samples: int) -> None:
        """Halve the batch, or else the segments. Raises DeviceError if they would become too short."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        if batch > 1:  # another thread may have reduced it further
            self._max_batch = min(self._max_batch, batch // 2)
            return
        shorter = samples // 2 // self.metadata.hop * self.metadata.hop
        if shorter <= 4 * self.margin_samples:  # most of the work would be context
            raise DeviceError(
                f"{self.device} ran out of memory while separating: close other programs or use --device cpu"
            )
        self._max_samples = min(self._max_samples, shorter)


def segments_that_fit(free: int, needed: int) -> int:
    """How many segments of `needed` bytes fit into `free` bytes of memory, a fifth of which is kept in reserve."""
    return max(1, min(MAX_BATCH_SIZE, int(0.8 * free / max(needed, 1))))


def _current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, which torch's queries and autocast refer to."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _limit_threads(count: int) -> Iterator[None]:
    """Let this thread's torch operations use `count` threads; other threads keep their setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(device: torch.device) -> None:
    """Run one operation: a GPU can be listed but too old for this torch build. Raises RuntimeError."""
    torch.ones(1, device=device).add(1).item()


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    is_typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_typed or any(phrase in text for phrase in _OUT_OF_MEMORY)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type in which a device is faster than in float32, if any."""
    if device.type == "cuda":
        with _current_device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_native_bf16() else None


def cpu_has_native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AMX, AVX512-BF16): emulation is many times slower than fp32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def load_network(path: Path) -> tuple[TfswaUNet, ModelMetadata]:
    """Build the network that a safetensors file describes, and load its weights (of any float type).

    The weights' shapes are compared with the configuration before the network is built, so that a hostile file
    costs no more time and memory than its size warrants.

    Raises:
        ModelError: The file is damaged, or its weights do not match its configuration.
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
    except Exception as error:  # a hostile configuration can make torch raise anything
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
    """Fold each batch norm that follows a convolution into it: a twentieth less time (measured)."""
    for layers in network.modules():
        if isinstance(layers, nn.Sequential):
            for i, (conv, norm) in enumerate(pairwise(layers)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


def _fits(config: ModelConfig, metadata: ModelMetadata, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a file's weights have the shapes of the network that it describes."""
    if contradicts(metadata, config):
        return False
    layers = sum(config.convs) + sum(config.attentions) + len(config.dims) + len(config.bands)
    if layers > len(shapes):  # each layer has at least one weight
        return False
    with torch.device("meta"):  # shapes only, no memory
        expected = TfswaUNet(config).state_dict()
    return shapes == {key: tuple(value.shape) for key, value in expected.items()}


def _select_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("PyTorch found no CUDA device: use --device cpu, or install a CUDA build of torch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name} does not exist: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("MPS needs a Mac with Apple silicon: use --device cpu")
    return device
