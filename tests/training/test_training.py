"""Training: losses, the loop, resuming, and validation."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from omegaconf import DictConfig
from tiny_model import TINY
from torch import Tensor, nn

from tfswa_sep.constants import STEMS
from tfswa_sep.inference.overlap_add import plan_segments
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.stft_torch import stft
from training import losses, run, train, validate
from training.configuration import load_config
from training.data.loader import Batch
from training.optimizer import WeightAverage
from training.release import export
from training.schedule import learning_rate

RATE = 44_100
CHUNK = 0.3  # seconds

# --- losses


def test_waveform_loss_by_hand() -> None:
    target = torch.zeros(1, 2, 2, 10)
    target[:, 0], target[:, 1] = 1.0, -3.0
    estimate = torch.zeros_like(target)
    for known, expected in (([[1, 1]], 2.0), ([[1, 0]], 1.0), ([[0, 1]], 3.0), ([[0, 0]], 0.0)):
        assert float(losses.waveform_l1(estimate, target, torch.tensor(known))) == pytest.approx(expected)


def spectral_error(difference: NDArray[np.float32], n_fft: int) -> float:
    """Mean |re| and |im| of the orthonormal STFT of (n,), in NumPy."""
    hop, window = n_fft // 4, np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    padded = np.pad(difference, n_fft // 2)
    frames = [padded[i : i + n_fft] * window for i in range(0, len(difference) + 1, hop)]
    spectrum = np.fft.rfft(np.array(frames)) / np.sqrt(n_fft)
    return float((np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2)


@pytest.mark.parametrize("n_ffts", [[512], [2048], [4096, 2048, 512]])
def test_spectral_loss_agrees_with_numpy(n_ffts: list[int]) -> None:
    """With 2048 the network's own spectrum is used without a transform."""
    random = np.random.default_rng(1)
    estimate, target = random.normal(size=(2, 2, 3, 2, 8192)).astype(np.float32)
    known = np.array([[1, 0, 1], [0, 0, 1]])
    errors = [
        [np.mean([spectral_error(x, n) for x in channels for n in n_ffts]) for channels in stems]
        for stems in estimate - target
    ]
    expected = 2 * (np.array(errors) * known).sum() / known.sum()
    waves = torch.from_numpy(estimate)
    found = losses.multi_resolution_stft_l1(
        waves,
        torch.from_numpy(target),
        torch.from_numpy(known),
        n_ffts=n_ffts,
        spectrum=stft(waves.flatten(0, 1)).view(2, 3, 4, 1025, -1),
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_sdr_loss_by_hand() -> None:
    target = torch.stack([torch.ones(2, 50), torch.zeros(2, 50)])[None]
    mixture = torch.ones(1, 2, 50)  # an energy of 100, so a floor of 1
    estimate = torch.stack([torch.full((2, 50), 0.9), torch.full((2, 50), 0.3)])[None]  # errors of 1 and 9
    sounding, silent = -10 * math.log10(101 / 2), -10 * math.log10(1 / 10)
    for known, expected in (
        ([[1, 0]], sounding),
        ([[0, 1]], silent),
        ([[1, 1]], (sounding + silent) / 2),
        ([[0, 0]], 0.0),
    ):
        loss = losses.negative_sdr(estimate, target, torch.tensor(known), mixture=mixture, floor=0.01)
        assert float(loss) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("floor", "lowest", "highest"), ((0.001, 0.0, 0.05), (1.0, 0.3, 0.6)))
def test_an_unsure_network_splits_a_tone_only_with_a_high_floor(
    floor: float, lowest: float, highest: float
) -> None:
    """The share with the lowest loss, for a tone that belongs to the stem with probability 0.45."""
    tone = torch.ones(1, 1, 1, 100)
    shares = torch.linspace(0, 1, 101)

    def loss(share: Tensor, target: Tensor) -> float:
        known, mixture = torch.ones(1, 1), tone[:, 0]
        return float(losses.negative_sdr(share * tone, target, known, mixture=mixture, floor=floor))

    costs = [0.45 * loss(share, tone) + 0.55 * loss(share, 0 * tone) for share in shares]
    assert lowest <= float(shares[int(np.argmin(costs))]) <= highest


