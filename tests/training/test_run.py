"""A training run in one process: precision, accumulation, warm starts, progressive runs, the log."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from tiny_model import TINY, TINY_WORDS
from torch import Tensor, nn

import tfswa_sep
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.model.config import PRESETS, Band, ModelConfig
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint, losses, train
from training.analysis import lr_finder
from training.configuration import load_config
from training.pretrain import MaskedSpectrogram, draw_mask
from training.release.state import write_state
from training.run import Run
from training.schedule import learning_rate, phases

RATE = 44_100
ROOT = Path(__file__).parents[2]
WEIGHTS = Path(tfswa_sep.__file__).parent / "weights"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("songs"), np.random.default_rng(0)
    for song in "ab":
        for stem in ("vocals", "drums", "bass", "other"):
            (root / song).mkdir(exist_ok=True)
            soundfile.write(root / song / f"{stem}.wav", random.uniform(-0.2, 0.2, (RATE, 2)), RATE)
    return root


def run_of(songs: Path, out: Path, *overrides: str) -> Run:
    return Run(config_of(songs, out, *overrides))


def config_of(songs: Path, out: Path, *overrides: str) -> Any:
    fixed = [
        "data=folder",
        f"data.root={songs}",
        f"data.cache={songs.parent / 'cache'}",
        "data.build_workers=1",
        "data.seconds=0.2",
        f"out={out}",
        "training.steps=4",
        "training.batch_size=2",
        "training.warmup_steps=1",
        "training.workers=0",
        "training.threads=1",
        "training.accelerator=cpu",
        "training.precision=32-true",
        "training.loss={domain: spectrum, stft: 1.0, sdr: 0.02}",
    ]
    return load_config([*fixed, *overrides])


def weights(run: Run) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in run.model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.slow
def test_fp16_scales_clips_and_skips(songs: Path, tmp_path: Path, tiny: None) -> None:
    plain = "augment@data.augment=none"
    exact = run_of(songs, tmp_path / "32", plain)
    batch = next(exact.batches())
    wanted = exact.step(batch)
    half = run_of(songs, tmp_path / "16", plain, "training.precision=16-mixed")
    scaler = half.fabric.strategy.precision.scaler  # type: ignore[attr-defined]
    scaler.scale(torch.zeros(()))  # makes its state
    scaler.update(1e30)
    before = weights(half)
    assert not math.isfinite(half.step(batch)["gradient_norm"])
    assert same(before, weights(half)) and scaler.get_scale() == pytest.approx(
        5e29
    )  # skipped, and half of it
    scaler.update(1024.0)
    found = half.step(batch)
    assert not same(before, weights(half))
    # of the gradient itself, not of what the scale made of it
    assert found["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=0.05)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=0.01)
    half.save({}, best=False)
    again = run_of(songs, tmp_path / "16", plain, "training.precision=16-mixed")
    assert again.fabric.strategy.precision.scaler.get_scale() == 1024.0  # type: ignore[attr-defined]


@pytest.mark.slow
def test_accumulated_parts_are_one_batch(songs: Path, tmp_path: Path, tiny: None) -> None:
    found = []
    for i, size in enumerate((("training.batch_size=4",), ("training.accumulate=2",))):
        run = run_of(songs, tmp_path / str(i), *size, "augment@data.augment=none")
        batch = next(run.batches())
        assert len(batch[0]) == 4
        run.wrapped.eval()  # batch norms see a part at a time while they train
        found.append((run.step(batch), weights(run)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for key, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][key], atol=2e-4, rtol=0)


def test_targets_decide_the_outputs(songs: Path, tmp_path: Path, tiny: None) -> None:
    run = run_of(songs, tmp_path, "data.targets=[vocals, drums+bass]")
    assert run.model_config.stems == ("vocals", "drums+bass") and len(run.model.heads) == 2
    assert not run.model_config.mixture_consistent  # the other instruments are in none
    assert math.isfinite(run.step(next(run.batches()))["loss"])
    assert run_of(
        songs, tmp_path / "two", "data.targets=[vocals, accompaniment]"
    ).model_config.mixture_consistent


@pytest.mark.slow
def test_a_run_resumes_only_from_a_checkpoint_of_its_own_model(
    songs: Path, tmp_path: Path, tiny: None
) -> None:
    first = run_of(songs, tmp_path)
    first.step(next(first.batches()))
    first.save({}, best=False)
    with pytest.raises(UsageError, match=r"last\.ckpt is from a run with different head_dim: choose"):
        run_of(songs, tmp_path, "model.changes.head_dim=4")
    with pytest.raises(UsageError, match=r"different stems: .*training\.resume=false"):
        run_of(songs, tmp_path, "data.targets=[vocals, accompaniment]")
    with pytest.raises(UsageError, match=r"different training\.objective"):
        run_of(songs, tmp_path, "training.objective=masked")
    assert run_of(songs, tmp_path, "model.changes.head_dim=4", "training.resume=false").done == 0
    again = run_of(songs, tmp_path, "model.changes.margin_samples=0", "training.warm_start=other.ckpt")
    assert again.done == 1  # the margin does not matter in training
    assert "last.ckpt; ignoring training.warm_start=other.ckpt" in again.weights_note


def test_an_unsupported_transform_is_rejected(songs: Path, tmp_path: Path, tiny: None) -> None:
    with pytest.raises(UsageError, match="only n_fft 2048 and hop 512, not 2048 and 256"):
        run_of(songs, tmp_path, "model.changes.hop=256")


def test_a_warm_start_loads_matching_weights(songs: Path, tmp_path: Path, tiny: None) -> None:
    first = run_of(songs, tmp_path / "first")
    first.step(next(first.batches()))
    first.save({}, best=False)
    two = run_of(
        songs, tmp_path / "two", "data.targets=[vocals, accompaniment]",
        f"training.warm_start={tmp_path / 'first/last.ckpt'}",
    )  # fmt: skip
    assert same(
        {"x": first.average.state["split.frequency"]}, {"x": two.model.state_dict()["split.frequency"]}
    )
    assert "warm start from" in two.weights_note
    assert two.weights_note.endswith("heads by name: vocals; from a part: accompaniment (from drums)")
    with pytest.raises(InputError, match="no weight has the name"):
        checkpoint.warm_start(nn.Linear(2, 2), tmp_path / "first/last.ckpt")
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    with pytest.raises(InputError, match=r"bad\.ckpt cannot be read"):
        checkpoint.warm_start(first.model, tmp_path / "bad.ckpt")


def test_the_bundled_model_is_read_with_current_names() -> None:
    """Its file still calls the input layer `stem`."""
    stored = checkpoint.read(WEIGHTS / "small.safetensors")
    assert ModelConfig.from_json(stored["shape"]) == PRESETS["small"] and stored["step"] == 0
    assert stored["average"].keys() == TfswaUNet(PRESETS["small"]).state_dict().keys()


def test_a_warm_start_matches_heads_by_stem_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(TINY)
    torch.save({"average": old.state_dict(), "shape": TINY.to_json()}, tmp_path / "old.ckpt")
    names = ("drums", "vocals", "bass", "other")
    new = TfswaUNet(dataclasses.replace(TINY, stems=names))
    note = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert note.endswith("heads by name: drums, vocals, bass, other")
    mixture = torch.randn(1, 4, 1025, 8)
    with torch.inference_mode():
        wanted, found = old.eval()(mixture), new.eval()(mixture)
    for place, stem in enumerate(names):
        torch.testing.assert_close(found[:, place], wanted[:, TINY.stems.index(stem)])


def test_a_warm_start_reports_where_heads_come_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(TINY)
    torch.save({"average": old.state_dict(), "shape": TINY.to_json()}, tmp_path / "old.ckpt")
    new = TfswaUNet(dataclasses.replace(TINY, stems=("guitar", "drums+bass", "vocals")))
    fresh = {key: value.clone() for key, value in new.state_dict().items() if key.startswith("heads.0.")}
    note = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert note.endswith("heads by name: vocals; from a part: drums+bass (from drums); random: guitar")
    total = len(new.state_dict())
    assert f"{total - len(fresh)} of {total} tensors" in note
    found, before = new.state_dict(), old.state_dict()
    assert same(fresh, found)
    for place, origin in ((1, TINY.stems.index("drums")), (2, TINY.stems.index("vocals"))):
        for key in fresh:
            name = key.removeprefix("heads.0.")
            torch.testing.assert_close(found[f"heads.{place}.{name}"], before[f"heads.{origin}.{name}"])
    # A sum's parts have no order, and another model's sum is its own head.
    torch.save({"average": new.state_dict(), "shape": new.config.to_json()}, tmp_path / "sum.ckpt")
    again = TfswaUNet(dataclasses.replace(TINY, stems=("bass+drums", "vocals")))
    assert checkpoint.warm_start(again, tmp_path / "sum.ckpt").endswith("by name: bass+drums, vocals")
    torch.save(old.state_dict(), tmp_path / "plain.ckpt")
    assert "heads by position" in checkpoint.warm_start(TfswaUNet(TINY), tmp_path / "plain.ckpt")


def test_a_warm_start_skips_weights_of_another_band_or_attention(tmp_path: Path) -> None:
    """Even if they have the same name and shape."""
    bands = (Band(start=0, stop=128, stride=8), Band(start=128, stop=1024, stride=56))
    old = TfswaUNet(dataclasses.replace(TINY, bands=bands, tdfs=(4, 4), branches=("time", "frequency")))
    for weight in old.parameters():
        nn.init.constant_(weight, 7)
    torch.save({"average": old.state_dict(), "shape": old.config.to_json()}, tmp_path / "old.ckpt")
    moved = (Band(start=0, stop=64, stride=8), Band(start=64, stop=1024, stride=60))

    def taken(**changes: Any) -> set[str]:
        new = TfswaUNet(dataclasses.replace(old.config, **changes))
        checkpoint.warm_start(new, tmp_path / "old.ckpt")
        return {key for key, value in new.named_parameters() if (value == 7).all()}

    every = taken()
    assert every == {key for key, _ in old.named_parameters()}
    banded = {key for key in every if re.match(r"split\.(convs|frequency)|heads\.\d+\.convs|.*\.tdf\.", key)}
    assert banded and taken(bands=moved) == every - banded
    numbered = {key for key in every if ".attentions." in key or ".fusion.weigh." in key}
    assert numbered and taken(branches=("time", "window")) == every - numbered


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.slow
def test_freed_memory_is_kept() -> None:
    """Blocks of 50 MB, which glibc always maps on their own: returned to the system, each causes page faults."""
    script = """
