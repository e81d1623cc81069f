"""Estimates of memory, FLOPs and time of a training step, compared with measurements."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from torch._subclasses.fake_tensor import FakeTensorMode

from training.analysis import memory, throughput
from training.configuration import load_config


def config(*overrides: str) -> Any:
    fixed = ["data=musdb18", "training.accelerator=cpu", "training.precision=32-true"]
    return load_config([*fixed, *overrides], needs_data=False)


def test_live_bytes_by_hand() -> None:
    for mode in (FakeTensorMode(), None):
        counter = memory.LiveBytes()
        with mode or torch.inference_mode(False), counter:
            a = torch.empty(1000)
            b = a.view(10, 100)[3]  # shares memory
            c = a + 1
            del a, c
            assert counter.live == 4000  # b still holds all of a
            d = torch.empty(100, dtype=torch.float16)
            del b, d
        assert (counter.live, counter.peak) == (0, 8000)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_estimate_agrees_with_the_profiler(checkpointing: bool, tiny: None) -> None:
    settings = config("data.seconds=1.0", "training.batch_size=2")
    estimate = memory.estimate_peak(settings, checkpointing=checkpointing)
    assert estimate == pytest.approx(memory.measure_peak(settings, checkpointing=checkpointing), rel=0.15)


@pytest.mark.slow
@pytest.mark.longest
def test_checkpointing_saves_two_fifths_of_a_network_like_reference() -> None:
    """With fewer of its layers; docs/claims.md has the command for all of them."""
    settings = config(
        "model=reference", "model.changes.convs=[1,1,1,1]", "model.changes.attentions=[1,0,0,1]",
        "training.batch_size=8", "training.optimizer=adamw",
    )  # fmt: skip
    off, on = (memory.estimate_peak(settings, checkpointing=value) for value in (False, True))
    assert on < 0.6 * off


@pytest.mark.slow
def test_throughput_is_consistent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: None
) -> None:
    monkeypatch.setattr(throughput, "STEPS", 1)
    settings = config("data.seconds=0.4", "training.batch_size=2", "training.steps=36")
    result = throughput.benchmark(settings)
    seconds = float(result["batch_seconds"])
    assert result["examples_per_second"] == pytest.approx(2 / seconds)
    assert result["hours"] == pytest.approx(seconds / 100)
    share = float(result["flops_per_batch"]) / float(result["peak_flops_per_second"]) / seconds
    assert result["model_flops_utilization"] == pytest.approx(share) and 0 < share < 1
    week = throughput.projected_hours(7 * 24 * 3600 * 0.35 * 989e12)
    assert (
        week["one H100 at 35% of 989 TFLOP/s"] == 168
        and result["hours_projected_not_measured"].keys() == week.keys()
    )
    # FLOPs grow with the batch.
    single = config("data.seconds=0.4", "training.batch_size=1")
    assert throughput.training_flops(single) * 2 == result["flops_per_batch"]
    as_products = config("data.seconds=0.4", "training.batch_size=1", "training.fused_attention=false")
    assert throughput.training_flops(as_products) == throughput.training_flops(single)
    assert '"model_flops_utilization"' in capsys.readouterr().out
