"""Two checkpoints' weights become one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_model import TINY

from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint
from training.release.average import main
from training.release.export import load_checkpoint


def save(path: Path, *, seed: int, step: int, config: ModelConfig = TINY) -> TfswaUNet:
    torch.manual_seed(seed)
    network = TfswaUNet(config)
    network.split.norm.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
    checkpoint.save(path, {"average": network.state_dict(), "shape": config.to_json(), "step": step})
    return network


def test_shares_add_up_and_counts_stay(tmp_path: Path) -> None:
    first, second = (
        save(tmp_path / f"{step}.ckpt", seed=step, step=step, config=config).state_dict()
        for step, config in ((200, TINY), (100, dataclasses.replace(TINY, margin_samples=512)))
    )
    paths = [str(tmp_path / name) for name in ("200.ckpt", "100.ckpt")]
    assert main([*paths, "--share", "0.25", "--out", str(tmp_path / "average.ckpt")]) == 0
    network, found = load_checkpoint(tmp_path / "average.ckpt")  # as the export reads it
    assert found["step"] == 200 and network.config == TINY
    weights = network.state_dict()
    assert weights["split.norm.num_batches_tracked"] == 200
    assert not torch.equal(first["split.convs.0.weight"], second["split.convs.0.weight"])
    for key in ("split.convs.0.weight", "heads.3.convs.1.bias", "split.norm.running_mean"):
        torch.testing.assert_close(weights[key], 0.25 * first[key] + 0.75 * second[key])


@pytest.mark.parametrize(
    ("other", "share", "code", "words"),
    [
        ("other.ckpt", "0.5", 3, "other.ckpt are of networks with different head_dim"),
        ("plain.ckpt", "0.5", 3, "plain.ckpt does not describe its network"),
        ("lost.ckpt", "0.5", 3, "lost.ckpt cannot be read"),
        ("first.ckpt", "1.5", 2, "--share must be between 0 and 1, not 1.5"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, share: str, code: int, words: str
) -> None:
    network = save(tmp_path / "first.ckpt", seed=0, step=1)
    save(tmp_path / "other.ckpt", seed=0, step=1, config=dataclasses.replace(TINY, head_dim=4))
    torch.save(network.state_dict(), tmp_path / "plain.ckpt")
    paths = [str(tmp_path / name) for name in ("first.ckpt", other)]
    with pytest.raises(SystemExit) as stopped:
        main([*paths, "--share", share, "--out", str(tmp_path / "out.ckpt")])
    assert stopped.value.code == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.ckpt").exists()


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "first.ckpt", seed=0, step=1)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "first.ckpt")] * 2 + ["--out", str(tmp_path / "lost" / "out.ckpt")])
    assert stopped.value.code == 5
    assert "out.ckpt (No such file or directory)" in capsys.readouterr().err
