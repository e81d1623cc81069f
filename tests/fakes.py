"""Stand-ins: a backend that needs no model, a slow command, and songs of noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.inference.overlap_add import SegmentPlan, plan_segments

STEMS = ("vocals", "drums", "bass", "other")
SHARES = (0.5, 0.25, 0.125, 0.125)  # each stem's share of the mixture: exact in binary, with a sum of one


@dataclass
class FakeBackend:
    """Splits every segment into fixed shares; `edges`, if given, replaces the samples that lack context."""

    segment_samples: int = 8192
    margin_samples: int = 1024
    sample_rate: int = 44_100
    shares: tuple[float, ...] = SHARES
    stems: tuple[str, ...] = STEMS
    channels: int = 2
    name: str = "fake"
    device: str = "cpu"
    precision: str = ""
    workers: int = 1
    batch_size: int = 1
    notes: tuple[str, ...] = ()
    edges: float | None = None
    calls: int = 0
    fail_at: int | None = None  # call that raises
    failure: type[BaseException] = RuntimeError

    @property
    def plan(self) -> SegmentPlan:
        return plan_segments(segment=self.segment_samples, margin=self.margin_samples)

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """(b, c, n) to (b, k, c, n)."""
        assert segments.dtype == np.float32 and segments.shape[1:] == (self.channels, self.segment_samples)
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.failure("asked to fail")
        stems = segments[:, None] * np.array(self.shares, np.float32)[:, None, None]
        if self.edges is not None and self.margin_samples:
            stems[..., : self.margin_samples] = self.edges
            stems[..., -self.margin_samples :] = self.edges
        return stems if stem_matrix is None else np.einsum("ks,bscn->bkcn", stem_matrix, stems)


@dataclass
class EvenBackend(FakeBackend):
    """A quarter of the mixture for each stem, in the guise of the bundled model."""

    segment_samples: int = 44_100
    margin_samples: int = 4_410
    shares: tuple[float, ...] = (0.25,) * 4
    name: str = "onnx"
    precision: str = "int8"


# The command with a fake model that takes its time and says when it begins.
SLOW_COMMAND = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fakes import EvenBackend
from tfswa_sep import registry, separator
from tfswa_sep.cli import main
class Slow(EvenBackend):
    def __call__(self, segments, *, stem_matrix=None):
        print("working", file=sys.stderr, flush=True)
        time.sleep(0.2)
        return super().__call__(segments, stem_matrix=stem_matrix)
registry.fetch = lambda *_, **options: None
separator.load_backend = lambda *_, **__: Slow()
main.main()
"""


def write_song(
    path: Path,
    *,
    seconds: float = 0.2,
    rate: int = 44_100,
    channels: int = 2,
    subtype: str | None = None,
    seed: int = 0,
    change: Callable[[NDArray[np.float32]], object] | None = None,
) -> Path:
    """Noise in the format of the file's extension; `change` may alter the samples (n, c) in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(rate * seconds), channels)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)
    if change:
        change(samples)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path
