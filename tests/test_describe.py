"""What `python -m training.describe` says of the presets: sizes, FLOPs, and memory in a fresh process."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")

from tfswa_sep.model.config import PRESETS, ModelConfig
from training import describe


def test_small_is_cheap() -> None:
    total = describe.describe(PRESETS["small"], depth=0)[-1]
    assert 1e9 < total.flops <= 5e9


def test_modules_add_up_to_the_network() -> None:
    *children, total = describe.describe(PRESETS["small"], depth=1)
    assert [cost.name for cost in children] == ["stem", "encoder", "decoder", "down", "up", "heads"]
    assert {cost.depth for cost in children} == {1} and total.depth == 0
    assert sum(cost.parameters for cost in children) == total.parameters
    assert sum(cost.flops for cost in children) == pytest.approx(total.flops)
    assert total.megabytes == pytest.approx(total.parameters * 4e-6)


def test_flops_are_those_that_a_hand_counts() -> None:
    config = ModelConfig(dims=(32, 64), convs=(1, 1), attentions=(0, 1))
    costs = {cost.name: cost.flops for cost in describe.describe(config, depth=5)}
    frames, seconds = 512, 261_632 / 44_100
    # a multiply-add is two; 8 features in, 32 out, a kernel of 2 bins by 3 frames, 64 tokens
    assert costs["stem.convs.0"] == pytest.approx(2 * (8 * 2 * 3) * 32 * 64 * frames / seconds)
    # half the frames and tokens; four linear layers of 64 by 64, then queries by keys and weights by values
    positions, row = 80 * frames // 2, frames // 2
    expected = 2 * positions * (4 * 64 * 64 + 2 * row * 64) / seconds
    assert costs["encoder.1.blocks.1.attentions.0"] == pytest.approx(expected)


def test_depth_goes_down_into_the_network() -> None:
    costs = {cost.name: cost for cost in describe.describe(PRESETS["small"], depth=2)}
    stages = [costs[f"encoder.{i}"] for i in range(4)]
    assert sum(stage.parameters for stage in stages) == costs["encoder"].parameters
    assert sum(stage.flops for stage in stages) == pytest.approx(costs["encoder"].flops)
    assert max(cost.depth for cost in costs.values()) == 2


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    describe.main(["small", "--depth", "1"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.strip("│ ").split()[0] for line in lines if line.startswith("│")]
    assert names == ["stem", "encoder", "decoder", "down", "up", "heads", "Total"]
    parameters = [int(line.split("│")[2].replace(",", "")) for line in lines if line.startswith("│")]
    assert sum(parameters[:-1]) == parameters[-1] > 2_500_000
    assert "multiply-add counts as two" in "".join(lines)


def test_an_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        describe.main(["huge"])
    assert "invalid choice: 'huge'" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_measured_in_a_fresh_process() -> None:
    tiny = dataclasses.replace(
        PRESETS["small"], dims=(8, 8), convs=(1, 1), attentions=(0, 0), sample_rate=8000
    )
    peak, seconds = describe.measure_training_step(tiny, checkpointing=False)
    # Python with torch alone takes some 300 MB; a step this small adds little.
    assert 100e6 < peak < 2e9
    assert 0 < seconds < 60
