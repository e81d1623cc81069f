"""Average two checkpoints: `python -m training.release.average LAST.ckpt OTHER.ckpt --out AVERAGE.ckpt`.

If both are from one run, or one was started from the other, the average often separates better than either
(Wortsman et al., arXiv:2203.05482; experiments/006-weight-averaging.md). Export the result
with `python -m training.release.export AVERAGE.ckpt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tfswa_sep.errors import InputError, OutputError, TfswaError
from tfswa_sep.model.config import ModelConfig
from training.checkpoint import differing_fields, read, save


def average(first: Path, second: Path, *, share: float) -> dict[str, Any]:
    """Average the averaged (EMA) weights of two checkpoints, and take everything else from the first.

    Args:
        first: Path of the first checkpoint.
        second: Path of the second checkpoint, of the same network.
        share: Weight of the first, 0 to 1.

    Raises:
        InputError: A checkpoint cannot be read, or the two are of different networks.
    """
    one, other = read(first), read(second)
    if different := differing_fields(_model_config(one, first), _model_config(other, second)):
        names = ", ".join(different)
        raise InputError(
            f"{first} and {second} are of networks with different {names}: choose two checkpoints of the same network"
        )
    weights = {
        key: torch.lerp(other["average"][key], value, share) if value.is_floating_point() else value
        for key, value in one["average"].items()
    }
    return {**one, "average": weights}


def _model_config(stored: dict[str, Any], path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(stored["shape"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} does not describe its network: use a training checkpoint") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.release.average", description=__doc__)
    parser.add_argument("first", type=Path, help="checkpoint; everything but the weights comes from this one")
    parser.add_argument("second", type=Path, help="checkpoint of the same network")
    parser.add_argument(
        "--share",
        type=float,
        default=0.65,
        help="weight of the first checkpoint, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    options = parser.parse_args(arguments)
    if not 0 <= options.share <= 1:
        parser.error(f"--share must be between 0 and 1, not {options.share}")
    try:
        save(options.out, average(options.first, options.second, share=options.share))
    except TfswaError as error:
        parser.exit(error.exit_code, f"{error}\n")
    except OSError as error:
        parser.exit(OutputError.exit_code, f"cannot write {options.out} ({error.strerror}): change --out\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