import resource, numpy as np
from training.distributed import keep_freed_memory
def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(50_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
returned = new_pages()
assert keep_freed_memory()
new_pages()
print(new_pages(), returned)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    kept, returned = map(int, done.stdout.split())
    assert kept < returned / 10


def test_fused_and_plain_attention_agree(songs: Path, tmp_path: Path, tiny: None) -> None:
    found = {}
    for fused in (True, False):
        run = run_of(songs, tmp_path / str(fused), f"training.fused_attention={fused}")
        assert torch.backends.cuda.flash_sdp_enabled() == fused
        found[fused] = run.step(next(run.batches()))["loss"]
    assert found[True] == pytest.approx(found[False], rel=1e-4)


@pytest.mark.parametrize(
    ("seconds", "line"), [(0.2, "examples are 0.1741 s long instead of 0.2 s"), (0.175, "")]
)
def test_example_lengths_need_no_padding(
    songs: Path, tmp_path: Path, tiny: None, seconds: float, line: str
) -> None:
    run = run_of(
        songs, tmp_path, f"data.seconds={seconds}", "training.progressive=[{until: 2, seconds: 0.1}]"
    )
    frames = [stft(mixture).shape[-1] for mixture, _, _ in run.batches()]
    assert frames == [8, 8, 16, 16]
    assert run.length_note.startswith(line) and bool(run.length_note) == bool(line)


def test_a_progressive_run(songs: Path, tmp_path: Path, tiny: None) -> None:
    rows = "training.progressive=[{until: 1, seconds: 0.1, highest: 3000}, {until: 3, seconds: 0.15}]"
    run = run_of(songs, tmp_path, rows)
    lengths = [batch[0].shape[-1] for batch in run.batches()]
    assert lengths == [7 * 512, 15 * 512, 15 * 512, 15 * 512]  # the nearest that need no padding
    spectrum = torch.fft.rfft(next(run.batches())[1]).abs()
    assert spectrum[..., 3200 * lengths[0] // RATE :].max() < 1e-3 < spectrum.max()
    settings = SimpleNamespace(steps=9, progressive=[{"until": 4, "seconds": 1.0}])
    assert [phase.steps for phase in phases(settings, start=2, seconds=2.0)] == [range(2, 4), range(4, 9)]
    for rows_, message in (
        ([{"until": 4}, {"until": 4}], "does not come after"),
        ([{"until": 1, "s": 2}], "'s'"),
    ):
        with pytest.raises(UsageError, match=message):
            list(phases(SimpleNamespace(steps=9, progressive=rows_), start=0, seconds=2.0))


def test_the_paper_s_learning_rate() -> None:
    settings = load_config(["data.pools=x", "training=paper"]).training
    rates = [learning_rate(step, settings) for step in (0, 999, 1000, 14_999, 15_000, 45_000)]
    assert rates == pytest.approx([1e-6, 1e-3, 1e-3, 1e-3, 9e-4, 7.29e-4])


@pytest.mark.slow
def test_a_run_stops_early_and_logs_to_tensorboard(
    songs: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = [
        f"data.valid={songs}", "data.valid_seconds=0.3", "training.validate_every=1", "training.patience=2",
        "training.steps=50", "training.log_every=1", "training.learning_rate=0",
        "training.final_learning_rate=0",
    ]  # fmt: skip
    last = torch.load(train.train(config_of(songs, tmp_path, *overrides)), weights_only=True)
    assert last["stale"] == 2 and last["step"] < 50
    assert "no improvement in 2 validations" in capsys.readouterr().out
    record = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    record.Reload()
    tags = record.Tags()
    assert {"train/loss", "train/gradient_norm", "train/learning_rate", "valid/mean"} <= set(tags["scalars"])
    assert "a/vocals" in tags["audio"] and "b/bass, estimate and truth" in tags["images"]
    assert len(record.Scalars("train/loss")) == last["step"]


@pytest.mark.slow
def test_pretraining_predicts_masked_patches(songs: Path, tmp_path: Path, tiny: None) -> None:
    run = run_of(songs, tmp_path, "training=pretrain", "training.warmup_steps=1", "training.workers=0",
                 "training.steps=3", "training.accelerator=cpu", "training.precision=32-true")  # fmt: skip
    before, heads = weights(run), run.model.heads.state_dict()
    heads = {key: value.clone() for key, value in heads.items()}
    for batch in run.batches():
        numbers = run.step(batch)
    assert math.isfinite(numbers["loss"])
    assert same(heads, run.model.heads.state_dict())
    assert not torch.equal(before["split.frequency"], weights(run)["split.frequency"])
    run.save({}, best=False)
    after = run_of(songs, tmp_path / "after", f"training.warm_start={tmp_path / 'last.ckpt'}")
    assert torch.equal(after.model.state_dict()["split.frequency"], run.average.state["split.frequency"])
    mask = draw_mask(torch.zeros(2, 8, 1024, 64), generator=torch.Generator().manual_seed(0))
    assert 0.3 < mask.float().mean() < 0.5
    patches = mask.float().view(2, 1, 32, 32, 4, 16)
    assert set(patches.mean(dim=(3, 5)).flatten().tolist()) == {0.0, 1.0}
    assert isinstance(run.trained, MaskedSpectrogram)


def test_the_learning_rate_finder_suggests_the_steepest_point() -> None:
    rates = [10 ** (-6 + i / 10) for i in range(60)]
    curve = [1 / (1 + math.exp((i - 30) / 2)) + (i > 45) * (i - 45) ** 2 for i in range(60)]
    found = lr_finder.suggest(rates, curve)
    assert 10**-3.2 < found < 10**-2.5  # the smoothing lags a little
    assert lr_finder.has_diverged(curve)
    assert not lr_finder.has_diverged(curve[:45])
    assert not lr_finder.has_diverged(curve[:10])
    assert lr_finder.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    with pytest.raises(ValueError, match="never decreased"):
        lr_finder.suggest(rates, sorted(curve))


@pytest.mark.parametrize("seed", range(5))
def test_the_learning_rate_finder_tolerates_noise(seed: int) -> None:
    """At first the loss changes less than it varies from batch to batch."""
    noise = np.random.default_rng(seed).normal(0, 0.03, 100)
    rates = [10 ** (-6 + 6 * i / 99) for i in range(100)]
    curve = [0.1 - 0.5 / (1 + math.exp((60 - i) / 4)) + (i > 80) * (i - 80) ** 2 / 10 for i in range(100)]
    losses = [float(loss) for loss in curve + noise]
    assert not any(lr_finder.has_diverged(losses[:i]) for i in range(1, 80))
    assert lr_finder.has_diverged(losses)
    assert rates[50] < lr_finder.suggest(rates, losses) < rates[75]


def test_magnitude_loss_by_hand() -> None:
    """Every magnitude of the estimate is half the target's, and well above the floor."""
    target = torch.randn(1, 2, 2, 8192, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[1.0, 0.0]])
    estimate = torch.cat([target[:, :1] / 2, torch.zeros_like(target[:, 1:])], dim=1)
    found = losses.multi_resolution_magnitude(estimate, target, known, n_ffts=[2048, 512])
    assert float(found) == pytest.approx(0.5 + math.log(2), abs=1e-3)
    silent = torch.zeros_like(target, requires_grad=True)
    loss = losses.multi_resolution_magnitude(silent, torch.zeros_like(target), known, n_ffts=[512])
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0 and silent.grad is not None and torch.isfinite(silent.grad).all()


def test_consistency_loss_by_hand() -> None:
    estimate = torch.tensor([1.0, -2.0])[None, :, None, None].expand(1, 2, 2, 10)
    assert float(losses.mixture_consistency(estimate, torch.full((1, 2, 10), 0.5))) == pytest.approx(1.5)


def test_the_spectral_loss_uses_the_given_mixture_spectrum(tiny: None) -> None:
    """It is not computed again, and the memory layout of the output does not matter."""
    generator = torch.Generator().manual_seed(0)
    stems, known = torch.randn(2, 3, 2, 4096, generator=generator), torch.ones(2, 3)
    spectrum = torch.randn(2, 4, 3, 1025, 9, generator=generator).transpose(1, 2)
    given = 2 * stft(stems.sum(dim=1))
    loss_settings = load_config(["data.pools=x", "training=cpu"]).training.loss
    _, terms = losses.weighted_loss(
        spectrum, stems.sum(dim=1), stems, known, weights=loss_settings, mixture_spectrum=given
    )
    wanted = stft(stems.flatten(0, 1)).view(spectrum.shape)
    l1, sdr = losses.spectral_terms(spectrum, wanted, known, mixture=given, floor=loss_settings.sdr_floor)
    torch.testing.assert_close((terms["stft"], terms["sdr"]), (l1, sdr))


def test_terms_are_weighted(tiny: None) -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(1, 2, 4, 1025, 9, generator=generator)
    stems, known = torch.randn(1, 2, 2, 4096, generator=generator), torch.ones(1, 2)
    values = {"waveform": 2.0, "sdr": 0.0, "stft": 0.5, "magnitude": 0.25, "consistency": 3.0}
    loss_settings = load_config(["data.pools=x", *(f"training.loss.{k}={v}" for k, v in values.items())])
    mixture = stems.sum(dim=1)
    total, terms = losses.weighted_loss(
        spectrum, mixture, stems, known, weights=loss_settings.training.loss, mixture_spectrum=stft(mixture)
    )
    assert set(terms) == {"waveform", "stft", "magnitude", "consistency"}
    assert float(total) == pytest.approx(sum(values[name] * float(term) for name, term in terms.items()))


@pytest.mark.slow
def test_a_state_file_continues_at_its_step(songs: Path, tmp_path: Path, tiny: None) -> None:
    train.train(config_of(songs, tmp_path / "first", "training.steps=3"))
    state = tmp_path / "state.safetensors"
    assert write_state(tmp_path / "first/last.ckpt", state) == 3
    run = run_of(songs, tmp_path / "second", "training.steps=6", f"training.continue_from={state}")
    assert run.done == 3 and next(iter(run.batches()))[0].shape[0] == 2
    stored = checkpoint.read(tmp_path / "first/last.ckpt")["average"]
    for key, value in run.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, stored[key], rtol=1e-3, atol=1e-6)
    assert state.stat().st_size < 0.2 * (tmp_path / "first/last.ckpt").stat().st_size


@pytest.mark.slow
def test_checkpoints_are_kept_by_score_and_by_age(songs: Path, tmp_path: Path, tiny: None) -> None:
    keep = ("training.keep_best=2", "training.keep_every=2", "training.keep_last=2")
    run = run_of(songs, tmp_path, f"data.valid={songs}", *keep)
    for step, score in enumerate((1.0, 3.0, 2.0, 0.5, 4.0, 2.5), start=1):
        run.done = step
        run.save({"mean": score}, best=run.judge({"mean": score}))
        if step == 3:
            run = run_of(songs, tmp_path, f"data.valid={songs}", *keep)  # the ranking survives a new start
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "best-000002.ckpt", "best-000005.ckpt", "best.ckpt", "last.ckpt", "step-000004.ckpt", "step-000006.ckpt",
    ]  # fmt: skip
    assert checkpoint.read(tmp_path / "best.ckpt")["step"] == 5
    assert "optimizer" not in checkpoint.read(tmp_path / "best-000002.ckpt")
    assert "optimizer" in checkpoint.read(tmp_path / "step-000004.ckpt")  # to go back to
    run = run_of(songs, tmp_path, f"data.valid={songs}", "data.valid_seconds=0.1", *keep)
    assert run.judge({"mean": -1.0})  # other excerpts: a new ranking, which deletes nothing of the old one
    run.save({"mean": -1.0}, best=True)
    assert (tmp_path / "best-000005.ckpt").exists()