def test_spectral_terms_agree_with_waveform_terms() -> None:
    """For spectra of waveforms L1 is equal, and by Parseval's theorem so is SDR."""
    estimate, target = torch.randn(2, 2, 3, 2, 32_768, generator=torch.Generator().manual_seed(0))
    mixture, known = target.sum(dim=1), torch.tensor([[1, 0, 1], [0, 0, 1]])
    spectrum = stft(estimate.flatten(0, 1)).view(2, 3, 4, 1025, -1)
    wanted = stft(target.flatten(0, 1)).view(2, 3, 4, 1025, -1)
    l1, sdr = losses.spectral_terms(spectrum, wanted, known, mixture=stft(mixture), floor=0.01)
    expected = losses.multi_resolution_stft_l1(estimate, target, known, n_ffts=[2048], spectrum=spectrum)
    assert float(l1) == pytest.approx(float(expected), rel=1e-5)
    expected = losses.negative_sdr(estimate, target, known, mixture=mixture, floor=0.01)
    assert float(sdr) == pytest.approx(float(expected), abs=0.05)  # dB; windows weigh the ends less


def test_unknown_stems_get_no_gradient() -> None:
    spectrum = torch.randn(1, 2, 4, 1025, 9, requires_grad=True)
    estimate = torch.randn(1, 2, 2, 4096, requires_grad=True)
    target, mixture, known = torch.randn(1, 2, 2, 4096), torch.randn(1, 2, 4096), torch.tensor([[1.0, 0.0]])
    wanted = stft(target.flatten(0, 1)).view(spectrum.shape)
    terms = [
        losses.waveform_l1(estimate, target, known),
        losses.negative_sdr(estimate, target, known, mixture=mixture, floor=0.01),
        losses.multi_resolution_stft_l1(estimate, target, known, n_ffts=[2048, 512], spectrum=spectrum),
        *losses.spectral_terms(spectrum, wanted, known, mixture=stft(mixture), floor=0.01),
    ]
    for term in terms:
        for gradient in torch.autograd.grad(term, (spectrum, estimate), retain_graph=True, allow_unused=True):
            if gradient is not None:
                assert gradient[:, 0].abs().sum() > 0 and gradient[:, 1].abs().sum() == 0


# --- the loop


