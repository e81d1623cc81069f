"""`training.analysis.describe`: sizes, FLOPs, and memory in a new process."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")

from tfswa_sep.model.config import PRESETS
from training.analysis import describe


@pytest.fixture(scope="module")
def costs() -> dict[str, describe.ModuleCost]:
    """Every module of `small`, by name; the whole network is ""."""
    return {cost.name: cost for cost in describe.describe(PRESETS["small"], depth=6)}


@pytest.mark.slow
def test_small_is_cheap(costs: dict[str, describe.ModuleCost]) -> None:
    """5.6 GFLOP per second of audio."""
    assert 1e9 < costs[""].flops <= 6e9
    assert costs[""].megabytes == pytest.approx(costs[""].parameters * 4e-6)


@pytest.mark.parametrize("parent", ["", "encoder", "encoder.2.blocks", "heads.0"])
def test_modules_add_up(costs: dict[str, describe.ModuleCost], parent: str) -> None:
    depth = parent.count(".") + 2 if parent else 1
    inside = [
        cost
        for name, cost in costs.items()
        if cost.depth == depth and (not parent or name.startswith(parent + "."))
    ]
    assert len(inside) > 1
    assert sum(cost.parameters for cost in inside) == costs[parent].parameters
    assert sum(cost.flops for cost in inside) == pytest.approx(costs[parent].flops)


def test_flops_by_hand(costs: dict[str, describe.ModuleCost]) -> None:
    frames, seconds = 384, 196_096 / 44_100
    # a multiply-add counts as two; 8 features in, 32 out, a kernel of 1 bin by 3 frames, 16 tokens
    split = 2 * (8 * 1 * 3) * 32 * 16 * frames / seconds
    assert costs["split.convs.0"].flops == pytest.approx(split)
    # the third stage: 160 tokens and 384 frames halved twice, 96 features;
    # four linear layers' worth of 96 by 96, then (along frequency) queries by keys and weights by values
    tokens, frames, dim = 40, 96, 96
    attention = 2 * tokens * frames * (4 * dim * dim + 2 * tokens * dim) / seconds
    assert costs["encoder.2.blocks.2.attentions.0"].flops == pytest.approx(attention)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    describe.main(["small", "--depth", "1"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.strip("│ ").split()[0] for line in lines if line.startswith("│")]
    assert names == ["split", "encoder", "decoder", "down", "up", "heads", "Total"]
    parameters = [int(line.split("│")[2].replace(",", "")) for line in lines if line.startswith("│")]
    assert sum(parameters[:-1]) == parameters[-1] > 2_400_000
    assert "multiply-add counts as two" in "".join(lines)


def test_an_unknown_preset_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        describe.main(["huge"])
    assert "invalid choice: 'huge'" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_measured_in_a_new_process() -> None:
    tiny = dataclasses.replace(
        PRESETS["small"], dims=(8, 8), convs=(1, 1), tdfs=(8, 0), attentions=(0, 0), sample_rate=8000
    )
    peak, seconds = describe.measure_training_step(tiny, checkpointing=False)
    # Python with torch alone takes some 300 MB; a step this small adds little.
    assert 100e6 < peak < 2e9
    assert 0 < seconds < 60
