"""Training mixtures: which stems are known, and what augmentation must not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from tfswa_sep.constants import STEMS
from training.mixing.mixer import Mixer
from training.mixing.pools import Pools
from training.mixing.settings import MixSettings

RATE = 44_100
CHUNK = 0.3  # seconds
AS_IS: dict[str, Any] = {
    "codec": 0.0,
    "master": 0.0,
    "song_voice": 0.0,
    "equalizer": 0.0,
    "low_cut": {},
    "high_cut": {},
}


def edit_manifest(pools: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Pass every row of the manifest through `change`; None drops it."""
    path = pools / "manifest.json"
    content = json.loads(path.read_text())
    content["sources"] = [new for row in content["sources"] if (new := change(row)) is not None]
    path.write_text(json.dumps(content))


def only(kind: str, **settings: Any) -> MixSettings:
    return MixSettings(seconds=CHUNK, kinds={kind: 1.0}, **settings)


def test_a_batch_depends_only_on_seed_and_step(pools: Path) -> None:
    settings = MixSettings(seconds=CHUNK)
    first, second = Mixer(pools, settings, seed=3), Mixer(pools, settings, seed=3)
    forwards = [first.batch(step, 2) for step in (0, 7)]
    backwards = [second.batch(step, 2) for step in (7, 0)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(forwards[0][0], forwards[1][0])
    assert not torch.equal(forwards[0][0][0], forwards[0][0][1])
    assert not torch.equal(forwards[0][0], Mixer(pools, settings, seed=4).batch(0, 2)[0])


@pytest.mark.parametrize("kind", ["stems", "song"])
def test_known_stems_sum_to_the_mixture(pools: Path, kind: str) -> None:
    mixture, stems, known = Mixer(pools, only(kind, codec=0.0, master=0.5)).batch(0, 6)
    assert mixture.shape == (6, 2, round(CHUNK * RATE)) and stems.shape == (6, 4, *mixture.shape[1:])
    assert mixture.dtype == stems.dtype == known.dtype == torch.float32
    assert mixture.abs().amax(dim=(1, 2)).min() > 0.01
    torch.testing.assert_close(stems.sum(dim=1), mixture, atol=2e-6, rtol=0)
    assert known.all()


def test_stems_of_a_song_are_cut_at_the_same_position(pools: Path) -> None:
    _, stems, _ = Mixer(pools, only("song", **AS_IS)).batch(0, 4)
    for example in stems:
        assert torch.corrcoef(example.flatten(1)).min() > 0.99


def test_stems_of_the_album_get_the_levels_of_a_mix(own_pools: Path) -> None:
    """Recorded 20 dB apart, they get the levels of `level`; stems by the teacher keep theirs."""

    def soften(row: dict[str, Any]) -> dict[str, Any]:
        if row["pool"] == "song" and row["stem"] == "bass":
            path = own_pools / row["array"]
            np.save(path, np.load(path) // 10)
        return row

    edit_manifest(own_pools, soften)
    settings = only("song", **AS_IS, mixed_songs=True, level_spread=0.0, mono=0.0)

    def bass_below_drums() -> float:
        _, stems, _ = Mixer(own_pools, settings).batch(0, 8)
        power = stems.square().mean(dim=(0, 2, 3))
        return float(10 * (power[1] / power[2]).log10())

    assert bass_below_drums() == pytest.approx(2, abs=1)
    edit_manifest(own_pools, lambda row: {**row, "teacher": "one"} if row["pool"] == "song" else row)
    assert bass_below_drums() > 12


def test_stems_of_different_songs_are_uncorrelated(pools: Path) -> None:
    settings = only("stems", drop=dict.fromkeys(STEMS, 0.0), **AS_IS)
    _, stems, _ = Mixer(pools, settings).batch(0, 2)
    for example in stems:
        assert (torch.corrcoef(example.flatten(1)) - torch.eye(4)).abs().max() < 0.2


def test_accompaniment_is_not_a_stem(pools: Path) -> None:
    settings = only("accompaniment", drop={"vocals": 0.0, "accompaniment": 0.0}, codec=0.0)
    mixture, stems, known = Mixer(pools, settings).batch(0, 4)
    assert torch.equal(known, torch.tensor([[1.0, 0, 0, 0]]).expand(4, 4))
    assert stems[:, 1:].abs().max() == 0
    rest = mixture - stems[:, 0]
    assert stems[:, 0].abs().amax(dim=(1, 2)).min() > 0.01 and rest.abs().amax(dim=(1, 2)).min() > 0.01


def test_masked_stems_of_a_song_are_unknown(own_pools: Path) -> None:
    def mask(row: dict[str, Any]) -> dict[str, Any] | None:
        if row.get("stem") == "bass":
            return None
        return {**row, "masked": ["bass", "other"]} if row["pool"] == "song" else row

    edit_manifest(own_pools, mask)
    mixture, stems, known = Mixer(own_pools, only("song", **AS_IS)).batch(0, 3)
    assert torch.equal(known, torch.tensor([[1.0, 1, 0, 0]]).expand(3, 4))
    assert stems[:, 2].abs().max() == 0 < stems[:, 3].abs().max()
    torch.testing.assert_close(stems.sum(dim=1), mixture, atol=2e-6, rtol=0)


def test_mixtures_are_finite_and_within_full_scale(pools: Path) -> None:
    loud = only("stems", level_spread=30.0)
    for settings in (MixSettings(seconds=CHUNK), loud):
        mixture, stems, _ = Mixer(pools, settings).batch(1, 8)
        assert torch.isfinite(mixture).all() and torch.isfinite(stems).all()
        assert mixture.abs().max() <= 1 + 1e-6


def test_a_peak_is_held_at_full_scale(own_pools: Path) -> None:
    """Clicks have high peaks and little power."""
    for path in own_pools.glob("*/*.npy"):
        clicks = np.zeros_like(np.load(path))
        clicks[::4000] = 32_000
        np.save(path, clicks)
    mixture, _, _ = Mixer(own_pools, only("song", **AS_IS)).batch(0, 4)
    assert mixture.abs().amax(dim=(1, 2)).tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def test_silence_is_mixed_without_a_nan(own_pools: Path) -> None:
    for path in own_pools.glob("*/*.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    for kind in ("stems", "accompaniment", "song"):
        mixture, stems, _ = Mixer(own_pools, only(kind)).batch(0, 2)
        assert mixture.abs().max() == 0 and stems.abs().max() == 0


def test_a_low_cut_removes_the_lows_of_other_only(pools: Path) -> None:
    """The stems are scaled copies: they differ only by the cut."""

    def lows(probability: float) -> Tensor:
        settings = only("band", **{**AS_IS, "low_cut": {"band": probability}})
        stems = Mixer(pools, settings).batch(0, 8)[1].mean(dim=2)
        low: Tensor = torch.fft.rfft(stems).abs().square()[..., : round(60 * CHUNK)].sum(dim=-1)
        return low / stems.square().sum(dim=-1)

    free, cut = lows(0.0), lows(1.0)
    assert (cut[:, 3] < 0.3 * free[:, 3]).all()
    torch.testing.assert_close(cut[:, 1:3], free[:, 1:3], rtol=1e-3, atol=1e-6)


def test_a_high_cut_removes_the_treble_of_the_bass_only(pools: Path) -> None:
    def treble(probability: float) -> Tensor:
        settings = only("band", **{**AS_IS, "high_cut": {"band": probability}})
        stems = Mixer(pools, settings).batch(0, 8)[1].mean(dim=2)
        high: Tensor = torch.fft.rfft(stems).abs().square()[..., round(1000 * CHUNK) :].sum(dim=-1)
        return high / stems.square().sum(dim=-1)

    free, cut = treble(0.0), treble(1.0)
    assert (cut[:, 2] < 0.3 * free[:, 2]).all()
    torch.testing.assert_close(cut[:, 1::2], free[:, 1::2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("empty", ["vocals", "bass", "accompaniment"])
def test_an_empty_pool_is_reported(own_pools: Path, empty: str) -> None:
    edit_manifest(own_pools, lambda row: None if row["pool"] == empty else row)
    with pytest.raises(
        ValueError, match=rf"the pool '{empty}' is empty; run python -m training\.corpus\.build"
    ):
        Mixer(own_pools, MixSettings(seconds=CHUNK))


@pytest.mark.parametrize("length", [2000, 30_000])  # under and over a chunk
def test_a_chunk_never_crosses_a_segment(own_pools: Path, length: int) -> None:
    gap, level, poison = 100, 1000, 30_000
    samples = np.full((10 * (length + gap), 1), poison, np.int16)
    segments = [(i * (length + gap) + gap, (i + 1) * (length + gap)) for i in range(10)]
    for i, (start, end) in enumerate(segments):
        samples[start:end] = (i + 1) * level
    np.save(own_pools / "drums/stereo.npy", samples)
    edit_manifest(own_pools, lambda row: {**row, "segments": segments} if row["pool"] == "drums" else row)
    (drums,) = Mixer(own_pools, only("stems")).pools.recordings["drums"]
    wanted = 14_000
    for seed in range(50):
        chunk = drums.read(wanted, np.random.default_rng(seed), sample_rate=RATE)
        assert chunk.shape == (1, wanted)
        values = np.rint(chunk[0].numpy() * 32_768).astype(int)
        edges = np.flatnonzero(np.diff(values)) + 1
        pieces = [part for part in np.split(values, edges) if part[0] != 0]  # zeros are pauses
        assert set(values) <= {0, *range(level, 10 * level + 1, level)}
        if length > wanted:
            assert len(pieces) == 1 and len(pieces[0]) == wanted
        else:
            assert len(pieces) > 1
            assert all(len(piece) == length for piece in pieces[:-1]) and len(pieces[-1]) <= length


def treble(x: Tensor, hertz: float) -> float:
    """Share of the power of (..., n) above `hertz`."""
    power = torch.fft.rfft(x.double() * torch.hann_window(x.shape[-1])).abs().square()
    first = int(hertz * x.shape[-1] / RATE)
    return float(power[..., first:].sum() / power.sum())


@pytest.mark.parametrize("kind", ["stems", "accompaniment", "song"])
def test_a_voice_without_treble_is_mixed_with_music_without_treble(own_pools: Path, kind: str) -> None:
    edit_manifest(
        own_pools, lambda row: row | {"bandwidth_hz": 8000.0 if row["pool"] == "vocals" else 20_000.0}
    )
    settings = only(kind, pitch=dict.fromkeys((*STEMS, "accompaniment", "song"), 0.0))
    mixture, stems, _ = Mixer(own_pools, settings).batch(0, 4)
    assert mixture.abs().max() > 0.01
    assert treble(mixture, 9000) < 1e-3 and treble(stems, 9000) < 1e-3
    edit_manifest(own_pools, lambda row: row | {"bandwidth_hz": 20_000.0})
    whole, _, _ = Mixer(own_pools, only(kind, codec=0.0)).batch(0, 4)
    assert treble(whole, 9000) > 0.05


def test_the_codec_removes_treble_from_all_stems_and_adds_noise_to_the_mixture_only(pools: Path) -> None:
    mixture, stems, known = Mixer(pools, only("stems", codec=1.0)).batch(0, 4)
    assert known.all()
    noise = mixture - stems.sum(dim=1)
    share = noise.square().sum(dim=(1, 2)) / mixture.square().sum(dim=(1, 2))
    assert share.min() > 1e-4 and share.max() < 0.5
    assert treble(stems, 20_900) < 1e-4 and treble(mixture, 20_900) < 1e-3


def test_a_song_can_get_another_voice(pools: Path) -> None:
    _, stems, known = Mixer(pools, only("song", **AS_IS | {"song_voice": 1.0})).batch(0, 6)
    assert known.all()
    for example in stems:
        assert torch.corrcoef(example[1:].flatten(1)).min() > 0.99
        assert torch.corrcoef(example[:2].flatten(1))[0, 1].nan_to_num().abs() < 0.3


def test_a_song_with_estimated_stems_keeps_its_voice(own_pools: Path) -> None:
    edit_manifest(own_pools, lambda row: row | ({"teacher": "one"} if row["pool"] == "song" else {}))
    _, stems, _ = Mixer(own_pools, only("song", **AS_IS | {"song_voice": 1.0})).batch(0, 4)
    for example in stems:
        assert torch.corrcoef(example.flatten(1)).min() > 0.99


def test_songs_with_estimated_stems_can_be_drawn_less_often(own_pools: Path) -> None:
    mixer = Mixer(own_pools, only("song", **AS_IS, estimated_songs=0.25))
    (song,) = mixer.pools.songs["song"].values()
    estimated = replace(song, estimated=True, masked=["drums"])
    mixer.pools.songs["song"] = {"estimated": estimated, "true": song}
    known = mixer.batch(0, 60)[2][:, STEMS.index("drums")]
    assert 0.65 < known.mean() < 0.95  # expected: 0.8; with equal weights: 0.5


def test_voices_are_drawn_by_kind_and_then_by_the_square_root_of_their_minutes(own_pools: Path) -> None:
    """Two sources of speech, one nine times as long as the other, and one sung in a song."""
    minutes = {"mono": 9.0, "takes": 1.0}

    def kinds(row: dict[str, Any]) -> dict[str, Any]:
        if row["pool"] != "vocals":
            return row
        return row | {"voice": "speech", "minutes": minutes[row["source"]]}

    edit_manifest(own_pools, kinds)
    path = own_pools / "manifest.json"
    content = json.loads(path.read_text())
    (mono,) = (row for row in content["sources"] if row["source"] == "mono")
    content["sources"].append(mono | {"source": "album", "voice": "song"})
    path.write_text(json.dumps(content))

    def shares(voices: dict[str, float]) -> list[float]:
        pools, rng = Pools(own_pools, torch.device("cpu"), voices=voices), np.random.default_rng(0)
        drawn = [pools.draw("vocals", rng) for _ in range(4000)]
        return [sum(d is recording for d in drawn) / len(drawn) for recording in pools.recordings["vocals"]]

    assert shares({"speech": 0.2, "song": 0.3, "singing": 0.5}) == pytest.approx([0.3, 0.1, 0.6], abs=0.04)
    assert shares({"song": 1.0}) == [0, 0, 1]
    with pytest.raises(ValueError, match=r"no voices of the requested kinds, only \['song', 'speech'\]"):
        shares({"singing": 1.0})


def test_a_compressed_voice_has_less_dynamic(own_pools: Path) -> None:
    edit_manifest(own_pools, lambda row: None if row["source"] == "takes" else row)  # they have pauses
    samples = np.load(own_pools / "vocals/mono.npy")
    soft = np.arange(len(samples)) // 6615 % 2 == 1
    np.save(own_pools / "vocals/mono.npy", np.where(soft[:, None], samples // 8, samples))
    none = {"room": dict.fromkeys(MixSettings().room, 0.0), "voice": dict.fromkeys(MixSettings().voice, 0.0)}
    drop = {"vocals": 0.0, "accompaniment": 0.0}

    def dynamic(compress: float) -> float:
        settings = only("accompaniment", drop=drop, compress=compress, echo=0.0, **none, **AS_IS)
        vocals = Mixer(own_pools, settings).batch(0, 32)[1][:, 0]
        frames = vocals[..., : vocals.shape[-1] // 441 * 441].reshape(32, 2, -1, 441)
        levels = frames.square().mean(dim=(1, 3))
        return float((levels.quantile(0.9, dim=1) / levels.quantile(0.1, dim=1)).log10().mean())

    assert dynamic(1.0) < 0.95 * dynamic(0.0)


def test_a_voice_stays_in_the_centre_unless_it_is_panned(own_pools: Path) -> None:
    edit_manifest(own_pools, lambda row: None if row["source"] == "takes" else row)  # leaves the mono one

    def sides(pan: float) -> float:
        settings = only(
            "accompaniment",
            mono=0.0,
            room={"vocals": 0.0, "accompaniment": 0.0},
            second={},
            voice=dict.fromkeys(MixSettings().voice, 0.0),
            echo=0.0,
            pan={"vocals": pan, "accompaniment": 0.0},
            **AS_IS,
        )
        _, stems, _ = Mixer(own_pools, settings).batch(0, 4)
        return float((stems[:, 0, 0] - stems[:, 0, 1]).abs().max())

    assert sides(0.0) < 1e-6 < 0.01 < sides(1.0)


@pytest.mark.parametrize("estimated", [False, True])
def test_only_estimated_stems_of_a_song_share_an_equalizer(own_pools: Path, estimated: bool) -> None:
    """The stems are scaled copies of one noise: with the same equalizer they stay correlated."""
    row = {"teacher": "one"} if estimated else {}
    edit_manifest(own_pools, lambda r: r | (row if r["pool"] == "song" else {}))
    _, stems, _ = Mixer(own_pools, only("song", **AS_IS | {"equalizer": 6.0})).batch(0, 4)
    correlation = torch.stack([torch.corrcoef(example.flatten(1)).min() for example in stems])
    assert correlation.min() > 0.99 if estimated else correlation.max() < 0.98


def test_an_unfinished_band_is_not_used(own_pools: Path) -> None:
    assert set(Pools(own_pools, torch.device("cpu"), voices={"singing": 1.0}).songs["band"]) == {"b"}
    edit_manifest(own_pools, lambda row: None if row["source"] == "b.bass" else row)
    assert not Pools(own_pools, torch.device("cpu"), voices={"singing": 1.0}).songs["band"]


def test_a_band_gets_a_voice(pools: Path) -> None:
    settings = only("band", drop={"vocals": 0.0}, **AS_IS)
    mixture, stems, known = Mixer(pools, settings).batch(0, 4)
    assert known.all()
    torch.testing.assert_close(stems.sum(dim=1), mixture, atol=2e-6, rtol=0)
    for example in stems:
        assert torch.corrcoef(example[1:].flatten(1)).min() > 0.99
        assert example[0].abs().max() > 0.01
        assert torch.corrcoef(example[:2].flatten(1))[0, 1].abs() < 0.3