def test_learning_rate_warms_up_and_falls() -> None:
    config = SimpleNamespace(
        schedule="cosine", steps=110, warmup_steps=10, learning_rate=1e-3, final_learning_rate=1e-5
    )
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(1e-4) and rates[4] == pytest.approx(5e-4)
    assert rates[9] == rates[10] == 1e-3 == max(rates)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[110] == pytest.approx(1e-5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(10_000, config) == pytest.approx(1e-5)


def test_average_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(11.0)
        model.running_mean.fill_(20.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    average.update(model, 0)  # decay 1/10
    assert average.state["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 11)
    assert average.state["running_mean"].item() == pytest.approx(0.9 * 20)
    assert average.state["num_batches_tracked"] == 7
    average.update(model, 1000)  # the configured decay
    assert average.state["weight"].item() == pytest.approx(0.5 * 10 + 0.5 * 11)
    assert model.weight.item() == 11.0


def settings(pools: Path, out: Path, *overrides: str) -> DictConfig:
    """Load the configuration of a short run."""
    fixed = [
        f"data.pools={pools}",
        f"data.mix.seconds={CHUNK}",
        f"out={out}",
        "training.steps=4",
        "training.batch_size=2",
        "training.warmup_steps=1",
        "training.save_every=2",
        "training.workers=0",
        "training.threads=1",
        "training.accelerator=cpu",
        "training.precision=32-true",
    ]
    return load_config([*fixed, *overrides])


def flatten(state: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries and lists to a dictionary by path."""
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for k, v in items for key, value in flatten(v, f"{prefix}/{k}").items()}
    return {prefix: state}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_exact_step(
    pools: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.load(train.train(settings(pools, tmp_path / "whole")), weights_only=True)

    original = run.Run.batches

    def killed(self: run.Run) -> Iterator[Batch]:
        for done, batch in enumerate(original(self)):
            if done == 3:  # one step after the last checkpoint, which must be repeated
                raise KeyboardInterrupt
            yield batch

    config = settings(pools, tmp_path / "parts")
    monkeypatch.setattr(run.Run, "batches", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config)
    middle = torch.load(tmp_path / "parts/last.ckpt", weights_only=True)
    assert middle["step"] == 2
    monkeypatch.setattr(run.Run, "batches", original)
    resumed = torch.load(train.train(config), weights_only=True)

    assert whole["step"] == resumed["step"] == 4
    for part in ("model", "average", "optimizer"):
        one, other = flatten(whole[part]), flatten(resumed[part])
        assert one.keys() == other.keys()
        different = [
            key
            for key, value in one.items()
            if not (torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key])
        ]
        assert different == []
    assert not torch.equal(middle["model"]["split.convs.0.weight"], whole["model"]["split.convs.0.weight"])
    left = {path.name for path in (tmp_path / "parts").glob(".*")}
    assert left == {".lock"}  # and no temporary files


def write_song(folder: Path) -> None:
    """Write one second of four stems with the same tone; the vocals start in the middle."""
    folder.mkdir(parents=True)
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    for stem in STEMS:
        late = tone * (np.arange(RATE) >= RATE // 2) if stem == "vocals" else tone
        soundfile.write(folder / f"{stem}.wav", np.stack([late, late], axis=1), RATE, subtype="FLOAT")


@pytest.mark.parametrize("domain", ["spectrum", "waveform"])
@pytest.mark.slow
def test_a_run_is_validated_and_saves_its_best_checkpoint(
    pools: Path, tmp_path: Path, tiny: None, domain: str
) -> None:
    write_song(tmp_path / "valid/song")
    where = (f"data.valid={tmp_path / 'valid'}", "data.valid_seconds=0.3")
    config = settings(pools, tmp_path / "run", *where, "training.steps=1", f"training.loss.domain={domain}")
    last = torch.load(train.train(config), weights_only=True)
    assert set(sdrs(last["scores"])) == {*STEMS, "mean"} and last["best"] == last["scores"]["mean"]
    beside = {f"{stem} {share}" for stem in STEMS for share in ("kept", "leaked")}
    beside |= {f"{name} {number}" for name in (*STEMS, "mean") for number in ("low", "high", "median")}
    assert set(last["scores"]) - {*STEMS, "mean"} == beside
    assert math.isfinite(last["best"])
    assert run.Run(config).best == last["best"]
    config.data.valid_seconds = 0.2
    assert run.Run(config).best == -math.inf  # scores of other excerpts are not comparable
    best = torch.load(tmp_path / "run/best.ckpt", weights_only=True)
    assert best["step"] == 1 and "optimizer" not in best and best["shape"] == last["shape"]
    assert ModelConfig.from_json(json.loads(json.dumps(best["shape"]))) == TINY
    assert json.loads(best["config"])["training"]["steps"] == 1
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    network, _ = export.load_checkpoint(tmp_path / "run/best.ckpt")
    assert not network.training
    assert all(torch.equal(value, last["average"][key]) for key, value in network.state_dict().items())


# --- validation


class HalfEach(nn.Module):
    """Estimates each of `count` stems as half the mixture, or half of its lowest `bins`."""

    def __init__(self, count: int, bins: int = 1025) -> None:
        super().__init__()
        self.count, self.bins, self.share = count, bins, nn.Parameter(torch.tensor(0.5))

    def forward(self, mixture: Tensor) -> Tensor:
        low = torch.arange(mixture.shape[2])[:, None] < self.bins
        half: Tensor = mixture * low * self.share
        return half[:, None].expand(-1, self.count, -1, -1, -1)


def song_stems(*, vocals: bool = True) -> Tensor:
    """Make one second of four stems (s, c, n) with the same tone; the vocals start in the middle."""
    tone = 0.2 * torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)
    late = tone * (torch.arange(RATE) >= RATE // 2) * vocals
    stems: Tensor = torch.stack([late, tone, tone, tone])[:, None].expand(-1, 2, -1)
    return stems


def sdrs(scores: dict[str, float]) -> dict[str, float]:
    """Select the mean SDRs."""
    return {name: value for name, value in scores.items() if " " not in name}


def validation(*songs: Tensor, matrix: Tensor | None = None) -> validate.Validation:
    readers = {str(i): lambda song=song: song for i, song in enumerate(songs)}
    matrix = torch.eye(4) if matrix is None else matrix
    return validate.Validation(readers, targets=STEMS[: len(matrix)], matrix=matrix, seconds=0.25)


def test_validation_excerpts_contain_every_stem() -> None:
    chosen = validation(song_stems())
    mixture, targets = chosen.excerpt("0")
    assert targets.abs().amax(dim=(1, 2)).min() > 0.19  # the excerpt contains vocals
    assert torch.equal(mixture, targets.sum(dim=0))
    scores = chosen.score(HalfEach(4))
    # A stem is x, the mixture 4x, the estimate 2x: an error of x.
    assert sdrs(scores) == pytest.approx(dict.fromkeys([*STEMS, "mean"], 0.0), abs=0.01)
    assert scores["mean median"] == pytest.approx(0.0, abs=0.01)


def test_whole_songs_are_scored_in_segments() -> None:
    song, matrix = song_stems(), torch.eye(4)
    whole = validate.Validation(
        {"0": lambda: song},
        targets=STEMS,
        matrix=matrix,
        seconds=None,
        plan=plan_segments(segment=RATE // 4, margin=2048),
    )
    network = HalfEach(4)
    assert whole.excerpt("0")[0].shape[-1] == song.shape[-1]
    estimates = whole.separate(network, "0")
    torch.testing.assert_close(estimates, whole.excerpt("0")[0].expand(4, 2, -1) / 2, atol=1e-4, rtol=0)
    assert sdrs(whole.score(network))["mean"] == pytest.approx(
        sdrs(
            validate.Validation({"0": lambda: song}, targets=STEMS, matrix=matrix, seconds=9).score(network)
        )["mean"],
        abs=0.01,
    )


def test_kept_and_leaked_sound_are_distinguished() -> None:
    pitches = torch.tensor([400.0, 800, 1200, 1600])[:, None]  # Hz, of four tones of one level
    tones = 0.2 * torch.sin(2 * math.pi * pitches * torch.arange(RATE) / RATE)
    scores = validation(tones[:, None].expand(-1, 2, -1)).score(HalfEach(4, bins=28))  # to 603 Hz: the vocals
    assert scores["vocals kept"] == pytest.approx(0.5, abs=0.01)
    assert scores["vocals leaked"] == pytest.approx(0, abs=0.01)
    assert scores["drums kept"] == pytest.approx(0, abs=0.01)
    assert scores["drums leaked"] == pytest.approx(0.5 / 3, abs=0.01)


def test_missing_stems_are_not_scored() -> None:
    scores = validation(song_stems(), song_stems(vocals=False)).score(HalfEach(4))
    assert scores["vocals"] == pytest.approx(0, abs=0.01)
    # x of 3x, guessed at 1.5x: an error of 0.5x
    assert scores["drums"] == pytest.approx(20 * math.log10(2) / 2, abs=0.01)
    assert scores["mean"] == pytest.approx(3 * scores["drums"] / 4, abs=0.01)
    assert scores["vocals low"] == scores["vocals high"] == pytest.approx(scores["vocals"])  # only one song
    assert scores["drums low"] == pytest.approx(0, abs=0.01)
    assert scores["drums high"] == pytest.approx(20 * math.log10(2), abs=0.01)


def test_a_stem_that_is_the_whole_mixture_is_not_scored() -> None:
    """Its SDR would measure copying, not separation."""
    alone = song_stems() * torch.tensor([0.0, 1, 0, 0])[:, None, None]
    scores, expected = (
        validation(*songs).score(HalfEach(4)) for songs in ((song_stems(), alone), (song_stems(),))
    )
    assert scores == expected


def test_sums_of_stems_are_scored() -> None:
    matrix = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    scores = sdrs(validation(song_stems(), matrix=matrix).score(HalfEach(2)))
    # 2x of 4x, guessed at 2x: no error but rounding
    assert set(scores) == {"vocals", "drums", "mean"} and scores["mean"] > 40
