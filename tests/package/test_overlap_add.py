from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa_sep.inference.overlap_add import SegmentPlan, overlap_add, plan_segments

Samples = NDArray[np.float32]
Noise = Callable[..., Samples]
PLAN = SegmentPlan(segment=100, margin=15, fade=8)  # keeps 70, steps 62


def cut(samples: Samples, size: int) -> Iterator[Samples]:
    for start in range(0, samples.shape[1], size):
        yield samples[:, start : start + size]


def as_one_stem(segments: Samples) -> Samples:
    return segments[:, None]


@pytest.mark.parametrize("block", (1, 7, 100, 1000))
@pytest.mark.parametrize("length", (1, 8, 61, 62, 63, 69, 70, 71, 84, 85, 86, 99, 100, 101, 132, 133, 517))
def test_identity_gives_the_song_back(noise: Noise, length: int, block: int) -> None:
    song = noise(2, length, peak=1.0)
    out = np.concatenate(list(overlap_add(cut(song, block), as_one_stem, PLAN)), axis=-1)
    assert out.shape == (1, 2, length)
    np.testing.assert_allclose(out[0], song, atol=1e-6)


@pytest.mark.parametrize(("margin", "fade"), ((0, 0), (0, 20), (20, 0), (20, 30)))
def test_identity_with_and_without_margins_and_fades(noise: Noise, margin: int, fade: int) -> None:
    plan = SegmentPlan(segment=100, margin=margin, fade=fade)
    for length in (*range(95, 106), 230):
        song = noise(1, length)
        out = np.concatenate(list(overlap_add(cut(song, 33), as_one_stem, plan)), axis=-1)
        np.testing.assert_allclose(out[0], song, atol=1e-6)


def test_ten_minutes_in_the_default_plan_stream_through(noise: Noise) -> None:
    plan = plan_segments(segment=261_632, margin=22_050)
    piece = noise(1, 441_000, peak=1.0)  # 10 s
    twice = np.concatenate([piece, piece], axis=1)
    inside, error = 0, 0.0
    for block in overlap_add((piece for _ in range(60)), as_one_stem, plan):
        start = inside % piece.shape[1]
        error = max(error, float(np.abs(block[0] - twice[:, start : start + block.shape[-1]]).max()))
        inside += block.shape[-1]
    assert inside == 600 * 44_100
    assert error < 1e-5


def test_workers_compute_at_once_and_keep_the_order(noise: Noise) -> None:
    """Three segments are in work at the same time, the last of them done first."""
    together = threading.Barrier(3)
    finished: list[int] = []

    def slow_where_early(segments: Samples) -> Samples:
        place = together.wait(timeout=300)
        time.sleep(0.01 * place)
        finished.append(threading.get_ident())
        return as_one_stem(segments)

    song = noise(2, PLAN.kept + 5 * PLAN.step, peak=1.0)  # six segments
    out = np.concatenate(list(overlap_add(cut(song, 50), slow_where_early, PLAN, workers=3)), axis=-1)
    np.testing.assert_allclose(out[0], song, atol=1e-6)
    assert len(finished) == 6 and len(set(finished)) == 3


def test_a_worker_that_fails_ends_the_stream(noise: Noise) -> None:
    def fail(segments: Samples) -> Samples:
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        list(overlap_add(cut(noise(2, 517), 50), fail, PLAN, workers=2))


def test_margins_are_thrown_away(noise: Noise) -> None:
    def garbage_at_the_edges(segments: Samples) -> Samples:
        stems = segments[:, None].copy()
        stems[..., : PLAN.margin] = stems[..., -PLAN.margin :] = np.nan
        return stems

    song = noise(2, 1000)
    out = np.concatenate(list(overlap_add(cut(song, 50), garbage_at_the_edges, PLAN)), axis=-1)
    np.testing.assert_allclose(out[0], song, atol=1e-6)


def test_context_is_the_song_around_the_segment(noise: Noise) -> None:
    """A filter shorter than the margin must not notice that the song was cut."""
    kernel = np.hanning(31)

    def smooth(segments: Samples) -> Samples:
        return np.stack([[np.convolve(channel, kernel, "same") for channel in one] for one in segments])[
            :, None
        ]

    song = noise(1, 1000)
    out = np.concatenate(list(overlap_add(cut(song, 64), smooth, PLAN)), axis=-1)
    np.testing.assert_allclose(out[0, 0], np.convolve(song[0], kernel, "same"), atol=1e-5)


def test_neighbours_are_cross_faded_without_a_step() -> None:
    """Segments that disagree (0, 1, 0, 1, ...) must meet in ramps, not in jumps."""
    count = 0

    def alternate(segments: Samples) -> Samples:
        nonlocal count
        count += 1
        return np.full_like(segments, (count - 1) % 2)[:, None]

    out = np.concatenate(list(overlap_add([np.ones((1, 400), np.float32)], alternate, PLAN)), axis=-1)[0, 0]
    assert out.max() == 1 and out.min() == 0
    assert np.abs(np.diff(out)).max() <= 1 / PLAN.fade + 1e-6


def test_batches_change_nothing(noise: Noise) -> None:
    sizes = []

    def count(segments: Samples) -> Samples:
        sizes.append(len(segments))
        return segments[:, None]

    song = noise(2, 1000)
    out = np.concatenate(list(overlap_add(cut(song, 64), count, PLAN, batch_size=4)), axis=-1)
    np.testing.assert_allclose(out[0], song, atol=1e-6)
    assert sizes == [4, 4, 4, 4]  # ceil((1000 - 8) / 62) = 16 segments


def test_empty_stream_gives_nothing() -> None:
    assert list(overlap_add([], as_one_stem, PLAN)) == []
    assert list(overlap_add([np.zeros((2, 0), np.float32)], as_one_stem, PLAN)) == []


def test_output_comes_before_the_input_ends() -> None:
    read = 0

    def blocks() -> Iterator[Samples]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield np.ones((1, 50), np.float32)

    stream = overlap_add(blocks(), as_one_stem, PLAN)
    next(stream)
    assert read <= 3


@pytest.mark.parametrize(
    ("segment", "margin", "fade"), ((100, 50, 0), (100, -1, 0), (100, 10, 41), (100, 10, -1))
)
def test_impossible_plans_are_refused(segment: int, margin: int, fade: int) -> None:
    with pytest.raises(ValueError, match="cannot have margins"):
        SegmentPlan(segment=segment, margin=margin, fade=fade)
