"""The network: what each attention may mix, shapes at any length, gradients, and that it can learn."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from tfswa_sep.model.attention import (
    FrequencyAttention,
    ShiftedWindowAttention,
    TimeAttention,
)
from tfswa_sep.model.blocks import DynamicFusion, FrequencyLinear
from tfswa_sep.model.config import BRANCHES, PRESETS, Band, ModelConfig
from tfswa_sep.model.mask_head import apply_masks, band_features
from tfswa_sep.model.stft_torch import istft, separate_waveform, stft
from tfswa_sep.model.unet import TfswaUNet, run_heads_together

TINY = ModelConfig(
    features="complex",
    masks="complex",
    tdfs=(),
    branches=BRANCHES,
    n_fft=128,
    hop=32,
    bands=(Band(start=0, stop=32, stride=2), Band(start=32, stop=64, stride=8)),
    dims=(8, 16),
    convs=(1, 1),
    attentions=(1, 1),
    heads=2,
    window=(5, 4),
    head_dim=8,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def reach(module: nn.Module, at: tuple[int, int], *, f: int = 10, t: int = 8) -> Tensor:
    """(f, t) of bool: which positions change when the input changes at one position."""
    module.eval()
    x = torch.randn(1, f, t, 8)
    changed = x.clone()
    changed[:, at[0], at[1]] += 1.0
    with torch.no_grad():
        difference = (module(x) - module(changed)).abs().amax(dim=(0, 3))
    result: Tensor = difference > 1e-7
    return result


def test_time_attention_mixes_only_within_a_frequency() -> None:
    touched = reach(TimeAttention(8, 2), (3, 5))
    assert touched[3].all()
    assert touched.sum() == touched.shape[1]


def test_frequency_attention_mixes_only_within_a_frame() -> None:
    touched = reach(FrequencyAttention(8, 2), (3, 5))
    assert touched[:, 5].all()
    assert touched.sum() == touched.shape[0]


def test_window_attention_mixes_only_within_a_window() -> None:
    touched = reach(ShiftedWindowAttention(8, 2, window=(5, 4), shifted=False), (3, 5))
    expected = torch.zeros(10, 8, dtype=torch.bool)
    expected[0:5, 4:8] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [
        ((3, 5), slice(2, 7), slice(2, 6)),  # a whole shifted window, 2 rows and 2 columns further on
        ((0, 5), slice(0, 2), slice(2, 6)),  # the first rows were rolled round: a window of their own
        ((9, 7), slice(7, 10), slice(6, 8)),  # the last rows and columns share a window with nothing rolled
    ],
)
def test_shifted_window_attention_masks_what_the_roll_brought_together(
    at: tuple[int, int], rows: slice, columns: slice
) -> None:
    touched = reach(ShiftedWindowAttention(8, 2, window=(5, 4), shifted=True), at)
    expected = torch.zeros(10, 8, dtype=torch.bool)
    expected[rows, columns] = True
    assert torch.equal(touched, expected)


def test_relative_position_bias_depends_only_on_the_offset() -> None:
    attention = ShiftedWindowAttention(8, 2, window=(3, 2), shifted=False)
    index = attention.relative_index
    # positions in a window are (row, column) = divmod(i, 2): 0 -> 3 and 2 -> 5 are both one down, one right
    assert index[0, 3] == index[2, 5]
    assert index[0, 3] != index[3, 0]
    assert len(set(index.flatten().tolist())) == (2 * 3 - 1) * (2 * 2 - 1)


def test_fusion_weights_depend_on_the_input_and_sum_to_one() -> None:
    fusion = DynamicFusion(8, 3)
    ones = [torch.ones(2, 4, 4, 8)] * 3
    x = torch.randn(2, 4, 4, 8)
    torch.testing.assert_close(fusion(x, ones), ones[0])
    branches = [torch.randn(2, 4, 4, 8) for _ in range(3)]
    assert not torch.allclose(fusion(x, branches), fusion(x + 3, branches))


@pytest.mark.parametrize("frames", [1, 7, 8, 33])
def test_any_number_of_frames(frames: int) -> None:
    network = TfswaUNet(TINY).eval()
    with torch.no_grad():
        stems = network(torch.randn(2, 4, 65, frames))
    assert stems.shape == (2, 4, 4, 65, frames)
    assert torch.isfinite(stems).all()


@pytest.mark.parametrize("samples", [1, 31, 32, 1000])
def test_any_number_of_samples(samples: int) -> None:
    network = TfswaUNet(TINY).eval()
    with torch.no_grad():
        stems = separate_waveform(network, torch.randn(1, 2, samples), n_fft=128, hop=32)
    assert stems.shape == (1, 4, 2, samples)


def test_stems_sum_to_the_mixture() -> None:
    network = TfswaUNet(TINY).eval()
    mixture = torch.randn(1, 4, 65, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(mixture).sum(dim=1), mixture, rtol=1e-4, atol=1e-4)


def test_masks_are_bounded_without_the_consistency() -> None:
    network = TfswaUNet(dataclasses.replace(TINY, mixture_consistent=False)).eval()
    mixture = torch.ones(1, 4, 65, 8)
    with torch.no_grad():
        stems = apply_masks(torch.full((1, 4, 4, 64, 8), 50.0), [], mixture, network.config)
    magnitude = (stems[:, :, 0::2].square() + stems[:, :, 1::2].square()).sqrt()
    assert magnitude.max() <= 2**0.5 + 1e-5


@pytest.mark.parametrize("split", ["bands", "stack"])
def test_heads_side_by_side_are_the_heads_one_by_one(split: Literal["bands", "stack"]) -> None:
    """Values, gradients, and what batch norms keep; the weights stay those of the heads."""
    bands = tuple(Band(start=i * 16, stop=(i + 1) * 16, stride=1) for i in range(4))
    bands = bands if split == "stack" else TINY.bands
    shape = dataclasses.replace(TINY, split=split, attentions=(0, 0), bands=bands)
    network = TfswaUNet(shape).train()
    for head in network.heads:
        nn.init.normal_(head.hidden[1].weight)  # type: ignore[union-attr, index]
    apart = copy.deepcopy(network)
    x = torch.randn(2, shape.dims[0], shape.rows, 12)
    found = run_heads_together(list(network.heads), x)  # type: ignore[arg-type]
    wanted = [torch.cat(parts, dim=1) for parts in zip(*[head(x) for head in apart.heads], strict=True)]
    factors = [torch.randn_like(value) for value in wanted]
    for values in (found, wanted):
        sum((value * factor).sum() for value, factor in zip(values, factors, strict=True)).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(network.state_dict(), apart.state_dict())
    assert (network.heads[1].hidden[1].running_mean != 0).any()  # type: ignore[union-attr, index]
    for one, other in zip(network.heads.parameters(), apart.heads.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_heads_are_float32_where_a_network_is_used_and_16_bits_where_it_learns() -> None:
    network, bands = TfswaUNet(TINY), band_features(torch.randn(1, 4, 64, 8), TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {value.dtype for value in network.train().raw_masks(bands)} == {torch.bfloat16}
        assert {value.dtype for value in network.eval().raw_masks(bands)} == {torch.float32}


def test_silence_gives_silence() -> None:
    network = TfswaUNet(TINY).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 65, 8)).abs().max() == 0


def test_features_show_where_a_voice_sits() -> None:
    centre = torch.randn(1, 2, 64, 4).repeat(1, 2, 1, 1)  # left equals right
    features = torch.cat(band_features(centre, TINY), dim=2)
    assert features.shape == (1, 8, 64, 4)
    side = features[:, -1]
    assert side.max() < 0.2 < features[:, -2].mean()


def test_the_advance_of_a_phase_shows_where_in_its_bin_a_tone_lies() -> None:
    """None in the middle of a bin, whichever it is, and a quarter of an offset of one bin (hop / n_fft)."""
    config = dataclasses.replace(TINY, bands=(Band(start=0, stop=64, stride=2, taps=3),), features="advance")
    for offset in (0.0, 0.3):
        for k in (9, 10, 11):
            tone = torch.cos(2 * torch.pi * (k + offset) / 128 * torch.arange(4000, dtype=torch.float64))
            spectrum = stft(tone.float().expand(1, 2, -1), n_fft=128, hop=32)
            features = band_features(spectrum[:, :, :64], config)[0][0, :, k, 4:-4]
            advance = torch.atan2(features[2], features[0]) / (2 * torch.pi)
            torch.testing.assert_close(advance, torch.full_like(advance, offset / 4), atol=1e-3, rtol=0)
            size = torch.hypot(features[2], features[0])
            torch.testing.assert_close(size, features[4], rtol=1e-3, atol=0)


def test_a_filter_takes_a_tone_out_that_shares_its_bin_with_another() -> None:
    """Which no mask can: X(t) - X(t - 1) has nothing of what stands still."""
    config = dataclasses.replace(TINY, bands=(Band(start=0, stop=64, stride=2, taps=3),))
    n = torch.arange(4000, dtype=torch.float64)
    still, other = (torch.cos(2 * torch.pi * (10 + offset) / 128 * n).float() for offset in (0.0, 0.5))
    pair = stft(torch.stack([still, other])[:, None].expand(2, 2, -1), n_fft=128, hop=32)
    filters = torch.zeros(1, 4, 2, 3, 2, 64, pair.shape[-1])  # b, s, c, taps, real and imaginary, f, t
    filters[:, 0, :, 1, 0] = 1
    filters[:, 0, :, 0, 0] = -1
    masks = torch.full((1, 4, 4, 64, pair.shape[-1]), 0.0)
    alone = dataclasses.replace(config, mixture_consistent=False)
    both = pair.sum(dim=0, keepdim=True)
    found = apply_masks(masks, [filters.flatten(2, 4)], both, alone)[0, 0, :, 10, 4:-4]
    rest = apply_masks(masks, [filters.flatten(2, 4)], pair[1:], alone)[0, 0, :, 10, 4:-4]
    assert rest.square().mean() > 0.1 * pair[1, :, 10, 4:-4].square().mean()
    torch.testing.assert_close(found, rest, atol=1e-3 * float(rest.abs().max()), rtol=0)
    stems = apply_masks(torch.randn_like(masks), [torch.randn_like(filters).flatten(2, 4)], both, config)
    torch.testing.assert_close(stems.sum(dim=1), both, atol=1e-3, rtol=0)


def test_a_tdf_begins_as_the_identity_and_then_mixes_only_within_a_frame() -> None:
    layer = FrequencyLinear(8, 10, 4)
    x = torch.randn(2, 8, 10, 6)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    nn.init.normal_(layer.expand.weight)
    changed = x.clone()
    changed[:, 3, 2, 5] += 1
    touched = (layer(changed) - layer(x)).abs() > 1e-6
    assert touched[:, 3, :, 5].sum() > 2
    touched[:, 3, :, 5] = False
    assert not touched.any()


def test_stft_is_inverted() -> None:
    x = torch.randn(2, 2, 5000)
    back = istft(stft(x)[:, None], length=5000)[:, 0]
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter() -> None:
    network = TfswaUNet(TINY).train()
    target = torch.randn(2, 4, 4, 65, 16)
    (network(torch.randn(2, 4, 65, 16)) - target).abs().mean().backward()
    # A softmax does not see a bias that all keys share: query times key bias cancels there, up to rounding.
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_checkpointing_gives_the_same_gradients() -> None:
    """And the same running statistics, although the stages run twice."""
    network = TfswaUNet(TINY).train()
    x = torch.randn(2, 4, 65, 16)
    begin = copy.deepcopy(network.state_dict())
    gradients, states = [], []
    for checkpointing in (False, True):
        network.load_state_dict(begin)
        network.checkpointing = checkpointing
        network.zero_grad()
        network(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        states.append(copy.deepcopy(network.state_dict()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    torch.testing.assert_close(*states)
    assert any((states[0][name] != begin[name]).any() for name in begin if "running_mean" in name)


@pytest.mark.slow
def test_a_batch_can_be_overfitted() -> None:
    network = TfswaUNet(TINY).train()
    time = torch.arange(4096) / 4096
    stems = torch.zeros(1, 4, 2, 4096)
    for i, cycles in enumerate((300, 40, 900, 1600)):
        stems[0, i] = torch.sin(2 * torch.pi * cycles * time) * (1 + torch.sin(2 * torch.pi * (i + 2) * time))
    mixture = stems.sum(dim=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = (separate_waveform(network, mixture, n_fft=128, hop=32) - stems).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [("reference", 15.4, 0.01), ("paper", 44.3, 0.02), ("small", 4.79, 0.01)],
)
def test_presets_have_their_size(name: str, millions: float, tolerance: float) -> None:
    with torch.device("meta"):
        network = TfswaUNet(PRESETS[name])
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_configuration_survives_json(name: str) -> None:
    import json

    assert ModelConfig.from_json(json.loads(json.dumps(PRESETS[name].to_json()))) == PRESETS[name]


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"dims": [8]},
        {"bands": [{"start": 0, "stop": 32, "stride": 2}]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 3}]},
        {"heads": 7},
        {"window": [5, 256]},
    ],
)
def test_configuration_that_cannot_be_built_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ModelConfig.from_json({**PRESETS["small"].to_json(), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(({"bands": [{"start": 0, "stop": 1024, "stride": 8, "taps": taps}]}, "odd number of frames")
          for taps in (2, -1, 17, "3", 3.0, None)),
        ({"bands": [{"start": 0, "stop": 1024, "stride": 0}]}, "malformed"),
        ({"tdfs": [8]}, "as many stages"),
        ({"tdfs": 5}, "malformed"),
        *(({"tdfs": [hidden, 0, 0, 0]}, "row counts") for hidden in (-1, 1.5, "8")),
        ({"masks": "weird"}, "unknown masks"),
        ({"features": "weird"}, "unknown features"),
        ({"split": "stack", "bands": [{"start": 0, "stop": 1024, "stride": 8}]}, "one bin per token"),
    ],
)  # fmt: skip
def test_configuration_says_what_cannot_be_built(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig.from_json({**PRESETS["small"].to_json(), **change})


def test_the_defaults_are_small_and_older_files_keep_their_meaning() -> None:
    assert PRESETS["small"] == ModelConfig()
    # A file from before there were real masks, phase advances, TDF blocks and a choice of attentions.
    older = ModelConfig.from_json({"stem": "bands", "dims": [32, 64, 96, 160]})
    assert (older.features, older.masks, older.tdfs, older.branches) == ("complex", "complex", (), BRANCHES)
    assert (older.split, older.convs) == ("bands", (1, 1, 2, 2))
