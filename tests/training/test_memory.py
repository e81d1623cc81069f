"""Memory, FLOPs and time of a training step before it runs, against what torch then measures."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from torch._subclasses.fake_tensor import FakeTensorMode

from training.analysis import memory
from training.analysis import throughput as benchmark_training
from training.configuration import load_config


def config(*words: str) -> Any:
    fixed = ["data=musdb18", "training.accelerator=cpu", "training.precision=32-true"]
    return load_config([*fixed, *words], needs_data=False)


def test_live_bytes_by_hand() -> None:
    for mode in (FakeTensorMode(), None):
        counter = memory.LiveBytes()
        with mode or torch.inference_mode(False), counter:
            a = torch.empty(1000)
            b = a.view(10, 100)[3]  # no memory of its own
            c = a + 1
            del a, c
            assert counter.live == 4000  # b still holds all of a
            d = torch.empty(100, dtype=torch.float16)
            del b, d
        assert (counter.live, counter.peak) == (0, 8000)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_estimate_is_what_the_profiler_then_shows(checkpointing: bool) -> None:
    words = config("data.seconds=1.0", "training.batch_size=2")
    estimate = memory.estimate_peak(words, checkpointing=checkpointing)
    assert estimate == pytest.approx(memory.measure_peak(words, checkpointing=checkpointing), rel=0.15)


@pytest.mark.slow
def test_checkpointing_saves_two_fifths_of_the_reference_model() -> None:
    words = config("model=reference", "training.batch_size=1", "training.optimizer=adamw")
    off, on = (memory.estimate_peak(words, checkpointing=wanted) for wanted in (False, True))
    assert on < 0.6 * off


@pytest.mark.slow
def test_a_benchmark_adds_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_training, "STEPS", 1)
    words = config("data.seconds=0.4", "training.batch_size=2", "training.steps=36")
    found = benchmark_training.benchmark(words)
    seconds = float(found["batch_seconds"])
    assert found["examples_a_second"] == pytest.approx(2 / seconds)
    assert found["hours"] == pytest.approx(seconds / 100)
    share = float(found["flops_a_batch"]) / float(found["peak_flops_a_second"]) / seconds
    assert found["model_flops_utilization"] == pytest.approx(share) and 0 < share < 1
    week = benchmark_training.projected_hours(7 * 24 * 3600 * 0.35 * 989e12)
    assert (
        week["one H100 at 35% of 989 TFLOP/s"] == 168
        and found["hours_projected_not_measured"].keys() == week.keys()
    )
    # Backward costs about twice what forward does; both grow with the batch.
    single = config("data.seconds=0.4", "training.batch_size=1")
    assert benchmark_training.training_flops(single) * 2 == found["flops_a_batch"]
    as_products = config("data.seconds=0.4", "training.batch_size=1", "training.fused_attention=false")
    assert benchmark_training.training_flops(as_products) == benchmark_training.training_flops(single)
    assert '"model_flops_utilization"' in capsys.readouterr().out
