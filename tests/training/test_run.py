"""One process's training run: precision, accumulation, warm starts, progressive runs, the record."""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from tiny_model import TINY
from torch import Tensor, nn
from torch.nn import functional

import tfswa_sep
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.model.config import PRESETS, Band, ModelConfig
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint, losses, train
from training.analysis import lr_finder as learning_rate_finder
from training.configuration import load_config
from training.pretrain import MaskedSpectrogram, hide
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
    assert run.shape.stems == ("vocals", "drums+bass") and len(run.model.heads) == 2
    assert not run.shape.mixture_consistent  # the other instruments are in none
    assert math.isfinite(run.step(next(run.batches()))["loss"])
    assert run_of(songs, tmp_path / "two", "data.targets=[vocals, accompaniment]").shape.mixture_consistent


def test_a_run_goes_on_from_a_checkpoint_of_its_own_model_alone(
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
    assert again.done == 1  # what is thrown away of a segment is no matter of training
    assert "last.ckpt; ignoring training.warm_start=other.ckpt" in again.said


def test_a_transform_that_the_losses_lack_is_refused(songs: Path, tmp_path: Path, tiny: None) -> None:
    with pytest.raises(UsageError, match="only n_fft 2048 and hop 512, not 2048 and 256"):
        run_of(songs, tmp_path, "model.changes.hop=256")


def test_a_warm_start_takes_what_fits(songs: Path, tmp_path: Path, tiny: None) -> None:
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
    assert "warm start from" in two.said
    assert two.said.endswith("heads by name: vocals; from a part: accompaniment (from drums)")
    with pytest.raises(InputError, match="no weight has the name"):
        checkpoint.warm_start(nn.Linear(2, 2), tmp_path / "first/last.ckpt")
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    with pytest.raises(InputError, match=r"bad\.ckpt cannot be read"):
        checkpoint.warm_start(first.model, tmp_path / "bad.ckpt")


def test_a_checkpoint_from_when_the_input_layer_was_called_the_stem_is_read(tmp_path: Path) -> None:
    weights = TfswaUNet(TINY).state_dict()
    older = {re.sub(r"^split\.", "stem.", key): value for key, value in weights.items()}
    shape = {"stem" if key == "split" else key: value for key, value in TINY.to_json().items()}
    torch.save({"average": older, "model": older, "shape": shape, "step": 3}, tmp_path / "old.ckpt")
    found = checkpoint.read(tmp_path / "old.ckpt")
    assert found["average"].keys() == found["model"].keys() == weights.keys() and found["step"] == 3
    assert ModelConfig.from_json(found["shape"]) == TINY
    torch.save(older, tmp_path / "plain.ckpt")
    assert checkpoint.read(tmp_path / "plain.ckpt").keys() == weights.keys()


def test_a_warm_start_maps_heads_by_the_names_of_stems(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(TINY)
    torch.save({"average": old.state_dict(), "shape": TINY.to_json()}, tmp_path / "old.ckpt")
    names = ("drums", "vocals", "bass", "other")
    new = TfswaUNet(dataclasses.replace(TINY, stems=names))
    said = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert said.endswith("heads by name: drums, vocals, bass, other")
    mixture = torch.randn(1, 4, 1025, 8)
    with torch.inference_mode():
        wanted, found = old.eval()(mixture), new.eval()(mixture)
    for place, stem in enumerate(names):
        torch.testing.assert_close(found[:, place], wanted[:, TINY.stems.index(stem)])


def test_a_warm_start_says_which_heads_are_of_another_stem_and_which_are_fresh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(TINY)
    torch.save({"average": old.state_dict(), "shape": TINY.to_json()}, tmp_path / "old.ckpt")
    new = TfswaUNet(dataclasses.replace(TINY, stems=("guitar", "drums+bass", "vocals")))
    fresh = {key: value.clone() for key, value in new.state_dict().items() if key.startswith("heads.0.")}
    said = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert said.endswith("heads by name: vocals; from a part: drums+bass (from drums); afresh: guitar")
    total = len(new.state_dict())
    assert f"{total - len(fresh)} of {total} tensors" in said
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


@pytest.mark.parametrize(("masks", "factor"), [("real", 2), ("signed", 1)])
def test_a_warm_start_turns_complex_masks_into_real_ones(
    masks: Literal["real", "signed"], factor: int
) -> None:
    """As a logit twice the real part: the same bins of the same channels, wherever a bin's values stand."""
    torch.manual_seed(0)
    complex_masks = TfswaUNet(TINY)
    gains = TfswaUNet(dataclasses.replace(TINY, masks=masks))
    gains.load_state_dict(checkpoint.real_parts(complex_masks.state_dict(), gains))
    x = torch.randn(1, TINY.head_dim, 16, 3)
    convs = (network.heads[0].convs for network in (complex_masks, gains))
    for old, new, band in zip(*convs, TINY.bands, strict=True):  # type: ignore[arg-type]
        wanted = old(x).view(1, 2, 2, band.stride, 16, 3)[:, :, 0].flatten(1, 2)
        torch.testing.assert_close(new(x), factor * wanted)


def test_a_warm_start_with_other_bands_hears_and_answers_as_before() -> None:
    """Of a spectrum that is even within each old band: finer, alike, or coarser."""
    torch.manual_seed(0)
    finer = (Band(start=0, stop=64, stride=4), Band(start=64, stop=128, stride=8))
    new = dataclasses.replace(TINY, bands=(*finer, Band(start=128, stop=1024, stride=112)))
    before = TfswaUNet(TINY).state_dict()
    starts = torch.cat([torch.arange(0, 128, 8), torch.arange(128, 1024, 56)]).float()
    before["split.frequency"] = starts.view(1, 1, -1, 1).repeat(1, TINY.dims[0], 1, 1)
    after = checkpoint.rebanded(before, TINY, new)
    TfswaUNet(new).load_state_dict(after)  # all of its names and shapes
    even, hidden = (
        torch.randn(1, TINY.feature_count(TINY.bands[0]), 1, 5),
        torch.randn(1, TINY.head_dim, 1, 1),
    )
    for place, (origin, was, now) in enumerate([(0, 8, 4), (0, 8, 8), (1, 56, 112)]):
        heard, answered = [], []
        for weights, band, stride in ((before, origin, was), (after, place, now)):
            layer = [weights[f"split.convs.{band}.{kind}"] for kind in ("weight", "bias")]
            heard.append(functional.conv2d(even.expand(-1, -1, stride, -1), *layer))
            layer = [weights[f"heads.2.convs.{band}.{kind}"] for kind in ("weight", "bias")]
            masks = functional.conv2d(hidden, *layer).view(-1, min(was, now), stride // min(was, now))
            answered.append(masks.mean(dim=2))
        torch.testing.assert_close(heard[1], heard[0])
        torch.testing.assert_close(answered[1], answered[0])
    begun = [band.start + i * band.stride for band in new.bands for i in range(band.tokens)]
    learnt = after["split.frequency"][0, 0, :, 0].tolist()
    assert learnt[:-8] == [start // 8 * 8 for start in begun[:-8]]
    assert learnt[-8:] == [start + 56 for start in begun[-8:]]  # a token's centre lies in the second of two


def test_a_warm_start_tells_bands_from_masks(tmp_path: Path) -> None:
    """Half the rows of a head may be half the parts of a mask, half the bins of a token, or both."""
    torch.manual_seed(0)
    old = TfswaUNet(TINY)
    content = {"average": old.state_dict(), "shape": TINY.to_json()}
    torch.save(content, tmp_path / "old.ckpt")
    bands = (Band(start=0, stop=128, stride=4), Band(start=128, stop=1024, stride=56))
    new = TfswaUNet(dataclasses.replace(TINY, bands=bands, masks="signed"))
    said = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert f"{len(new.state_dict())} of {len(new.state_dict())} tensors" in said
    rows = old.state_dict()["heads.0.convs.0.bias"].view(2, 2, 8)[:, 0]  # channels, real parts, bins
    wanted = rows.unflatten(1, (4, 2)).mean(dim=2).flatten()
    torch.testing.assert_close(new.state_dict()["heads.0.convs.0.bias"], wanted)
    # 16 does not divide 56
    bands = (Band(start=0, stop=128, stride=16), Band(start=128, stop=1024, stride=16))
    new = TfswaUNet(dataclasses.replace(TINY, bands=bands, masks="signed"))
    said = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert "heads.0.convs.0.bias" in said.split("not there (")[1]  # 32 rows then and now, of other bins


def test_a_warm_start_turns_complex_masks_beside_filters_into_real_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bands = (dataclasses.replace(TINY.bands[0], taps=3), TINY.bands[1])
    old = TfswaUNet(dataclasses.replace(TINY, bands=bands))
    torch.save({"average": old.state_dict(), "shape": old.config.to_json()}, tmp_path / "old.ckpt")
    new = TfswaUNet(dataclasses.replace(TINY, bands=bands, masks="signed"))
    said = checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert f"{len(new.state_dict())} of {len(new.state_dict())} tensors; heads by name" in said
    before, after = (network.state_dict()["heads.0.convs.0.weight"] for network in (old, new))
    torch.testing.assert_close(after[:16], before[:32].view(2, 2, 8, -1, 1, 1)[:, 0].flatten(0, 1))
    torch.testing.assert_close(after[16:], before[32:])


def test_a_warm_start_with_other_bands_leaves_out_what_mixes_their_rows(tmp_path: Path) -> None:
    """As many rows, of other frequencies."""
    bands = (Band(start=0, stop=128, stride=8), Band(start=128, stop=1024, stride=56))
    old = TfswaUNet(dataclasses.replace(TINY, bands=bands, tdfs=(4, 4)))
    torch.nn.init.ones_(old.encoder[0].tdf.expand.weight)  # type: ignore[union-attr]
    torch.save({"average": old.state_dict(), "shape": old.config.to_json()}, tmp_path / "old.ckpt")
    moved = (Band(start=0, stop=896, stride=56), Band(start=896, stop=1024, stride=8))
    new = TfswaUNet(dataclasses.replace(TINY, bands=moved, tdfs=(4, 4)))
    checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert not new.encoder[0].tdf.expand.weight.any()  # type: ignore[union-attr, operator]
    divided = (Band(start=0, stop=64, stride=8, taps=3), Band(start=64, stop=128, stride=8), bands[1])
    new = TfswaUNet(dataclasses.replace(TINY, bands=divided, tdfs=(4, 4)))  # the same rows
    checkpoint.warm_start(new, tmp_path / "old.ckpt")
    assert new.encoder[0].tdf.expand.weight.all()  # type: ignore[union-attr, operator]
    spectrum = torch.randn(1, 4, 1025, 32)
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(spectrum), old.eval()(spectrum))


def test_a_warm_start_with_longer_filters_separates_as_with_the_shorter(tmp_path: Path) -> None:
    """And back, where the frames that the shorter ones lack bring nothing."""
    torch.manual_seed(0)
    short, long = (
        TfswaUNet(
            dataclasses.replace(TINY, bands=(dataclasses.replace(TINY.bands[0], taps=taps), TINY.bands[1]))
        ).eval()
        for taps in (3, 5)
    )
    spectrum = torch.randn(1, 4, 1025, 32)
    with torch.no_grad():
        wanted = short(spectrum)
        for begun, other in ((short, long), (long, short)):
            torch.save(
                {"average": begun.state_dict(), "shape": begun.config.to_json()}, tmp_path / "old.ckpt"
            )
            checkpoint.warm_start(other, tmp_path / "old.ckpt")
            torch.testing.assert_close(other(spectrum), wanted)
            for weight in begun.parameters():
                weight.zero_()  # so that the way back is seen


def test_a_warm_start_with_filters_and_tdfs_separates_as_without(tmp_path: Path) -> None:
    """And back; phases in another form are not heeded at first."""
    torch.manual_seed(0)
    old = TfswaUNet(TINY).eval()
    bands = (dataclasses.replace(TINY.bands[0], taps=3), TINY.bands[1])
    new = TfswaUNet(dataclasses.replace(TINY, bands=bands, tdfs=(4, 4))).eval()
    for begun, wanted in ((old, new), (new, old)):
        content = {"average": begun.state_dict(), "shape": begun.config.to_json()}
        torch.save(content, tmp_path / "old.ckpt")
        checkpoint.warm_start(wanted, tmp_path / "old.ckpt")
        spectrum = torch.randn(1, 4, 1025, 32)
        with torch.no_grad():
            torch.testing.assert_close(wanted(spectrum), begun(spectrum))
            for weight in old.parameters():
                weight.zero_()  # so that the way back is seen
    other = TfswaUNet(dataclasses.replace(TINY, bands=bands, features="advance")).eval()
    checkpoint.warm_start(other, tmp_path / "old.ckpt")
    for band, count in enumerate([8, 4]):  # the second has no filters, and sees no phases
        seen, known = (network.split.convs[band].weight for network in (other, new))  # type: ignore[union-attr, index]
        assert seen.shape[1] == count
        assert not seen[:, :-4].any()
        torch.testing.assert_close(seen[:, -4:], known[:, -4:])


@pytest.mark.parametrize("left", [("time", "window"), ("frequency", "window"), ("time", "frequency")])
def test_a_warm_start_without_an_attention_keeps_the_others(
    left: tuple[str, ...], songs: Path, tmp_path: Path, tiny: None
) -> None:
    """As if the fusion gave the one that is gone no weight."""
    run = run_of(songs, tmp_path)
    run.save({}, best=False)
    whole = run.model.eval()
    fewer = TfswaUNet(dataclasses.replace(run.shape, branches=left)).eval()
    said = checkpoint.warm_start(fewer, tmp_path / "last.ckpt")
    assert f"{len(fewer.state_dict())} of {len(fewer.state_dict())} tensors; heads by name" in said
    gone = next(i for i, name in enumerate(run.shape.branches) if name not in left)
    with torch.no_grad():
        for name, bias in whole.named_parameters():
            if name.endswith("fusion.weigh.2.bias"):
                bias[gone] = -1e9
        spectrum = torch.randn(1, 4, 1025, 32)
        torch.testing.assert_close(fewer(spectrum), whole(spectrum))


def test_a_warm_start_from_the_bundled_weights_knows_their_attentions() -> None:
    fewer = TfswaUNet(dataclasses.replace(PRESETS["small"], branches=("window",), fusion="mean"))
    said = checkpoint.warm_start(fewer, WEIGHTS / "small.safetensors")
    assert f"{len(fewer.state_dict())} of {len(fewer.state_dict())} tensors" in said, said


@pytest.mark.parametrize("deeper", [(3, 2), (1, 4), (5, 5)])
def test_a_warm_start_of_a_deeper_model_separates_as_the_old_one(
    deeper: tuple[int, ...], songs: Path, tmp_path: Path, tiny: None
) -> None:
    old = run_of(songs, tmp_path, "model.changes.convs=[1,2]")
    old.save({}, best=False)
    new = TfswaUNet(dataclasses.replace(old.shape, convs=deeper)).eval()
    checkpoint.warm_start(new, tmp_path / "last.ckpt")
    assert len(new.state_dict()) > len(old.model.state_dict())
    spectrum = torch.randn(1, 4, 1025, 32)
    with torch.no_grad():
        torch.testing.assert_close(new(spectrum), old.model.eval()(spectrum))
    shallow = TfswaUNet(dataclasses.replace(old.shape, convs=(2, 1)))
    assert "of another shape or not there" in checkpoint.warm_start(shallow, tmp_path / "last.ckpt")


def test_a_block_that_would_cut_off_what_attention_gave_does_not_begin_as_the_identity(
    songs: Path, tmp_path: Path, tiny: None
) -> None:
    run_of(songs, tmp_path).save({}, best=False)  # one convolution in the last stage
    new = TfswaUNet(dataclasses.replace(PRESETS["small"], convs=(1, 3)))
    checkpoint.warm_start(new, tmp_path / "last.ckpt")
    scale = new.state_dict()["decoder.1.blocks.0.layers.4.weight"]
    assert torch.equal(scale, torch.ones_like(scale))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_stays_with_the_process() -> None:
    """Peaks of 200 MB: given back to the system in between, each brings new pages."""
    script = """
import resource, sys, numpy as np
from training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def fill():
    np.ones(200_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = fill()
print(fill() - first)
"""
    pages = {}
    for how in ("kept", "as ever"):
        done = subprocess.run(
            [sys.executable, "-c", script, how],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        pages[how] = int(done.stdout)
    assert pages["kept"] < pages["as ever"] / 10, pages


def test_attention_as_matrix_products_is_the_same_attention(songs: Path, tmp_path: Path, tiny: None) -> None:
    found = {}
    for fused in (True, False):
        run = run_of(songs, tmp_path / str(fused), f"training.fused_attention={fused}")
        assert torch.backends.cuda.flash_sdp_enabled() == fused
        found[fused] = run.step(next(run.batches()))["loss"]
    assert found[True] == pytest.approx(found[False], rel=1e-4)


@pytest.mark.parametrize(
    ("seconds", "line"), [(0.2, "examples are 0.1741 s long instead of 0.2 s"), (0.175, "")]
)
def test_examples_are_as_long_as_the_network_need_not_pad(
    songs: Path, tmp_path: Path, tiny: None, seconds: float, line: str
) -> None:
    run = run_of(
        songs, tmp_path, f"data.seconds={seconds}", "training.progressive=[{until: 2, seconds: 0.1}]"
    )
    frames = [stft(mixture).shape[-1] for mixture, _, _ in run.batches()]
    assert frames == [8, 8, 16, 16]
    assert run.rounded.startswith(line) and bool(run.rounded) == bool(line)


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
def test_a_run_stops_early_and_keeps_a_record(
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


def test_hidden_patches_alone_are_predicted(songs: Path, tmp_path: Path, tiny: None) -> None:
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
    hidden = hide(torch.zeros(2, 8, 1024, 64), generator=torch.Generator().manual_seed(0))
    assert 0.3 < hidden.float().mean() < 0.5
    patches = hidden.float().view(2, 1, 32, 32, 4, 16)
    assert set(patches.mean(dim=(3, 5)).flatten().tolist()) == {0.0, 1.0}
    assert isinstance(run.trained, MaskedSpectrogram)


def test_the_learning_rate_finder_takes_the_steepest_place() -> None:
    rates = [10 ** (-6 + i / 10) for i in range(60)]
    curve = [1 / (1 + math.exp((i - 30) / 2)) + (i > 45) * (i - 45) ** 2 for i in range(60)]
    found = learning_rate_finder.suggest(rates, curve)
    assert 10**-3.2 < found < 10**-2.5  # the smoothing lags a little
    assert learning_rate_finder.has_exploded(curve)
    assert not learning_rate_finder.has_exploded(curve[:45])
    assert not learning_rate_finder.has_exploded(curve[:10])
    assert learning_rate_finder.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    with pytest.raises(ValueError, match="never fell"):
        learning_rate_finder.suggest(rates, sorted(curve))


@pytest.mark.parametrize("seed", range(5))
def test_noise_neither_explodes_nor_draws_the_learning_rate(seed: int) -> None:
    """A loss that hardly moves at first, beside what batches differ by."""
    noise = np.random.default_rng(seed).normal(0, 0.03, 100)
    rates = [10 ** (-6 + 6 * i / 99) for i in range(100)]
    curve = [0.1 - 0.5 / (1 + math.exp((60 - i) / 4)) + (i > 80) * (i - 80) ** 2 / 10 for i in range(100)]
    losses = [float(loss) for loss in curve + noise]
    assert not any(learning_rate_finder.has_exploded(losses[:i]) for i in range(1, 80))
    assert learning_rate_finder.has_exploded(losses)
    assert rates[50] < learning_rate_finder.suggest(rates, losses) < rates[75]


def test_magnitude_loss_by_hand() -> None:
    """A scaled copy: every magnitude is half the target's, wherever the floor does not matter."""
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


def test_a_spectral_loss_takes_the_mixtures_spectrum_as_it_is_given(tiny: None) -> None:
    """It is not computed again, and the order in which a spectrum lies in memory does not matter."""
    generator = torch.Generator().manual_seed(0)
    stems, known = torch.randn(2, 3, 2, 4096, generator=generator), torch.ones(2, 3)
    spectrum = torch.randn(2, 4, 3, 1025, 9, generator=generator).transpose(1, 2)
    given = 2 * stft(stems.sum(dim=1))
    weighing = load_config(["data.pools=x", "training=cpu"]).training.loss
    _, terms = losses.weigh_terms(
        spectrum, stems.sum(dim=1), stems, known, weights=weighing, transformed=given
    )
    wanted = stft(stems.flatten(0, 1)).view(spectrum.shape)
    l1, sdr = losses.spectral_terms(spectrum, wanted, known, mixture=given, floor=weighing.sdr_floor)
    torch.testing.assert_close((terms["stft"], terms["sdr"]), (l1, sdr))


def test_terms_are_weighed(tiny: None) -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(1, 2, 4, 1025, 9, generator=generator)
    stems, known = torch.randn(1, 2, 2, 4096, generator=generator), torch.ones(1, 2)
    values = {"waveform": 2.0, "sdr": 0.0, "stft": 0.5, "magnitude": 0.25, "consistency": 3.0}
    weighing = load_config(["data.pools=x", *(f"training.loss.{k}={v}" for k, v in values.items())])
    mixture = stems.sum(dim=1)
    total, terms = losses.weigh_terms(
        spectrum, mixture, stems, known, weights=weighing.training.loss, transformed=stft(mixture)
    )
    assert set(terms) == {"waveform", "stft", "magnitude", "consistency"}
    assert float(total) == pytest.approx(sum(values[name] * float(term) for name, term in terms.items()))


def test_a_state_file_goes_on_elsewhere_at_its_step(songs: Path, tmp_path: Path, tiny: None) -> None:
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
