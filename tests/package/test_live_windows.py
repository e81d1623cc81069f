"""Live separation as a push object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes import SHARES, STEMS, FakeBackend
from numpy.typing import NDArray

from tfswa_sep import Separator
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.inference.live_windows import LiveWindows

Noise = Callable[..., NDArray[np.float32]]


def push_in_pieces(live: object, song: NDArray[np.float32], sizes: list[int]) -> NDArray[np.float32]:
    parts, start, i = [], 0, 0
    while start < song.shape[1]:
        block = song[:, start : start + sizes[i % len(sizes)]]
        stems = live.push(block)  # type: ignore[attr-defined]
        assert stems.samples == block.shape[1]
        parts.append(np.stack(list(stems.values())))
        start, i = start + block.shape[1], i + 1
    return np.concatenate(parts, axis=-1)


def test_the_stems_are_those_of_the_same_windows_offline(noise: Noise) -> None:
    separator = Separator("small", threads=1)
    live = separator.live(window=0.35, hop=0.1, lookahead=0.05)
    window, hop, ahead = 15_872, 4_410, 2_205
    assert live.delay_samples == hop + ahead and live.latency == (hop + ahead) / 44_100
    song = noise(2, 4 * hop + 123)
    pushed = push_in_pieces(live, song, [777, 1, 6_000, 512])
    padded = np.pad(song, ((0, 0), (window, 0)))
    results = [
        separator.network(padded[None, :, end : end + window])[0] for end in range(hop, song.shape[1], hop)
    ]
    expected = np.zeros((4, 2, len(results) * hop), np.float32)
    fade = 441
    weights = (np.arange(fade) + 0.5) / fade
    for i, result in enumerate(results):
        newest = result[..., window - hop - ahead : window - ahead].copy()
        if i:
            before = results[i - 1][..., window - ahead : window - ahead + fade]
            newest[..., :fade] = newest[..., :fade] * weights + before * (1 - weights)
        else:
            newest[..., :fade] *= weights
        expected[..., i * hop : (i + 1) * hop] = newest
    got = pushed[..., hop : hop + expected.shape[-1]]
    np.testing.assert_allclose(got, expected[..., : got.shape[-1]], atol=1e-5)
    assert not pushed[..., :hop].any()


@pytest.mark.parametrize("sizes", [[1024], [1], [4_000, 3], [333]])
def test_the_delay_is_constant_whatever_the_blocks(noise: Noise, sizes: list[int]) -> None:
    live = Separator(FakeBackend(segment_samples=4096)).live(window=0.09, hop=0.02, lookahead=0.01)
    song = noise(2, 6_000)
    pushed = push_in_pieces(live, song, sizes)
    delay = live.delay_samples
    assert delay == 882 + 441
    for stem, share in zip(pushed, SHARES, strict=True):
        np.testing.assert_allclose(stem[:, delay:], share * song[:, :-delay], atol=1e-6)
        assert not stem[:, : delay - 441].any()


def test_stems_can_be_chosen_and_add_up(noise: Noise) -> None:
    live = Separator(FakeBackend(segment_samples=4096)).live(
        stems="vocals,accompaniment", window=0.09, hop=0.02, lookahead=0.01
    )
    assert live.names == ("vocals", "accompaniment")
    song = noise(2, 5_000)
    pushed = push_in_pieces(live, song, [500])
    delay = live.delay_samples
    np.testing.assert_allclose(pushed.sum(axis=0)[:, delay:], song[:, :-delay], atol=1e-6)


def test_a_stem_of_the_song_is_the_song_minus_the_others(noise: Noise) -> None:
    backend = FakeBackend(segment_samples=4096, stems=("vocals",), shares=(0.5,))
    live = Separator(backend).live(stems="accompaniment", window=0.09, hop=0.02, lookahead=0.01)
    song = noise(2, 5_000)
    pushed = push_in_pieces(live, song, [500])[0]
    np.testing.assert_allclose(
        pushed[:, live.delay_samples :], 0.5 * song[:, : -live.delay_samples], atol=1e-6
    )


def test_silence_needs_no_network() -> None:
    backend = FakeBackend(segment_samples=4096)
    live = Separator(backend).live(window=0.09, hop=0.02, lookahead=0.01)
    assert not live.push(np.zeros((2, 9_000), np.float32))["vocals"].any() and backend.calls == 0


def test_the_stems_fade_out_and_in_around_a_skipped_hop(noise: Noise) -> None:
    backend = FakeBackend(segment_samples=4096)
    windows = LiveWindows(backend, np.eye(4, 5, dtype=np.float32), window=4096, lookahead=500)
    song = noise(2, 4_000)
    windows.advance(song[:, :1000])
    skipped = windows.skip(song[:, 1000:2000])
    fade = (np.arange(441) + 0.5) / 441
    np.testing.assert_allclose(skipped[0, :, :441], 0.5 * song[:, 500:941] * (1 - fade), atol=1e-6)
    assert not skipped[..., 441:].any()
    np.testing.assert_array_equal(windows.song(1000), song[:, 500:1500])
    after = windows.advance(song[:, 2000:3000])
    np.testing.assert_allclose(after[0, :, :441], 0.5 * song[:, 1500:1941] * fade, atol=1e-6)
    np.testing.assert_allclose(after[0, :, 441:], 0.5 * song[:, 1941:2500], atol=1e-6)
    assert backend.calls == 2


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"latency": "none"}, "low, normal, high"),
        ({"hop": 1.0}, "at most half"),
        ({"hop": 0.0}, "at most half"),
        ({"stems": "singer"}, "unknown stem"),
    ],
)
def test_wrong_choices_are_named(choices: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Separator(FakeBackend()).live(**choices)  # type: ignore[arg-type]


def test_wrong_blocks_are_named() -> None:
    live = Separator(FakeBackend(stems=STEMS)).live()
    for block, message in (
        (np.zeros((1, 5), np.float32), "2 channels"),
        (np.zeros(5, np.float32), "2 channels"),
        (np.full((2, 5), np.nan, np.float32), "not finite"),
        (np.zeros((2, 5), np.int16), "full scale"),
    ):
        with pytest.raises(InputError, match=message):
            live.push(block)  # type: ignore[arg-type]