def test_a_changed_batch_is_reported(songs: Path, tmp_path: Path, tiny: None) -> None:
    run = run_of(songs, tmp_path)
    run.save({}, best=False)
    assert run.notes[0].startswith("small, 0.0 million parameters; 2 songs in ")
    assert run.notes[1] == "1 x cpu, 32-true, 2 examples per step; from step 0 to 4"
    assert run_of(songs, tmp_path).batch_note == ""
    changed = run_of(songs, tmp_path, "training.accumulate=2")
    assert "examples per step: 4 instead of 2; the learning rate stays the same" in changed.notes


@pytest.mark.parametrize(("first", "second"), [("32-true", "16-mixed"), ("16-mixed", "bf16-mixed")])
@pytest.mark.slow
def test_a_run_resumes_with_another_precision(
    first: str, second: str, songs: Path, tmp_path: Path, tiny: None
) -> None:
    run = run_of(songs, tmp_path, f"training.precision={first}")
    run.step(next(run.batches()))
    run.save({}, best=False)
    again = run_of(songs, tmp_path, f"training.precision={second}")
    assert again.done == 1 and math.isfinite(again.step(next(again.batches()))["loss"])


def test_another_optimizer_cannot_resume(songs: Path, tmp_path: Path, tiny: None) -> None:
    run_of(songs, tmp_path).save({}, best=False)
    with pytest.raises(UsageError, match=r"training\.optimizer.*training\.resume=false"):
        run_of(songs, tmp_path, "training.optimizer=adamw")


@pytest.mark.slow
def test_weights_and_biases_gets_the_same_curves(
    songs: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    begun: list[dict[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        return SimpleNamespace(log=logged.append, finish=lambda: None, define_metric=lambda *_, **__: None)

    media = {name: lambda *_, **__: None for name in ("Audio", "Image")}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, **media))
    more = ["training.wandb=mine", "training.log_every=1", f"data.valid={songs}", "data.valid_seconds=0.3"]
    train.train(config_of(songs, tmp_path / "run", "training.steps=1", *more))
    train.train(config_of(songs, tmp_path / "run", "training.steps=2", *more))
    assert [row["step"] for row in logged if "train/loss" in row] == [1, 2]
    assert {"train/gradient_norm", "train/learning_rate"} <= logged[0].keys()
    assert any("valid/mean low" in row for row in logged)
    assert any("a/vocals" in row for row in logged)
    assert begun[0]["project"] == "mine" and begun[0]["name"] == "run"
    assert begun[0]["config"]["training"]["steps"] == 1
    assert begun[0]["id"] == begun[1]["id"]  # a resumed run continues its curves
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        train.train(config_of(songs, tmp_path / "other", "training.steps=1", *more))


@pytest.mark.slow
def test_weights_and_biases_offline(songs: Path, tmp_path: Path) -> None:
    """In a process of its own, since wandb leaves threads behind."""
    pytest.importorskip("wandb")
    words = [
        "data=folder", f"data.root={songs}", f"data.cache={songs.parent / 'cache'}", "data.build_workers=1",
        "data.seconds=0.2", f"out={tmp_path}", "training.steps=2", "training.batch_size=1",
        "training.workers=0", "training.accelerator=cpu", "training.wandb=mine", "training.log_every=1",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "training.train", *words, *TINY_WORDS],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert record.read_bytes().count(b"train/gradient_norm") >= 2
